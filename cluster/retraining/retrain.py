"""One re-training cycle: `prompt-iml retrain`.

    lease -> current prompt set -> train the prompts -> check that nothing else changed ->
    evaluate old and new prompts on the fixed sets and the held-back labels -> gate ->
    publish prompt set and verdict -> promote

One cycle per base model runs at a time. It stores its prompt set in the registry even if the gate
refuses it. A killed cycle resumes when the same command runs again: the folder of its training is
named after the labels, the current prompt set and the settings.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

from prompt_iml.cluster.retraining.gate import QUALITY, Limits, Verdict, decide
from prompt_iml.cluster.retraining.labels import (
    LABELS,
    LabelledImage,
    digest_of,
    evaluate_labels,
    fetch_images,
    training_images,
)
from prompt_iml.cluster.settings import RetrainSettings, TrainSettings
from prompt_iml.engine.errors import FetchError, PromptImlError, UsageError
from prompt_iml.engine.model.folder import Model, load_model
from prompt_iml.engine.model.prompts import PREFIX, PromptSet, check_fits
from prompt_iml.engine.runtimes.open import check_engine, open_engine
from prompt_iml.engine.runtimes.protocol import Engine
from prompt_iml.pipeline.evaluation import SetResult, evaluate_set, set_name
from prompt_iml.pipeline.logs import log
from prompt_iml.pipeline.registry.promotion import (
    leased,
    promote,
    publish,
    record_verdict,
    timestamp,
    whoami,
)
from prompt_iml.pipeline.registry.registry import Registry, short_name, with_prompt_set
from prompt_iml.pipeline.run.folder import Json, encode
from prompt_iml.pipeline.settings import AccessFlags
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.truth import Faults, check_images, read_labels

Tensors = Mapping[str, NDArray[Any]]

# Settings that determine the prompts; with the labels and the current prompt set they name a cycle.
TRAINING = (
    "photos", "negatives", "autoencoders", "samples", "batch", "learning_rate", "seed",
)  # fmt: skip
COMPARED_RUNTIMES = ("openvino", "onnxruntime")


class Trained(Protocol):
    """Result of a training.

    Attributes:
        weights: URI of the whole network's state dict, safetensors.
        samples: number of examples seen.
    """

    @property
    def weights(self) -> str: ...

    @property
    def samples(self) -> int: ...


def train_prompts(settings: TrainSettings) -> Trained:
    """Train on Ray Train."""
    from prompt_iml.cluster.training.train import train

    return train(settings)


def check_exported(model: Model) -> None:
    """Raise `PromptImlError` unless the exported graph, in every runtime that is installed,
    still equals PyTorch with the model's prompts."""
    from prompt_iml.engine.build.export import check_parity

    check_parity(model, [kind for kind in COMPARED_RUNTIMES if find_spec(kind)])


@dataclass(frozen=True, slots=True)
class Steps:
    """Steps of a cycle that need Ray or PyTorch; tests replace them with quicker ones."""

    train: Callable[[TrainSettings], Trained] = train_prompts
    check_exported: Callable[[Model], None] = check_exported


def retrain(settings: RetrainSettings, steps: Steps | None = None) -> Json:
    """Run a cycle.

    Returns:
        `version`, `prompt_set`, `parent`, `verdict` (passed or refused), `reasons`, `notes`,
        `results` of old, new and base prompts by set.

    Raises:
        UsageError: the settings, the labels or a set are wrong; another cycle is running; or the
            prompts passed, but meanwhile `current` was changed or the lease was taken over.
        PromptImlError: training failed.
    """
    try:
        return _retrain(settings, steps or Steps())
    except FetchError as error:
        raise UsageError(f"This file cannot be read: {error}") from error


def _retrain(settings: RetrainSettings, steps: Steps) -> Json:
    model = load_model(settings.model)
    check_engine(settings.engine, settings.precision)
    _check_sets(settings.eval_sets, settings.limit)
    images = fetch_images(settings.labels)
    training_images(settings.labels, images)
    registry = Registry(storage.canonical(settings.registry), model.sha256)
    for folder in (settings.output, settings.registry):
        storage.check_writable(storage.canonical(folder))
    owner = f"{whoami()}:{os.getpid()}"
    with leased(registry, owner, settings.lease_seconds) as lease:
        current = registry.state().current
        old = with_prompt_set(model, registry, current)
        log(f"re-training {model.id} from {short_name(current)}")
        trained = steps.train(train_settings(settings, old, current, images))
        lease.check(registry.state())
        tensors = load(storage.read_bytes(storage.canonical(trained.weights)))
        candidate = replace(old, prompts=prompts_of(tensors, old))
        engine = open_engine(old, settings.engine, precision=settings.precision)
        before, after = (evaluate(settings, engine, each, images) for each in (old, candidate))
        original = replace(model, policy=old.policy)
        base = evaluate(settings, engine, original, images) if current else []
        faults = [*_frozen_faults(tensors, old), *_export_faults(candidate, steps)]
        verdict = decide(before, after, old.policy, _limits(settings), faults, base)
        prompt_set = publish(
            registry,
            replace(candidate.prompts, metrics=_metrics(after)),
            old.policy,
            parent=current,
            made_by=f"retrain by {owner}, {trained.samples} samples",
            model=model.id,
        )
        record = _record(settings, verdict, before, after, base, owner)
        final = _combined(record, record_verdict(registry, prompt_set, record))
        if final["passed"] and prompt_set != current:
            promote(registry, prompt_set, expected=current, by=owner, lease=lease)
    return _summary(prompt_set, candidate.prompts.id, current, final)


def _check_sets(manifests: Sequence[str], limit: int | None) -> None:
    """Raise `UsageError` unless each set can be read and has a name of its own."""
    named = {LABELS: "the held-back labels"}
    for manifest in manifests:
        name = set_name(manifest)
        if (other := named.setdefault(name, manifest)) is not manifest:
            raise UsageError(
                f"--eval-sets: {manifest} and {other} are both called {name}: rename one (a "
                "manifest.csv gives a set the name of its folder, another file its own name)"
            )
    for manifest in manifests:
        check_images(read_labels(manifest, limit), Faults(manifest))


def train_settings(
    settings: RetrainSettings, old: Model, current: str | None, images: Sequence[LabelledImage]
) -> TrainSettings:
    """Return the settings of this cycle's training, which starts from the current prompt set."""
    labels = storage.canonical(settings.labels)
    # Without what is not given, and with the old word, cycles keep the names they had.
    shaping = settings.model_dump(include={*TRAINING, "model"}, exclude_none=True)
    shaping["peak"] = shaping.pop("learning_rate")
    cycle = {
        **shaping,
        "labels": [labels, _labels_digest(labels, images)],
        "base": old.sha256,
        "current": current,
    }
    output = storage.canonical(settings.output)
    name = "cycle-" + hashlib.sha256(encode(cycle)).hexdigest()[:16]
    return TrainSettings(
        train="prompts",
        start=settings.model,
        prompt_set=current and _write_prompts(old, f"{output}/{name}-prompts"),
        labels=labels,
        output=f"{output}/{name}",
        eval_every=max(1, min(settings.samples // 4, 2000)),
        eval_examples=min(settings.samples, 64),
        workers=settings.workers,
        gpus=settings.gpus,
        address=settings.address,
        **settings.model_dump(include={*TRAINING, *AccessFlags.model_fields}),
    )


def _labels_digest(labels: str, images: Sequence[LabelledImage]) -> str:
    """Return the digest of labels: of a Parquet file, as ever, its bytes; else what they say."""
    if labels.endswith(".parquet"):
        return hashlib.sha256(storage.read_bytes(labels)).hexdigest()
    return digest_of(images)


def prompts_of(tensors: Tensors, old: Model) -> PromptSet:
    """Return a trained network's prompt set; raises `UsageError` when it does not fit the model."""
    names = sorted(
        (name for name in tensors if name.startswith(PREFIX)),
        key=lambda name: int(name.removeprefix(PREFIX)),
    )
    prompts = PromptSet(
        tuple(np.asarray(tensors[name], np.float32) for name in names), old.prompts.id
    )
    check_fits(prompts, old.config)
    return prompts


def frozen_digest(tensors: Tensors) -> str:
    """Return the sha256 over names, shapes and float32 values of every tensor but the prompts.

    A scalar counts as an array of one value, as a model's weights file holds it.
    """
    digest = hashlib.sha256()
    for name in sorted(name for name in tensors if not name.startswith(PREFIX)):
        values = np.ascontiguousarray(np.atleast_1d(tensors[name]), "<f4")
        digest.update(f"{name} {values.shape}\n".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def evaluate(
    settings: RetrainSettings, engine: Engine, model: Model, images: Sequence[LabelledImage]
) -> list[SetResult]:
    """Evaluate a model's prompt set on the fixed sets and the held-back labels, with the engine of
    a scan."""
    engine.load_prompts(model.prompts)
    results = [
        evaluate_set(engine, model, model.policy, manifest, limit=settings.limit)
        for manifest in settings.eval_sets
    ]
    with tempfile.TemporaryDirectory() as folder:
        labelled = evaluate_labels(engine, model, model.policy, images, Path(folder))
    return [*results, labelled] if labelled else results


def _write_prompts(old: Model, stem: str) -> str:
    """Write the current prompt set beside the output; returns its URI.

    The same cycle writes the same URI, because training resumes only with unchanged settings.
    """
    uri = f"{stem}.safetensors"
    storage.write(uri, old.prompts.to_bytes())
    return uri


def _frozen_faults(tensors: Tensors, old: Model) -> list[str]:
    if frozen_digest(tensors) == frozen_digest(old.weights()):
        return []
    return ["training changed frozen weights: only the prompts may differ from the base model"]


def _export_faults(candidate: Model, steps: Steps) -> list[str]:
    if not all(np.isfinite(tensor).all() for tensor in candidate.prompts.tensors):
        return ["a prompt is not finite"]
    try:
        steps.check_exported(candidate)
    except UsageError:
        raise
    except PromptImlError as error:
        return [f"the exported graph does not equal PyTorch with these prompts: {error}"]
    return []


def _limits(settings: RetrainSettings) -> Limits:
    return Limits(settings.margin, settings.fpr_margin, settings.max_fpr, settings.min_gain)


def _metrics(results: Sequence[SetResult]) -> dict[str, float]:
    """Return the metrics that are stored with the prompt set."""
    measured = [(result.set, result.to_dict()) for result in results]
    names = (*QUALITY, "pixel_auc", "false_positive_rate", "flagged_rate")
    return {
        f"{name}.{measure}": numbers[measure]
        for name, numbers in measured
        for measure in names
        if numbers[measure] is not None
    }


def _record(
    settings: RetrainSettings,
    verdict: Verdict,
    before: Sequence[SetResult],
    after: Sequence[SetResult],
    base: Sequence[SetResult],
    owner: str,
) -> Json:
    return {
        **verdict.to_json(),
        "results": {
            "old": [result.to_dict() for result in before],
            "new": [result.to_dict() for result in after],
            "base": [result.to_dict() for result in base],
        },
        "settings": settings.model_dump(
            exclude={"address", "workers", "gpus", *AccessFlags.model_fields}
        ),
        "by": owner,
        "at": timestamp(),
    }


def _combined(now: Json, first: Json) -> Json:
    """Return the verdict on a prompt set that must also have passed its first evaluation."""
    if now["passed"] and not first["passed"]:
        reasons = [f"refused at {first['at']}: {reason}" for reason in first["reasons"]]
        return {**now, "passed": False, "reasons": reasons}
    return now


def _summary(stored: str, prompt_set: str, parent: str | None, verdict: Json) -> Json:
    word = "passed" if verdict["passed"] else "refused"
    log("; ".join([f"{word}: prompt set {prompt_set}", *verdict["reasons"]]))
    return {
        "version": stored,
        "prompt_set": prompt_set,
        "parent": parent,
        "verdict": word,
        **{name: verdict[name] for name in ("reasons", "notes", "results")},
    }
