"""The same seed gives the same format and the same weights, with and without a filled cache."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import TINY, draw_pictures
from safetensors.torch import load_file

import twinlens
from twinlens.model import compute
from twinlens.model.device import has_bfloat16

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")


@pytest.mark.parametrize(
    ("device", "backbone"),
    [
        ("cpu", "conv"),
        pytest.param("cuda", "mlp", marks=CUDA),
        pytest.param("cuda", "conv", marks=CUDA),
        pytest.param("cuda", "resnet18", marks=CUDA),
    ],
)
def test_the_same_seed_gives_the_same_run(
    device: str, backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compute, "time_formats", None)
    draw_pictures(tmp_path / "pictures", {f"thing {number}": 6 for number in range(10)})
    settings = TINY | {
        "model.backbone": backbone,
        "model.channels": (8, 16),
        "model.pretrained": False,
        "train.device": device,
        "train.precision": "auto",
        "train.channels_last": "auto",
        "train.steps": 8,
    }
    runs = [tmp_path / name for name in ("a", "b", "c")]
    for run, cache in zip(runs, ("first", "second", "first"), strict=True):
        monkeypatch.setenv("TWINLENS_CACHE", str(tmp_path / cache))
        twinlens.train(tmp_path / "pictures", out=run, settings=settings, quiet=True)

    bfloat16 = backbone != "mlp" and has_bfloat16(device)
    written = [json.loads((run / "settings.json").read_text())["train"] for run in runs]
    assert {each["precision"] for each in written} == {"bfloat16" if bfloat16 else "float32"}
    assert len({each["channels_last"] for each in written}) == 1
    assert "auto" not in (written[0]["precision"], written[0]["channels_last"])
    used = [json.loads((run / "run.json").read_text())["compute"] for run in runs]
    assert used == [used[0]] * 3
    assert used[0]["bfloat16"] == bfloat16
    first, *others = (load_file(run / "model" / "model.safetensors") for run in runs)
    for other in others:
        differences = [float((first[k].double() - other[k].double()).abs().max()) for k in first]
        assert max(differences) == 0
