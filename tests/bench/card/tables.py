"""Tables of a model card in Markdown, from the reports of `calibrate` and `evaluate`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from prompt_iml.pipeline.evaluation.sets import Counts, SetResult
from prompt_iml.pipeline.run.folder import Json

METRICS = {  # heading -> field of SetResult
    "F1": "f1",
    "best F1": "best_f1",
    "pixel AUC": "pixel_auc",
    "image AUC": "image_auc",
    "FPR": "false_positive_rate",
    "TPR": "true_positive_rate",
    "masked": "flagged_rate",
}


def evaluation_table(results: Sequence[SetResult], old: Sequence[SetResult]) -> str:
    """Return a row for each set and perturbation, where there is an old value before an arrow;
    the labels of the authentic and of the forged stand at the end of it, as counts."""
    before = {(each.set, each.perturbation): each for each in old}
    heading = ["set", "forged, authentic", *METRICS]
    heading += ["authentic labelled so", "forged labelled authentic"]
    rows = []
    for new in results:
        was = before.get((new.set, new.perturbation))
        name = new.set if new.perturbation == "none" else f"{new.set}, {new.perturbation}"
        values = [
            " → ".join(_number(getattr(each, field)) for each in (was, new) if each)
            for field in METRICS.values()
        ]
        of_all = new.sizes[0]
        labels = [_authentic(of_all.of_authentic), _authentic(of_all.of_forged)]
        rows.append([name, f"{new.forged}, {new.authentic}", *values, *labels])
    return _table(heading, rows)


def calibration_tables(report: Json) -> str:
    """Return the rates of a calibration in all, by size class, by miss rate and by set."""
    of = {name: _percent(value) for name, value in report.items() if name.endswith("_rate")}
    most = _percent(report["false_positive_bound"])
    about = [
        f"policy {report['policy']['id']}",
        f"{report['forged']} forged, {report['authentic']} authentic",
        f"image AUC {report['image_auc']:.3f}, expected calibration error {report['ece']:.3f}",
        f"labelled manipulated {of['true_positive_rate']} of the forged, "
        f"{of['false_positive_rate']} of the authentic (at most {most})",
        f"labelled authentic {of['miss_rate']} of the forged, "
        f"{of['authentic_rate']} of the authentic",
        f"pixel F1 {report['f1']:.3f}, {report['every_f1']:.3f} if no mask were left out, "
        f"{report['plain_f1']:.3f} by a rule of two numbers",
        f"{of['masked_rate']} of the authentic have a mask",
    ]
    sizes = [
        [
            each["size"],
            str(each["authentic"]),
            f"{each['false_positives']} ({_percent(each['false_positive_bound'])})",
            _percent(each["authentic_rate"]),
            _percent(each["masked_rate"]),
            str(each["forged"]),
            _percent(each["true_positive_rate"]),
        ]
        for each in report["sizes"]
    ]
    misses = [
        [
            _percent(each["rate"]),
            _percent(each["of_authentic"]),
            f"{each['least']:.2f}",
            _percent(each["masked"]),
            _number(each["f1"]),
        ]
        for each in report["misses"]
    ]
    groups = [
        [
            each["set"],
            f"{each['forged']}, {each['authentic']}",
            _number(each["false_positive_rate"]),
            _number(each["true_positive_rate"]),
        ]
        for each in report["groups"]
    ]
    of_sizes = ["megapixels", "authentic", "labelled manipulated (at most, 97.5 %)"]
    of_sizes += ["labelled authentic", "with a mask", "forged", "labelled manipulated"]
    of_misses = ["forged labelled authentic", "authentic labelled so"]
    of_misses += ["masks from an expected F1 of", "authentic with a mask", "pixel F1"]
    tables = (
        _table(of_sizes, sizes),
        _table(of_misses, misses),
        _table(["set", "forged, authentic", "FPR", "TPR"], groups),
    )
    return "\n\n".join(("\n".join(about), *tables))


def _authentic(counts: Counts) -> str:
    return f"{counts.authentic} of {counts.images}" if counts.images else ""


def _number(value: float | None) -> str:
    """Return three digits after the point, without a zero before it."""
    if value is None or math.isnan(value):
        return ""
    return f"{value:.3f}".removeprefix("0") if value < 1 else f"{value:.3f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
