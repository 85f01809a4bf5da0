"""Formatting of numbers, and the results of `evaluate` as rows of a table.

In the JSON of `evaluate` a figure is `{"value", "low", "high"}`, null where undefined.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

__all__ = [
    "Row",
    "bounds",
    "count_of",
    "dig",
    "number",
    "one_in",
    "percent",
    "rate",
    "result_rows",
    "span",
]


@dataclass(frozen=True)
class Row:
    """A row of the results table; `key` rows also stand at the top of the page."""

    name: str
    value: str
    interval: str
    meaning: str
    key: bool = False


def result_rows(results: Mapping[str, Any]) -> Iterator[Row]:
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
        ("far", "False accepts, calibrated", "impostor pairs accepted at the model's threshold"),
        ("frr", "False rejects, calibrated", "genuine pairs rejected at the model's threshold"),
        ("accuracy", "Accuracy, calibrated", "1 - (FAR + FRR) / 2 at the model's threshold"),
    ):
        yield from _row(dig(verification, "calibrated", key), name, meaning)
    yield from _skilled_rows(verification.get("skilled"))
    yield from _retrieval_rows(dig(results, "retrieval") or {})
    for place, (name, entry) in enumerate((dig(results, "one_shot") or {}).items()):
        yield from _row(entry, *_episode(name), place == 0)
    for key, name, meaning in (
        ("accuracy", "Given trials, accuracy", "correct answers on the given trials"),
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


def _nearest_rows(part: Mapping[str, Any]) -> Iterator[Row]:
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


def _open_set_rows(part: Mapping[str, Any]) -> Iterator[Row]:
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


def _retrieval_rows(part: Mapping[str, Any]) -> Iterator[Row]:
    for key, entry in part.items():
        if key.startswith("recall_at_"):
            near = key.removeprefix("recall_at_")
            which = "the nearest" if near == "1" else f"one of the {near} nearest"
            meaning = f"{which} other picture{'' if near == '1' else 's'} is the same identity"
            yield from _row(entry, f"Recall at {near}", meaning, near == "1")
    meaning = "the identity's R pictures come first, in order"
    yield from _row(part.get("map_at_r"), "MAP at R", meaning)


def _tar_rows(part: Mapping[str, Any], meaning: str, suffix: str = "") -> Iterator[Row]:
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


def _skilled_rows(skilled: Any) -> Iterator[Row]:
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


def _row(entry: Any, name: str, meaning: str, key: bool = False) -> Iterator[Row]:
    value, low, high = bounds(entry)
    if value is not None:
        yield Row(name, percent(value), span(low, high), meaning, key)


def number(value: float) -> str:
    """A distance with three or so significant digits, never in scientific notation."""
    if not math.isfinite(value) or value == 0:
        return str(value) if value else "0"
    places = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(places, 6)}f}"


def percent(value: float, sign: str = "\N{NO-BREAK SPACE}%") -> str:
    """A share in percent: 3.2 %, 0.31 %, 100 %; never rounded to 0 or 100 when it is not."""
    share = 100 * value
    near = round(min(abs(share), abs(100 - share)), 9)
    places = 0 if near == 0 else 1 if near >= 0.95 else min(4, 1 - math.floor(math.log10(near)))
    return f"{share:.{places}f}{sign}"


def rate(target: str) -> str:
    """A target rate, by its JSON key, in percent: "0.01" is 1 %."""
    return f"{100 * float(target):g}\N{NO-BREAK SPACE}%"


def span(low: float | None, high: float | None) -> str:
    """An interval of shares; "" if a bound is missing."""
    if low is None or high is None:
        return ""
    return f"{percent(low, '')}\N{EN DASH}{percent(high)}"


def one_in(far: float) -> str:
    """A rate as a count: 0.01 is "1 in 100", 0.025 "1 in 40", 0.03 "3 in 100"."""
    share = Fraction(far).limit_denominator(1_000_000)
    if share.numerator != 1 and 10**6 % share.denominator == 0:
        base = 10 ** max(2, math.ceil(math.log10(share.denominator)))
        return f"{share * base} in {base:,}" if (share * base).denominator == 1 else percent(far)
    return f"{share.numerator:,} in {share.denominator:,}"


def count_of(count: int, noun: str) -> str:
    """A count with its noun, singular or plural: "1 picture", "3,000 identities"."""
    many = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{count:,} {noun if count == 1 else many}"


def dig(values: Any, *keys: str) -> Any:
    """The value at `keys` in nested mappings; None if any is missing."""
    for key in keys:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def bounds(entry: Any) -> tuple[float | None, float | None, float | None]:
    """Value, low and high of a figure, of a plain number, or of None."""
    if isinstance(entry, Mapping):
        return entry.get("value"), entry.get("low"), entry.get("high")
    return (None if entry is None else float(entry)), None, None
