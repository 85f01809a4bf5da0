"""A Lance table of embeddings to import, such as `twinlens embed` writes.

It may have been written by anyone; see `parquet_file`, whose checks of rows hold for it too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lance
import pyarrow as pa

from twinlens.errors import GalleryError, TwinlensError, first_line, one_line
from twinlens.gallery.lance_files import check_lance_file
from twinlens.gallery.location import READ_ERRORS, check_content
from twinlens.gallery.parquet_file import rows_at_once

__all__ = ["is_lance_table", "opened_table", "table_batches"]


def is_lance_table(path: Path) -> bool:
    """Whether a path is a folder named as a Lance table."""
    return path.suffix.lower() == ".lance" and path.is_dir()


@contextmanager
def opened_table(path: Path) -> Iterator[lance.LanceDataset]:
    """The open table; errors of Lance are raised as `GalleryError`, those within the block too.

    Raises:
        GalleryError: damaged files, links, or more rows than its bytes can hold.
    """
    check_content(str(path))
    try:
        table = lance.dataset(str(path))
        fragments = table.get_fragments()
        files = [Path(path, "data", file.path) for each in fragments for file in each.data_files()]
        for file in files:
            check_lance_file(file)
        num, size = table.count_rows(), sum(file.stat().st_size for file in files)
        if num > size:
            raise GalleryError(
                f"cannot import {path}: it claims {num:,} rows, which its {size:,} bytes cannot "
                "hold"
            )
        yield table
    except TwinlensError:
        raise
    except READ_ERRORS as error:
        reason = one_line(first_line(error), 200)
        raise GalleryError(f"cannot read {path}: {reason}") from error


def table_batches(
    table: lance.LanceDataset, columns: list[str], dim: int
) -> Iterator[pa.RecordBatch]:
    """The rows of a table, in some columns; their values are not checked yet."""
    for batch in table.to_batches(columns=columns, batch_size=rows_at_once(dim)):
        batch.validate(full=True)
        yield batch
