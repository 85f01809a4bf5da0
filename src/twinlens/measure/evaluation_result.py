"""Results of an evaluation, as JSON for scripts and as lines for a person."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinlens.data.pixel_cache import Pixels
from twinlens.data.table import ImageTable
from twinlens.measure.exact_eer import AllPairs
from twinlens.measure.nearest_neighbour import Nearest
from twinlens.measure.verification import (
    Figure,
    OneShot,
    OneShotTrials,
    OpenSet,
    PairTrials,
    Retrieval,
    Verification,
)

__all__ = ["Measured"]


@dataclass(frozen=True, eq=False)
class Measured:
    """What was measured; a part that does not apply to the pictures is None.

    `table`, `pixels` and `embeddings` are what it was measured on, for a report. Of `nearest`,
    the probes and the gallery are the rows `probe` and `gallery` of the table.
    """

    split: str | None = None
    identity_disjoint: bool | None = None
    verification: Verification | None = None
    all_pairs: AllPairs | None = None
    retrieval: Retrieval | None = None
    one_shot: Mapping[str, OneShot] = field(default_factory=dict)
    trials: PairTrials | OneShotTrials | None = None
    nearest: Nearest | None = None
    open_set: OpenSet | None = None
    table: ImageTable | None = None
    pixels: Pixels | None = None
    embeddings: NDArray[np.float32] | None = None
    probe: NDArray[np.int64] | None = None
    gallery: NDArray[np.int64] | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain data; see docs/json.md."""
        found: dict[str, Any] = {}
        if self.split is not None:
            found |= {"split": self.split, "identity_disjoint": self.identity_disjoint}
        for name in ("verification", "all_pairs", "retrieval", "trials", "nearest", "open_set"):
            part = getattr(self, name)
            if part is not None:
                found[name] = part.as_json()
        if self.one_shot:
            found["one_shot"] = {key: part.as_json() for key, part in self.one_shot.items()}
        return found

    def as_text(self) -> str:
        """The figures with their intervals, a line each."""
        lines = []
        if self.split is not None:
            seen = "unseen identities" if self.identity_disjoint else "identities seen in training"
            lines.append(f"{'measured on':28} {self.split} pictures, {seen}")
        shown = {name: part for name, part in self.as_json().items() if name != "open_set"}
        lines += [f"{name:28} {_words(figure)}" for name, figure in _flat(shown)]
        if self.nearest is not None:
            lines += [f"{name:28} {words}" for name, words in self._counts(self.nearest)]
        if self.open_set is not None:
            lines += [f"{name:28} {words}" for name, words in _galleries(self.open_set)]
        return "\n".join(lines)

    def _counts(self, found: Nearest) -> Iterator[tuple[str, str]]:
        yield "nearest by chance", f"{found.chance:.4f}"
        yield (
            "looked up",
            f"{found.num_probes} pictures among {found.num_gallery} training pictures of "
            f"{found.num_identities} identities",
        )
        if self.split == "train":
            yield "", "each is among them itself, and so finds itself"
        if found.num_unknown:
            yield (
                "not to be found",
                f"{found.num_unknown} pictures of identities without training pictures; they "
                "count as wrong",
            )


def _galleries(found: OpenSet) -> Iterator[tuple[str, str]]:
    shown = "picture" if found.shot == 1 else "pictures"
    yield (
        "galleries",
        f"{found.whole.num_enrolled} identities enrolled by {found.shot} {shown} each, "
        f"{found.num_strangers} strangers, drawn {found.draws} times; rule {found.rule}",
    )
    yield "probes", f"{found.num_mated} of enrolled identities, {found.num_nonmated} of strangers"
    yield "rank 1", _of_strangers(found.whole.rank_1)
    for target, part in found.held_out.items():
        yield f"DIR at FPIR {target}", _of_strangers(found.whole.dir_at_fpir[target])
        yield "  on other strangers", _of_strangers(part.dir)
        yield "  and turned away", _of_strangers(part.turned_away)
    if found.whole.pair_threshold is not None:
        yield "DIR, pair threshold", _of_strangers(found.whole.pair_threshold.dir)
        yield "  and turned away", _of_strangers(found.whole.pair_threshold.turned_away)
    for size in found.by_size:
        words = [f"rank 1 {_short(size.rank_1)}"]
        words += [f"DIR at FPIR {at} {_short(dirs)}" for at, dirs in size.dir_at_fpir.items()]
        if size.pair_threshold is not None:
            words.append(f"turned away, pair threshold {_short(size.pair_threshold.turned_away)}")
        yield f"of {size.num_enrolled} enrolled", ", ".join(words)


def _of_strangers(figure: Figure) -> str:
    return _words(figure.as_json(), "strangers")


def _short(figure: Figure) -> str:
    return "-" if figure.value is None else f"{figure.value:.3f}"


def _flat(found: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, part in found.items():
        if not isinstance(part, Mapping):
            continue
        full = f"{above} {name}".strip().replace("_", " ")
        if "value" in part:
            yield full.removeprefix("verification ").removeprefix("retrieval "), part
        else:
            yield from _flat(part, full)


def _words(figure: Mapping[str, Any], few: str = "pairs") -> str:
    if figure["value"] is None:
        return f"-  (too few {few})"
    if figure["low"] is None:
        return f"{figure['value']:.4f}"
    return f"{figure['value']:.4f}  ({figure['low']:.4f} to {figure['high']:.4f})"
