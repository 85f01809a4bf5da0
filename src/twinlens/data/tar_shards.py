"""Tar files of pictures: WebDataset shards, and packed class folders.

Nothing is unpacked: a table keeps the place of each picture in its file. A sample is the members of
one name up to the first dot, `000.jpg` and `000.cls` or `000.json`. The members of a file in an
object store are listed in the cache, since to find them reads most of a file of small members.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from twinlens.data.download import cache_folder
from twinlens.data.picture_file import picture_suffixes
from twinlens.data.remote import is_store
from twinlens.data.stored_pictures import (
    ByteRanges,
    StoredPicture,
    file_name,
    file_size,
    file_version,
    open_input,
)
from twinlens.data.table import ImageTable
from twinlens.errors import DataError, TwinlensError, first_line, one_line
from twinlens.files import write_text
from twinlens.parsing import parse_json, read_json

__all__ = ["files_in_range", "read_tar", "sample_parts"]

RANGE = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")
IDENTITY_KEYS = ("identity", "label", "class", "person", "target")
MAX_FILES = 100_000
MAX_LABEL = 2**20  # bytes of a .cls or .json
BLOCK = 2**18  # bytes read at once while members are looked for
AT_ONCE = 8  # files of an object store

Member = tuple[str, str, int, int, str | None]
"""Key and ending of a member, its first byte and their number, and the text of a label."""


def files_in_range(data: str | Path) -> list[str]:
    """The files that a path or an address with ranges names.

    Raises:
        DataError: none, or too many.

    >>> files_in_range("photos-{08..10}.tar")
    ['photos-08.tar', 'photos-09.tar', 'photos-10.tar']
    """
    parts = RANGE.split(str(data))
    choices: list[list[str]] = [[part] for part in parts[::3]]
    for place, (first, last) in enumerate(zip(parts[1::3], parts[2::3], strict=True)):
        numbers = range(int(first), int(last) + 1)
        num = math.prod(map(len, choices)) * len(numbers)
        if not 0 < num <= MAX_FILES:
            raise DataError(f"{data} names {num:,} files; needed are 1 to {MAX_FILES:,}")
        choices.insert(2 * place + 1, [f"{number:0{len(first)}d}" for number in numbers])
    return ["".join(words) for words in product(*choices)]


def read_tar(files: Sequence[str], source: str) -> ImageTable:
    """The pictures of tar files, by the names of file and member.

    The identity is the text of a sample's `.cls`, or a value of its `.json` ("identity", "label",
    "class", "person" or "target"); if no sample has one, the folder of the member. Further plain
    values of a `.json` are metadata.

    Args:
        files: paths or addresses of uncompressed tar files.
        source: data as the user named it.
    Raises:
        DataError: unreadable or compressed files, no pictures, or pictures without an identity.
    """
    paths, identities, pictures = list[str](), list[str | None](), list[Any]()
    metadata: list[Mapping[str, Any]] = []
    for file, samples in zip(files, _samples_of(files), strict=True):
        for key, sample in samples.items():
            try:
                inside, identity, others = sample_parts(sample)
            except ValueError as error:
                raise DataError(f"{file}, {one_line(key)}: {error}") from error
            for ending, picture in inside.items():
                paths.append(f"{file_name(file)}/{key}.{ending}")
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
    problem = ""
    if isinstance(values, bytes):
        try:
            values = parse_json(values)
        except ValueError as error:
            problem = f" ({first_line(error)})"
    if not isinstance(values, Mapping):
        needed = 'the .json of a sample must be an object, such as {"identity": "anna"}'
        raise DataError(needed + problem)
    label = sample.get("cls")
    if label is None:
        label = next((values[key] for key in IDENTITY_KEYS if values.get(key) is not None), None)
    text = label.decode("utf-8", "replace") if isinstance(label, bytes) else label
    others = {
        key: value for key, value in values.items()
        if key not in IDENTITY_KEYS and isinstance(value, str | int | float)
    }  # fmt: skip
    return pictures, None if text is None else str(text).strip(), others


def _samples_of(files: Sequence[str]) -> Iterator[dict[str, dict[str, Any]]]:
    """Key -> ending -> content of each file; pictures as `StoredPicture`."""
    with ThreadPoolExecutor(AT_ONCE if is_store(files[0]) else 1) as pool:
        try:
            for file, members in zip(files, pool.map(_members, files), strict=True):
                stored = ByteRanges(file, file_version(file))
                samples: dict[str, dict[str, Any]] = {}
                for key, ending, offset, size, text in members:
                    picture = StoredPicture(stored, offset, size)
                    content = picture if text is None else text.encode("utf-8", "surrogateescape")
                    sample = samples.setdefault(key, {})
                    if ending in sample:
                        raise DataError(
                            f"{one_line(file, 200)} has two members {one_line(key)}.{ending}: give "
                            "each a name of its own"
                        )
                    sample[ending] = content
                yield samples
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _members(file: str) -> list[Member]:
    """The pictures and labels of a tar file; of one in a store by the cache, if it is there."""
    if not is_store(file):
        if not Path(file).is_file():
            raise DataError(f"no such file: '{one_line(file, 200)}'")
        return _read_members(file)
    digest = hashlib.blake2b(f"{file} {file_version(file)}".encode(), digest_size=16).hexdigest()
    kept = cache_folder() / "tars" / f"{digest}.json"
    try:
        return [(*map(str, row[:2]), int(row[2]), int(row[3]), row[4]) for row in read_json(kept)]
    except (OSError, ValueError, TypeError, IndexError):
        members = _read_members(file)
    with suppress(OSError, DataError):  # Else the next command lists them again.
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_text(kept, json.dumps(members))
    return members


def _read_members(file: str) -> list[Member]:
    suffixes, size = picture_suffixes(), file_size(file)
    members: list[Member] = []
    try:
        with (
            (
                io.BufferedReader(open_input(file), BLOCK) if is_store(file) else open(file, "rb")  # noqa: PTH123
            ) as stream,
            tarfile.open(fileobj=stream, mode="r:") as archive,
        ):
            for member in archive:
                path = PurePosixPath(member.name)
                stem, dot, ending = path.name.partition(".")
                if not member.isreg() or member.issparse() or not stem or not dot:
                    continue
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"it ends within {member.name}")
                key = path.with_name(stem).as_posix()
                place = (member.offset_data, member.size)
                if path.suffix.lower() in suffixes:
                    members.append((key, ending, *place, None))
                elif ending in ("cls", "json") and member.size <= MAX_LABEL:
                    label = archive.extractfile(member)
                    assert label is not None
                    text = label.read().decode("utf-8", "surrogateescape")
                    members.append((key, ending, *place, text))
                archive.members = []  # type: ignore[attr-defined]  # else all stay in memory
    except TwinlensError:
        raise
    except (tarfile.ReadError, ValueError) as error:  # A size beyond all files is a ValueError.
        raise DataError(
            f"cannot read {one_line(file, 200)}: {first_line(error)}; needed is a complete, "
            "uncompressed .tar: copy it again, or unpack it"
        ) from error
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}") from error
    return members
