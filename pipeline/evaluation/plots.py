"""Plots of an evaluation and of a calibration, as PNG. matplotlib is an extra."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from prompt_iml.engine.errors import MissingDependency
from prompt_iml.pipeline.evaluation.metrics import Bin
from prompt_iml.pipeline.evaluation.sets import SetResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINES = {
    "pixel F1": "f1",
    "best F1": "best_f1",
    "pixel AUC": "pixel_auc",
    "image AUC": "image_auc",
    "false positive rate": "false_positive_rate",
    "authentic masked": "flagged_rate",
}


def require_matplotlib() -> None:
    """Raise `MissingDependency` if matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise MissingDependency("plots need matplotlib: pip install 'prompt-iml[train]'")


def blank_figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches, in matplotlib's own style: a `matplotlibrc` in
    the working folder, which could even run LaTeX, has no effect."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcdefaults()
    return Figure((width, height), layout="constrained")


def plot_results(path: Path, results: Sequence[SetResult]) -> None:
    """Plot the metrics over the perturbations, one panel for each set."""
    names = list(dict.fromkeys(result.set for result in results))
    perturbations = list(dict.fromkeys(result.perturbation for result in results))
    figure = blank_figure(3 + 0.45 * len(perturbations) + 2.5, 3.4 * len(names))
    panels = figure.subplots(len(names), 1, squeeze=False)[:, 0]
    for name, panel in zip(names, panels, strict=True):
        _plot_set(panel, [result for result in results if result.set == name])
        panel.set_title(name)
    panels[0].legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    _save(path, figure.savefig)


def plot_reliability(path: Path, table: Sequence[Bin], error: float) -> None:
    """Plot the share of forged images over the score, beside the ideal line."""
    figure = blank_figure(4.5, 4.5)
    panel = figure.subplots()
    panel.plot([0, 1], [0, 1], color="0.7", linestyle="--")
    panel.plot([each.score for each in table], [each.forged for each in table], marker="o")
    for each in table:
        panel.annotate(f" {each.images}", (each.score, each.forged), va="top", fontsize=8)
    panel.set(xlim=(0, 1), ylim=(0, 1), xlabel="score", ylabel="share forged, with equal priors")
    panel.set_title(f"expected calibration error {error:.3f}")
    _save(path, figure.savefig)


def _plot_set(panel: Axes, results: Sequence[SetResult]) -> None:
    places = range(len(results))
    for label, field in LINES.items():
        dashed = field in ("false_positive_rate", "flagged_rate")
        values = [getattr(result, field) for result in results]
        panel.plot(places, values, "--" if dashed else "-", marker=".", label=label)
    panel.set_xticks(places, [result.perturbation for result in results], rotation=60, ha="right")
    panel.set_ylim(-0.02, 1.02)
    panel.grid(axis="y", alpha=0.3)


def _save(path: Path, save: Callable[..., None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save(path, format="png", dpi=120)
