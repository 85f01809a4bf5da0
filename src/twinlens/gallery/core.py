"""An open gallery: its store, settings, model, search and threshold.

Operations (`enrol`, `index`, `maintain`, `migrate`, `import_export`) take a `GalleryCore`; the
public `Gallery` holds one.

Shapes: N pictures, D dimensions, K answers.
"""

from __future__ import annotations

import hashlib
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
from twinlens.errors import (
    CalibrationError,
    GalleryError,
    ModelError,
    NotEnrolledError,
    one_line,
    unknown_name,
)
from twinlens.gallery.decide import Threshold
from twinlens.gallery.embeddings import BROKEN_MODEL, NOT_FINITE, as_float32
from twinlens.gallery.location import check_content, is_remote
from twinlens.gallery.schema import quoted
from twinlens.gallery.search import Lookup, RankedIdentity
from twinlens.gallery.settings import GalleryState, model_settings, read_settings, read_state
from twinlens.gallery.store import Store
from twinlens.measure.distances import EUCLIDEAN_COMPARATORS, EuclideanComparison
from twinlens.measure.pairs import Comparison
from twinlens.model.stored import DESCRIPTION, GALLERY_MODELS, MODEL_FILES, read_stored_model
from twinlens.model.training_record import RECORD_FILE

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
        device: device of the model, as in `Matcher.load`.
        threads: threads of an embedding, as there.
        as_is: whether pictures are taken as they are by a model of cropped faces too.
    """

    def __init__(
        self,
        store: Store,
        device: str = "auto",
        threads: int | None = None,
        *,
        as_is: bool = False,
    ) -> None:
        self.store, self.device, self.threads, self.as_is = store, device, threads, as_is
        self._lock = threading.Lock()
        self._state: GalleryState | None = None
        self.place = store.place
        settings = read_settings(store.place, store.settings())
        store.check_files()
        self.dim = store.dim
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

        folder = Path(self.place) / GALLERY_MODELS / self.fingerprint
        if is_remote(self.place):
            # By place too, so that no store changes the model of another one's gallery.
            place = hashlib.blake2b(self.place.encode(), digest_size=8).hexdigest()
            name = f"{self.fingerprint}-{place}"
            folder = create_once(cache_folder() / GALLERY_MODELS / name, self._fetch_model)
        else:
            self.state()  # Says so if the gallery was rebuilt meanwhile.
            check_content(self.place)
        matcher = Matcher.load(folder, self.device, threads=self.threads)
        self._check_own(matcher.fingerprint, folder)
        stored, own = self.state().settings, model_settings(matcher)
        dim = matcher.settings.embedding
        if (stored.comparator, stored.scale, self.dim) != (own["comparator"], own["scale"], dim):
            raise GalleryError(
                f"the gallery {self.place} is damaged: it stores {self.dim} dimensions, "
                f"{stored.comparator} and scale {stored.scale:g}, but its model has {dim}, "
                f"{own['comparator']} and {own['scale']:g}. Restore it from a copy"
            )
        return matcher.as_is() if self.as_is else matcher

    def _fetch_model(self, part: Path) -> None:
        """Copy the model from an object store; what is no such model stays out of the cache."""
        folder = f"{GALLERY_MODELS}/{self.fingerprint}"
        for name in (RECORD_FILE, *MODEL_FILES):
            if name == DESCRIPTION or self.store.has_file(f"{folder}/{name}"):
                self.store.fetch_file(f"{folder}/{name}", part / name)
        try:
            fingerprint = read_stored_model(part).description.fingerprint
        except ModelError as error:
            reason = str(error).replace(str(part), self.fingerprint)
            raise GalleryError(f"the gallery {self.place} is damaged: {reason}") from error
        self._check_own(fingerprint, Path(GALLERY_MODELS) / self.fingerprint)

    def _check_own(self, fingerprint: str, folder: Path) -> None:
        if fingerprint != self.fingerprint:
            raise GalleryError(
                f"{folder} holds the model {fingerprint}, but the gallery {self.place} belongs to "
                f"the model {self.fingerprint}: put that model's files back"
            )

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
            raise NotEnrolledError(unknown_name("identity", identity[:80], names))

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

    def check_shape(self, emb_ND: NDArray[Any], fingerprint: str) -> None:
        """Check that embeddings are of the gallery's model, with shape (N, D).

        Raises:
            GalleryError: another model, or another shape.
        """
        if fingerprint != self.fingerprint:
            raise GalleryError(
                f"these embeddings belong to the model {one_line(str(fingerprint))}, but the "
                f"gallery {self.place} belongs to the model {self.fingerprint}: embed the pictures "
                "with the gallery's model, or change it with `twinlens gallery rebuild`"
            )
        if emb_ND.ndim != 2 or emb_ND.shape[1] != self.dim:
            raise GalleryError(f"embeddings must have shape (N, {self.dim}), found {emb_ND.shape}")

    def nearest(
        self, emb_D: NDArray[Any], k: int, state: GalleryState | None = None
    ) -> list[RankedIdentity]:
        """The k nearest identities to an embedding (D,), nearest first, without a verdict."""
        state = self.state() if state is None else state
        probe_D, metric, vetoes = self.probe(emb_D), state.metric, state.vetoes
        ranked = self.lookup.identities(
            probe_D, state.rule, k + len(vetoes), state.nprobes,
            in_memory=self.is_in_memory(state), metric=metric,
        )  # fmt: skip

        def is_vetoed(entry: RankedIdentity) -> bool:
            """Whether a picture that is not of the identity is nearer than the identity."""
            if entry.identity not in vetoes:
                return False
            dist_V = self.lookup.distances(vetoes[entry.identity], probe_D, metric)
            return bool(dist_V.min() < entry.distance)

        return [entry for entry in ranked if not is_vetoed(entry)][:k]

    def probe(self, emb_D: NDArray[Any]) -> Floats:
        """A checked and prepared query vector (D,)."""
        emb_1D = as_float32(emb_D).reshape(1, -1)
        self.check_shape(emb_1D, self.fingerprint)
        if not np.isfinite(emb_1D).all():
            raise GalleryError(f"embeddings must be finite, found {NOT_FINITE}: {BROKEN_MODEL}")
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
                f"run `twinlens gallery calibrate {self.place}`. Without one, `twinlens search "
                f"{self.place} PICTURE` ranks the nearest pictures"
            )
        # Each template is one more chance of a false match. Those of one identity are not
        # independent, so this is about the upper bound.
        fpir = -math.expm1(state.num_templates * math.log1p(-state.pairs.target_far))
        return Threshold(state.pairs.threshold, "pairs", fpir)
