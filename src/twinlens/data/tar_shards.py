"""Tar files of pictures: WebDataset shards, and packed class folders.

Nothing is unpacked: a table keeps the place of each picture in its file. A sample is the members of
one name up to the first dot, `000.jpg` and `000.cls` or `000.json`.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Mapping
from functools import partial
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from twinlens.data.picture_file import picture_suffixes
from twinlens.data.table import ImageTable
from twinlens.errors import DataError, PictureError, first_line, one_line
from twinlens.parsing import parse_json

__all__ = ["is_tar", "read_tar", "sample_parts", "tar_files"]

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
IDENTITY_KEYS = ("identity", "label", "class", "person", "target")
MAX_FILES = 100_000
MAX_LABEL = 2**20  # bytes of a .cls or .json


def is_tar(data: str | Path) -> bool:
    """Whether a path names tar files, such as photos.tar or photos-{000..003}.tar."""
    return str(data).lower().endswith(".tar")


def tar_files(data: str | Path) -> list[Path]:
    """The files that a path with ranges names.

    >>> [str(file) for file in tar_files("photos-{08..10}.tar")]
    ['photos-08.tar', 'photos-09.tar', 'photos-10.tar']
    """
    parts = RANGE.split(str(data))
    choices: list[list[str]] = [[part] for part in parts[::3]]
    for place, (first, last) in enumerate(zip(parts[1::3], parts[2::3], strict=True)):
        numbers = range(int(first), int(last) + 1)
        if not 0 < len(numbers) <= MAX_FILES:
            raise DataError(f"{data} names {len(numbers):,} files; needed are 1 to {MAX_FILES:,}")
        choices.insert(2 * place + 1, [f"{number:0{len(first)}d}" for number in numbers])
    return [Path("".join(words)) for words in product(*choices)]


def read_tar(files: list[Path], source: str) -> ImageTable:
    """The pictures of tar files, by the names of file and member.

    The identity is the text of a sample's `.cls`, or a value of its `.json` ("identity", "label",
    "class", "person" or "target"); if no sample has one, the folder of the member. Further plain
    values of a `.json` are metadata.

    Args:
        files: uncompressed tar files.
        source: data as the user named it.
    Raises:
        DataError: unreadable or compressed files, no pictures, or pictures without an identity.
    """
    paths, identities, pictures = list[str](), list[str | None](), list[Any]()
    metadata: list[Mapping[str, Any]] = []
    for file in files:
        for key, sample in _samples(file).items():
            try:
                inside, identity, others = sample_parts(sample)
            except ValueError as error:
                raise DataError(f"{file}, {one_line(key)}: {error}") from error
            for ending, picture in inside.items():
                paths.append(f"{file.name}/{key}.{ending}")
                identities.append(identity)
                pictures.append(picture)
                metadata.append(others)
    if not paths:
        raise DataError(f"{source} holds no pictures: needed are members such as 000.jpg, 000.cls")
    if not any(identities):
        folders = [PurePosixPath(path).parent.parts[1:] for path in paths]
        identities = ["/".join(parts) for parts in folders]
    missing = [path for path, name in zip(paths, identities, strict=True) if not name]
    if missing:
        raise DataError(
            f"{len(missing)} of the {len(paths)} pictures of {source} have no identity, such as "
            f"{one_line(missing[0])}: each needs a .cls or .json, or a folder"
        )
    column = np.empty(len(paths), dtype=object)
    column[:] = pictures
    table = ImageTable(
        np.array(paths, dtype=object), np.array(identities, dtype=object),
        np.zeros(len(paths), np.bool_), np.full(len(paths), "", dtype=object), source, None, column,
    )  # fmt: skip
    if not any(metadata):
        return table
    of_path = dict(zip(paths, metadata, strict=True))
    return table.with_metadata([of_path[path] for path in table.path])


def sample_parts(sample: Mapping[str, Any]) -> tuple[dict[str, Any], str | None, dict[str, Any]]:
    """The pictures of a WebDataset sample by their endings, its identity, and its other values.

    Args:
        sample: ending -> content; bytes, or what WebDataset decoded.
    Raises:
        ValueError: a `.json` that is none, or no object.
    """
    suffixes = picture_suffixes()
    pictures = {
        ending: value for ending, value in sample.items()
        if f".{ending.rpartition('.')[2].lower()}" in suffixes
    }  # fmt: skip
    values = sample.get("json", {})
    if isinstance(values, bytes):
        values = parse_json(values)
    if not isinstance(values, Mapping):
        raise DataError('the .json of a sample must be an object, such as {"identity": "anna"}')
    label = sample.get("cls")
    if label is None:
        label = next((values[key] for key in IDENTITY_KEYS if values.get(key) is not None), None)
    text = label.decode("utf-8", "replace") if isinstance(label, bytes) else label
    others = {
        key: value for key, value in values.items()
        if key not in IDENTITY_KEYS and isinstance(value, str | int | float)
    }  # fmt: skip
    return pictures, None if text is None else str(text).strip(), others


def _samples(file: Path) -> dict[str, dict[str, Any]]:
    """Key -> ending -> content; pictures as functions that read them."""
    suffixes = picture_suffixes()
    samples: dict[str, dict[str, Any]] = {}
    if not file.is_file():
        raise DataError(f"no such file: '{one_line(str(file), 200)}'")
    try:
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                stem, dot, ending = path.name.partition(".")
                if not member.isreg() or member.issparse() or not stem or not dot:
                    continue
                key = path.with_name(stem).as_posix()
                place = (file, member.offset_data, member.size)
                if path.suffix.lower() in suffixes:
                    samples.setdefault(key, {})[ending] = partial(_content, *place)
                elif ending in ("cls", "json") and member.size <= MAX_LABEL:
                    samples.setdefault(key, {})[ending] = _content(*place)
    except tarfile.ReadError as error:
        raise DataError(
            f"cannot read {file}: {first_line(error)}; needed is an uncompressed .tar: unpack it"
        ) from error
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}") from error
    return samples


def _content(file: Path, offset: int, size: int) -> bytes:
    with open(file, "rb") as stream:  # noqa: PTH123
        stream.seek(offset)
        content = stream.read(size)
    if len(content) < size:
        raise PictureError(str(file), "truncated")
    return content
