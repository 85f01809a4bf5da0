"""Pictures of the next batch are read on a thread, and the weights stay the same."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from digits_run import TRAIN, digest, digit_settings, start
from torch import nn

from twinlens.errors import ConfigError, PictureError
from twinlens.learn.embed_batch import LabelledPixels
from twinlens.learn.read_ahead import ReadAhead


class FilePixels(np.ndarray):
    """Pixels like those of a memory map."""


def test_what_was_begun_is_read_once_on_the_thread_and_all_else_at_once() -> None:
    pixels = np.arange(40, dtype=np.uint8).reshape(10, 4)
    threads = list[str]()

    def take(position: Any) -> Any:
        threads.append(threading.current_thread().name.split("_")[0])
        return pixels[position]

    read = ReadAhead(take, torch.device("cpu"), (4,))
    first, second = np.array([3, 1]), np.array([7, 0])
    read.begin(first)
    assert read(first).tolist() == pixels[first].tolist()
    assert read(first).tolist() == pixels[first].tolist()  # Not begun again.
    read.begin(first)
    assert read(second).tolist() == pixels[second].tolist()  # Others than begun.
    assert sorted(threads)[:2] == [threading.current_thread().name] * 2


def test_pictures_for_a_gpu_are_read_into_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.arange(40, dtype=np.uint8).reshape(10, 1, 2, 2)
    pins = list[bool]()

    def empty(shape: Any, *, pin_memory: bool, **options: Any) -> torch.Tensor:
        pins.append(pin_memory)
        return torch.zeros(shape, **options)

    monkeypatch.setattr(torch, "empty", empty)
    images = LabelledPixels.of(pixels, np.arange(10), np.zeros(10, dtype=bool))
    read = ReadAhead(images.take, torch.device("cuda"), (1, 2, 2))
    assert read(np.array([3, 1])).tolist() == pixels[[3, 1]].tolist()
    assert pins == [True]


def test_an_error_of_the_thread_is_raised_where_the_pictures_are_wanted() -> None:
    def take(position: Any) -> Any:
        raise PictureError("a.jpg", "it is gone")

    read = ReadAhead(take, torch.device("cpu"), (4,))
    read.begin(np.arange(2))
    with pytest.raises(PictureError, match="it is gone"):
        read(np.arange(2))


@pytest.mark.parametrize("chunk", [None, 16])
def test_reading_ahead_changes_no_weight(chunk: int | None) -> None:
    settings = digit_settings(train__steps=8, train__validations=1, train__chunk=chunk)
    of_file = LabelledPixels.of(TRAIN.pixels.view(FilePixels), TRAIN.label, TRAIN.forged)
    weights = {digest(start(settings, train=train)[0]) for train in (TRAIN, of_file)}
    assert len(weights) == 1


def test_compiling_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = digit_settings(train__steps=2, train__validations=1, train__compile=True)
    plain = settings.model_copy(
        update={"train": settings.train.model_copy(update={"compile": False})}
    )
    num = list[int]()

    def compile_(network: nn.Module) -> Any:
        def call(x_BCHW: torch.Tensor) -> Any:
            num.append(len(x_BCHW))
            return network(x_BCHW)

        return call

    monkeypatch.setattr(torch, "compile", compile_)
    assert digest(start(settings)[0]) == digest(start(plain)[0])
    assert num == [60, 60]

    def fail(network: nn.Module) -> Any:
        class InvalidCompilerError(RuntimeError):
            __module__ = "torch._inductor.exc"

        def call(_: torch.Tensor) -> Any:
            raise InvalidCompilerError("no compiler\nand more")

        return call

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(ConfigError, match=r"train.compile cannot be used here \(no compiler\)"):
        start(settings)
