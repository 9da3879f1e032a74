"""The packaged model in every runtime, and the files of its folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save, save_file

from prompt_iml.engine.detection.context import whole_pictures
from prompt_iml.engine.errors import (
    DamagedModel,
    InferError,
    MissingDependency,
    UnknownModel,
    UsageError,
)
from prompt_iml.engine.model import folder as checkpoint
from prompt_iml.engine.model.folder import Model, load_model, open_folder
from prompt_iml.engine.model.graph_file import WEIGHTS_DIGEST
from prompt_iml.engine.model.prompts import PromptSet, load_prompts, save_prompts
from prompt_iml.engine.operator import cpu
from prompt_iml.engine.runtimes.open import check_engine, open_engine
from prompt_iml.engine.runtimes.openvino import OpenVinoEngine
from prompt_iml.engine.runtimes.parity import TOLERANCES, error_of
from prompt_iml.engine.runtimes.protocol import Batch, Detection, Engine

RUNTIMES = ("openvino", "onnxruntime")
TOLERANCE = 1e-2
EDGE = 0.2  # of logits up to 10: one value in another bin changes its cell by so much


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model("prompt-iml-micro")


@pytest.fixture(scope="module")
def engines(model: Model) -> dict[str, Engine]:
    return {kind: open_engine(model, kind, threads=2) for kind in (*RUNTIMES, "torch")}


@pytest.fixture
def copy(model: Model, tmp_path: Path) -> Path:
    """A copy of the model folder that a test may damage."""
    return Path(shutil.copytree(model.folder, tmp_path / "model"))


def _batch(n: int, height: int, width: int, seed: int = 0) -> Batch:
    random = np.random.default_rng(seed)
    image = random.integers(0, 256, (n, height, width, 3), np.uint8)
    return whole_pictures(image, random.integers(1, 60, (n, 64)).astype(np.float32))


def _assert_close(found: Detection, expected: Detection) -> None:
    """Check that two outputs are near everywhere and almost equal at most places: runtimes may put
    a value of the JPEG view that lies between two bins into different ones."""
    difference = np.abs(found.mask_logits - expected.mask_logits)
    assert difference.max() < EDGE
    assert np.quantile(difference, 0.99) < 3 * TOLERANCE
    assert np.median(difference) < 1e-4
    np.testing.assert_allclose(found.score_logit, expected.score_logit, rtol=0, atol=EDGE)


@pytest.mark.parametrize("size", [(256, 256), (512, 256)])
@pytest.mark.parametrize("n", [1, 4])
def test_runtimes_equal_pytorch(engines: dict[str, Engine], n: int, size: tuple[int, int]) -> None:
    batch = _batch(n, *size)
    expected = engines["torch"].run(batch)
    assert expected.mask_logits.shape == (n, size[0] // 4, size[1] // 4)
    assert expected.score_logit.shape == (n,)
    for kind in RUNTIMES:
        _assert_close(engines[kind].run(batch), expected)


@pytest.mark.parametrize("kind", RUNTIMES)
def test_prompts_act_as_in_pytorch(model: Model, engines: dict[str, Engine], kind: str) -> None:
    batch, random = _batch(1, 256, 256), np.random.default_rng(1)
    tensors = [random.standard_normal(t.shape, np.float32) for t in model.prompts.tensors]
    before = engines[kind].run(batch)
    try:
        for engine in (engines[kind], engines["torch"]):
            engine.load_prompts(PromptSet(tuple(tensors)))
        after = engines[kind].run(batch)
        _assert_close(after, engines["torch"].run(batch))
        assert np.abs(after.mask_logits - before.mask_logits).max() > 1e-2
    finally:
        for engine in (engines[kind], engines["torch"]):
            engine.load_prompts(model.prompts)


@pytest.mark.parametrize("kind", RUNTIMES)
def test_the_quantisation_table_matters(engines: dict[str, Engine], kind: str) -> None:
    batch = _batch(1, 256, 256)
    other = replace(batch, qtable=batch.qtable + 7)
    assert engines[kind].run(batch).score_logit != engines[kind].run(other).score_logit


@pytest.mark.parametrize("kind", RUNTIMES)
def test_batch_mates_change_no_bit(engines: dict[str, Engine], kind: str) -> None:
    batch, others = _batch(4, 256, 256), _batch(4, 256, 256, seed=1)
    columns = zip(astuple(batch), astuple(others), strict=True)
    mates = Batch(*(np.concatenate([ours[:1], theirs[1:]]) for ours, theirs in columns))
    alone, beside = engines[kind].run(batch), engines[kind].run(mates)
    np.testing.assert_array_equal(alone.mask_logits[0], beside.mask_logits[0])
    assert alone.score_logit[0] == beside.score_logit[0]


@pytest.mark.parametrize("kind", RUNTIMES)
def test_a_result_outlives_the_next_run(engines: dict[str, Engine], kind: str) -> None:
    first = engines[kind].run(_batch(1, 256, 256))
    copied = first.mask_logits.copy()
    engines[kind].run(_batch(1, 256, 256, seed=1))
    np.testing.assert_array_equal(first.mask_logits, copied)


@pytest.mark.parametrize("kind", [*RUNTIMES, "torch"])
def test_a_batch_that_does_not_fit_is_an_infer_error(engines: dict[str, Engine], kind: str) -> None:
    with pytest.raises(InferError, match=kind):
        engines[kind].run(_batch(1, 250, 256))


@pytest.mark.parametrize("shape", [(1, 256, 256), (2, 256, 512)], ids=str)
def test_in_bfloat16_the_jpeg_view_counts_in_float32(
    model: Model, engines: dict[str, Engine], shape: tuple[int, int, int]
) -> None:
    """A view in bfloat16 would round other coefficients: errors as large as logits."""
    try:
        half = OpenVinoEngine(model, 1, precision="bfloat16")
    except UsageError as error:
        pytest.skip(str(error))
    batch = _batch(*shape)
    found, expected = half.run(batch), engines["openvino"].run(batch)
    assert 0 < error_of(found, expected) < TOLERANCES["bfloat16"]
    again = OpenVinoEngine(model, 1, precision="bfloat16").run(batch)  # from the cache
    np.testing.assert_array_equal(again.mask_logits, found.mask_logits)
    assert half.name.endswith("/bf16/cpu")


def test_bfloat16_is_refused_where_it_cannot_be(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="not for onnxruntime"):
        check_engine("onnxruntime", "bfloat16")
    with pytest.raises(UsageError, match="no precision bf16: use one of auto, float32, bfloat16"):
        check_engine("auto", "bf16")
    monkeypatch.setattr(OpenVinoEngine, "_capabilities", lambda _: ["FP32"])
    with pytest.raises(UsageError, match="no bfloat16"):
        open_engine(model, precision="bfloat16")


def test_the_default_loads_neither_torch_nor_onnx() -> None:
    program = """
import sys, numpy
from prompt_iml.engine.model.folder import load_model
from prompt_iml.engine.detection.context import whole_pictures
from prompt_iml.engine.runtimes.open import open_engine
engine = open_engine(load_model("prompt-iml-micro"), threads=1)
pixels, table = numpy.zeros((1, 256, 256, 3), numpy.uint8), numpy.ones((1, 64), numpy.float32)
engine.run(whole_pictures(pixels, table))
print(engine.name, *sorted({"torch", "onnx", "onnxscript", "ray"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.decode().split() == [
        "openvino+kernel/f32/cpu" if cpu.available() else "openvino/f32/cpu"
    ]


def test_weights_of_another_model_are_refused(copy: Path) -> None:
    file = copy / checkpoint.WEIGHTS
    body = bytearray(file.read_bytes())
    body[-1] ^= 1
    file.write_bytes(body)
    with pytest.raises(DamagedModel, match="was exported for weights"):
        open_folder(copy)


def negate(graph: onnx.ModelProto) -> None:
    """Make high scores low ones."""
    for node in graph.graph.node:
        node.output[:] = ["score" if name == "score_logit" else name for name in node.output]
    graph.graph.node.append(onnx.helper.make_node("Neg", ["score"], ["score_logit"]))


def forget(graph: onnx.ModelProto) -> None:
    """Remove the graph's own digest."""
    kept = [pair for pair in graph.metadata_props if pair.key == WEIGHTS_DIGEST]
    del graph.metadata_props[:]
    graph.metadata_props.extend(kept)


@pytest.mark.parametrize("change", [negate, forget])
def test_a_changed_graph_is_refused(copy: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    graph = onnx.load(copy / checkpoint.GRAPH, load_external_data=False)
    change(graph)
    (copy / checkpoint.GRAPH).write_bytes(graph.SerializeToString())
    with pytest.raises(DamagedModel, match=r"model\.onnx was changed after it was exported: fetch"):
        open_folder(copy)


def test_a_damaged_graph_is_refused_in_one_line(copy: Path) -> None:
    graph = copy / checkpoint.GRAPH
    graph.write_bytes(graph.read_bytes()[:1000])
    with pytest.raises(DamagedModel, match=r"model\.onnx") as caught:
        open_folder(copy)
    assert "\n" not in str(caught.value)


def test_one_digest_covers_all_files(model: Model) -> None:
    other = PromptSet(tuple(tensor + np.float32(1) for tensor in model.prompts.tensors))
    changed = [
        replace(model, sha256="another"),
        replace(model, graph_sha256="another"),
        replace(model, prompts=other),
        replace(model, policy=replace(model.policy, mask_threshold=0.125)),
    ]
    assert len({each.digest for each in (model, *changed)}) == 5
    assert open_folder(model.folder).digest == model.digest


@pytest.mark.parametrize("name", ["model.safetensors", "prompts.safetensors"])
def test_a_damaged_file_is_refused(copy: Path, name: str) -> None:
    (copy / name).write_bytes((copy / name).read_bytes()[:100])
    with pytest.raises(DamagedModel, match=name):
        open_folder(copy)


@pytest.mark.parametrize("name", ["model.onnx", "model.safetensors", "policy.json"])
def test_a_folder_that_lacks_a_file_is_refused(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(DamagedModel, match=name):
        load_model(copy)


def test_a_model_is_found_by_name_version_and_path(model: Model) -> None:
    for name in ("prompt-iml-micro", model.id, str(model.folder), model.folder):
        assert load_model(name).sha256 == model.sha256


@pytest.mark.parametrize("name", ["prompt-iml-mega", "prompt-iml-micro@9.9", "no/such/folder"])
def test_the_error_of_an_unknown_model_lists_the_known_ones(model: Model, name: str) -> None:
    with pytest.raises(UnknownModel, match=f"no model '{name}'.*{model.id}"):
        load_model(name)


def test_an_untrained_model_says_so(model: Model) -> None:
    if model.version != "untrained":
        pytest.skip("the packaged model is trained")
    assert any("untrained" in note for note in model.notes)
    assert model.policy.manipulated_at is None


def test_a_missing_runtime_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prompt_iml.engine.runtimes.open.find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match="pip install onnxruntime"):
        check_engine("onnxruntime")


@pytest.mark.parametrize("kind", ["tensorrt", "abacus"])
def test_an_engine_that_is_not_there_is_bad_usage(kind: str) -> None:
    with pytest.raises(UsageError, match=kind):
        check_engine(kind)


def test_a_prompt_set_keeps_its_id_parent_and_metrics(model: Model, tmp_path: Path) -> None:
    prompts = PromptSet(model.prompts.tensors, parent=model.prompts.id, metrics={"f1": 0.5})
    save_prompts(prompts, tmp_path / "set.safetensors")
    read = load_prompts(tmp_path / "set.safetensors")
    assert (read.id, read.parent, read.metrics) == (model.prompts.id, prompts.parent, {"f1": 0.5})
    other = PromptSet((*model.prompts.tensors[:3], model.prompts.tensors[3] + 1))
    assert other.id != read.id


def test_a_prompt_set_that_is_not_what_it_says_is_refused(copy: Path) -> None:
    file = copy / checkpoint.PROMPTS
    body = bytearray(file.read_bytes())
    body[-1] ^= 1
    file.write_bytes(body)
    with pytest.raises(DamagedModel, match="names itself"):
        open_folder(copy)


def test_bytes_that_are_no_prompt_set_are_refused(model: Model) -> None:
    whole = model.prompts.to_bytes()
    assert PromptSet.from_bytes(whole).id == model.prompts.id
    unnamed = save({"prompts.0": np.zeros(1, np.float32)})
    for data in (b"", whole[:7], whole[:-1], whole[:200], b"\xff" * 64, unnamed):
        with pytest.raises(DamagedModel, match=r"s3://b/k is not a prompt set .*: fetch it again"):
            PromptSet.from_bytes(data, "s3://b/k")


def test_prompts_of_another_network_are_refused(model: Model, engines: dict[str, Engine]) -> None:
    for engine in engines.values():
        with pytest.raises(UsageError, match="prompt-iml-micro takes"):
            engine.load_prompts(PromptSet(model.prompts.tensors[:2]))


def test_the_same_weights_are_the_same_bytes(model: Model, tmp_path: Path) -> None:
    """The bytes are equal across processes with different hash seeds."""
    header = checkpoint.read_header(model.folder / checkpoint.WEIGHTS)
    checkpoint.save_folder(
        tmp_path, weights=model.weights(), prompts=model.prompts, policy=model.policy, **header
    )
    for name in (checkpoint.WEIGHTS, checkpoint.PROMPTS, checkpoint.POLICY):
        assert (tmp_path / name).read_bytes() == (model.folder / name).read_bytes()


def test_weights_beyond_float16_are_refused(model: Model, tmp_path: Path) -> None:
    header = checkpoint.read_header(model.folder / checkpoint.WEIGHTS)
    weights = {"big": np.array([7e4], np.float32)}
    with pytest.raises(UsageError, match="big"):
        checkpoint.save_folder(
            tmp_path, weights=weights, prompts=model.prompts, policy=model.policy, **header
        )


def test_weights_of_an_unknown_network_are_refused(copy: Path) -> None:
    file = copy / checkpoint.WEIGHTS
    header = json.dumps({"name": "x", "version": "1", "config": {"depth": 3}, "card": {}})
    save_file(load_file(file), file, {"model": header})
    with pytest.raises(DamagedModel, match="not a model's weights"):
        open_folder(copy)
