"""The build of TensorRT plans, and the comparison that a plan must pass before it is used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from prompt_iml.engine.build import builder as tensorrt_build
from prompt_iml.engine.build.builder import emulated_error, float32_operators
from prompt_iml.engine.build.precision import choose_float32
from prompt_iml.engine.errors import InferError, MissingDependency, UsageError
from prompt_iml.engine.model.folder import GRAPH, Model, load_model, open_folder
from prompt_iml.engine.model.graph_file import seal
from prompt_iml.engine.runtimes import plans
from prompt_iml.engine.runtimes.blob_cache import PLAN, VARIABLE, BlobCache
from prompt_iml.engine.runtimes.open import open_engine
from prompt_iml.engine.runtimes.overlap import OverlappingEngine
from prompt_iml.engine.runtimes.parity import TOLERANCES, Parity, compare, noise
from prompt_iml.engine.runtimes.plans import Precision, Recipe, Tile
from prompt_iml.engine.runtimes.protocol import Batch, Detection, Done, Engine
from prompt_iml.engine.runtimes.torch_cpu import TorchEngine
from prompt_iml.engine.runtimes.torch_cuda import TorchProgram
from prompt_iml.pipeline.cli import main
from prompt_iml.pipeline.machine import build as command
from prompt_iml.pipeline.machine.build import check_parity, photographs, recipe_for
from prompt_iml.pipeline.machine.doctor import pip
from prompt_iml.pipeline.settings import BuildSettings
from tests.helpers import rtx_build
from tests.helpers.null_device import HostProgram, NullDevice

RECIPE = Recipe(((256, 256),), (1, 2))
MACHINE = ("11.4", "a GPU", "9.0")
Edit = Callable[[onnx.ModelProto], None]


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model("prompt-iml-micro")


@pytest.fixture(scope="module")
def batch() -> Batch:
    return photographs([(256, 256)], [2])[0].batch


@pytest.mark.parametrize(("precision", "exceeded"), [("float16", 1.0), ("bfloat16", 0.5)])
def test_a_build_keeps_enough_operators_in_float32(
    model: Model,
    batch: Batch,
    precision: Precision,
    exceeded: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The choice itself is not tested: it differs between processors, as their rounding does."""
    recipe, tolerance = replace(RECIPE, precision=precision), TOLERANCES[precision]
    _, error = float32_operators(model, recipe, batch)
    assert 0 < error <= tolerance / 2
    monkeypatch.setattr(tensorrt_build, "default_float32", lambda graph: set())
    expected = TorchEngine(model).run(batch)
    assert emulated_error(model, recipe, batch, expected) > exceeded * tolerance


def test_operators_are_added_while_they_help() -> None:
    costs = {"Conv": 5.0, "Add": 3.0, "Mul": 0.0}

    def error(float32: frozenset[str]) -> float:
        return sum(cost for name, cost in costs.items() if name not in float32)

    assert choose_float32(costs, error, 4.0) == ({"Conv"}, 3.0)
    assert choose_float32(costs, error, 0.0) == ({"Conv", "Add"}, 0.0)
    assert choose_float32(costs, lambda _: 1.0, 0.5) == (frozenset(), 1.0)


def scale_a_weight(graph: onnx.ModelProto) -> None:
    """Scale the weight of the mask features by 1.05."""
    nodes = list(graph.graph.node)
    at = [list(node.input) for node in nodes].index(["pixel_decoder.mask_features.weight"])
    (weight,) = nodes[at].output
    for node in nodes:
        node.input[:] = ["scaled" if name == weight else name for name in node.input]
    factor = helper.make_node("Constant", [], ["factor"], value_float=1.05)
    graph.graph.node.insert(at + 1, factor)
    graph.graph.node.insert(at + 2, helper.make_node("Mul", [weight, "factor"], ["scaled"]))


def scale_the_mask(graph: onnx.ModelProto) -> None:
    """Scale the mask by 1.05, but not the mask that the score is computed from."""
    rename(graph, "mask_logits")
    factor = helper.make_node("Constant", [], ["factor"], value_float=1.05)
    graph.graph.node.extend([factor, helper.make_node("Mul", ["was", "factor"], ["mask_logits"])])


def swap_the_axes(graph: onnx.ModelProto) -> None:
    """Transpose the mask."""
    rename(graph, "mask_logits")
    graph.graph.node.append(helper.make_node("Transpose", ["was"], ["mask_logits"], perm=[0, 2, 1]))


def forget_the_batch(graph: onnx.ModelProto) -> None:
    """Give every image of a batch the score of the first one."""
    rename(graph, "score_logit")
    nodes = [
        helper.make_node("Constant", [], ["zero"], value_int=0),
        helper.make_node("Gather", ["was", "zero"], ["first"]),
        helper.make_node("Shape", ["was"], ["size"]),
        helper.make_node("Expand", ["first", "size"], ["score_logit"]),
    ]
    graph.graph.node.extend(nodes)


def rename(graph: onnx.ModelProto, output: str) -> None:
    for node in graph.graph.node:
        node.output[:] = ["was" if name == output else name for name in node.output]
        node.input[:] = ["was" if name == output else name for name in node.input]


def engine_of(model: Model, folder: Path, edit: Edit) -> Engine:
    """Return an engine of the model with an edited graph, which is sealed as an exported one."""
    shutil.copytree(model.folder, folder, dirs_exist_ok=True)
    graph = onnx.load(model.graph, load_external_data=False)
    edit(graph)
    (folder / GRAPH).write_bytes(seal(graph.SerializeToString()))
    return open_engine(open_folder(folder), "onnxruntime")


@pytest.fixture(scope="module")
def good(model: Model) -> Parity:
    return check_parity(open_engine(model, "onnxruntime"), model, RECIPE)


def test_an_engine_that_computes_the_same_passes(good: Parity) -> None:
    assert good.passed
    assert {(d.images, d.batch) for d in good.differences} == {
        (images, batch) for images in ("photographs", "noise") for batch in (1, 2)
    }


@pytest.mark.parametrize(
    ("edit", "output", "batches"),
    [
        (scale_a_weight, "score_logit", {1, 2}),  # the score depends on the mask
        (scale_the_mask, "mask_logits", {1, 2}),
        (swap_the_axes, "mask_logits", {1, 2}),
        (forget_the_batch, "score_logit", {2}),
    ],
)
def test_an_engine_that_is_wrong_does_not(
    model: Model, tmp_path: Path, edit: Edit, output: str, batches: set[int]
) -> None:
    parity = check_parity(engine_of(model, tmp_path, edit), model, RECIPE)
    wrong = [each for each in parity.differences if each.error > parity.tolerance]
    assert not parity.passed
    assert parity.worst.output == output
    assert {each.batch for each in wrong} == batches


def test_an_engine_that_fails_or_gives_no_numbers_is_wrong(model: Model) -> None:
    class Failing(TorchEngine):
        def submit(self, batch: Batch) -> Done:
            if len(batch.image) > 1:
                raise InferError("no")
            return Done(Detection(np.full((1, 64, 64), np.nan, "f4"), np.zeros(1, "f4")))

    assert not compare(TorchEngine(model), Failing(model), noise([(256, 256)], (1,)), 1e9).passed
    parity = compare(Failing(model), TorchEngine(model), noise([(256, 256)], (1, 2)), 1e9)
    assert [each.error for each in parity.differences if each.batch == 2] == [np.inf, np.inf]
    assert not parity.passed


class FakeBuilder:
    """A builder of fake plans, which it opens as a CPU engine on the null device."""

    machine = MACHINE

    def __init__(self, engine: Engine) -> None:
        self._engine, self.built = engine, list[Tile]()

    def build(self, model: Model, recipe: Recipe, tile: Tile, float32: frozenset[str]) -> bytes:
        self.built.append(tile)
        return f"{tile}".encode()

    def open(self, model: Model, recipe: Recipe, built: Mapping[Tile, bytes]) -> Engine:
        assert built == {tile: f"{tile}".encode() for tile in recipe.tiles}
        program = HostProgram(self._engine, recipe.batches[-1])
        return OverlappingEngine(model, NullDevice(), program)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BlobCache:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(command, "recipe_for", lambda model, settings: RECIPE)
    monkeypatch.setattr(tensorrt_build, "float32_operators", lambda *_: (frozenset(), 0.0))
    return BlobCache(kind=PLAN)


def test_what_passed_is_stored_once_and_found_again(model: Model, cache: BlobCache) -> None:
    builder = FakeBuilder(open_engine(model, "onnxruntime"))
    summary = command.build(BuildSettings(batch=2), builder)
    assert summary["stored"]
    found = plans.current(cache, model, MACHINE)
    assert found
    assert found.plans == {(256, 256): b"(256, 256)"}
    assert found.about["parity"]["worst"] == summary["parity"]["worst"]
    command.build(BuildSettings(batch=2), builder)
    assert len(builder.built) == 1
    assert plans.current(cache, model, ("11.5", *MACHINE[1:])) is None


def test_what_failed_is_not_stored_and_exits_with_3(
    model: Model,
    cache: BlobCache,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    builder = FakeBuilder(engine_of(model, tmp_path / "wrong", forget_the_batch))
    monkeypatch.setattr(command, "TensorRtBuilder", lambda: builder)
    assert main(["build", "--batch", "2"]) == 3
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1])["stored"] is False
    assert "score_logit of 2x256x256" in err.splitlines()[-1]
    assert plans.current(cache, model, MACHINE) is None


def test_a_damaged_plan_is_not_handed_out(model: Model, cache: BlobCache, good: Parity) -> None:
    key = plans.store(cache, model, RECIPE, MACHINE, {(256, 256): b"plan"}, good)
    (file,) = cache.folder.glob(f"{key}*")
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert plans.load(cache, model, RECIPE, MACHINE) is None


@pytest.mark.parametrize("mode", [None, 0o775])
def test_plans_that_cannot_be_kept_are_not_stored(
    model: Model, tmp_path: Path, good: Parity, mode: int | None
) -> None:
    """No folder can be made below a file, and none is read that a group can write to."""
    folder = tmp_path / "cache"
    if mode is None:
        folder.touch()
    else:
        folder.mkdir()
        folder.chmod(mode)
    with pytest.raises(UsageError, match=rf"cannot keep the engine in {folder}: set {VARIABLE}"):
        plans.store(BlobCache(folder, PLAN), model, RECIPE, MACHINE, {(256, 256): b"plan"}, good)


def test_plans_that_did_not_pass_cannot_be_stored(
    model: Model, cache: BlobCache, good: Parity
) -> None:
    with pytest.raises(ValueError, match="not stored"):
        plans.store(cache, model, RECIPE, MACHINE, {}, replace(good, tolerance=0.0))


def test_every_tile_and_every_half_of_the_batch_is_built(model: Model) -> None:
    recipe = recipe_for(model, BuildSettings(batch=12))
    assert recipe.batches == (1, 3, 6, 12)
    assert recipe.tiles == ((256, 256), (256, 512), (512, 256), (512, 512))


def test_without_a_gpu_one_line_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert main(["build"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "install" in line


@rtx_build.needs_rtx
def test_tensorrt_builds_the_packaged_model(model: Model) -> None:
    found = rtx_build.build(str(model.folder), "float16", 256, 1)
    assert found["plan"] > 1_000_000
    assert found["timing_cache"] > 0
    assert any("Building engine" in line for line in found["log"])


def test_pytorchs_program_is_the_network_in_bfloat16(model: Model, batch: Batch) -> None:
    program = TorchProgram(model, torch.device("cpu"), torch.bfloat16)
    expected = TorchEngine(model).run(batch)
    buffers = {
        **{n: torch.from_numpy(a) for n, a in batch.inputs(model.config).items()},
        "mask_logits": torch.empty(2, 64, 64),
        "score_logit": torch.empty(2),
        **{f"prompts_{n}": torch.from_numpy(t) for n, t in enumerate(model.prompts.tensors)},
    }
    program.enqueue((2, 256, 256), buffers, None)
    error = np.abs(buffers["mask_logits"].numpy() - expected.mask_logits).max()
    assert 0 < error < TOLERANCES["bfloat16"] * np.abs(expected.mask_logits).max()


def test_doctor_names_what_runs_here_and_the_command_for_what_does_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "prompt_iml.engine.runtimes.open.find_spec", lambda name: None if name == "torch" else 1
    )
    assert main(["doctor"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["engines"] == ["openvino", "onnxruntime"]
    assert f"not installed: {pip('pip install torch')}" in err


def test_tensorrt_asked_for_and_missing_is_one_line() -> None:
    with pytest.raises(MissingDependency, match="pip install tensorrt"):
        open_engine(load_model("prompt-iml-micro"), "tensorrt")
