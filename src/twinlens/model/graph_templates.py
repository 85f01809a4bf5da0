"""Graphs without weights, kept in the cache: torch takes seconds to export a network anew.

A template is the exporter's graph before it is optimised, which folds and drops weights. Every
graph is made of a template, an old one or a new one, so both ways give the same file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from twinlens.data.download import cache_folder
from twinlens.errors import DataError
from twinlens.files import writing_file
from twinlens.machine import versions

if TYPE_CHECKING:
    from onnx_ir import Model

__all__ = ["graph_of", "template_folder"]

MOST_KEPT = 200  # templates, of some 100 kB


def graph_of(network: nn.Module, facts: str | None, export: Callable[[], Model]) -> Model:
    """The graph of a network with its weights, not optimised yet.

    Args:
        network: in evaluation mode, on the CPU.
        facts: everything that the graph depends on, apart from layers and tensors; None if unknown,
            as for a module of a program: then no template is kept.
        export: makes the graph, whose weights are named as `network.state_dict()` names them.
    """
    import onnx_ir as ir

    tensors: dict[str, Tensor] = dict(network.named_buffers(remove_duplicate=False))
    tensors.update(network.named_parameters(remove_duplicate=False))
    file = None if facts is None else template_folder() / f"{_key(network, tensors, facts)}.onnx"
    graph = None if file is None else _read(file)
    if graph is None:
        template = _without_weights(export(), tensors)
        if file is not None:
            _keep(template, file)
        graph = ir.from_proto(ir.to_proto(template))  # As it is read, so that names are the same.
    for name, value in graph.graph.initializers.items():
        if name in tensors:
            value.const_value = ir.tensor(tensors[name].detach().numpy(), name=name)
            value.shape = ir.Shape(tensors[name].shape)
    return graph


def template_folder() -> Path:
    """The folder of the templates; it need not exist."""
    return cache_folder() / "graphs"


def _key(network: nn.Module, tensors: Mapping[str, Tensor], facts: str) -> str:
    """Hash of everything that a graph depends on apart from its weights, code included."""
    layout = [(name, str(tensor.dtype), *tensor.shape) for name, tensor in tensors.items()]
    exporter = [version(name) for name in ("onnxscript", "onnx-ir")]
    described = json.dumps([facts, versions(), exporter, repr(network), layout])
    content = hashlib.sha256(described.encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        content.update(source.read_bytes())
    return content.hexdigest()[:32]


def _without_weights(graph: Model, tensors: Mapping[str, Tensor]) -> Model:
    import onnx_ir as ir

    for name, value in graph.graph.initializers.items():
        if name in tensors:
            empty = np.zeros(0, dtype=tensors[name].detach().numpy().dtype)
            value.const_value = ir.tensor(empty, name=name)
    return graph


def _read(file: Path) -> Model | None:
    import onnx_ir as ir

    try:
        return ir.load(file)
    except Exception:  # Missing or damaged; the parser raises many kinds.
        return None


def _keep(template: Model, file: Path) -> None:
    """Write a template, and delete the oldest ones; a cache that cannot be written stays as is."""
    import onnx_ir as ir

    with suppress(DataError, OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with writing_file(file) as part:
            ir.save(template, part)
        kept = sorted(file.parent.glob("*.onnx"), key=lambda path: path.stat().st_mtime)
        for old in kept[:-MOST_KEPT]:
            old.unlink(missing_ok=True)
