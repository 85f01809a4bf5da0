"""The record of the pictures that a model was trained on: `trained_on.safetensors` in the run.

It recognises a picture of the run's data, wherever a copy lies and whatever it is called, and
copies that were saved again or resized. It holds no name and no path. Its hashes are keyed with a
random secret that only this file holds, so the model, which travels without it, gives nothing away.

    key        (32,)     random secret of the run
    split      (N,)      of each picture: index into `SPLITS`
    content    (N, 16)   keyed BLAKE2b of the digest of its content (see `data.contents`)
    identity   (N, 16)   keyed BLAKE2b of its identity's name, NFC-normalised
    thumb      (L, T, T) grey thumbnails, for near copies; not in a gallery's copy

All are uint8. Shapes: N pictures of the run, L of them for training and validation, M of another
table, T side of a thumbnail, C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
import secrets
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from twinlens.data.contents import DIGEST_SIZE, NO_DIGEST, content_digests
from twinlens.data.pixels import PixelRows, Pixels
from twinlens.data.table import SPLITS, ImageTable
from twinlens.errors import ModelError, first_line, one_line
from twinlens.files import writing_file
from twinlens.model.stored import Origin, hash_identities
from twinlens.model.tensor_file import read_layout

__all__ = ["NUM_LEARNED", "RECORD_FILE", "TrainingRecord", "find_record", "read_record",
           "thumbnails_of", "trained_names", "unknown_reason"]  # fmt: skip

RECORD_FILE: Final = "trained_on.safetensors"
RECORD_FORMAT: Final = "1"
KEY_SIZE: Final = 32
THUMBNAIL: Final = 16
NUM_LEARNED: Final = 2  # splits that a model learns from: "train", and "val" for its threshold
BLOCK_BYTES = 32 * 2**20
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601, as Pillow converts to grey

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class TrainingRecord:
    """The pictures of a run's data; for the attributes see the module."""

    key: bytes
    split: Bytes
    content: Bytes
    identity: Bytes
    thumb: Bytes | None = None

    @classmethod
    def of_table(
        cls, table: ImageTable, pixels_NCHW: NDArray[np.uint8], key: bytes | None = None
    ) -> TrainingRecord:
        """The record of a run's decoded pictures.

        Args:
            table: N pictures with their splits.
            pixels_NCHW: their pixels at the network's size.
            key: secret of a resumed run; a new one by default.
        """
        key = secrets.token_bytes(KEY_SIZE) if key is None else key
        rows = np.flatnonzero(table.split != "")  # Given splits may leave some out.
        table = table.select(rows)
        split = np.array([SPLITS.index(name) for name in table.split], np.uint8)
        learned = rows[split < NUM_LEARNED]
        names = table.identity.tolist()
        distinct = list(dict.fromkeys(names))
        hash_of = dict(zip(distinct, _hashed_names(key, distinct), strict=True))
        return cls(
            key,
            split,
            _matrix(_hashed(key, b"content", content_digests(table))),
            _matrix([hash_of[name] for name in names]),
            thumbnails_of(PixelRows(pixels_NCHW, learned)),
        )

    @property
    def id(self) -> str:
        """32 hex digits that `model.json` names the record by; they do not reveal the key."""
        return hashlib.blake2b(self.key, digest_size=16, person=b"record").hexdigest()

    @property
    def is_closed(self) -> bool:
        """Whether all validation and test pictures show training identities."""
        train = self.split == SPLITS.index("train")
        trained, tested = (set(_values(self.identity[rows])) for rows in (train, ~train))
        return bool(tested) and tested <= trained

    def splits_of(self, digests: Sequence[bytes]) -> NDArray[np.object_]:
        """The split that each of M pictures had, by its digest; "" for pictures of other data.

        The splits of a picture that lay in several of them count in the order of `SPLITS`.
        """
        order = np.argsort(self.split, kind="stable")[::-1]  # Training last, so that it remains.
        names = [SPLITS[index] for index in self.split[order]]
        split_of = dict(zip(_values(self.content[order]), names, strict=True))
        hashes = _hashed(self.key, b"content", digests)
        splits = [
            "" if digest == NO_DIGEST else split_of.get(value, "")
            for digest, value in zip(digests, hashes, strict=True)
        ]
        return np.array(splits, dtype=object)

    def num_identities(self, split: str) -> int:
        """The number of identities of a split."""
        return len(set(_values(self.identity[self.split == SPLITS.index(split)])))

    def learned_splits(self) -> NDArray[np.object_]:
        """(L,) the splits of the pictures that have a thumbnail."""
        return np.array(SPLITS, dtype=object)[self.split[self.split < NUM_LEARNED]]

    def knows_names(self, names: Sequence[str], *splits: str) -> NDArray[np.bool_]:
        """Which of M names are those of identities of some splits, however accents are stored."""
        rows = np.isin(self.split, [SPLITS.index(split) for split in splits])
        known = set(_values(self.identity[rows]))
        return np.array([value in known for value in _hashed_names(self.key, names)], np.bool_)

    def without_thumbnails(self) -> TrainingRecord:
        """The record for a gallery, which knows hashes of pictures only."""
        return replace(self, thumb=None)

    def save(self, path: Path) -> None:
        """Write the file, readable by its owner only.

        Raises:
            DataError: it cannot be written.
        """
        arrays = {
            "key": np.frombuffer(self.key, np.uint8),
            "split": self.split,
            "content": self.content,
            "identity": self.identity,
        }
        if self.thumb is not None:
            arrays["thumb"] = self.thumb
        with writing_file(path) as part:
            save_file(arrays, part, {"format": RECORD_FORMAT})
            part.chmod(0o600)


def find_record(model: Path, origin: Origin | None) -> TrainingRecord | None:
    """The record of a model's run, in the model's folder or beside it.

    Args:
        model: the model's folder.
        origin: its origin, which names its record.
    Returns:
        None if it is missing or belongs to another run, and for models of format 1.
    Raises:
        ModelError: damaged, or of a newer format.
    """
    if origin is None or origin.record is None:
        return None
    for folder in (model, model.resolve().parent):
        record = read_record(folder / RECORD_FILE)
        if record is not None and record.id == origin.record:
            return record
    return None


def trained_names(
    origin: Origin | None,
    record: TrainingRecord | None,
    names: Sequence[str],
    splits: Sequence[str] = ("train",),
) -> NDArray[np.bool_]:
    """Which of M names were those of training identities: by the record, or as in format 1.

    Args:
        origin: the model's origin.
        record: its record, if there is one.
        names: M names.
        splits: splits whose identities count; format 1 knows those of "train" only.
    """
    if record is not None:
        return record.knows_names(names, *splits)
    known = set() if origin is None else set(origin.identities)
    forms = ([name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))]
             for name in names)  # fmt: skip
    return np.array([not known.isdisjoint(hash_identities(form)) for form in forms], np.bool_)


def unknown_reason(model: Path, origin: Origin | None) -> str:
    """Why it is unknown whether a model was trained on some pictures."""
    if origin is None:
        return "the model does not say what it was trained on"
    if origin.record is None:
        return "an older twinlens trained the model, and recorded names of identities only"
    return f"{RECORD_FILE} of the model's run is not beside {model}"


def read_record(path: Path) -> TrainingRecord | None:
    """The record in a file; None if missing.

    Raises:
        ModelError: damaged, or of a newer format.
    """
    if not path.exists():
        return None
    try:
        read_layout(path)  # Refuses pipes and giant headers.
        with safe_open(path, "numpy") as file:
            stored_format = (file.metadata() or {}).get("format")
            if stored_format != RECORD_FORMAT:
                version = one_line(str(stored_format))
                raise ValueError(f"its format is {version}, not {RECORD_FORMAT}")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _checked(arrays)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"{path} is damaged, or of another version of twinlens ({first_line(error)}): restore "
            "it, or delete it to go without knowing which pictures were trained on"
        ) from error


def thumbnails_of(pixels_NCHW: Pixels) -> Bytes:
    """Grey thumbnails of pictures at a network's size, (N, T, T): means of T x T areas."""
    num = len(pixels_NCHW)
    thumb_NTT = np.empty((num, THUMBNAIL, THUMBNAIL), np.uint8)
    if not num:
        return thumb_NTT
    _, height, width = pixels_NCHW[0].shape
    rows_TH, columns_WT = _area_means(height), _area_means(width).T
    at_once = max(1, BLOCK_BYTES // max(1, pixels_NCHW[0].size * 4))
    for start in range(0, num, at_once):
        block = pixels_NCHW[start : start + at_once].astype(np.float32)
        grey = block[:, 0] if block.shape[1] == 1 else np.tensordot(block, LUMA, ([1], [0]))
        thumb_NTT[start : start + at_once] = np.rint(rows_TH @ grey @ columns_WT)
    return thumb_NTT


def _area_means(side: int) -> NDArray[np.float32]:
    """(T, side) weights: each row is the mean of a T-th of the side."""
    edges = np.arange(THUMBNAIL + 1) * (side / THUMBNAIL)
    pixel = np.arange(side)
    covered = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    weights: NDArray[np.float32] = (covered.clip(0) * (THUMBNAIL / side)).astype(np.float32)
    return weights


def _checked(arrays: dict[str, NDArray[Any]]) -> TrainingRecord:
    num = len(arrays["split"]) if arrays.get("split", np.empty(())).ndim == 1 else -1
    shapes = {"key": (KEY_SIZE,), "split": (num,), "content": (num, DIGEST_SIZE),
              "identity": (num, DIGEST_SIZE)}  # fmt: skip
    if "thumb" in arrays:
        learned = int((arrays["split"] < NUM_LEARNED).sum()) if num >= 0 else 0
        shapes["thumb"] = (learned, THUMBNAIL, THUMBNAIL)
    layout = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    if layout != {name: (np.dtype(np.uint8), shape) for name, shape in shapes.items()}:
        shown = ", ".join(f"{name} {dtype} {shape}" for name, (dtype, shape) in layout.items())
        raise ValueError(f"found the arrays {one_line(shown) or 'none'}")
    if (arrays["split"] >= len(SPLITS)).any():
        raise ValueError("it names an unknown split")
    key = arrays.pop("key").tobytes()
    return TrainingRecord(key, **arrays)


def _hashed(key: bytes, kind: bytes, values: Iterable[bytes]) -> list[bytes]:
    return [
        hashlib.blake2b(value, key=key, person=kind, digest_size=DIGEST_SIZE).digest()
        for value in values
    ]


def _hashed_names(key: bytes, names: Iterable[str]) -> list[bytes]:
    # Folder names that are not UTF-8 reach Python as lone surrogates.
    encoded = (unicodedata.normalize("NFC", n).encode("utf-8", "surrogatepass") for n in names)
    return _hashed(key, b"identity", encoded)


def _matrix(values: Sequence[bytes]) -> Bytes:
    return np.frombuffer(b"".join(values), np.uint8).reshape(len(values), DIGEST_SIZE)


def _values(rows: Bytes) -> list[bytes]:
    content = rows.tobytes()
    return [content[at : at + DIGEST_SIZE] for at in range(0, len(content), DIGEST_SIZE)]
