"""An open gallery: its store, settings, model, search and threshold.

Operations (`enrol`, `index`, `maintain`, `migrate`, `import_export`) take a `GalleryCore`; the
public `Gallery` holds one.

Shapes: N pictures, D dimensions, K answers.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from twinlens.data.download import cache_folder, create_once
from twinlens.errors import CalibrationError, GalleryError, unknown_name
from twinlens.gallery.decide import Threshold
from twinlens.gallery.location import is_remote
from twinlens.gallery.schema import quoted
from twinlens.gallery.search import Lookup, RankedIdentity
from twinlens.gallery.settings import MODEL_FILES, GalleryState, read_settings, read_state
from twinlens.gallery.store import Store
from twinlens.measure.distances import EUCLIDEAN_COMPARATORS, EuclideanComparison
from twinlens.measure.pairs import Comparison

if TYPE_CHECKING:
    from twinlens.match.matcher import Matcher

__all__ = ["GalleryCore"]

Floats = NDArray[np.float32]


class GalleryCore:
    """An open gallery; thread-safe.

    Attributes:
        store: table of templates.
        lookup: nearest-neighbour search over it.
        place: folder, or address in an object store.
        fingerprint: fingerprint of the model; vectors of another model are refused.
        dim: D.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._lock = threading.Lock()
        self._state: GalleryState | None = None
        self.place, self.dim = store.place, store.dim
        settings = read_settings(store.place, store.settings())
        self.fingerprint = settings.fingerprint
        name = settings.comparator
        is_euclidean = name in EUCLIDEAN_COMPARATORS
        self._plain = EuclideanComparison(name, settings.scale) if is_euclidean else None
        self.lookup = Lookup(store, self._plain, self._learned_comparison)

    def __len__(self) -> int:
        return self.state().num_templates

    @cached_property
    def matcher(self) -> Matcher:
        """The gallery's own copy of the model.

        Raises:
            ModelError: the copy is damaged.
            GalleryError: the folder holds another model.
        """
        from twinlens.match.matcher import Matcher

        folder = f"models/{self.fingerprint}"

        def fetch(part: Path) -> None:
            for name in MODEL_FILES:
                self.store.fetch_file(f"{folder}/{name}", part / name)

        local = Path(self.place) / folder
        if is_remote(self.place):
            local = create_once(cache_folder() / folder, fetch)
        matcher = Matcher.load(local)
        if matcher.fingerprint != self.fingerprint:
            raise GalleryError(
                f"{local} holds the model {matcher.fingerprint}, but the gallery {self.place} "
                f"belongs to the model {self.fingerprint}: put that model's files back"
            )
        return matcher

    def state(self) -> GalleryState:
        """Settings and size of the newest version."""
        with self._lock:
            version = self.store.version
            if self._state is None or self._state.version != version:
                state = read_state(self.store)
                self.check_model(state.settings.fingerprint)
                self._state = state
            return self._state

    def check_model(self, fingerprint: str) -> None:
        """Refuse settings of another model than the gallery was opened with.

        Raises:
            GalleryError: the gallery was rebuilt with another model since.
        """
        if fingerprint != self.fingerprint:
            raise GalleryError(
                f"the gallery {self.place} was rebuilt with another model since it was opened "
                f"({fingerprint} instead of {self.fingerprint}): open it again"
            )

    # --- templates ---

    def identities(self) -> dict[str, int]:
        """Names, sorted, with the number of their templates."""
        column = self.store.find(columns=["identity"])["identity"]
        counts = column.value_counts().to_pylist()
        return dict(sorted((entry["values"], entry["counts"]) for entry in counts))

    def require(self, identity: str) -> None:
        """Refuse a name that is not enrolled.

        Raises:
            GalleryError: lists similar names.
        """
        if not self.store.count(f"identity = {quoted(identity)}"):
            names = [name[:80] for name in self.identities()]
            raise GalleryError(unknown_name("identity", identity[:80], names))

    def owners(self, hashes: Sequence[str]) -> dict[str, str]:
        """The identity of each hash that is enrolled."""
        if not hashes:
            return {}
        where = f"hash IN ({', '.join(map(quoted, hashes))})"
        rows = self.store.find(where, columns=["hash", "identity"])
        return dict(zip(rows["hash"].to_pylist(), rows["identity"].to_pylist(), strict=True))

    def insert(self, rows: pa.Table) -> int:
        """Add rows of this gallery's model whose hash is new; return how many were added."""
        return self.store.insert(rows, expected={"fingerprint": self.fingerprint})

    # --- embeddings ---

    def prepared(self, emb_ND: Floats) -> Floats:
        """Embeddings as they are stored: of length 1 if the comparator compares directions."""
        return emb_ND if self._plain is None else self._plain.prepared(emb_ND)

    def check_vectors(self, emb_ND: Floats, fingerprint: str) -> None:
        """Refuse embeddings of another model, another length, or with non-finite values.

        Raises:
            GalleryError: one of these, named in the message.
        """
        if fingerprint != self.fingerprint:
            raise GalleryError(
                f"these embeddings belong to the model {fingerprint}, but the gallery {self.place} "
                f"belongs to the model {self.fingerprint}: embed the pictures with the gallery's "
                "model, or change the gallery's model with `twinlens gallery rebuild`"
            )
        if emb_ND.ndim != 2 or emb_ND.shape[1] != self.dim:
            raise GalleryError(f"embeddings must have shape (N, {self.dim}), found {emb_ND.shape}")
        if not np.isfinite(emb_ND).all():
            raise GalleryError("embeddings must be finite, found NaN or infinity: the model is "
                               "broken, train it again")  # fmt: skip

    def nearest(
        self, emb_D: NDArray[Any], k: int, state: GalleryState | None = None
    ) -> list[RankedIdentity]:
        """The k nearest identities to an embedding (D,), nearest first, without a verdict."""
        state = self.state() if state is None else state
        return self.lookup.identities(
            self.probe(emb_D), state.rule, k, state.nprobes, in_memory=self.is_in_memory(state)
        )

    def probe(self, emb_D: NDArray[Any]) -> Floats:
        """A checked and prepared query vector (D,)."""
        emb_1D = np.asarray(emb_D, dtype=np.float32).reshape(1, -1)
        self.check_vectors(emb_1D, self.fingerprint)
        prepared: Floats = self.prepared(emb_1D)[0]
        return prepared

    def is_in_memory(self, state: GalleryState) -> bool:
        """Whether templates are compared exactly, in memory."""
        return state.index is None and self.lookup.fits_memory(state.num_templates)

    def _learned_comparison(self) -> Comparison:
        return self.matcher.comparison

    # --- the threshold ---

    def threshold(self, far: float | None = None, state: GalleryState | None = None) -> Threshold:
        """The largest distance that identifies.

        Args:
            far: false positive identification rate; the calibration's by default.
            state: state to read it from; the newest by default.
        Raises:
            CalibrationError: no calibration, or none for that rate.
        """
        state = self.state() if state is None else state
        if state.open_set is not None:
            value = state.open_set.threshold if far is None else state.open_set.threshold_at(far)
            return Threshold(value, "gallery", state.open_set.target_fpir if far is None else far)
        if far is not None or state.pairs is None:
            rate = "" if far is None else f" for an FPIR of {far:g}"
            raise CalibrationError(
                f"the gallery {self.place} has no threshold{rate} yet: "
                f"run `twinlens gallery calibrate {self.place}`"
            )
        # Each template is one more chance of a false match. Those of one identity are not
        # independent, so this is about the upper bound.
        fpir = -math.expm1(state.num_templates * math.log1p(-state.pairs.target_far))
        return Threshold(state.pairs.threshold, "pairs", fpir)
