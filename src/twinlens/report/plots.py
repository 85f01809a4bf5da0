"""Plots as SVG text: distances, ROC and DET, learning curves.

Each function takes plain arrays and returns `<svg>` elements (see `twinlens.report.svg`). Models,
files and pages play no part here.

Shapes: N pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twinlens.learn.records import LearningPoint
from twinlens.measure.error_rates import det_curve
from twinlens.report.content import ScoredPairs
from twinlens.report.svg import (
    COLORS,
    as_svg,
    new_figure,
    new_figure_with_strip,
    percent_axis,
    style,
    thin,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

__all__ = ["distance_histogram", "identities_curve", "learning_curves", "roc_and_det"]

Floats = NDArray[np.floating[Any]]
Series = tuple[Floats, Floats]

DET_TICKS = (0.0001, 0.001, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6)
DET_HIGH = 0.7


def distance_histogram(
    pairs: ScoredPairs,
    *,
    threshold: float | None = None,
    low: float | None = None,
    high: float | None = None,
    width: float = 860,
) -> str:
    """Distances of genuine and impostor pairs, each kind as shares of itself.

    Args:
        pairs: the scored pairs; skilled forgeries make a histogram of their own.
        threshold: drawn as a line, with `low` to `high` as a band.
        low: lower end of the threshold's interval.
        high: upper end of it.
        width: in SVG units; below 600 the legend is stacked for a phone.
    """
    kinds = [("genuine", "genuine", "genuine pairs"), ("impostor", "others", "impostor pairs")]
    kinds.append(("skilled", "skilled", "skilled forgeries"))
    parts = {color: (pairs.part(part), label) for color, part, label in kinds}
    parts = {color: part for color, part in parts.items() if len(part[0])}
    fewest = min((len(part[0]) for part in parts.values()), default=0)
    bins = int(np.clip(1.5 * math.sqrt(fewest), 16, 64 if width >= 600 else 36))
    edges = _edges([part[0] for part in parts.values()], bins)
    with style("histogram"):
        figure, axes = new_figure(width, 300 if width >= 600 else 320)
        tallest = 1e-3
        for color, (distance, label) in parts.items():
            share = np.histogram(distance, edges)[0] / len(distance)
            tallest = max(tallest, float(share.max()))
            axes.stairs(share, edges, fill=True, color=COLORS[color], alpha=0.18, linewidth=0)
            name = f"{label} ({len(distance):,})"
            axes.stairs(share, edges, color=COLORS[color], linewidth=1.7, label=name)
        axes.set(xlim=(edges[0], edges[-1]), ylim=(0, tallest * 1.16), xlabel="distance")
        axes.set_ylabel("share of pairs of the kind")
        axes.grid(axis="x", visible=False)
        axes.yaxis.set_major_formatter(percent_axis)
        if threshold is not None:
            _draw_threshold(axes, threshold, low, high)
        if parts:
            _legend_above(axes, 3 if width >= 600 else 1)
        return as_svg(figure, "histogram" + str(int(width)), _histogram_alt(pairs, threshold))


def roc_and_det(pairs: ScoredPairs, *, threshold: float | None = None) -> tuple[str, str]:
    """The ROC curve, and the DET curve on normal deviate axes (Martin et al. 1997), as two SVGs.

    With skilled forgeries each has a second line, of genuine pairs against the forgeries only.
    Both are empty strings without genuine or without impostor pairs.

    Args:
        pairs: the scored pairs.
        threshold: marked as the operating point.
    """
    lines = _error_curves(pairs)
    return (_roc(pairs, lines, threshold), _det(pairs, lines, threshold)) if lines else ("", "")


def _roc(pairs: ScoredPairs, lines: list[ErrorCurve], threshold: float | None) -> str:
    with style("roc"):
        figure, axes = new_figure(432, 400)
        axes.plot([0, 1], [0, 1], color=COLORS["rule"], linewidth=1, linestyle=(0, (4, 3)))
        for line in lines:
            x, y = thin(line.far, 1 - line.frr)
            axes.plot(x, y, color=COLORS[line.color], label=line.label, clip_on=False)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="false accept rate")
        axes.set_ylabel("true accept rate, 1 - FRR")
        axes.xaxis.set_major_formatter(percent_axis)
        axes.yaxis.set_major_formatter(percent_axis)
        if threshold is not None:
            far, frr = _operating_point(pairs, threshold)
            _mark_point(axes, far, 1 - frr)
        axes.legend(loc="lower right")
        return as_svg(figure, "roc", "ROC curve: true accept rate over false accept rate.")


def _det(pairs: ScoredPairs, lines: list[ErrorCurve], threshold: float | None) -> str:
    # Rates below half a pair cannot be resolved.
    lows = [0.5 / len(pairs.part(name)) for name in ("impostor", "genuine")]
    low_far, low_frr = np.clip(lows, DET_TICKS[0], 0.005)
    with style("det"):
        figure, axes = new_figure(432, 400)
        _deviate_ticks(axes.xaxis, low_far)
        _deviate_ticks(axes.yaxis, low_frr)
        x, y = (_deviate(np.array([low, DET_HIGH])) for low in (low_far, low_frr))
        axes.set(xlim=x, ylim=y, xlabel="false accept rate", ylabel="false reject rate")
        diagonal = _deviate(np.array([DET_TICKS[0], DET_HIGH]))
        axes.plot(diagonal, diagonal, color=COLORS["rule"], linewidth=1)
        for line in lines:
            far, frr = _logit(np.clip([line.far, line.frr], DET_TICKS[0] / 2, 0.95))
            x, y = (1 / (1 + np.exp(-rate)) for rate in thin(far, frr))
            axes.plot(_deviate(x), _deviate(y), color=COLORS[line.color], label=line.label)
        if not np.any((lines[0].far > low_far) & (lines[0].frr > low_frr)):
            words = "no threshold has both errors:\nthe curve lies outside these axes"
            axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center")
        if threshold is not None:
            far, frr = _operating_point(pairs, threshold)
            x, y = _deviate(np.clip([far, frr], [low_far, low_frr], DET_HIGH))
            _mark_point(axes, x, y)
        axes.legend(loc="upper right")
        alt = "DET curve: false reject rate over false accept rate on normal deviate axes."
        return as_svg(figure, "det", alt)


def learning_curves(
    history: Sequence[Mapping[str, Any]], *, metric: str = "validation"
) -> tuple[str, str]:
    """The loss with the learning rate below it, and the validation metric, as two SVGs.

    Args:
        history: rows with `step` and, where known, `loss`, `rate`, `val` (higher is better) and
            `event`, an intervention of the guard. Missing values, None and NaN are left out.
        metric: name of `val`.
    Returns:
        Two SVGs; an empty string for a column that the history lacks.
    """
    events = [float(row["step"]) for row in history if row.get("event")]
    loss = _loss(_column(history, "loss"), _column(history, "rate"), events)
    return loss, _validation(_column(history, "val"), events, metric)


def _loss(loss: Series, rate: Series, events: list[float]) -> str:
    step, value = loss
    if len(step) == 0:
        return ""
    with style("loss"):
        figure, axes, strip = new_figure_with_strip(432, 330)
        axes.plot(*thin(step, value), color=COLORS["rule"], linewidth=0.9)
        axes.plot(*thin(step, _smooth(value)), color=COLORS["genuine"])
        axes.set_ylabel("loss (line: smoothed)")
        if value.min() > 0 and value.max() > 100 * value.min():
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda tick, _: f"{tick:g}")
        strip.plot(*thin(*rate), color=COLORS["muted"], linewidth=1.3)
        strip.set(xlabel="step", xlim=(0, max(1, step.max())), ylim=(0, None), yticks=[])
        strip.set_ylabel("rate", rotation=0, ha="right", va="center")
        _mark_events(axes, events)
        alt = f"Training loss over {step.max():,.0f} steps, ending at {value[-1]:.3g}."
        return as_svg(figure, "loss", alt)


def _validation(val: Series, events: list[float], metric: str) -> str:
    step, value = val
    if len(step) == 0:
        return ""
    best = int(np.argmax(value))
    words = f"best {100 * value[best]:.1f} %"
    with style("validation"):
        figure, axes = new_figure(432, 330)
        axes.plot(step, value, color=COLORS["genuine"], marker="o", markersize=4)
        axes.plot(step[best], value[best], "o", markersize=9, color=COLORS["genuine"])
        right = step[best] > 0.6 * step.max()
        axes.annotate(
            words, (step[best], value[best]), (0 if right else 9, 9),
            textcoords="offset points", ha="right" if right else "left",
        )  # fmt: skip
        axes.set(xlabel="step", ylabel=metric, xlim=(0, max(1, step.max()) * 1.03))
        axes.margins(y=0.18)
        axes.yaxis.set_major_formatter(percent_axis)
        _mark_events(axes, events)
        return as_svg(figure, "validation", f"{metric}: {words} at step {step[best]:,.0f}.")


def identities_curve(curve: Sequence[LearningPoint]) -> str:
    """The EER by the number of identities learned from, as an SVG; "" without a curve."""
    if not curve:
        return ""
    num = np.array([point.num_identities for point in curve], dtype=np.float64)
    eer = np.array([point.eer for point in curve])
    with style("curve"):
        figure, axes = new_figure(432, 300)
        axes.plot(num, eer, color=COLORS["genuine"], marker="o", markersize=5)
        axes.set(xlabel="identities learned from", ylabel="EER on held-out identities")
        axes.set(xlim=(0, num.max() * 1.05), ylim=(0, None))
        axes.yaxis.set_major_formatter(percent_axis)
        words = f"EER by identities: {100 * eer[0]:.1f} % with {num[0]:.0f}"
        return as_svg(figure, "curve", f"{words}, {100 * eer[-1]:.1f} % with {num[-1]:.0f}.")


@dataclass(frozen=True, eq=False)
class ErrorCurve:
    """One line of a ROC or DET plot."""

    color: str
    label: str
    far: Floats
    frr: Floats


def _error_curves(pairs: ScoredPairs) -> list[ErrorCurve]:
    genuine = pairs.part("genuine")
    kinds = [("impostor", "genuine", "all impostors"), ("skilled", "skilled", "skilled forgeries")]
    lines = []
    for part, color, label in kinds:
        impostor = pairs.part(part)
        if len(genuine) and len(impostor):
            curve = det_curve(genuine, impostor)
            lines.append(ErrorCurve(color, label, curve.far, curve.frr))
    return lines


def _operating_point(pairs: ScoredPairs, threshold: float) -> tuple[float, float]:
    return pairs.accepted("impostor", threshold), 1 - pairs.accepted("genuine", threshold)


def _mark_point(axes: Axes, x: float, y: float) -> None:
    axes.plot(
        x, y, "o", markersize=8.5, color=COLORS["paper"], markeredgecolor=COLORS["ink"],
        markeredgewidth=2, label="at the threshold", linestyle="none", clip_on=False, zorder=5,
    )  # fmt: skip


def _mark_events(axes: Axes, steps: list[float]) -> None:
    for number, step in enumerate(steps, start=1):
        axes.axvline(step, color=COLORS["warn"], linewidth=1, linestyle=(0, (3, 3)))
        axes.annotate(
            str(number), (step, 1), (3, -11), xycoords=("data", "axes fraction"),
            textcoords="offset points", color=COLORS["warn"],
        )  # fmt: skip


def _draw_threshold(axes: Axes, threshold: float, low: float | None, high: float | None) -> None:
    if low is not None and high is not None:
        axes.axvspan(low, high, color=COLORS["ink"], alpha=0.10, linewidth=0)
    axes.axvline(threshold, color=COLORS["ink"], linewidth=1.5)
    left, right = axes.get_xlim()
    if left <= threshold <= right:
        for words, ha, offset in (("← same", "right", -6), ("different →", "left", 6)):
            axes.annotate(
                words, (threshold, 1), (offset, -12), xycoords=("data", "axes fraction"),
                textcoords="offset points", ha=ha,
            )  # fmt: skip


def _histogram_alt(pairs: ScoredPairs, threshold: float | None) -> str:
    words = "Histograms of the distances of genuine and impostor pairs."
    if threshold is None:
        return words
    far, frr = _operating_point(pairs, threshold)
    rates = (
        f"accepts {100 * far:.1f} % of the impostor pairs and rejects {100 * frr:.1f} % of the "
        "genuine pairs"
    )
    return f"{words} The threshold {threshold:.3g} {rates}."


def _edges(parts: list[Floats], bins: int) -> Floats:
    values = np.concatenate(parts) if parts else np.zeros(1)
    low, high = float(values.min()), float(values.max())
    margin = 0.03 * (high - low) + (1e-6 + 0.05 * abs(high)) * (high == low)
    return np.linspace(
        max(low - margin, 0.0) if low >= 0 else low - margin, high + margin, bins + 1
    )


def _smooth(value: Floats) -> Floats:
    """The running mean over a twentieth of the curve, centred, narrower at both ends."""
    half = len(value) // 40
    total = np.concatenate([[0.0], np.cumsum(value)])
    at = np.arange(len(value))
    reach = np.minimum(np.minimum(half, at), len(value) - 1 - at)
    mean: Floats = (total[at + reach + 1] - total[at - reach]) / (2 * reach + 1)
    return mean


def _column(history: Sequence[Mapping[str, Any]], key: str) -> Series:
    column = [(row["step"], row.get(key)) for row in history]
    kept = [(float(s), float(v)) for s, v in column if v is not None and math.isfinite(float(v))]
    table = np.array(kept, dtype=np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _logit(rate: Floats) -> Floats:
    logit: Floats = np.log(rate / (1 - rate))
    return logit


def _deviate(rate: Floats) -> Floats:
    normal = NormalDist()
    return np.array([normal.inv_cdf(float(r)) for r in rate])


def _deviate_ticks(axis: Axis, low: float) -> None:
    ticks = [tick for tick in DET_TICKS if low <= tick <= DET_HIGH]
    axis.set_ticks(_deviate(np.array(ticks)).tolist(), labels=[f"{100 * t:g} %" for t in ticks])


def _legend_above(axes: Axes, columns: int) -> None:
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1.01), ncols=columns, borderaxespad=0, borderpad=0.4,
        handlelength=1.4,
    )  # fmt: skip
