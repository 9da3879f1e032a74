"""The exported file: its contents, its operator, and the comparison before it is stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto

from prompt_iml.engine.build import export
from prompt_iml.engine.detection.context import whole_pictures
from prompt_iml.engine.errors import PromptImlError
from prompt_iml.engine.model.folder import Model, load_model
from prompt_iml.engine.model.policy import UNTRAINED
from prompt_iml.engine.network.config import PRESETS, DecoderConfig, SwinConfig
from prompt_iml.engine.network.model import PromptIML
from prompt_iml.engine.operator import cpu
from prompt_iml.engine.operator.onnx_op import DOMAIN, NAME, OPSET
from prompt_iml.engine.operator.torch_op import reference
from prompt_iml.engine.runtimes.open import open_engine
from prompt_iml.engine.runtimes.openvino import core
from prompt_iml.engine.runtimes.torch_cpu import load_network
from tests.helpers import rtx_build
from tests.helpers.operator_model import operator_model

Sizes = list[tuple[int, int]]
Run = Callable[[onnx.ModelProto, list[NDArray[np.generic]]], NDArray[np.float32]]


@pytest.fixture(scope="module")
def packaged() -> Model:
    return load_model("prompt-iml-micro")


@pytest.fixture(scope="module")
def graph(packaged: Model) -> onnx.ModelProto:
    return onnx.load(packaged.graph, load_external_data=False)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A small network with the parts of preset s: one image size, no JPEG view."""
    config = replace(
        PRESETS["prompt-iml-s"],
        name="tiny",
        swin=SwinConfig(channels=8, depths=(1, 1, 1, 1), heads=(1, 1, 2, 2), windows=(7,) * 4),
        decoder=DecoderConfig(16, 2, 4, 1, 16, 1, 16),
        sides=(64,),
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny") / "model"
    return export.export_model(PromptIML(config), folder, version="test", card={}, policy=UNTRAINED)


def test_the_graph_is_what_runtimes_are_promised(graph: onnx.ModelProto) -> None:
    assert {(o.domain, o.version) for o in graph.opset_import} == {("", OPSET), (DOMAIN, 1)}
    assert [i.name for i in graph.graph.input] == [
        "image", "qtable", "histogram", "matches",
        *(f"prompts_{number}" for number in range(8)),
    ]  # fmt: skip
    assert [o.name for o in graph.graph.output] == ["mask_logits", "score_logit"]


def test_the_operator_is_a_node_and_a_function(graph: onnx.ModelProto, packaged: Model) -> None:
    nodes = [node for node in graph.graph.node if node.op_type == NAME and node.domain == DOMAIN]
    assert len(nodes) == 2 * 4 + packaged.config.decoder.encoder_layers
    assert [(f.domain, f.name) for f in graph.functions] == [(DOMAIN, NAME)]


def test_the_weights_lie_outside_the_graph(graph: onnx.ModelProto, packaged: Model) -> None:
    outside = [t for t in graph.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    assert {t.name for t in outside} <= packaged.weights().keys()
    assert {e.value for t in outside for e in t.external_data if e.key == "location"} == {
        "model.safetensors"
    }
    assert packaged.graph.stat().st_size < 1_000_000  # half of it is the index of windows of 16
    onnx.checker.check_model(packaged.graph)


def test_the_graph_tells_nothing_of_who_exported_it(packaged: Model) -> None:
    body = packaged.graph.read_bytes()
    assert b".py" not in body
    assert b"pkg.torch" not in body
    assert str(Path.home()).encode() not in body


def _onnxruntime(model: onnx.ModelProto, values: list[NDArray[np.generic]]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    feeds = dict(zip(("value", "sizes", "locations", "weights"), values, strict=True))
    out: NDArray[np.float32] = session.run(None, feeds)[0]
    return out


def _openvino(
    model: onnx.ModelProto, values: list[NDArray[np.generic]], kernel: bool = False
) -> NDArray[np.float32]:
    runtime = core(kernel)
    graph = runtime.read_model(model.SerializeToString())
    graph.reshape({i: list(value.shape) for i, value in enumerate(values)})
    compiled = runtime.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    out: NDArray[np.float32] = compiled(values)[0]
    return out


def _openvino_kernel(
    model: onnx.ModelProto, values: list[NDArray[np.generic]]
) -> NDArray[np.float32]:
    if not cpu.available():
        pytest.skip("no C++ compiler when it was installed")
    return _openvino(model, values, kernel=True)


@pytest.mark.parametrize("run", [_onnxruntime, _openvino, _openvino_kernel])
@pytest.mark.parametrize("sizes", [[(1, 1)], [(7, 5)], [(128, 96)], [(9, 4), (5, 2), (1, 3)]])
def test_the_operator_equals_the_reference_outside_the_map_too(sizes: Sizes, run: Run) -> None:
    torch.manual_seed(0)
    n, q, m, d, points, levels = 2, 50, 3, 5, 4, len(sizes)
    value = torch.randn(n, sum(h * w for h, w in sizes), m, d)
    locations = torch.rand(n, q, m, levels, points, 2) * 3 - 1
    weights = torch.randn(n, q, m, levels * points).softmax(-1).reshape(locations.shape[:-1])
    expected = reference(value, sizes, locations, weights).numpy()
    values = [value.numpy(), np.array(sizes), locations.numpy(), weights.numpy()]
    np.testing.assert_allclose(run(operator_model(levels), values), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["openvino", "onnxruntime"])
def test_an_export_takes_batches_it_was_not_traced_with(tiny: Model, kind: str) -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (3, 64, 64, 3), np.uint8)
    batch = whole_pictures(pixels, np.ones((3, 64), np.float32))
    expected, found = open_engine(tiny, "torch").run(batch), open_engine(tiny, kind).run(batch)
    np.testing.assert_allclose(found.mask_logits, expected.mask_logits, rtol=0, atol=1e-4)


def test_an_export_merges_no_parameters(tiny: Model) -> None:
    """New biases are all zero: equal, but different parameters."""
    graph = onnx.load(tiny.graph, load_external_data=False).graph
    inline = [t for t in graph.initializer if t.data_location != TensorProto.EXTERNAL]
    assert len(graph.initializer) - len(inline) == len(tiny.weights())
    assert sum(len(t.raw_data) for t in inline) < 100_000


@rtx_build.needs_rtx
def test_tensorrt_builds_preset_s_in_small(tiny: Model) -> None:
    assert rtx_build.build(str(tiny.folder), "bfloat16", 64, 1, 4)["plan"] > 100_000


def test_a_model_that_differs_is_not_stored(
    tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = onnx.load(tiny.graph, load_external_data=False)
    monkeypatch.setattr(export, "_graph", lambda network, weights: graph)
    monkeypatch.setattr(export, "TOLERANCE", 0.0)
    with pytest.raises(PromptImlError, match="differs from PyTorch"):
        export.export_model(
            load_network(tiny), tmp_path / "model", version="test", card={}, policy=UNTRAINED
        )
    assert not list((tmp_path / "model").iterdir())
