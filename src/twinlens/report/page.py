"""`report.html`: what a model was taught, how well it does, and where it is wrong, on one page.

`ReportContent` is everything the page says, as plain arrays and values; `render_report` turns it
into HTML and `write_report` into a file. One file, no script, nothing loaded from anywhere: it
opens from a disk, on a phone and on paper, in light and dark. This module words and lays out what
it is given: it measures nothing, and knows no model and no data set. Parts that are not given are
left out of the page.

Shapes: N pictures or pairs, D embedding dimension, C channels, H height, W width.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from twinlens.files import replacing_file
from twinlens.measure.error_rates import matches
from twinlens.report.embedding_map import data_uri, embedding_map, map_rows
from twinlens.report.open_set import (
    open_set_figures,
    open_set_sentences,
    open_set_sizes,
    pair_threshold_caution,
)
from twinlens.report.plots import (
    ScoredPairs,
    distance_histogram,
    learning_curves,
    roc_and_det,
)
from twinlens.report.templates import page_template, style_sheet
from twinlens.report.wording import (
    bounds,
    count_of,
    dig,
    number,
    one_in,
    percent,
    result_rows,
    span,
)

__all__ = [
    "Choice",
    "MapPictures",
    "OperatingPoint",
    "PicturePair",
    "ReportContent",
    "ScoredPairs",
    "SplitCount",
    "render_report",
    "worst_rows",
    "write_report",
]

Pixels = NDArray[np.uint8]
MOST_BROKEN = 100


@dataclass(frozen=True, eq=False)
class PicturePair:
    """Two pictures (C, H, W) with their distance; `note` is shown below them."""

    left: Pixels
    right: Pixels
    identity_left: str
    identity_right: str
    path_left: str
    path_right: str
    distance: float
    note: str = ""


@dataclass(frozen=True, eq=False)
class MapPictures:
    """Pictures for the map: (N, D) embeddings, N identities, (N, C, H, W) pixels (or a memmap).

    Of more than 600, 600 are drawn at random from `seed`, whole identities first.
    """

    embedding: NDArray[np.floating[Any]]
    identity: Sequence[str]
    pixels: Pixels
    forged: NDArray[np.bool_] | None = None
    seed: int = 0


@dataclass(frozen=True)
class SplitCount:
    """How many pictures and identities a split holds: name "train", "val" or "test"."""

    name: str
    pictures: int
    identities: int


@dataclass(frozen=True)
class OperatingPoint:
    """The calibrated threshold, its interval, its aim, and how many impostor pairs set it."""

    threshold: float
    target_far: float
    low: float | None = None
    high: float | None = None
    impostor_pairs: int | None = None
    probability: str = ""  # "Platt", "isotonic"; empty where there is none


@dataclass(frozen=True)
class Choice:
    """A setting, its value in words, and why it has it."""

    key: str
    value: str
    why: str = ""


@dataclass(frozen=True, eq=False)
class ReportContent:
    """Everything that the page says.

    Attributes:
        title: the run's or model's name.
        data: how the user named the data.
        results: the JSON of `evaluate`; parts that are missing or null are not shown.
        splits: sizes; in a run's own report (it has `settings`), "train" is what it learned from.
        pairs: the scored pairs behind the figures.
        operating: the calibration; None for a model without one.
        history: rows of the run (see `figures.learning_curves`), empty for a loaded model.
        metric: what a row's `val` is.
        map: pictures for the map.
        nearest_impostors: closest first.
        farthest_genuine: farthest first.
        nearest_wrong: pictures beside their nearest training picture, where that shows another
            identity; closest first.
        broken: (path, reason) of each picture that was skipped.
        findings: sentences about duplicates and leaks.
        settings: the settings in words.
        facts: (name, value): fingerprint, versions, seed, machine, times.
        command: what to type to repeat it.
    """

    title: str
    data: str
    results: Mapping[str, Any]
    splits: Sequence[SplitCount] = ()
    pairs: ScoredPairs | None = None
    operating: OperatingPoint | None = None
    history: Sequence[Mapping[str, Any]] = ()
    metric: str = "validation, 1 - EER"
    map: MapPictures | None = None
    nearest_impostors: Sequence[PicturePair] = ()
    farthest_genuine: Sequence[PicturePair] = ()
    nearest_wrong: Sequence[PicturePair] = ()
    broken: Sequence[tuple[str, str]] = ()
    findings: Sequence[str] = ()
    settings: Sequence[Choice] = ()
    facts: Sequence[tuple[str, str]] = ()
    command: str = ""


def write_report(path: Path, content: ReportContent) -> None:
    """Write the page; a reader sees the old file or the new one, never half of one."""
    with replacing_file(path, path.with_name(f".{path.name}.{os.getpid()}.part")) as beside:
        # File names need not be UTF-8; those that are not are shown escaped.
        beside.write_text(render_report(content), encoding="utf-8", errors="backslashreplace")


def render_report(content: ReportContent) -> str:
    """The page as HTML. Everything that comes from the user is escaped."""
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
        key_rows=[row for row in rows if row.key],
        figures={name: Markup(svg) for name, svg in _figures(content).items()},
        galleries=[gallery for gallery in _galleries(content) if gallery["pairs"]],
        events=[row for row in content.history if row.get("event")],
        broken=content.broken[:MOST_BROKEN],
        few=_few(content.operating),
    )


def worst_rows(
    pairs: ScoredPairs,
    identity_a: Sequence[str],
    identity_b: Sequence[str],
    *,
    genuine: bool,
    most: int = 12,
    each: int = 2,
) -> list[int]:
    """Which pairs to show: the farthest genuine ones, or the nearest impostors, worst first.

    Of two identities (or of one and its forger) at most `each` pairs are taken, so that one odd
    identity does not fill the page.

    Args:
        pairs: N scored pairs.
        identity_a: N identities, of the left picture.
        identity_b: N identities, of the right picture.
        genuine: which kind.
        most: how many.
        each: how many of the same two identities.
    """
    kind = np.flatnonzero((pairs.same == genuine) & np.isfinite(pairs.distance))
    sign = -1.0 if genuine else 1.0
    taken: Counter[tuple[str, ...]] = Counter()
    found: list[int] = []
    for row in kind[np.argsort(sign * pairs.distance[kind], kind="stable")]:
        who = tuple(sorted((identity_a[int(row)], identity_b[int(row)])))
        taken[who] += 1
        if taken[who] <= each:
            found.append(int(row))
        if len(found) == most:
            break
    return found


def summary(content: ReportContent) -> list[str]:
    """What the page says in a few sentences, most important first."""
    sentences = [*_what_was_done(content), *_how_well(content.results)]
    sentences += open_set_sentences(content.results)
    return [*sentences, *_threshold_in_words(content)]


def cautions(content: ReportContent) -> list[str]:
    """What a reader must know before trusting the numbers."""
    found = []
    split = content.results.get("split", "test")
    if content.results.get("identity_disjoint") is False:
        found.append(
            "The model saw these identities in training: the figures say how it does on them, "
            "not on identities that are new to it."
        )
    count = _split(content, split)
    if count is not None and count.identities < 20:
        found.append(
            f"The {split} split holds {count_of(count.identities, 'identity')}: with so few, the "
            "intervals are wide and rough."
        )
    lost, asked = (dig(content.results, "nearest", key) for key in ("num_unknown", "num_probes"))
    if lost:
        found.append(
            f"{lost:,} of {count_of(asked, 'picture')} show identities without training pictures: "
            "no answer to them can be right, and they count as wrong."
        )
    if dig(content.results, "nearest") is not None and split == "train":
        found.append("Each training picture was looked up among all of them, and so found itself.")
    if content.operating is None:
        found.append("The model is not calibrated: it has no threshold and answers no question.")
    else:
        low = bounds(dig(content.results, "verification", "calibrated", "far"))[1]
        if low is not None and low > content.operating.target_far:
            found.append(
                "On these pictures the threshold accepts more impostor pairs than it aims at: "
                "calibrate on pictures that are like the ones in use."
            )
    found += pair_threshold_caution(content.results)
    if content.broken:
        found.append(f"{count_of(len(content.broken), 'picture')} could not be read: see Skipped.")
    return [*found, *content.findings]


def _what_was_done(content: ReportContent) -> Iterator[str]:
    split = content.results.get("split", "test")
    train, count = _split(content, "train"), _split(content, split)
    known = content.results.get("identity_disjoint")
    stranger = {True: ", none of which it had seen in training", False: "", None: ""}[known]
    if train is not None and content.settings:
        yield (
            f"This model was trained on {count_of(train.pictures, 'picture')} of "
            f"{count_of(train.identities, 'identity')}."
        )
    if count is not None:
        yield (
            f"It was measured on {count_of(count.pictures, 'picture')} of "
            f"{count_of(count.identities, 'identity')}{stranger}."
        )


def _how_well(results: Mapping[str, Any]) -> Iterator[str]:
    for keys, words in (
        (("verification", "eer"), "It tells pairs apart with an equal error rate of {}{}."),
        (
            ("nearest", "accuracy"),
            "For {}{} of them the nearest training picture shows the same identity.",
        ),
    ):
        value, low, high = bounds(dig(results, *keys))
        likely = f" (95\N{NO-BREAK SPACE}% interval {span(low, high)})" if span(low, high) else ""
        if value is not None:
            yield words.format(percent(value), likely)


def _threshold_in_words(content: ReportContent) -> Iterator[str]:
    point = content.operating
    if point is None:
        return
    if not math.isfinite(point.threshold):
        yield "No threshold keeps its target: it accepts nothing."
        return
    yield (
        f"Two pictures are called the same when their distance is at most "
        f"{number(point.threshold)}, which is set to accept {one_in(point.target_far)} impostor "
        "pairs."
    )
    far, frr = (
        bounds(dig(content.results, "verification", "calibrated", key))[0] for key in ("far", "frr")
    )
    if far is not None and frr is not None:
        yield (
            f"Here it accepted {percent(far)} of the impostor pairs and rejected {percent(frr)} of "
            "the genuine ones."
        )


def _few(point: OperatingPoint | None) -> str:
    if point is None or not math.isfinite(point.threshold):
        return ""
    words = f"Threshold {number(point.threshold)}"
    if point.low is not None and point.high is not None:
        words += f" (interval {number(point.low)} to {number(point.high)})"
    words += f", set to accept {one_in(point.target_far)} impostor pairs"
    if point.impostor_pairs is not None:
        words += f", on {point.impostor_pairs:,} of them"
    return words + (f"; probabilities by {point.probability}." if point.probability else ".")


def _figures(content: ReportContent) -> dict[str, str]:
    found = dict.fromkeys(("histogram", "histogram_phone", "roc", "det", "map"), "")
    point, pairs = content.operating, content.pairs
    threshold = point.threshold if point and math.isfinite(point.threshold) else None
    band = {"low": point.low, "high": point.high} if point else {}
    if pairs is not None and np.isfinite(pairs.distance).any():
        for name, width in (("histogram", 860.0), ("histogram_phone", 400.0)):
            found[name] = distance_histogram(pairs, threshold=threshold, width=width, **band)
        found["roc"], found["det"] = roc_and_det(pairs, threshold=threshold)
    found["dir"], found["sizes"] = open_set_figures(content.results)
    found["loss"], found["validation"] = learning_curves(content.history, metric=content.metric)
    if content.map is not None:
        found["map"] = _map(content.map)
    return found


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
    yield {
        "title": "Nearest impostors",
        "words": "Said to be different, and yet the closest. If a pair shows the same thing, its "
        "label is wrong.",
        "pairs": [_shown(pair, content, genuine=False) for pair in content.nearest_impostors],
    }
    yield {
        "title": "Farthest genuine pairs",
        "words": "Said to be the same, and yet the farthest apart. If a pair shows two things, a "
        "label is wrong.",
        "pairs": [_shown(pair, content, genuine=True) for pair in content.farthest_genuine],
    }
    yield {
        "title": "Most confident mistakes",
        "words": "A picture, and the nearest training picture, which is said to show something "
        "else; closest first. If both show the same thing, a label is wrong.",
        "pairs": [_shown(pair, content, genuine=False) for pair in content.nearest_wrong],
    }


def _shown(pair: PicturePair, content: ReportContent, *, genuine: bool) -> dict[str, Any]:
    if content.operating is None:
        return {"pair": pair, "verdict": "", "wrong": False}
    match = bool(matches(np.array([pair.distance]), content.operating.threshold)[0])
    return {
        "pair": pair,
        "verdict": f"{'accepted' if match else 'rejected'}, "
        + ("rightly" if match == genuine else "wrongly"),
        "wrong": match != genuine,
    }


def _breakable(path: str) -> Markup:
    """A path that may break into lines after slashes and underscores, and before dots."""
    return Markup(re.sub(r"([/_\\]+)|(?=\.)", r"\1<wbr>", str(escape(path))))


def _split(content: ReportContent, name: str) -> SplitCount | None:
    return next((split for split in content.splits if split.name == name), None)
