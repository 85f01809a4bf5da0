"""Models at the Hugging Face Hub: "hf://name/model", or "hf://name/model@revision".

Only files of a model are downloaded, by their names, into the hub's cache; nothing of a repository
runs. The files are then checked as those of any other model.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from twinlens.errors import ModelError, first_line, naming_extras, one_line

__all__ = ["HubAddress", "download_model", "is_hub_address", "parse_hub_address"]

SCHEME = re.compile("hf:/{1,2}")  # A path of this text has one slash.
ADDRESS = re.compile(
    r"(?:hf:/{1,2})?(?P<repo>[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95})(?:@(?P<revision>[\w./-]{1,200}))?"
)
SECONDS = 20.0  # for the list of a repository's files


class HubAddress(NamedTuple):
    """A repository, and a branch, tag or commit of it; None for the newest state."""

    repo: str
    revision: str | None


def is_hub_address(path: str | Path) -> bool:
    """Whether a model is named by its address at the hub.

    >>> is_hub_address("hf://name/model"), is_hub_address("runs/photos")
    (True, False)
    """
    return SCHEME.match(str(path)) is not None


def parse_hub_address(address: str | Path) -> HubAddress:
    """The parts of an address, with or without "hf://".

    >>> parse_hub_address("hf://name/model@v1")
    HubAddress(repo='name/model', revision='v1')

    Raises:
        ModelError: no name and model.
    """
    match = ADDRESS.fullmatch(str(address))
    if match is None:
        raise ModelError(
            f"an address at the hub is hf://name/model or hf://name/model@revision, found "
            f"{one_line(str(address))}"
        )
    return HubAddress(match["repo"], match["revision"])


def download_model(address: str | Path, names: tuple[str, ...], max_bytes: int) -> Path:
    """Download the files of a model to the hub's cache, or find them there if the hub is silent.

    Args:
        address: address at the hub.
        names: files of a model; others are not downloaded.
        max_bytes: size of the largest file.
    Returns:
        The folder of the files, which must not be changed.
    Raises:
        ModelError: no such repository, no model in it, too large a file, or a failed download.
        MissingExtraError: huggingface_hub is not installed.
    """
    repo, revision = parse_hub_address(address)
    with naming_extras(f"the model {address}"):
        from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=SECONDS)
        sizes = {one.rfilename: one.size for one in info.siblings or [] if one.rfilename in names}
        _check_sizes(str(address), sizes, names, max_bytes)
        # By the name of the revision, which the cache then knows without the hub.
        files = [Path(hf_hub_download(repo, name, revision=revision)) for name in sizes]
        if len({file.parent for file in files}) > 1:
            raise ModelError(f"{address} was changed during the download: load it again")
        return files[0].parent
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ModelError(
            f"there is no model {address} at {constants.ENDPOINT}, or it is private: check its "
            "name, or log in with `hf auth login` or HF_TOKEN"
        ) from error
    except ModelError:
        raise
    except Exception as error:  # The client raises many kinds, from no network to a full disk.
        cached = try_to_load_from_cache(repo, names[-1], revision=revision)
        if isinstance(cached, str):
            return Path(cached).parent
        raise ModelError(f"cannot download {address}: {first_line(error)}") from error


def _check_sizes(
    address: str, sizes: dict[str, Any], names: tuple[str, ...], max_bytes: int
) -> None:
    """Check the files of a repository before any is downloaded."""
    if names[-1] not in sizes:
        raise ModelError(f"{address} is no model of twinlens: it has no {names[-1]}")
    for name, size in sizes.items():
        if not isinstance(size, int) or not 0 <= size <= max_bytes:
            raise ModelError(f"{address}: {name} has {size} bytes, at most {max_bytes:,} are taken")
