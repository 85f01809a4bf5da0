"""Metadata of a cropped face: the settings of its crop and its box in the photograph.

The mark is the comment of a PNG or JPEG file, so it survives copies, links and new names. It tells
crops from photographs, and tells a training how its pictures were cropped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin
from pydantic import ValidationError

from twinlens.config import FaceSettings
from twinlens.data.decode import PictureSource, open_picture, read_comment
from twinlens.data.table import ImageTable
from twinlens.errors import PictureError
from twinlens.face.geometry import Box
from twinlens.files import save_picture
from twinlens.parsing import parse_json

__all__ = ["is_marked", "mark", "open_marked", "read_settings", "save_face", "settings_of_files",
           "settings_of_table"]  # fmt: skip

PREFIX = "twinlens faces "
MAX_MARK = 1000  # characters
SAMPLE = 32  # files that tell the settings of a data set
JPEG: dict[str, Any] = {"quality": 95, "subsampling": 0}


def mark(picture: Image.Image, settings: FaceSettings, box: Box) -> Image.Image:
    """Mark a picture as a cropped face; returns it."""
    values = settings.model_dump() | {"box": box.corners}
    picture.info["comment"] = PREFIX + json.dumps(values)
    return picture


def is_marked(picture: Image.Image) -> bool:
    """Whether a picture is a cropped face: of `mark`, `open_marked`, or Pillow's own `open`."""
    comment = picture.info.get("comment", picture.info.get("Comment"))
    text = comment.decode(errors="replace") if isinstance(comment, bytes) else comment
    return _settings(text) is not None


def save_face(picture: Image.Image, path: Path) -> None:
    """Save a marked picture as PNG or JPEG, with its mark.

    Raises:
        OSError: the file cannot be written.
    """
    comment = picture.info["comment"]
    if path.suffix.lower() in (".jpg", ".jpeg"):
        save_picture(picture, path, comment=comment, **JPEG)
    else:
        chunks = PngImagePlugin.PngInfo()
        chunks.add_text("Comment", comment)
        save_picture(picture, path, pnginfo=chunks)


def open_marked(source: PictureSource, *, max_pixels: int) -> Image.Image:
    """`data.decode.open_picture`, with the mark of a cropped face.

    Raises:
        PictureError: as there.
    """
    picture = open_picture(source, max_pixels=max_pixels)
    if isinstance(source, str | Path | bytes):
        picture.info["comment"] = read_comment(source, max_pixels=max_pixels)
    return picture


def read_settings(source: str | Path | bytes, *, max_pixels: int) -> FaceSettings | None:
    """The crop settings in a file's mark; None for a picture that is no cropped face.

    Raises:
        PictureError: the file cannot be read.
    """
    return _settings(read_comment(source, max_pixels=max_pixels))


def settings_of_files(paths: Sequence[str], *, max_pixels: int) -> FaceSettings | None:
    """The crop settings of a data set: those of its files, if a sample agrees; else None.

    Args:
        paths: files of pictures; unreadable ones do not count.
        max_pixels: as of `data.decode.open_picture`.
    """
    step = max(1, len(paths) // SAMPLE)
    all_settings = set[FaceSettings | None]()
    for path in paths[::step]:
        try:
            all_settings.add(read_settings(path, max_pixels=max_pixels))
        except PictureError:
            continue
    return all_settings.pop() if len(all_settings) == 1 else None


def settings_of_table(table: ImageTable, *, max_pixels: int) -> FaceSettings | None:
    """As `settings_of_files`; None for pictures in memory."""
    if table.pixels is not None:
        return None
    return settings_of_files(table.path.tolist(), max_pixels=max_pixels)


def _settings(comment: object) -> FaceSettings | None:
    if not isinstance(comment, str) or not comment.startswith(PREFIX) or len(comment) > MAX_MARK:
        return None
    try:
        values = parse_json(comment.removeprefix(PREFIX))
        return FaceSettings.model_validate({k: v for k, v in values.items() if k != "box"})
    except (ValueError, AttributeError, ValidationError):
        return None
