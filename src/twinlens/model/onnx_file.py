"""The header of an ONNX file: versions, operators and metadata, known before a graph is built.

An ONNX file is one message of Protocol Buffers (https://protobuf.dev/programming-guides/encoding).
The graph in it is skipped, so memory and time are small, whatever the file says.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

from twinlens.errors import one_line

__all__ = ["MAX_SIZE", "OnnxHeader", "read_onnx_header"]

MIN_OPSET, MAX_OPSET = 18, 21  # those that twinlens writes
DEFAULT_DOMAINS = frozenset({"", "ai.onnx"})  # both names of ONNX's own operators
KNOWN_DOMAINS = DEFAULT_DOMAINS | {"com.microsoft"}  # written by onnxruntime's quantisation
MAX_SIZE = 2**31 - 1  # bytes of a message, thus of a file
MAX_FIELDS, MAX_TEXT = 10_000, 2**20  # of a message: fields; bytes of those that are read
WINDOW = 2**18  # bytes that are searched at once

IR_VERSION, GRAPH, OPSET_IMPORT, METADATA = 1, 7, 8, 14  # fields of ModelProto
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # types of a field
DAMAGED = "it is cut off, damaged or no ONNX file"
# The key of the name of a file, behind the last byte of its length (which may have leading zeros).
LOCATION, LOCATION_KEY = b"location", re.compile(rb"[\x00\x08]location")


@dataclass(frozen=True)
class OnnxHeader:
    """All of a model but its graph.

    Attributes:
        ir_version: version of the file format.
        opset: version of ONNX's own operators.
        metadata: texts by name.
    """

    ir_version: int
    opset: int
    metadata: dict[str, str]


class _Field(NamedTuple):
    """A field of a message: its number, and a value or a content, by its type."""

    number: int
    value: int = 0
    content: bytes = b""


def read_onnx_header(path: Path) -> OnnxHeader:
    """The header of an ONNX file that holds all its weights and operators of known versions.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such file; says why in a few words.
    """
    if not path.is_file():  # Opening a pipe would wait for a writer.
        raise ValueError("it is missing, or no regular file")
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        if size == 0:
            raise ValueError("it is empty")
        if size > MAX_SIZE:
            raise ValueError(f"it has {size:,} bytes, and an ONNX file has at most {MAX_SIZE:,}")
        file.seek(0)
        # Read as bytes, onnxruntime would take it for another format, which is not checked here.
        if file.read(8)[4:] == b"ORTM":
            raise ValueError("it is in onnxruntime's own format, and that of ONNX is needed")
        file.seek(0)
        header = _header(file, size)
        file.seek(0)
        if _names_a_file(file):
            raise ValueError("it takes weights from another file, and must hold them all")
    return header


def _header(file: IO[bytes], size: int) -> OnnxHeader:
    ir_version = num_graphs = 0
    opsets: list[tuple[str, int]] = []
    metadata: dict[str, str] = {}
    for field in _fields(file, size, {OPSET_IMPORT, METADATA}):
        if field.number == IR_VERSION:
            ir_version = field.value
        elif field.number == GRAPH:
            num_graphs += 1
        elif field.number == OPSET_IMPORT:
            maker, version = _pair(field.content)
            opsets.append((_text(maker), version.value))
        elif field.number == METADATA:
            name, text = map(_text, _pair(field.content))
            if name in metadata:
                raise ValueError(f"its metadata holds '{one_line(name)}' twice")
            metadata[name] = text
    if num_graphs != 1 or ir_version == 0 or not opsets:
        raise ValueError(DAMAGED)
    for domain, _ in opsets:
        if domain not in KNOWN_DOMAINS:
            raise ValueError(f"it needs operators of {one_line(domain)}, which are not supported")
    versions = [version for domain, version in opsets if domain in DEFAULT_DOMAINS]
    if len(versions) != 1 or not MIN_OPSET <= versions[0] <= MAX_OPSET:
        shown = " and ".join(map(str, versions[:3])) or "missing"
        raise ValueError(f"its opset is {shown}, and {MIN_OPSET} to {MAX_OPSET} are supported")
    return OnnxHeader(ir_version, versions[0], metadata)


def _names_a_file(file: IO[bytes]) -> bool:
    """Whether any entry is called `location`: without one, no tensor lies in another file."""
    tail = b""
    while window := file.read(WINDOW):
        window = tail + window
        if LOCATION in window and LOCATION_KEY.search(window):
            return True
        tail = window[-len(LOCATION) :]
    return False


def _pair(message: bytes) -> tuple[_Field, _Field]:
    """The fields 1 and 2 of a message, each given once at most."""
    fields = list(_fields(io.BytesIO(message), len(message), {1, 2}))
    pair = {field.number: field for field in fields}
    if len(pair) < len(fields):
        raise ValueError(DAMAGED)
    return pair.get(1, _Field(1)), pair.get(2, _Field(2))


def _fields(file: IO[bytes], size: int, read: set[int]) -> Iterator[_Field]:
    """The fields of a message of `size` bytes; the content of those not in `read` is skipped."""
    num_left = MAX_TEXT
    for _ in range(MAX_FIELDS):
        if file.tell() == size:
            return
        number, kind = divmod(_varint(file), 8)
        if not 0 < number < 2**29 or kind not in (VARINT, FIXED64, BYTES, FIXED32):
            raise ValueError(DAMAGED)
        if kind == VARINT:
            yield _Field(number, _varint(file))
            continue
        length = _varint(file) if kind == BYTES else 8 if kind == FIXED64 else 4
        if length > size - file.tell():
            raise ValueError(DAMAGED)
        if number in read:
            num_left -= length
            if num_left < 0:
                raise ValueError(f"its metadata is longer than {MAX_TEXT:,} bytes")
            yield _Field(number, content=file.read(length))
        else:
            file.seek(length, io.SEEK_CUR)
            yield _Field(number)
    raise ValueError(f"it has more than {MAX_FIELDS:,} parts")


def _varint(file: IO[bytes]) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            break
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value & (2**64 - 1)  # One bit of a tenth byte counts.
    raise ValueError(DAMAGED)


def _text(field: _Field) -> str:
    try:
        return field.content.decode()
    except UnicodeDecodeError as error:
        raise ValueError("its metadata is no text in UTF-8") from error
