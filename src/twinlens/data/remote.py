"""Downloads from `s3://` and `https://` by `twinlens fetch`, and access to object stores.

Pictures, manifests and archives become local files. Of other addresses only the files of many
pictures are read that a person names as data, in an object store (`stored_pictures`). Stores are
read by Arrow with the credentials of the environment. A picture that is larger than the memory for
decoding is not downloaded.
"""

from __future__ import annotations

import functools
import re
import shutil
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import unquote, urljoin, urlsplit

from twinlens.data.csv_file import read_csv, write_csv
from twinlens.data.download import TIMEOUT
from twinlens.data.picture_file import memory_limit, picture_suffixes
from twinlens.errors import DataError, first_line, one_line

__all__ = ["fetch_into", "is_address", "is_store", "open_store", "refuse_address", "unreadable"]

ADDRESS = re.compile(r"(?i)(s3|https?)://.")
STORE = re.compile(r"(?i)(s3|gs|gcs|hdfs|fsspec\+\w+)://.")  # as of Arrow
HALF_ADDRESS = re.compile(r"(?i)(s3|https?):/")  # A `Path` has one slash less.
TABLES = (".csv", ".tsv")
WHOLE = (".tar", ".parquet")
AT_ONCE = 8
BLOCK_BYTES = 2**20
Report = Callable[[int, int], None]


def is_address(data: object) -> bool:
    """Whether a string is an address, such as s3://bucket/photos or https://host/photos.zip."""
    return isinstance(data, str) and ADDRESS.match(data) is not None


def is_store(data: object) -> bool:
    """Whether a string is an address in an object store, such as s3://bucket/photos.tar."""
    return isinstance(data, str) and STORE.match(data) is not None


def refuse_address(data: str | Path) -> None:
    """Refuse an address where files are read.

    Raises:
        DataError: an address, with the command that downloads it.
    """
    if HALF_ADDRESS.match(str(data)):
        raise DataError(
            f"{one_line(str(data), 200)} is on the network, which is read only when asked:"
            " `twinlens fetch ADDRESS FOLDER` downloads it; then give that folder"
        )


def fetch_into(address: str, folder: Path, progress: Report | None = None) -> str:
    """Download pictures into a folder.

    Args:
        address: `s3://bucket/folder` with pictures; or a file at `s3://` or `https://`: a `.zip`,
            which is unpacked, a `.tar`, or a `.csv` or `.tsv`, whose pictures are downloaded; or a
            local `.csv` or `.tsv` with addresses in its columns `path`, or `a` and `b`.
        folder: an existing, empty folder.
        progress: called with (pictures done, all pictures).
    Returns:
        What to give as data, below `folder`: "" for itself, or the name of a file or a folder.
    Raises:
        DataError: an address that cannot be read, or holds no pictures.
    """
    name = PurePosixPath(unquote(urlsplit(address).path)).name
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in TABLES:
        return _fetch_table(address, folder, name, progress)
    if suffix in WHOLE:
        _download(address, folder / name, None)
        return name
    if suffix == ".zip":
        _download(address, folder / name, None)
        _unpack(folder / name, folder)
        (folder / name).unlink()
        tops = list(folder.iterdir())
        return tops[0].name if len(tops) == 1 and tops[0].is_dir() else ""
    if not address.lower().startswith("s3://"):
        raise DataError(
            f"cannot list the pictures of {one_line(address, 200)}: needed is a .zip, .tar, .csv or"
            " .tsv, or a folder at s3://"
        )
    _fetch_bucket(address, folder, progress)
    return ""


# --- pictures -----------------------------------------------------------------------------------


def _fetch_bucket(address: str, folder: Path, progress: Report | None) -> None:
    from pyarrow import fs

    store, top = open_store(address)
    try:
        entries = store.get_file_info(fs.FileSelector(top, recursive=True))
    except OSError as error:
        raise unreadable(address, error) from error
    suffixes = picture_suffixes()
    jobs = []
    for entry in entries:
        below = PurePosixPath(entry.path).relative_to(top)
        if entry.type == fs.FileType.File and below.suffix.lower() in suffixes:
            jobs.append((entry.path, _inside(folder, below)))
    if not jobs:
        raise DataError(f"{one_line(address, 200)} holds no pictures, at any depth")
    _all(jobs, lambda path, target: _copy(store.open_input_stream(path), target, path), progress)


def _fetch_table(address: str, folder: Path, name: str, progress: Report | None) -> str:
    """Download the pictures of a manifest or a list of pairs, and write it with their names."""
    local = Path(address)
    if is_address(address):
        local = folder / f"{name}.part"
        _download(address, local, None)
    rows = [cells for _, cells in read_csv(local, "the manifest", lambda _: None)]
    columns = [column for column in ("path", "a", "b") if rows and column in rows[0]]
    if not columns:
        raise DataError(
            f"{one_line(address, 200)} has no rows with a column path, or with columns a and b"
        )
    targets: dict[str, str] = {}
    for row in rows:
        for column in columns:
            source = row[column]
            if not is_address(source):
                source = urljoin(address, source) if is_address(address) else source
            if not is_address(source):
                row[column] = str((local.parent / source).absolute())
            else:
                suffix = PurePosixPath(urlsplit(source).path).suffix.lower()
                ending = suffix if suffix in picture_suffixes() else ""
                row[column] = targets.setdefault(source, f"files/{len(targets):06d}{ending}")
    (folder / "files").mkdir()
    jobs = [(source, folder / target) for source, target in targets.items()]
    _all(jobs, lambda source, target: _download(source, target, memory_limit()), progress)
    if is_address(address):
        local.unlink()
    out = PurePosixPath(name).with_suffix(".csv").name
    write_csv(folder / out, list(rows[0]), (list(row.values()) for row in rows))
    return out


def _all(
    jobs: Sequence[tuple[str, Path]], copy: Callable[[str, Path], None], progress: Report | None
) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            for number, _ in enumerate(pool.map(lambda job: copy(*job), jobs), 1):
                if progress is not None:
                    progress(number, len(jobs))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


# --- files --------------------------------------------------------------------------------------


def open_store(address: str) -> tuple[Any, str]:
    """The file system of Arrow that an address belongs to, and the path in it.

    Raises:
        DataError: an unknown kind of store, or one that cannot be reached.
    """
    parts = urlsplit(address)
    if parts.scheme.lower() not in ("s3", "gs", "gcs"):
        return _file_system(address)
    # One client for all the files of a bucket, since a new one looks for the bucket's region.
    store, _ = _file_system(
        f"{parts.scheme}://{parts.netloc}{'?' if parts.query else ''}{parts.query}"
    )
    return store, f"{parts.netloc.rpartition('@')[2]}{unquote(parts.path)}".rstrip("/")


@functools.lru_cache(maxsize=16)
def _file_system(address: str) -> tuple[Any, str]:
    import pyarrow
    from pyarrow import fs

    try:
        store, path = fs.FileSystem.from_uri(address)
    except (OSError, ImportError, ValueError, pyarrow.ArrowException) as error:
        raise unreadable(address, error) from error
    return store, path


def _download(address: str, target: Path, limit: int | None) -> None:
    """Copy a file from its address.

    Args:
        address: `s3://` or `https://`.
        target: file to write.
        limit: largest number of bytes; None for no limit but that of the disk.
    """
    if address.lower().startswith("s3://"):
        store, path = open_store(address)
        try:
            stream = store.open_input_stream(path)
        except OSError as error:
            raise unreadable(address, error) from error
    else:
        stream = _open_https(address)
    _copy(stream, target, address, limit)


def unreadable(address: str, error: Exception) -> DataError:
    """An error that names what could not be read, what to check, and the cause in a few words."""
    place = one_line(address, 200)
    if is_store(address):
        cause = re.split(r"operation: (?:curlCode: \d+, )?", first_line(error))[-1]
        return DataError(
            f"cannot read {place}: check the name of the bucket and its region, the credentials of "
            f"the environment and the network ({one_line(cause.partition(';')[0], 120)})"
        )
    if hasattr(error, "code"):
        return DataError(f"cannot read {place}: the host answers {error}; check the address")
    reason = getattr(error, "reason", error)
    cause = getattr(reason, "strerror", None) or str(reason)
    return DataError(
        f"cannot reach {place}: check the address and the network ({one_line(cause, 120)})"
    )


def _open_https(address: str) -> BinaryIO:
    import urllib.request  # Nothing but `fetch` needs it.

    if not address.lower().startswith("https://"):
        raise DataError(f"only https:// and s3:// are read, found {one_line(address, 200)}")
    request = urllib.request.Request(address, headers={"User-Agent": "twinlens"})
    try:
        answer: BinaryIO = urllib.request.urlopen(request, timeout=TIMEOUT)
    except (OSError, ValueError) as error:
        raise unreadable(address, error) from error
    if not answer.url.lower().startswith("https://"):  # type: ignore[attr-defined]
        answer.close()
        raise DataError(f"{one_line(address, 200)} leads to an address without https")
    return answer


def _copy(stream: Any, target: Path, name: str, limit: int | None = None) -> None:
    limit = memory_limit() if limit is None and target.suffix in picture_suffixes() else limit
    target.parent.mkdir(parents=True, exist_ok=True)
    size = 0
    with closing(stream), target.open("wb") as file:
        while block := _read(stream, name):
            size += len(block)
            if limit is not None and size > limit:
                raise DataError(
                    f"{one_line(name, 200)} has more than {limit:,} bytes, the memory for decoding "
                    "(TWINLENS_DECODE_MEMORY): is it a picture?"
                )
            file.write(block)


def _read(stream: Any, name: str) -> bytes:
    try:
        return bytes(stream.read(BLOCK_BYTES))
    except OSError as error:
        raise DataError(f"cannot read {one_line(name, 200)}: {first_line(error)}") from error


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack the pictures and manifests of a zip file, within the free space of the disk."""
    suffixes = picture_suffixes() | {*TABLES}
    free = shutil.disk_usage(folder).free
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [
                member for member in opened.infolist()
                if PurePosixPath(member.filename).suffix.lower() in suffixes
            ]  # fmt: skip
            if sum(member.file_size for member in members) > free:
                raise DataError(f"the pictures of {archive.name} need more space than is free")
            for member in members:
                path = _inside(folder, PurePosixPath(member.filename))
                _copy(opened.open(member), path, member.filename, member.file_size)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(
            f"{archive.name} is not a complete zip file ({first_line(error)})"
        ) from error


def _inside(folder: Path, below: PurePosixPath) -> Path:
    """The path below a folder.

    Raises:
        DataError: a name that leads out of it.
    """
    if below.is_absolute() or ".." in below.parts or "\\" in str(below) or ":" in str(below):
        raise DataError(f"the name {one_line(str(below), 200)} leads out of its folder: rename it")
    return folder / below
