"""Error versus reject in the report: a plot and its sentence.

Takes the JSON of `evaluate`; measures nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from twinlens.report.formatting import bounds, dig, percent
from twinlens.report.svg import COLORS, as_svg, new_figure, percent_axis, style

__all__ = ["error_reject_plot", "error_reject_sentences"]


def error_reject_plot(results: Mapping[str, Any]) -> str:
    """FNMR over the share of rejected pairs, with intervals, as an SVG; or ""."""
    curve = dig(results, "error_reject", "curve")
    if not curve:
        return ""
    share = np.array([point["rejected"] for point in curve])
    points = [bounds(point["fnmr"]) for point in curve]
    value, low, high = np.array(points, dtype=np.float64).T  # NaN for a missing bound.
    with style("error-reject"):
        figure, axes = new_figure(432, 400)
        axes.fill_between(share, low, high, color=COLORS["genuine"], alpha=0.15, linewidth=0)
        axes.plot(share, value, color=COLORS["genuine"], marker="o", markersize=5,
                  label="lowest quality first", clip_on=False)  # fmt: skip
        axes.axhline(value[0], color=COLORS["rule"], linestyle=(0, (4, 3)), label="at random")
        axes.plot(share, (value[0] - share).clip(0) / (1 - share), color=COLORS["rule"],
                  label="errors only")  # fmt: skip
        highest = float(np.nanmax([*high, *value]))
        axes.set(xlim=(0, share[-1]), ylim=(0, max(highest * 1.1, 0.01)))
        axes.set(xlabel="share of rejected genuine pairs")
        axes.set_ylabel("FNMR of the others")
        axes.xaxis.set_major_formatter(percent_axis)
        axes.yaxis.set_major_formatter(percent_axis)
        axes.legend(loc="upper right")
        alt = "Error versus reject: FNMR as the pairs of lowest quality are rejected."
        return as_svg(figure, "error-reject", alt)


def error_reject_sentences(results: Mapping[str, Any]) -> Iterator[str]:
    """A sentence beside the plot."""
    entry = dig(results, "error_reject")
    if entry is None:
        return
    at = {point["rejected"]: bounds(point["fnmr"])[0] for point in entry["curve"]}
    if at[0.0] is None or at[0.2] is None:
        return
    value, low, high = bounds(entry["gain"])
    interval = "" if low is None or high is None else f" (interval {low:.2f} to {high:.2f})"
    gain = (
        "" if value is None else f" The gain is {value:.2f}{interval}: 1 is perfect, 0 is chance."
    )
    yield (
        f"At an FMR of {percent(entry['fmr'])}, {percent(at[0.0])} of the genuine pairs do not "
        f"match, and {percent(at[0.2])} once the fifth of lowest quality is rejected.{gain}"
    )
