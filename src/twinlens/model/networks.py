"""A model's networks in torch: saved after training, and loaded to make graphs of them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from twinlens.config import FaceSettings
from twinlens.data.pixels import Pixels
from twinlens.errors import ConfigError, DataError, ModelError
from twinlens.files import creating_folder, writing_errors, writing_file
from twinlens.model.comparators import Comparator, make_comparator
from twinlens.model.encoder import Encoder, embed_pixels
from twinlens.model.fused import encoder_layout, make_encoder
from twinlens.model.onnx_graphs import write_comparator, write_encoder
from twinlens.model.plugged_in import is_plugged_in, plugged
from twinlens.model.pretrained import describe_start
from twinlens.model.runtime import OnnxEncoder
from twinlens.model.stored import (
    COMPARATOR_GRAPH,
    GRAPH,
    LEARNED_COMPARATORS,
    WEIGHTS,
    ModelDescription,
    Origin,
    StartRecord,
    StoredModel,
    damaged_model,
    file_sha256,
    fingerprint_of,
    read_stored_model,
    read_values,
    write_description,
)
from twinlens.model.tensor_file import (
    TensorLayout,
    layout_problem,
    read_layout,
    tensors_under,
)
from twinlens.model.weights import layout_of, not_finite

__all__ = ["Networks", "check_parity", "check_portable", "complete_model", "load_networks",
           "save_model"]  # fmt: skip

TOLERANCE = 1e-4
"""Largest difference of an embedding's numbers from torch's, as a share of the largest number."""

OWN_WEIGHTS = {"weights": None, "pretrained": False}
NUM_NOISE = 4  # pictures that every graph is compared on at once


class Networks(NamedTuple):
    """Encoder and comparator of a model."""

    encoder: Encoder
    comparator: Comparator


def save_model(
    folder: Path,
    networks: Networks,
    origin: Origin | None = None,
    start: StartRecord | None = None,
    face: FaceSettings | None = None,
) -> StoredModel:
    """Write a model folder, weights first, then its graphs; an older folder is replaced.

    Args:
        folder: the model folder.
        networks: encoder and comparator, on any device.
        origin: the training data.
        start: model that the training began with; by default pretrained weights of the settings.
        face: crop of the faces that it was trained on; None for other pictures.
    Raises:
        ModelError: the graphs cannot be made, or give other embeddings than torch. The weights are
            kept, and the graphs are made when the model is loaded.
    """
    parts = {"encoder": networks.encoder, "comparator": networks.comparator}
    weights = {
        f"{part}.{name}": tensor.detach().cpu().contiguous()
        for part, network in parts.items()
        for name, tensor in network.state_dict().items()
    }
    # The initial weights belong to the run's history; the model brings its own.
    model = networks.encoder.model_settings.model_copy(update=OWN_WEIGHTS)
    members = tuple(
        member.model_copy(update={"model": member.model.model_copy(update=OWN_WEIGHTS)})
        for member in networks.encoder.members
    )
    starts = map(
        describe_start,
        [networks.encoder.model_settings, *(member.model for member in networks.encoder.members)],
    )
    with creating_folder(folder, str(folder.parent), "name another place", replace=True) as part:
        with writing_errors(folder / WEIGHTS):
            save_file(weights, part / WEIGHTS)
        description = ModelDescription(
            picture=networks.encoder.picture,
            model=model,
            members=members,
            weights=file_sha256(part / WEIGHTS),
            fingerprint="0" * 16,  # Computed below.
            origin=origin,
            start=next((one for one in (start, *starts) if one is not None), None),
            face=face,
        )
        values = description.model_dump(mode="json", exclude={"origin": {"identities"}})
        write_description(part, values | {"fingerprint": fingerprint_of(values)})
    return _write_graphs(folder, networks)


def complete_model(stored: StoredModel) -> StoredModel:
    """Make the graphs of a model of format 1 or 2, or of one whose graphs could not be made.

    Raises:
        ModelError: as in `save_model`; or a folder that cannot be written.
    """
    try:
        return _write_graphs(stored.path, load_networks(stored))
    except DataError as error:
        raise ModelError(
            f"the model {stored.path} has no {GRAPH} yet, which would be made there once: {error}. "
            "Copy its folder to a place where you may write"
        ) from error


def check_parity(
    stored: StoredModel, encoder: Encoder, pixels_NCHW: Pixels
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Compare a model's graph with the network that it was made from.

    Returns:
        The embeddings (N, D) of ONNX Runtime, and those of torch.
    Raises:
        ModelError: they differ by more than `TOLERANCE`; the model has no graphs any more.
    """
    emb_ND = OnnxEncoder(stored, "cpu").embed(pixels_NCHW)
    with torch.backends.cudnn.flags(allow_tf32=False):
        reference_ND = embed_pixels(encoder, pixels_NCHW)
    largest = float(np.abs(reference_ND).max(initial=np.finfo(np.float32).tiny))
    difference = float(np.abs(emb_ND - reference_ND).max(initial=0)) / largest
    if not difference <= TOLERANCE:  # Also NaN.
        _name_graphs(stored.path, {})
        raise ModelError(
            f"the graph {stored.path / GRAPH} differs from torch by {difference:.1e} of the "
            f"largest number of an embedding, at most {TOLERANCE:.0e} is allowed. The weights are "
            f"kept in {stored.weights_file}; please report this network "
            f"('{encoder.model_settings.backbone}')"
        )
    return emb_ND, reference_ND


def check_portable(encoder: Encoder) -> None:
    """Check before training that a graph of the network can be made and gives its embeddings.

    Raises:
        ConfigError: torch cannot export it, or the graph gives other embeddings.
    """
    settings = encoder.model_settings
    comparator = make_comparator("cosine", settings.embedding)
    with tempfile.TemporaryDirectory() as top:
        try:
            save_model(Path(top) / "model", Networks(encoder, comparator))
        except ModelError as error:
            raise ConfigError(
                f"the backbone '{settings.backbone}' gives no portable model: {error}. Nothing was "
                "trained; change its forward pass so that torch.onnx.export(dynamo=True) takes it"
            ) from error


def _write_graphs(folder: Path, networks: Networks) -> StoredModel:
    """Write the graphs beside the weights, and name them in the description."""
    weights, encoder = read_values(folder)["weights"], networks.encoder
    graphs = {}
    # Processes that complete a model at once replace whole files by equal ones.
    with writing_file(folder / GRAPH) as part:
        write_encoder(encoder, part, weights)
        graphs[GRAPH] = file_sha256(part)
    if networks.comparator.name in LEARNED_COMPARATORS:
        with writing_file(folder / COMPARATOR_GRAPH) as part:
            dim = encoder.model_settings.embedding
            write_comparator(networks.comparator, dim, part, weights)
            graphs[COMPARATOR_GRAPH] = file_sha256(part)
    _name_graphs(folder, graphs)
    stored = read_stored_model(folder)
    shape = (NUM_NOISE, encoder.picture.channels, *encoder.picture.size)
    noise_NCHW = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    check_parity(stored, encoder, noise_NCHW)
    return stored


def _name_graphs(folder: Path, graphs: dict[str, str]) -> None:
    values = read_values(folder) | {"graphs": graphs}
    write_description(folder, values | {"fingerprint": fingerprint_of(values)})


def load_networks(stored: StoredModel) -> Networks:
    """Build the networks of a stored model, on the CPU.

    Raises:
        ModelError: its weights belong to another network than its settings, or are not there.
        ConfigError: its backbone is a module of a program, which was not passed.
    """
    description = stored.description
    model = description.model
    for part in (model, *(member.model for member in description.members)):
        if is_plugged_in(part.backbone):
            plugged("backbone", part.backbone)
    try:
        # Before the network is built: a name or a number in a file could claim any size.
        problem = layout_problem(read_layout(stored.weights_file), _layout(description))
        if problem is None:
            networks = Networks(
                make_encoder(model, description.picture, description.members, load=False),
                make_comparator(model.comparator, model.embedding),
            )
            weights = load_file(stored.weights_file)
            networks.encoder.load_state_dict(tensors_under(weights, "encoder."))
            networks.comparator.load_state_dict(tensors_under(weights, "comparator."))
            problem = not_finite(networks.encoder.state_dict() | networks.comparator.state_dict())
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise damaged_model(stored.path, str(error)) from error
    if problem is not None and is_plugged_in(model.backbone):
        raise ConfigError(f"the backbone that was passed does not fit {stored.path}: {problem}")
    if problem is not None:
        raise damaged_model(stored.path, f"{WEIGHTS}: {problem}")
    for network in networks:
        network.eval()
    return networks


def _layout(description: ModelDescription) -> dict[str, TensorLayout]:
    """The layout of the weights that a description needs."""
    model = description.model
    with torch.device("meta"):
        comparator = make_comparator(model.comparator, model.embedding).state_dict()
    parts = {
        "encoder": encoder_layout(model, description.picture, description.members),
        "comparator": layout_of(comparator),
    }
    return {f"{part}.{name}": value for part, own in parts.items() for name, value in own.items()}
