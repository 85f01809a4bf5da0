"""Results of `evaluate` as rows of a table."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from twinlens.report.formatting import bounds, dig, percent, rate, span

__all__ = ["ResultRow", "result_rows"]


@dataclass(frozen=True)
class ResultRow:
    """A row of the results table; `key` rows also stand at the top of the page."""

    name: str
    value: str
    interval: str
    meaning: str
    key: bool = False


def result_rows(results: Mapping[str, Any]) -> Iterator[ResultRow]:
    """The figures as rows of a table; missing and null ones are left out."""
    verification = dig(results, "verification") or {}
    for key, name, meaning in (
        ("eer", "Equal error rate", "error rate where FAR and FRR are equal"),
        (
            "auc",
            "Area under the ROC curve",
            "share of genuine pairs closer than an impostor pair",
        ),
        ("accuracy", "Accuracy, best threshold", "1 - (FAR + FRR) / 2 at the best threshold"),
    ):
        yield from _row(verification.get(key), name, meaning, key == "eer")
    every = "over all pairs; the other figures of pairs are of a sample"
    yield from _row(dig(results, "all_pairs", "eer"), "Equal error rate, all pairs", every)
    yield from _tar_rows(verification, "genuine pairs accepted at that FAR")
    for key, name, meaning in (
        (
            "far",
            "False accepts, calibrated",
            "impostor pairs accepted at the model's threshold (FMR)",
        ),
        (
            "frr",
            "False rejects, calibrated",
            "genuine pairs rejected at the model's threshold (FNMR)",
        ),
        ("accuracy", "Accuracy, calibrated", "1 - (FAR + FRR) / 2 at the model's threshold"),
    ):
        yield from _row(dig(verification, "calibrated", key), name, meaning)
    yield from _skilled_rows(verification.get("skilled"))
    meaning = "mean gap between the probability and the share of genuine pairs"
    yield from _row(dig(verification, "reliability", "ece"), "Calibration error", meaning)
    if dig(results, "failure_to_acquire", "num_failed"):
        meaning = "pictures that could not be read (FTA), excluded from all other figures"
        yield from _row(dig(results, "failure_to_acquire", "rate"), "Failures to acquire", meaning)
    meaning = "pictures unlike those of the calibration; about 1\N{NO-BREAK SPACE}% is expected"
    yield from _row(dig(results, "domain", "outside"), "Out of domain", meaning)
    yield from _retrieval_rows(dig(results, "retrieval") or {})
    for place, (name, entry) in enumerate((dig(results, "one_shot") or {}).items()):
        yield from _row(entry, *_episode(name), place == 0)
    for key, name, meaning in (
        ("accuracy", "Given trials, accuracy", "correct answers on the given trials"),
        ("far", "Given trials, false accepts", "accepted at the model's threshold (FMR)"),
        ("frr", "Given trials, false rejects", "rejected at the model's threshold (FNMR)"),
        ("eer", "Given trials, equal error rate", "error rate where FAR and FRR are equal"),
        (
            "auc",
            "Given trials, area under ROC",
            "share of genuine pairs closer than an impostor pair",
        ),
    ):
        yield from _row(dig(results, "trials", key), name, meaning, key == "accuracy")
    yield from _nearest_rows(dig(results, "nearest") or {})
    yield from _open_set_rows(dig(results, "open_set") or {})


def _nearest_rows(part: Mapping[str, Any]) -> Iterator[ResultRow]:
    for key, name, meaning in (
        (
            "accuracy",
            "Nearest neighbour",
            "the nearest training picture has the correct identity",
        ),
        ("top_5", "Nearest neighbours, top 5", "one of the 5 nearest training pictures does"),
        ("chance", "By chance", "a training picture drawn at random does"),
    ):
        yield from _row(part.get(key), name, meaning, key != "chance")


def _open_set_rows(part: Mapping[str, Any]) -> Iterator[ResultRow]:
    meaning = "the nearest enrolled identity is the correct one"
    yield from _row(part.get("rank_1"), "Rank-1 identification", meaning, True)
    dirs = part.get("dir_at_fpir") or {}
    key = next((target for target, entry in dirs.items() if bounds(entry)[0] is not None), None)
    for target, entry in dirs.items():
        at = f"at {rate(target)} FPIR"
        meaning = "enrolled identities identified correctly at that FPIR"
        yield from _row(entry, f"DIR {at}", meaning, target == key)
        meaning = "the same, with the threshold set on other strangers"
        yield from _row(dig(part, "held_out", target, "dir"), f"DIR {at}, held out", meaning)
        meaning = "strangers with no identity within that threshold"
        rejected = dig(part, "held_out", target, "turned_away")
        yield from _row(rejected, f"Rejected {at}, held out", meaning)
    pair = part.get("pair_threshold") or {}
    meaning = "enrolled identities identified correctly at the model's threshold for pairs"
    yield from _row(pair.get("dir"), "DIR, threshold for pairs", meaning)
    meaning = "strangers with no identity within the threshold for pairs"
    yield from _row(pair.get("turned_away"), "Strangers rejected, threshold for pairs", meaning,
                    True)  # fmt: skip


def _retrieval_rows(part: Mapping[str, Any]) -> Iterator[ResultRow]:
    for key, entry in part.items():
        if key.startswith("recall_at_"):
            near = key.removeprefix("recall_at_")
            which = "the nearest" if near == "1" else f"one of the {near} nearest"
            meaning = f"{which} other picture{'' if near == '1' else 's'} is the same identity"
            yield from _row(entry, f"Recall at {near}", meaning, near == "1")
    meaning = "the identity's R pictures come first, in order"
    yield from _row(part.get("map_at_r"), "MAP at R", meaning)


def _tar_rows(part: Mapping[str, Any], meaning: str, suffix: str = "") -> Iterator[ResultRow]:
    for far, entry in (part.get("tar_at_far") or {}).items():
        name = f"TAR at {rate(far)} FAR{suffix}"
        yield from _row(entry, name, meaning, not suffix and float(far) == 0.01)


def _episode(name: str) -> tuple[str, str]:
    match = re.fullmatch(r"(\d+)-way-(\d+)-shot", name)
    if match is None:
        return name, "accuracy on small tasks"
    ways, shots = match.groups()
    examples = "one example" if shots == "1" else f"{shots} examples"
    meaning = f"the correct one of {ways} identities, from {examples} each"
    return f"{ways}-way {'one' if shots == '1' else shots}-shot accuracy", meaning


def _skilled_rows(skilled: Any) -> Iterator[ResultRow]:
    if not isinstance(skilled, Mapping):
        return
    suffix = ", forgeries"
    meaning = "skilled forgeries as the only impostors"
    yield from _row(skilled.get("eer"), "Equal error rate" + suffix, meaning)
    yield from _row(skilled.get("auc"), "Area under the ROC curve" + suffix, meaning)
    yield from _tar_rows(skilled, meaning, suffix)
    accepted = dig(skilled, "calibrated", "far") or skilled.get("far")
    meaning = "skilled forgeries accepted at the model's threshold"
    yield from _row(accepted, "False accepts, forgeries", meaning)


def _row(entry: Any, name: str, meaning: str, key: bool = False) -> Iterator[ResultRow]:
    value, low, high = bounds(entry)
    if value is not None:
        yield ResultRow(name, percent(value), span(low, high), meaning, key)
