"""One question from a cold shell: torch is not loaded, and would give the same answer.

The verdict on forms of pictures is in test_matcher, and the command's words are in test_cli.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TinyRun, save_networks
from PIL import Image

import twinlens
from twinlens.config import ModelSettings, PictureSettings
from twinlens.errors import CalibrationError, ConfigError, ModelError, PictureError
from twinlens.measure.calibration import Calibration
from twinlens.measure.probability import Platt
from twinlens.model.comparators import COMPARATORS, Network, Sigmoid, make_comparator
from twinlens.model.encoder import Encoder, embed_pixels
from twinlens.model.networks import load_networks

CALIBRATION = Calibration(0.3, 0.2, 0.4, 0.1, 9, 9, 3, Platt(2.0, -1.0), None, None)


def model_at(
    folder: Path, model: dict[str, Any], picture: dict[str, Any], *, calibrated: bool = True
) -> Path:
    torch.manual_seed(1)
    settings = ModelSettings.model_validate({"embedding": 8} | model)
    encoder = Encoder(settings, PictureSettings.model_validate({"size": (14, 12)} | picture))
    comparator = make_comparator(settings.comparator, 8)
    if isinstance(comparator, Sigmoid):
        comparator.log_scale.data.fill_(0.5)
    if isinstance(comparator, Network):  # Untrained it would often say 0.
        comparator.hidden.weight.data.abs_()
        comparator.out.weight.data.abs_().neg_()
    stored = CALIBRATION.as_json() if calibrated else None
    return save_networks(folder, encoder.eval(), comparator, calibration=stored).path


def two_files(folder: Path) -> tuple[Path, Path]:
    """A photograph in colour that is much wider than high, and a small grey picture."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 9, 3), dtype=np.uint8))
    coarse.resize((420, 160)).save(folder / "a.jpg")
    Image.fromarray(rng.integers(0, 256, (20, 9), dtype=np.uint8)).save(folder / "b.png")
    return folder / "a.jpg", folder / "b.png"


def in_a_new_process(words: list[str], say: str) -> str:
    """Output of a new Python process after the command."""
    code = f"import sys; from twinlens.cli.main import main; main({words!r}); print({say})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return run.stdout


def same_as_torch(model: Path, folder: Path) -> None:
    a, b = two_files(folder)
    answer, matcher = twinlens.verify(model, a, b), twinlens.load(model)
    encoder, comparator = load_networks(matcher.stored)
    emb_a, emb_b = torch.from_numpy(embed_pixels(encoder, matcher.pixels([a, b]))).split(1)
    distance = comparator.pairwise(emb_a, emb_b).item()
    assert distance > 1e-4
    assert answer.distance == pytest.approx(distance, abs=1e-5)
    assert answer.match == (answer.distance <= CALIBRATION.threshold)
    assert answer.probability == pytest.approx(CALIBRATION.probability(distance), abs=1e-4)
    assert answer == matcher.verify(a, b)
    same = twinlens.verify(model, a, a)
    assert (same.distance, same.similarity, same.match) == (0, 1, True)


@pytest.mark.parametrize(
    ("backbone", "fit", "color"),
    [
        ("conv", "stretch", "grey"),
        ("mlp", "pad", "rgb"),
        ("residual", "crop", "grey"),
        ("test_resnet.r160_in1k", "stretch", "rgb"),
    ],
)
def test_the_answer_is_that_of_torch(backbone: str, fit: str, color: str, tmp_path: Path) -> None:
    network = {"backbone": backbone, "channels": (4, 6), "comparator": "cosine"}
    picture = {"color": color, "fit": fit} | ({"size": (32, 32)} if "resnet" in backbone else {})
    same_as_torch(model_at(tmp_path / "m", network, picture), tmp_path)


@pytest.mark.parametrize("comparator", COMPARATORS)
def test_the_answer_is_that_of_torch_for_every_comparator(comparator: str, tmp_path: Path) -> None:
    network = {"channels": (4, 6), "comparator": comparator, "normalize": False}
    same_as_torch(model_at(tmp_path / "m", network, {}), tmp_path)


@pytest.mark.parametrize("words", [["--json"], ["--show", "SHOWN"]])
def test_a_cold_shell_does_without_torch(
    words: list[str], tiny_run: TinyRun, tmp_path: Path
) -> None:
    a, b = tiny_run.data / "thing 0" / "0.png", tiny_run.data / "thing 3" / "0.png"
    shown = tmp_path / "shown.png"
    given = [str(shown) if word == "SHOWN" else word for word in words]
    heavy = ("torch", "torchvision", "timm", "sklearn", "scipy", "matplotlib", "pandas", "lance")
    said = in_a_new_process(
        ["verify", str(tiny_run.run), str(a), str(b), *given],
        f"[name for name in {heavy!r} if name in sys.modules]",
    )
    answer, _, loaded = said.rstrip().rpartition("\n")
    assert loaded == "[]"
    assert shown.exists() == ("SHOWN" in words)
    if "--json" in words:
        expected, given = twinlens.load(tiny_run.run).verify(a, b).as_json(), json.loads(answer)
        assert given.pop("quality") == expected.pop("quality")
        assert given == pytest.approx(expected, abs=1e-5)


def test_what_is_wrong_is_said_as_ever(tmp_path: Path) -> None:
    model = model_at(tmp_path / "m", {"channels": (4,)}, {}, calibrated=False)
    a, b = two_files(tmp_path)
    with pytest.raises(CalibrationError, match=r"twinlens calibrate .*m DATA"):
        twinlens.verify(model, a, b)
    model = model_at(tmp_path / "m", {"channels": (4,)}, {})
    with pytest.raises(PictureError, match="no such file"):
        twinlens.verify(model, a, tmp_path / "none.png")
    with pytest.raises(ModelError, match="nothing is there"):
        twinlens.verify(tmp_path / "none", a, b)
    for name in ("model.onnx", "model.safetensors"):
        content = (model / name).read_bytes()
        (model / name).write_bytes(content[:-1])
        with pytest.raises(ModelError, match=rf"damaged: {name}"):
            twinlens.verify(model, a, b)
        (model / name).write_bytes(content)
    with pytest.raises(ConfigError, match="device must be auto, cpu, cuda"):
        twinlens.verify(model, a, b, device="gpu")
