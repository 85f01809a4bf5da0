"""Inference of small networks with NumPy, for a few pictures: importing torch takes longer.

`own_backbones`, `layers` and `encoder` define these networks; tests compare both forms over all
settings. Other networks (timm's) and the learned comparator "network" need torch.

Shapes: N pictures, C channels, H x W pixels (a map of features is (H, W, C) here), F features,
D dimensions of the embedding. Suffixes of weights: O output and I input channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from twinlens.config import SHIFTS, ModelSettings, PictureSettings
from twinlens.errors import ModelError, first_line
from twinlens.model.stored import WEIGHTS, StoredModel, damaged_model
from twinlens.model.tensor_file import TensorLayout, read_layout

__all__ = ["NumpyEncoder", "load_numpy_encoder", "sigmoid_scale"]

Floats = NDArray[np.float32]
Step = Callable[[Floats], Floats]
Size = tuple[int, int]

ENCODER, COMPARATOR = "encoder.", "comparator."  # beginnings of the names of their tensors
EPSILON = 1e-5  # default of torch's batch norms


@dataclass(frozen=True)
class NumpyEncoder:
    """An `Encoder` in inference mode, without torch; `network` maps (H, W, C) to (D,)."""

    model_settings: ModelSettings
    picture: PictureSettings
    network: Step

    def embed(self, pixels_NCHW: NDArray[np.uint8]) -> Floats:
        """Embeddings, shape (N, D), of decoded uint8 pictures, shape (N, C, H, W).

        Each picture is computed alone, so its embedding does not depend on the others. Weights that
        are too large give infinity or NaN, without a warning.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            return np.stack([self._embed_one(one_CHW) for one_CHW in pixels_NCHW])

    def _embed_one(self, pixels_CHW: NDArray[np.uint8]) -> Floats:
        mean = np.array(self.picture.mean, dtype=np.float32)
        std = np.array(self.picture.std, dtype=np.float32)
        map_HWC = np.ascontiguousarray(pixels_CHW.transpose(1, 2, 0), dtype=np.float32)
        map_HWC = (map_HWC / np.float32(255) - mean) / std
        if not self.model_settings.shifts:
            return self._project(self.network(map_HWC))
        settings = self.model_settings
        mean_D = np.mean([self._project(self.network(view)) for view in _shifted(map_HWC)], axis=0)
        return _unit_length(mean_D) if settings.normalize or settings.classes else mean_D

    def _project(self, emb_D: Floats) -> Floats:
        """`Encoder.project` after the head."""
        if self.model_settings.classes:
            exp_D = np.exp(emb_D - emb_D.max())
            emb_D = np.sqrt(exp_D / exp_D.sum())
        elif self.model_settings.normalize:
            emb_D = _unit_length(emb_D)
        return np.asarray(emb_D, dtype=np.float32)


def _shifted(map_HWC: Floats) -> Iterator[Floats]:
    height, width = map_HWC.shape[:2]
    padded = np.pad(map_HWC, ((1, 1), (1, 1), (0, 0)), mode="edge")
    for down, right in SHIFTS:
        yield padded[1 - down : 1 - down + height, 1 - right : 1 - right + width]


def _unit_length(emb_D: Floats) -> Floats:
    return np.asarray(emb_D / max(float(np.linalg.norm(emb_D)), 1e-12), dtype=np.float32)


def load_numpy_encoder(stored: StoredModel) -> NumpyEncoder | None:
    """The encoder of a stored model.

    Returns:
        None if the backbone is none of these, or the weights do not match the settings.
    """
    model, picture = stored.description.model, stored.description.picture
    if model.backbone not in _BACKBONES:
        return None
    with _opened(stored) as tensors:
        try:
            weights = _Weights(tensors)
            backbone, num_features = _BACKBONES[model.backbone](weights, picture, model)
            head = _head(weights, num_features, model)
        except (TypeError, _WeightsMismatchError):  # TypeError: NumPy has no bfloat16.
            return None
    # A remaining tensor belongs to a layer that this module does not have.
    return None if weights.remaining else NumpyEncoder(model, picture, _sequence([backbone, head]))


def sigmoid_scale(stored: StoredModel) -> float:
    """The factor of the Euclidean distance in a stored comparator "sigmoid".

    Raises:
        ModelError: the weights belong to another comparator.
    """
    with _opened(stored) as tensors:
        name = f"{COMPARATOR}log_scale"
        layout = read_layout(stored.weights_file)
        if layout.get(name) != TensorLayout((), True):
            raise damaged_model(stored.path, "its weights lack the comparator's")
        with np.errstate(over="ignore"):
            scale = float(np.exp(tensors.get_tensor(name)))
    if not 0 < scale < math.inf:
        raise damaged_model(stored.path, f"{name} holds no usable number")
    return scale


@contextmanager
def _opened(stored: StoredModel) -> Iterator[Any]:
    """The weights file of a model, whose tensors are read when they are needed.

    Raises:
        ModelError: it is no safetensors file, or damaged.
    """
    try:
        read_layout(stored.weights_file)  # Checks the header.
        with safe_open(stored.weights_file, "numpy") as tensors:
            yield tensors
    except (OSError, TypeError, ValueError, SafetensorError) as error:
        if isinstance(error, ModelError):
            raise
        raise damaged_model(stored.path, f"{WEIGHTS}: {first_line(error)}") from error


# --- weights ------------------------------------------------------------------------------------


class _WeightsMismatchError(Exception):
    """A tensor is missing, has another shape, or holds numbers that are of no use."""


class _Weights:
    """The encoder's tensors by name; each is taken once, with shape and numbers checked.

    Attributes:
        remaining: names of those that were not taken.
    """

    def __init__(self, tensors: Any) -> None:
        self._tensors = tensors  # An open safetensors file.
        self.remaining = {
            name.removeprefix(ENCODER)
            for name in tensors.keys()  # noqa: SIM118
            if not name.startswith(COMPARATOR) and not name.endswith("num_batches_tracked")
        }

    def take(self, name: str, *shape: int) -> Floats:
        """Remove and return a tensor; -1 in `shape` stands for any length."""
        if name not in self.remaining:
            raise _WeightsMismatchError(name)
        self.remaining.remove(name)
        stored = self._tensors.get_slice(ENCODER + name)
        own = stored.get_shape()
        if stored.get_dtype() != "F32" or len(own) != len(shape):
            raise _WeightsMismatchError(name)
        if any(length not in (-1, n) for n, length in zip(own, shape, strict=True)):
            raise _WeightsMismatchError(name)
        tensor: Floats = self._tensors.get_tensor(ENCODER + name)
        if not np.isfinite(tensor).all():  # `build_bundle` then refuses the model.
            raise _WeightsMismatchError(name)
        return tensor


# --- layers -------------------------------------------------------------------------------------


def _sequence(steps: list[Step]) -> Step:
    return lambda x: reduce(lambda value, step: step(value), steps, x)


def _convolution(
    weights: _Weights, name: str, width: int, channel: int, kernel: int, *,
    stride: int = 1, padding: Size = (0, 0), bias: bool = True,
) -> Step:  # fmt: skip
    """`nn.Conv2d`; `padding` is before and after, the same for rows and columns."""
    kernel_OIHW = weights.take(f"{name}.weight", channel, width, kernel, kernel)
    shift = weights.take(f"{name}.bias", channel) if bias else np.float32(0)
    # In the order of the windows: rows, columns, channels.
    matrix = np.ascontiguousarray(kernel_OIHW.transpose(2, 3, 1, 0).reshape(-1, channel))

    def step(x_HWC: Floats) -> Floats:
        padded = np.pad(x_HWC, (padding, padding, (0, 0)))
        windows = sliding_window_view(padded, (kernel, kernel), axis=(0, 1))[::stride, ::stride]
        columns = windows.transpose(0, 1, 3, 4, 2).reshape(-1, len(matrix))
        return (columns @ matrix + shift).reshape(*windows.shape[:2], channel)

    return step


def _linear(weights: _Weights, name: str, width: int, channel: int) -> Step:
    matrix = weights.take(f"{name}.weight", channel, width)
    shift = weights.take(f"{name}.bias", channel)
    return lambda x: matrix @ x + shift


def _batch_norm(weights: _Weights, name: str, channel: int) -> Step:
    scale, shift, mean, variance = (
        weights.take(f"{name}.{part}", channel).astype(np.float64)
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    if (variance < 0).any():
        raise _WeightsMismatchError(name)
    scale = scale / np.sqrt(variance + EPSILON)
    times, plus = scale.astype(np.float32), (shift - mean * scale).astype(np.float32)
    return lambda x: x * times + plus


def _relu(leak: float = 0.0) -> Step:
    return lambda x: np.maximum(x, np.float32(leak) * x if leak else np.float32(0))


def _max_pool(size: int, stride: int) -> Step:
    def step(x_HWC: Floats) -> Floats:
        height, length = ((side - size) // stride * stride + 1 for side in x_HWC.shape[:2])
        parts = [
            x_HWC[top : top + height : stride, left : left + length : stride]
            for top in range(size)
            for left in range(size)
        ]
        largest: Floats = reduce(np.maximum, parts)
        return largest

    return step


def _response_norm(x_HWC: Floats) -> Floats:
    """`nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2)`."""
    squares = np.pad(np.square(x_HWC), ((0, 0), (0, 0), (2, 2)))
    mean = sliding_window_view(squares, 5, axis=2).mean(-1, dtype=np.float32)
    divisor = (2 + np.float32(5e-4) * mean) ** np.float32(0.75)
    return np.asarray(x_HWC / divisor, dtype=np.float32)


def _attention(weights: _Weights, name: str) -> Step:
    """timm's `EcaModule`: channels times a sigmoid of the means of neighbouring channels."""
    kernel = weights.take(f"{name}.conv.weight", 1, 1, -1).ravel()

    def step(x_HWC: Floats) -> Floats:
        mean = np.pad(x_HWC.mean((0, 1)), len(kernel) // 2)
        # The sigmoid by tanh: exp could overflow.
        gate: Floats = np.tanh(sliding_window_view(mean, len(kernel)) @ kernel / 2)
        return np.asarray(x_HWC * (gate / 2 + np.float32(0.5)), dtype=np.float32)

    return step


def _flat(x_HWC: Floats) -> Floats:
    """Flattened in torch's order, channels first."""
    return x_HWC.transpose(2, 0, 1).ravel()


def _pooled(pool: str, own: str, size: Size, channel: int) -> tuple[Step, int]:
    """The last step of a backbone, and its number of features F."""
    if (own if pool == "own" else pool) == "average":
        return lambda x: x.mean((0, 1)), channel
    return _flat, channel * size[0] * size[1]


# --- networks, as in `own_backbones` and `layers` -----------------------------------------------


def _conv(weights: _Weights, picture: PictureSettings, model: ModelSettings) -> tuple[Step, int]:
    width, (height, length) = picture.channels, picture.size
    padding = ((model.kernel - 1) // 2, model.kernel // 2)
    first = 1 - model.kernel % 2  # The padding of an even kernel is a layer before it.
    steps: list[Step] = []
    for index, channel in enumerate(model.channels):
        name = f"backbone.{index}"
        steps.append(
            _convolution(weights, f"{name}.{first}", width, channel, model.kernel,
                         padding=padding, bias=not model.batch_norm)
        )  # fmt: skip
        if model.batch_norm:
            steps.append(_batch_norm(weights, f"{name}.{first + 1}", channel))
        if min(height, length) >= 2:
            steps.append(_max_pool(2, 2))
            height, length = height // 2, length // 2
        steps.append(_relu(model.leak))
        width = channel
    end, num = _pooled(model.pool, "flatten", (height, length), width)
    return _sequence([*steps, end]), num


def _mlp(weights: _Weights, picture: PictureSettings, model: ModelSettings) -> tuple[Step, int]:
    width = picture.channels * picture.size[0] * picture.size[1]
    steps: list[Step] = [_flat]
    for index, channel in enumerate(model.channels):
        linear = _linear(weights, f"backbone.{2 * index + 1}", width, channel)
        steps += [linear, _relu(model.leak)]
        width = channel
    return _sequence(steps), width


def _residual(
    weights: _Weights, picture: PictureSettings, model: ModelSettings
) -> tuple[Step, int]:
    width, stride = model.channels[0], model.stride
    stem = _normed(weights, "backbone.0.0", "backbone.0.1", picture.channels, width, 3, stride)
    steps: list[Step] = [stem, _relu(model.leak)]
    size = _strided(picture.size, stride)
    for index, channel in enumerate(model.channels):
        stage, stride = f"backbone.{index + 1}", 1 if index == 0 else 2
        steps += [
            _block(weights, f"{stage}.0", width, channel, stride, model.leak),
            _block(weights, f"{stage}.1", channel, channel, 1, model.leak),
        ]
        if model.attention == "eca":
            steps.append(_attention(weights, f"{stage}.2"))
        width, size = channel, _strided(size, stride)
    end, num = _pooled(model.pool, "average", size, width)
    return _sequence([*steps, end]), num


def _strided(size: Size, stride: int) -> Size:
    return -(-size[0] // stride), -(-size[1] // stride)


def _normed(
    weights: _Weights, name: str, norm: str, width: int, channel: int, kernel: int, stride: int
) -> Step:
    padding = (kernel // 2, kernel // 2)
    convolution = _convolution(
        weights, name, width, channel, kernel, stride=stride, padding=padding, bias=False
    )
    return _sequence([convolution, _batch_norm(weights, norm, channel)])


def _block(
    weights: _Weights, name: str, width: int, channel: int, stride: int, leak: float
) -> Step:
    """torchvision's `BasicBlock`."""
    relu = _relu(leak)
    body = _sequence([
        _normed(weights, f"{name}.conv1", f"{name}.bn1", width, channel, 3, stride),
        relu,
        _normed(weights, f"{name}.conv2", f"{name}.bn2", channel, channel, 3, 1),
    ])  # fmt: skip
    shortcut = _sequence([])
    if stride != 1 or width != channel:
        side = f"{name}.downsample"
        shortcut = _normed(weights, f"{side}.0", f"{side}.1", width, channel, 1, stride)
    return lambda x: relu(body(x) + shortcut(x))


def _signet(weights: _Weights, picture: PictureSettings, model: ModelSettings) -> tuple[Step, int]:
    size = picture.size
    for kernel, stride in ((11, model.stride), (3, 2), (3, 2), (3, 2)):
        size = ((size[0] - kernel) // stride + 1, (size[1] - kernel) // stride + 1)
    relu, pool = _relu(), _max_pool(3, 2)
    steps = [
        _convolution(weights, "backbone.0", picture.channels, 96, 11, stride=model.stride),
        relu, _response_norm, pool,
        _convolution(weights, "backbone.4", 96, 256, 5, padding=(2, 2)),
        relu, _response_norm, pool,
        _convolution(weights, "backbone.9", 256, 384, 3, padding=(1, 1)), relu,
        _convolution(weights, "backbone.11", 384, 256, 3, padding=(1, 1)), relu,
        pool,
    ]  # fmt: skip
    end, num = _pooled(model.pool, "flatten", size, 256)
    return _sequence([*steps, end]), num


def _head(weights: _Weights, num_features: int, model: ModelSettings) -> Step:
    steps: list[Step] = []
    width, position, dropout = num_features, 0, int(model.dropout > 0)
    for index, hidden in enumerate(model.head):
        steps += [_linear(weights, f"head.{position}", width, hidden), _relu()]
        position += 2 + dropout
        last = index == len(model.head) - 1
        if model.head_norm == "all" or (model.head_norm == "between" and not last):
            steps.append(_batch_norm(weights, f"head.{position}", hidden))
            position += 1
        width = hidden
    if not model.head:
        position += dropout
    return _sequence([*steps, _linear(weights, f"head.{position}", width, model.embedding)])


_BACKBONES = {"conv": _conv, "mlp": _mlp, "residual": _residual, "signet": _signet}
