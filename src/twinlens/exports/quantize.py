"""A graph in 8-bit integers: static quantisation, with ranges from pictures.

Weights have a scale for each output channel; activations have one range each, the smallest and
largest value on the calibration pictures. Pixels are integers already and stay as they are: their
normalisation becomes part of the first convolution. The other variants: benchmarks/NOTES.md.

Shapes: N pictures, H x W pixels, C channels, O output channels, KH x KW sides of a kernel.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twinlens.config import PictureSettings
from twinlens.exports.graph_file import drop_unused, optimised, read_graph, write_graph

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

__all__ = ["quantize"]

# Normalisation, softmax and the length of the embedding stay in floating point.
OPERATORS = ("Conv", "Gemm", "MatMul", "Add", "Clip", "Relu", "MaxPool")
NORMALISATION = frozenset({"Transpose", "Cast", "Sub", "Div", "Add", "Mul"})
LEVELS, IMAGE = "twinlens_levels", "twinlens_image"
WEIGHT, BIAS = "twinlens_weight", "twinlens_bias"
LEVELS_OF_PIXEL = 255


class _Reader:
    """Calibration pictures for onnxruntime, one at a time."""

    def __init__(self, pixels_NHWC: Iterable[NDArray[np.uint8]]) -> None:
        self._inputs = iter({"pixels": picture[None]} for picture in pixels_NHWC)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """The inputs of the next picture; None at the end."""
        return next(self._inputs, None)


def quantize(
    file: Path, out: Path, pixels_NHWC: NDArray[np.uint8], picture: PictureSettings
) -> None:
    """Write a quantised copy of a graph of pictures.

    Args:
        file: the graph; its input is `pixels`.
        out: path of the copy, with the same metadata.
        pixels_NHWC: calibration pictures, decoded for the network, shape (N, H, W, C).
        picture: normalisation of the pixels.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    graph = optimised(file)
    zero = _fold_normalisation(graph, picture)
    options: dict[str, Any] = {"MatMulConstBOnly": True}
    if zero is not None:
        exact = {"quant_type": QuantType.QUInt8, "scale": np.array(1, np.float32),
                 "zero_point": np.array(zero, np.uint8)}  # fmt: skip
        options["TensorQuantOverrides"] = {LEVELS: [exact]}
    with _quiet():
        quantize_static(
            graph, out, _Reader(pixels_NHWC), quant_format=QuantFormat.QDQ, per_channel=True,
            weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8,
            op_types_to_quantize=list(OPERATORS), extra_options=options,
        )  # fmt: skip
    quantised = read_graph(out)
    if zero is not None:
        _take_pixels(quantised)
    original = {entry.key: entry.value for entry in read_graph(file).metadata_props}
    write_graph(quantised, out, original)


def _fold_normalisation(model: ModelProto, picture: PictureSettings) -> int | None:
    """Make the normalisation part of the first convolution, which then takes `pixels` - zero.

    The result is the same but where the convolution pads: zeros there stand for the level `zero`
    of all channels, and for the mean of each channel before. In floating point, normalisation took
    a fifth of the time of the quantised network.

    Returns:
        The level `zero`; None, and nothing is changed, if the pixels do not reach a convolution
        through a normalisation alone.
    """
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    steps, first = _until_convolution(model, constants)
    if first is None or first.input[1] not in constants:
        return None
    weight = numpy_helper.to_array(constants[first.input[1]]).astype(np.float64)
    if weight.shape[1] != picture.channels or (len(first.input) > 2
                                               and first.input[2] not in constants):  # fmt: skip
        return None
    mean_C, std_C = (
        np.broadcast_to(values, picture.channels) * float(LEVELS_OF_PIXEL)
        for values in (picture.mean, picture.std)
    )
    zero = int(np.clip(np.rint(mean_C.mean()), 0, LEVELS_OF_PIXEL))
    weight_OCKK = weight / std_C[:, None, None]
    bias_O = (weight_OCKK * (zero - mean_C)[:, None, None]).sum(axis=(1, 2, 3))
    if len(first.input) > 2:
        bias_O = bias_O + numpy_helper.to_array(constants[first.input[2]])
    for step in steps:
        graph.node.remove(step)
    del first.input[:]
    first.input.extend([LEVELS, WEIGHT, BIAS])
    graph.initializer.extend([
        numpy_helper.from_array(weight_OCKK.astype(np.float32), WEIGHT),
        numpy_helper.from_array(bias_O.astype(np.float32), BIAS),
        numpy_helper.from_array(np.array(zero, np.float32), f"{LEVELS}_zero"),
    ])  # fmt: skip
    before = [
        helper.make_node("Transpose", ["pixels"], [IMAGE], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", [IMAGE], [f"{IMAGE}_float"], to=TensorProto.FLOAT),
        helper.make_node("Sub", [f"{IMAGE}_float", f"{LEVELS}_zero"], [LEVELS]),
    ]
    nodes = [*before, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    drop_unused(model)
    return zero


def _until_convolution(
    model: ModelProto, constants: dict[str, Any]
) -> tuple[list[NodeProto], NodeProto | None]:
    """The operations between the pixels and the first convolution, and it; None if others."""
    name, steps = "pixels", list[Any]()
    while True:
        users = [node for node in model.graph.node if name in node.input]
        users = [node for node in users if node.op_type != "Shape"]  # The number of pictures.
        if len(users) != 1:
            return [], None
        (node,) = users
        if node.op_type == "Conv" and node.input[0] == name:
            return steps, node
        others = [other for other in node.input if other != name]
        if node.op_type not in NORMALISATION or any(other not in constants for other in others):
            return [], None
        steps.append(node)
        (name,) = node.output


def _take_pixels(model: ModelProto) -> None:
    """Feed the pixels to the quantised convolution without a detour by floating point."""
    graph = model.graph
    (quantise,) = (
        node for node in graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] == LEVELS
    )  # fmt: skip
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == quantise.output[0]:
                node.input[place] = IMAGE
    dropped = [node for node in graph.node if node.output[0] in (f"{IMAGE}_float", LEVELS)]
    for node in (quantise, *dropped):
        graph.node.remove(node)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence onnxruntime's advice to preprocess the graph, which `optimised` has done."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)
