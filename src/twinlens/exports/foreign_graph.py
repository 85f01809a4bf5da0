"""An ONNX embedding network from elsewhere, changed into the graph of a model.

The new graph takes pixels as they are decoded, scales them as the network needs, and scales
embeddings to length 1.

Shapes: N pictures, H x W pixels, C channels, D dimensions of the embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from twinlens.config import PictureSettings
from twinlens.errors import ModelError, first_line, one_line
from twinlens.exports.graph_file import require_onnx
from twinlens.model.onnx_file import MAX_SIZE

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

__all__ = ["InputLayout", "embedding_graph", "embedding_size", "input_layout", "read_foreign"]

OPSET, IR_VERSION = 20, 10  # of the written graph
NUM_NOISE = 2  # pictures that show whether a network takes several at once
CLOSE = 1e-3  # largest difference of an embedding by itself and in a batch, relative
PREFIX = "own_"  # of the network's names, which might be those of new nodes


@dataclass(frozen=True)
class InputLayout:
    """The pictures that a network takes.

    Attributes:
        order: order of the dimensions.
        channels: 1 or 3.
        size: (H, W); None if the graph leaves it open.
    """

    order: Literal["nchw", "nhwc"]
    channels: int
    size: tuple[int, int] | None


def read_foreign(file: Path) -> ModelProto:
    """An ONNX file from elsewhere, in the version that twinlens writes.

    Raises:
        ModelError: no ONNX file, one with weights in further files, or operators that cannot be
            brought to that version.
        MissingExtraError: the package `onnx` is missing.
    """
    require_onnx()
    import onnx

    try:
        if file.stat().st_size > MAX_SIZE:
            raise ValueError(f"it has more than {MAX_SIZE:,} bytes")
        model = onnx.load(file, load_external_data=False)
        if any(onnx.external_data_helper.uses_external_data(t) for t in model.graph.initializer):
            raise ValueError("its weights lie in further files; save it with all of them in one")
        onnx.checker.check_model(model)
        model = onnx.version_converter.convert_version(model, OPSET)
    except Exception as error:  # protobuf and onnx raise many kinds.
        reason = one_line(first_line(error) or type(error).__name__, 300)
        raise ModelError(f"{file} is not a usable ONNX model: {reason}") from error
    model.ir_version = IR_VERSION
    _open_batch(model)
    return model


def input_layout(model: ModelProto) -> InputLayout:
    """The pictures that a network takes, by the shape of its only input.

    Raises:
        ModelError: another input than float32 pictures, (N, C, H, W) or (N, H, W, C).
    """
    node = _picture_input(model)
    lengths = [dim.dim_value or None for dim in node.type.tensor_type.shape.dim]
    places = [place for place in (1, 3) if len(lengths) == 4 and lengths[place] in (1, 3)]
    if node.type.tensor_type.elem_type != 1 or len(places) != 1:
        shown = " x ".join(["N", *(str(length or "?") for length in lengths[1:])])
        raise ModelError(
            "the network must take float32 pictures (N, C, H, W) or (N, H, W, C) with 1 or 3 "
            f"channels; found the input '{one_line(node.name)}' of shape {shown}"
        )
    channels = lengths[places[0]]
    height, width = lengths[2:] if places == [1] else lengths[1:3]
    assert channels is not None
    size = None if height is None or width is None else (height, width)
    return InputLayout("nchw" if places == [1] else "nhwc", channels, size)


def embedding_size(model: ModelProto, layout: InputLayout, size: tuple[int, int]) -> int:
    """Dimensions D of a network's embedding; it is tried on noise.

    Args:
        model: the network.
        layout: its pictures.
        size: (H, W) of the pictures.
    Raises:
        ModelError: a network that fails, takes one picture at a time only, or gives anything else
            than one embedding (N, D) for each picture.
    """
    shape = (NUM_NOISE, *size, layout.channels)
    noise = np.random.default_rng(0).uniform(0, 1, shape).astype(np.float32)
    noise = noise.transpose(0, 3, 1, 2) if layout.order == "nchw" else noise
    try:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        name = session.get_inputs()[0].name
        outputs = session.run(None, {name: noise})
        (alone,) = session.run(None, {name: noise[:1]})[:1]
    except Exception as error:  # ONNX Runtime raises a dozen kinds.
        raise ModelError(
            f"the network cannot embed {NUM_NOISE} pictures of {size[0]} x {size[1]}: "
            f"{one_line(first_line(error), 300)}. Export it with an open number of pictures"
        ) from error
    shapes = [np.shape(output) for output in outputs]
    if len(shapes) != 1 or len(shapes[0]) != 2 or shapes[0][0] != NUM_NOISE:
        raise ModelError(
            "the network must give one embedding (N, D) of each picture; found for "
            f"{NUM_NOISE} pictures {' and '.join(map(str, shapes))}"
        )
    embedding: NDArray[np.float32] = outputs[0]
    largest = float(np.abs(embedding).max())
    if not 0 < largest < np.inf:
        raise ModelError("the network gives embeddings of zeros, NaN or infinity for noise")
    if np.abs(embedding[0] - alone[0]).max() > CLOSE * largest:
        raise ModelError(
            "the network gives a picture another embedding in a batch than by itself: export it "
            "in inference mode"
        )
    return int(embedding.shape[1])


def embedding_graph(
    model: ModelProto, layout: InputLayout, picture: PictureSettings, *, bgr: bool
) -> ModelProto:
    """The graph from `pixels`, uint8 (N, H, W, C), to `embedding`, float32 (N, D), of length 1.

    Args:
        model: the network, of one output.
        layout: its pictures.
        picture: size, colours and statistics of the pictures.
        bgr: whether the network takes blue, green, red.
    """
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.compose.add_prefix(model, PREFIX)
    graph, own = model.graph, _picture_input(model).name
    order = [2, 1, 0] if bgr else list(range(layout.channels))
    constants = {
        "white": np.float32(255), "tiny": np.float32(1e-12), "axis": np.array([1]),
        "order": np.array(order), "mean": np.array(picture.mean, np.float32),
        "std": np.array(picture.std, np.float32),
    }  # fmt: skip
    perm = [0, 3, 1, 2] if layout.order == "nchw" else [0, 1, 2, 3]
    before = [
        helper.make_node("Cast", ["pixels"], ["raw"], to=1),
        helper.make_node("Gather", ["raw", "order"], ["ordered"], axis=3),
        helper.make_node("Div", ["ordered", "white"], ["level"]),
        helper.make_node("Sub", ["level", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["normal"]),
        helper.make_node("Transpose", ["normal"], [own], perm=perm),
    ]
    (output,) = graph.output
    after = [
        helper.make_node("ReduceL2", [output.name, "axis"], ["length"], keepdims=1),
        helper.make_node("Max", ["length", "tiny"], ["divisor"]),
        helper.make_node("Div", [output.name, "divisor"], ["embedding"]),
    ]
    nodes = [*before, *graph.node, *after]
    pixels = helper.make_tensor_value_info(
        "pixels", onnx.TensorProto.UINT8, ["N", *picture.size, layout.channels]
    )
    embedding = helper.make_tensor_value_info("embedding", onnx.TensorProto.FLOAT, ["N", None])
    del graph.node[:], graph.input[:], graph.output[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.input.append(pixels)
    graph.output.append(embedding)
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()
    )
    return model


def _picture_input(model: ModelProto) -> ValueInfoProto:
    """The input that is no weight: old files list weights among the inputs.

    Raises:
        ModelError: none or several.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs: list[ValueInfoProto]
    inputs = [node for node in model.graph.input if node.name not in weights]
    if len(inputs) != 1:
        raise ModelError(f"the network must have one input, its pictures; found {len(inputs)}")
    return inputs[0]


def _open_batch(model: ModelProto) -> None:
    """Let a network that was exported for one picture take any number, where that is possible.

    The sizes are opened, and constant shapes that begin with 1 keep the number of pictures.
    """
    from onnx import numpy_helper

    graph = model.graph
    for node in (_picture_input(model), *graph.output):
        if node.type.tensor_type.shape.dim:
            node.type.tensor_type.shape.dim[0].dim_param = "N"
    del graph.value_info[:]
    reshapes = [node for node in graph.node if node.op_type == "Reshape"]
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensors[node.output[0]] = node.attribute[0].t
    for name in {node.input[1] for node in reshapes} & tensors.keys():
        lengths = numpy_helper.to_array(tensors[name]).copy()
        if lengths.size > 1 and lengths[0] == 1:
            # The length that is left, or that of the input.
            lengths[0] = 0 if (lengths[1:] == -1).any() else -1
            tensors[name].CopyFrom(numpy_helper.from_array(lengths, tensors[name].name))
    for node in reshapes:  # With `allowzero` a 0 would be no number of pictures.
        kept = [attribute for attribute in node.attribute if attribute.name != "allowzero"]
        del node.attribute[:]
        node.attribute.extend(kept)
