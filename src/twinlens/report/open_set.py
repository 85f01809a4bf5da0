"""Open-set identification in the report: sentences, a table by gallery size, and two plots.

Takes the JSON of `evaluate`; measures nothing.

Shapes: K points of a line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twinlens.report.formatting import bounds, cell, count_of, dig, percent, rate, span
from twinlens.report.svg import COLORS, as_svg, new_figure, percent_axis, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["open_set_plots", "open_set_sentences", "open_set_sizes", "pair_threshold_caution"]

SERIES = (
    ("genuine", "o", "DIR at 1 % FPIR", ("dir_at_fpir", "0.01")),
    ("skilled", "s", "DIR at 10 % FPIR", ("dir_at_fpir", "0.1")),
    (
        "impostor",
        "^",
        "strangers rejected,\nthreshold for pairs",
        ("pair_threshold", "turned_away"),
    ),
)

TICKS_APART = 1.35
"""Labels of sizes nearer than this factor would overlap."""


def open_set_sentences(results: Mapping[str, Any]) -> Iterator[str]:
    """Sentences for the top of the page."""
    entry = dig(results, "open_set")
    if entry is None:
        return
    shown = count_of(entry["shot"], "picture")
    yield (
        f"Half of the identities were enrolled, {shown} of each, and all were probed: "
        f"{count_of(entry['num_enrolled'], 'enrolled identity')} against "
        f"{count_of(entry['num_strangers'], 'stranger')}, drawn {entry['draws']} times."
    )
    for target in ("0.01", "0.1"):
        value, low, high = bounds(dig(entry, "dir_at_fpir", target))
        if value is not None:
            interval = span(low, high)
            words = f" (95\N{NO-BREAK SPACE}% interval {interval})" if interval else ""
            yield (
                f"At an FPIR of {rate(target)}, {percent(value)}{words} of the pictures of "
                "enrolled identities were identified correctly."
            )
            return


def pair_threshold_caution(results: Mapping[str, Any]) -> Iterator[str]:
    """A warning that a threshold for pairs is too high for a gallery, if measured."""
    entry = dig(results, "open_set") or {}
    value, low, high = bounds(dig(entry, "pair_threshold", "turned_away"))
    if value is None:
        return
    interval = span(1 - high, 1 - low) if low is not None and high is not None else ""
    words = f" (interval {interval})" if interval else ""
    yield (
        f"The model's threshold is for pairs. With {entry['num_enrolled']:,} enrolled identities "
        f"it falsely identified {percent(1 - value)}{words} of the strangers' pictures, and more "
        "with a larger gallery. Set the gallery's own threshold: "
        "twinlens gallery calibrate GALLERY."
    )


def open_set_sizes(results: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The table by gallery size: the size, and figures with their intervals."""
    columns = (("rank_1",), *(keys for _, _, _, keys in SERIES))
    return [
        (f"{size['num_enrolled']:,}", [cell(dig(size, *keys)) for keys in columns])
        for size in dig(results, "open_set", "by_size") or []
    ]


def open_set_plots(results: Mapping[str, Any]) -> tuple[str, str]:
    """DIR over FPIR, and figures by gallery size, as two SVGs; empty without the protocol."""
    entry = dig(results, "open_set")
    if entry is None:
        return "", ""
    return _dir_over_fpir(entry), _by_size(entry["by_size"])


def _dir_over_fpir(entry: Mapping[str, Any]) -> str:
    fpir, named = np.array([[point["fpir"], point["dir"]] for point in entry["curve"]]).T
    with style("dir"):
        figure, axes = new_figure(432, 400)
        axes.plot(fpir, named, color=COLORS["genuine"], label="all thresholds")
        axes.set_xscale("log")
        axes.set(
            xlim=(min(fpir[0], 0.1), 1),
            ylim=(0, 1),
            xlabel="false positive identification rate, FPIR",
        )
        axes.set_ylabel("detection and identification rate, DIR")
        _percents(axes)
        at, _, _ = bounds(dig(entry, "pair_threshold", "dir"))
        away, _, _ = bounds(dig(entry, "pair_threshold", "turned_away"))
        if at is not None and away is not None:
            axes.plot(
                max(1 - away, fpir[0]), at, "o", markersize=8.5, color=COLORS["paper"],
                markeredgecolor=COLORS["ink"], markeredgewidth=2, linestyle="none",
                label="threshold for pairs", clip_on=False, zorder=5,
            )  # fmt: skip
        axes.legend(loc="lower right")
        alt = "Detection and identification rate over false positive identification rate."
        return as_svg(figure, "dir", alt)


def _by_size(sizes: Sequence[Mapping[str, Any]]) -> str:
    with style("sizes"):
        figure, axes = new_figure(432, 400)
        for color, marker, label, keys in SERIES:
            table = _points(sizes, keys)
            if len(table):
                size, value, low, high = table.T
                axes.fill_between(size, low, high, color=COLORS[color], alpha=0.13, linewidth=0)
                axes.plot(size, value, marker, linestyle="-", markersize=5, color=COLORS[color],
                          label=label, clip_on=False)  # fmt: skip
        axes.set_xscale("log")
        enrolled = [size["num_enrolled"] for size in sizes]
        ticks = [num for num in enrolled[:-1] if num * TICKS_APART < enrolled[-1]]
        ticks.append(enrolled[-1])
        axes.set_xticks(ticks, labels=[f"{num:,}" for num in ticks])
        axes.set_xticks([], minor=True)
        axes.set(xlim=(enrolled[0] / 1.1, enrolled[-1] * 1.1), ylim=(0, 1))
        axes.set(xlabel="enrolled identities", ylabel="share")
        axes.yaxis.set_major_formatter(percent_axis)
        axes.legend(loc="best")
        return as_svg(figure, "sizes", "DIR and rejected strangers by gallery size.")


def _points(sizes: Sequence[Mapping[str, Any]], keys: tuple[str, ...]) -> NDArray[np.float64]:
    """Size, value, low and high, shape (K, 4); a missing bound is the value itself."""
    rows = []
    for size in sizes:
        value, low, high = bounds(dig(size, *keys))
        if value is not None:
            ends = (value if end is None else end for end in (low, high))
            rows.append([size["num_enrolled"], value, *ends])
    return np.array(rows, dtype=np.float64).reshape(-1, 4)


def _percents(axes: Axes) -> None:
    axes.xaxis.set_major_formatter(percent_axis)
    axes.yaxis.set_major_formatter(percent_axis)
