"""Hints on folders that may mean something else than they are read as.

Only paths and identities are looked at; nothing is changed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import PurePosixPath

from twinlens.data.datasets import named_set_in
from twinlens.data.table import ImageTable

__all__ = ["layout_hints"]

MIN_SHARED = 2
MIN_SHARE = 0.5


def layout_hints(table: ImageTable) -> list[str]:
    """Sentences on the layout of a table's folder, with what to do; none for other tables.

    - The folder is a copy of a named set.
    - Two class folders hold mostly the same file names: counterparts.
    - At least half of the identities share the name of their last folder with another.
    """
    if table.left_out is None or table.root is None:
        return []
    return [*_named_set(table), *_counterparts(table), *_shared_names(table)]


def _named_set(table: ImageTable) -> Iterator[str]:
    assert table.root is not None
    named_set = named_set_in(table.root)
    if named_set is not None:
        yield (
            f"The folder looks like a copy of {named_set}. To read it as such, with its own splits "
            f"and identities, give {named_set} --root {table.root} instead."
        )


def _counterparts(table: ImageTable) -> Iterator[str]:
    files: dict[str, set[str]] = defaultdict(set)
    for row in range(len(table)):
        top, *below = PurePosixPath(table.relative(row)).with_suffix("").parts
        files[top].add("/".join(below))
    if len(files) != 2 or set(table.identities()) == files[min(files)]:
        return
    (one, in_one), (two, in_two) = sorted(files.items())
    shared = len(in_one & in_two)
    if shared >= MIN_SHARED and shared >= MIN_SHARE * min(len(in_one), len(in_two)):
        yield (
            f"The folders {one} and {two} hold {shared:,} files of equal names. If two files of "
            "one name show the same thing, call the folders left and right."
        )


def _shared_names(table: ImageTable) -> Iterator[str]:
    parents: dict[str, list[str]] = defaultdict(list)
    for identity in table.identities():
        *parent, name = identity.split("/")
        parents[name].append("/".join(parent))
    shared = {name: above for name, above in parents.items() if len(above) > 1}
    num = sum(map(len, shared.values()))
    if len(shared) < MIN_SHARED or num < MIN_SHARE * len(table.identities()):
        return
    name, above = min(shared.items())
    one, two = (f"{parent}/{name}" if parent else name for parent in above[:2])
    yield (
        f"{num:,} identities share the name of their folder with another, such as {one} and {two}. "
        "If one name is one identity, add --set data.identity_depth=-1 (the last folder names it)."
    )
