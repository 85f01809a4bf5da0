"""Weights of timm's networks: the hub's cache, the folder TWINLENS_WEIGHTS, downloads."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from functools import cache
from pathlib import Path
from typing import Any

from twinlens.errors import ConfigError, first_line
from twinlens.files import expand_user

__all__ = ["cached_weights", "check_hub", "download_weights", "hub_problem", "timm_record",
           "weights_in_folder"]  # fmt: skip

FOLDER = "TWINLENS_WEIGHTS"
HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # weights in a repository of the hub
HUB_SECONDS = 5


def timm_record(name: str) -> Any:
    """timm's record of a network and its weights; None for an unknown name or tag."""
    import timm

    try:
        return timm.models.get_pretrained_cfg(name)
    except RuntimeError:
        return None


def cached_weights(name: str, repository: str | None = None) -> Path | None:
    """The weights of a network in the cache of huggingface_hub; None if missing.

    Args:
        name: timm's name of a network.
        repository: where the hub has its weights; without it, timm says so, whose import takes 2 s.
    """
    from huggingface_hub import try_to_load_from_cache

    if repository is None:
        record = timm_record(name)
        repository = None if record is None else record.hf_hub_id
    if not repository:
        return None
    files = (try_to_load_from_cache(repository, file) for file in HUB_FILES)
    return next((Path(file) for file in files if isinstance(file, str)), None)


def weights_in_folder(name: str) -> Path | None:
    """The file NAME.safetensors in the folder TWINLENS_WEIGHTS; None if missing.

    Args:
        name: timm's name of a network; without a tag, that of timm's default weights is added.
    Raises:
        ConfigError: the variable names no folder.
    """
    value = os.environ.get(FOLDER)
    if not value:
        return None
    folder = expand_user(value)
    if not folder.is_dir():
        raise ConfigError(f"the environment variable {FOLDER} names {value}, which is no folder")
    if "." not in name:
        record = timm_record(name)
        if record is None:
            return None
        name = f"{record.architecture}.{record.tag}"
    file = folder / f"{name}.safetensors"
    return file if file.is_file() else None


@cache
def hub_problem() -> str | None:
    """The reason why nothing can be downloaded from the hub; None if it answers.

    The hub's client tries each of several files five times, which takes minutes.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=HUB_SECONDS).close()
    except urllib.error.HTTPError:
        return None  # The host answers; its client reports its errors.
    except OSError as error:
        return first_line(error)
    return None


def download_weights(name: str) -> None:
    """Download the weights of a network to the cache of huggingface_hub, which raises."""
    from huggingface_hub import hf_hub_download

    hf_hub_download(timm_record(name).hf_hub_id, HUB_FILES[0])


def check_hub(name: str) -> None:
    """Fail fast if weights must be downloaded and cannot be.

    Raises:
        ConfigError: the weights are not cached, and their host does not answer.
    """
    record = timm_record(name)
    if record is None or not record.hf_hub_id or record.file or cached_weights(name) is not None:
        return
    problem = hub_problem()
    if problem is not None:
        raise ConfigError(
            f"the pretrained weights of '{name}' cannot be downloaded ({problem}): put "
            f"{record.architecture}.{record.tag}.safetensors into a folder that {FOLDER} names, "
            "give a local copy with --weights FILE (and its network with --backbone), or begin "
            "with random weights: --set model.pretrained=false"
        )
