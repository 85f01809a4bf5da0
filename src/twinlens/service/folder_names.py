"""Names of identities and uploaded files as names of folders and files, and back.

An identity is any text. Characters and names that file systems or the readers of folders take for
something else are written as %XX, the bytes of their UTF-8, as in URLs.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import PurePosixPath
from urllib.parse import unquote

from twinlens.data.walk import SYSTEM_FOLDERS
from twinlens.errors import ConfigError, one_line

__all__ = ["file_name", "folder_name", "identity_of"]

MAX_FOLDER = 200  # bytes
MAX_STEM = 100  # bytes of an uploaded file's name
UNSAFE = frozenset('/\\:*?"<>|%')
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # by Windows


def folder_name(identity: str) -> str:
    """The name of an identity's folder.

    >>> folder_name("Zoë (left)"), folder_name("a/b"), folder_name("..")
    ('Zoë (left)', 'a%2Fb', '%2E%2E')

    Raises:
        ConfigError: blank, too long, or text that UTF-8 cannot encode.
    """
    try:
        name = _escaped(unicodedata.normalize("NFC", identity))
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"the identity '{one_line(identity)}' holds what UTF-8 cannot encode: rename it"
        ) from error
    if not identity.strip():
        raise ConfigError("an identity needs a name that is not blank")
    if len(name.encode()) > MAX_FOLDER:
        raise ConfigError(
            f"the identity '{one_line(identity)}' has {len(name.encode())} bytes as the name of a "
            f"folder, at most {MAX_FOLDER} are possible: shorten it"
        )
    return name


def identity_of(folder: str) -> str:
    """The identity of a folder, given by its path below the set.

    >>> identity_of("a%2Fb")
    'a/b'
    """
    return unquote(folder, errors="replace")


def file_name(name: str, suffix: str, mark: str) -> str:
    """The name of an uploaded file with a mark of its content.

    >>> file_name("IMG 1.JPG", ".jpg", "3f2a9c1b")
    'IMG 1~3f2a9c1b.jpg'

    Args:
        name: name at the client, without folders.
        suffix: extension of the new name.
        mark: letters and digits.
    """
    stem = PurePosixPath(name.encode(errors="replace").decode()).stem
    safe = "".join(char for char in stem if char.isprintable() and char not in UNSAFE)
    short = safe.encode()[:MAX_STEM].decode(errors="ignore").strip(" .")
    return f"{short or 'picture'}~{mark}{suffix}"


def _escaped(name: str) -> str:
    last = len(name) - 1
    special = SYSTEM_FOLDERS.fullmatch(name) or RESERVED.fullmatch(name)
    return "".join(
        "".join(f"%{byte:02X}" for byte in char.encode())
        if char in UNSAFE or not char.isprintable() or (char in ". " and place in (0, last))
        or (special and place == 0)
        else char
        for place, char in enumerate(name)
    )  # fmt: skip
