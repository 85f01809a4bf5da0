"""Objects of Python and of other libraries -> ImageTable.

No library is imported for its objects: a type's module, or what an object offers, tells what it is.
Pictures in memory are named by their place, such as "000017", so that the table keeps their order.

Shapes: N pictures.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

from twinlens.data.manifests import ROLES, SPLIT_NAMES
from twinlens.data.pair_list import pairs_in, pairs_of_columns
from twinlens.data.picture_list import build_table, columns_of, is_plain, one_column, text_of
from twinlens.data.picture_value import is_picture
from twinlens.data.table import ImageTable
from twinlens.data.tar_shards import sample_parts
from twinlens.errors import DataError, one_line
from twinlens.files import expand_user

__all__ = ["IDENTITY_COLUMNS", "PICTURE_COLUMNS", "Data", "path_or_table", "table_of",
           "table_of_columns"]  # fmt: skip

Data: TypeAlias = Any
"""A path, the name of a set, a table, or any other object that `table_of` reads."""

PICTURE_COLUMNS = ("path", "picture", "image", "img", "file", "file_name", "filename", "filepath")
IDENTITY_COLUMNS = ("identity", "label", "class", "person", "target")
NEEDED = (
    "accepted are {identity: [pictures]}, a list of (picture, identity) pairs, (pictures, labels), "
    "an array of pictures, a data frame, a torch or Hugging Face dataset, or a path"
)


def path_or_table(data: Data, root: str | Path | None = None) -> str | Path | ImageTable:
    """A path or a name unchanged, and other data as a table, so that it is read once.

    Args:
        data: as for `folders.read_table`.
        root: base folder of relative paths.
    Raises:
        DataError: as in `table_of`.
    """
    if isinstance(data, str | Path):
        return data
    return table_of(data, root=None if root is None else expand_user(root))


def table_of(data: Data, *, root: Path | None = None) -> ImageTable:
    """The table of pictures that Python code holds.

    Args:
        data: `{identity: [pictures]}`; a list, or another iterable, of (picture, identity) pairs or
            of mappings as rows; a tuple of pictures and labels; an array of pictures or a list of
            them, without identities; a data frame of pandas, Polars or Arrow; a torch `Dataset` of
            (picture, label); a Hugging Face `Dataset` or `DatasetDict`. A picture is any value of
            `picture_value.picture_value`. Pairs (a, b, same) become identities, as of `pair_list`.
        root: base folder of relative paths.
    Raises:
        DataError: something else, a picture without an identity beside others, or one with two.

    >>> import numpy as np
    >>> table_of({"anna": [np.zeros((8, 8))], "ben": [np.ones((8, 8)), np.ones((9, 9))]})
    ImageTable(3 pictures of 2 identities from 'pictures')
    """
    if isinstance(data, ImageTable):
        return data
    kind = _library(data)
    source = type(data).__name__
    if kind == "datasets":
        return _of_hugging_face(data, source, root)
    if kind == "torch" and hasattr(data, "__getitem__") and not hasattr(data, "__array__"):
        return _of_torch(data, source, root)
    if (columns := columns_of(data)) is not None:
        return table_of_columns(columns, source, root)
    if (pairs := pairs_in(data, root)) is not None:
        return pairs.as_table()
    if isinstance(data, Mapping):
        return _of_identities(data, source, root)
    if hasattr(data, "__array__"):
        return build_table(data, None, source, root)
    if isinstance(data, tuple) and len(data) == 2:
        return build_table(*data, source, root)
    if source == "DataLoader":
        raise DataError("found a DataLoader, whose batches are no pictures: pass its `dataset`")
    if isinstance(data, Iterable) and not isinstance(data, bytes | bytearray):
        return _of_items(iter(data), source, root)
    raise DataError(f"cannot read pictures from {source}: {NEEDED}")


def _library(data: Any) -> str:
    """The library that defines a type or one that it derives from, if it has an adapter."""
    modules = {kind.__module__.partition(".")[0] for kind in type(data).__mro__}
    return next((name for name in ("datasets", "torch") if name in modules), "")


# --- lists --------------------------------------------------------------------------------------


def _of_identities(data: Mapping[Any, Any], source: str, root: Path | None) -> ImageTable:
    pictures, identities = [], []
    for identity, values in data.items():
        if isinstance(values, str | bytes | Path) or not isinstance(values, Iterable):
            raise DataError(
                f"the {source} has one {type(values).__name__} for {one_line(str(identity))}, and "
                "needed is a list of its pictures"
            )
        for picture in values:
            pictures.append(picture)
            identities.append(identity)
    return build_table(pictures, identities, source, root)


def _of_items(items: Iterator[Any], source: str, root: Path | None) -> ImageTable:
    first = next(items, None)
    if first is None:
        raise DataError(f"found an empty {source}, which holds no pictures: {NEEDED}")
    if isinstance(first, Mapping) and "__key__" in first:
        return _of_samples(chain([first], items), source, root)
    whole = list(chain([first], items))
    if isinstance(first, Mapping) and not first.keys() <= {"bytes", "path"}:
        names = list(dict.fromkeys(chain.from_iterable(whole)))
        columns = {name: [row.get(name) for row in whole] for name in names}
        return table_of_columns(columns, source, root)
    if is_picture(first):
        return build_table(whole, None, source, root)
    for row, item in enumerate(whole):
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise DataError(
                f"item {row} of the {source} is {_described(item)}, and needed is a pair "
                f"(picture, identity): {NEEDED}"
            )
    return build_table([item[0] for item in whole], [item[1] for item in whole], source, root)


def _of_samples(samples: Iterable[Mapping[str, Any]], source: str, root: Path | None) -> ImageTable:
    """Samples of WebDataset, decoded or not."""
    pictures, identities = list[Any](), list[str | None]()
    metadata = list[Mapping[str, Any]]()
    for sample in samples:
        inside, identity, others = sample_parts(sample)
        for picture in inside.values():
            pictures.append(picture)
            identities.append(identity)
            metadata.append(others)
    return build_table(pictures, identities, source, root, metadata=metadata)


def _described(item: Any) -> str:
    kind = type(item).__name__
    return f"a {kind} of {len(item)}" if isinstance(item, tuple | list) else f"of type {kind}"


# --- columns ------------------------------------------------------------------------------------


def table_of_columns(
    columns: Mapping[str, Sequence[Any]], source: str, root: Path | None, names: Sequence[str] = ()
) -> ImageTable:
    """The table of columns by name: pictures, identities, role, split, and metadata.

    Args:
        columns: N values each.
        source: what holds them, which names the data.
        root: base folder of relative paths.
        names: N names of pictures that are no paths, in order; their rows by default.
    Raises:
        DataError: not exactly one column of pictures and one of identities, or unknown words.
    """
    if (pairs := pairs_of_columns(columns, source, root)) is not None:
        return pairs.as_table()
    pictures = one_column(columns, PICTURE_COLUMNS, "pictures", source)
    identities = one_column(columns, IDENTITY_COLUMNS, "identities", source)
    roles = [text_of(value).lower() for value in columns.get("role", ())]
    splits = [text_of(value).lower() for value in columns.get("split", ())]
    _check_words("role", roles, ROLES)
    _check_words("split", splits, {"": "", **SPLIT_NAMES})
    others = [name for name in columns if name not in (pictures, identities, "role", "split")]
    metadata = [
        {name: value for name, value in zip(others, values, strict=True) if is_plain(value)}
        for values in zip(*(columns[name] for name in others), strict=True)
    ]
    return build_table(
        columns[pictures], columns[identities], source, root, metadata=metadata, names=names,
        forged=[ROLES[role] for role in roles],
        split=[SPLIT_NAMES.get(split, "") for split in splits],
    )  # fmt: skip


def _check_words(column: str, values: Sequence[str], known: Mapping[str, Any]) -> None:
    for row, value in enumerate(values):
        if value not in known:
            words = ", ".join(filter(None, known))
            raise DataError(f"row {row}: {column} is {words} or empty, found '{one_line(value)}'")


# --- datasets -----------------------------------------------------------------------------------


def _of_torch(data: Any, source: str, root: Path | None) -> ImageTable:
    """A torch `Dataset` of (picture, label); of an `ImageFolder` the files are taken."""
    classes = _classes(data)

    def name_of(label: Any) -> str:
        text = text_of(label)
        is_index = classes is not None and text.isdecimal() and int(text) < len(classes)
        return str(classes[int(text)]) if classes is not None and is_index else text

    if hasattr(data, "samples") and hasattr(data, "class_to_idx"):
        paths, indices = zip(*data.samples, strict=True)
        return build_table(list(paths), list(map(name_of, indices)), source, root)
    if not hasattr(data, "__len__"):
        items = (
            item if isinstance(item, Mapping) else (item[0], name_of(item[1])) for item in data
        )
        return _of_items(items, source, root)
    lock = threading.Lock()  # Its files, or its random numbers, may not stand several threads.

    def item(row: int) -> Any:
        with lock:
            return data[row]

    # Read twice, once for the label and later for the picture: all at once may exceed the memory.
    labels = []
    for row in range(len(data)):
        value = item(row)
        if not isinstance(value, tuple | list) or len(value) < 2:
            raise DataError(
                f"item {row} of the {source} is {_described(value)}, and needed are a picture and "
                "its label"
            )
        labels.append(name_of(value[1]))
    return build_table(
        [partial(_first, item, row) for row in range(len(data))], labels, source, root
    )


def _first(item: Callable[[int], Any], row: int) -> Any:
    return item(row)[0]


def _classes(data: Any) -> Sequence[Any] | None:
    """Names of the labels of a torch `Dataset`, or of the one that it is a part of."""
    while data is not None:
        if (classes := getattr(data, "classes", None)) is not None:
            return list(classes)
        data = getattr(data, "dataset", None)
    return None


def _of_hugging_face(data: Any, source: str, root: Path | None) -> ImageTable:
    """A `Dataset`, or the splits of a `DatasetDict`, by their features."""
    parts = dict(data) if isinstance(data, Mapping) else {"": data}
    unknown = [name for name in parts if name and name.lower() not in SPLIT_NAMES]
    if unknown:
        raise DataError(
            f"the {source} has the splits {', '.join(parts)}; known are {', '.join(SPLIT_NAMES)}: "
            f"pass one of them, such as data[{unknown[0]!r}]"
        )
    pictures, identities = list[Any](), list[Any]()
    splits, metadata = list[str](), list[dict[str, Any]]()
    for split, part in parts.items():
        features = part.features
        kinds = {name: type(feature).__name__ for name, feature in features.items()}
        image = _one_feature(kinds, "Image", PICTURE_COLUMNS, "pictures", source)
        label = _one_feature(kinds, "ClassLabel", IDENTITY_COLUMNS, "identities", source)
        if kinds[image] == "Image":  # As its file, not decoded to a Pillow picture.
            part = part.cast_column(image, type(features[image])(decode=False))
        rows: Any
        if hasattr(part, "__len__"):
            part = part.with_format(None)
            rows = part.remove_columns(image)
            column = part.select_columns(image)
            pictures += [partial(_cell, column, image, row) for row in range(len(part))]
        else:  # A stream, which is read once.
            rows = list(part)
            pictures += [row[image] for row in rows]
        names = getattr(features[label], "names", None)
        for row in rows:
            value = row[label]
            identities.append(names[value] if names and value is not None else value)
            splits.append(SPLIT_NAMES.get(split.lower(), ""))
            others = {name: value for name, value in row.items() if name not in (image, label)}
            metadata.append({name: value for name, value in others.items() if is_plain(value)})
    return build_table(pictures, identities, source, root, split=splits, metadata=metadata)


def _cell(part: Any, column: str, row: int) -> Any:
    return part[row][column]


def _one_feature(
    kinds: Mapping[str, str], kind: str, names: Sequence[str], subject: str, source: str
) -> str:
    """The only feature of a kind, or else the one of a known name."""
    matching = [name for name in kinds if kinds[name] == kind]
    return matching[0] if len(matching) == 1 else one_column(kinds, names, subject, source)
