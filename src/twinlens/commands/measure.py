"""What was measured of a model on decoded pictures, in every protocol that applies."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinlens.data.cache import PixelRows, Pixels
from twinlens.data.duplicates import exact_groups
from twinlens.data.table import ImageTable
from twinlens.errors import DataError
from twinlens.jobs.pictures import AgainstTraining, ChosenPictures
from twinlens.measure.all_pairs import AllPairs, all_pairs_eer
from twinlens.measure.calibration import Calibration
from twinlens.measure.distances import plain_of
from twinlens.measure.nearest import Nearest, nearest
from twinlens.measure.pairs import count_pairs
from twinlens.measure.protocols import (
    Figure,
    OneShot,
    OneShotTrials,
    OpenSet,
    PairTrials,
    Retrieval,
    Verification,
    one_shot,
    open_set,
    retrieval,
    verification,
)
from twinlens.model.bundle import Bundle
from twinlens.model.comparators import NumpyComparison
from twinlens.model.encoder import embed_pixels
from twinlens.progress import Progress

__all__ = ["Measured", "measure", "measure_nearest", "measure_open_set"]

log = logging.getLogger("twinlens")


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


def measure(
    bundle: Bundle,
    calibration: Calibration | None,
    table: ImageTable,
    pixels_NCHW: Pixels,
    *,
    split: str,
    identity_disjoint: bool,
    pairs: int | None = None,
    way: int = 20,
    shot: int = 1,
    episodes: int = 1000,
    seed: int = 0,
) -> Measured:
    """Measure a model on decoded pictures.

    Raises:
        DataError: there is no genuine or no impostor pair among them.
    """
    emb_ND = _embedded(bundle, pixels_NCHW)
    comparison = NumpyComparison(bundle.comparator)
    label, forged = table.labels(), table.forged
    verified = verification(
        emb_ND, label, forged, comparison, calibrated=calibration, num_pairs=pairs, seed=seed
    )
    every, drawn = None, (verified.num_genuine, verified.num_impostor)
    # By a network for each distance all pairs would take hours.
    quick = plain_of(comparison) is not None
    if pairs is None and quick and drawn != count_pairs(label, forged):
        every = all_pairs_eer(emb_ND, label, forged, comparison, progress=Progress("all pairs"))
    found = one_shot(
        emb_ND, label, forged, comparison, way=way, shot=shot, episodes=episodes, seed=seed
    )
    return Measured(
        split=split,
        identity_disjoint=identity_disjoint,
        verification=verified,
        all_pairs=every,
        retrieval=retrieval(
            emb_ND, label, forged, comparison, seed=seed, progress=Progress("searching")
        ),
        one_shot={} if found is None else {found.key: found},
        table=table,
        pixels=pixels_NCHW,
        embeddings=emb_ND,
    )


def measure_nearest(bundle: Bundle, chosen: AgainstTraining, *, seed: int = 0) -> Measured:
    """Look pictures up among the training pictures.

    A picture that is equal to a training picture has distance 0 to it: both get one embedding,
    since a network's last bits may depend on a picture's place in its batch.

    Raises:
        DataError: embeddings that are not numbers.
    """
    emb_ND = _embedded(bundle, chosen.pixels)
    for rows in exact_groups([_digest(picture) for picture in chosen.pixels]):
        emb_ND[list(rows)] = emb_ND[rows[0]]
    label = chosen.table.labels()
    return Measured(
        split=chosen.split,
        identity_disjoint=chosen.identity_disjoint,
        nearest=nearest(
            emb_ND[chosen.probe], label[chosen.probe], emb_ND[chosen.gallery],
            label[chosen.gallery], NumpyComparison(bundle.comparator), seed=seed,
            progress=Progress("comparing"),
        ),
        table=chosen.table,
        pixels=chosen.pixels,
        embeddings=emb_ND,
        probe=chosen.probe,
        gallery=chosen.gallery,
    )  # fmt: skip


def measure_open_set(
    bundle: Bundle,
    calibration: Calibration | None,
    chosen: ChosenPictures,
    *,
    shot: int = 1,
    rule: str = "nearest",
    seed: int = 0,
) -> Measured:
    """Enrol half of the identities and ask about everyone; forged pictures take no part.

    Where there are too few identities for that, the log says so, and there are no figures.

    Raises:
        DataError: embeddings that are not numbers.
    """
    real = np.flatnonzero(~chosen.table.forged)
    table, pixels = chosen.table.select(real), PixelRows(chosen.pixels, real)
    emb_ND = _embedded(bundle, pixels)
    found = open_set(
        emb_ND, table.labels(), NumpyComparison(bundle.comparator), shot=shot, rule=rule,
        pair_threshold=None if calibration is None else calibration.threshold, seed=seed,
        progress=Progress("comparing"),
    )  # fmt: skip
    if found is None:
        count_I = np.bincount(table.labels())
        log.warning(
            "no gallery can be measured: of %d identities, %d have more than %d genuine pictures; "
            "needed are 4 identities, 2 of them with so many",
            len(count_I), np.count_nonzero(count_I > shot), shot,
        )  # fmt: skip
    return Measured(
        split=chosen.split,
        identity_disjoint=chosen.identity_disjoint,
        open_set=found,
        table=table,
        pixels=pixels,
        embeddings=emb_ND,
    )


def _digest(picture: NDArray[np.uint8]) -> bytes:
    return hashlib.blake2b(picture.tobytes(), digest_size=16).digest()


def _embedded(bundle: Bundle, pixels: Pixels) -> NDArray[np.float32]:
    emb_ND = embed_pixels(bundle.encoder, pixels, progress=Progress("embedding"))
    if not np.isfinite(emb_ND).all():
        raise DataError("some embeddings are not numbers: the model is broken, train it again")
    return emb_ND
