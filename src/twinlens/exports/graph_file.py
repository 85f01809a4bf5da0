"""ONNX files of exports: read, write with metadata, optimise."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import onnxruntime as ort

from twinlens.errors import MissingExtraError

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["drop_unused", "optimised", "read_graph", "require_onnx", "write_graph"]


def require_onnx() -> None:
    """Check that graphs can be changed.

    Raises:
        MissingExtraError: the package `onnx` is missing.
    """
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("export", "an export changes ONNX files with `onnx`") from error


def read_graph(file: Path) -> ModelProto:
    """The ONNX file of a model that `read_stored_model` has checked."""
    import onnx

    return onnx.load(file)


def write_graph(graph: ModelProto, file: Path, metadata: Mapping[str, str]) -> None:
    """Write a graph; `metadata` replaces entries of the same names and is added to the others."""
    import onnx

    drop_unused(graph)
    domains = {node.domain for node in graph.graph.node} | {""}
    used = [opset for opset in graph.opset_import if opset.domain in domains]
    del graph.opset_import[:]
    graph.opset_import.extend(used)
    entries = {entry.key: entry.value for entry in graph.metadata_props}
    onnx.helper.set_model_props(graph, entries | dict(metadata))
    onnx.save(graph, file)


def drop_unused(graph: ModelProto) -> None:
    """Remove the constants that no operation takes; ONNX Runtime warns of each."""
    used = {name for node in graph.graph.node for name in node.input}
    used |= {output.name for output in graph.graph.output}
    kept = [tensor for tensor in graph.graph.initializer if tensor.name in used]
    del graph.graph.initializer[:]
    graph.graph.initializer.extend(kept)


def optimised(file: Path) -> ModelProto:
    """A graph after ONNX Runtime's optimisations that hold for every processor.

    Constants are computed, and batch norms become part of the convolutions before them.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / file.name)
        ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        return read_graph(Path(folder) / file.name)
