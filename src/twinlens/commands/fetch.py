"""`twinlens fetch`: pictures from `s3://` or `https://`, before they are used."""

from __future__ import annotations

import logging
from pathlib import Path

from twinlens.data.remote import fetch_into
from twinlens.files import check_output_folder, creating_folder, expand_user
from twinlens.progress import Progress, console_log

__all__ = ["fetch"]

log = logging.getLogger("twinlens")


def fetch(address: str, out: str | Path, *, quiet: bool = False) -> Path:
    """Download pictures; no other command reads the network for data.

    Args:
        address: `s3://bucket/folder`; or, at `s3://` or `https://`, a `.zip`, a `.tar`, or a
            manifest or list of pairs (`.csv`, `.tsv`). A local manifest may name addresses. The
            credentials of object stores are those of the environment.
        out: new or empty folder.
        quiet: log warnings only.
    Returns:
        What to give to other commands: the folder, or a file in it.
    Raises:
        DataError: an address that cannot be read, or `out` in use.

    Example:
        >>> model = twinlens.train(twinlens.fetch("s3://shop/photos", "photos"))  # doctest: +SKIP
    """
    folder = check_output_folder(expand_user(out), "the pictures")
    with (
        console_log(quiet),
        creating_folder(folder, str(folder.parent), "name another folder") as part,
    ):
        name = fetch_into(str(address), part, Progress("downloading"))
    return folder / name
