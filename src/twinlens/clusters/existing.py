"""An existing clustering, for new pictures to join: its pictures, as its folder groups them now.

`embeddings.parquet` beside the list keeps the embeddings. The folders on the disk say which picture
is in which cluster: renamed folders, moved pictures and names in `names.csv` all count. A picture
whose link or copy is gone is no longer part of it.

Shapes: N pictures, D dimensions.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from twinlens.clusters.method import Cut
from twinlens.data.cluster_names import CLUSTER_LIST, NAMES, SINGLE, read_names
from twinlens.errors import DataError, first_line

__all__ = ["EMBEDDINGS", "ExistingClusters", "read_existing", "write_embeddings"]

EMBEDDINGS = "embeddings.parquet"
FINGERPRINT, THRESHOLD, TARGET_FAR = (
    b"twinlens.fingerprint", b"twinlens.threshold", b"twinlens.target_far"
)  # fmt: skip
ROWS_AT_ONCE = 2**16

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ExistingClusters:
    """A clustering that new pictures join.

    Attributes:
        place: its folder.
        names: N names of pictures.
        files: N paths.
        embeddings: (N, D).
        label: (N,) place in `folders` of each picture; -1 in no cluster.
        folders: names of the clusters' folders.
        cluster_names: names given in `names.csv`, by folder.
        distance: largest mean distance at which its clusters merged; None if unknown.
        target_far: FAR of the calibrated threshold that it is, if it is one.
    """

    place: Path
    names: Sequence[str]
    files: Sequence[str]
    embeddings: Floats
    label: Ints
    folders: Sequence[str]
    cluster_names: Mapping[str, str]
    distance: float | None
    target_far: float | None


def write_embeddings(
    folder: Path,
    names: Sequence[str],
    files: Sequence[str] | None,
    placed: Sequence[str],
    emb_ND: Floats,
    cut: Cut,
    fingerprint: str,
) -> None:
    """Write what `read_existing` reads; only the owner can read it.

    Args:
        folder: folder of the clustering.
        names: N names of pictures.
        files: N paths; None for pictures in memory.
        placed: N paths of the links or copies below the folder; "" for a missing file.
        emb_ND: embeddings, shape (N, D).
        cut: method.
        fingerprint: fingerprint of the model.
    """
    schema = pa.schema(
        [(name, pa.large_binary()) for name in ("path", "source", "file")]
        + [("embedding", pa.list_(pa.float32(), emb_ND.shape[1]))],
        metadata={
            FINGERPRINT: fingerprint,
            THRESHOLD: json.dumps(cut.distance),
            TARGET_FAR: json.dumps(cut.target_far),
        },
    )
    sources = placed if files is None else [os.path.abspath(file) for file in files]  # noqa: PTH100
    place = folder / EMBEDDINGS
    with place.open("xb") as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        place.chmod(0o600)
        for start in range(0, len(names), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            columns = (names[part], sources[part], placed[part])
            texts = [[os.fsencode(text) for text in column] for column in columns]
            vectors = pa.FixedSizeListArray.from_arrays(emb_ND[part].ravel(), emb_ND.shape[1])
            writer.write_table(pa.table([*texts, vectors], schema=schema))


def read_existing(place: Path, fingerprint: str) -> ExistingClusters:
    """Read a clustering from its folder.

    Args:
        place: folder that `twinlens cluster` wrote.
        fingerprint: fingerprint of the model of the new pictures.
    Raises:
        DataError: no such folder, no embeddings in it, or those of another model.
    """
    file = place / EMBEDDINGS
    if not file.is_file() or not (place / CLUSTER_LIST).is_file():
        raise DataError(
            f"{place} holds no clusters to join: name a folder that `twinlens cluster` wrote, with "
            f"its {CLUSTER_LIST} and {EMBEDDINGS}"
        )
    try:
        rows = pq.read_table(file)
        metadata = rows.schema.metadata
        theirs = metadata[FINGERPRINT].decode()
        path, source, placed = (
            [os.fsdecode(text) for text in rows[name].to_pylist()]
            for name in ("path", "source", "file")
        )
        dim = rows["embedding"].type.list_size
        emb_ND = rows["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, dim)
        distance, target_far = (
            json.loads(metadata.get(name, b"null")) for name in (THRESHOLD, TARGET_FAR)
        )
    except (
        pa.ArrowException, KeyError, TypeError, AttributeError, ValueError, OSError,
    ) as error:  # fmt: skip
        raise DataError(
            f"{file} cannot be read ({first_line(error)}): cluster all pictures again"
        ) from error
    if theirs != fingerprint:
        raise DataError(
            f"the clusters of {place} are those of another model ({theirs}, not {fingerprint}): "
            "join them with that model, or cluster all pictures again"
        )
    home_of = _homes(place)
    home = [home_of.get(os.path.basename(at)) for at in placed]  # noqa: PTH119 (any bytes)
    row = np.array([i for i, at in enumerate(home) if at is not None], dtype=np.int64)
    homes = [str(home[i]) for i in row]
    folders = sorted(set(homes) - {SINGLE}, key=_natural)
    number = {name: place for place, name in enumerate(folders)}
    sources = [
        str(place / str(home[i]) / os.path.basename(placed[i])) if source[i] == placed[i]  # noqa: PTH119
        else source[i] for i in row
    ]  # fmt: skip
    return ExistingClusters(
        place, [path[i] for i in row], sources, emb_ND[row],
        np.array([number.get(name, -1) for name in homes], dtype=np.int64), folders,
        read_names(place / NAMES), distance, target_far,
    )  # fmt: skip


def _homes(place: Path) -> dict[str, str]:
    """The folder of each file, by the file's name, which is unique in a clustering."""
    homes: dict[str, str] = {}
    for folder in place.iterdir():
        if folder.is_dir():
            homes |= dict.fromkeys(os.listdir(folder), folder.name)  # noqa: PTH208 (1,000,000 names)
    return homes


def _natural(name: str) -> list[tuple[int, str]]:
    """`cluster-2` before `cluster-10`."""
    return [(int(part) if part.isdigit() else -1, part) for part in re.split(r"(\d+)", name)]
