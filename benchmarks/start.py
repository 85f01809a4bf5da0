"""From a cold shell: `twinlens --help`, and `twinlens verify` on a small model.

Each time is of a new process, from its start to its end; files are in the system's cache. The
model is an untrained network as "auto" chooses it for drawn characters. Both sides of a line
are started in turns; the split of `verify` is measured within its own process, by a second script.

Prediction: `--help` in a tenth of a second, since it imports nothing heavy. `verify` with torch
takes as long as torch's import (3 to 5 s here), and a forward pass in numpy, for which numpy,
pydantic and Pillow are all that is imported, about 0.6 s: six times as fast. ONNX Runtime would
need an exported file beside the weights and is imported in 0.3 s more.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.table import Line
from benchmarks.timing import Row, compare
from twinlens.config import ModelSettings, PictureSettings
from twinlens.measure.calibration import Calibration
from twinlens.measure.probability import Platt
from twinlens.model.bundle import save_bundle
from twinlens.model.comparators import make_comparator
from twinlens.model.encoder import Encoder

ROUNDS = 7
HELP_SECONDS, VERIFY_SECONDS = 0.2, 2.5
CALIBRATION = Calibration(0.5, 0.4, 0.6, 0.01, 100, 100, 10, Platt(10.0, -5.0), None, None)

NOTHING = "pass"
# As `verify` was before: the whole model, with torch.
TORCH = """
import sys
from twinlens.cli.main import main
from twinlens.match.matcher import Matcher
Matcher.lazy = Matcher.load
main(sys.argv[1:])
"""
# The imports in the order in which `verify` comes to them, then what it does.
SPLIT = """
import json, sys, time
begin, laps = time.perf_counter(), {}
def lap(name):
    global begin
    now = time.perf_counter()
    laps[name], begin = now - begin, now
from twinlens.cli.main import make_parser
words = make_parser().parse_args(sys.argv[1:])
lap("command line")
import numpy
lap("numpy")
import pydantic
from pydantic import BaseModel
lap("pydantic")
import PIL.Image, PIL.ImageOps
lap("Pillow")
from twinlens.match.matcher import Matcher
import twinlens.commands.verify
lap("our modules")
matcher = Matcher.lazy(words.model)
encoder = matcher._plain_encoder
lap("reading the model")
pixels = [matcher.pixels([path]) for path in (words.a, words.b)]
lap("decoding")
for one in pixels:
    encoder.embed(one)
lap("two forward passes")
print(json.dumps(laps))
"""


def lines() -> Iterator[Line]:
    """Both commands, each with its aim."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["verify", *map(str, _made(Path(folder)))]
        helped = compare(
            "twinlens --help", "an empty Python",
            lambda: _run(["-m", "twinlens", "--help"]), lambda: _run(["-c", NOTHING]), ROUNDS,
        )  # fmt: skip
        yield _within(helped, HELP_SECONDS)
        # The model's verdict is no error, and so both exit codes are taken.
        verified = compare(
            "twinlens verify, small model", "the same through torch",
            lambda: _run(["-m", "twinlens", *words]), lambda: _run(["-c", TORCH, *words]), ROUNDS,
        )  # fmt: skip
        yield _within(verified, VERIFY_SECONDS, _split(words))


def _within(row: Row, seconds: float, note: str = "") -> Line:
    line = row.line(f"ours under {seconds:g} s", note=note)
    return replace(line, reached=row.ours < seconds)


def _made(folder: Path) -> tuple[Path, Path, Path]:
    """A model, and two pictures of 105 x 105 as Omniglot's are."""
    picture = PictureSettings(size=(32, 32), color="grey")
    model = ModelSettings(backbone="conv", channels=(64, 128, 128, 256), shifts=True)
    comparator = make_comparator(model.comparator, model.embedding)
    save_bundle(
        folder / "model", Encoder(model, picture).eval(), comparator,
        calibration=CALIBRATION.as_json(),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    files = (folder / "a.png", folder / "b.png")
    for file in files:
        Image.fromarray(rng.integers(0, 256, (105, 105), dtype=np.uint8)).save(file)
    return folder / "model", *files


def _run(words: list[str]) -> str:
    """Output of a new Python process; exit code 1 is a verdict, a higher one an error."""
    run = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    if run.returncode not in (0, 1) or run.stderr:
        raise RuntimeError(run.stderr)
    return run.stdout


def _split(words: list[str]) -> str:
    laps = [json.loads(_run(["-c", SPLIT, *words])) for _ in range(ROUNDS)]
    parts = {name: statistics.median(one[name] for one in laps) for name in laps[0]}
    shown = ", ".join(f"{name} {1000 * seconds:.0f}" for name, seconds in parts.items())
    return (
        f"Milliseconds within the process, medians of {ROUNDS}: {shown}; no torch. The rest is "
        "the interpreter's own start and end"
    )
