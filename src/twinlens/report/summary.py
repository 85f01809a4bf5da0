"""Sentences of the report: summary, cautions, and the caption of the threshold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from twinlens.measure.domain import DomainSummary
from twinlens.report.content import OperatingPoint, ReportContent, SplitCount
from twinlens.report.formatting import bounds, count_of, dig, number, one_in, percent, rate, span
from twinlens.report.open_set import open_set_sentences, pair_threshold_caution

__all__ = ["cautions", "rejection_advice", "summary", "threshold_caption"]

MANY_REJECTED = 0.15  # share of the genuine pairs that needs advice
EASIER_FAR = 0.1


def summary(content: ReportContent) -> list[str]:
    """The opening sentences of the page, most important first."""
    known = list(_data_sentences(content))
    sentences = [*known, *_error_sentences(content.results, "Its" if known else "The model's")]
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
    domain = content.results.get("domain")
    if domain is not None and not domain["in_domain"]:
        sentences.append(f"{DomainSummary(**domain).as_text()}.")
    sentences += pair_threshold_caution(content.results)
    if content.broken:
        sentences.append(
            f"{count_of(len(content.broken), 'picture')} could not be read: see Skipped."
        )
    return [*sentences, *content.findings]


def threshold_caption(point: OperatingPoint | None) -> str:
    """The threshold with its interval and calibration; "" without a finite one."""
    if point is None or not math.isfinite(point.threshold):
        return ""
    words = f"Threshold {number(point.threshold)}"
    if point.low is not None and point.high is not None:
        words += f" (interval {number(point.low)} to {number(point.high)})"
    words += f", set to accept {one_in(point.target_far)} impostor pairs"
    if point.impostor_pairs is not None:
        words += f", on {point.impostor_pairs:,} impostor pairs of its calibration"
    return words + (f"; probabilities by {point.probability}." if point.probability else ".")


def rejection_advice(content: ReportContent) -> list[str]:
    """Why the threshold rejects many genuine pairs, and what helps; empty if it does not."""
    point, results = content.operating, content.results
    frr = bounds(dig(results, "verification", "calibrated", "frr"))[0]
    if point is None or frr is None or frr < MANY_REJECTED:
        return []
    sentences = [
        f"The threshold lies among the genuine pairs: it rejects {percent(frr)} of them, those to "
        f"its right, to accept no more than {one_in(point.target_far)} impostor pairs."
    ]
    if point.unadjusted is not None and point.threshold < point.unadjusted:
        sentences.append(
            "Part of this is caution for new identities, which falls as the calibration gets more "
            "of them."
        )
    tar = bounds(dig(results, "verification", "tar_at_far", f"{EASIER_FAR:g}"))[0]
    if tar is not None and point.target_far < EASIER_FAR and 1 - tar < frr:
        sentences.append(
            f"If false matches cost little, calibrate for a FAR of {rate(str(EASIER_FAR))}, at "
            f"which the model rejects {percent(1 - tar)}."
        )
    sentences.append(
        "Otherwise several templates of each identity in a gallery help, or a model that separates "
        "better, from more identities or a longer training."
    )
    return sentences


def _data_sentences(content: ReportContent) -> Iterator[str]:
    split = content.results.get("split", "test")
    train, count = _split(content, "train"), _split(content, split)
    disjoint = content.results.get("identity_disjoint")
    unseen = {True: ", none of them seen in training", False: "", None: ""}[disjoint]
    trained = train is not None and bool(content.settings)
    if train is not None and trained:
        yield (
            f"The model was trained on {count_of(train.pictures, 'picture')} of "
            f"{count_of(train.identities, 'identity')}."
        )
    if count is not None:
        yield (
            f"{'It' if trained else 'The model'} was evaluated on "
            f"{count_of(count.pictures, 'picture')} of {count_of(count.identities, 'identity')}"
            f"{unseen}."
        )


def _error_sentences(results: Mapping[str, Any], whose: str) -> Iterator[str]:
    for keys, words in (
        (("verification", "eer"), f"{whose} equal error rate is {{}}{{}}."),
        (
            ("nearest", "accuracy"),
            "For {}{} of the pictures, the nearest training picture shows the same identity.",
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
        f"set to accept {one_in(point.target_far)} impostor pairs."
    )
    far, frr = (
        bounds(dig(content.results, "verification", "calibrated", key))[0] for key in ("far", "frr")
    )
    if far is not None and frr is not None:
        yield (
            f"On these pictures it accepted {percent(far)} of the impostor pairs and rejected "
            f"{percent(frr)} of the genuine pairs."
        )


def _split(content: ReportContent, name: str) -> SplitCount | None:
    return next((split for split in content.splits if split.name == name), None)
