"""The page that compares two pictures in a browser: its arithmetic, its files, and the page."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from twinlens.config import PictureSettings
from twinlens.data.decode import to_array
from twinlens.exports import web

PAGE = Path(web.__file__).parent / "web_page"
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed")


# --- arithmetic, under Node ---------------------------------------------------------------------


def in_node(folder: Path, script: str, cases: Any) -> Any:
    """What a function `(case) => result` in JavaScript, with the page's modules, returns."""
    for file in PAGE.glob("*.js"):
        shutil.copy(file, folder)
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "run.js").write_text(
        'import { readFileSync } from "node:fs";\n'
        'import * as pixels from "./pixels.js";\n'
        'import * as compare from "./compare.js";\n'
        'const bytes = (text) => new Uint8Array(Buffer.from(text, "base64"));\n'
        'const text = (bytes) => Buffer.from(bytes).toString("base64");\n'
        f"const answer = {script};\n"
        'const cases = JSON.parse(readFileSync("cases.json", "utf8"));\n'
        "console.log(JSON.stringify(cases.map(answer)));\n"
    )
    (folder / "cases.json").write_text(json.dumps(cases))
    assert NODE is not None
    done = subprocess.run(
        [NODE, "run.js"], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def as_raster(picture: Image.Image) -> dict[str, Any]:
    """A picture as browsers decode it: always RGBA."""
    rgba = np.asarray(picture.convert("RGBA"))
    height, width = rgba.shape[:2]
    pixels = base64.b64encode(rgba.tobytes()).decode()
    return {"pixels": pixels, "width": width, "height": height, "channels": 4}


def decoded(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(base64.b64decode(text), dtype=np.uint8)


NETWORK_INPUT = """({raster, picture, isJpeg}) => text(
  pixels.networkInput({...raster, pixels: bytes(raster.pixels)}, picture, isJpeg))"""


def noise(height: int, width: int, mode: str, seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    shape = (height, width, len(mode)) if len(mode) > 1 else (height, width)
    # Blocks of black and white among the noise reach both ends of rounding and clipping.
    values = rng.choice([0, 1, 127, 128, 254, 255, *rng.integers(0, 256, 6)], shape)
    return Image.fromarray(values.astype(np.uint8), mode=None)


SIZES = [(1, 1), (1, 40), (37, 1), (7, 5), (24, 36), (25, 31), (64, 48), (113, 97), (300, 211)]


@needs_node
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
def test_network_input_equals_that_of_python_bit_for_bit(
    tmp_path: Path, mode: str, fit: str
) -> None:
    cases, expected = [], []
    for seed, (height, width) in enumerate(SIZES):
        picture = noise(height, width, mode, seed)
        for color in ("grey", "rgb"):
            for size in ((24, 36), (17, 17), (50, 9), (130, 140)):
                spec = PictureSettings(size=size, color=color, fit=fit, fill=77)
                cases.append({
                    "raster": as_raster(picture), "picture": spec.model_dump(), "isJpeg": False
                })  # fmt: skip
                expected.append(to_array(picture, spec).transpose(1, 2, 0).ravel())
    results = [decoded(text) for text in in_node(tmp_path, NETWORK_INPUT, cases)]
    for case, result, wanted in zip(cases, results, expected, strict=True):
        difference = np.abs(result.astype(int) - wanted)
        raster, size = case["raster"], case["picture"]["size"]
        assert difference.max() == 0, (raster["height"], raster["width"], size, difference.max())
