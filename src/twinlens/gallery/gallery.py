"""Gallery: enrolled identities in one folder; identify a picture, or answer "nobody".

New identities need no training: a gallery embeds their pictures with the model whose copy it
carries. Small galleries are searched exactly, in memory; large ones by the index that `optimize`
builds. Torch is loaded when the first picture is embedded, and never for vectors.

Shapes: N pictures, M templates, D dimensions, K answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, overload

import numpy as np
from numpy.typing import NDArray

from twinlens.data.adapters import Data
from twinlens.errors import GalleryError
from twinlens.gallery import feedback, import_export, index, maintain, migrate, templates
from twinlens.gallery.conditions import explain_nested, filter_of
from twinlens.gallery.core import GalleryCore
from twinlens.gallery.decide import Threshold, decide
from twinlens.gallery.enrol import enrol_pictures
from twinlens.gallery.enrol_embeddings import enrol_embeddings
from twinlens.gallery.feedback_results import CorrectionList, FeedbackResult
from twinlens.gallery.info import GalleryInfo, describe
from twinlens.gallery.results import (
    EnrolResult,
    EraseReceipt,
    OptimizeResult,
    RebuildResult,
    SkippedPicture,
    TemplateList,
)
from twinlens.gallery.schema import read_metadata
from twinlens.gallery.search import Lookup, RankedIdentity
from twinlens.gallery.settings import GalleryState, model_files, new_settings
from twinlens.gallery.sharded import ShardedMethods, create_sharded, join, open_sharded
from twinlens.gallery.sources import (
    PictureFile,
    Source,
    check_identity,
    read_labelled,
    sources_of,
    text,
)
from twinlens.gallery.store import Store
from twinlens.match.answers import Hit, IdentifyAnswer
from twinlens.measure.open_set_calibration import OpenSetCalibration

if TYPE_CHECKING:
    from twinlens.match.matcher import Matcher, Model, Picture

__all__ = ["Gallery", "ShardedGallery"]

TEMPLATE_COLUMNS = ("identity", "path", "time", "metadata", "hash")
AT_ONCE = 256  # pictures whose pixels are in memory at the same time

Progress = Callable[[int, int], None]
Floats = NDArray[np.float32]


class Gallery:
    """Templates of enrolled identities.

    Several processes may use one at the same time; a `Gallery` may be shared by threads.

    Example:
        >>> import twinlens
        >>> gallery = twinlens.Gallery.create("people", "runs/faces")  # doctest: +SKIP
        >>> gallery.enrol_files("anna", ["anna1.jpg", "anna2.jpg"])  # doctest: +SKIP
        >>> gallery.identify("unknown.jpg").identity  # doctest: +SKIP
        'anna'

    Attributes:
        place: folder, or address in an object store.
        fingerprint: fingerprint of the model; vectors of another model are refused.
        dim: D.
    """

    def __init__(self, core: GalleryCore) -> None:
        self.core = core
        self.place, self.fingerprint, self.dim = core.place, core.fingerprint, core.dim

    @classmethod
    def create(
        cls,
        place: str | Path,
        model: Model,
        *,
        shards: int | None = None,
        options: Mapping[str, str] | None = None,
        device: str = "auto",
    ) -> Gallery:
        """Create an empty gallery, which carries a copy of the model.

        Args:
            place: new or empty folder, or an address such as `s3://bucket/faces`.
            model: model folder, run folder, or a loaded model.
            shards: number of galleries inside, over which identities are spread by their hash; all
                are queried as one. None for a single gallery.
            options: Lance's `storage_options` for the object store.
            device: as in `Matcher.load`.
        Raises:
            ModelError: no model.
            GalleryError: the place is not empty, or cannot be written.
        """
        from twinlens.match.matcher import Matcher

        matcher = Matcher.of(model, device)
        if shards is not None:
            return ShardedGallery(create_sharded(place, matcher, shards, options, device))
        dim = matcher.settings.embedding
        with model_files(matcher) as files:
            store = Store.create(place, dim, new_settings(matcher), files, options=options)
        return cls(GalleryCore(store, device))

    @classmethod
    def join(
        cls,
        place: str | Path,
        *,
        options: Mapping[str, str] | None = None,
        device: str = "auto",
    ) -> ShardedGallery:
        """Join the galleries inside a folder or bucket, to be queried as one by one threshold.

        They stay galleries of their own. Join again after one was added; a threshold found
        before stays, so calibrate again.

        Args:
            place: folder whose folders are galleries, or an address.
            options: Lance's `storage_options` for the object store.
            device: as in `Matcher.load`.
        Raises:
            GalleryError: no galleries inside, or of several models.
        """
        return ShardedGallery(join(place, options, device))

    @classmethod
    def open(
        cls,
        place: str | Path,
        *,
        options: Mapping[str, str] | None = None,
        device: str = "auto",
        threads: int | None = None,
        as_is: bool = False,
    ) -> Gallery:
        """Open an existing gallery.

        Args:
            place: folder of the gallery, or its address.
            options: Lance's `storage_options` for the object store.
            device: as in `Matcher.load`.
            threads: as in `Matcher.load`.
            as_is: take pictures as they are, although the model compares cropped faces.
        Raises:
            GalleryError: missing, damaged, or of a newer format.
        """
        store = Store.open(place, options=options)
        if store.settings().get("shards") is not None:
            return ShardedGallery(open_sharded(store, device, threads, as_is))
        return cls(GalleryCore(store, device, threads, as_is=as_is))

    def __repr__(self) -> str:
        return f"Gallery({self.place!r}, {len(self)} templates, model {self.fingerprint})"

    def __len__(self) -> int:
        return len(self.core)

    @property
    def store(self) -> Store:
        """The table of templates."""
        return self.core.store

    @property
    def lookup(self) -> Lookup:
        """Nearest-neighbour search over the templates."""
        return self.core.lookup

    @property
    def matcher(self) -> Matcher:
        """The gallery's own copy of the model.

        Raises:
            ModelError: the copy is damaged.
        """
        return self.core.matcher

    def state(self) -> GalleryState:
        """Settings and size of the newest version."""
        return self.core.state()

    def identities(self) -> dict[str, int]:
        """Names, sorted, with the number of their templates."""
        return self.core.identities()

    def templates(
        self,
        identity: str | None = None,
        *,
        where: str | None = None,
        offset: int = 0,
        limit: int | None = None,
    ) -> TemplateList:
        """The templates of one identity, or of all, by identity and path.

        Args:
            identity: an enrolled identity.
            where: condition as in `search`.
            offset: templates to leave out at the beginning.
            limit: number of templates after that, at most.
        Raises:
            GalleryError: no such identity, or an invalid condition.
        """
        return templates.templates(self.core, identity, where, offset, limit)

    def thumbnail(self, hash: str) -> bytes | None:
        """The small picture of a template, a JPEG; None if none was kept at its enrolment.

        Args:
            hash: hash of the template.
        Raises:
            GalleryError: no such template.
        """
        return templates.thumbnail(self.core, hash)

    def embedding(self, hash: str) -> Floats:
        """The embedding of a template, shape (D,).

        Args:
            hash: hash of the template.
        Raises:
            GalleryError: no such template.
        """
        return templates.embedding(self.core, hash)

    def info(self) -> GalleryInfo:
        """The gallery in numbers."""
        return describe(self.core)

    def prepared(self, emb_ND: Floats) -> Floats:
        """Embeddings as they are stored: of length 1 if the comparator compares directions."""
        return self.core.prepared(emb_ND)

    # --- enrolling ---

    def enrol(
        self,
        data: Data,
        *,
        root: str | Path | None = None,
        metadata: Mapping[str, Any] | None = None,
        keep_thumbnails: bool = False,
        min_quality: float | None = None,
        progress: Progress | None = None,
    ) -> EnrolResult:
        """Enrol labelled pictures: a folder of class folders, a manifest, a named set, or a table.

        Each batch is durable once it is written, so a killed run resumes where it stopped.
        Further columns of a manifest become metadata.

        Args:
            data: pictures of all splits; forgeries are skipped.
            root: folder of a named set's copy.
            metadata: metadata of every picture: text, numbers, booleans.
            keep_thumbnails: whether to store a small picture of each as well.
            min_quality: least quality of a picture, in [0, 1]; those below are skipped. None for no
                such gate.
            progress: callback with the pictures done and in all.
        Raises:
            DataError: nothing to read, or an unknown layout.
            GalleryError: the gallery cannot be written.
        """
        table = read_labelled(self.matcher, data, root)
        sources, skipped = sources_of(table, metadata or {})
        return self._enrol(sources, skipped, keep_thumbnails, min_quality, progress)

    def enrol_files(
        self,
        identity: str,
        files: PictureFile | Sequence[PictureFile],
        *,
        metadata: Mapping[str, Any] | None = None,
        keep_thumbnails: bool = False,
        min_quality: float | None = None,
        as_is: bool = False,
        progress: Progress | None = None,
    ) -> EnrolResult:
        """Enrol one picture file or several, all of one identity; the rest as in `enrol`.

        Args:
            identity: name of the identity.
            files: paths, or pairs of a name and the bytes of a file. The name takes the place of
                the path, and should be given once only.
            metadata: metadata of the pictures.
            keep_thumbnails: whether to store small pictures in the gallery.
            min_quality: least quality of a picture, in [0, 1]; None for no such gate.
            as_is: take pictures as they are, although the model compares cropped faces.
            progress: callback with the pictures done and in all.
        Raises:
            GalleryError: an empty name, or the gallery cannot be written.
        """
        identity = check_identity(identity)
        files = _as_list(files)
        sources = [Source.of_file(path, identity, metadata or {}) for path in files]
        return self._enrol(sources, [], keep_thumbnails, min_quality, progress, as_is)

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
    ) -> EnrolResult:
        """Enrol existing embeddings, 50,000 in a commit.

        A hash that is enrolled under another identity is skipped. If it has no path, it is
        reported by its row, from 1.

        Args:
            emb_ND: embeddings by the gallery's model, shape (N, D).
            identity: N names.
            fingerprint: fingerprint of the model that made them.
            path: N paths of the pictures; "" by default.
            hash: N unique hashes of the pictures, 32 hex digits each; those of each vector's
                bytes by default.
            metadata: N mappings.
            progress: callback with the rows done and in all.
        Raises:
            GalleryError: another model, unequal lengths, embeddings that are not finite or of
                length 0, empty names, hashes of another form; names the row. Rows of earlier
                commits stay enrolled.
        """
        return enrol_embeddings(
            self.core, emb_ND, identity, fingerprint, path, hash, metadata, progress
        )

    def _enrol(
        self,
        sources: Sequence[Source],
        skipped: list[SkippedPicture],
        keep_thumbnails: bool,
        min_quality: float | None,
        progress: Progress | None,
        as_is: bool = False,
    ) -> EnrolResult:
        maintain.finish(self.core)
        return enrol_pictures(
            self.core, sources, skipped, keep_thumbnails, min_quality, progress, as_is
        )

    # --- answering ---

    def embed(self, pictures: Picture | Sequence[Picture]) -> Floats:
        """Embeddings of pictures by the gallery's model, shape (N, D)."""
        return self.matcher.embed(pictures)

    @overload
    def identify(
        self, picture: Picture, *, k: int = 5, far: float | None = None,
        min_quality: float | None = None,
    ) -> IdentifyAnswer: ...  # fmt: skip

    @overload
    def identify(
        self, picture: list[Picture], *, k: int = 5, far: float | None = None,
        min_quality: float | None = None,
    ) -> list[IdentifyAnswer]: ...  # fmt: skip

    def identify(
        self,
        picture: Picture | list[Picture],
        *,
        k: int = 5,
        far: float | None = None,
        min_quality: float | None = None,
    ) -> IdentifyAnswer | list[IdentifyAnswer]:
        """Identify a picture, or answer "nobody"; of a list of pictures, each.

        Args:
            picture: path, bytes of a file, Pillow picture, array or tensor; or a list of them,
                which are embedded together (distances may differ by rounding).
            k: number of candidates to list.
            far: false positive identification rate; the calibration's by default.
            min_quality: least quality of the picture, in [0, 1]; None for no such gate.
        Returns:
            The answer; of a list, the answers in its order.
        Raises:
            CalibrationError: neither the gallery nor its model is calibrated, or not for `far`.
            ConfigError: a minimum outside [0, 1].
            PictureError: a file that cannot be read, or a quality below the minimum (failure to
                acquire).
        """
        self.threshold(far)  # Before the work.
        pictures = picture if isinstance(picture, list) else [picture]
        answers = [
            replace(self.identify_embedding(each.embedding, k=k, far=far),
                    quality=each.quality, domain=each.domain)
            for start in range(0, len(pictures), AT_ONCE)
            for each in self.matcher.acquire_all(pictures[start : start + AT_ONCE], min_quality)
        ]  # fmt: skip
        return answers if isinstance(picture, list) else answers[0]

    def identify_embedding(
        self, emb_D: NDArray[Any], *, k: int = 5, far: float | None = None
    ) -> IdentifyAnswer:
        """Identify an embedding of shape (D,) by the gallery's model; needs no torch."""
        _check_count(k)
        state = self.state()
        threshold = self.core.threshold(far, state)
        # The second one shows whether the first stands out.
        ranked = self.core.nearest(emb_D, max(min(k, state.num_templates), 2), state)
        return decide(ranked, k, threshold, state.open_set)

    def nearest(self, emb_D: NDArray[Any], k: int) -> list[RankedIdentity]:
        """The k nearest identities to an embedding (D,), nearest first, without a verdict."""
        return self.core.nearest(emb_D, k)

    def search(self, picture: Picture, *, k: int = 20, where: str | None = None) -> tuple[Hit, ...]:
        """The k enrolled pictures nearest to a picture.

        Args:
            picture: path, Pillow picture, array or tensor.
            k: number of hits.
            where: condition on `identity`, `path`, `time` and `metadata.KEY`, such as
                `identity LIKE 'a%' AND metadata.camera = 'north'`.
        Raises:
            GalleryError: an invalid condition.
            PictureError: a file that cannot be read.
        """
        return self.search_embedding(self.embed([picture])[0], k=k, where=where)

    def search_embedding(
        self, emb_D: NDArray[Any], *, k: int = 20, where: str | None = None
    ) -> tuple[Hit, ...]:
        """As `search`, for an embedding of shape (D,) by the gallery's model; needs no torch."""
        _check_count(k)
        state = self.state()
        condition = None if where is None else filter_of(where)
        try:
            rows = self.lookup.templates(
                self.core.probe(emb_D), max(1, min(k, state.num_templates)), state.nprobes,
                where=condition,
                in_memory=self.core.is_in_memory(state), columns=TEMPLATE_COLUMNS,
                metric=state.metric,
            )  # fmt: skip
        except GalleryError as error:
            raise explain_nested(where, error) from error
        return tuple(
            Hit(**{**row, "metadata": read_metadata(row["metadata"])}) for row in rows.to_pylist()
        )

    def threshold(self, far: float | None = None) -> Threshold:
        """The largest distance that identifies.

        Args:
            far: false positive identification rate; the calibration's by default.
        Raises:
            CalibrationError: no calibration, or none for that rate.
        """
        return self.core.threshold(far)

    # --- correcting ---

    def feedback(
        self,
        pictures: PictureFile | Sequence[PictureFile] = (),
        *,
        is_: str | None = None,
        is_not: str | None = None,
        same: Sequence[PictureFile] | None = None,
        different: Sequence[PictureFile] | None = None,
        csv: str | Path | None = None,
        progress: Progress | None = None,
    ) -> FeedbackResult:
        """Correct answers: templates, threshold and a small metric adapt, without training.

        A picture that is of an identity becomes its template. Of other pictures that are not
        enrolled, the embedding is kept with the gallery, and erased as templates are. The metric is
        applied only if it helps on held-out answers. The threshold moves by at most a quarter.

        Args:
            pictures: files for `is_` or `is_not`; a pair of a name and bytes may replace a path.
            is_: enrolled identity that the pictures are of.
            is_not: enrolled identity that the pictures are not of.
            same: two files of one identity.
            different: two files of different identities.
            csv: file with the column `picture` and one or more of `is, is_not, same_as,
                different_from`; paths are relative to its folder.
            progress: callback with the pictures done and in all.
        Raises:
            ConfigError: none or several kinds of corrections at once, or not two files for a pair.
            DataError: an unreadable CSV file.
            GalleryError: no such identity, or too many corrections of pictures that are no
                templates.
        """
        files = _as_list(pictures)
        requests = feedback.requests_of(files, is_, is_not, same, different, csv)
        return feedback.correct(self.core, requests, progress)

    def feedback_embeddings(
        self,
        emb_ND: NDArray[Any],
        kind: Sequence[str],
        identity: Sequence[str],
        *,
        fingerprint: str,
    ) -> FeedbackResult:
        """As `feedback`, for embeddings of shape (N, D) by the gallery's model; needs no torch.

        Args:
            emb_ND: embeddings.
            kind: N of "is" and "is-not".
            identity: N enrolled identities.
            fingerprint: fingerprint of the model that made them.
        Raises:
            GalleryError: another model, unequal lengths, no such identity or kind.
        """
        return feedback.correct_embeddings(self.core, emb_ND, kind, identity, fingerprint)

    def corrections(self) -> CorrectionList:
        """The corrections, by number, and what they changed."""
        return feedback.corrections(self.core)

    def undo_feedback(self, number: int) -> FeedbackResult:
        """Take a correction back, and erase what it stored; the rest is fitted again.

        A template that the correction added is erased; one that it moved or removed returns.

        Args:
            number: number of the correction in `corrections`.
        Raises:
            GalleryError: no such correction.
        """
        return feedback.undo(self.core, number)

    # --- maintaining ---

    def erase(self, identity: str) -> EraseReceipt:
        """Erase an identity, so that no file of the gallery holds anything of it.

        Outside of the gallery the identity may still be found; see `EraseReceipt.as_text`.

        Raises:
            GalleryError: no such identity, or the gallery cannot be written.
        """
        return maintain.erase(self.core, text(identity))

    def erase_templates(self, hashes: Sequence[str]) -> EraseReceipt:
        """Erase single templates, so that no file of the gallery holds anything of them.

        Corrections of their pictures go too, and those of an identity that loses all templates.

        Args:
            hashes: hashes of the templates.
        Raises:
            GalleryError: no such template, or the gallery cannot be written.
        """
        return maintain.erase_templates(self.core, list(hashes))

    def delete(self) -> None:
        """Delete the gallery with everything in it, its copy of the model included.

        Raises:
            GalleryError: in an object store, or its folder cannot be deleted.
        """
        self.store.destroy()

    def rename(self, old: str, new: str, *, merge: bool = False) -> int:
        """Rename an identity; returns the number of its templates.

        The old name may stay in older files until `optimize` or `erase`.

        Args:
            old: present name.
            new: new name.
            merge: whether to add the templates to `new` if it is enrolled already.
        Raises:
            GalleryError: no `old`, or `new` exists and `merge` is not set.
        """
        return maintain.rename(self.core, text(old), check_identity(new), merge)

    def optimize(
        self,
        *,
        partitions: int | None = None,
        target_recall: float = 0.95,
        progress: Progress | None = None,
    ) -> OptimizeResult:
        """Compact small files, build the index that a large gallery needs, and measure it.

        Args:
            partitions: partitions of the index, at most 1024; 0 for none; by size by default.
            target_recall: share of the true 10 nearest that the index has to find.
            progress: callback with the steps done and in all.
        Raises:
            GalleryError: the gallery cannot be written.
        """
        return index.optimize(self.core, partitions, target_recall, progress)

    def needs_index(self) -> bool:
        """Whether searching has become slow: too many templates outside memory and index."""
        return index.needs_index(self.core)

    def calibrate(
        self,
        data: Data | None = None,
        *,
        fpir: float = 0.01,
        rule: str = "auto",
        root: str | Path | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> OpenSetCalibration:
        """Find and store the threshold for this gallery at its present size.

        Args:
            data: labelled probes, mated and non-mated; by default the gallery's own templates, each
                left out in turn.
            fpir: false positive identification rate: the share of strangers identified.
            rule: fusion of an identity's templates, see `measure.fusion`; by default the rule with
                the highest TPIR at that rate.
            root: folder of a named set's copy.
            seed: random seed for probes and bootstrap.
            progress: callback with the probes done and in all.
        Raises:
            CalibrationError: too few non-mated probes for that rate.
            ConfigError: an unknown rule, or a negative seed.
            GalleryError: the gallery is empty, or cannot be written.
        """
        return maintain.calibrate(self.core, data, fpir, rule, root, seed, progress)

    def calibration_outgrown(self) -> str | None:
        """A warning if the gallery has far more identities than at its calibration, else None."""
        return maintain.calibration_outgrown(self.core)

    def training_overlap(self) -> str | None:
        """A warning if enrolled pictures were trained on, or if that is unknown, else None."""
        return maintain.training_overlap(self.core)

    def export(self, path: str | Path) -> int:
        """Write all templates to a Parquet file that only its owner can read; returns how many.

        Raises:
            DataError: the file cannot be written.
            GalleryError: the gallery cannot be read.
        """
        return import_export.export(self.core, Path(path))

    def import_file(self, path: str | Path, *, progress: Progress | None = None) -> EnrolResult:
        """Enrol the rows of a file from `export` or `twinlens embed`; forgeries are skipped.

        Raises:
            GalleryError: no such file, another model, missing or ill-typed columns, or an invalid
                value, with the number of its row. Rows imported before the error stay enrolled.
        """
        return import_export.import_file(self.core, Path(path), progress)

    def rebuild(
        self,
        model: Model,
        *,
        drop_missing: bool = False,
        device: str = "auto",
        progress: Progress | None = None,
    ) -> RebuildResult:
        """Embed all pictures again, with another model, from their stored paths.

        Every open `Gallery` of it must be opened again, this object included.

        Args:
            model: the new model.
            drop_missing: whether to drop templates whose picture is missing.
            device: as in `Matcher.load`.
            progress: callback with the pictures done and in all.
        Raises:
            GalleryError: pictures are missing or changed and `drop_missing` is not set; the gallery
                is unchanged.
        """
        from twinlens.match.matcher import Matcher

        matcher = Matcher.of(model, device)
        return migrate.rebuild(self.core, matcher, drop_missing, progress)


class ShardedGallery(ShardedMethods, Gallery):  # type: ignore[misc]
    """Galleries inside one folder or bucket, queried as one; see `Gallery` for the methods.

    Corrections, export and another model are for the parts, each of which is a gallery by itself.
    """


def _as_list(files: PictureFile | Sequence[PictureFile]) -> list[PictureFile]:
    if isinstance(files, str | Path):
        return [files]
    if isinstance(files, tuple) and len(files) == 2 and isinstance(files[1], bytes):
        return [(str(files[0]), files[1])]
    return list(cast("Sequence[PictureFile]", files))


def _check_count(k: int) -> None:
    if not isinstance(k, int | np.integer) or isinstance(k, bool):
        raise GalleryError(f"k must be a whole number of answers, found {k!r}")
    if k < 1:
        raise GalleryError(f"k must be at least 1, found {k}")
