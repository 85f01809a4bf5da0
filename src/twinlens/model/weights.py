"""Weights: their layout, whether they are finite, and files of them from elsewhere.

A weights file is a .safetensors file or one of `torch.save`; its first bytes decide which, whatever
it is called. Nothing is unpickled but tensors and plain containers (torch's `weights_only`). Only
tensors that the network needs are read, so a file may be larger than memory.
"""

from __future__ import annotations

import logging
import pickletools
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from twinlens.errors import ConfigError, one_line
from twinlens.model.stored import DESCRIPTION
from twinlens.model.tensor_file import TensorLayout, read_layout

__all__ = ["layout_of", "load_weights", "not_finite"]

log = logging.getLogger("twinlens")

Layout = Mapping[str, TensorLayout]

# First bytes of files that are no weights, and what to do.
OTHER_FORMATS = {
    b"\x89HDF": "it is an HDF5 file, as Keras writes them: convert its weights with PyTorch",
    b"<": "it is a web page, so its download failed: download it again",
    b"version https://git-lfs": "it is a pointer of Git LFS: fetch its content with `git lfs pull`",
    b"\x1f\x8b": "it is compressed: unpack it",
    b"{": "it is JSON: give the file of weights that it describes",
    b"BZh": "it is compressed: unpack it",
    b"\xfd7zXZ": "it is compressed: unpack it",
}
ZIP, PICKLE = b"PK\x03\x04", b"\x80"
# The number at the beginning of files of torch before 1.6.
OLD_TORCH = re.compile(rb"\x80.\x8a\n\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\.", re.DOTALL)
MAX_PICKLE = 256 * 2**20  # bytes of the names and sizes in a zip of torch
MAX_DEPTH, MAX_PREFIXES = 4, 50  # of the dictionaries around the weights; of names
# Those that allocate as much memory as a number in the file says, though torch allows them.
ALLOCATORS = {"builtins.bytearray", "__builtin__.bytearray", "torch.Tensor"}
KNOWN_CLASSES = re.compile(r"(torch|collections|builtins|__builtin__|_codecs)\b")
# Of several weights in one file, averages are preferred, as by timm.
PREFERRED = {"ema", "teacher", "best", "averaged"}


class _Part(NamedTuple):
    """Some tensors of a file: the keys or names around them, and how to read one by name."""

    label: str
    layout: Layout
    read: Callable[[str], Tensor]


class _Fit(NamedTuple):
    """A part, and the beginning of its names that a network's names lack."""

    part: _Part
    prefix: str
    num: int

    @property
    def label(self) -> str:
        """Keys and prefix, for messages."""
        return f"{self.part.label}{self.prefix}".strip(".") or "its names as they are"


def layout_of(tensors: Mapping[str, Tensor]) -> dict[str, TensorLayout]:
    """The layout of tensors, by name."""
    return {
        name: TensorLayout(tuple(tensor.shape), tensor.is_floating_point())
        for name, tensor in tensors.items()
    }


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The tensors that hold NaN or infinity, in words; None if all numbers are finite.

    >>> not_finite({"a": torch.ones(2), "b": torch.tensor([1.0, float("nan")])})
    'b holds NaN or infinite numbers (1 of 2), and 1 of 2 tensors does'
    """
    counts = {name: int((~tensor.isfinite()).sum()) for name, tensor in tensors.items()}
    wrong = [name for name, count in counts.items() if count]
    if not wrong:
        return None
    first = wrong[0]
    return (
        f"{one_line(first)} holds NaN or infinite numbers ({counts[first]:,} of "
        f"{tensors[first].numel():,}), and {len(wrong)} of {len(tensors)} tensors "
        f"{'does' if len(wrong) == 1 else 'do'}"
    )


def load_weights(backbone: nn.Module, path: Path) -> None:
    """Load a file of weights into a backbone; those of a classifier are ignored.

    The weights may lie in dictionaries ("state_dict", "model_ema", ...), and their names may have
    a prefix ("module.", "backbone.", ...), if that makes all names and shapes fit.

    Raises:
        ConfigError: no such file, no weights in it, another network's weights, or weights that are
            not finite.
    """
    name = one_line(str(path), None)
    if not any(True for _ in backbone.parameters()):
        raise ConfigError(
            f"the weights {name} are for a backbone without weights: leave --weights out, or name "
            "another network with --backbone"
        )
    if path.is_dir():
        if any((path / part).is_file() for part in (DESCRIPTION, f"model/{DESCRIPTION}")):
            raise ConfigError(f"{name} is a model of twinlens: {_learn_on(path)}")
        raise ConfigError(f"the weights {name} are a folder: give the file of weights in it")
    if not path.is_file():
        raise ConfigError(f"there is no weights file {name}")
    own = backbone.state_dict()
    wanted = layout_of(own)
    # Files of old versions of torch lack the count of batches, which is not used here.
    needed = {k: v for k, v in wanted.items() if not k.endswith("num_batches_tracked")}
    try:
        fit = _best_fit(_parts(path), needed)
        if fit is None or fit.num < len(needed):
            raise ConfigError(_misfit(path, fit, needed))
        layout, read = fit.part.layout, fit.part.read
        keys = [key for key in own if layout.get(fit.prefix + key) == wanted[key]]
        backbone.load_state_dict({key: read(fit.prefix + key) for key in keys}, strict=False)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"{name} holds no weights that can be read: {one_line(str(error), 300)}. Give a "
            ".safetensors file, or a .pth file of tensors"
        ) from error
    problem = not_finite(backbone.state_dict())
    if problem is not None:
        raise ConfigError(
            f"{name} is of a training that diverged: {problem}. Give an earlier checkpoint"
        )


def _best_fit(parts: Iterator[_Part], needed: Layout) -> _Fit | None:
    """The part and prefix under which most tensors fit; None without any tensors."""
    fits = [
        _Fit(part, prefix, sum(part.layout.get(prefix + n) == needed[n] for n in needed))
        for part in parts
        for prefix in _prefixes(part.layout, needed)
    ]
    whole = [fit for fit in fits if fit.num == len(needed)]
    if not whole:
        return max(fits, key=lambda fit: fit.num, default=None)
    preferred = [fit for fit in whole if PREFERRED & set(re.split("[^a-z]+", fit.label.lower()))]
    fit = (preferred or whole)[0]
    if len(whole) > 1:
        _log_choice(fit.label, tuple(other.label for other in whole))
    return fit


@cache  # A network is built several times in one run.
def _log_choice(label: str, labels: tuple[str, ...]) -> None:
    names = one_line(", ".join(labels), 300)
    log.info("several of the weights fit (%s): %s is used", names, one_line(label))


def _prefixes(layout: Layout, needed: Layout) -> list[str]:
    """Beginnings of the names in a file that could precede all names of a network."""
    probes = {next(iter(needed)), max(needed, key=len)}
    prefixes = {
        name.removesuffix(probe)
        for name in layout
        for probe in probes
        if name.endswith(f".{probe}")
    }
    return ["", *sorted(prefixes, key=len)[:MAX_PREFIXES]]


def _misfit(path: Path, fit: _Fit | None, needed: Layout) -> str:
    shown = one_line(str(path), None)
    if (path.parent / DESCRIPTION).is_file():
        return f"{shown} belongs to a model of twinlens, of another network: " + _learn_on(
            path.parent
        )
    if fit is None:
        return (
            f"{shown} holds no tensors by name: give a file of weights (a state dict of PyTorch, "
            "or a .safetensors file)"
        )
    layout, prefix = fit.part.layout, fit.prefix
    missing = [name for name in needed if prefix + name not in layout]
    other = [n for n in needed if prefix + n in layout and layout[prefix + n] != needed[n]]
    message = (
        f"{shown} belongs to another network: {fit.num} of {len(needed)} tensors fit, "
        f"{len(missing)} are missing and {len(other)} have another shape, the first of them "
        f"'{(missing or other)[0]}'. "
    )
    if not missing and len(other) == 1:
        shapes = layout[prefix + other[0]].shape, needed[other[0]].shape
        if sorted(shape[1] for shape in shapes if len(shape) > 1) == [1, 3]:
            color = "rgb" if shapes[0][1] == 3 else "grey"
            return f"{message}It takes {color} pictures: --set picture.color={color}"
    return f"{message}Name the network of these weights with --backbone{_guess(path)}"


def _learn_on(model: Path) -> str:
    return f"--init {one_line(str(model), None)} in place of --weights trains it on"


def _guess(path: Path) -> str:
    """A network of timm that the file is named after, as a hint; "" if none."""
    import timm

    name = re.split("[-.]", path.name)[0]
    return f" (the file's name suggests {name})" if timm.is_model(name) else ""


# --- reading ------------------------------------------------------------------------------------


def _parts(path: Path) -> Iterator[_Part]:
    """The groups of tensors in a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no file of weights; says what it is.
    """
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        raise ValueError("it is empty")
    # First, since its length may look like the beginning of another format.
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**40:
        yield _Part("", read_layout(path), safe_open(path, "pt").get_tensor)
        return
    for magic, reason in OTHER_FORMATS.items():
        if start.lstrip().startswith(magic):
            raise ValueError(reason)
    if not start.startswith((ZIP, PICKLE)):
        raise ValueError("it is no safetensors file and none of torch.save")
    yield from _tensors_in(_read_torch(path, start), "", set())


def _tensors_in(content: Any, label: str, seen: set[int]) -> Iterator[_Part]:
    """The dictionaries of tensors in the content of a file of torch, the outer ones first."""
    if not isinstance(content, Mapping) or id(content) in seen or label.count(".") >= MAX_DEPTH:
        return
    seen.add(id(content))
    named = {name: value for name, value in content.items() if isinstance(name, str)}
    tensors = {name: value for name, value in named.items() if _is_plain(value)}
    if tensors:
        yield _Part(label, layout_of(tensors), tensors.__getitem__)
    for name, value in named.items():
        yield from _tensors_in(value, f"{label}{name.replace('.', '_')}.", seen)


def _is_plain(value: Any) -> bool:
    """Whether a value is a tensor in memory that is neither sparse nor quantised."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def _read_torch(path: Path, start: bytes) -> Any:
    """The content of a file of `torch.save`: tensors and plain containers only."""
    is_zip = start.startswith(ZIP)
    try:
        classes = _classes_in_zip(path) if is_zip else _classes_in_old(path, start)
    except zipfile.BadZipFile as error:
        raise ValueError("it is cut off or damaged") from error
    other = sorted(name for name in classes if not KNOWN_CLASSES.match(name))
    if other or classes & ALLOCATORS:
        names = one_line(", ".join(other or sorted(classes & ALLOCATORS)), 200)
        raise ValueError(
            f"it is a pickle that holds more than tensors ({names}) and could run code. Where you "
            "trust it, load it with torch and save its tensors alone: torch.save("
            "model.state_dict(), FILE)"
        )
    try:
        # Of a path, torch reads what is called .safetensors in that format.
        mapped = is_zip and not path.name.endswith(".safetensors")
        with warnings.catch_warnings(action="ignore"), path.open("rb") as file:
            source = path if mapped else file
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch raises any kind of error for damaged files.
        raise ValueError("it is a pickle of other objects, cut off or damaged") from error


def _classes_in_zip(path: Path) -> set[str]:
    """The classes and functions that a zip of torch names."""
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        pickles = [record for record in records if record.filename.endswith("/data.pkl")]
        if any(record.filename.endswith("/constants.pkl") for record in records):
            raise ValueError("it is a TorchScript program: save its state_dict instead")
        if len(pickles) != 1:
            raise ValueError("it is a zip, but not one of torch.save")
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise ValueError("it is a compressed zip: save the weights with torch.save again")
        if pickles[0].file_size > MAX_PICKLE:
            raise ValueError(f"its names and sizes take more than {MAX_PICKLE // 2**20} MiB")
        with archive.open(pickles[0]) as file:
            return _classes_in(file)


def _classes_in_old(path: Path, start: bytes) -> set[str]:
    """The same for a file of torch before 1.6: number, version, machine and content follow."""
    if not OLD_TORCH.match(start):
        raise ValueError("it is a pickle of other objects, which could run code")
    with path.open("rb") as file:
        return set().union(*(_classes_in(file) for _ in range(4)))


def _classes_in(pickle: IO[bytes]) -> set[str]:
    """The classes and functions that the next pickle of a file names; nothing is run."""
    try:
        return {
            str(argument).replace(" ", ".") if opcode.name == "GLOBAL" else "objects by protocol 4"
            for opcode, argument, _ in pickletools.genops(pickle)
            if opcode.name in ("GLOBAL", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4", "INST")
        }
    except Exception as error:  # pickletools raises many kinds for damaged files.
        raise ValueError("it is cut off or damaged") from error
