"""`twinlens identify` and `twinlens search`: queries to a gallery."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from twinlens.display import Result
from twinlens.errors import PictureError, one_line
from twinlens.face.faces_of import FacePlace, places_text
from twinlens.gallery.gallery import Gallery
from twinlens.gallery.show import check_sheet, draw_answers, draw_hits
from twinlens.match.answers import Hit, IdentifyAnswer, require_acquired
from twinlens.match.matcher import Picture, named_pictures
from twinlens.progress import Progress, console_log

__all__ = ["Identification", "IdentificationResult", "SearchResult", "identify", "identify_each",
           "search", "search_faces"]  # fmt: skip


@dataclass(frozen=True)
class Identification:
    """The answer for one picture, or for one face of a picture.

    Attributes:
        picture: the file.
        answer: the answer; None for a failure to acquire.
        error: reason of a picture that is unreadable or below the minimum of quality.
    """

    picture: str
    answer: IdentifyAnswer | None
    error: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The answer's keys beside `picture`; or `picture` and `error` alone."""
        if self.answer is None:
            return {"picture": self.picture, "error": self.error}
        return {"picture": self.picture, **self.answer.as_json()}

    def as_text(self) -> str:
        """A line for the answer, and one for each candidate."""
        name = one_line(self.picture, None)
        if self.answer is None:
            return f"{name}: not read: {self.error}"
        face = self.answer.face
        name = name if face is None or face.box is None else f"{name}, {face.as_text()}"
        lines = [one_line(f"{name}: {self.answer.explain()}", None)]
        names = [one_line(row.identity, 40) for row in self.answer.candidates]
        width = max(map(len, names), default=0)
        for rank, (row, name) in enumerate(zip(self.answer.candidates, names, strict=True), 1):
            odds = ""
            if row.probability is not None:
                odds = f"  probability {100 * row.probability:5.1f} %"
            path = one_line(row.path, None)
            lines.append(f"{rank:>5}  {name:<{width}}  distance {row.distance:.4f}{odds}  {path}")
        return "\n".join(lines)


@dataclass(frozen=True, repr=False)
class IdentificationResult(Result):
    """The answers of `identify`, in the order of the pictures.

    Attributes:
        answers: one for each picture; of a model of cropped faces one for each face of a picture.
    """

    ROWS = "answers"

    answers: tuple[Identification, ...]

    @property
    def unread(self) -> tuple[Identification, ...]:
        """The pictures that could not be read, or have too low a quality (failure to acquire)."""
        return tuple(row for row in self.answers if row.answer is None)

    @property
    def all_identified(self) -> bool:
        """Whether every picture was read and identified."""
        return all(
            row.answer is not None and row.answer.verdict == "identified" for row in self.answers
        )

    def require_some(self) -> None:
        """Refuse a result in which no picture could be read.

        Raises:
            PictureError: the only picture cannot be read.
            DataError: none of several can.
        """
        require_acquired([(row.picture, row.error) for row in self.answers])

    def as_json(self) -> dict[str, Any]:
        """The answers, and the number of failures to acquire (ISO/IEC 19795-1), as plain data."""
        return {
            "answers": [row.as_json() for row in self.answers],
            "num_failed": len(self.unread),
        }

    def as_text(self) -> str:
        """The answers of the pictures that could be read."""
        lines = list[str]()
        for row in self.answers:
            if row.answer is None:
                continue
            if row.answer.face is not None and row.answer.face.number == 1 < row.answer.face.of:
                places = [one.answer.face for one in self.answers if one.picture == row.picture
                          and one.answer is not None and one.answer.face is not None]  # fmt: skip
                lines.append(places_text(one_line(row.picture, None), places))
            lines.append(row.as_text())
        return "\n".join(lines)


@dataclass(frozen=True, repr=False)
class SearchResult(Result):
    """The templates nearest to a picture, nearest first.

    Attributes:
        picture: the file.
        hits: of the picture, or of its first face.
        face: place of that face; None for a model of other pictures.
        others: results of the other faces.
    """

    ROWS = "hits"

    picture: str
    hits: tuple[Hit, ...]
    face: FacePlace | None = None
    others: tuple[SearchResult, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The picture and its hits as plain data; `face` and `others` only if there is a face."""
        values: dict[str, Any] = {
            "picture": self.picture, "hits": [hit.as_json() for hit in self.hits],
        }  # fmt: skip
        if self.face is None:
            return values
        others = [{k: v for k, v in one.as_json().items() if k != "others"} for one in self.others]
        return values | {"face": asdict(self.face), "others": others}

    def as_text(self) -> str:
        """A line for each hit, below a line for each of several faces."""
        if self.others:
            each = (replace(self, others=()), *self.others)
            places = [one.face for one in each if one.face is not None]
            texts = [f"{one.face.as_text()}\n{one.as_text()}" for one in each if one.face]
            return "\n".join([places_text(one_line(self.picture, None), places), *texts])
        if not self.hits:
            return f"{one_line(self.picture, None)}: nothing found"
        names = [one_line(hit.identity, 40) for hit in self.hits]
        width = max(len(name) for name in names)
        return "\n".join(
            f"{rank:>5}  distance {hit.distance:.4f}  {name:<{width}}  {one_line(hit.path, None)}"
            for rank, (hit, name) in enumerate(zip(self.hits, names, strict=True), 1)
        )


def identify(
    gallery: str | Path | Gallery,
    pictures: Picture | Sequence[Picture],
    *,
    k: int = 5,
    far: float | None = None,
    min_quality: float | None = None,
    show: str | Path | None = None,
    as_is: bool = False,
    device: str = "auto",
    quiet: bool = False,
) -> IdentificationResult:
    """Identify pictures in a gallery, or answer "nobody".

    A model of cropped faces answers for each face of a picture.

    Args:
        gallery: folder or address of a gallery, or an open one.
        pictures: one or several, files or any form of `match.matcher.Picture`; an unreadable one
            does not stop the others. In the answers a picture that is no file is "picture 1" ...
        k: number of candidates of each picture, at most.
        far: false positive identification rate; the calibration's by default.
        min_quality: least quality of a picture, in [0, 1]; one below is not answered, as one that
            cannot be read. None for no such gate.
        show: file for a picture of them beside their candidates.
        as_is: take pictures as they are, although the model compares cropped faces.
        device: device of the embeddings, as in `twinlens.load`.
        quiet: log warnings only.
    Raises:
        GalleryError: no gallery, or a damaged one.
        PictureError: the only picture cannot be read.
        DataError: none of several pictures can be read, or `show` cannot be written.
        CalibrationError: no calibration, or none for `far`.

    Example:
        >>> result = twinlens.identify("people", "door.jpg")  # doctest: +SKIP
        >>> result.answers[0].answer.identity  # doctest: +SKIP
        'anna'
    """
    named = named_pictures(pictures)
    if show is not None:
        check_sheet(show)
    with console_log(quiet):
        opened = _open(gallery, device)
        progress, answers = Progress("identifying"), list[Identification]()
        for number, one in enumerate(named, 1):
            answers += identify_each(
                opened, [one], k=k, far=far, min_quality=min_quality, as_is=as_is
            )
            progress(number, len(named))
        result = IdentificationResult(tuple(answers))
        result.require_some()
        if show is not None:
            shown = [(row.picture, row.answer) for row in result.answers]
            draw_answers(show, opened, shown, dict(named))
    return result


def identify_each(
    gallery: Gallery,
    pictures: Sequence[tuple[str, Picture]],
    *,
    k: int = 5,
    far: float | None = None,
    min_quality: float | None = None,
    as_is: bool = False,
) -> Iterator[Identification]:
    """Identify pictures in an open gallery; an unreadable one does not stop the others.

    A model of cropped faces answers for each face of a picture, from left to right.

    Args:
        gallery: an open gallery.
        pictures: names for the answers, and pictures.
        k: as in `identify`.
        far: as there.
        min_quality: as there.
        as_is: as there.
    Raises:
        CalibrationError: no calibration, or none for `far`.
    """
    for name, picture in pictures:
        try:
            faces = gallery.matcher.faces_or_whole(picture, as_is=as_is)
        except PictureError as error:
            yield Identification(name, None, error.reason)
            continue
        for face, place in faces:
            try:
                answer = gallery.identify(face, k=k, far=far, min_quality=min_quality)
                yield Identification(name, replace(answer, face=place))
            except PictureError as error:
                where = "" if place is None or place.of == 1 else f"{place.as_text()}: "
                yield Identification(name, None, where + error.reason)


def search(
    gallery: str | Path | Gallery,
    picture: Picture,
    *,
    k: int = 20,
    where: str | None = None,
    show: str | Path | None = None,
    as_is: bool = False,
    device: str = "auto",
) -> SearchResult:
    """Find the templates of a gallery that are nearest to a picture, or to each of its faces.

    Args:
        gallery: folder or address of a gallery, or an open one.
        picture: a file, or any form of `match.matcher.Picture`.
        k: number of hits, at most.
        where: condition on templates, such as "identity = 'anna'" or "metadata.camera = 'north'
            AND time > date '2026-01-01'".
        show: file for a picture of the hits, of the first face.
        as_is: take pictures as they are, although the model compares cropped faces.
        device: device of the embeddings, as in `twinlens.load`.
    Raises:
        GalleryError: no gallery, or a condition that is not understood.
        PictureError: the picture cannot be read.
        DataError: `show` cannot be written.

    Example:
        >>> hits = twinlens.search("people", "door.jpg", k=3).hits  # doctest: +SKIP
        >>> [hit.path for hit in hits]  # doctest: +SKIP
        ['anna/2.jpg', 'anna/1.jpg', 'ben/4.jpg']
    """
    if show is not None:
        check_sheet(show)
    with console_log():
        opened = _open(gallery, device)
        ((name, picture),) = named_pictures([picture])
        result = search_faces(opened, name, picture, k=k, where=where, as_is=as_is)
        if show is not None:
            draw_hits(show, opened, name, picture, result.hits)
    return result


def search_faces(
    gallery: Gallery, name: str, picture: Picture, *, k: int = 20, where: str | None = None,
    as_is: bool = False,
) -> SearchResult:  # fmt: skip
    """As `search`, in an open gallery.

    Args:
        gallery: an open gallery.
        name: name of the picture, for the result.
        picture: the picture.
        k: as in `search`.
        where: as there.
        as_is: as there.
    Raises:
        GalleryError: as in `search`.
        PictureError: as there.
    """
    first, *others = (
        SearchResult(name, gallery.search(face, k=k, where=where), place)
        for face, place in gallery.matcher.faces_or_whole(picture, as_is=as_is)
    )
    return replace(first, others=tuple(others))


def _open(gallery: str | Path | Gallery, device: str) -> Gallery:
    return gallery if isinstance(gallery, Gallery) else Gallery.open(gallery, device=device)
