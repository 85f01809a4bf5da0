"""The arithmetic format of a network on this machine: precision and memory format.

What is fastest differs by machine and network (bfloat16 with channels last is five times faster
on a ResNet50 and ten times slower on a small network, on the same processor), so it is measured,
once for each, and the answer is kept in the cache so that two runs do the same arithmetic.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from twinlens.config import TrainSettings
from twinlens.data.download import cache_folder
from twinlens.files import replacing_file
from twinlens.model.device import has_bfloat16, pick_device
from twinlens.model.encoder import Encoder

__all__ = ["GAIN", "Compute", "choose_compute", "time_formats"]

# A format must win by this much to be taken over plain float32: these machines are noisy.
GAIN = 1.15


@dataclass(frozen=True)
class Compute:
    """A way to compute; `seconds` are for one training step where it was measured."""

    device: str
    bfloat16: bool = False
    channels_last: bool = False
    seconds: float | None = None

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
    """What the settings ask for, with each "auto" decided by measurement on this machine.

    Args:
        encoder: its weights and statistics are left as they were.
        train: `device`, `precision` and `channels_last` are read.
        batch_size: the number of pictures of a training batch.
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
    known = _read_known()
    for option in options:
        if known.get(key) == [option.bfloat16, option.channels_last]:
            return option
    timed = time_formats(encoder, options, batch_size)
    plain, best = timed[0], min(timed, key=_seconds)
    chosen = best if _seconds(best) * GAIN < _seconds(plain) else plain
    _remember(known | {key: [chosen.bfloat16, chosen.channels_last]})
    return Compute(device, chosen.bfloat16, chosen.channels_last)


def time_formats(
    encoder: Encoder, options: list[Compute], batch_size: int, rounds: int = 3
) -> list[Compute]:
    """Time one forward and backward pass in each way, in turns, and take each one's fastest."""
    saved = {k: v.clone() for k, v in encoder.state_dict().items()}
    device = options[0].device
    was_training = encoder.training
    encoder.to(device).train()
    shape = (batch_size, encoder.picture.channels, *encoder.picture.size)
    pictures = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device)
    best = [float("inf")] * len(options)
    with torch.random.fork_rng(devices=[]):  # Dropout must not move the caller's random numbers.
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
    return [replace(option, seconds=s) for option, s in zip(options, best, strict=True)]


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


def _seconds(option: Compute) -> float:
    assert option.seconds is not None
    return option.seconds


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


def _known_file() -> Path:
    return cache_folder() / "formats.json"


def _read_known() -> dict[str, list[bool]]:
    try:
        return dict(json.loads(_known_file().read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _remember(known: dict[str, list[bool]]) -> None:
    """Keep what was measured; a cache folder that cannot be written only costs the time again."""
    try:
        _known_file().parent.mkdir(parents=True, exist_ok=True)
        with replacing_file(
            _known_file(), _known_file().with_name(f"formats.{os.getpid()}.part")
        ) as part:
            part.write_text(json.dumps(known, indent=1), encoding="utf-8")
    except OSError:
        return
