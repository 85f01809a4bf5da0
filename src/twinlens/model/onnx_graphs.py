"""A network of torch as ONNX graphs: pictures to embeddings, pairs of embeddings to distances.

Shapes: N pictures or pairs, H x W pixels, C channels, V views of `model.shifts`, F features,
D dimensions of the embedding.
"""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from twinlens._version import __version__
from twinlens.config import SHIFTS
from twinlens.errors import ModelError, first_line
from twinlens.model.comparators import Comparator
from twinlens.model.encoder import Encoder
from twinlens.model.graph_templates import graph_of
from twinlens.model.plugged_in import is_plugged_in
from twinlens.model.stored import MODEL_KEY, PICTURE_KEY, WEIGHTS_KEY

if TYPE_CHECKING:
    from onnx_ir import Model

__all__ = ["write_comparator", "write_encoder"]

CHATTY = ("torch.onnx", "torch.__trace", "onnxscript", "onnx_ir")  # loggers
STARTS = {"weights", "pretrained"}  # settings that a graph does not depend on
LEVELS = {"mean", "std"}  # settings that are tensors of the network
SEVERAL = 2  # torch takes a dimension of 1 for a constant.


class _OfPixels(nn.Module):
    """Pictures as they are decoded, uint8 (N, H, W, C), to embeddings (N, D)."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: Tensor) -> Tensor:
        # All views in one pass: a graph with the network once is smaller, and exported sooner.
        return self.encoder.embed(pixels.permute(0, 3, 1, 2), at_once=True)


class _OfFeatures(nn.Module):
    """Features that are computed outside of the graph (N, V, F) to embeddings (N, D)."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, features: Tensor) -> Tensor:
        return self.encoder.average([self.encoder.project(view) for view in features.unbind(1)])


class _Distance(nn.Module):
    """Embeddings (N, D) of both pictures of a pair to distances (N,)."""

    def __init__(self, comparator: Comparator) -> None:
        super().__init__()
        self.comparator = comparator

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.comparator.pairwise(a, b)


def write_encoder(encoder: Encoder, file: Path, weights: str) -> None:
    """Write `model.onnx`.

    Its input is `pixels`, uint8 (N, H, W, C), or for the backbone "strokes" `features`, float32
    (N, V, F); its output is `embedding`, float32 (N, D).

    Args:
        encoder: the network, on any device.
        file: path of the graph.
        weights: SHA-256 of `model.safetensors`, stored in the graph's metadata.
    Raises:
        ModelError: torch cannot export the network.
    """
    encoder = copy.deepcopy(encoder).cpu().to(memory_format=torch.contiguous_format).eval()
    for module in encoder.modules():  # In place, the exporter takes a fifth longer.
        if getattr(module, "inplace", False):
            vars(module)["inplace"] = False
    settings, picture, members = encoder.model_settings, encoder.picture, encoder.members
    metadata = {
        "twinlens.version": __version__,
        PICTURE_KEY: picture.model_dump_json(),
        MODEL_KEY: settings.model_dump_json(exclude=STARTS),
        WEIGHTS_KEY: weights,
    }
    parts = [(settings, picture), *((member.model, member.picture) for member in members)]
    facts = None
    if not any(is_plugged_in(model.backbone) for model, _ in parts):
        facts = "".join(
            f"{model.model_dump_json(exclude=STARTS)} {taken.model_dump_json(exclude=LEVELS)}"
            for model, taken in parts
        )
    if settings.backbone == "strokes":
        views = len(SHIFTS) if settings.shifts else 1
        features = torch.rand(SEVERAL, views, encoder.num_features)
        _write(_OfFeatures(encoder), {"features": features}, "embedding", file, metadata, facts)
    else:
        shape = (SEVERAL, *picture.size, picture.channels)
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
        _write(_OfPixels(encoder), {"pixels": pixels}, "embedding", file, metadata, facts)


def write_comparator(comparator: Comparator, dim: int, file: Path, weights: str) -> None:
    """Write `comparator.onnx`: `a`, `b`, float32 (N, D), to `distance`, float32 (N,).

    Raises:
        ModelError: torch cannot export the comparator.
    """
    # Two tensors: the exporter merges inputs that are one object.
    pair = {name: torch.rand(SEVERAL, dim) for name in ("a", "b")}
    comparator = copy.deepcopy(comparator).cpu().eval()
    metadata = {"twinlens.version": __version__, WEIGHTS_KEY: weights}
    _write(_Distance(comparator), pair, "distance", file, metadata, f"{comparator!r} {dim}")


def _write(
    network: nn.Module, inputs: Mapping[str, Tensor], output: str, file: Path,
    metadata: Mapping[str, str], facts: str | None,
) -> None:  # fmt: skip
    """Write a graph; `facts` are those that `graph_of` needs, None without a template."""
    network.eval()
    try:
        with _quiet():
            export = partial(_export, network, inputs, output)
            program = torch.onnx.ONNXProgram(graph_of(network, facts, export), None)
            program.optimize()
    except Exception as error:  # torch and onnxscript raise many kinds.
        raise ModelError(
            f"torch cannot export this network to ONNX: {first_line(error)}"
        ) from error
    _clear(program.model)
    program.model.metadata_props.update(metadata)
    program.save(file)


def _export(network: nn.Module, inputs: Mapping[str, Tensor], output: str) -> Model:
    """The graph of a network before optimisation."""
    num = torch.export.Dim("N")
    program = torch.onnx.export(
        network, tuple(inputs.values()), dynamo=True, verbose=False, optimize=False,
        input_names=list(inputs), output_names=[output],
        dynamic_shapes=tuple({0: num} for _ in inputs),
    )  # fmt: skip
    assert program is not None
    _clear(program.model)
    return program.model


def _clear(graph: Model) -> None:
    """Remove the exporter's descriptions: lines of source, with paths of this machine."""
    for node in graph.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    graph.graph.metadata_props.clear()
    graph.metadata_props.clear()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter, which prints its steps and warns of parts of torch itself."""
    levels = {name: logging.getLogger(name).level for name in CHATTY}
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
