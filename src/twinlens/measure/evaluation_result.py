"""Results of an evaluation, one class for each protocol, as JSON and as lines of text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinlens.data.pixels import Pixels
from twinlens.data.table import ImageTable
from twinlens.measure.bootstrap import Estimate
from twinlens.measure.exact_eer import ExactEer
from twinlens.measure.few_shot import OneShotResult
from twinlens.measure.nearest_neighbour import NearestNeighbourResult
from twinlens.measure.open_set import OpenSetResult
from twinlens.measure.retrieval import RetrievalResult
from twinlens.measure.trials import OneShotTrialsResult, PairTrialsResult
from twinlens.measure.verification import VerificationResult

__all__ = [
    "EvaluationResult",
    "NearestNeighbourEvaluation",
    "OpenSetEvaluation",
    "TrialEvaluation",
]


@dataclass(frozen=True, eq=False)
class TrialEvaluation:
    """Results on a list of given trials, without other pictures."""

    trials: PairTrialsResult | OneShotTrialsResult

    def as_json(self) -> dict[str, Any]:
        """Plain data; see docs/json.md."""
        return {"trials": self.trials.as_json()}

    def as_text(self) -> str:
        """The figures with their intervals, one a line."""
        return _lines(_figures(self.as_json()))


@dataclass(frozen=True, eq=False)
class EvaluationResult:
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

    def as_json(self) -> dict[str, Any]:
        """Plain data; see docs/json.md."""
        values = _as_json(self, "verification", "all_pairs", "retrieval", "trials")
        if self.one_shot:
            values["one_shot"] = {name: part.as_json() for name, part in self.one_shot.items()}
        return values

    def as_text(self) -> str:
        """The figures with their intervals, one a line."""
        return _lines([_source(self.split, self.identity_disjoint), *_figures(self.as_json())])


@dataclass(frozen=True, eq=False)
class NearestNeighbourEvaluation:
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
    """

    split: str
    identity_disjoint: bool | None
    nearest: NearestNeighbourResult
    table: ImageTable
    pixels: Pixels
    embeddings: NDArray[np.float32]
    probe: NDArray[np.int64]
    gallery: NDArray[np.int64]

    def as_json(self) -> dict[str, Any]:
        """Plain data; see docs/json.md."""
        return _as_json(self, "nearest")

    def as_text(self) -> str:
        """The figures with their intervals, one a line."""
        source = _source(self.split, self.identity_disjoint)
        return _lines([source, *_figures(self.as_json()), *self._counts()])

    def _counts(self) -> Iterator[tuple[str, str]]:
        nearest = self.nearest
        yield "nearest by chance", f"{nearest.chance:.4f}"
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


@dataclass(frozen=True, eq=False)
class OpenSetEvaluation:
    """Results of the protocol "open-set": half of the identities enrolled, the rest strangers.

    Attributes:
        split: split of the pictures.
        identity_disjoint: whether none of the identities was trained on; None if unknown.
        open_set: identification rates; None for too few identities.
        table: the pictures without forgeries.
        pixels: their pixels.
        embeddings: their embeddings, shape (N, D).
    """

    split: str
    identity_disjoint: bool | None
    open_set: OpenSetResult | None
    table: ImageTable
    pixels: Pixels
    embeddings: NDArray[np.float32]

    def as_json(self) -> dict[str, Any]:
        """Plain data; see docs/json.md."""
        return _as_json(self, "open_set")

    def as_text(self) -> str:
        """The figures with their intervals, one a line."""
        galleries = [] if self.open_set is None else _galleries(self.open_set)
        return _lines([_source(self.split, self.identity_disjoint), *galleries])


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


def _lines(rows: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"{name:28} {text}" for name, text in rows)


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
            rows.append((short, _interval(part)))
        else:
            rows += _figures(part, name)
    return rows


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
    return "-" if figure.value is None else f"{figure.value:.3f}"


def _interval(figure: Mapping[str, Any], too_few: str = "pairs") -> str:
    if figure["value"] is None:
        return f"-  (too few {too_few})"
    if figure["low"] is None:
        return f"{figure['value']:.4f}"
    return f"{figure['value']:.4f}  ({figure['low']:.4f} to {figure['high']:.4f})"
