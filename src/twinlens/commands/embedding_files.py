"""Files of embeddings: Parquet, CSV, and NumPy with a CSV file of the rows beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from twinlens.data.csv_file import write_csv
from twinlens.errors import DataError, one_line
from twinlens.files import check_output_file, writing_file

__all__ = ["FORMATS", "check_embedding_file", "rows_file", "write_embeddings"]


def check_embedding_file(path: str | Path) -> None:
    """Check before any work that embeddings can be written to a file of this name.

    Raises:
        DataError: an ending without a format, or a place that cannot be written.
    """
    check_output_file(path)
    ending = Path(path).suffix.lower()
    if ending not in FORMATS:
        raise DataError(
            f"cannot write embeddings to {one_line(str(path), None)}: its ending sets the format, "
            f"and is one of {', '.join(FORMATS)}"
        )
    if ending == ".npy":
        check_output_file(rows_file(path))


def rows_file(path: str | Path) -> Path:
    """The CSV file of the rows of a NumPy file: `e.rows.csv` of `e.npy`."""
    return Path(path).with_suffix(".rows.csv")


def write_embeddings(path: str | Path, rows: pa.Table) -> None:
    """Write a table of embeddings in the format of a file's ending; only the owner can read it.

    - .parquet: the table with its metadata.
    - .csv: its columns, and `e0` to `e{D-1}` in place of `embedding`. Numbers read back exactly.
    - .npy: float32 embeddings (N, D), and the other columns in `rows_file`, in the same order.

    Args:
        path: the file.
        rows: a table with a column `embedding`, float32 lists of D numbers.
    Raises:
        DataError: the file cannot be written.
    """
    FORMATS[Path(path).suffix.lower()](Path(path), rows)


def _write_parquet(path: Path, rows: pa.Table) -> None:
    with writing_file(path) as part:
        pq.write_table(rows, part)
        part.chmod(0o600)  # It holds names and embeddings.


def _write_csv(path: Path, rows: pa.Table) -> None:
    emb_ND = _embeddings(rows)
    # Nine digits give back every float32.
    texts = ([f"{number:.9g}" for number in emb_D] for emb_D in emb_ND)
    names = [f"e{place}" for place in range(emb_ND.shape[1])]
    others = rows.drop_columns("embedding")
    cells = ([*row.values(), *text] for row, text in zip(others.to_pylist(), texts, strict=True))
    with writing_file(path) as part:
        write_csv(part, [*others.column_names, *names], cells)
        part.chmod(0o600)


def _write_numpy(path: Path, rows: pa.Table) -> None:
    others = rows.drop_columns("embedding")
    # The rows first: a file of embeddings never stands without them.
    with writing_file(rows_file(path)) as part:
        write_csv(part, others.column_names, (row.values() for row in others.to_pylist()))
        part.chmod(0o600)
    with writing_file(path) as part:
        np.save(part, _embeddings(rows))
        part.chmod(0o600)


def _embeddings(rows: pa.Table) -> NDArray[np.float32]:
    column = rows["embedding"].combine_chunks()
    emb_N: NDArray[np.float32] = column.flatten().to_numpy()
    return emb_N.reshape(len(rows), column.type.list_size)


FORMATS: Mapping[str, Callable[[Path, pa.Table], None]] = {
    ".parquet": _write_parquet,
    ".csv": _write_csv,
    ".npy": _write_numpy,
}
"""Ending of a file's name -> writer."""
