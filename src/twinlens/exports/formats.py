"""The formats of exports: their graphs, metadata and descriptions.

Shapes: N pictures, H x W pixels, C channels.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from twinlens._version import __version__
from twinlens.errors import ConfigError, MissingExtraError, ModelError, unknown_name
from twinlens.exports.graph_file import read_graph, require_onnx, write_graph
from twinlens.exports.quantize import quantize
from twinlens.exports.resize import with_resizing
from twinlens.measure.calibration import Calibration
from twinlens.model.stored import (
    COMPARATOR_GRAPH,
    DESCRIPTION,
    FORMAT,
    GRAPH,
    OPENVINO_FILES,
    THRESHOLD_KEY,
    WEIGHTS,
    StoredModel,
    file_sha256,
    fingerprint_of,
    read_stored_model,
    read_values,
    write_description,
)

__all__ = ["FORMATS", "RESIZES", "add_calibration", "check_export", "write_model"]

FORMATS: Final = ("onnx", "onnx-int8", "openvino", "hub", "web")
RESIZES: Final = ("outside", "inside")
RESIZING_FORMATS = ("onnx", "onnx-int8")
NOT_OF_FEATURES = ("onnx-int8", "web")


def check_export(stored: StoredModel, form: str, resize: str) -> None:
    """Check before any work that a model can be exported.

    Raises:
        ConfigError: an unknown format, or one that this model or `resize` does not have.
        ModelError: an export, or for "hub" a model without weights.
        MissingExtraError: a package is missing.
    """
    if form not in FORMATS:
        raise ConfigError(unknown_name("format", form, FORMATS))
    if resize not in RESIZES:
        raise ConfigError(unknown_name("resize", resize, RESIZES))
    if resize == "inside" and form not in RESIZING_FORMATS:
        raise ConfigError(
            f"--resize inside belongs to --format {' or '.join(RESIZING_FORMATS)}, found {form}"
        )
    if stored.description.weights is None:
        raise ModelError(f"{stored.path} is an export itself: export the model that it came from")
    needs_pictures = form in NOT_OF_FEATURES or resize == "inside"
    if stored.description.model.backbone == "strokes" and needs_pictures:
        option = f"--format {form}" if form in NOT_OF_FEATURES else "--resize inside"
        raise ConfigError(
            "the graph of the backbone strokes takes features, which twinlens computes, and "
            f"{option} needs pictures: use --format onnx, openvino or hub"
        )
    if form == "hub" and not stored.weights_file.is_file():
        raise ModelError(
            f"{stored.path} has no {WEIGHTS}, which --format hub publishes: export the run"
        )
    require_onnx()
    if form == "openvino":
        try:
            import openvino  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("openvino", "--format openvino needs OpenVINO") from error


def write_model(
    stored: StoredModel, folder: Path, form: str, resize: str, pixels_NHWC: NDArray[np.uint8] | None
) -> StoredModel:
    """Write the graphs and the description of an export, without calibration.

    Args:
        stored: the model.
        folder: an empty folder.
        form: a format of `FORMATS`; "web" gets the same graphs as "onnx".
        resize: "outside" or "inside".
        pixels_NHWC: calibration pictures of "onnx-int8".
    """
    picture = stored.description.picture
    if form == "onnx-int8":
        assert pixels_NHWC is not None
        quantize(stored.path / GRAPH, folder / GRAPH, pixels_NHWC, picture)
    elif form == "openvino":
        _convert(stored.path / GRAPH, folder / OPENVINO_FILES[0])
    else:
        shutil.copyfile(stored.path / GRAPH, folder / GRAPH)
    if resize == "inside":
        write_graph(with_resizing(read_graph(folder / GRAPH), picture), folder / GRAPH, {})
    if COMPARATOR_GRAPH in stored.description.graphs:
        shutil.copyfile(stored.path / COMPARATOR_GRAPH, folder / COMPARATOR_GRAPH)
    if form == "hub":
        shutil.copyfile(stored.weights_file, folder / WEIGHTS)
    values = read_values(stored.path) | {
        "format": FORMAT,
        "twinlens": __version__,
        "precision": "int8" if form == "onnx-int8" else "float32",
        "resize": resize,
        "calibration": None,
    }
    if form != "hub":
        values["weights"] = None
    if values.get("origin") is not None:
        # A path of this machine, and in format 1 hashes of names that can be guessed.
        values["origin"] = values["origin"] | {"source": "", "identities": []}
    return _describe(folder, values)


def add_calibration(stored: StoredModel, calibration: Calibration | None) -> StoredModel:
    """Complete an export: its calibration, and metadata by which its graph is used alone."""
    description = stored.description
    metadata: dict[str, str] = {
        "twinlens.comparator": description.model.comparator,
        "twinlens.precision": description.precision,
        "twinlens.resize": description.resize,
    }
    values = read_values(stored.path)
    if calibration is not None:
        values["calibration"] = calibration.as_json()
        metadata[THRESHOLD_KEY] = repr(calibration.threshold)
        metadata["twinlens.target_far"] = repr(calibration.target_far)
    if GRAPH in description.graphs:
        file = stored.path / GRAPH
        write_graph(read_graph(file), file, metadata)
    return _describe(stored.path, values)


def _describe(folder: Path, values: Mapping[str, Any]) -> StoredModel:
    """Write `model.json` for the graphs that lie in a folder."""
    names = (GRAPH, *OPENVINO_FILES, COMPARATOR_GRAPH)
    graphs = {name: file_sha256(folder / name) for name in names if (folder / name).is_file()}
    values = {**values, "graphs": graphs}
    (folder / DESCRIPTION).unlink(missing_ok=True)
    write_description(folder, {**values, "fingerprint": fingerprint_of(values)})
    return read_stored_model(folder)


def _convert(graph: Path, file: Path) -> None:
    """Write a graph in OpenVINO's own form, with all bits of its weights.

    `openvino.convert_model` would do the same, by a tool that comes with telemetry.
    """
    import openvino

    openvino.save_model(openvino.Core().read_model(graph), file, compress_to_fp16=False)
