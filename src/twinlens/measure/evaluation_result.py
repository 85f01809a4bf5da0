"""Results of an evaluation, one class for each protocol, as JSON and as lines of text."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinlens.data.pixels import Pixels
from twinlens.data.table import ImageTable
from twinlens.display import Result, html_table
from twinlens.errors import one_line
from twinlens.measure.domain import DomainSummary
from twinlens.measure.error_reject import ErrorRejectResult
from twinlens.measure.estimate import Estimate, NumberEstimate
from twinlens.measure.exact_eer import ExactEer
from twinlens.measure.few_shot import OneShotResult
from twinlens.measure.groups import GroupRates, GroupsResult
from twinlens.measure.nearest_neighbour import NearestNeighbourResult
from twinlens.measure.open_set import OpenSetResult
from twinlens.measure.retrieval import RetrievalResult
from twinlens.measure.trials import OneShotTrialsResult, PairTrialsResult
from twinlens.measure.verification import VerificationResult

__all__ = ["EvaluationResult", "NearestNeighbourEvaluation", "OpenSetEvaluation", "TrialEvaluation"]

Row = tuple[str, str]

NUMBERS = {"threshold", "cllr", "min_cllr"}
"""Keys of figures that are no shares."""

TERMS = {
    "calibrated far": "calibrated far (FMR)",
    "calibrated frr": "calibrated frr (FNMR)",
    "trials far": "trials far (FMR)",
    "trials frr": "trials frr (FNMR)",
    "reliability ece": "calibration error (ECE)",
    "reliability cllr": "Cllr",
    "reliability min cllr": "min Cllr",
}
"""Ending of a figure's name -> the same with the field's terms (ISO/IEC 19795-1; Brümmer)."""


class _Evaluation(Result):
    """Base of the results: rows of text, which a notebook shows as a table."""

    def _rows(self) -> Iterator[Row]:
        raise NotImplementedError

    def _tables(self) -> Iterator[str]:
        """Lines of further tables."""
        yield from ()

    def _headline(self) -> Mapping[str, Estimate | None]:
        """The figures that stand for the whole."""
        raise NotImplementedError

    def as_text(self) -> str:
        """The figures with their intervals, one a line; then tables of groups."""
        return "\n".join([*(f"{name:28} {text}" for name, text in self._rows()), *self._tables()])

    def __repr__(self) -> str:
        figures = {name: figure for name, figure in self._headline().items() if figure is not None}
        shown = ", ".join(f"{name} {figure}" for name, figure in figures.items())
        return f"<{type(self).__name__}: {shown or 'no figures'}>"

    def _repr_html_(self) -> str:
        tables = "\n".join(self._tables())
        pre = f"<pre>{html.escape(tables)}</pre>" if tables else ""
        return html_table(repr(self).strip("<>"), list(self._rows())) + pre


@dataclass(frozen=True, eq=False, repr=False)
class TrialEvaluation(_Evaluation):
    """Results on a list of given trials, without other pictures, and by columns of the list."""

    trials: PairTrialsResult | OneShotTrialsResult
    groups: Mapping[str, GroupsResult] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Plain data; see docs/json.md."""
        return {"trials": self.trials.as_json(), **_groups_json("trial_groups", self.groups)}

    def _rows(self) -> Iterator[Row]:
        yield from _figures({"trials": self.trials.as_json()})
        yield from _prior(self.trials)

    def _tables(self) -> Iterator[str]:
        return _group_tables(self.groups)

    def _headline(self) -> Mapping[str, Estimate | None]:
        return {"accuracy": self.trials.accuracy}


@dataclass(frozen=True, eq=False, repr=False)
class EvaluationResult(_Evaluation):
    """Results of the standard protocol: verification, retrieval and one-shot episodes.

    Attributes:
        split: split of the pictures.
        identity_disjoint: whether none of the identities was trained on; None if unknown.
        verification: error rates on genuine and impostor pairs.
        all_pairs: EER on all pairs; None if `verification` has them all.
        retrieval: recall of the nearest other pictures; None without genuine pairs.
        one_shot: accuracy in episodes, by "20-way-1-shot"; empty for too few identities.
        table: the pictures.
        pixels: their pixels.
        embeddings: their embeddings, shape (N, D).
        trials: results on a list of given trials, if any.
        groups: error rates of groups of pictures, by column.
        trial_groups: error rates of groups of given trials, by column.
        num_broken: pictures of the split that could not be decoded: failures to acquire.
        domain: whether the pictures are like the model's calibration pictures; None if unknown.
        error_reject: FNMR as pairs of low quality are rejected; None for too few impostor pairs.
    """

    split: str
    identity_disjoint: bool | None
    verification: VerificationResult
    all_pairs: ExactEer | None
    retrieval: RetrievalResult | None
    one_shot: Mapping[str, OneShotResult]
    table: ImageTable
    pixels: Pixels
    embeddings: NDArray[np.float32]
    trials: PairTrialsResult | OneShotTrialsResult | None = None
    groups: Mapping[str, GroupsResult] = field(default_factory=dict)
    trial_groups: Mapping[str, GroupsResult] = field(default_factory=dict)
    num_broken: int = 0
    domain: DomainSummary | None = None
    error_reject: ErrorRejectResult | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain data; see docs/json.md."""
        return {
            **self._parts(),
            **_domain_json(self.domain),
            "failure_to_acquire": {
                "rate": self.num_broken / (self.num_broken + len(self.table)),
                "num_failed": self.num_broken,
                "num_pictures": self.num_broken + len(self.table),
            },
            **_groups_json("groups", self.groups),
            **_groups_json("trial_groups", self.trial_groups),
        }

    def _parts(self) -> dict[str, Any]:
        values = _as_json(self, "verification", "all_pairs", "retrieval", "trials", "error_reject")
        if self.one_shot:
            values["one_shot"] = {name: part.as_json() for name, part in self.one_shot.items()}
        return values

    def _rows(self) -> Iterator[Row]:
        yield _source(self.split, self.identity_disjoint)
        yield from _figures(self._parts())
        yield from _prior(self.verification)
        yield from _no_errors(self.verification)
        yield from _acquisition(self.num_broken, len(self.table))
        yield from _domain_row(self.domain)

    def _tables(self) -> Iterator[str]:
        yield from _group_tables(self.groups)
        yield from _group_tables(self.trial_groups)

    def _headline(self) -> Mapping[str, Estimate | None]:
        recall = None if self.retrieval is None else self.retrieval.recall_at[1]
        return {"EER": self.verification.eer, "recall at 1": recall}


@dataclass(frozen=True, eq=False, repr=False)
class NearestNeighbourEvaluation(_Evaluation):
    """Results of the protocol "nearest": each probe gets the identity of its nearest picture.

    Attributes:
        split: split of the probes.
        identity_disjoint: whether none of their identities was trained on; None if unknown.
        nearest: accuracy, and the nearest pictures of each probe.
        table: probes and gallery.
        pixels: their pixels.
        embeddings: their embeddings, shape (N, D).
        probe: rows of the probes in `table`.
        gallery: rows of the gallery in `table`.
        domain: whether the probes are like the model's calibration pictures; None if unknown.
    """

    split: str
    identity_disjoint: bool | None
    nearest: NearestNeighbourResult
    table: ImageTable
    pixels: Pixels
    embeddings: NDArray[np.float32]
    probe: NDArray[np.int64]
    gallery: NDArray[np.int64]
    domain: DomainSummary | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain data; see docs/json.md."""
        return _as_json(self, "nearest") | _domain_json(self.domain)

    def _rows(self) -> Iterator[Row]:
        yield _source(self.split, self.identity_disjoint)
        yield from _figures(_as_json(self, "nearest"))
        yield from self._counts()
        yield from _domain_row(self.domain)

    def _headline(self) -> Mapping[str, Estimate | None]:
        return {"accuracy": self.nearest.accuracy, "top 5": self.nearest.top_5}

    def _counts(self) -> Iterator[tuple[str, str]]:
        nearest = self.nearest
        yield "nearest by chance", str(Estimate(nearest.chance))
        yield (
            "probes",
            f"{nearest.num_probes} pictures against {nearest.num_gallery} training pictures of "
            f"{nearest.num_identities} identities",
        )
        if self.split == "train":
            yield "", "each training picture is also in the gallery, and finds itself"
        if nearest.num_unknown:
            yield (
                "non-mated probes",
                f"{nearest.num_unknown} pictures of identities without training pictures; they "
                "count as wrong",
            )


@dataclass(frozen=True, eq=False, repr=False)
class OpenSetEvaluation(_Evaluation):
    """Results of the protocol "open-set": half of the identities enrolled, the rest strangers.

    Attributes:
        split: split of the pictures.
        identity_disjoint: whether none of the identities was trained on; None if unknown.
        open_set: identification rates; None for too few identities.
        table: the pictures without forgeries.
        pixels: their pixels.
        embeddings: their embeddings, shape (N, D).
        domain: whether the pictures are like the model's calibration pictures; None if unknown.
    """

    split: str
    identity_disjoint: bool | None
    open_set: OpenSetResult | None
    table: ImageTable
    pixels: Pixels
    embeddings: NDArray[np.float32]
    domain: DomainSummary | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain data; see docs/json.md."""
        return _as_json(self, "open_set") | _domain_json(self.domain)

    def _rows(self) -> Iterator[Row]:
        yield _source(self.split, self.identity_disjoint)
        if self.open_set is not None:
            yield from _galleries(self.open_set)
        yield from _domain_row(self.domain)

    def _headline(self) -> Mapping[str, Estimate | None]:
        if self.open_set is None:
            return {}
        whole = self.open_set.whole
        dirs = {f"DIR at FPIR {at}": figure for at, figure in whole.dir_at_fpir.items()}
        return {"rank 1": whole.rank_1, **dirs}


def _domain_json(domain: DomainSummary | None) -> dict[str, Any]:
    return {"domain": None if domain is None else domain.as_json()}


def _domain_row(domain: DomainSummary | None) -> Iterator[Row]:
    if domain is not None:
        yield "domain", domain.as_text()


def _as_json(
    result: EvaluationResult | NearestNeighbourEvaluation | OpenSetEvaluation, *names: str
) -> dict[str, Any]:
    """The split and the named parts of a result that are not None."""
    parts = {name: getattr(result, name) for name in names}
    return {
        "split": result.split,
        "identity_disjoint": result.identity_disjoint,
        **{name: part.as_json() for name, part in parts.items() if part is not None},
    }


def _source(split: str, identity_disjoint: bool | None) -> tuple[str, str]:
    identities = {True: "unseen identities", False: "identities seen in training",
                  None: "unknown whether seen in training"}[identity_disjoint]  # fmt: skip
    return "measured on", f"{split} pictures, {identities}"


def _figures(values: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    """A row for each figure within `values`, named by the keys that lead to it."""
    rows = []
    for key, part in values.items():
        if not isinstance(part, Mapping):
            continue
        name = f"{above} {key}".strip().replace("_", " ")
        if "value" in part:
            short = name.removeprefix("verification ").removeprefix("retrieval ")
            rows.append((_with_terms(short), _interval(part, is_share=key not in NUMBERS)))
        else:
            rows += _figures(part, name)
    return rows


def _with_terms(name: str) -> str:
    """The name of a figure with the term of ISO/IEC 19795-1, or of the field."""
    for ours, terms in TERMS.items():
        if name.endswith(ours):
            return name.removesuffix(ours) + terms
    return name


def _prior(result: VerificationResult | PairTrialsResult | OneShotTrialsResult) -> Iterator[Row]:
    reliability = None if isinstance(result, OneShotTrialsResult) else result.reliability
    if reliability is not None and reliability.prior != 0.5:
        yield "prior", f"{reliability.prior:g} of a genuine pair, for the calibration error"


def _no_errors(result: VerificationResult) -> Iterator[Row]:
    """The rule of three, where no error was observed."""
    if result.calibrated is None:
        return
    for rate, kind, num in (
        ("far", "impostor", result.num_impostor), ("frr", "genuine", result.num_genuine)
    ):  # fmt: skip
        figure = getattr(result.calibrated, rate)
        if figure.value == 0:
            yield (
                f"rule of three ({rate.upper()})",
                f"no error in {num:,} {kind} pairs; at most {Estimate(figure.high)}, counting "
                "pairs without a shared identity (were all independent: "
                f"{Estimate(min(1, 3 / num))})",
            )


def _acquisition(num_broken: int, num_decoded: int) -> Iterator[Row]:
    if num_broken:
        num = num_broken + num_decoded
        yield (
            "failure to acquire (FTA)",
            f"{Estimate(num_broken / num)}  ({num_broken:,} of {num:,} pictures could not be "
            "decoded)",
        )


def _groups_json(key: str, groups: Mapping[str, GroupsResult]) -> dict[str, Any]:
    return {key: {name: part.as_json() for name, part in groups.items()}} if groups else {}


def _group_tables(groups: Mapping[str, GroupsResult]) -> Iterator[str]:
    """A table for each column, and its worst groups."""
    for column, result in groups.items():
        rows = [*result.groups, *([] if result.across is None else [result.across])]
        name = one_line(column)
        heading = [f"by {name}", "identities", "genuine", "impostor", "FAR (FMR)", "FRR (FNMR)",
                   "EER"]  # fmt: skip
        if any(group.own is not None for group in rows):
            heading += ["own threshold", "FRR there"]
        cells = [heading, *(_group_cells(group)[: len(heading)] for group in rows)]
        widths = [max(len(row[place]) for row in cells) for place in range(len(heading))]
        yield ""
        for row in cells:
            yield "  ".join(map(str.ljust, row, widths)).rstrip()
        yield from _group_notes(name, result)


def _group_cells(group: GroupRates) -> list[str]:
    identities = "" if group.num_identities is None else f"{group.num_identities:,}"
    counts = [one_line(group.name), identities, f"{group.num_genuine:,}", f"{group.num_impostor:,}"]
    figures = [getattr(group, rate) for rate in ("far", "frr", "eer")]
    cells = ["-" if figure is None else _interval(figure.as_json()) for figure in figures]
    own = group.own
    extra = ["-", "-"] if own is None else [str(own.threshold), str(Estimate(own.frr))]
    return counts + cells + extra


def _group_notes(column: str, result: GroupsResult) -> Iterator[str]:
    named = {group.name: group for group in result.groups}
    for rate, worst in result.worst.items():
        figure = getattr(named[worst], rate)
        yield f"worst {rate.upper()}: {one_line(worst)}, {_interval(figure.as_json())}"
    if result.too_small:
        names = one_line(", ".join(result.too_small), 300)
        yield f"too few identities or pairs for rates: {names}"
    if result.num_missing:
        yield f"without {column}: {result.num_missing:,}, left out"


def _galleries(result: OpenSetResult) -> Iterator[tuple[str, str]]:
    pictures = "picture" if result.shot == 1 else "pictures"
    yield (
        "galleries",
        f"{result.whole.num_enrolled} identities with {result.shot} {pictures} each, "
        f"{result.num_strangers} strangers, drawn {result.draws} times; rule {result.rule}",
    )
    yield "probes", f"{result.num_mated} mated, {result.num_nonmated} non-mated"
    yield "rank 1", _of_strangers(result.whole.rank_1)
    for target, part in result.held_out.items():
        yield f"DIR at FPIR {target}", _of_strangers(result.whole.dir_at_fpir[target])
        yield "  on held-out strangers", _of_strangers(part.dir)
        yield "  and rejected", _of_strangers(part.turned_away)
    if result.whole.pair_threshold is not None:
        yield "DIR, pair threshold", _of_strangers(result.whole.pair_threshold.dir)
        yield "  and rejected", _of_strangers(result.whole.pair_threshold.turned_away)
    for size in result.by_size:
        parts = [f"rank 1 {_short(size.rank_1)}"]
        parts += [f"DIR at FPIR {at} {_short(dirs)}" for at, dirs in size.dir_at_fpir.items()]
        if size.pair_threshold is not None:
            parts.append(f"rejected, pair threshold {_short(size.pair_threshold.turned_away)}")
        yield f"of {size.num_enrolled} enrolled", ", ".join(parts)


def _of_strangers(figure: Estimate) -> str:
    return _interval(figure.as_json(), "strangers")


def _short(figure: Estimate) -> str:
    return "-" if figure.value is None else str(Estimate(figure.value))


def _interval(figure: Mapping[str, Any], too_few: str = "pairs", *, is_share: bool = True) -> str:
    if figure["value"] is None:
        return f"-  (too few {too_few})"
    return str((Estimate if is_share else NumberEstimate)(**figure))
