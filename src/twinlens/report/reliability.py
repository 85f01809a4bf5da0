"""Reliability of probabilities in the report: a plot and its sentences.

Takes the JSON of `evaluate`; measures nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from twinlens.report.formatting import bounds, dig, percent
from twinlens.report.svg import COLORS, as_svg, new_figure, percent_axis, style

__all__ = ["reliability_plot", "reliability_sentences"]

SOURCES = (
    ("verification", "genuine", "o", "all pairs"),
    ("trials", "skilled", "s", "given trials"),
)


def reliability_plot(results: Mapping[str, Any]) -> str:
    """The share of genuine pairs over the probability, with intervals, as an SVG; or ""."""
    curves = {
        source: curve
        for source, *_ in SOURCES
        if (curve := dig(results, source, "reliability", "curve")) is not None
    }
    if not curves:
        return ""
    with style("reliability"):
        figure, axes = new_figure(432, 400)
        axes.plot([0, 1], [0, 1], color=COLORS["rule"], linewidth=1, linestyle=(0, (4, 3)))
        for source, color, marker, label in SOURCES:
            points = [(point["probability"], *bounds(point["share"]))
                      for point in curves.get(source, ())]  # fmt: skip
            if not points:
                continue
            x, y, low, high = np.array(points, dtype=np.float64).T  # NaN for a missing bound.
            away = np.nan_to_num(np.abs([y - np.fmin(low, y), np.fmax(high, y) - y]))
            axes.errorbar(
                x, y, away, color=COLORS[color], marker=marker, markersize=5, linewidth=1.4,
                elinewidth=1.2, capsize=3, label=label, clip_on=False,
            )  # fmt: skip
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability of the same")
        axes.set_ylabel("share of genuine pairs")
        axes.xaxis.set_major_formatter(percent_axis)
        axes.yaxis.set_major_formatter(percent_axis)
        if len(curves) > 1:
            axes.legend(loc="upper left")
        alt = "Reliability curve: share of genuine pairs over the probability of the same."
        return as_svg(figure, "reliability", alt)


def reliability_sentences(results: Mapping[str, Any]) -> Iterator[str]:
    """Sentences beside the plot."""
    for source, _, _, label in SOURCES:
        entry = dig(results, source, "reliability")
        if entry is None:
            continue
        ece, cllr, lowest = (bounds(entry[name])[0] or 0.0 for name in ("ece", "cllr", "min_cllr"))
        prior = "even odds" if entry["prior"] == 0.5 else f"a prior of {percent(entry['prior'])}"
        yield (
            f"On {label}, at {prior}, the calibration error is {percent(ece)}. "
            f"Cllr is {cllr:.3f} bits, of which {lowest:.3f} by overlapping distances (min Cllr) "
            f"and {cllr - lowest:.3f} by the calibration."
        )
