"""A graph that resizes pictures itself, as nearly like Pillow as ONNX's operators allow.

Shapes: H x W pixels of a picture, C channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twinlens.config import PictureSettings
from twinlens.exports.graph_file import drop_unused

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["resizing_graph", "with_resizing"]

PREFIX, RESIZED = "twinlens_", "resized"

# `exclude_outside` is Pillow's way at the border. Without it levels there differ by up to 19.
RESIZE = (
    'Resize <mode = "linear", antialias = 1, exclude_outside = 1, axes = [1, 2], '
    'coordinate_transformation_mode = "half_pixel">'
)

# Sides are computed in double precision, as Python does it for Pillow.
SIDES = """
    shape = Shape (pixels)
    sides = Slice (shape, one, three)
    sides_double = Cast <to = 11> (sides)
    ratio = Div (size_double, sides_double)
"""

STRETCH = f"""
    {RESIZED} = {RESIZE} (pixels, "", "", size)
"""

PAD = f"""
    {SIDES}
    scale = ReduceMin <keepdims = 1> (ratio)
    scaled = Mul (sides_double, scale)
    rounded_double = Round (scaled)
    rounded = Cast <to = 7> (rounded_double)
    at_least = Max (rounded, ones)
    inner = Min (at_least, size)
    small = {RESIZE} (pixels, "", "", inner)
    border = Sub (size, inner)
    before = Div (border, twos)
    after = Sub (border, before)
    pads = Concat <axis = 0> (before, after)
    {RESIZED} = Pad <mode = "constant"> (small, pads, fill, axes)
"""

CROP = f"""
    {SIDES}
    scale = ReduceMax <keepdims = 1> (ratio)
    exact = Div (size_double, scale)
    rounded_double = Round (exact)
    rounded = Cast <to = 7> (rounded_double)
    at_least = Max (rounded, ones)
    kept = Min (at_least, sides)
    border = Sub (sides, kept)
    start = Div (border, twos)
    end = Add (start, kept)
    middle = Slice (pixels, start, end, axes)
    {RESIZED} = {RESIZE} (middle, "", "", size)
"""

STEPS = {"stretch": STRETCH, "pad": PAD, "crop": CROP}


def resizing_graph(picture: PictureSettings) -> ModelProto:
    """A graph from `pixels`, uint8 (1, H, W, C) of any H and W, to the network's size.

    It follows `picture.fit`: "stretch" and "pad" differ from Pillow by rounding only; "crop" cuts
    at whole pixels, and Pillow at fractions of them.
    """
    import onnx

    height, width = picture.size
    text = f"""
    <ir_version: 10, opset_import: ["" : 20]>
    resizing (uint8[1, H, W, {picture.channels}] pixels)
        => (uint8[1, {height}, {width}, {picture.channels}] {RESIZED})
    <int64[2] size = {{{height}, {width}}}, double[2] size_double = {{{height}, {width}}},
     int64[2] ones = {{1, 1}}, int64[2] twos = {{2, 2}}, int64[2] axes = {{1, 2}},
     int64[1] one = {{1}}, int64[1] three = {{3}}, uint8 fill = {{{picture.fill}}}>
    {{ {STEPS[picture.fit]} }}
    """
    model: ModelProto = onnx.parser.parse_model(text)
    drop_unused(model)
    return model


def with_resizing(model: ModelProto, picture: PictureSettings) -> ModelProto:
    """The graph of a network, changed so that it takes one picture of any size."""
    import onnx

    before = onnx.compose.add_prefix(resizing_graph(picture), PREFIX, rename_inputs=False).graph
    graph = model.graph
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == "pixels":
                node.input[place] = before.output[0].name
    nodes = [*before.node, *graph.node]
    del graph.node[:], graph.input[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.input.extend(before.input)
    graph.initializer.extend(before.initializer)
    (embedding,) = graph.output
    embedding.type.tensor_type.shape.dim[0].dim_value = 1
    return model
