"""Complete re-training cycles with a tiny model: two of its prompts are the weight and the offset
of a red pixel's logit. Engine, labels and registry are real; only Ray and PyTorch are left out.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from onnx import TensorProto as Type
from onnx import helper
from PIL import Image
from safetensors.numpy import save

import prompt_iml.engine.build.export
from prompt_iml.cluster.retraining import retrain as cycle
from prompt_iml.cluster.retraining.labels import LabelledExamples, fetch_images
from prompt_iml.cluster.retraining.retrain import Steps, check_exported, retrain
from prompt_iml.cluster.settings import RetrainSettings, TrainSettings
from prompt_iml.engine.errors import (
    BadLabels,
    LeaseHeld,
    LeaseLost,
    MissingInput,
    NotPromoted,
    OutputNotWritable,
    PromptImlError,
    UsageError,
)
from prompt_iml.engine.model.folder import (
    GRAPH,
    WEIGHTS,
    Model,
    file_digest,
    load_model,
    open_folder,
    save_folder,
)
from prompt_iml.engine.model.graph_file import BLANK, GRAPH_DIGEST, WEIGHTS_DIGEST, seal
from prompt_iml.engine.model.policy import Policy, read_policy
from prompt_iml.engine.model.prompts import PromptSet
from prompt_iml.engine.network.config import PRESETS
from prompt_iml.engine.runtimes.open import open_engine
from prompt_iml.pipeline.cli import main
from prompt_iml.pipeline.registry.promotion import promote, publish, roll_back
from prompt_iml.pipeline.registry.registry import Registry, with_prompt_set
from prompt_iml.pipeline.run.folder import Json
from prompt_iml.pipeline.run.masks import encode_mask
from prompt_iml.pipeline.storage import storage
from tests.helpers.outputs import commit, scored
from tests.helpers.reviewed import client_of, session_on
from tests.helpers.stores import Folder, Store

CONFIG = PRESETS["prompt-iml-micro"]
SHAPES = CONFIG.prompt_shapes
POLICY = Policy("red", manipulated_at=0.5, authentic_below=0.2, false_positive_rate=0.0)
OFFSET = -6.0  # misses pixels that are only a little red


def red_prompts(weight: float, offset: float = OFFSET) -> PromptSet:
    tensors = [np.zeros(shape, np.float32) for shape in SHAPES]
    tensors[0] += np.float32(weight)
    tensors[1] += np.float32(offset)
    return PromptSet(tuple(tensors))


def write_red_model(folder: Path) -> Model:
    """Write a model with logit = mean(prompts_0) * redness + mean(prompts_1), redness -4..4 at
    stride 4; an image's score is its highest logit."""
    save_folder(
        folder,
        name="red",
        version="test",
        config=CONFIG,
        card={},
        weights={"frozen": np.arange(3, dtype=np.float32), "gate": np.float32(0.5).reshape(())},
        prompts=red_prompts(2.0),
        policy=POLICY,
    )
    node, value = helper.make_node, helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            node("Gather", ["image", "zero"], ["bytes"], axis=3),
            node("Cast", ["bytes"], ["red"], to=Type.FLOAT),
            node("Unsqueeze", ["red", "one"], ["maps"]),
            node("AveragePool", ["maps"], ["cells"], kernel_shape=[4, 4], strides=[4, 4]),
            node("Squeeze", ["cells", "one"], ["small"]),
            node("Div", ["small", "scale"], ["scaled"]),
            node("Sub", ["scaled", "four"], ["redness"]),
            node("ReduceMean", ["prompts_0"], ["weight"], keepdims=0),
            node("ReduceMean", ["prompts_1"], ["offset"], keepdims=0),
            node("Mul", ["redness", "weight"], ["weighed"]),
            node("Add", ["weighed", "offset"], ["mask_logits"]),
            node("ReduceMax", ["mask_logits", "space"], ["score_logit"], keepdims=0),
        ],
        "red",
        [
            value("image", Type.UINT8, ["n", "h", "w", 3]),
            value("qtable", Type.FLOAT, ["n", 64]),
            value("histogram", Type.FLOAT, ["n", 20, 16]),
            value("matches", Type.FLOAT, ["n", 6, "h8", "w8"]),
            *(value(f"prompts_{i}", Type.FLOAT, shape) for i, shape in enumerate(SHAPES)),
        ],
        [
            value("mask_logits", Type.FLOAT, ["n", "h4", "w4"]),
            value("score_logit", Type.FLOAT, ["n"]),
        ],
        [
            helper.make_tensor("zero", Type.INT64, [], [0]),
            helper.make_tensor("one", Type.INT64, [1], [1]),
            helper.make_tensor("space", Type.INT64, [2], [1, 2]),
            helper.make_tensor("scale", Type.FLOAT, [], [255 / 8]),
            helper.make_tensor("four", Type.FLOAT, [], [4.0]),
        ],
    )
    opset = helper.make_opsetid("", 18)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    digests = {WEIGHTS_DIGEST: file_digest(folder / WEIGHTS), GRAPH_DIGEST: BLANK}
    helper.set_model_props(model, digests)
    onnx.checker.check_model(model)
    (folder / GRAPH).write_bytes(seal(model.SerializeToString()))
    return open_folder(folder)


def photograph(seed: int, *, forged: bool) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return a dim picture, with a red square if it is forged, and its mask."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 110, (256, 256, 3), np.uint8)
    mask = np.zeros((256, 256), bool)
    if forged:
        row, column = rng.integers(8, 152, 2)
        mask[row : row + 96, column : column + 96] = True
        pixels[mask, 0] = rng.integers(190, 256, int(mask.sum()))
    return pixels, mask


def png(pixels: NDArray[Any]) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG", compress_level=1)
    return sink.getvalue()


def write_set(folder: Path, first: int) -> str:
    """Write four forged and four authentic pictures with a manifest; return its path."""
    folder.mkdir()
    with (folder / "manifest.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "mask"])
        for seed in range(first, first + 8):
            pixels, mask = photograph(seed, forged=seed % 2 == 0)
            (folder / f"{seed}.png").write_bytes(png(pixels))
            (folder / f"{seed}-mask.png").write_bytes(png(mask))
            rows.writerow([f"{seed}.png", f"{seed}-mask.png" if mask.any() else ""])
    return str(folder / "manifest.csv")


@cache
def labelled_pictures() -> list[tuple[bytes, NDArray[np.bool_]]]:
    """Return 60 pictures, as PNG, and their masks."""
    made = [photograph(4000 + n, forged=n % 2 == 0) for n in range(60)]
    return [(png(pixels), mask) for pixels, mask in made]


def write_labels(store: Store, *, shuffled: bool = False) -> str:
    """Write labels of 60 pictures; if shuffled, each with the mask of another."""
    made = labelled_pictures()
    masks = [mask for _, mask in made]
    if shuffled:
        masks = [masks[n] for n in np.random.default_rng(1).permutation(len(masks))]
    rows = [
        {
            "uri": store.put(f"labelled/{n}.png", picture),
            "label": "manipulated" if mask.any() else "authentic",
            "mask": png(mask) if mask.any() else None,
        }
        for n, ((picture, _), mask) in enumerate(zip(made, masks, strict=True))
    ]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return store.put(f"labels-{shuffled}.parquet", sink.getvalue())


@dataclass(frozen=True)
class Trained:
    weights: str
    samples: int


def keep(settings: TrainSettings, model: Model, prompts: PromptSet, **frozen: Any) -> Trained:
    """Write the weights of a training with these prompts."""
    tensors = {name: np.asarray(t, np.float32) for name, t in model.weights().items()} | frozen
    tensors["gate"] = tensors["gate"].reshape(())  # a scalar in PyTorch, a row in a weights file
    tensors |= {f"prompts.{i}": tensor for i, tensor in enumerate(prompts.tensors)}
    uri = f"{settings.output}/weights.safetensors"
    storage.write(uri, save(tensors))
    return Trained(uri, settings.samples)


def fit(settings: TrainSettings, model: Model) -> Trained:
    """Fit weight and offset to the labels: logistic regression of masks on redness."""
    source = LabelledExamples(str(settings.labels))
    examples = [source.example(settings.seed, number) for number in range(16)]
    red = np.array([e.pixels[::4, ::4, 0].ravel() for e in examples]).ravel() / (255 / 8) - 4
    marked = np.array([e.mask[::4, ::4].ravel() for e in examples]).ravel()
    weight, offset = 2.0, OFFSET
    for _ in range(400):
        error = 1 / (1 + np.exp(-(weight * red + offset))) - marked
        weight -= 0.3 * float((error * red).mean())
        offset -= 0.3 * float(error.mean())
    return keep(settings, model, red_prompts(weight, offset))


@dataclass(frozen=True)
class Fleet:
    """A base model, a registry, and the settings and labels of a cycle."""

    model: Model
    registry: Registry
    settings: Callable[..., RetrainSettings]
    labels: str

    def cycle(self, train: Callable[[TrainSettings, Model], Trained], **changes: Any) -> Json:
        steps = Steps(lambda settings: train(settings, self.model), lambda model: None)
        return retrain(self.settings(**changes), steps)


@pytest.fixture(scope="module")
def red(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return write_red_model(tmp_path_factory.mktemp("red") / "model")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("sets")
    return [write_set(folder / "one", 0), write_set(folder / "two", 100)]


@pytest.fixture
def fleet(folder: Folder, red: Model, sets: list[str]) -> Fleet:
    """Make a fleet in a local folder."""
    return make_fleet(folder, red, sets)


@pytest.fixture
def anywhere(store: Store, red: Model, sets: list[str]) -> Fleet:
    """Make a fleet in a local folder, and on S3."""
    return make_fleet(store, red, sets)


def make_fleet(store: Store, red: Model, sets: list[str]) -> Fleet:
    labels = write_labels(store)

    def settings(**changes: Any) -> RetrainSettings:
        fields: dict[str, Any] = {
            "photos": "photos",
            "labels": labels,
            "registry": f"{store.uri}/registry",
            "model": str(red.folder),
            "eval_sets": sets,
            "output": f"{store.uri}/output",
            "samples": 100,
            "engine": "onnxruntime",
        }
        return RetrainSettings(**fields | changes)

    return Fleet(red, Registry(f"{store.uri}/registry", red.sha256), settings, labels)


def test_a_good_cycle_is_promoted_and_rolled_back(anywhere: Fleet) -> None:
    summary = anywhere.cycle(fit, engine="openvino")
    assert (summary["verdict"], summary["reasons"]) == ("passed", [])
    state = anywhere.registry.state()
    assert state.current == summary["version"]
    assert state.lease is None
    stored = anywhere.registry.read(summary["version"])
    assert summary["version"] == summary["prompt_set"]
    assert stored.prompts.parent == anywhere.model.prompts.id
    assert stored.prompts.metrics["one.f1"] == pytest.approx(1, abs=0.03)
    assert {r["set"] for r in summary["results"]["new"]} == {"one", "two", "labels"}
    verdict = anywhere.registry.verdict(summary["version"])
    assert verdict
    assert len(verdict["comparisons"]) == 12
    again = anywhere.cycle(fit, min_gain=-1, seed=1)
    assert [r["set"] for r in again["results"]["base"]] == ["one", "two", "labels"]
    assert again["parent"] == summary["version"]
    assert roll_back(anywhere.registry, expected=again["version"], by="test").current == stored.id


def reviewed(folder: Folder) -> str:
    """Review a scan of 60 pictures that found every mask; return its output.

    One is unsure, and of one the mask is said to be wrong.
    """
    rows = []
    for number, (data, mask) in enumerate(labelled_pictures()):
        uri = folder.put(f"scanned/{number}.png", data)
        row = scored(uri, data, 0.6 if mask.any() else 0.4)
        rows.append(row | {"mask_rle": encode_mask(mask)})
    commit(f"{folder.uri}/out", rows)
    client = client_of(session_on(f"{folder.uri}/out"))
    for number, row in enumerate(rows):
        right = "manipulated" if row["mask_rle"] else "authentic"
        decision = {0: "unsure", 2: "mask_wrong"}.get(number, right)
        answer = client.post(f"/decisions/{row['image_id']}", json={"decision": decision})
        assert answer.json()["decision"] == decision
    return f"{folder.uri}/out"


def test_reviews_of_a_scan_retrain_calibrate_and_evaluate(
    fleet: Fleet, folder: Folder, tmp_path: Path
) -> None:
    output, policy = reviewed(folder), tmp_path / "policy.json"
    images = fetch_images(output)
    assert len(images) == 59
    assert [image.label.uri for image in images if image.manipulated and not image.mask] == [
        f"{folder.uri}/scanned/2.png"
    ]
    summary = fleet.cycle(fit, labels=output)
    assert (summary["verdict"], summary["reasons"]) == ("passed", [])
    flags = ["--model", str(fleet.model.folder), "--engine", "onnxruntime"]
    calibrate = ["calibrate", output, "--output", str(policy), "--perturbation", "none"]
    assert main([*calibrate, *flags, "--min-side", "1"]) == 0
    assert read_policy(str(policy)).manipulated_at is not None
    results = str(tmp_path / "results.jsonl")
    evaluation = str(tmp_path / "evaluation.json")
    found = ["--policy", str(policy), "--results", results, "--output", evaluation]
    assert main(["evaluate", f"{output}/reviews", *found, *flags]) == 0
    assert len(Path(results).read_text().splitlines()) == 59


def test_prompts_trained_on_shuffled_labels_are_refused(
    anywhere: Fleet, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = anywhere.cycle(fit, labels=write_labels(store, shuffled=True))
    assert summary["verdict"] == "refused"
    assert any("one: f1 fell" in reason for reason in summary["reasons"])
    assert anywhere.registry.state().current is None
    with pytest.raises(NotPromoted, match="f1 fell"):
        promote(anywhere.registry, summary["version"], expected=None, by="test")
    capsys.readouterr()
    assert main(["models", "list", "--registry", anywhere.registry.uri]) == 0
    (base,) = json.loads(capsys.readouterr().out)["bases"]
    assert [version["verdict"] for version in base["versions"]] == ["refused"]


def test_prompts_that_change_nothing_are_refused(fleet: Fleet) -> None:
    summary = fleet.cycle(lambda settings, model: keep(settings, model, model.prompts))
    assert summary["verdict"] == "refused"
    assert "nothing gained: labels f1 +0.0000" in summary["reasons"][0]
    assert summary["prompt_set"] == fleet.model.prompts.id


def test_changed_frozen_weights_are_refused(fleet: Fleet) -> None:
    moved = np.array([0, 1, 2.001], np.float32)
    summary = fleet.cycle(
        lambda settings, model: keep(settings, model, model.prompts, frozen=moved)
    )
    assert summary["verdict"] == "refused"
    assert "training changed frozen weights" in summary["reasons"][0]
    assert fleet.registry.state().current is None


def test_prompts_that_are_not_finite_are_refused(fleet: Fleet) -> None:
    summary = fleet.cycle(lambda settings, model: keep(settings, model, red_prompts(float("nan"))))
    assert summary["verdict"] == "refused"
    assert "a prompt is not finite" in summary["reasons"]
    assert any("failed rose" in reason for reason in summary["reasons"])


def test_more_false_alarms_are_refused(fleet: Fleet) -> None:
    """Every authentic image is labelled manipulated."""
    loud = fleet.cycle(lambda settings, model: keep(settings, model, red_prompts(2.0, 4.0)))
    assert loud["verdict"] == "refused"
    assert any("false_positive_rate rose" in reason for reason in loud["reasons"])


def test_an_exported_graph_that_differs_is_refused(fleet: Fleet) -> None:
    def differs(model: Model) -> None:
        raise PromptImlError("openvino/f32/cpu differs from PyTorch by 2.0e-01")

    def train(settings: TrainSettings) -> Trained:
        return keep(settings, fleet.model, fleet.model.prompts)

    summary = retrain(fleet.settings(), Steps(train, differs))
    assert summary["verdict"] == "refused"
    assert "differs from PyTorch" in summary["reasons"][0]


def test_no_cycle_undoes_a_rollback(fleet: Fleet) -> None:
    """The schedule runs the same cycle again next week."""
    made = fleet.cycle(fit)["version"]
    roll_back(fleet.registry, expected=made, by="ann")
    with pytest.raises(NotPromoted, match="was rolled back"):
        fleet.cycle(fit)
    assert fleet.registry.state().current is None
    assert promote(fleet.registry, made, expected=None, by="ann").current == made


def test_a_verdict_with_laxer_limits_does_not_count(fleet: Fleet) -> None:
    def useless(settings: TrainSettings, model: Model) -> Trained:
        return keep(settings, model, red_prompts(1.9))

    lax = fleet.cycle(useless, min_gain=-1, margin=1)
    roll_back(fleet.registry, expected=lax["version"], by="ann")
    strict = fleet.cycle(useless)
    assert (strict["version"], strict["verdict"]) == (lax["version"], "refused")
    assert "one: f1 fell" in strict["reasons"][0]


def test_a_refusal_stands(fleet: Fleet) -> None:
    fleet.cycle(fit, min_gain=0.9)
    again = fleet.cycle(fit)
    assert again["verdict"] == "refused"
    assert again["reasons"][0].startswith("refused at 20")
    assert fleet.registry.state().current is None


@pytest.mark.parametrize("changes", [{"limit": 4}, {"engine": "openvino"}])
def test_other_evaluation_settings_give_the_same_prompt_set(fleet: Fleet, changes: Json) -> None:
    first = fleet.cycle(fit)
    roll_back(fleet.registry, expected=first["version"], by="test")
    with pytest.raises(NotPromoted, match="was rolled back"):
        fleet.cycle(fit, **changes)
    assert fleet.registry.ids() == [first["version"]]


def test_two_cycles_never_overlap(anywhere: Fleet) -> None:
    def overtaken(settings: TrainSettings, model: Model) -> Trained:
        with pytest.raises(LeaseHeld, match="re-trains already"):
            anywhere.cycle(fit)
        return fit(settings, model)

    assert anywhere.cycle(overtaken)["verdict"] == "passed"


@pytest.mark.parametrize("when", ["training", "evaluation"])
def test_a_cycle_whose_lease_was_taken_over_promotes_nothing(
    when: str, anywhere: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cycle stalls for longer than its lease, and another cycle promotes meanwhile."""

    def overtake() -> None:
        with monkeypatch.context() as later:
            later.setattr("prompt_iml.pipeline.registry.promotion.time.time", lambda: 4e9)
            anywhere.cycle(fit)

    def train(settings: TrainSettings) -> Trained:
        if when == "training":
            overtake()
        return fit(settings, anywhere.model)

    def check_exported(model: Model) -> None:
        if when == "evaluation":
            overtake()

    with pytest.raises(LeaseLost, match="start again") as refused:
        retrain(anywhere.settings(seed=1), Steps(train, check_exported))
    assert len(str(refused.value).splitlines()) == 1
    state = anywhere.registry.state()
    assert [move.kind for move in state.moves] == ["promote"]
    assert state.lease is None


def test_a_cycle_starts_from_the_current_prompts(fleet: Fleet) -> None:
    first = fleet.cycle(fit)
    started: list[TrainSettings] = []

    def train(settings: TrainSettings, model: Model) -> Trained:
        started.append(settings)
        return fit(settings, model)

    fleet.cycle(train, min_gain=-1, seed=1)
    fleet.cycle(train, min_gain=-1, seed=1)
    current = with_prompt_set(fleet.model, fleet.registry, first["version"])
    prompts = PromptSet.from_bytes(storage.read_bytes(str(started[0].prompt_set)))
    assert prompts.id == current.prompts.id
    assert (started[0].train, started[0].start) == ("prompts", str(fleet.model.folder))
    assert started[0].output != started[1].output


def test_a_store_that_replaces_objects_is_refused(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On such a store, two cycles would both get the lease."""
    fleet.cycle(fit)

    def replace_it(uri: str, data: bytes) -> bool:
        storage.write(uri, data)
        return True

    monkeypatch.setattr(storage, "create_once", replace_it)
    with pytest.raises(OutputNotWritable, match="conditional PUTs"):
        fleet.cycle(fit)
    assert main(["models", "rollback", "--registry", fleet.registry.uri]) == 2
    assert "conditional PUTs" in capsys.readouterr().err


def test_a_rollback_by_hand_during_a_cycle_wins(fleet: Fleet) -> None:
    other = fleet.cycle(fit)["version"]

    def train(settings: TrainSettings, model: Model) -> Trained:
        roll_back(fleet.registry, expected=other, by="ann")
        return fit(settings, model)

    with pytest.raises(NotPromoted, match=r"current is the model's own since .* by ann"):
        fleet.cycle(train, min_gain=-1, seed=1)
    assert fleet.registry.state().lease is None


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"eval_sets": ["nowhere.csv"]}, MissingInput, "nowhere.csv: no such file"),
        ({"labels": "nowhere.parquet"}, MissingInput, "no such file"),
        ({"labels": __file__}, BadLabels, "add the column image, mask or label"),
        ({"labels": "masks.parquet"}, BadLabels, "label more"),
        ({"eval_sets": ["labels/manifest.csv"]}, UsageError, "both called labels"),
        ({"eval_sets": ["one/manifest.csv", "other/one.csv"]}, UsageError, "both called one"),
    ],
)
def test_bad_input_is_refused_before_the_lease_is_taken(
    changes: Json,
    error: type[Exception],
    message: str,
    folder: Folder,
    red: Model,
    sets: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder.path)
    for name in ("labels/manifest.csv", "one/manifest.csv", "other/one.csv"):
        folder.put(name, f"image,mask\n{Path(sets[0]).parent}/1.png,\n".encode())
    unmasked = {"uri": folder.put("1.png", png(photograph(1, forged=True)[0]))}
    pq.write_table(pa.Table.from_pylist([unmasked | {"label": "manipulated"}]), "masks.parquet")
    fields = {"photos": "p", "labels": "l", "eval_sets": sets, "model": str(red.folder)} | changes
    settings = RetrainSettings(registry=folder.uri, output=folder.uri, **fields)
    with pytest.raises(error, match=message):
        retrain(settings)
    assert Registry(folder.uri, red.sha256).state().number == 0


def test_the_exported_graph_follows_new_prompts_or_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The packaged model's graph equals PyTorch with new prompts, unless it ignores them."""
    model = load_model("prompt-iml-micro")
    model = replace(model, config=replace(model.config, sides=(256,)))
    monkeypatch.setattr(prompt_iml.engine.build.export, "BATCH_SIZES", (1,))
    rng = np.random.default_rng(0)
    tensors = (t + rng.normal(0, 0.1, t.shape).astype(np.float32) for t in model.prompts.tensors)
    tuned = replace(model, prompts=PromptSet(tuple(tensors)))
    check_exported(tuned)
    monkeypatch.setattr(
        prompt_iml.engine.build.export, "open_engine", lambda given, kind: Insensitive(given, kind)
    )
    with pytest.raises(PromptImlError, match="misses 100% of the prompts' effect"):
        check_exported(tuned)


class Insensitive:
    """Engine that ignores new prompts."""

    def __init__(self, model: Model, kind: str) -> None:
        self._engine = open_engine(model, kind)
        self.name, self.run = self._engine.name, self._engine.run

    def load_prompts(self, prompts: PromptSet) -> None:
        pass


def test_a_set_that_was_never_evaluated_cannot_be_promoted(fleet: Fleet) -> None:
    added = publish(
        fleet.registry, red_prompts(3.0), POLICY, parent=None, made_by="hand", model="red@test"
    )
    with pytest.raises(NotPromoted, match="never evaluated"):
        promote(fleet.registry, added, expected=None, by="test")


@pytest.mark.parametrize(("verdict", "code"), [("passed", 0), ("refused", 3)])
def test_the_exit_code_is_the_verdict(
    verdict: str,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cycle, "retrain", lambda settings: {"verdict": verdict})
    files = {"labels": __file__, "eval-sets": __file__}
    flags = files | dict.fromkeys(("photos", "registry", "output"), str(tmp_path))
    assert main(["retrain", *(f"--{name}={value}" for name, value in flags.items())]) == code
    assert json.loads(capsys.readouterr().out) == {"verdict": verdict}
