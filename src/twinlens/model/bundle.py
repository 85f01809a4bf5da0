"""A model with its networks: build it from its stored form, and save it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from twinlens.files import creating_folder, write_text, writing_errors
from twinlens.model.comparators import Comparator, make_comparator
from twinlens.model.device import pick_device
from twinlens.model.encoder import Encoder, encoder_layout
from twinlens.model.stored import (
    DESCRIPTION,
    WEIGHTS,
    ModelDescription,
    Origin,
    StoredModel,
    damaged_model,
    file_sha256,
    fingerprint_of,
    read_stored_model,
    read_values,
    tensors_under,
)
from twinlens.model.tensor_file import TensorLayout, layout_problem, read_layout
from twinlens.model.weights import layout_of, not_finite

__all__ = ["Bundle", "build_bundle", "load_bundle", "save_bundle", "store_calibration"]


@dataclass(frozen=True)
class Bundle:
    """A loaded model: its networks, and the contents of `model.json` beside them."""

    encoder: Encoder
    comparator: Comparator
    fingerprint: str
    calibration: dict[str, Any] | None
    origin: Origin | None
    path: Path


def save_bundle(
    folder: Path,
    encoder: Encoder,
    comparator: Comparator,
    *,
    origin: Origin | None = None,
    calibration: dict[str, Any] | None = None,
) -> Bundle:
    """Write a model folder under a temporary name and rename it; an older one is replaced."""
    weights = {f"encoder.{k}": v for k, v in encoder.state_dict().items()}
    weights |= {f"comparator.{k}": v for k, v in comparator.state_dict().items()}
    weights = {k: v.detach().cpu().contiguous() for k, v in weights.items()}
    # The initial weights belong to the run's history; the bundle brings its own.
    model = encoder.model_settings.model_copy(update={"weights": None, "pretrained": False})
    with creating_folder(folder, str(folder.parent), "name another place", replace=True) as part:
        with writing_errors(folder / WEIGHTS):
            save_file(weights, part / WEIGHTS)
        description = ModelDescription(
            picture=encoder.picture,
            model=model,
            weights=file_sha256(part / WEIGHTS),
            fingerprint="0" * 16,  # Computed below.
            calibration=calibration,
            origin=origin,
        )
        values = description.model_dump(mode="json", exclude={"origin": {"identities"}})
        values["fingerprint"] = fingerprint_of(values)
        text = _as_text(values)  # With names that need not be UTF-8.
        (part / DESCRIPTION).write_text(text, encoding="utf-8", errors="backslashreplace")
    return Bundle(encoder, comparator, values["fingerprint"], calibration, origin, folder)


def store_calibration(bundle: Bundle, calibration: dict[str, Any]) -> Bundle:
    """Write a calibration into an existing model folder; everything else there stays as it is."""
    values = read_values(bundle.path) | {"calibration": calibration}
    write_text(bundle.path / DESCRIPTION, _as_text(values))
    return replace(bundle, calibration=calibration)


def load_bundle(path: str | Path) -> Bundle:
    """Load a model folder, or the one inside a run folder.

    Raises:
        ModelError: no model, a damaged one, or one of a newer format.
    """
    return build_bundle(read_stored_model(path))


def build_bundle(stored: StoredModel) -> Bundle:
    """Build the networks of a stored model, on CUDA if available.

    Raises:
        ModelError: its weights belong to another network than its settings.
    """
    description = stored.description
    model = description.model
    try:
        # Before the network is built: a name or a number in a file could claim any size.
        problem = layout_problem(read_layout(stored.weights_file), _layout(description))
        if problem is None:
            encoder = Encoder(model, description.picture, load=False)
            comparator = make_comparator(model.comparator, model.embedding)
            weights = load_file(stored.weights_file)
            encoder.load_state_dict(tensors_under(weights, "encoder."))
            comparator.load_state_dict(tensors_under(weights, "comparator."))
            problem = not_finite(encoder.state_dict() | comparator.state_dict())
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise damaged_model(stored.path, str(error)) from error
    if problem is not None:
        raise damaged_model(stored.path, f"{WEIGHTS}: {problem}")
    device = pick_device("auto")
    encoder.to(device).eval()
    comparator.to(device).eval()
    return Bundle(
        encoder, comparator, description.fingerprint, description.calibration,
        description.origin, stored.path,
    )  # fmt: skip


def _layout(description: ModelDescription) -> dict[str, TensorLayout]:
    """The layout of the weights that a description needs."""
    model = description.model
    with torch.device("meta"):
        comparator = make_comparator(model.comparator, model.embedding).state_dict()
    parts = {
        "encoder": encoder_layout(model, description.picture),
        "comparator": layout_of(comparator),
    }
    return {f"{part}.{name}": value for part, own in parts.items() for name, value in own.items()}


def _as_text(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
