"""Files to import that somebody made to do harm: one message, and no memory spent before it."""

from __future__ import annotations

import io
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import TinyRun
from PIL import Image
from test_gallery_import_export import file_of, with_column, written

from twinlens.errors import GalleryError, TwinlensError
from twinlens.gallery.gallery import Gallery


@pytest.fixture
def gallery(tmp_path: Path, tiny_run: TinyRun) -> Gallery:
    return Gallery.create(tmp_path / "gallery", tiny_run.run)


def refused(gallery: Gallery, path: Path, words: str) -> None:
    with pytest.raises(GalleryError, match=words) as caught:
        gallery.import_file(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 800
    assert len(gallery) == 0


def jpeg() -> bytes:
    stream = io.BytesIO()
    Image.new("L", (8, 8), 100).save(stream, "JPEG")
    return stream.getvalue()


Column = Callable[[pa.Table], Any]


def embeddings(change: Callable[[list[list[float]]], Any]) -> Column:
    def column(table: pa.Table) -> Any:
        rows = table["embedding"].to_pylist()
        change(rows)
        return rows

    return column


def second(value: Any) -> Callable[[list[list[float]]], None]:
    return lambda rows: rows.__setitem__(1, [value] * len(rows[1]))


WRONG: dict[str, tuple[str, Column, str]] = {
    "zeros": ("embedding", embeddings(second(0.0)), r"row 2 \(/p/1\.png\): its embedding has leng"),
    "NaN": ("embedding", embeddings(second(float("nan"))), r"row 2 \(/p/1\.png\): .* holds NaN"),
    "tiny": ("embedding", embeddings(second(1e-40)), r"row 2 \(/p/1\.png\): .* has length"),
    "giant": ("embedding", embeddings(second(1e30)), r"row 2 \(/p/1\.png\): .* has length 4e\+30"),
    "beyond 32 bits": ("embedding", embeddings(second(1e300)), r"row 2 .* holds NaN or infinity"),
    "longer": (
        "embedding", embeddings(lambda rows: rows[1].extend([1.0] * 1000)),
        r"holds 1,048 numbers in 3 rows, but each row needs 16",
    ),
    "texts of numbers": (
        "embedding", lambda t: [[str(x) for x in row] for row in t["embedding"].to_pylist()],
        "its column embedding holds list<.*string>, but fixed_size_list",
    ),
    "lists of lists": (
        "embedding", lambda t: [[[1.0] * 4] * 4] * 3, "its column embedding holds list<.*list<",
    ),
    "half a hash": ("hash", lambda t: ["a" * 16] * 3, r"row 1 \(.*\): its hash must have 32"),
    "a hash of other letters": (
        "hash", lambda t: ["0" * 32, "1" * 32, "Z" * 32], r"row 3 \(.*\): its hash must have 32 d",
    ),
    "a long hash": ("hash", lambda t: ["0" * 33, "1", "2"], "row 1: its hash has over 32 bytes"),
    "a hash as a number": ("hash", lambda t: [1, 2, 3], r"row 1 .*its hash must have 32 digits"),
    "no name": ("identity", lambda t: ["a", "", "b"], r"row 2 \(.*\): an identity needs a name"),
    "a giant name": (
        "identity", lambda t: ["a", "b", "c" * 10**6], "row 3: its identity has over 40,000 bytes",
    ),
    "a giant path": ("path", lambda t: ["/" * 10**6] * 3, "row 1: its path has over 130,000 bytes"),
    "giant metadata": (
        "metadata", lambda t: ["{}", '{"a": "' + "x" * 10**6 + '"}', "{}"],
        "row 2: its metadata has over 400,000 bytes",
    ),
    "deep metadata": (
        "metadata", lambda t: ["{}", '{"a": ' + "[" * 9000 + "]" * 9000 + "}", "{}"],
        "row 2: its column metadata .* nested more than 32 deep",
    ),
    "a giant number": (
        "metadata", lambda t: ['{"a": 1e999}'] * 3, "row 1: .* 1e999 is not finite",
    ),
    "a key twice": ("metadata", lambda t: ['{"a": 1, "a": 2}'] * 3, "'a' occurs twice"),
    "a thumbnail of text": (
        "thumbnail", lambda t: pa.array([None, b"%!PS", None], pa.large_binary()),
        "row 2: its thumbnail is no JPEG picture",
    ),
    "a PNG as thumbnail": (
        "thumbnail", lambda t: pa.array([jpeg(), b"\x89PNG\r\n\x1a\n", None], pa.large_binary()),
        "row 2: its thumbnail is no JPEG picture",
    ),
    "a giant thumbnail": (
        "thumbnail", lambda t: pa.array([jpeg() + bytes(10**6)] * 3, pa.large_binary()),
        "row 1: its thumbnail has over 131,072 bytes",
    ),
    "late": (
        "time", lambda t: pa.array([2**62] * 3, pa.timestamp("us", "UTC")),
        "time outside of the years 1 to 9999",
    ),
    "too late for microseconds": (
        "time", lambda t: pa.array([2**61] * 3, pa.timestamp("ms", "UTC")), "its column time holds",
    ),
    "a struct": ("path", lambda t: [{"a": 1}] * 3, "its column path holds struct"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_values_are_named(gallery: Gallery, tmp_path: Path, case: str) -> None:
    name, column, words = WRONG[case]
    table = file_of(gallery)
    path = written(with_column(table, name, column(table)), tmp_path)
    refused(gallery, path, rf"^cannot import {path}: .*{words}")


@pytest.mark.parametrize(
    "fingerprint", [b"", b"../../../OUTSIDE", b"A" * 16, b"0" * 15, b"\xff\n" * 9, b"0" * 17]
)
def test_a_fingerprint_has_16_digits(gallery: Gallery, tmp_path: Path, fingerprint: bytes) -> None:
    table = file_of(gallery).replace_schema_metadata({"twinlens.fingerprint": fingerprint})
    refused(gallery, written(table, tmp_path), "a model's fingerprint has 16 digits")


def test_rows_before_the_wrong_one_are_enrolled(gallery: Gallery, tmp_path: Path) -> None:
    """The number of the row is that of the file, whatever was read before it."""
    table = file_of(gallery, 2500)
    rows = table["embedding"].to_pylist()
    rows[2222] = [0.0] * gallery.dim
    path = written(with_column(table, "embedding", rows), tmp_path)
    with pytest.raises(GalleryError, match=r"row 2223 \(/p/2222\.png\): its embedding has"):
        gallery.import_file(path)
    assert len(gallery) == 2000


def test_good_values_of_other_kinds(gallery: Gallery, tmp_path: Path) -> None:
    table = file_of(gallery)
    table = with_column(table, "thumbnail", pa.array([jpeg(), None, jpeg()], pa.binary()))
    table = with_column(table, "time", pa.array([10**18] * 3, pa.timestamp("ns", "UTC")))
    for name in ("identity", "path", "metadata", "hash"):
        table = with_column(table, name, table[name].cast(pa.large_string()))
    assert gallery.import_file(written(table, tmp_path)).num_new == 3
    assert gallery.info().num_thumbnails == 2
    times = {template.time for template in gallery.templates().templates}
    assert times == {datetime(2001, 9, 9, 1, 46, 40, tzinfo=UTC)}


# --- files that claim much, or are none ---


def claimed(gallery: Gallery, tmp_path: Path, num: int, path: str = "/p/x.png") -> Path:
    """A small file of very many equal rows."""

    def column(values: Any, kind: pa.DataType) -> pa.Array:
        return pa.DictionaryArray.from_arrays(
            pa.array(np.zeros(num, np.int32)), pa.array(values, kind)
        )

    emb = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(num * 16, np.float32)), 16)
    table = pa.table({
        "identity": column(["a"], pa.string()), "path": column([path], pa.string()),
        "embedding": emb,
    }).replace_schema_metadata({"twinlens.fingerprint": gallery.fingerprint})  # fmt: skip
    pq.write_table(table, tmp_path / "many.parquet", row_group_size=num, compression="zstd")
    return tmp_path / "many.parquet"


def test_a_million_rows_in_a_few_bytes(gallery: Gallery, tmp_path: Path) -> None:
    path = claimed(gallery, tmp_path, 1_000_000)
    assert path.stat().st_size < 100_000
    refused(gallery, path, r"it claims 1,000,000 rows, which its [\d,]+ bytes cannot hold")


@pytest.mark.parametrize("dim", [1, 17, 10**9])
def test_a_claimed_dimension(gallery: Gallery, tmp_path: Path, dim: int) -> None:
    kind = pa.list_(pa.float32(), dim)
    table = pa.table({"identity": pa.array([], pa.string()), "path": pa.array([], pa.string()),
                      "embedding": pa.array([], kind)})  # fmt: skip
    table = table.replace_schema_metadata({"twinlens.fingerprint": gallery.fingerprint})
    refused(gallery, written(table, tmp_path), "its column embedding holds fixed_size_list")


SCRIPT = """
import resource, sys
from twinlens.errors import TwinlensError
from twinlens.gallery.gallery import Gallery
gallery = Gallery.open(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    gallery.import_file(sys.argv[2])
except TwinlensError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def memory_of(gallery: Gallery, path: Path) -> tuple[str, int]:
    """The message of an import in a process of its own, and its memory in MiB."""
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, gallery.place, str(path)],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    *message, memory = result.stdout.splitlines()
    return " ".join(message), int(memory)


def test_a_long_name_in_many_rows_takes_no_memory(gallery: Gallery, tmp_path: Path) -> None:
    """20,000 rows that share a path of 1 MB would be 20 GB."""
    message, memory = memory_of(gallery, claimed(gallery, tmp_path, 20_000, "/" * 10**6))
    assert "row 1: its path has over 130,000 bytes" in message or "it claims" in message
    assert memory < 300


def test_metadata_of_fifty_megabytes(gallery: Gallery, tmp_path: Path) -> None:
    table = file_of(gallery)
    metadata = table.schema.metadata | {b"more": b"x" * 50_000_000}
    path = written(table.replace_schema_metadata(metadata), tmp_path)
    message, memory = memory_of(gallery, path)
    assert f"cannot read {path}" in message
    assert memory < 200


@pytest.mark.parametrize("column", ["identity", "thumbnail"])
def test_a_giant_text_that_is_packed_well(gallery: Gallery, tmp_path: Path, column: str) -> None:
    table = file_of(gallery)
    given = ["a", "b", "c" * 150_000_000]
    kind = pa.string() if column == "identity" else pa.large_binary()
    given = pa.array(given if column == "identity" else [x.encode() for x in given], kind)
    pq.write_table(with_column(table, column, given), tmp_path / "g.parquet", compression="zstd")
    message, memory = memory_of(gallery, tmp_path / "g.parquet")
    assert "bytes of data, packed into" in message
    assert memory < 100


def test_places_that_are_no_file(gallery: Gallery, tmp_path: Path) -> None:
    refused(gallery, tmp_path, "it is no regular file")
    refused(gallery, tmp_path / "absent", "no such file")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        refused(gallery, tmp_path / "pipe", "it is no regular file")
        refused(gallery, Path("/dev/zero"), "it is no regular file")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1PAR1", b"PAR1\xff\xff\xff\x7fPAR1", b"a"])
def test_files_of_another_kind(gallery: Gallery, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.parquet").write_bytes(content)
    refused(gallery, tmp_path / "x.parquet", "cannot read")


def test_encrypted_files(gallery: Gallery, tmp_path: Path) -> None:
    content = written(file_of(gallery), tmp_path).read_bytes()
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PARE" + content[4:-4] + b"PARE")
    refused(gallery, path, "cannot read")


def test_a_name_of_a_column_that_is_no_text(gallery: Gallery, tmp_path: Path) -> None:
    path = written(file_of(gallery), tmp_path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"thumbnail", b"thumb\xff\xfeil"))
    refused(gallery, path, f"^cannot read {path}: ")


@pytest.mark.slow
def test_changed_bytes(gallery: Gallery, tmp_path: Path) -> None:
    """Ends in an import or in one message, whatever was changed."""
    content, draw = written(file_of(gallery, 40), tmp_path).read_bytes(), np.random.default_rng(0)
    path, messages = tmp_path / "x.parquet", []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(1500):
        changed = bytearray(content)
        start = len(content) - 3000 if number % 2 else 0  # The description is at the end.
        for at in draw.integers(start, len(content), draw.integers(1, 9)):
            changed[at] = draw.integers(0, 256)
        path.write_bytes(changed[: draw.integers(0, len(content))] if number % 10 == 0 else changed)
        try:
            gallery.import_file(path)
        except TwinlensError as error:
            messages.append(str(error))
    assert not any("\n" in message for message in messages)
    assert len(messages) > 1000
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 1500
