"""Names of clusters: a folder of `twinlens cluster` as class folders, once its clusters have names.

A cluster is named by renaming its folder, or in the column `name` of `names.csv`. Clusters without
a name are no identities.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from twinlens.data.csv_file import read_csv, write_csv
from twinlens.data.table import ImageTable
from twinlens.errors import DataError, one_line

__all__ = ["CLUSTER_LIST", "NAMES", "SINGLE", "name_clusters", "read_names", "write_names"]

log = logging.getLogger("twinlens")

CLUSTER_LIST, NAMES = "clusters.csv", "names.csv"
SINGLE = "single"
"""Folder of pictures in no cluster."""

UNNAMED = re.compile(rf"cluster-\d{{3,}}|{SINGLE}")
COLUMNS = ("cluster", "pictures", "name")
MOST_NAMED = 3


def write_names(folder: Path, sizes: Sequence[tuple[str, int]], names: Mapping[str, str]) -> None:
    """Write `names.csv`: a row for each cluster, with its number of pictures, and its name if any.

    Args:
        folder: folder of the clustering.
        sizes: folder and number of pictures of each cluster.
        names: names of clusters, by folder.
    """
    rows = [(cluster, size, names.get(cluster, "")) for cluster, size in sizes]
    write_csv(folder / NAMES, COLUMNS, rows)


def name_clusters(table: ImageTable, folder: Path) -> ImageTable:
    """The pictures of named clusters, with their names; any other table unchanged.

    Args:
        table: pictures of the class folders of `folder`.
        folder: a folder that `twinlens cluster` wrote, or any other.
    Raises:
        DataError: no cluster has a name, or `names.csv` is invalid.
    """
    if not (folder / CLUSTER_LIST).is_file():
        return table
    names = read_names(folder / NAMES)
    identity = [names.get(name, name) for name in table.identity]
    is_named = np.array([UNNAMED.fullmatch(name) is None for name in identity])
    unnamed = table.select(~is_named)
    clusters = [name for name in unnamed.identities() if name != SINGLE]
    if not is_named.any():
        raise DataError(
            f"no cluster of {folder} has a name yet: rename its folders ({_some(clusters)}), or "
            f"fill in the column name of {folder / NAMES}"
        )
    if clusters:
        log.warning(
            "clusters without a name are left out (%d: %s): rename their folders, or fill in the "
            "column name of %s", len(clusters), _some(clusters), folder / NAMES,
        )  # fmt: skip
    if num_single := int(np.count_nonzero(unnamed.identity == SINGLE)):
        log.info("pictures in no cluster are left out (%d in %s)", num_single, folder / SINGLE)
    return replace(table, identity=np.array(identity, dtype=object)).select(is_named)


def read_names(file: Path) -> dict[str, str]:
    """Name of each named cluster, by its folder.

    Raises:
        DataError: `names.csv` is invalid.
    """

    def check(columns: list[str]) -> None:
        missing = [name for name in ("cluster", "name") if name not in columns]
        if missing:
            raise DataError(f"{file} has no column {missing[0]}: it needs cluster and name")

    if not file.is_file():
        return {}
    rows = [cells for _, cells in read_csv(file, "the list of names", check)]
    return {cells["cluster"]: name for cells in rows if (name := cells["name"].strip())}


def _some(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > MOST_NAMED else ""
    return ", ".join(one_line(name) for name in names[:MOST_NAMED]) + more or SINGLE
