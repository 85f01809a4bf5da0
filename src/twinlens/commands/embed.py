"""`twinlens embed`: a file of embeddings; and embeddings of single pictures."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from twinlens.commands.embed_rows import FINGERPRINT, EmbeddingWork, embed_rows, skipped_rows
from twinlens.commands.embedding_files import check_embedding_file, write_embeddings
from twinlens.commands.selection import read_pictures
from twinlens.data.adapters import Data
from twinlens.data.pixels import DecodeJob
from twinlens.data.quality import PictureQuality
from twinlens.data.table import ImageTable
from twinlens.errors import ConfigError, DataError, PictureError, unknown_name
from twinlens.face.faces_of import FacePlace
from twinlens.face.marks import settings_of_table
from twinlens.machine import num_threads
from twinlens.match.answers import require_acquired
from twinlens.match.matcher import Matcher, Model, Picture
from twinlens.measure.domain import DomainCheck
from twinlens.progress import Progress, console_log
from twinlens.scale.parts import Part, PartFolder, make_parts
from twinlens.scale.ray_engine import on_ray
from twinlens.scale.workers import in_processes

__all__ = ["Embedding", "EmbeddingResult", "embed", "embed_pictures"]

log = logging.getLogger("twinlens")

ENGINES = ("processes", "ray")


@dataclass(frozen=True, eq=False)
class Embedding:
    """The embedding of one picture.

    Attributes:
        picture: its name.
        embedding: shape (D,); None for a failure to acquire.
        quality: quality of the picture; None for a failure to acquire.
        domain: whether it is like the model's calibration pictures; None if unknown.
        error: reason of a picture that is unreadable or below the minimum of quality.
        face: place of the embedded face; None for a model of other pictures.
    """

    picture: str
    embedding: NDArray[np.float32] | None
    quality: PictureQuality | None = None
    domain: DomainCheck | None = None
    error: str | None = None
    face: FacePlace | None = None

    def as_json(self) -> dict[str, Any]:
        """The embedding with quality, domain and `face`; or `picture` and `error` alone."""
        if self.embedding is None or self.quality is None:
            return {"picture": self.picture, "error": self.error}
        domain = DomainCheck.as_json(None if self.domain is None else [self.domain])
        face = {} if self.face is None else {"face": asdict(self.face)}
        return {"picture": self.picture, "embedding": self.embedding.tolist(),
                "quality": asdict(self.quality), **domain, **face}  # fmt: skip


@dataclass(frozen=True, eq=False)
class EmbeddingResult:
    """The embeddings of pictures by one model.

    Attributes:
        fingerprint: fingerprint of the model; only embeddings of equal ones can be compared.
        dim: D.
        embeddings: one for each picture, in their order; of a model of cropped faces one for each
            face.
    """

    fingerprint: str
    dim: int
    embeddings: tuple[Embedding, ...]

    def require_some(self) -> None:
        """Refuse a result in which no picture could be read.

        Raises:
            PictureError: the only picture cannot be read.
            DataError: none of several can.
        """
        require_acquired([(row.picture, row.error) for row in self.embeddings])

    def as_json(self) -> dict[str, Any]:
        """The model, the embeddings, and the number of failures to acquire, as plain data."""
        return {
            "fingerprint": self.fingerprint,
            "dim": self.dim,
            "embeddings": [row.as_json() for row in self.embeddings],
            "num_failed": sum(row.embedding is None for row in self.embeddings),
        }


def embed_pictures(
    matcher: Matcher,
    pictures: Sequence[tuple[str, Picture]],
    *,
    min_quality: float | None = None,
) -> EmbeddingResult:
    """Embed pictures one by one; an unreadable one does not stop the others.

    Args:
        matcher: a loaded model.
        pictures: names for the answers, and pictures.
        min_quality: least quality of a picture, in [0, 1]; None for no such gate.
    Raises:
        ConfigError: a minimum outside [0, 1].
    """
    embeddings = []
    for name, picture in pictures:
        try:
            faces = matcher.faces_or_whole(picture)
            acquired = matcher.acquire_all([face for face, _ in faces], min_quality)
        except PictureError as error:
            embeddings.append(Embedding(name, None, error=error.reason))
            continue
        embeddings += [
            Embedding(name, one.embedding, one.quality, one.domain, face=place)
            for one, (_, place) in zip(acquired, faces, strict=True)
        ]
    return EmbeddingResult(matcher.fingerprint, matcher.settings.embedding, tuple(embeddings))


def embed(
    model: Model,
    data: Data,
    *,
    out: str | Path,
    root: str | Path | None = None,
    as_is: bool = False,
    device: str = "auto",
    workers: int | None = None,
    engine: str = "processes",
    ray_address: str | None = None,
    quiet: bool = False,
) -> int:
    """Write the embedding of every picture to a file, with its quality.

    Its columns are path, identity ("" if unknown), forged, embedding, quality (the score of
    `data.quality`) and domain_score (of `measure.domain`, above 1 for a picture unlike the
    calibration pictures; null if unknown). The ending of the file sets the format:

    - .parquet: with the model's fingerprint as metadata; a gallery can import it.
    - .lance: the same as a Lance table, a folder, for very many pictures.
    - .csv: columns `e0` to `e{D-1}` in place of `embedding`.
    - .npy: float32 embeddings, shape (N, D); the other columns lie beside it in `OUT.rows.csv`, in
      the same order.

    More than a few hundred pictures are embedded in parts, which lie in the folder `OUT.parts`
    until all are there. After an error or a kill the same command embeds those that are missing.
    The file does not depend on the number of workers.

    Args:
        model: folder of a model or of a run, or a loaded model.
        data: a folder, a manifest, the name of a set, or other data; all splits. A folder needs no
            class folders.
        out: the file, which only its owner can read.
        root: folder of a named set's local copy.
        as_is: take pictures as they are, although the model compares cropped faces. Otherwise it
            embeds each face of a photograph, and the columns face, left, top, right and bottom
            have their places.
        device: device of the embeddings, as in `twinlens.load`.
        workers: number of processes; by default 1, or with Ray one for each GPU of the cluster if
            `device` is not "cpu", else one for each core.
        engine: "processes" of this machine, or "ray": those of a Ray cluster, which must reach the
            pictures by the same paths. It gets the model from here.
        ray_address: address of the cluster; by default that of the environment variable
            RAY_ADDRESS, else Ray is started on this machine.
        quiet: log warnings only.
    Returns:
        The number of rows.
    Raises:
        ConfigError: no such engine, an address without Ray, or no positive number of workers.
        DataError: pictures that cannot be read, a file that cannot be written, another ending, or
            workers that die again and again.
        MissingExtraError: Ray is not installed.

    Example:
        >>> twinlens.embed("runs/photos", "photos/", out="photos.parquet")  # doctest: +SKIP
        4096
    """
    check_embedding_file(out)
    if engine not in ENGINES:
        raise ConfigError(unknown_name("engine", engine, ENGINES))
    if ray_address is not None and engine != "ray":
        raise ConfigError(f"the address {ray_address} of a Ray cluster needs the engine ray")
    if workers is not None and workers < 1:
        raise ConfigError(f"workers must be at least 1, found {workers}")
    with console_log(quiet):
        matcher = Matcher.of(model, device)
        matcher = matcher.as_is() if as_is else matcher
        table = read_pictures(matcher, data, root)
        crop = settings_of_table(table, max_pixels=matcher.max_pixels)
        photographs = matcher.face is not None and crop is None
        model_facts = matcher.stored.description.model_dump_json()  # Scores depend on calibration.
        parts = make_parts(table, model_facts, as_is, photographs)
        if len(parts) == 1 and engine == "processes":  # Nothing to resume.
            progress = Progress("embedding")
            rows = embed_rows(matcher, table, photographs, progress)
            progress.close()
            num_rows = _check_results(matcher, table, photographs, parts, [rows])
            _write(out, [rows], num_rows)
            return num_rows
        results: Generator[tuple[Part, pa.Table], None, None]
        with PartFolder.opened(Path(f"{out}.parts"), parts) as kept, _saying_kept(kept):
            progress, missing = Progress("embedding"), kept.missing()
            done, total = 0, sum(map(len, missing))
            if total < len(table):
                log.info("%d of %d pictures are embedded already", len(table) - total, len(table))
            if engine == "ray":
                work = EmbeddingWork.of(matcher, device, photographs, 1, is_elsewhere=True)
                results = on_ray(
                    work, table, missing, workers, ray_address, use_gpus=device != "cpu"
                )
            elif workers is None or workers == 1:
                results = _in_this_process(matcher, table, missing, photographs, progress)
            else:
                threads = max(1, num_threads() // workers)
                work = EmbeddingWork.of(matcher, device, photographs, threads)
                results = in_processes(work, table, missing, workers)
            with closing(progress), closing(results):
                for part, rows in results:
                    kept.write(part, rows)
                    done += len(part)
                    progress(done, total)
            paths = kept.results(["path"])
            num_rows = _check_results(matcher, table, photographs, parts, paths)
            _write(out, kept.results(), num_rows)
        return num_rows


def _write(out: str | Path, results: Iterable[pa.Table], num_rows: int) -> None:
    key = FINGERPRINT.encode()
    plain = (rows.replace_schema_metadata({key: rows.schema.metadata[key]}) for rows in results)
    write_embeddings(out, plain, num_rows)


@contextmanager
def _saying_kept(kept: PartFolder) -> Iterator[None]:
    """After an error, say that the same command goes on."""
    try:
        yield
    except BaseException:
        if num := len(kept.parts) - len(kept.missing()):
            log.warning("%d of %d parts are kept in %s; the same command embeds the rest",
                        num, len(kept.parts), kept.folder)  # fmt: skip
        raise


def _in_this_process(
    matcher: Matcher, table: ImageTable, parts: Sequence[Part], photographs: bool, show: Progress
) -> Generator[tuple[Part, pa.Table], None, None]:
    done, total = 0, sum(map(len, parts))
    for part in parts:

        def progress(num: int, _: int, start: int = done) -> None:
            show(start + num, total)

        yield part, embed_rows(matcher, part.of(table), photographs, progress)
        done += len(part)


def _check_results(
    matcher: Matcher,
    table: ImageTable,
    photographs: bool,
    parts: Sequence[Part],
    results: Iterable[pa.Table],
) -> int:
    """The number of rows of all parts; names the unreadable pictures.

    Raises:
        DataError: too many pictures are unreadable, or no face was found in any.
    """
    num_rows, with_faces, skipped = 0, 0, list[tuple[int, str]]()
    for part, rows in zip(parts, results, strict=True):
        num_rows += len(rows)
        with_faces += len(set(rows["path"].to_pylist())) if photographs else 0
        skipped += [(part.rows.start + row, reason) for row, reason in skipped_rows(rows)]
    for row, reason in skipped:
        log.warning("skipped %s: %s", table.path[row], reason)
    if photographs:
        if not num_rows:
            raise DataError(
                f"no face was found in {table.source}; --as-is takes pictures as they are"
            )
        log.info("%d faces in %d of %d pictures", num_rows, with_faces, len(table))
        return num_rows
    settings = matcher.data_settings
    DecodeJob(table, matcher.picture, settings.max_pixels, settings.max_broken).check(skipped)
    return num_rows
