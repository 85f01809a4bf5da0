"""The arithmetic format of a network on this machine: precision and memory format.

The fastest format differs by machine and network. On one processor, bfloat16 with channels last is
five times as fast on a ResNet50 and a tenth as fast on a small network. It is therefore measured
once for each network, and the choice is cached so that two runs do the same arithmetic.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from twinlens.config import TrainSettings
from twinlens.data.download import cache_folder
from twinlens.errors import DataError
from twinlens.files import write_text
from twinlens.model.device import has_bfloat16, pick_device
from twinlens.model.encoder import Encoder

__all__ = ["GAIN", "Compute", "choose_compute", "time_formats"]

# A format must be this much faster than float32 to replace it: timings are noisy.
GAIN = 1.15


@dataclass(frozen=True)
class Compute:
    """Device, precision and memory format of a network's arithmetic."""

    device: str
    bfloat16: bool = False
    channels_last: bool = False

    def autocast(self) -> AbstractContextManager[object]:
        """The context for a forward pass."""
        if not self.bfloat16:
            return nullcontext()
        return torch.autocast(self.device.partition(":")[0], torch.bfloat16)

    def place(self, module: nn.Module) -> None:
        """Move a network to the device and into the memory format."""
        module.to(self.device)
        if self.channels_last:
            module.to(memory_format=torch.channels_last)

    def __str__(self) -> str:
        precision = "bfloat16" if self.bfloat16 else "float32"
        return f"{self.device}, {precision}, channels {'last' if self.channels_last else 'first'}"


def choose_compute(encoder: Encoder, train: TrainSettings, batch_size: int) -> Compute:
    """The format in the settings, with each "auto" decided by measurement on this machine.

    Args:
        encoder: network to measure; its weights and statistics stay as they are.
        train: settings, of which `device`, `precision` and `channels_last` are read.
        batch_size: pictures of a training batch.
    """
    device = pick_device(train.device)
    precisions = {"auto": [False, True] if has_bfloat16(device) else [False]}
    formats = {"auto": [False, True] if _has_convolutions(encoder) else [False]}
    options = [
        Compute(device, bfloat16, last)
        for bfloat16 in precisions.get(train.precision, [train.precision == "bfloat16"])
        for last in formats.get(train.channels_last, [train.channels_last == "yes"])
    ]
    if len(options) == 1:
        return options[0]
    key = _key(encoder, device, batch_size)
    cached = _read_cache()
    for option in options:
        if cached.get(key) == [option.bfloat16, option.channels_last]:
            return option
    seconds = dict(zip(options, time_formats(encoder, options, batch_size), strict=True))
    default, best = options[0], min(options, key=seconds.__getitem__)
    chosen = best if seconds[best] * GAIN < seconds[default] else default
    _write_cache(cached | {key: [chosen.bfloat16, chosen.channels_last]})
    return chosen


def time_formats(
    encoder: Encoder, options: list[Compute], batch_size: int, rounds: int = 3
) -> list[float]:
    """Seconds of a forward and backward pass in each format, the least of several rounds.

    The formats take turns, so that a busy moment of the machine slows all of them.
    """
    saved = {k: v.clone() for k, v in encoder.state_dict().items()}
    device = options[0].device
    was_training = encoder.training
    encoder.to(device).train()
    shape = (batch_size, encoder.picture.channels, *encoder.picture.size)
    pictures = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device)
    best = [float("inf")] * len(options)
    with torch.random.fork_rng(devices=[]):  # Dropout draws from the caller's generator.
        for turn in range(rounds + 1):
            for index, option in enumerate(options):
                memory = torch.channels_last if option.channels_last else torch.contiguous_format
                encoder.to(memory_format=memory)
                seconds = _time_step(partial(_step, encoder, pictures, option), device)
                if turn:  # The first turn warms up.
                    best[index] = min(best[index], seconds)
    encoder.to(memory_format=torch.contiguous_format)
    encoder.load_state_dict(saved)
    encoder.zero_grad(set_to_none=True)
    encoder.train(was_training)
    return best


def _step(encoder: Encoder, pictures: torch.Tensor, option: Compute) -> None:
    with option.autocast():
        emb = encoder(pictures)
    emb.square().sum().backward()


def _time_step(step: Callable[[], None], device: str) -> float:
    _wait(device)
    start = time.perf_counter()
    step()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _has_convolutions(encoder: Encoder) -> bool:
    return any(isinstance(module, nn.Conv2d) for module in encoder.backbone.modules())


def _key(encoder: Encoder, device: str, batch_size: int) -> str:
    machine = torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor()
    model = encoder.model_settings.model_dump_json(exclude={"weights", "pretrained", "init"})
    parts = (machine, torch.get_num_threads(), torch.__version__, model, encoder.picture.size,
             encoder.picture.channels, batch_size)  # fmt: skip
    return repr(parts)


def _processor() -> str:
    return f"{platform.processor() or platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def _cache_file() -> Path:
    return cache_folder() / "formats.json"


def _read_cache() -> dict[str, list[bool]]:
    try:
        return dict(json.loads(_cache_file().read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _write_cache(cached: dict[str, list[bool]]) -> None:
    """Store the choices; if the cache cannot be written, the next run measures again."""
    try:
        _cache_file().parent.mkdir(parents=True, exist_ok=True)
        write_text(_cache_file(), json.dumps(cached, indent=1))
    except (OSError, DataError):
        return
