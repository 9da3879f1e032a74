"""`prompt-iml evaluate`: metrics of a model on labelled sets, as a table, JSON and a plot."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from prompt_iml.engine.detection.detector import Detector
from prompt_iml.engine.errors import UsageError
from prompt_iml.engine.model.folder import load_model
from prompt_iml.engine.model.policy import Policy
from prompt_iml.engine.runtimes.open import open_engine
from prompt_iml.pipeline.checks import check_output
from prompt_iml.pipeline.chosen_model import chosen_model
from prompt_iml.pipeline.evaluation.images import Evaluation, evaluate_images
from prompt_iml.pipeline.evaluation.per_image import mask_files, per_image, watched
from prompt_iml.pipeline.evaluation.perturbations import expand
from prompt_iml.pipeline.evaluation.plots import plot_results, require_matplotlib
from prompt_iml.pipeline.evaluation.predictions import (
    THRESHOLD,
    Predictions,
    evaluate_predictions,
)
from prompt_iml.pipeline.evaluation.sets import (
    Counts,
    SetResult,
    SizeResult,
    set_names,
    summarize,
)
from prompt_iml.pipeline.export.files import check_format
from prompt_iml.pipeline.logs import log
from prompt_iml.pipeline.run.folder import Json
from prompt_iml.pipeline.settings import EvaluateSettings
from prompt_iml.pipeline.storage import storage
from prompt_iml.pipeline.truth import Faults, Label, check_images, read_labels

Sets = dict[str, list[Label]]
Evaluate = Callable[[Sequence[Label], str], Iterator[Evaluation]]

NUMBERS = {  # heading -> field of SetResult
    "F1": "f1",
    "best F1": "best_f1",
    "IoU": "iou",
    "px AUC": "pixel_auc",
    "im AUC": "image_auc",
    "FPR": "false_positive_rate",
    "TPR": "true_positive_rate",
    "masked": "flagged_rate",
    "ECE": "ece",
}
MEANING = """\
F1, IoU: at {}; best F1: at each image's own best threshold; px AUC: of
each forged image's pixels; all four are means over the forged images, at native size, origin form.
im AUC: of the score. FPR, TPR: authentic, forged images labelled manipulated. masked: authentic
images with more than 0.5 % of their pixels in the mask. ECE: of the score, with equal priors.
By size: a/u/m are the percentages labelled authentic, uncertain, manipulated; masked: with a mask;
intervals are Clopper and Pearson's, for independent images."""


def evaluate(settings: EvaluateSettings) -> Json:
    """Evaluate a model, or the maps of another, on every set under every perturbation.

    Returns:
        The content of the JSON file that is written.
    """
    perturbations = expand(settings.perturbation)
    check_outputs(settings.output, settings.plot)
    refuse_remote(settings.masks)
    if settings.masks:
        check_output(settings.masks, "--masks")
    if settings.results:
        check_format(settings.results)
        if "://" not in settings.results:
            check_outputs(settings.results)
    sets = checked_labels(settings.manifests, settings.limit)
    if settings.plot:
        require_matplotlib()
    about, evaluations = _predicted(settings, sets) if settings.predictions else _model(settings)
    results = list(_results(settings, sets, perturbations, evaluations))
    at = f"a probability of {THRESHOLD}" if settings.predictions else "the policy's mask threshold"
    log(f"\n{size_table(results)}\n\n{MEANING.format(at)}")
    report = {**about, "results": [result.to_dict() for result in results]}
    write_json(Path(settings.output), report)
    log(f"written to {settings.output}")
    if settings.plot:
        plot_results(Path(settings.plot), results)
    return report


def _model(settings: EvaluateSettings) -> tuple[Json, Evaluate]:
    """Return what the report says of the model, and the function that evaluates a set with it."""
    model = load_model(settings.model)
    model = chosen_model(model, policy=settings.policy, closer_look=settings.closer_look)
    policy = model.policy
    engine = open_engine(model, settings.engine, precision=settings.precision)
    detector = Detector(engine, model.view, policy)
    log(f"{model.id}, policy {policy.id}, {mask_rule(policy)}\n")
    about = {
        "model": model.id,
        "engine": engine.name,
        "model_sha256": model.sha256,
        "model_digest": model.digest,
        "prompt_set": model.prompts.id,
        "policy": policy.to_dict(),
    }
    return about, partial(evaluate_images, detector)


def _predicted(settings: EvaluateSettings, sets: Sets) -> tuple[Json, Evaluate]:
    """Return the same for the maps in a folder, which has one for each image."""
    predictions = Predictions(settings.predictions or "")
    for name, labels in sets.items():
        predictions.check(labels, Faults(name))
    log(f"the maps in {predictions.name}, masked above {THRESHOLD}\n")
    return {"predictions": predictions.name}, lambda labels, _: evaluate_predictions(
        predictions, labels
    )


def mask_rule(policy: Policy) -> str:
    """Return the rule of a policy's masks, in words."""
    if policy.pixel_model:
        return f"masks of the highest expected F1 where it is at least {policy.least_confidence:g}"
    return f"mask above {policy.mask_threshold:g} and {policy.mask_share:g} of an image's peak"


def checked_labels(names: Sequence[str], limit: int | None) -> Sets:
    """Return the labels of each truth, whose images are there and have masks that fit.

    Raises:
        UsageError: as `read_labels` and `check_images`, before a model is loaded.
    """
    sets = {name: read_labels(name, limit) for name in names}
    for name, labels in sets.items():
        check_images(labels, Faults(storage.display_name(name)))
    return sets


def check_outputs(*paths: str | None) -> None:
    """Raise `UsageError` for a file that cannot be written, before a long evaluation."""
    refuse_remote(*paths)
    for path in (Path(path) for path in paths if path):
        folder = next(each for each in path.absolute().parents if each.exists())
        locked = path.exists() and not os.access(path, os.W_OK)
        if locked or path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
            raise UsageError(f"{path} cannot be written: choose another file")


def refuse_remote(*paths: str | None) -> None:
    """Raise `UsageError` for a place that is not on this machine."""
    if remote := next((path for path in paths if path and "://" in path), None):
        raise UsageError(f"{remote} is not on this machine: write to a file here, and copy it")


def write_json(path: Path, content: Json) -> None:
    """Write indented JSON, and create its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def table_header(name_width: int) -> str:
    """Return the headings of the lines of `table_line`."""
    numbers = "".join(f"{heading:>9}" for heading in NUMBERS)
    return f"{'set':<{name_width}}  {'perturbation':<14}{'images':>8}{'failed':>8}{numbers}"


def table_line(result: SetResult, name_width: int) -> str:
    """Return a result in columns of fixed width, with a dash for nan."""
    fields = asdict(result)
    values = (fields[name] for name in NUMBERS.values())
    numbers = "".join(f"{'-':>9}" if value != value else f"{value:>9.3f}" for value in values)
    images = result.forged + result.authentic
    name = f"{result.set:<{name_width}}  {result.perturbation:<14}"
    return f"{name}{images:>8}{result.failed:>8}{numbers}"


def _results(
    settings: EvaluateSettings, sets: Sets, perturbations: Sequence[str], evaluations: Evaluate
) -> Iterator[SetResult]:
    """Yield each result after its line of the table."""
    names = set_names(sets)
    width = max(map(len, names.values()))
    log(table_header(width))
    with per_image(settings.results, settings.masks) as writer:
        for truth, labels in sets.items():
            name, file_of = names[truth], mask_files(labels)
            for perturbation in perturbations:
                folder = f"{name}/" * (len(sets) > 1) + f"{perturbation}/" * (
                    len(perturbations) > 1
                )
                found = []
                title = f"{name}, {perturbation}"
                for each in watched(evaluations(labels, perturbation), len(labels), title):
                    writer.add(name, perturbation, each, folder + file_of(each.label))
                    found.append(replace(each, mask=None))
                result = summarize(found, name, perturbation)
                log(table_line(result, width))
                yield result


def size_table(results: Sequence[SetResult]) -> str:
    """Return labels, rates with 95 % intervals and masks by set and size class, as a table."""
    width = max(len(result.set) for result in results)
    lines = [
        f"{'set':<{width}}  {'perturbation':<14}{'megapixels':<11}"
        f"{'authentic':>9}  {'FPR (95 %)':<20}{'a/u/m':>13}{'masked':>8}"
        f"{'forged':>8}  {'TPR (95 %)':<20}{'a/u/m':>13}"
    ]
    lines += [
        f"{result.set:<{width}}  {result.perturbation:<14}{_size_line(size)}"
        for result in results
        for size in result.sizes
    ]
    return "\n".join(lines)


def _size_line(size: SizeResult) -> str:
    authentic, forged = size.of_authentic, size.of_forged
    return (
        f"{size.size:<11}{authentic.images:>9}  "
        f"{_rate(authentic, size.false_positive_interval):<20}{_labels(authentic):>13}"
        f"{_percent(authentic.share('masked')):>8}"
        f"{forged.images:>8}  {_rate(forged, size.true_positive_interval):<20}{_labels(forged):>13}"
    )


def _rate(counts: Counts, bounds: tuple[float, float]) -> str:
    low, high = (f"{100 * bound:.1f}" for bound in bounds)
    return f"{_percent(counts.share('manipulated'))} ({low}-{high})" if counts.images else "-"


def _labels(counts: Counts) -> str:
    if not counts.images:
        return "-"
    names = ("authentic", "uncertain", "manipulated")
    return "/".join(f"{100 * counts.share(name):.0f}" for name in names)


def _percent(share: float) -> str:
    return "-" if share != share else f"{100 * share:.1f}%"
