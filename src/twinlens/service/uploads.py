"""Uploaded pictures: multipart forms, raw bodies, or base64 in JSON; never URLs or paths."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartParser

from twinlens.errors import PictureError, first_line, one_line
from twinlens.parsing import parse_json
from twinlens.service.errors import ServiceError
from twinlens.service.settings import Limits

__all__ = ["Upload", "check_size", "client_name", "read_uploads", "require_one"]

MAX_NAME = 255

# No uploaded picture is written to a disk. `bodies.BodyLimits` bounds the memory.
MultiPartParser.spool_max_size = 2**40


@dataclass(frozen=True)
class Upload:
    """An uploaded picture file.

    Attributes:
        name: its file name at the client, without folders; "" if unknown.
        content: its bytes, not yet decoded.
    """

    name: str
    content: bytes

    def named(self, error: PictureError) -> PictureError:
        """The error of decoding, with the name of the upload."""
        return PictureError(self.name or "the picture", error.reason)


async def read_uploads(
    request: Request, fields: Sequence[str], limits: Limits
) -> dict[str, list[Upload]]:
    """The pictures of a request, by field.

    A multipart form has files in the fields; a JSON object has base64 text, or a list of it, under
    their names; any other body is one picture of the first field, if there is only one field.

    Args:
        request: request whose body was not read.
        fields: names of fields that hold pictures; others are refused.
        limits: of bytes and pictures.
    Raises:
        ServiceError: no picture, an unknown field, or a body beyond the limits (413, 415, 422).
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        uploads = await _of_form(request, limits)
    elif kind == "application/json":
        body = await request.body()
        uploads = await asyncio.to_thread(_of_json, body)  # Megabytes of it would stop the others.
    elif kind.startswith("image/") or kind in ("application/octet-stream", ""):
        if len(fields) > 1:
            raise ServiceError(415, f"send the pictures {', '.join(fields)} as multipart or JSON")
        content = await request.body()
        uploads = {fields[0]: [Upload("", content)] if content else []}
    else:
        raise ServiceError(
            415, "send pictures as multipart/form-data, image/..., or base64 in application/json; "
            f"found the type '{one_line(kind)}'",
        )  # fmt: skip
    unknown = sorted(set(uploads) - set(fields))
    if unknown:
        raise ServiceError(
            422, f"unknown field '{one_line(unknown[0])}': pictures belong in {', '.join(fields)}"
        )
    _check(uploads, fields, limits)
    request.state.num_pictures = sum(map(len, uploads.values()))  # For logs and metrics.
    return uploads


def require_one(uploads: Mapping[str, Sequence[Upload]], field: str) -> Upload:
    """The only picture of a field.

    Raises:
        ServiceError: none, or several (422).
    """
    pictures = uploads.get(field, ())
    if len(pictures) != 1:
        raise ServiceError(422, f"'{field}' needs one picture, found {len(pictures)}")
    return pictures[0]


def client_name(text: str) -> str:
    r"""The name of a file at a client, without folders, as text that is safe to show.

    >>> client_name("C:\\\\holiday\\\\anna.jpg"), client_name("../../etc/passwd")
    ('anna.jpg', 'passwd')
    """
    name = text.replace("\\", "/").rpartition("/")[2]
    return one_line(name.encode("utf-8", "replace").decode(), MAX_NAME)


def check_size(content: bytes, limits: Limits) -> None:
    """Refuse a picture of too many bytes.

    Raises:
        ServiceError: beyond the limit (413).
    """
    if len(content) > limits.picture_bytes:
        raise ServiceError(
            413, f"a picture has {len(content):,} bytes, at most {limits.picture_bytes:,} are taken"
        )


async def _of_form(request: Request, limits: Limits) -> dict[str, list[Upload]]:
    uploads: dict[str, list[Upload]] = {}
    async with request.form(max_files=limits.pictures, max_fields=limits.pictures) as form:
        for field, part in form.multi_items():
            if not isinstance(part, UploadFile):
                raise ServiceError(422, f"'{one_line(field)}' is text: a picture needs a file name")
            upload = Upload(client_name(part.filename or ""), await part.read())
            uploads.setdefault(field, []).append(upload)
    return uploads


def _of_json(body: bytes) -> dict[str, list[Upload]]:
    try:
        values: Any = parse_json(body.decode())
    except ValueError as error:
        raise ServiceError(422, f"the body is no JSON: {first_line(error)}") from error
    if not isinstance(values, dict):
        raise ServiceError(422, "the JSON body must be an object with a field for each picture")
    return {
        field: [_decoded(field, text) for text in (value if isinstance(value, list) else [value])]
        for field, value in values.items()
    }


def _decoded(field: str, text: Any) -> Upload:
    try:
        if not isinstance(text, str):
            raise ValueError(f"found {type(text).__name__}")
        # A data URL, as browsers write pictures, is base64 behind a comma.
        encoded = text.partition(",")[2] if text.startswith("data:") else text
        return Upload("", base64.b64decode(encoded, validate=True))
    except (ValueError, binascii.Error) as error:
        raise ServiceError(
            422, f"'{one_line(field)}' must be a picture in base64: {first_line(error)}"
        ) from error


def _check(uploads: Mapping[str, Sequence[Upload]], fields: Sequence[str], limits: Limits) -> None:
    pictures = [upload for part in uploads.values() for upload in part]
    if not pictures:
        raise ServiceError(422, f"no picture was sent: put it in {' and '.join(fields)}")
    if len(pictures) > limits.pictures:
        raise ServiceError(
            422, f"{len(pictures)} pictures were sent, at most {limits.pictures} are taken at once"
        )
    check_size(max((upload.content for upload in pictures), key=len), limits)
