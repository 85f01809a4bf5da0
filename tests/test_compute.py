"""The choice of the arithmetic, which leaves the network unchanged."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from twinlens.config import ModelSettings, PictureSettings, TrainSettings
from twinlens.errors import ConfigError, TrainingError
from twinlens.model import compute
from twinlens.model.compute import (
    Compute,
    choose_compute,
    deterministic,
    has_bfloat16,
    pick_device,
    time_formats,
)
from twinlens.model.device import memory_explained
from twinlens.model.encoder import Encoder


def made(backbone: str = "conv", stride: int = 1) -> Encoder:
    model = ModelSettings(
        backbone=backbone, channels=(4, 4), embedding=3, head=(5,), dropout=0.5, stride=stride
    )
    return Encoder(model, PictureSettings(size=(8, 8), color="grey"))


def test_the_device() -> None:
    assert pick_device("cpu") == "cpu"
    assert pick_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("warp", "mps", "meta"):  # Which may be there, but have no float64 or no numbers.
        with pytest.raises(ConfigError, match=f"train.device must be auto, cpu, cuda .* '{name}'"):
            pick_device(name)
    with pytest.raises(ConfigError, match="'cuda:99' cannot be used here"):
        pick_device("cuda:99")


def test_too_little_memory_of_a_gpu_names_the_settings() -> None:
    match = r"train\.chunk=32.*train\.device=cpu"
    with pytest.raises(TrainingError, match=match), memory_explained():
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_bfloat16_is_for_hardware_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not has_bfloat16("mps")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert not has_bfloat16("cpu")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert has_bfloat16("cpu")


def test_bfloat16_on_cuda_takes_compute_capability_8(monkeypatch: pytest.MonkeyPatch) -> None:
    capability = {"cuda": (7, 5), "cuda:1": (8, 0)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", capability.__getitem__)
    assert not has_bfloat16("cuda")
    assert has_bfloat16("cuda:1")


@pytest.mark.parametrize(
    ("backbone", "device", "bfloat16", "expected"),
    [
        ("conv", "cpu", True, (True, True)),
        ("conv", "cpu", False, (False, True)),
        ("resnet18", "cuda", True, (True, True)),
        ("resnet18", "cuda", False, (False, False)),
        ("mlp", "cpu", True, (False, False)),
        ("strokes", "cuda", True, (False, False)),
    ],
)
def test_the_format_is_a_rule_of_hardware_and_network(
    backbone: str,
    device: str,
    bfloat16: bool,
    expected: tuple[bool, bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No timing decides: the same seed gives the same weights with and without any cache."""
    monkeypatch.setattr(compute, "has_bfloat16", lambda _: bfloat16)
    monkeypatch.setattr(compute, "pick_device", lambda name: name)
    monkeypatch.setattr(compute, "time_formats", None)
    model = ModelSettings(backbone=backbone)
    assert choose_compute(model, TrainSettings(device=device)) == Compute(device, *expected)
    other = TrainSettings(
        device=device,
        precision="float32" if expected[0] else "bfloat16",
        channels_last="no" if expected[1] else "yes",
    )
    changed = Compute(device, not expected[0], not expected[1])
    assert choose_compute(model, other) == changed


def test_determinism_ends_with_its_context() -> None:
    with deterministic():
        assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.deterministic


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
