"""`twinlens identify`, `twinlens search`: who is in these pictures, and what is like this one?

Reading a gallery only; what is written into one is in `gallery`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinlens.errors import DataError, PictureError, one_line
from twinlens.gallery.gallery import Gallery
from twinlens.gallery.show import check_sheet, draw_answers, draw_hits
from twinlens.match.answers import Hit, IdentifyAnswer
from twinlens.progress import Progress, console_log

__all__ = ["Answered", "Identified", "Searched", "identify", "search"]


@dataclass(frozen=True)
class Answered:
    """One picture, and its answer; or why it could not be read."""

    picture: str
    answer: IdentifyAnswer | None
    error: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The answer's keys beside `picture`; or `picture` and `error` alone."""
        if self.answer is None:
            return {"picture": self.picture, "error": self.error}
        return {"picture": self.picture, **self.answer.as_json()}

    def as_text(self) -> str:
        """The answer in a line, and one for each candidate below it."""
        name = one_line(self.picture, None)
        if self.answer is None:
            return f"{name}: not read: {self.error}"
        lines = [one_line(f"{self.picture}: {self.answer.explain()}", None)]
        names = [one_line(one.identity, 40) for one in self.answer.candidates]
        width = max((len(one) for one in names), default=0)
        for place, (one, shown) in enumerate(zip(self.answer.candidates, names, strict=True), 1):
            sure = "" if one.probability is None else f"  probability {one.probability:6.1%}"
            path = one_line(one.path, None)
            lines.append(f"{place:>5}  {shown:<{width}}  distance {one.distance:.4f}{sure}  {path}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Identified:
    """The answers of `identify`, in the order of the pictures.

    Attributes:
        answers: one for each picture.
    """

    answers: tuple[Answered, ...]

    @property
    def unread(self) -> tuple[Answered, ...]:
        """The pictures that could not be read."""
        return tuple(one for one in self.answers if one.answer is None)

    @property
    def is_everybody(self) -> bool:
        """Whether each picture was read and shows an identity of the gallery."""
        return all(
            one.answer is not None and one.answer.verdict == "identified" for one in self.answers
        )

    def as_json(self) -> dict[str, Any]:
        """All answers."""
        return {"answers": [one.as_json() for one in self.answers]}

    def as_text(self) -> str:
        """The answers of the pictures that could be read."""
        return "\n".join(one.as_text() for one in self.answers if one.answer is not None)


@dataclass(frozen=True)
class Searched:
    """The answer of `search`: the nearest templates, nearest first."""

    picture: str
    hits: tuple[Hit, ...]

    def as_json(self) -> dict[str, Any]:
        """The picture and its hits."""
        return {"picture": self.picture, "hits": [hit.as_json() for hit in self.hits]}

    def as_text(self) -> str:
        """A line for each hit."""
        if not self.hits:
            return f"{one_line(self.picture, None)}: nothing found"
        names = [one_line(hit.identity, 40) for hit in self.hits]
        width = max(len(name) for name in names)
        return "\n".join(
            f"{place:>5}  distance {hit.distance:.4f}  {name:<{width}}  {one_line(hit.path, None)}"
            for place, (hit, name) in enumerate(zip(self.hits, names, strict=True), 1)
        )


def identify(
    gallery: str | Path | Gallery,
    pictures: str | Path | Sequence[str | Path],
    *,
    k: int = 5,
    far: float | None = None,
    show: str | Path | None = None,
    quiet: bool = False,
) -> Identified:
    """Who is in these picture files: somebody of a gallery, or nobody of it?

    Args:
        gallery: where it lies, or an open one.
        pictures: a file, or several; one that cannot be read among others stops none of them.
        k: at most so many candidates for each picture.
        far: the share of strangers that may be taken for somebody, where it is to be another than
            the gallery was calibrated for.
        show: where to write a picture of them beside the best candidates.
        quiet: say only warnings.
    Raises:
        GalleryError: no gallery, or a damaged one.
        PictureError: the only picture cannot be read.
        DataError: no picture of several can be read, or `show` cannot be written.
        CalibrationError: a `far` that the gallery's calibration cannot give.
    """
    names = [str(one) for one in ([pictures] if isinstance(pictures, str | Path) else pictures)]
    if not names:
        raise DataError("no pictures were given: name at least one")
    if show is not None:
        check_sheet(show)
    with console_log(quiet):
        opened = _opened(gallery)
        found = Identified(_answer_all(opened, names, k, far))
        _raise_if_none_was_read(found)
        if show is not None:
            draw_answers(show, opened, [(one.picture, one.answer) for one in found.answers])
    return found


def search(
    gallery: str | Path | Gallery,
    picture: str | Path,
    *,
    k: int = 20,
    where: str | None = None,
    show: str | Path | None = None,
) -> Searched:
    """The templates of a gallery that are most like a picture file.

    Args:
        gallery: where it lies, or an open one.
        picture: a file.
        k: at most so many.
        where: only templates that satisfy this condition, such as "identity = 'anna'" or
            "metadata.camera = 'north' AND time > date '2026-01-01'".
        show: where to write a picture of them.
    Raises:
        GalleryError: no gallery, or a condition that it does not understand.
        PictureError: the picture cannot be read.
        DataError: `show` cannot be written.
    """
    if show is not None:
        check_sheet(show)
    with console_log():
        opened = _opened(gallery)
        found = Searched(str(picture), opened.search(str(picture), k=k, where=where))
        if show is not None:
            draw_hits(show, opened, found.picture, found.hits)
    return found


def _opened(gallery: str | Path | Gallery) -> Gallery:
    return gallery if isinstance(gallery, Gallery) else Gallery.open(gallery)


def _answer_all(
    gallery: Gallery, names: Sequence[str], k: int, far: float | None
) -> tuple[Answered, ...]:
    progress = Progress("identifying")
    answers = []
    for name in names:
        try:
            answers.append(Answered(name, gallery.identify(name, k=k, far=far)))
        except PictureError as error:
            answers.append(Answered(name, None, error.reason))
        progress(len(answers), len(names))
    return tuple(answers)


def _raise_if_none_was_read(found: Identified) -> None:
    if len(found.unread) < len(found.answers):
        return
    first, *others = found.unread
    if not others:
        raise PictureError(first.picture, str(first.error))
    raise DataError(
        f"none of the {len(found.answers)} pictures can be read; the first: "
        f"{one_line(first.picture, None)}: {first.error}"
    )
