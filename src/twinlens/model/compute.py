"""The arithmetic format of a network: precision and memory format.

The fastest format differs by machine and network. A timing may come out otherwise the next time,
and another format gives other weights. The format therefore follows from a rule of the hardware and
the network, and is written into the settings of a run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from twinlens.config import ModelSettings, TrainSettings
from twinlens.errors import ConfigError, first_line
from twinlens.model.device import has_bfloat16, pick_device
from twinlens.model.encoder import Encoder
from twinlens.model.plugged_in import is_plugged_in

__all__ = ["Compute", "choose_compute", "compiled", "deterministic", "time_formats"]

WITHOUT_CONVOLUTIONS = ("mlp", "strokes")


@dataclass(frozen=True)
class Compute:
    """Device, precision and memory format of a network's arithmetic."""

    device: str
    bfloat16: bool = False
    channels_last: bool = False

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device != "cpu"

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

    def wait(self) -> None:
        """Wait until a GPU has done all that it was given, so that a clock can be read."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def __str__(self) -> str:
        precision = "bfloat16" if self.bfloat16 else "float32"
        return f"{self.device}, {precision}, channels {'last' if self.channels_last else 'first'}"


@contextmanager
def deterministic() -> Iterator[None]:
    """Use cuDNN's deterministic algorithms; others add in an order that changes from run to run."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before


def choose_compute(model: ModelSettings, train: TrainSettings) -> Compute:
    """The format in the settings, with each "auto" decided by a rule of the hardware.

    bfloat16 and channels last are for networks with convolutions, on hardware that multiplies
    bfloat16. Channels last is for all CPUs. A module of a program may support neither.

    Args:
        model: settings of the network, of which `backbone` is read.
        train: settings, of which `device`, `precision` and `channels_last` are read.
    """
    device = pick_device(train.device)
    convolves = model.backbone not in WITHOUT_CONVOLUTIONS and not is_plugged_in(model.backbone)
    bfloat16 = convolves and has_bfloat16(device)
    channels_last = bfloat16 or (convolves and device == "cpu")
    return Compute(
        device,
        bfloat16 if train.precision == "auto" else train.precision == "bfloat16",
        channels_last if train.channels_last == "auto" else train.channels_last == "yes",
    )


def compiled(network: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """The network as a function that torch compiles at its first call.

    Raises:
        ConfigError: by the function, if it cannot be compiled.
    """
    function = torch.compile(network)

    def call(x_BCHW: torch.Tensor) -> torch.Tensor:
        try:
            result: torch.Tensor = function(x_BCHW)
        except RuntimeError as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            raise ConfigError(
                f"train.compile cannot be used here ({first_line(error)}): leave it out, or "
                "install a C++ compiler"
            ) from error
        return result

    return call


def time_formats(
    encoder: Encoder,
    options: list[Compute],
    batch_size: int,
    rounds: int = 3,
    progress: Callable[[int, int], None] | None = None,
) -> list[float]:
    """Seconds of a forward and backward pass in each format, the least of several rounds.

    The formats take turns, so that a busy moment of the machine slows all of them.

    Args:
        encoder: network.
        options: formats to time.
        batch_size: pictures of a pass.
        rounds: timed passes of each format; one more warms up.
        progress: called with (done, all) after each pass.
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
                seconds = _time_step(partial(_step, encoder, pictures, option), option)
                if turn:  # The first turn warms up.
                    best[index] = min(best[index], seconds)
                if progress is not None:
                    progress(turn * len(options) + index + 1, (rounds + 1) * len(options))
    encoder.to(memory_format=torch.contiguous_format)
    encoder.load_state_dict(saved)
    encoder.zero_grad(set_to_none=True)
    encoder.train(was_training)
    return best


def _step(encoder: Encoder, pictures: torch.Tensor, option: Compute) -> None:
    with option.autocast():
        emb = encoder(pictures)
    emb.square().sum().backward()


def _time_step(step: Callable[[], None], compute: Compute) -> float:
    compute.wait()
    start = time.perf_counter()
    step()
    compute.wait()
    return time.perf_counter() - start
