"""The choice of the arithmetic, which leaves the network unchanged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from twinlens.config import ModelSettings, PictureSettings, TrainSettings
from twinlens.errors import ConfigError
from twinlens.model import compute, device
from twinlens.model.compute import (
    Compute,
    choose_compute,
    has_bfloat16,
    pick_device,
    time_formats,
)
from twinlens.model.device import versions
from twinlens.model.encoder import Encoder

CPU = TrainSettings(device="cpu")


def made(backbone: str = "conv", stride: int = 1) -> Encoder:
    model = ModelSettings(
        backbone=backbone, channels=(4, 4), embedding=3, head=(5,), dropout=0.5, stride=stride
    )
    return Encoder(model, PictureSettings(size=(8, 8), color="grey"))


@pytest.fixture
def timings(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[bool, bool], float]:
    """A machine with bfloat16, and its speed in each format by this table."""
    table = {(False, False): 1.0, (False, True): 0.9, (True, False): 2.0, (True, True): 3.0}

    def timed(encoder: Encoder, options: list[Compute], batch_size: int) -> list[float]:
        return [table[o.bfloat16, o.channels_last] for o in options]

    monkeypatch.setattr(compute, "time_formats", timed)
    monkeypatch.setattr(compute, "has_bfloat16", lambda device: True)
    return table


def test_the_device() -> None:
    assert pick_device("cpu") == "cpu"
    assert pick_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("warp", "mps", "meta"):  # Which may be there, but have no float64 or no numbers.
        with pytest.raises(ConfigError, match=f"train.device must be auto, cpu, cuda .* '{name}'"):
            pick_device(name)
    with pytest.raises(ConfigError, match="'cuda:99' cannot be used here"):
        pick_device("cuda:99")


def test_versions_leave_out_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert versions().keys() >= {"twinlens", "python", "torch", "timm"}
    monkeypatch.setattr(device, "PACKAGES", ("torch", "no-such-package"))
    assert versions().keys() == {"twinlens", "python", "torch"}


def test_bfloat16_is_for_hardware_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not has_bfloat16("mps")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert not has_bfloat16("cpu")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert has_bfloat16("cpu")


def test_without_bfloat16_it_is_not_even_tried(
    monkeypatch: pytest.MonkeyPatch, timings: dict[tuple[bool, bool], float]
) -> None:
    timings[True, True] = 0.01
    monkeypatch.setattr(compute, "has_bfloat16", lambda device: False)
    assert not choose_compute(made(), CPU, 4).bfloat16


def test_the_fastest_wins_if_it_wins_clearly(timings: dict[tuple[bool, bool], float]) -> None:
    assert choose_compute(made(), CPU, 4) == Compute("cpu")  # A gain of a tenth may be noise.
    timings[True, True] = 0.5
    assert choose_compute(made(), CPU, 8) == Compute("cpu", True, True)
    assert choose_compute(made("mlp"), CPU, 8) == Compute("cpu")  # Nothing to lay out otherwise.


def test_the_answer_is_kept_for_each_network_and_batch(
    timings: dict[tuple[bool, bool], float], own_cache: Path
) -> None:
    timings[False, True] = 0.1
    assert choose_compute(made(), CPU, 4).channels_last
    timings[False, True] = 9.0
    assert choose_compute(made(), CPU, 4).channels_last
    assert not choose_compute(made(), CPU, 5).channels_last
    assert not choose_compute(made(stride=2), CPU, 4).channels_last
    known = json.loads((own_cache / "formats.json").read_text())
    assert sorted(known.values()) == [[False, False], [False, False], [False, True]]


@pytest.mark.parametrize("content", ["", "[1]", "{", "3"])
def test_a_damaged_cache_is_measured_anew(
    content: str, timings: dict[tuple[bool, bool], float], own_cache: Path
) -> None:
    own_cache.mkdir()
    (own_cache / "formats.json").write_text(content)
    timings[False, True] = 0.1
    assert choose_compute(made(), CPU, 4).channels_last
    assert len(json.loads((own_cache / "formats.json").read_text())) == 1


def test_a_cache_that_cannot_be_written_costs_only_time(
    timings: dict[tuple[bool, bool], float], own_cache: Path
) -> None:
    own_cache.write_text("a file is in the way")
    assert choose_compute(made(), CPU, 4) == Compute("cpu")


def test_formats_set_by_the_user_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "time_formats", None)
    said = TrainSettings(device="cpu", precision="bfloat16", channels_last="yes")
    assert choose_compute(made(), said, 4) == Compute("cpu", True, True)
    said = TrainSettings(device="cpu", precision="float32", channels_last="no")
    assert choose_compute(made(), said, 4) == Compute("cpu")


def test_measuring_leaves_no_trace() -> None:
    encoder = made().eval()
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    torch.manual_seed(5)
    options = [Compute("cpu", bf, last) for bf in (False, True) for last in (False, True)]
    seconds = time_formats(encoder, options, 4, rounds=1)
    random_now = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), random_now)
    assert len(seconds) == 4
    assert all(0 < one < 60 for one in seconds)
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    assert all(p.grad is None for p in encoder.parameters())
    assert not encoder.training
    assert not encoder.uses_channels_last


def test_place_and_autocast() -> None:
    encoder = made()
    Compute("cpu", True, True).place(encoder)
    assert encoder.uses_channels_last
    for bfloat16, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        with Compute("cpu", bfloat16).autocast():
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert str(Compute("cpu", True, True)) == "cpu, bfloat16, channels last"
    assert str(Compute("cpu")) == "cpu, float32, channels first"


FAULTS = """
import resource, sys
import torch
from twinlens.model.device import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit(3)
layer = torch.nn.Conv2d(1, 32, 3, padding=1)
def step():
    layer(torch.ones(64, 1, 96, 96)).relu().square().sum().backward()
for _ in range(8):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
def test_freed_memory_is_used_again() -> None:
    """A step's blocks of 75 MB are cleared page by page, unless they are there from the last."""
    runs = [
        subprocess.run(
            [sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=False
        )
        for how in ("give", "keep")
    ]
    if runs[1].returncode == 3:
        pytest.skip("the allocator is not glibc's")
    given, kept = (int(run.stdout) for run in runs)
    assert kept < 0.5 * given
