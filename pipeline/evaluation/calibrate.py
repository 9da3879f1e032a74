"""`prompt-iml calibrate`: choose the policy of a model on held-back sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from prompt_iml.engine.detection.detector import Detector
from prompt_iml.engine.detection.score import ScoreModel
from prompt_iml.engine.errors import UsageError
from prompt_iml.engine.model.folder import Model, load_model
from prompt_iml.engine.model.policy import Policy
from prompt_iml.engine.runtimes.open import open_engine
from prompt_iml.pipeline.evaluation.calibration import (
    Calibration,
    Group,
    Targets,
    claim_all,
    group_rates,
    make_policy,
)
from prompt_iml.pipeline.evaluation.comparison import auc
from prompt_iml.pipeline.evaluation.evaluate import (
    Sets,
    check_outputs,
    checked_labels,
    write_json,
)
from prompt_iml.pipeline.evaluation.fitting import fit_score_model
from prompt_iml.pipeline.evaluation.images import ImageResult, evaluate_images
from prompt_iml.pipeline.evaluation.per_image import watched
from prompt_iml.pipeline.evaluation.perturbations import expand
from prompt_iml.pipeline.evaluation.plots import plot_reliability, require_matplotlib
from prompt_iml.pipeline.evaluation.sets import set_names
from prompt_iml.pipeline.logs import log
from prompt_iml.pipeline.run.folder import Json
from prompt_iml.pipeline.settings import CalibrateSettings

Results = dict[tuple[str, str], list[ImageResult]]


def calibrate(settings: CalibrateSettings) -> Json:
    """Choose and write a policy; the manifests must name no image that the model was trained on.

    Returns:
        The policy and every number of the calibration.
    """
    perturbations = expand(settings.perturbation)
    check_outputs(settings.output, settings.report, settings.plot)
    sets = checked_labels(settings.manifests, settings.limit)
    if settings.plot:
        require_matplotlib()
    model = load_model(settings.model).looking_closer(settings.closer_look)
    targets = Targets(
        **settings.model_dump(include=set(Targets.__slots__) - {"closer_look"}),
        closer_look=model.policy.closer_look,
    )
    results, failed = _evaluate_all(settings, sets, model, perturbations, targets)
    name = settings.id or f"{model.version}-fpr-{settings.false_positive_rate:g}"
    results, score_model = _with_score_model(results)
    together = [each for group in results.values() for each in group]
    names = ["/".join(key) for key, group in results.items() for _ in group]
    calibration = make_policy(together, targets, name, score_model, names, model.policy)
    groups = [group_rates(calibration.policy, group, *key) for key, group in results.items()]
    log(compared(together) + summary(calibration, groups))
    report = {
        "model": model.id,
        "model_sha256": model.sha256,
        "model_digest": model.digest,
        "manifests": settings.manifests,
        "perturbations": perturbations,
        "failed": failed,
        **calibration.to_dict(),
        "groups": [group.to_dict() for group in groups],
    }
    _write(settings, calibration, report)
    log(f"next: prompt-iml scan INPUTS --policy {settings.output}")
    return report


def _with_score_model(results: Results) -> tuple[Results, ScoreModel | None]:
    """Fit a score model; return the results with its cross-validated logits as `score_raw`.

    Where there are too few images for a model, the results are returned as they are.
    """
    keys = [key for key, group in results.items() for each in group if _within(each)]
    within = [each for group in results.values() for each in group if _within(each)]
    fitted = fit_score_model(within, ["/".join(key) for key in keys])
    if fitted is None:
        log("too few images for a score model: the score is that of the highest tile")
        return results, None
    scored: Results = {key: [e for e in results[key] if not _within(e)] for key in results}
    for key, each, logit in zip(keys, within, fitted.logits.tolist(), strict=True):
        scored[key].append(replace(each, score_raw=logit))
    return scored, fitted.model


def _within(result: ImageResult) -> bool:
    return result.label != "uncertain"


def summary(calibration: Calibration, groups: Sequence[Group]) -> str:
    """Return the policy, its rates in all and by group, and its reliability as a table."""
    c, policy = calibration, calibration.policy
    lines = [
        f"\npolicy {policy.id}: score = sigmoid({policy.scale:.4g} x logit {policy.offset:+.4g})",
        _model_line(policy),
        f"made on {c.forged} forged, {c.authentic} authentic images; {c.beyond} beyond its limits",
        f"image AUC {c.image_auc:.3f}, expected calibration error {c.ece:.3f}",
        f"manipulated from {policy.manipulated_at:.4f} or less, by size: "
        f"{c.false_positive_rate:.2%} of the authentic (at most {c.false_positive_bound:.2%}), "
        f"{c.true_positive_rate:.1%} of the forged",
        f"authentic below {policy.authentic_below:.4f}: {c.authentic_rate:.1%} of the authentic, "
        f"{c.miss_rate:.1%} of the forged",
        f"masks of an expected F1 of {policy.least_confidence:g} or more: pixel F1 {c.f1:.3f} "
        f"({c.every_f1:.3f} if none were left out, {c.plain_f1:.3f} by a threshold of "
        f"{policy.mask_threshold:g} and {policy.mask_share:g} of the peak); "
        f"{c.masked_rate:.1%} of the authentic have one",
        "",
        *_size_lines(c),
        "",
        f"{'miss rate':<12}{'authentic below':>16}{'of authentic':>14}{'of forged':>11}"
        f"{'masks from':>12}{'of authentic':>14}{'pixel F1':>10}",
        *(
            f"{m.rate:<12.0%}{m.below:>16.4f}{m.of_authentic:>14.1%}{m.of_forged:>11.1%}"
            f"{m.least:>12.2f}{m.masked:>14.1%}{m.f1:>10.3f}"
            for m in c.misses
        ),
        "",
        f"{'score':<12}{'images':>8}{'mean':>8}{'forged':>8}   with equal priors",
    ]
    for each in c.reliability:
        span = f"{each.low:.1f} - {each.high:.1f}"
        lines.append(f"{span:<12}{each.images:>8}{each.score:>8.3f}{each.forged:>8.3f}")
    lines += [
        "",
        f"{'set':<16}{'perturbation':<14}{'authentic':>10}{'FPR':>8}{'forged':>8}{'TPR':>8}",
    ]
    lines += [
        f"{g.set:<16}{g.perturbation:<14}{g.authentic:>10}{g.false_positive_rate:>8.3f}"
        f"{g.forged:>8}{g.true_positive_rate:>8.3f}"
        for g in groups
    ]
    return "\n".join(lines)


def compared(results: Sequence[ImageResult]) -> str:
    """Return a table of ways to score an image: AUC, and the forged found at 1 % false positives.

    Args:
        results: images whose `score_raw` is the model's cross-validated logit.
    """
    within = [each for each in results if _within(each)]
    forged = np.array([each.forged for each in within], bool)
    largest = np.array([each.statistics.largest for each in within])
    tiles = np.array([len(each.statistics.tiles[0]) for each in within])
    ways = {
        "highest tile": largest,
        "highest tile - log(tiles)": largest - np.log(tiles),
        "score model": np.array([each.score_raw for each in within]),
    }
    lines = [f"\n{'score':<28}{'image AUC':>10}{'TPR at 1 % FPR':>16}"]
    for name, scores in ways.items():
        at = np.sort(scores[~forged])[::-1][int(0.01 * (~forged).sum())]
        found = float((scores[forged] > at).mean())
        lines.append(f"{name:<28}{auc(scores, forged):>10.3f}{found:>16.3f}")
    return "\n".join(lines) + "\n"


def _model_line(policy: Policy) -> str:
    if policy.score_model is None:
        return "logit = that of the highest tile"
    terms = [f"{weight:+.4g} {name}" for name, weight in policy.score_model.weights.items()]
    return f"logit = {policy.score_model.offset:.4g} {' '.join(terms)}"


def _size_lines(calibration: Calibration) -> list[str]:
    """Return the table of the rates by size class, and what decides the threshold."""
    lines = [
        f"{'megapixels':<12}{'authentic':>10}{'needs':>8}{'false':>7}{'at most':>9}"
        f"{'authentic so':>14}{'masked':>8}{'forged':>8}{'TPR':>8}"
    ]
    for each in calibration.sizes:
        lines.append(
            f"{each.size:<12}{each.authentic:>10}{each.needed:>8.4f}{each.false_positives:>7}"
            f"{each.false_positive_bound:>9.2%}{each.authentic_rate:>14.1%}{each.masked_rate:>8.1%}"
            f"{each.forged:>8}{each.true_positive_rate:>8.3f}"
            + ("" if each.enough else "   too few for the rate")
        )
    size, rate = calibration.one_threshold
    return [
        *lines,
        f"one threshold for all would be that of {size} megapixels: {rate:.1%} of the forged",
    ]


def _evaluate_all(
    settings: CalibrateSettings,
    sets: Sets,
    model: Model,
    perturbations: list[str],
    targets: Targets,
) -> tuple[Results, int]:
    """Return the results by set and perturbation, and the number of images that failed."""
    engine = open_engine(model, settings.engine, precision=settings.precision)
    detector = Detector(engine, model.view, claim_all(targets))
    results: Results = {}
    failed, names = 0, set_names(sets)
    for truth, labels in sets.items():
        name = names[truth]
        for perturbation in perturbations:
            evaluations = evaluate_images(detector, labels, perturbation)
            title = f"{name}, {perturbation}"
            outcomes = [each.outcome for each in watched(evaluations, len(labels), title)]
            found = [each for each in outcomes if isinstance(each, ImageResult)]
            log(f"{title}: {len(found)} images")
            results.setdefault((name, perturbation), []).extend(found)
            failed += len(outcomes) - len(found)
    if not any(results.values()):
        raise UsageError("no image could be evaluated: check the manifests")
    return results, failed


def _write(settings: CalibrateSettings, calibration: Calibration, report: Json) -> None:
    output = Path(settings.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(calibration.policy.to_json(), encoding="utf-8")
    if settings.report:
        write_json(Path(settings.report), report)
    if settings.plot:
        plot_reliability(Path(settings.plot), calibration.reliability, calibration.ece)
