"""Keys of callers: a file with their hashes and roles, and the sessions of the page.

A key is 32 random bytes, which nobody can guess or list. One round of SHA-256 therefore protects it
as well as a slow hash of passwords would, and costs a microsecond for each request.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from twinlens.errors import ConfigError, first_line, unknown_name, validation_problems
from twinlens.files import check_output_file, expand_user, writing_file
from twinlens.parsing import read_json
from twinlens.service.settings import NAME, check_name

__all__ = ["ROLES", "Key", "KeyList", "Keys", "NewKey", "Role", "add_key", "list_keys",
           "remove_key"]  # fmt: skip

log = logging.getLogger("twinlens.service")

Role = Literal["read", "enrol", "admin"]
ROLES: tuple[Role, ...] = ("read", "enrol", "admin")
"""Each role may do what those before it may."""

MAX_BYTES = 2**20  # of the file
SESSION_SECONDS = 12 * 3600


class Key(BaseModel):
    """A key as its file holds it.

    Attributes:
        name: shown in logs and in the audit log.
        role: what its caller may do.
        hash: SHA-256 of the key, in hexadecimal digits.
        created: time of its creation, UTC.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=rf"^{NAME.pattern}$")]
    role: Role
    hash: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    created: str


class _Content(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    twinlens_keys: Literal[1] = 1
    session_secret: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    keys: tuple[Key, ...] = ()


class Keys:
    """The keys of a file, read again whenever it has changed.

    A removed key is refused from the next request on, in every process, and ends its sessions.
    """

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            ConfigError: no such file, or a damaged one.
        """
        self._path = path
        self._version: tuple[int, ...] = ()
        self._content = self._current()
        if os.name == "posix" and path.stat().st_mode & 0o077:
            log.warning("others may read the keys file: chmod 600 it, it can sign sessions")

    def _current(self) -> _Content:
        try:
            stat = self._path.stat()
        except OSError as error:
            raise ConfigError(_missing(self._path)) from error
        version = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        if version != self._version:
            self._content = _read(self._path)
            self._version = version
        return self._content

    def find(self, text: str) -> Key | None:
        """The key of a caller; the time that it takes depends on no stored key.

        Args:
            text: what the caller sent.
        Raises:
            ConfigError: the file is missing or damaged.
        """
        digest, match = _hash(text), None
        for key in self._current().keys:  # All of them: the place of a key takes no time.
            if hmac.compare_digest(key.hash, digest):
                match = key
        return match

    def new_session(self, key: Key) -> str:
        """A signed text for a cookie, which stands for a key for 12 hours."""
        expires = str(int(time.time()) + SESSION_SECONDS)
        signature = _sign(self._current().session_secret, key, expires)
        return f"{_encoded(key.name)}.{expires}.{signature}"

    def of_session(self, text: str) -> Key | None:
        """The key of a session; None if it has expired, is not signed, or its key was removed."""
        name, _, rest = text.partition(".")
        expires, _, signature = rest.partition(".")
        content = self._current()
        for key in content.keys:
            if _encoded(key.name) == name:
                expected = _sign(content.session_secret, key, expires)
                is_signed = hmac.compare_digest(expected.encode(), signature.encode())
                return key if is_signed and time.time() < int(expires) else None
        return None


def _encoded(name: str) -> str:
    """A name in characters that a cookie may have; blanks are none."""
    return base64.urlsafe_b64encode(name.encode()).decode().rstrip("=")


def _sign(secret: str, key: Key, expires: str) -> str:
    message = f"{key.name}\0{key.hash}\0{expires}".encode()
    return hmac.new(bytes.fromhex(secret), message, "sha256").hexdigest()


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _missing(path: Path) -> str:
    return f"there is no keys file {path}: make one with `twinlens keys add {path} --name NAME`"


def _read(path: Path) -> _Content:
    """The content of a keys file.

    Raises:
        ConfigError: no such file, or a damaged one.
    """
    try:
        return _Content.model_validate(read_json(path, max_bytes=MAX_BYTES))
    except FileNotFoundError as error:
        raise ConfigError(_missing(path)) from error
    except ValidationError as error:
        raise ConfigError(
            f"{path} is no keys file of twinlens: {validation_problems(error)}"
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is no keys file of twinlens: {first_line(error)}") from error


# --- twinlens keys ------------------------------------------------------------------------------


@dataclass(frozen=True)
class NewKey:
    """A key that was added; its text is nowhere else.

    Attributes:
        name: name of the key.
        role: its role.
        key: the text that a caller sends.
    """

    name: str
    role: Role
    key: str

    def as_json(self) -> dict[str, Any]:
        """Name, role and key."""
        return {"name": self.name, "role": self.role, "key": self.key}

    def as_text(self) -> str:
        """The key alone, for scripts."""
        return self.key


@dataclass(frozen=True)
class KeyList:
    """Keys without their texts."""

    keys: tuple[Key, ...]

    def as_json(self) -> dict[str, Any]:
        """Names, roles and times of creation."""
        return {"keys": [key.model_dump(exclude={"hash"}) for key in self.keys]}

    def as_text(self) -> str:
        """One line for each key."""
        return "\n".join(f"{key.role:<6} {key.created}  {key.name}" for key in self.keys)


def add_key(file: str | Path, *, name: str, role: str = "read") -> NewKey:
    """Add a new key to a file, which is created if it is missing.

    Args:
        file: keys file; only its owner may read it.
        name: name of the key, for logs and for its removal.
        role: read: verify and identify; enrol: add and correct templates too; admin: everything.
    Raises:
        ConfigError: a taken or bad name, an unknown role, or a damaged file.
        DataError: the file cannot be written.
    """
    check_name("key", name)
    known = next((one for one in ROLES if one == role), None)
    if known is None:
        raise ConfigError(unknown_name("role", role, ROLES))
    text = f"tl_{secrets.token_urlsafe(32)}"
    created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    with _changing(file) as (path, content):
        if any(key.name == name for key in content.keys):
            raise ConfigError(f"there is a key {name} already: remove it, or choose another name")
        key = Key(name=name, role=known, hash=_hash(text), created=created)
        _write(path, content.model_copy(update={"keys": (*content.keys, key)}))
    return NewKey(name, known, text)


def list_keys(file: str | Path) -> KeyList:
    """The keys of a file.

    Raises:
        ConfigError: no such file, or a damaged one.
    """
    return KeyList(_read(expand_user(file)).keys)


def remove_key(file: str | Path, *, name: str) -> KeyList:
    """Remove a key; running services refuse it at once. Returns the remaining keys.

    Raises:
        ConfigError: no such key or file, or a damaged one.
        DataError: the file cannot be written.
    """
    if not expand_user(file).exists():
        raise ConfigError(_missing(expand_user(file)))
    with _changing(file) as (path, content):
        rest = tuple(key for key in content.keys if key.name != name)
        if len(rest) == len(content.keys):
            raise ConfigError(unknown_name("key", name, [key.name for key in rest]))
        _write(path, content.model_copy(update={"keys": rest}))
    return KeyList(rest)


@contextmanager
def _changing(file: str | Path) -> Iterator[tuple[Path, _Content]]:
    """Path and content of a file that nobody else changes meanwhile: no change may be lost."""
    from filelock import FileLock

    path = expand_user(file)
    check_output_file(path)
    try:
        lock = FileLock(path.with_name(f".{path.name}.lock"), mode=0o600)
        with lock:
            new = _Content(session_secret=secrets.token_hex(32))
            yield path, _read(path) if path.exists() else new
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error


def _write(path: Path, content: _Content) -> None:
    with writing_file(path) as part:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(content.model_dump_json(indent=1))
