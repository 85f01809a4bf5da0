"""The header of a safetensors file: names, types and shapes, known before a tensor is read.

Whoever reads weights compares this layout with the layout of the network first. A file or settings
that were changed are thus refused before memory is spent on either.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

from safetensors import SafetensorError, safe_open

from twinlens.errors import first_line, one_line

__all__ = ["TensorLayout", "layout_problem", "read_layout", "tensors_under"]

T = TypeVar("T")

MAX_HEADER = 32 * 2**20  # bytes; safetensors reads up to 100 MB, which take a gigabyte of memory
FLOATS = frozenset({"F16", "BF16", "F32", "F64"})


class TensorLayout(NamedTuple):
    """The shape of a tensor, and whether it holds floats rather than integers or others."""

    shape: tuple[int, ...]
    is_float: bool


def read_layout(path: Path) -> dict[str, TensorLayout]:
    """The layout of every tensor of a safetensors file, by name.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no safetensors file, cut off, or damaged.
    """
    if not path.is_file():  # Opening a pipe would wait for a writer.
        raise ValueError("it is missing, or no regular file")
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > MAX_HEADER:
        raise ValueError(f"it is no safetensors file, or its header of {size:,} bytes is damaged")
    try:
        with safe_open(path, "numpy") as tensors:
            parts = ((name, tensors.get_slice(name)) for name in tensors.keys())  # noqa: SIM118
            return {
                name: TensorLayout(tuple(part.get_shape()), part.get_dtype() in FLOATS)
                for name, part in parts
            }
    except SafetensorError as error:
        raise ValueError(
            f"it is cut off, damaged or no safetensors file ({one_line(first_line(error))})"
        ) from error


def layout_problem(
    layout: Mapping[str, TensorLayout], needed: Mapping[str, TensorLayout]
) -> str | None:
    """The differences of a file's tensors from those of a network; None if there are none.

    >>> vector, matrix = TensorLayout((3,), True), TensorLayout((3, 4), True)
    >>> layout_problem({"a": vector, "b": vector}, {"b": matrix, "c": vector})
    '1 tensor is missing (c), 1 is not of this network (a), 1 has another shape or type (b)'
    """
    missing = [name for name in needed if name not in layout]
    unknown = [name for name in layout if name not in needed]
    other = [name for name in needed if name in layout and layout[name] != needed[name]]
    parts = [
        (missing, "1 tensor is missing", "{} tensors are missing"),
        (unknown, "1 is not of this network", "{} are not of this network"),
        (other, "1 has another shape or type", "{} have another shape or type"),
    ]
    problems = [
        f"{(one if len(names) == 1 else many).format(len(names))} ({_some(names)})"
        for names, one, many in parts
        if names
    ]
    return ", ".join(problems) or None


def _some(names: Iterable[str]) -> str:
    first, *rest = map(one_line, names)
    return first if not rest else f"{first}, ..."


def tensors_under(tensors: Mapping[str, T], prefix: str) -> dict[str, T]:
    """The tensors whose names begin with `prefix`, under the rest of their names.

    >>> tensors_under({"encoder.head.0.bias": 1, "comparator.bias": 2}, "encoder.")
    {'head.0.bias': 1}
    """
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
