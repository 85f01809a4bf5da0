"""Answers of one model: from a cold shell, one picture, a thousand files, and their memory.

Beside them the same answers by torch, as twinlens gave them before it had graphs: the networks
are built from `model.safetensors`. Times of a cold shell are of new processes, files are in the
system's cache, and both sides of a line are started in turns. The small network is `conv` for
drawn characters of 56 x 56; lite0 is EfficientNet-lite0 at 224. Both have random weights: neither
time nor memory depends on them. What int8 costs in accuracy is measured by `twinlens export`, on
a trained model (MEASUREMENTS.md).

Prediction: a cold answer is all imports (numpy, pydantic, Pillow, ONNX Runtime: 0.3 s), lite0 adds
two forward passes of 10 ms and the reading of 14 MB; torch takes 1.3 to 3 s for its imports alone.
One embedding takes half of torch's time, int8 half of that again. Decoding and the forward pass
share the cores, so that a thousand files take the sum of both, not the slower.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.photographs import write_photographs
from benchmarks.table import Line
from benchmarks.timing import Row, compare, seconds_of
from twinlens.commands.embed_rows import embed_stream
from twinlens.config import ModelSettings, PictureSettings
from twinlens.data.pixel_cache import PixelStream, decode_table
from twinlens.data.table import ImageTable
from twinlens.exports.quantize import quantize
from twinlens.match.matcher import Matcher
from twinlens.measure.calibration import Calibration
from twinlens.measure.probability import Platt
from twinlens.model.comparators import make_comparator
from twinlens.model.encoder import Encoder, embed_pixels
from twinlens.model.networks import Networks, load_networks, save_model
from twinlens.model.runtime import OnnxEncoder
from twinlens.model.stored import GRAPH, StoredModel, store_calibration

ROUNDS, NUM_FILES, NUM_FORWARDS = 7, 1000, 40
MAX_MB = 150
CALIBRATION = Calibration(0.5, 0.4, 0.6, 0.01, 100, 100, 10, Platt(10.0, -5.0), None, None)
MODELS = {
    "the small network": (
        ModelSettings(backbone="conv"), PictureSettings(size=(56, 56), color="grey"), 0.35,
    ),
    "lite0": (
        ModelSettings(backbone="tf_efficientnet_lite0"), PictureSettings(size=(224, 224)), 0.5,
    ),
}  # fmt: skip
"""Name -> network, pictures, and the seconds that a cold answer may take."""

TORCH = """
import sys
from twinlens.match.matcher import Matcher
from twinlens.model.encoder import embed_pixels
from twinlens.model.networks import load_networks
from twinlens.model.stored import read_stored_model
model, a, b = sys.argv[1:]
matcher = Matcher(read_stored_model(model))
networks = load_networks(matcher.stored)
pair = embed_pixels(networks.encoder, matcher.pixels([a, b]))
print(matcher.comparison.pairwise(pair[:1], pair[1:]))
"""

COMMAND = "import sys; from twinlens.cli.main import main; main(sys.argv[1:])"


def lines() -> Iterator[Line]:
    """Each row of the table, with its aim."""
    with tempfile.TemporaryDirectory() as folder:
        photographs = Path(folder) / "photographs"
        photographs.mkdir()
        table = write_photographs(photographs, NUM_FILES)
        files = [str(path) for path in table.path[:2]]
        stored = {name: _saved(Path(folder) / name, *MODELS[name][:2]) for name in MODELS}
        for name, (_, _, aim) in MODELS.items():
            yield _cold(name, [str(stored[name].path), *files], aim)
        yield from _one_embedding(stored["lite0"], Path(folder))
        yield from _files(stored["lite0"], table)
        yield from _memory(stored["lite0"], table, Path(folder))


def _saved(folder: Path, model: ModelSettings, picture: PictureSettings) -> StoredModel:
    torch.manual_seed(0)
    comparator = make_comparator(model.comparator, model.embedding)
    stored = save_model(folder, Networks(Encoder(model, picture).eval(), comparator))
    return store_calibration(stored, CALIBRATION.as_json())


def _cold(name: str, words: list[str], aim: float) -> Line:
    row = compare(
        f"`verify` from a cold shell, {name}", "the same by torch",
        lambda: _run(["-m", "twinlens", "verify", *words]), lambda: _run(["-c", TORCH, *words]),
        ROUNDS,
    )  # fmt: skip
    line = row.line(f"ours under {aim:g} s")
    return Line(**{**vars(line), "reached": row.ours < aim})


def _one_embedding(stored: StoredModel, folder: Path) -> Iterator[Line]:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (32, 3, 224, 224), dtype=np.uint8)
    networks = load_networks(stored)
    int8 = _int8(stored, pixels, folder / "int8")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name, model, aim in (("float32", stored, 2.0), ("int8", int8, 4.0)):
        encoder = OnnxEncoder(model, "cpu", threads=1)
        yield compare(
            f"{NUM_FORWARDS} embeddings one by one, lite0, {name}, one thread", "torch, float32",
            lambda encoder=encoder: [encoder.embed(pixels[:1]) for _ in range(NUM_FORWARDS)],
            lambda: [embed_pixels(networks.encoder, pixels[:1]) for _ in range(NUM_FORWARDS)],
        ).line(f"{aim:g} x", aim)  # fmt: skip
    torch.set_num_threads(threads)


def _int8(stored: StoredModel, pixels: np.ndarray, folder: Path) -> StoredModel:
    """The model with a graph in 8-bit integers."""
    folder.mkdir()
    quantize(
        stored.path / GRAPH, folder / GRAPH, pixels.transpose(0, 2, 3, 1),
        stored.description.picture,
    )  # fmt: skip
    return StoredModel(folder, stored.description)


def _files(stored: StoredModel, table: ImageTable) -> Iterator[Line]:
    matcher, networks = Matcher(stored), load_networks(stored)
    decoded = _decoded(stored, table)

    def torch_stream() -> None:
        for _, pixels in _stream(stored, table).batches(32, prefetch=False):
            embed_pixels(networks.encoder, pixels)

    work: dict[str, Callable[[], object]] = {
        "ours": lambda: embed_stream(matcher, _stream(stored, table)),
        "torch": torch_stream,
        "decode": lambda: _decoded(stored, table),
        "forward": lambda: matcher.embed_pixels(decoded),
    }
    rounds = [{name: seconds_of(one) for name, one in work.items()} for _ in range(4)][1:]
    what = f"embed {len(table):,} JPEG files of 640 x 480 with lite0"
    yield Row.of(what, "torch", [(one["ours"], one["torch"]) for one in rounds]).line("2 x", 2.0)
    middle = {name: statistics.median(one[name] for one in rounds) for name in work}
    both, slower = (f(middle["decode"], middle["forward"]) for f in (_sum, max))
    yield Row.of(
        what, "the slower of decoding alone and forward alone, each on all cores",
        [(one["ours"], max(one["decode"], one["forward"])) for one in rounds],
    ).line(
        "0.95", 0.95,
        f"decoding {middle['decode']:.3g} s, forward {middle['forward']:.3g} s, each on all cores: "
        f"without an idle moment the most that can be had is {slower / both:.2f}",
    )  # fmt: skip


def _memory(stored: StoredModel, table: ImageTable, folder: Path) -> Iterator[Line]:
    from twinlens.gallery.gallery import Gallery

    words = [str(stored.path), *(str(path) for path in table.path[:2])]
    place = folder / "gallery"
    rng = np.random.default_rng(0)
    gallery = Gallery.create(place, Matcher(stored))
    gallery.enrol_embeddings(
        rng.normal(size=(1000, stored.num_embedding)).astype(np.float32),
        [f"person {number // 4}" for number in range(1000)], fingerprint=gallery.fingerprint,
    )  # fmt: skip
    reference = _resident(TORCH, words)
    for name, command in (
        ("verify", ["verify", *words]),
        ("search (of 1,000 templates)", ["search", str(place), words[1]]),
    ):
        ours = _resident(COMMAND, command)
        yield Line(
            f"resident memory of `{name}`, lite0", "`verify` by torch", f"{ours:.0f} MB",
            f"{reference:.0f} MB", f"theirs / ours {reference / ours:.1f}", f"under {MAX_MB} MB",
            ours < MAX_MB,
        )  # fmt: skip


def _sum(a: float, b: float) -> float:
    return a + b


def _decoded(stored: StoredModel, table: ImageTable) -> np.ndarray:
    picture = stored.description.picture
    return np.asarray(decode_table(table, picture, max_pixels=10**8, max_broken=0).pixels)


def _stream(stored: StoredModel, table: ImageTable) -> PixelStream:
    return PixelStream(table, stored.description.picture, max_pixels=10**8, max_broken=0)


def _run(words: Sequence[str]) -> None:
    """A new Python process; exit code 1 is a verdict, a higher one an error."""
    run = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    if run.returncode not in (0, 1) or run.stderr:
        raise RuntimeError(run.stderr)


def _resident(code: str, words: Sequence[str]) -> float:
    """Peak memory of a new Python process, in MB."""
    say = "from benchmarks.peak import peak_mb; print(peak_mb())"
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\n{say}", *words],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(run.stdout.splitlines()[-1])
