"""`prompt-iml calibrate`: choose the policy of a model on held-back sets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prompt_iml.engine.detection.detector import Detector
from prompt_iml.engine.errors import UsageError
from prompt_iml.engine.model.folder import Model, load_model
from prompt_iml.engine.runtimes.open import open_engine
from prompt_iml.pipeline.evaluation import ImageResult, evaluate_images, read_manifest
from prompt_iml.pipeline.evaluation.calibration import (
    Calibration,
    Group,
    Targets,
    claim_all,
    group_rates,
    make_policy,
)
from prompt_iml.pipeline.evaluation.evaluate import check_manifests, check_outputs, write_json
from prompt_iml.pipeline.evaluation.perturbations import expand
from prompt_iml.pipeline.evaluation.plots import plot_reliability, require_matplotlib
from prompt_iml.pipeline.evaluation.sets import set_name
from prompt_iml.pipeline.logs import log
from prompt_iml.pipeline.run.folder import Json
from prompt_iml.pipeline.settings import CalibrateSettings


def calibrate(settings: CalibrateSettings) -> Json:
    """Choose and write a policy; the manifests must name no image that the model was trained on.

    Returns:
        The policy and every number of the calibration.
    """
    perturbations = expand(settings.perturbation)
    check_manifests(settings.manifests, settings.limit)
    check_outputs(settings.output, settings.report, settings.plot)
    if settings.plot:
        require_matplotlib()
    targets = Targets(**settings.model_dump(include=set(Targets.__slots__)))
    model = load_model(settings.model)
    results, failed = _evaluate_all(settings, model, perturbations, targets)
    name = settings.id or f"{model.version}-fpr-{settings.false_positive_rate:g}"
    together = [each for group in results.values() for each in group]
    calibration = make_policy(together, targets, name)
    groups = [group_rates(calibration.policy, group, *key) for key, group in results.items()]
    log(summary(calibration, groups))
    report = {
        "model": model.id,
        "model_sha256": model.sha256,
        "manifests": settings.manifests,
        "perturbations": perturbations,
        "failed": failed,
        **calibration.to_dict(),
        "groups": [group.to_dict() for group in groups],
    }
    _write(settings, calibration, report)
    return report


def summary(calibration: Calibration, groups: Sequence[Group]) -> str:
    """Return the policy, its rates in all and by group, and its reliability as a table."""
    c, policy = calibration, calibration.policy
    lines = [
        f"\npolicy {policy.id}: score = sigmoid({policy.scale:.4g} x logit {policy.offset:+.4g})",
        f"made on {c.forged} forged, {c.authentic} authentic images; {c.beyond} beyond its limits",
        f"image AUC {c.image_auc:.3f}, expected calibration error {c.ece:.3f}",
        f"manipulated from {policy.manipulated_at:.4f}: {c.false_positive_rate:.2%} of the "
        f"authentic (at most {c.false_positive_bound:.2%}), {c.true_positive_rate:.1%} of the "
        "forged",
        f"authentic below {policy.authentic_below:.4f}: {c.miss_rate:.1%} of the forged",
        f"mask above {policy.mask_threshold:g} and {policy.mask_share:g} of the image's peak: "
        f"pixel F1 {c.f1:.3f}, "
        f"{c.flagged_rate:.1%} of the authentic with more than 0.5 % masked",
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


def _evaluate_all(
    settings: CalibrateSettings, model: Model, perturbations: list[str], targets: Targets
) -> tuple[dict[tuple[str, str], list[ImageResult]], int]:
    """Return the results by set and perturbation, and the number of images that failed."""
    engine = open_engine(model, settings.engine)
    detector = Detector(engine, model.view, claim_all(targets))
    results: dict[tuple[str, str], list[ImageResult]] = {}
    failed = 0
    for manifest in map(Path, settings.manifests):
        samples = read_manifest(manifest, settings.limit)
        for perturbation in perturbations:
            outcomes = list(evaluate_images(detector, samples, perturbation))
            found = [each for each in outcomes if isinstance(each, ImageResult)]
            log(f"{set_name(manifest)}, {perturbation}: {len(found)} images")
            results.setdefault((set_name(manifest), perturbation), []).extend(found)
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
