"""Files of embeddings: Parquet, Lance, CSV, and NumPy with a CSV file of the rows beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from twinlens.data.csv_file import write_csv
from twinlens.data.remote import is_store
from twinlens.errors import DataError, one_line
from twinlens.files import (
    check_output_file,
    check_output_folder,
    creating_folder,
    writing_errors,
    writing_file,
)

__all__ = ["FORMATS", "check_embedding_file", "rows_file", "write_embeddings"]


def check_embedding_file(path: str | Path) -> None:
    """Check before any work that embeddings can be written to a file of this name.

    Raises:
        DataError: an ending without a format, or a place that cannot be written.
    """
    if is_store(path):
        raise DataError(
            f"cannot write embeddings to {one_line(str(path), None)}: name a file on a disk of "
            "this machine, and copy it there"
        )
    ending = Path(path).suffix.lower()
    if ending == ".lance":
        _check_lance(Path(path))
    else:
        check_output_file(path)
    if ending not in FORMATS:
        raise DataError(
            f"cannot write embeddings to {one_line(str(path), None)}: its ending sets the format, "
            f"and is one of {', '.join(FORMATS)}"
        )
    if ending == ".npy":
        check_output_file(rows_file(path))


def _check_lance(path: Path) -> None:
    """Check that a new Lance table can be written; an old one is replaced, and nothing else."""
    if not (path.is_dir() and not path.is_symlink() and (path / "_versions").is_dir()):
        check_output_folder(path, "a Lance table")
    check_output_file(path / "any" if path.is_dir() else path)


def rows_file(path: str | Path) -> Path:
    """The CSV file of the rows of a NumPy file: `e.rows.csv` of `e.npy`."""
    return Path(path).with_suffix(".rows.csv")


def write_embeddings(path: str | Path, tables: Iterable[pa.Table], num_rows: int) -> None:
    """Write embeddings in the format of a file's ending; only the owner can read it.

    - .parquet: the tables with their metadata.
    - .lance: the same as a Lance table, which is a folder.
    - .csv: their columns, and `e0` to `e{D-1}` in place of `embedding`. Numbers read back exactly.
    - .npy: float32 embeddings (N, D), and the other columns in `rows_file`, in the same order.

    Args:
        path: the file.
        tables: at least one table with a column `embedding`, float32 lists of D numbers; each of
            the same columns. One of them is in memory at a time.
        num_rows: N, the rows of all tables.
    Raises:
        DataError: the file cannot be written.
    """
    rest = iter(tables)
    first = next(rest)
    FORMATS[Path(path).suffix.lower()](Path(path), first.schema, chain([first], rest), num_rows)


def _write_parquet(path: Path, schema: pa.Schema, tables: Iterable[pa.Table], _: int) -> None:
    with writing_file(path) as part:
        with pq.ParquetWriter(part, schema) as writer:
            for rows in tables:
                writer.write_table(rows)
        part.chmod(0o600)  # It holds names and embeddings.


def _write_lance(path: Path, schema: pa.Schema, tables: Iterable[pa.Table], _: int) -> None:
    import lance  # Slow to import.

    batches = (batch for rows in tables for batch in rows.to_batches())
    reader = pa.RecordBatchReader.from_batches(schema, batches)
    advice = "free some space or name another place, and run this again"
    with (
        writing_errors(path),
        creating_folder(path, str(path.parent), advice, replace=True) as part,
    ):
        lance.write_dataset(reader, str(part))
        part.chmod(0o700)


def _write_csv(path: Path, schema: pa.Schema, tables: Iterable[pa.Table], _: int) -> None:
    others = [name for name in schema.names if name != "embedding"]
    names = [f"e{place}" for place in range(_dim(schema))]

    def cells() -> Iterator[list[Any]]:
        for rows in tables:
            for row, emb_D in zip(rows.select(others).to_pylist(), _embeddings(rows), strict=True):
                # Nine digits give back every float32.
                yield [*row.values(), *(f"{number:.9g}" for number in emb_D)]

    with writing_file(path) as part:
        write_csv(part, [*others, *names], cells())
        part.chmod(0o600)


def _write_numpy(path: Path, schema: pa.Schema, tables: Iterable[pa.Table], num_rows: int) -> None:
    others = [name for name in schema.names if name != "embedding"]
    header = {"descr": "<f4", "fortran_order": False, "shape": (num_rows, _dim(schema))}
    # The rows are complete first: a file of embeddings never stands without them.
    with writing_file(path) as part, writing_file(rows_file(path)) as side:
        with part.open("wb") as stream:
            np.lib.format.write_array_header_1_0(stream, header)

            def cells() -> Iterator[list[Any]]:
                for rows in tables:
                    stream.write(_embeddings(rows).astype("<f4").tobytes())
                    yield from ([*row.values()] for row in rows.select(others).to_pylist())

            write_csv(side, others, cells())
        part.chmod(0o600)
        side.chmod(0o600)


def _dim(schema: pa.Schema) -> int:
    return int(schema.field("embedding").type.list_size)


def _embeddings(rows: pa.Table) -> NDArray[np.float32]:
    column = rows["embedding"].combine_chunks()
    emb_N: NDArray[np.float32] = column.flatten().to_numpy()
    return emb_N.reshape(len(rows), _dim(rows.schema))


FORMATS: Mapping[str, Callable[[Path, pa.Schema, Iterable[pa.Table], int], None]] = {
    ".parquet": _write_parquet,
    ".lance": _write_lance,
    ".csv": _write_csv,
    ".npy": _write_numpy,
}
"""Ending of a file's name -> writer."""
