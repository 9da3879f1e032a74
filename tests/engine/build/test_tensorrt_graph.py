"""The graph that TensorRT reads, with the plugin and without."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from prompt_iml.engine.build.builder import graph_for
from prompt_iml.engine.build.graph import for_tensorrt
from prompt_iml.engine.model.folder import load_model
from prompt_iml.engine.operator.onnx_op import DOMAIN, NAME
from prompt_iml.engine.runtimes.plans import Recipe
from tests.helpers.operator_model import operator_model

SIZES = np.array([(5, 4), (3, 2), (1, 6)], np.int64)
Feeds = dict[str, NDArray[np.generic]]


@pytest.fixture(scope="module")
def graph() -> onnx.ModelProto:
    return operator_model(len(SIZES))


@pytest.fixture(scope="module")
def feeds() -> Feeds:
    rng = np.random.default_rng()
    return {
        "value": rng.normal(size=(2, 32, 3, 4)).astype(np.float32),
        "sizes": SIZES,
        "locations": rng.uniform(-0.5, 1.5, (2, 7, 3, 3, 2, 2)).astype(np.float32),
        "weights": rng.uniform(0, 1, (2, 7, 3, 3, 2)).astype(np.float32),
    }


def _run(model: onnx.ModelProto, feeds: Feeds) -> NDArray[np.float32]:
    out: NDArray[np.float32] = onnxruntime.InferenceSession(model.SerializeToString()).run(
        None, feeds
    )[0]
    return out


def test_our_plugin_s_nodes_say_who_computes_them_and_nobody_else_can() -> None:
    packaged = onnx.load(load_model("prompt-iml-micro").graph, load_external_data=False)
    before = packaged.SerializeToString()
    changed = for_tensorrt(packaged)
    nodes = [node for node in changed.graph.node if node.op_type == NAME]
    attributes = [{a.name: onnx.helper.get_attribute_value(a) for a in n.attribute} for n in nodes]
    assert (
        attributes == [{"plugin_namespace": DOMAIN.encode(), "plugin_version": b"1", "aot": 1}] * 9
    )
    assert not changed.functions
    assert packaged.SerializeToString() == before
    outputs = [list(node.output) for node in changed.graph.node]
    outputs.remove(["image:cast"])
    assert outputs == [list(node.output) for node in packaged.graph.node]


def test_bytes_are_cast_before_any_other_layer_takes_them() -> None:
    graph = graph_for(load_model("prompt-iml-micro"), Recipe(((256, 256),), (1,)), (256, 256)).graph
    takers = [node.op_type for node in graph.node if "image" in node.input]
    assert set(takers) <= {"Cast", "Shape"}
    (transposed,) = (node for node in graph.node if "image:cast" in node.input)
    assert transposed.op_type == "Transpose"


def test_without_a_plugin_only_onnx_s_operators_and_a_warning_remain(
    graph: onnx.ModelProto, feeds: Feeds
) -> None:
    with pytest.warns(RuntimeWarning, match="4813"):
        changed = for_tensorrt(graph, "none")
    assert not any(node.domain for node in changed.graph.node)
    np.testing.assert_allclose(_run(changed, feeds), _run(graph, feeds), rtol=0, atol=1e-6)
