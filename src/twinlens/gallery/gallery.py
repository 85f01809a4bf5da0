"""Gallery: known identities in one folder; who is this, or nobody of them?

New identities need no training: a gallery embeds their pictures with the model whose copy it
carries. Small galleries are searched exactly, in memory; large ones by the index that `optimize`
builds. Torch is loaded when the first picture is embedded, and not for vectors.

Shapes: N pictures, M templates, D dimensions, K answers.
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from twinlens.data.download import cache_folder, whole_folder
from twinlens.data.table import ImageTable
from twinlens.errors import CalibrationError, GalleryError, unknown_name
from twinlens.gallery import import_export as transfer
from twinlens.gallery import index as indexing
from twinlens.gallery import maintain as upkeep
from twinlens.gallery import migrate as rebuilding
from twinlens.gallery.decide import Threshold, decide
from twinlens.gallery.enrol import (
    Enrolled,
    Enrolment,
    Skipped,
    Source,
    check_identity,
    digest,
    make_rows,
    read_labelled,
    sources_of,
    text,
)
from twinlens.gallery.location import is_remote
from twinlens.gallery.search import Lookup, Near
from twinlens.gallery.settings import MODEL_FILES, State, model_files, new_settings, read_state
from twinlens.gallery.snapshot import vectors
from twinlens.gallery.store import Store, quoted
from twinlens.match.answers import Hit, IdentifyAnswer
from twinlens.measure.distances import PLAIN, PlainComparison
from twinlens.measure.open_set_calibration import OpenSetCalibration
from twinlens.measure.pairs import Comparison

if TYPE_CHECKING:
    from twinlens.match.matcher import Matcher, Picture

__all__ = ["Gallery"]

AT_ONCE = 50_000
"""Embeddings that one commit takes."""

MOST_LATE = 0.2
"""The share of templates younger than the index from which it is worth building anew."""

FOUND_COLUMNS = ("path", "identity", "time", "metadata", "hash")
KEY = re.compile(r"""\b(?i:metadata)\.(?:(\w+)|"([^"']+)")""")
IN_QUOTES = re.compile(r"('(?:[^']|'')*')")

Progress = Callable[[int, int], None]
Floats = NDArray[np.float32]


class Gallery:
    """Templates of known identities.

    Several processes may use one at the same time; a `Gallery` may be shared by threads.

    Attributes:
        place: the folder, or the address in an object store.
        fingerprint: of the model; vectors of another one are refused.
        dim: D.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._state: State | None = None
        settings = store.settings()
        self.place = store.place
        self.fingerprint = str(settings.get("fingerprint"))
        self.state()
        self.dim = store.dim
        name = settings["comparator"]
        self._plain = PlainComparison(name, settings["scale"]) if name in PLAIN else None
        self._lookup = Lookup(store, self._plain, self._learned)

    @classmethod
    def create(
        cls,
        place: str | Path,
        model: str | Path | Matcher,
        *,
        options: Mapping[str, str] | None = None,
    ) -> Gallery:
        """A new, empty gallery, which carries a copy of the model.

        Args:
            place: a folder that is not there or is empty, or an address such as `s3://bucket/faces`.
            model: a model's folder or a run's, or a loaded one.
            options: how to reach the object store, Lance's `storage_options`.
        Raises:
            ModelError: no model.
            GalleryError: something is there already, or it cannot be written.
        """
        from twinlens.match.matcher import Matcher

        matcher = model if isinstance(model, Matcher) else Matcher.load(model)
        dim = matcher.bundle.encoder.model_settings.embedding
        files = model_files(matcher)
        store = Store.create(place, dim, new_settings(matcher), files, options=options)
        return cls(store)

    @classmethod
    def open(cls, place: str | Path, *, options: Mapping[str, str] | None = None) -> Gallery:
        """A gallery that is there.

        Raises:
            GalleryError: it is not, is damaged, or is of a newer format.
        """
        return cls(Store.open(place, options=options))

    def __repr__(self) -> str:
        return f"Gallery({self.place!r}, {len(self)} templates, model {self.fingerprint})"

    def __len__(self) -> int:
        return self.state().num_templates

    @property
    def store(self) -> Store:
        """The table of templates."""
        return self._store

    @property
    def lookup(self) -> Lookup:
        """What finds the nearest."""
        return self._lookup

    @cached_property
    def matcher(self) -> Matcher:
        """The gallery's own copy of the model.

        Raises:
            ModelError: it is damaged.
        """
        from twinlens.match.matcher import Matcher

        folder = f"models/{self.fingerprint}"

        def fetch(part: Path) -> None:
            for name in MODEL_FILES:
                self._store.fetch_file(f"{folder}/{name}", part / name)

        local = Path(self.place) / folder
        if is_remote(self.place):
            local = whole_folder(cache_folder() / folder, fetch)
        found = Matcher.load(local)
        if found.fingerprint != self.fingerprint:
            raise GalleryError(
                f"{local} holds the model {found.fingerprint}, and the gallery {self.place} is of "
                f"the model {self.fingerprint}: put that model's files back"
            )
        return found

    def state(self) -> State:
        """What the newest version says of itself."""
        with self._lock:
            version = self._store.version
            if self._state is None or self._state.version != version:
                found = read_state(self._store)
                self.of_this_model(found.settings)
                self._state = found
            return self._state

    def of_this_model(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The settings, if they are of the model that the gallery was opened with.

        Raises:
            GalleryError: it was rebuilt with another one since.
        """
        if settings["fingerprint"] != self.fingerprint:
            raise GalleryError(
                f"the gallery {self.place} has got another model since it was opened "
                f"({settings['fingerprint']}, and not {self.fingerprint}): open it again"
            )
        return dict(settings)

    def identities(self) -> dict[str, int]:
        """Names, sorted, with the number of their templates."""
        column = self._store.find(columns=["identity"])["identity"]
        counts = column.value_counts().to_pylist()
        return dict(sorted((one["values"], one["counts"]) for one in counts))

    def info(self) -> upkeep.GalleryInfo:
        """What there is, in numbers."""
        return upkeep.describe(self)

    # --- enrolling ---

    def enrol(
        self,
        data: str | Path | ImageTable,
        *,
        root: str | Path | None = None,
        metadata: Mapping[str, Any] | None = None,
        keep_thumbnails: bool = False,
        progress: Progress | None = None,
    ) -> Enrolled:
        """Enrol labelled pictures: a folder of class folders, a manifest, a named set, or a table.

        Each batch is safe once it is written, so that a run which was killed goes on where it was.
        A manifest's further columns are kept as metadata.

        Args:
            data: the pictures, all splits; forgeries are skipped.
            root: where the copy of a named set lies.
            metadata: said of each picture; text, numbers, truth.
            keep_thumbnails: store a small picture of each as well.
            progress: called with the pictures done and all.
        Raises:
            DataError: nothing there, or nothing that is understood.
            GalleryError: the gallery cannot be written.
        """
        table = read_labelled(self.matcher, data, root)
        sources, skipped = sources_of(table, metadata or {})
        return self._enrol(sources, skipped, keep_thumbnails, progress)

    def enrol_files(
        self,
        identity: str,
        files: str | Path | Sequence[str | Path],
        *,
        metadata: Mapping[str, Any] | None = None,
        keep_thumbnails: bool = False,
        progress: Progress | None = None,
    ) -> Enrolled:
        """Enrol picture files of one identity, or a single one.

        Raises:
            GalleryError: an empty name, or the gallery cannot be written.
        """
        identity = check_identity(identity)
        files = [files] if isinstance(files, str | Path) else files
        sources = [Source.of_file(path, identity, metadata or {}) for path in files]
        return self._enrol(sources, [], keep_thumbnails, progress)

    def enrol_embeddings(
        self,
        emb_ND: NDArray[Any],
        identity: Sequence[str],
        *,
        fingerprint: str,
        path: Sequence[str] | None = None,
        hash: Sequence[str] | None = None,
        metadata: Sequence[Mapping[str, Any]] | None = None,
        progress: Progress | None = None,
    ) -> Enrolled:
        """Enrol vectors that are there already, 50,000 in a commit.

        A hash that is enrolled as somebody else's is skipped, as such a picture would be; where
        it has no path, it is named by its row, from 1.

        Args:
            emb_ND: embeddings by the gallery's model, shape (N, D).
            identity: N names.
            fingerprint: of the model that made them.
            path: where the pictures are; "" by default.
            hash: what tells the pictures apart; that of each vector's bytes by default.
            metadata: said of each.
            progress: called with the rows done and all.
        Raises:
            GalleryError: another model's, other lengths, numbers that are not finite, empty names.
        """
        num, arrivals = len(emb_ND), transfer.Arrivals(self)
        for start in range(0, num, AT_ONCE):
            part = slice(start, start + AT_ONCE)
            rows = self.rows_of_embeddings(
                emb_ND[part],
                identity[part],
                fingerprint,
                None if path is None else path[part],
                None if hash is None else hash[part],
                None if metadata is None else metadata[part],
            )
            arrivals.add(rows)
            if progress is not None:
                progress(min(start + AT_ONCE, num), num)
        return arrivals.enrolled()

    def rows_of_embeddings(
        self,
        emb_ND: NDArray[Any],
        identity: Sequence[str],
        fingerprint: str,
        path: Sequence[str] | None = None,
        hash: Sequence[str] | None = None,
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> pa.Table:
        """Rows of the store for vectors that are there already, see `enrol_embeddings`."""
        emb = np.ascontiguousarray(emb_ND, dtype=np.float32)
        num = len(emb)
        self._check_vectors(emb, fingerprint)
        names = [check_identity(name) for name in identity]
        path = [""] * num if path is None else path
        hash = [digest(row.tobytes()) for row in emb] if hash is None else hash
        metadata = [{}] * num if metadata is None else metadata
        if not num == len(names) == len(path) == len(hash) == len(metadata):
            raise GalleryError(
                f"found {num} embeddings, {len(names)} identities, {len(path)} paths, {len(hash)} "
                f"hashes and {len(metadata)} metadata: as many of each are needed"
            )
        return make_rows(self.prepared(emb), names, path, hash, metadata)

    def prepared(self, emb_ND: Floats) -> Floats:
        """Embeddings as they are stored: of length 1 where only directions are compared."""
        return emb_ND if self._plain is None else self._plain.prepared(emb_ND)

    def embed(self, pictures: Picture | Sequence[Picture]) -> Floats:
        """Embeddings of pictures by the gallery's model, shape (N, D)."""
        found: Floats = self.matcher.embed(pictures)
        return found

    def owners(self, hashes: Sequence[str]) -> dict[str, str]:
        """Whose the enrolled ones of some hashes are."""
        if not hashes:
            return {}
        where = f"hash IN ({', '.join(map(quoted, hashes))})"
        found = self._store.find(where, columns=["hash", "identity"])
        return dict(zip(found["hash"].to_pylist(), found["identity"].to_pylist(), strict=True))

    def enrolment(self, *, keep_thumbnails: bool = False) -> Enrolment:
        """A run over pictures, which makes rows of those that are not enrolled."""
        from twinlens.model.encoder import embed_pixels

        encoder = self.matcher.bundle.encoder
        return Enrolment(
            self.matcher, self.owners, lambda pixels: self.prepared(embed_pixels(encoder, pixels)),
            keep_thumbnails=keep_thumbnails,
        )  # fmt: skip

    def insert(self, rows: pa.Table) -> int:
        """Add rows of this gallery's model, but for those whose hash is there; returns how many."""
        return self._store.insert(rows, expected={"fingerprint": self.fingerprint})

    def _enrol(
        self,
        sources: Sequence[Source],
        skipped: list[Skipped],
        keep_thumbnails: bool,
        progress: Progress | None,
    ) -> Enrolled:
        upkeep.finish(self)
        run = self.enrolment(keep_thumbnails=keep_thumbnails)
        num_new = num_rows = 0
        for rows in run.rows(sources, progress):
            self._check_vectors(vectors(rows["vector"]), self.fingerprint)
            num_rows += len(rows)
            num_new += self.insert(rows)
        # What another writer enrolled meanwhile is known as well.
        known = run.num_known + num_rows - num_new
        return Enrolled(num_new, known, (*skipped, *run.skipped), len(run.identities))

    def _check_vectors(self, emb_ND: Floats, fingerprint: str) -> None:
        if fingerprint != self.fingerprint:
            raise GalleryError(
                f"these embeddings are of the model {fingerprint}, and the gallery {self.place} "
                f"is of the model {self.fingerprint}: embed the pictures with the gallery's model, "
                "or give the gallery the other one with `twinlens gallery rebuild`"
            )
        if emb_ND.ndim != 2 or emb_ND.shape[1] != self.dim:
            raise GalleryError(
                f"embeddings of shape {emb_ND.shape} were given; (N, {self.dim}) is needed"
            )
        if not np.isfinite(emb_ND).all():
            raise GalleryError("some embeddings are not finite numbers: the model is broken")

    # --- answering ---

    def identify(self, picture: Picture, *, k: int = 5, far: float | None = None) -> IdentifyAnswer:
        """Who a picture shows, or nobody.

        Args:
            picture: a path, a Pillow picture, an array or a tensor.
            k: candidates to list.
            far: the share of strangers that may be taken for somebody (the false positive
                identification rate); that of the calibration by default.
        Raises:
            CalibrationError: neither the gallery nor its model is calibrated, or `far` is one that
                the calibration cannot give.
            PictureError: a file that cannot be read.
        """
        self.threshold(far)  # Before the work.
        return self.identify_embedding(self.embed([picture])[0], k=k, far=far)

    def identify_embedding(
        self, emb_D: NDArray[Any], *, k: int = 5, far: float | None = None
    ) -> IdentifyAnswer:
        """As `identify`, for an embedding of shape (D,) by the gallery's model; without torch."""
        _check_count(k)
        state = self.state()
        threshold = self._threshold(state, far)
        # The second one is needed to see whether the first stands out.
        near = self._nearest(state, emb_D, max(k, 2))
        return decide(near, k, threshold, state.open_set)

    def nearest(self, emb_D: NDArray[Any], k: int) -> list[Near]:
        """The k identities nearest to an embedding (D,), best first, without a verdict."""
        return self._nearest(self.state(), emb_D, k)

    def _nearest(self, state: State, emb_D: NDArray[Any], k: int) -> list[Near]:
        return self._lookup.identities(
            self._probe(emb_D), state.rule, k, state.nprobes, in_memory=self.is_in_memory(state)
        )

    def search(self, picture: Picture, *, k: int = 20, where: str | None = None) -> tuple[Hit, ...]:
        """The enrolled pictures that are nearest to one.

        Args:
            picture: as for `identify`.
            k: how many.
            where: a condition in SQL on `identity`, `path`, `time` and `metadata.KEY`, such as
                `identity LIKE 'a%' AND metadata.camera = 'north'`.
        Raises:
            GalleryError: a condition that is not understood.
            PictureError: a file that cannot be read.
        """
        return self.search_embedding(self.embed([picture])[0], k=k, where=where)

    def search_embedding(
        self, emb_D: NDArray[Any], *, k: int = 20, where: str | None = None
    ) -> tuple[Hit, ...]:
        """As `search`, for an embedding of shape (D,) by the gallery's model; without torch."""
        _check_count(k)
        state = self.state()
        condition = None if where is None else condition_of(self._store, where)
        try:
            found = self._lookup.templates(
                self._probe(emb_D), k, state.nprobes, where=condition,
                in_memory=self.is_in_memory(state), columns=FOUND_COLUMNS,
            )  # fmt: skip
        except GalleryError as error:
            if "Cast error: " not in str(error):
                raise
            reason = str(error).rpartition("Cast error: ")[2]
            raise GalleryError(
                f"the condition {where!r} compares a number with metadata that is none ({reason}): "
                "write it as text, such as metadata.room = '3', or with decimals, such as > 3.0"
            ) from error
        return tuple(
            Hit(**{**row, "metadata": json.loads(row["metadata"])}) for row in found.to_pylist()
        )

    def threshold(self, far: float | None = None) -> Threshold:
        """Beyond which distance an answer is "nobody".

        Args:
            far: the share of strangers that may be taken for somebody; the calibration's if None.
        Raises:
            CalibrationError: there is none, or none for that share.
        """
        return self._threshold(self.state(), far)

    def _threshold(self, state: State, far: float | None) -> Threshold:
        if state.open_set is not None:
            value = state.open_set.threshold if far is None else state.open_set.threshold_at(far)
            return Threshold(value, "gallery", state.open_set.target_fpir if far is None else far)
        if far is not None or state.pairs is None:
            which = "" if far is None else f" for {far:g}"
            raise CalibrationError(
                f"the gallery {self.place} has no threshold{which} yet, so no distance means "
                f"somebody: run `twinlens gallery calibrate {self.place}`"
            )
        # Each template is one more chance to be taken for somebody, though those of one identity
        # are not independent: this is about the most that is to be expected.
        expected = -math.expm1(state.num_templates * math.log1p(-state.pairs.target_far))
        return Threshold(state.pairs.threshold, "pairs", expected)

    # --- keeping ---

    def erase(self, identity: str) -> upkeep.Receipt:
        """Remove an identity, so that no file of the gallery holds anything of it.

        Raises:
            GalleryError: there is no such identity, or the gallery cannot be written.
        """
        return upkeep.erase(self, text(identity))

    def rename(self, old: str, new: str, *, merge: bool = False) -> int:
        """Give an identity another name; returns the number of its templates.

        The old name may stay in older files until `optimize` or `erase`.

        Args:
            old: the name that it has.
            new: the name that it gets.
            merge: whether `new` may be there already, and get these templates too.
        Raises:
            GalleryError: there is no `old`, or there is a `new` and `merge` is not set.
        """
        old, new = text(old), check_identity(new)
        if old == new:
            num = self._store.count(f"identity = {quoted(old)}")
        else:
            num = self._store.rename(old, new, merge=merge)
        if not num:
            self.require(old)
        return num

    def require(self, identity: str) -> None:
        """Refuse a name that is not there.

        Raises:
            GalleryError: with names that are like it.
        """
        if not self._store.count(f"identity = {quoted(identity)}"):
            names = [name[:80] for name in self.identities()]
            raise GalleryError(unknown_name("identity", identity[:80], names))

    def optimize(
        self,
        *,
        partitions: int | None = None,
        target_recall: float = 0.95,
        progress: Progress | None = None,
    ) -> indexing.Optimized:
        """Write small files together, build the index that a large gallery needs, and measure it.

        Args:
            partitions: of the index, at most 256; chosen by the size by default. 0 for none.
            target_recall: the least share of the true 10 nearest that the index has to find.
            progress: called with the steps done and all.
        Raises:
            GalleryError: the gallery cannot be written.
        """
        return indexing.optimize(self, partitions, target_recall, progress)

    def calibrate(
        self,
        data: str | Path | ImageTable | None = None,
        *,
        fpir: float = 0.01,
        rule: str = "auto",
        root: str | Path | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> OpenSetCalibration:
        """Find the threshold beyond which an answer is "nobody", for this gallery and its size.

        Args:
            data: labelled pictures to ask about, some of enrolled identities and some of
                strangers; by default the gallery's own templates, each left out in turn.
            fpir: the share of strangers that may be taken for somebody.
            rule: how the templates of an identity are fused, see `measure.fusion`; by default the
                rule that recognises most at that rate.
            root: where the copy of a named set lies.
            seed: draws probes and replicates.
            progress: called with the probes done and all.
        Raises:
            CalibrationError: too few strangers for that rate.
            ConfigError: an unknown rule, or a seed below 0.
            GalleryError: the gallery is empty, or cannot be written.
        """
        found = upkeep.calibrate(self, data, fpir, rule, root, seed, progress)
        self._store.change_settings(
            lambda old: self.of_this_model(old) | {"open_set": found.as_json()}
        )
        return found

    def export(self, path: str | Path) -> int:
        """Write all templates to a Parquet file; returns how many.

        Raises:
            DataError: the file cannot be written.
            GalleryError: the gallery cannot be read.
        """
        return transfer.export(self, Path(path))

    def import_file(self, path: str | Path, *, progress: Progress | None = None) -> Enrolled:
        """Enrol the rows of a file that `export` or `twinlens embed` wrote; forgeries are skipped.

        Raises:
            GalleryError: no such file, another model's, or columns that are missing or hold what
                is not understood. What was read before stays enrolled.
        """
        return transfer.import_file(self, Path(path), progress)

    def rebuild(
        self,
        model: str | Path | Matcher,
        *,
        drop_missing: bool = False,
        progress: Progress | None = None,
    ) -> rebuilding.Rebuilt:
        """Embed all pictures again, with another model, from the paths that are stored.

        Whoever has the gallery open has to open it again, this object too.

        Args:
            model: the new one.
            drop_missing: whether templates whose picture is gone may be left out.
            progress: called with the pictures done and all.
        Raises:
            GalleryError: pictures are missing or were changed and `drop_missing` is not set; the
                gallery is as before.
        """
        return rebuilding.rebuild(self, model, drop_missing, progress)

    def _learned(self) -> Comparison:
        return self.matcher.comparison

    def _probe(self, emb_D: NDArray[Any]) -> Floats:
        emb_1D = np.asarray(emb_D, dtype=np.float32).reshape(1, -1)
        self._check_vectors(emb_1D, self.fingerprint)
        prepared: Floats = self.prepared(emb_1D)[0]
        return prepared

    def wants_index(self) -> bool:
        """Whether so much is neither in memory nor in the index that searching has become slow."""
        state = self.state()
        if self._lookup.fits_memory(state.num_templates):
            return False
        if indexing.fitting(self._store.num_partitions(), state.index) is None:
            return True
        late = self._store.num_unindexed()
        return late is None or late > MOST_LATE * state.num_templates

    def is_in_memory(self, state: State) -> bool:
        """Whether templates are compared exactly, in memory."""
        return state.index is None and self._lookup.fits_memory(state.num_templates)


def condition_of(store: Store, where: str) -> str:
    """A user's condition as Lance understands it: `metadata.KEY` is a value in a JSON column.

    A KEY of more than letters, digits and _ is written in double quotes: `metadata."my key"`.

    Raises:
        GalleryError: it is not understood.
    """
    parts = IN_QUOTES.split(where)  # Every other one is in quotes.
    parts[::2] = [KEY.sub(r"json_get_string(metadata, '\1\2')", part) for part in parts[::2]]
    condition = "".join(parts)
    try:
        store.find(condition, columns=["hash"], limit=0)
    except GalleryError as error:
        reason = str(error).split(": ", 1)[-1]
        raise GalleryError(
            f"the condition {where!r} is not understood: it is SQL on identity, path, time and "
            f"metadata.KEY, such as \"identity = 'anna' AND metadata.year > 2020\" ({reason:.200})"
        ) from error
    return condition


def _check_count(k: int) -> None:
    if not isinstance(k, int | np.integer):
        raise GalleryError(f"k is {k!r}: a whole number is needed, of answers to give")
    if k < 1:
        raise GalleryError(f"k is {k}: at least 1 answer can be asked for")
