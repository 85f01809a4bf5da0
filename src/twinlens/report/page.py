"""`report.html`: training, error rates and worst pairs of a model, on one page.

`render_report` renders a `ReportContent` as HTML, and `write_report` writes the file. The page is
one file without scripts that loads nothing, for screens, phones and paper, light and dark. Missing
parts are left out. Models, data sets and measurements play no part here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from twinlens.files import write_text
from twinlens.measure.error_rates import matches
from twinlens.report.candidates import candidate_cells, curve_note
from twinlens.report.content import MapPictures, PicturePair, ReportContent
from twinlens.report.embedding_map import data_uri, embedding_map, map_rows
from twinlens.report.error_reject import error_reject_plot, error_reject_sentences
from twinlens.report.formatting import number
from twinlens.report.groups import group_parts
from twinlens.report.open_set import open_set_plots, open_set_sizes
from twinlens.report.plots import distance_histogram, identities_curve, learning_curves, roc_and_det
from twinlens.report.reliability import reliability_plot, reliability_sentences
from twinlens.report.result_rows import result_rows
from twinlens.report.summary import cautions, rejection_advice, summary, threshold_caption
from twinlens.report.templates import page_template, style_sheet

__all__ = ["render_report", "write_report"]

MOST_BROKEN = 100


def write_report(path: Path, content: ReportContent) -> None:
    """Write the page atomically."""
    write_text(path, render_report(content))


def render_report(content: ReportContent) -> str:
    """Render the page as HTML; user text is escaped."""
    filters: dict[str, Callable[..., Any]] = {
        "picture": data_uri,
        "number": number,
        "breakable": _breakable,
    }
    rows = list(result_rows(content.results))
    return page_template("report.html.j2", filters).render(
        style=style_sheet(),
        content=content,
        summary=summary(content),
        cautions=cautions(content),
        rows=rows,
        sizes=open_set_sizes(content.results),
        groups=group_parts(content.results),
        reliability=list(reliability_sentences(content.results)),
        rejection=list(error_reject_sentences(content.results)),
        key_rows=[row for row in rows if row.key],
        plots={name: Markup(svg) for name, svg in _plots(content).items()},
        candidates=list(map(candidate_cells, content.candidates)),
        curve_note=curve_note(content.curve),
        galleries=[gallery for gallery in _galleries(content) if gallery["pairs"]],
        events=[row for row in content.history if row.get("event")],
        broken=content.broken[:MOST_BROKEN],
        advice=rejection_advice(content),
        threshold_caption=threshold_caption(content.operating),
    )


def _plots(content: ReportContent) -> dict[str, str]:
    plots = dict.fromkeys(("histogram", "histogram_phone", "roc", "det", "map"), "")
    point, pairs = content.operating, content.pairs
    threshold = point.threshold if point and math.isfinite(point.threshold) else None
    band = {"low": point.low, "high": point.high} if point else {}
    if pairs is not None and np.isfinite(pairs.distance).any():
        for name, width in (("histogram", 860.0), ("histogram_phone", 400.0)):
            plots[name] = distance_histogram(pairs, threshold=threshold, width=width, **band)
        plots["roc"], plots["det"] = roc_and_det(pairs, threshold=threshold)
    plots["reliability"] = reliability_plot(content.results)
    plots["error_reject"] = error_reject_plot(content.results)
    plots["dir"], plots["sizes"] = open_set_plots(content.results)
    plots["loss"], plots["validation"] = learning_curves(content.history, metric=content.metric)
    plots["curve"] = identities_curve(content.curve)
    if content.map is not None:
        plots["map"] = _map(content.map)
    return plots


def _map(pictures: MapPictures) -> str:
    rows = map_rows(pictures.identity, np.random.default_rng(pictures.seed))
    return embedding_map(
        pictures.embedding[rows],
        [pictures.identity[int(row)] for row in rows],
        pictures.pixels[rows],
        forged=None if pictures.forged is None else pictures.forged[rows],
        seed=pictures.seed,
    )


def _galleries(content: ReportContent) -> Iterator[dict[str, Any]]:
    for title, words, pairs, genuine in (
        (
            "Nearest impostors",
            "The closest pairs that are labelled as different, at most two of the same two "
            "identities. If a pair shows the same thing, a label is wrong.",
            content.nearest_impostors,
            False,
        ),
        (
            "Farthest genuine pairs",
            "The farthest pairs that are labelled as the same, at most two of an identity. If a "
            "pair shows two things, a label is wrong.",
            content.farthest_genuine,
            True,
        ),
        (
            "Most confident mistakes",
            "Pictures beside their nearest training picture, which has another label; closest "
            "first. If both show the same thing, a label is wrong.",
            content.nearest_wrong,
            False,
        ),
    ):
        shown = [_pair_values(pair, content, genuine=genuine) for pair in pairs]
        yield {"title": title, "words": words, "pairs": shown}


def _pair_values(pair: PicturePair, content: ReportContent, *, genuine: bool) -> dict[str, Any]:
    if content.operating is None:
        return {"pair": pair, "verdict": "", "wrong": False}
    match = bool(matches(np.array([pair.distance]), content.operating.threshold)[0])
    return {
        "pair": pair,
        "verdict": ("correctly " if match == genuine else "falsely ")
        + ("accepted" if match else "rejected"),
        "wrong": match != genuine,
    }


def _breakable(path: str) -> Markup:
    """A path that may break into lines after slashes and underscores, and before dots."""
    return Markup(re.sub(r"([/_\\]+)|(?=\.)", r"\1<wbr>", str(escape(path))))
