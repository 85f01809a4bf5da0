"""The pictures that `--show` asks for: answers of a gallery, drawn.

A template is shown as the file that it was made of; where that is gone, as the thumbnail that the
gallery keeps; where it keeps none, as an empty place.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from twinlens.data.decode import open_picture
from twinlens.errors import CalibrationError, DataError, PictureError, one_line
from twinlens.files import check_output_file, writing_file
from twinlens.gallery.gallery import Gallery
from twinlens.gallery.schema import quoted
from twinlens.match.answers import Candidate, Hit, IdentifyAnswer
from twinlens.measure.error_rates import matches
from twinlens.report.answer_sheet import Strip, Tile, draw_sheet
from twinlens.report.canvas import GREEN, INK, RED

__all__ = ["check_sheet", "draw_answers", "draw_hits"]

log = logging.getLogger("twinlens")

MOST_STRIPS, MOST_FOUND = 50, 120
MAX_THUMBNAIL = 1 << 20
SHOWN = (480, 480)  # Larger pictures are shrunk, since many are held at once.


def check_sheet(path: str | Path) -> None:
    """Refuse, before any work is done, a picture that could not be written after it.

    Raises:
        DataError: there cannot be such a file, or its ending is no picture's.
    """
    check_output_file(path)
    ending = Path(path).suffix.lower()
    # This loads all formats of Pillow.
    if Image.registered_extensions().get(ending) not in Image.SAVE:
        raise DataError(
            f"cannot write {path}: its ending is no picture's, give it one such as .png"
        )


def draw_answers(
    path: str | Path, gallery: Gallery, answers: Sequence[tuple[str, IdentifyAnswer | None]]
) -> None:
    """Write a picture of answers: each probe beside its candidates' nearest templates.

    A candidate within the threshold has a green frame, another a red one; the probe a green one
    where it was identified.

    Args:
        path: a PNG, or whatever the ending says.
        gallery: whose answers they are.
        answers: the pictures, with None where one could not be read.
    Raises:
        DataError: the file cannot be written.
    """
    if len(answers) > MOST_STRIPS:
        log.info("%s shows the first %d of %d pictures", path, MOST_STRIPS, len(answers))
    shown = answers[:MOST_STRIPS]
    found = [answer.candidates[:MOST_FOUND] for _, answer in shown if answer is not None]
    pictures = _templates(gallery, [one.path for candidates in found for one in candidates])
    strips = [_strip(gallery, name, answer, pictures) for name, answer in shown]
    with writing_file(path) as part:
        draw_sheet(strips).save(part)


def draw_hits(path: str | Path, gallery: Gallery, picture: str, hits: Sequence[Hit]) -> None:
    """Write a picture of what a search found, nearest first.

    What is within the gallery's threshold has a green frame, the rest a red one. There are none
    where that threshold is one for means of templates, which says nothing of a single one.

    Args:
        path: a PNG, or whatever the ending says.
        gallery: where they were found.
        picture: the file that was searched for.
        hits: what was found; the first 120 are drawn.
    Raises:
        DataError: the file cannot be written.
    """
    if len(hits) > MOST_FOUND:
        log.info("%s shows the nearest %d of %d", path, MOST_FOUND, len(hits))
    pictures = _templates(gallery, [hit.path for hit in hits[:MOST_FOUND]])
    threshold = _threshold(gallery)
    tiles = tuple(
        Tile(
            pictures.get(hit.path),
            one_line(hit.identity),
            (f"distance {hit.distance:.4f}",),
            None if threshold is None else GREEN if matches(hit.distance, threshold) else RED,
        )
        for hit in hits[:MOST_FOUND]
    )
    probe = Tile(_file(gallery, picture), "searched for", missing="unreadable")
    count = f"the {len(hits)} nearest" if hits else "nothing found"
    green = "" if threshold is None else f"; green: within the threshold {threshold:.4f}"
    strip = Strip(one_line(picture, None), count + green, INK, probe, tiles)
    with writing_file(path) as part:
        draw_sheet([strip]).save(part)


def _strip(
    gallery: Gallery,
    picture: str,
    answer: IdentifyAnswer | None,
    pictures: Mapping[str, Image.Image | None],
) -> Strip:
    name = one_line(picture, None)
    if answer is None:
        return Strip(f"{name}: not read", "", RED, Tile(None, "?", missing="unreadable"), ())
    color = GREEN if answer.verdict == "identified" else RED
    verdict = answer.verdict if answer.identity is None else one_line(answer.identity)
    probe = Tile(_file(gallery, picture), verdict, (Path(name).name,), color, "unreadable")
    tiles = tuple(
        Tile(
            pictures.get(one.path),
            one_line(one.identity),
            _notes(one),
            GREEN if matches(one.distance, answer.threshold) else RED,
        )
        for one in answer.candidates[:MOST_FOUND]
    )
    return Strip(f"{verdict}: {name}", one_line(answer.reason, None), color, probe, tiles)


def _threshold(gallery: Gallery) -> float | None:
    """How near a single template has to be; None where nothing says so."""
    if gallery.state().rule == "mean":
        return None
    try:
        return gallery.threshold().value
    except CalibrationError:
        return None


def _notes(one: Candidate) -> tuple[str, ...]:
    notes = (f"distance {one.distance:.4f}",)
    return notes if one.probability is None else (*notes, f"probability {one.probability:.1%}")


def _templates(gallery: Gallery, paths: Iterable[str]) -> dict[str, Image.Image | None]:
    """The picture at each path, or its thumbnail, or None."""
    found = {path: _file(gallery, path) for path in dict.fromkeys(paths)}
    gone = [quoted(path) for path, picture in found.items() if picture is None]
    if gone:
        where = f"thumbnail IS NOT NULL AND path IN ({', '.join(gone)})"
        kept = gallery.store.find(where, columns=["path", "thumbnail"])
        for one in kept.to_pylist():
            found[one["path"]] = open_picture(one["thumbnail"], max_pixels=MAX_THUMBNAIL)
    return found


def _file(gallery: Gallery, path: str) -> Image.Image | None:
    try:
        picture = open_picture(path, max_pixels=gallery.matcher.max_pixels, target=SHOWN)
    except PictureError:
        return None
    picture.thumbnail(SHOWN)
    return picture
