"""`report.html`: training, error rates and worst pairs of a model, on one page.

`ReportContent` holds the contents as plain arrays and values; `render_report` renders them as HTML
and `write_report` writes the file. The page is one file without scripts that loads nothing, for
screens, phones and paper, light and dark. This module measures nothing, and knows no model and no
data set. Missing parts are left out of the page.

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
    """Two pictures (C, H, W), their distance, and a note below them."""

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

    Above 600 pictures, 600 are drawn at random from `seed`, whole identities first.
    """

    embedding: NDArray[np.floating[Any]]
    identity: Sequence[str]
    pixels: Pixels
    forged: NDArray[np.bool_] | None = None
    seed: int = 0


@dataclass(frozen=True)
class SplitCount:
    """Numbers of pictures and identities of a split: "train", "val" or "test"."""

    name: str
    pictures: int
    identities: int


@dataclass(frozen=True)
class OperatingPoint:
    """The calibrated threshold, its interval, target FAR, and number of impostor pairs."""

    threshold: float
    target_far: float
    low: float | None = None
    high: float | None = None
    impostor_pairs: int | None = None
    probability: str = ""  # "Platt", "isotonic", or empty


@dataclass(frozen=True)
class Choice:
    """A setting, its value in words, and the reason for it."""

    key: str
    value: str
    why: str = ""


@dataclass(frozen=True, eq=False)
class ReportContent:
    """Contents of the page.

    Attributes:
        title: name of the run or model.
        data: name of the data as the user gave it.
        results: JSON of `evaluate`; missing or null parts are not shown.
        splits: sizes of the splits; with `settings`, "train" is the training data.
        pairs: scored pairs behind the plots.
        operating: the calibration; None if the model is not calibrated.
        history: rows of the run (see `plots.learning_curves`), empty for a loaded model.
        metric: name of a row's `val`.
        map: pictures for the map.
        nearest_impostors: closest first.
        farthest_genuine: farthest first.
        nearest_wrong: pictures beside their nearest training picture, where that shows another
            identity; closest first.
        broken: (path, reason) of each picture that was skipped.
        findings: sentences about duplicates and leaks between splits.
        settings: settings, with values in words.
        facts: (name, value): fingerprint, versions, seed, machine, times.
        command: command line that repeats the run.
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
    """Write the page atomically."""
    with replacing_file(path, path.with_name(f".{path.name}.{os.getpid()}.part")) as beside:
        # File names need not be UTF-8; others are shown escaped.
        beside.write_text(render_report(content), encoding="utf-8", errors="backslashreplace")


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
        key_rows=[row for row in rows if row.key],
        figures={name: Markup(svg) for name, svg in _figures(content).items()},
        galleries=[gallery for gallery in _galleries(content) if gallery["pairs"]],
        events=[row for row in content.history if row.get("event")],
        broken=content.broken[:MOST_BROKEN],
        threshold_caption=_threshold_caption(content.operating),
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
    """Rows of the farthest genuine or the nearest impostor pairs, worst first.

    Of the same two identities (or an identity and its forger) at most `each` pairs are taken, so
    that one odd identity does not fill the page.

    Args:
        pairs: N scored pairs.
        identity_a: N identities of the left pictures.
        identity_b: N identities of the right pictures.
        genuine: whether to take genuine pairs.
        most: largest number of pairs.
        each: largest number of pairs of the same two identities.
    """
    kind = np.flatnonzero((pairs.same == genuine) & np.isfinite(pairs.distance))
    sign = -1.0 if genuine else 1.0
    taken: Counter[tuple[str, ...]] = Counter()
    rows: list[int] = []
    for row in kind[np.argsort(sign * pairs.distance[kind], kind="stable")]:
        names = tuple(sorted((identity_a[int(row)], identity_b[int(row)])))
        taken[names] += 1
        if taken[names] <= each:
            rows.append(int(row))
        if len(rows) == most:
            break
    return rows


def summary(content: ReportContent) -> list[str]:
    """The opening sentences of the page, most important first."""
    sentences = [*_data_sentences(content), *_error_sentences(content.results)]
    sentences += open_set_sentences(content.results)
    return [*sentences, *_threshold_sentences(content)]


def cautions(content: ReportContent) -> list[str]:
    """Reasons to doubt the figures."""
    sentences = []
    split = content.results.get("split", "test")
    if content.results.get("identity_disjoint") is False:
        sentences.append(
            "The model was trained on these identities: the figures hold for them, not for unseen "
            "identities."
        )
    count = _split(content, split)
    if count is not None and count.identities < 20:
        sentences.append(
            f"The {split} split holds {count_of(count.identities, 'identity')}: with so few, the "
            "intervals are wide and approximate."
        )
    lost, probes = (dig(content.results, "nearest", key) for key in ("num_unknown", "num_probes"))
    if lost:
        sentences.append(
            f"{lost:,} of {count_of(probes, 'picture')} show identities without training pictures: "
            "no answer for them can be correct, and they count as errors."
        )
    if dig(content.results, "nearest") is not None and split == "train":
        sentences.append(
            "Each training picture was searched among all of them, so its nearest is itself."
        )
    if content.operating is None:
        sentences.append("The model is not calibrated: it has no threshold and gives no verdicts.")
    else:
        low = bounds(dig(content.results, "verification", "calibrated", "far"))[1]
        if low is not None and low > content.operating.target_far:
            sentences.append(
                "On these pictures the threshold accepts more impostor pairs than its target FAR: "
                "calibrate on pictures like those in use."
            )
    sentences += pair_threshold_caution(content.results)
    if content.broken:
        sentences.append(
            f"{count_of(len(content.broken), 'picture')} could not be read: see Skipped."
        )
    return [*sentences, *content.findings]


def _data_sentences(content: ReportContent) -> Iterator[str]:
    split = content.results.get("split", "test")
    train, count = _split(content, "train"), _split(content, split)
    disjoint = content.results.get("identity_disjoint")
    unseen = {True: ", none of them seen in training", False: "", None: ""}[disjoint]
    if train is not None and content.settings:
        yield (
            f"This model was trained on {count_of(train.pictures, 'picture')} of "
            f"{count_of(train.identities, 'identity')}."
        )
    if count is not None:
        yield (
            f"It was evaluated on {count_of(count.pictures, 'picture')} of "
            f"{count_of(count.identities, 'identity')}{unseen}."
        )


def _error_sentences(results: Mapping[str, Any]) -> Iterator[str]:
    for keys, words in (
        (("verification", "eer"), "Its equal error rate is {}{}."),
        (
            ("nearest", "accuracy"),
            "For {}{} of them the nearest training picture shows the same identity.",
        ),
    ):
        value, low, high = bounds(dig(results, *keys))
        interval = f" (95\N{NO-BREAK SPACE}% interval {span(low, high)})" if span(low, high) else ""
        if value is not None:
            yield words.format(percent(value), interval)


def _threshold_sentences(content: ReportContent) -> Iterator[str]:
    point = content.operating
    if point is None:
        return
    if not math.isfinite(point.threshold):
        yield "No threshold meets the target FAR: it accepts nothing."
        return
    yield (
        f"Two pictures match if their distance is at most {number(point.threshold)}, a threshold "
        f"that is set to accept {one_in(point.target_far)} impostor pairs."
    )
    far, frr = (
        bounds(dig(content.results, "verification", "calibrated", key))[0] for key in ("far", "frr")
    )
    if far is not None and frr is not None:
        yield (
            f"Here it accepted {percent(far)} of the impostor pairs and rejected {percent(frr)} of "
            "the genuine ones."
        )


def _threshold_caption(point: OperatingPoint | None) -> str:
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
    plots = dict.fromkeys(("histogram", "histogram_phone", "roc", "det", "map"), "")
    point, pairs = content.operating, content.pairs
    threshold = point.threshold if point and math.isfinite(point.threshold) else None
    band = {"low": point.low, "high": point.high} if point else {}
    if pairs is not None and np.isfinite(pairs.distance).any():
        for name, width in (("histogram", 860.0), ("histogram_phone", 400.0)):
            plots[name] = distance_histogram(pairs, threshold=threshold, width=width, **band)
        plots["roc"], plots["det"] = roc_and_det(pairs, threshold=threshold)
    plots["dir"], plots["sizes"] = open_set_figures(content.results)
    plots["loss"], plots["validation"] = learning_curves(content.history, metric=content.metric)
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
    yield {
        "title": "Nearest impostors",
        "words": "Pairs labelled as different that are closest. If a pair shows the same thing, a "
        "label is wrong.",
        "pairs": [_shown(pair, content, genuine=False) for pair in content.nearest_impostors],
    }
    yield {
        "title": "Farthest genuine pairs",
        "words": "Pairs labelled as the same that are farthest apart. If a pair shows two things, "
        "a label is wrong.",
        "pairs": [_shown(pair, content, genuine=True) for pair in content.farthest_genuine],
    }
    yield {
        "title": "Most confident mistakes",
        "words": "Pictures beside their nearest training picture, which is labelled differently; "
        "closest first. If both show the same thing, a label is wrong.",
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
