"""Embedding JPEG files beside its limits: decoding alone and the forward pass alone.

Prediction: both sides of the limit use all cores, so decoding beside the forward pass saves only
the moments in which a core is idle: 0.9 of the slower where the other takes a tenth of it (ResNet50
at 224, our small network on photographs), 0.7 where it takes a third (EfficientNet-lite0).
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.photographs import write_photographs
from benchmarks.table import Line
from benchmarks.timing import Row, seconds_of
from twinlens.commands.embed import embed_stream
from twinlens.config import ModelSettings, PictureSettings
from twinlens.data.pixel_cache import PixelStream, decode_table
from twinlens.data.pixels import DecodedTable
from twinlens.data.table import ImageTable
from twinlens.model.device import keep_freed_memory
from twinlens.model.encoder import Encoder, embed_pixels

ROUNDS = 5
# The network, the side of its pictures, and how many are embedded.
TRIALS = (("resnet50", 224, 96), ("tf_efficientnet_lite0", 224, 256), ("conv", 64, 512))


def lines() -> Iterator[Line]:
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        table = write_photographs(Path(folder), max(num for _, _, num in TRIALS))
        for backbone, side, num in TRIALS:
            yield from _one(backbone, side, table.select(np.arange(num)))


def _one(backbone: str, side: int, table: ImageTable) -> Iterator[Line]:
    encoder = Encoder(ModelSettings(backbone=backbone), PictureSettings(size=(side, side)))
    encoder.eval()
    pixels = _decoded(encoder, table).pixels
    work: dict[str, Callable[[], object]] = {
        "ours": lambda: embed_stream(encoder, _stream(encoder, table)),
        "decode": lambda: _decoded(encoder, table),
        "forward": lambda: embed_pixels(encoder, pixels),
        "sequence": lambda: embed_pixels(encoder, _decoded(encoder, table).pixels),
    }
    rounds = [{name: seconds_of(one) for name, one in work.items()} for _ in range(ROUNDS + 1)][1:]
    what = f"embed, {backbone} at {side}, {len(table)} JPEG files of 640 x 480"
    middle = {name: statistics.median(one[name] for one in rounds) for name in work}
    both = middle["decode"] + middle["forward"]
    slower = max(middle["decode"], middle["forward"])
    yield Row.of(
        what, "the slower of decoding alone and forward alone",
        [(one["ours"], max(one["decode"], one["forward"])) for one in rounds],
    ).line(
        "at least 0.9 of the limit", 0.9,
        f"decoding {middle['decode']:.2g} s, forward {middle['forward']:.2g} s, each on all cores: "
        f"without idle cores the most that can be had is {slower / both:.2f}",
    )  # fmt: skip
    yield Row.of(
        what, "decoding first, then embedding", [(one["ours"], one["sequence"]) for one in rounds]
    ).line()


def _decoded(encoder: Encoder, table: ImageTable) -> DecodedTable:
    return decode_table(table, encoder.picture, max_pixels=10**8, max_broken=0)


def _stream(encoder: Encoder, table: ImageTable) -> PixelStream:
    return PixelStream(table, encoder.picture, max_pixels=10**8, max_broken=0)
