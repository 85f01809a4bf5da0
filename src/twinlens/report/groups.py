"""Error rates of groups in the report: plots with intervals, tables, and the worst groups.

Takes the JSON of `evaluate`; measures nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from twinlens.report.formatting import bounds, cell, dig, percent, span
from twinlens.report.svg import COLORS, as_svg, new_figure, percent_axis, style

__all__ = ["GroupsPart", "group_parts"]

RATES = (
    ("far", "impostor", "false accept rate"),
    ("frr", "genuine", "false reject rate"),
    ("eer", "skilled", "equal error rate"),
)
LONGEST_NAME = 26


@dataclass(frozen=True)
class GroupsPart:
    """A column: plots as SVG, rows of the table (name, counts, figures), and sentences."""

    title: str
    plots: Sequence[tuple[str, str]]
    rows: Sequence[tuple[str, Sequence[str], Sequence[tuple[str, str]]]]
    sentences: Sequence[str]


def group_parts(results: Mapping[str, Any]) -> list[GroupsPart]:
    """A part for each column of the pictures, then of the given trials."""
    sources = (("groups", "verification", ""), ("trial_groups", "trials", ", given trials"))
    return [
        _part(f"{column}{suffix}", f"{source}-{place}", entry, _overall(results, whole))
        for source, whole, suffix in sources
        for place, (column, entry) in enumerate((dig(results, source) or {}).items())
    ]


def _overall(results: Mapping[str, Any], source: str) -> dict[str, float | None]:
    part = dig(results, source) or {}
    at_threshold = part.get("calibrated", part)
    rates = {"far": at_threshold, "frr": at_threshold, "eer": part}
    return {rate: bounds(values.get(rate))[0] for rate, values in rates.items()}


def _part(
    title: str, key: str, entry: Mapping[str, Any], overall: Mapping[str, float | None]
) -> GroupsPart:
    groups = [*entry["groups"], *([entry["across"]] if "across" in entry else [])]
    # The EER needs no plot beside both rates at the threshold.
    shown = RATES[:2] if any("far" in group for group in groups) else RATES[2:]
    plots = [
        (_plot(groups, rate, color, label, overall[rate], f"{key}-{rate}"), label)
        for rate, color, label in shown
    ]
    rows = [
        (
            group["name"],
            [f"{group[name]:,}" if name in group else "\N{EN DASH}"
             for name in ("num_identities", "num_genuine", "num_impostor")],
            [cell(group.get(rate)) for rate, _, _ in RATES],
        )
        for group in groups
    ]  # fmt: skip
    return GroupsPart(
        title, [plot for plot in plots if plot[0]], rows, list(_sentences(entry, overall))
    )


def _plot(
    groups: Sequence[Mapping[str, Any]],
    rate: str,
    color: str,
    label: str,
    overall: float | None,
    key: str,
) -> str:
    """A rate of each group with its interval, one below the other; "" if none has it."""
    points = [(group["name"], *bounds(group.get(rate))) for group in groups]
    points = [point for point in points if point[1] is not None]
    if not points:
        return ""
    with style(key):
        figure, axes = new_figure(432, 84 + 26 * len(points))
        names = [_shorten(point[0]) for point in points]
        value, low, high = np.array([point[1:] for point in points], dtype=np.float64).T
        away = np.nan_to_num(np.abs([value - np.fmin(low, value), np.fmax(high, value) - value]))
        place = np.arange(len(points))
        axes.errorbar(
            value, place, xerr=away, fmt="o", color=COLORS[color], markersize=6, elinewidth=1.6,
            capsize=3, clip_on=False,
        )  # fmt: skip
        if overall is not None:
            axes.axvline(overall, color=COLORS["muted"], linewidth=1, linestyle=(0, (4, 3)))
        axes.set_yticks(place, labels=names)
        axes.set(ylim=(len(points) - 0.5, -0.5), xlabel=label)
        axes.set_xlim(0, max(1.08 * float((value + away[1]).max()), 0.01))
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_formatter(percent_axis)
        worst = int(np.argmax(value))
        alt = f"{label} by group; the highest is {names[worst]}, {100 * value[worst]:.1f} %."
        return as_svg(figure, key, alt.capitalize())


def _sentences(entry: Mapping[str, Any], overall: Mapping[str, float | None]) -> Iterator[str]:
    named = {group["name"]: group for group in entry["groups"]}
    for rate, _, label in RATES:
        if rate in entry["worst"]:
            name = entry["worst"][rate]
            value, low, high = bounds(named[name][rate])
            whole = overall[rate]
            against = "" if whole is None else f", against {percent(whole)} of all pairs"
            interval = f" (interval {span(low, high)})" if span(low, high) else ""
            yield f"Highest {label}: {name}, {percent(value or 0)}{interval}{against}."
    if entry["too_small"]:
        yield f"Too few identities or pairs for rates: {', '.join(entry['too_small'])}."
    if entry["num_missing"]:
        yield f"Left out, without a value: {entry['num_missing']:,}."


def _shorten(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
