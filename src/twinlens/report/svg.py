"""Matplotlib figures as inline SVG in one style.

A figure works as a file of its own, and inside an HTML page it follows the page: each colour is a
CSS variable with a default, text stays text in the page's font, and ids are unique to the figure.
Only matplotlib's object interface is used: no window, no global settings.
"""

from __future__ import annotations

import io
import re
import warnings
from contextlib import AbstractContextManager
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLORS", "as_svg", "new_figure", "new_figure_with_strip", "percent_axis", "style",
           "thin"]  # fmt: skip

Floats = NDArray[np.floating[Any]]

# Drawn in these, then replaced by `var(--name, colour)`: the values must differ from each other.
COLORS = {
    "genuine": "#1f66b0",
    "impostor": "#b04f08",
    "skilled": "#8b3a9b",
    "ink": "#1d1f22",
    "muted": "#5b6068",
    "rule": "#c9cac5",
    "grid": "#e9e9e5",
    "paper": "#fdfdfc",
    "warn": "#b3261e",
}
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.usetex": False,
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 11.5,
    "axes.labelsize": 11.5,
    "axes.labelcolor": COLORS["muted"],
    "axes.edgecolor": COLORS["rule"],
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "grid.color": COLORS["grid"],
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 11.5,
    "text.color": COLORS["ink"],
    "xtick.color": COLORS["rule"],
    "ytick.color": COLORS["rule"],
    "xtick.labelcolor": COLORS["muted"],
    "ytick.labelcolor": COLORS["muted"],
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}
POINT = 72.0  # An SVG unit of matplotlib is a point; figures are sized in inches.


def style(name: str) -> AbstractContextManager[None]:
    """Context of the common style; `name` makes the figure's ids unique."""
    import matplotlib

    style: dict[Any, Any] = {**STYLE, "svg.hashsalt": name}
    return matplotlib.rc_context(style)


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure with one pair of axes, sized in SVG units."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / POINT, height / POINT), layout="constrained")
    return figure, figure.add_subplot()


def new_figure_with_strip(width: float, height: float) -> tuple[Figure, Axes, Axes]:
    """A figure with axes and a low strip below them on the same x axis, sized in SVG units."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / POINT, height / POINT), layout="constrained")
    axes, strip = figure.subplots(2, 1, sharex=True, height_ratios=(6, 1))
    return figure, axes, strip


def as_svg(figure: Figure, name: str, alt: str) -> str:
    """The figure as one element: no prologue or metadata, colours as variables, own ids."""
    out = io.StringIO()
    with warnings.catch_warnings():
        # These fonts only measure text: the reader's fonts draw it, whatever the script.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        without = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(out, format="svg", metadata=without)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    used = set(re.findall(r"(?:url\(#|href=\"#)([^\")]+)", text))
    text = re.sub(r' id="([^"]+)"', lambda m: m[0] if m[1] in used else "", text)
    for key in used:
        text = re.sub(rf'(#|id="){re.escape(key)}(?=[")])', rf"\g<1>{name}-{key}", text)
    for variable, value in COLORS.items():
        text = text.replace(value, f"var(--{variable}, {value})")
    text = re.sub(r'^<svg([^>]*?) width="[^"]*"', r"<svg\1", text)
    text = re.sub(r'^<svg([^>]*?) height="[^"]*"', r"<svg\1", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(alt)}"', 1)


def percent_axis(tick: float, _: float | None) -> str:
    """The label of a tick on an axis of shares."""
    return f"{round(100 * tick, 3):g} %"


def thin(x: Floats, y: Floats, max_points: int = 1500) -> tuple[Floats, Floats]:
    """At most about `max_points` points of a line, evenly along its length, with both ends."""
    if len(x) <= max_points:
        return x, y
    length = sum(np.abs(np.diff(v)) / max(float(np.ptp(v)), 1e-12) for v in (x, y))
    mile = np.floor(np.concatenate([[0.0], np.cumsum(length)]) * max_points / 4)
    # The first and the last point of each mile, so that a jump stays where it is.
    first = np.flatnonzero(np.diff(mile, prepend=-1.0))
    keep = np.union1d(first, np.append(first[1:], len(x)) - 1)
    return x[keep], y[keep]
