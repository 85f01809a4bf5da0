"""A model with its networks: build it from its stored form, and save it."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from twinlens._version import __version__
from twinlens.files import write_text
from twinlens.model.comparators import Comparator, make_comparator
from twinlens.model.device import pick_device
from twinlens.model.encoder import Encoder
from twinlens.model.stored import (
    DAMAGES,
    DESCRIPTION,
    FORMAT,
    WEIGHTS,
    Origin,
    StoredModel,
    damaged,
    description_fingerprint,
    file_sha256,
    origin_as_json,
    part_of,
    read_description,
    read_stored_model,
)

__all__ = ["Bundle", "build_bundle", "load_bundle", "save_bundle", "store_calibration"]


@dataclass(frozen=True)
class Bundle:
    """A loaded model: the networks, and what `model.json` says of them."""

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
    """Write a model folder, beside its place and then renamed; an older one there is replaced."""
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    weights = {f"encoder.{k}": v for k, v in encoder.state_dict().items()}
    weights |= {f"comparator.{k}": v for k, v in comparator.state_dict().items()}
    save_file({k: v.detach().cpu().contiguous() for k, v in weights.items()}, part / WEIGHTS)
    # Where the weights once came from is the run's history; the bundle brings its own.
    model = encoder.model_settings.model_copy(update={"weights": None, "pretrained": False})
    description = {
        "format": FORMAT,
        "twinlens": __version__,
        "picture": encoder.picture.model_dump(mode="json"),
        "model": model.model_dump(mode="json"),
        "weights": file_sha256(part / WEIGHTS),
    }
    fingerprint = description_fingerprint(description)
    bundle = Bundle(encoder, comparator, fingerprint, calibration, origin, part)
    _write_description(bundle, description)
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    return replace(bundle, path=folder)


def store_calibration(bundle: Bundle, calibration: dict[str, Any]) -> Bundle:
    """Store a calibration in a model folder that exists; the weights are not touched."""
    description = read_description(bundle.path)
    bundle = replace(bundle, calibration=calibration)
    _write_description(bundle, description)
    return bundle


def load_bundle(path: str | Path) -> Bundle:
    """Read a model folder, or the run folder around one.

    Raises:
        ModelError: no model, a damaged one, or one of a newer format.
    """
    return build_bundle(read_stored_model(path))


def build_bundle(stored: StoredModel) -> Bundle:
    """The networks of a model that was read, on CUDA where there is one.

    Raises:
        ModelError: its weights are not of the network that it names.
    """
    try:
        encoder = Encoder(stored.model, stored.picture, load=False)
        comparator = make_comparator(stored.model.comparator, stored.model.embedding)
        weights = load_file(stored.weights)
        encoder.load_state_dict(part_of(weights, "encoder."))
        comparator.load_state_dict(part_of(weights, "comparator."))
    except DAMAGES as error:
        raise damaged(stored.path, error) from error
    device = pick_device("auto")
    encoder.to(device).eval()
    comparator.to(device).eval()
    return Bundle(
        encoder, comparator, stored.fingerprint, stored.calibration, stored.origin, stored.path
    )


def _write_description(bundle: Bundle, description: dict[str, Any]) -> None:
    description = description | {
        "fingerprint": bundle.fingerprint,
        "calibration": bundle.calibration,
        "origin": origin_as_json(bundle.origin),
    }
    text = json.dumps(description, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(bundle.path / DESCRIPTION, text + "\n")
