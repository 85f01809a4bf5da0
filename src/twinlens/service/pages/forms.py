"""Forms of pages: texts and pictures of one body, within the limits of the service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastapi import Request
from starlette.datastructures import UploadFile

from twinlens.service.errors import ServiceError
from twinlens.service.pages import view
from twinlens.service.settings import Limits
from twinlens.service.uploads import Upload, client_name

__all__ = ["PageForm", "read_form"]

MAX_FIELDS = 40
MAX_TEXT = 10_000  # characters


@dataclass(frozen=True)
class PageForm:
    """A form as it was sent.

    Attributes:
        texts: the last text of each field, without blanks at its ends.
        pictures: uploads of each field; a field without a chosen file is missing.
    """

    texts: Mapping[str, str]
    pictures: Mapping[str, Sequence[Upload]]

    def text(self, name: str) -> str:
        """A text that the form needs.

        Raises:
            ServiceError: it is missing or blank (422).
        """
        value = self.texts.get(name, "")
        if not value:
            raise ServiceError(422, view.text("forms.no_text"))
        return value

    def picture(self, name: str) -> Upload:
        """The only picture of a field.

        Raises:
            ServiceError: none, or several (422).
        """
        uploads = self.pictures.get(name, ())
        if len(uploads) != 1:
            raise ServiceError(422, view.text("forms.one_picture", count=len(uploads)))
        return uploads[0]


async def read_form(request: Request, limits: Limits) -> PageForm:
    """The form of a request.

    Raises:
        ServiceError: a picture or a text beyond the limits (413, 422).
    """
    texts: dict[str, str] = {}
    pictures: dict[str, list[Upload]] = {}
    async with request.form(max_files=limits.pictures, max_fields=MAX_FIELDS) as form:
        for field, part in form.multi_items():
            if not isinstance(part, UploadFile):
                if len(part) > MAX_TEXT:
                    raise ServiceError(422, view.text("forms.long_text", most=MAX_TEXT))
                texts[field] = part.strip()
            elif part.filename:  # Browsers send an empty part for a field without a file.
                name = client_name(part.filename)
                content = await part.read()
                if len(content) > limits.picture_bytes:
                    raise ServiceError(413, view.text(
                        "forms.large_picture", name=name, size=len(content) / 2**20,
                        most=limits.picture_bytes / 2**20,
                    ))  # fmt: skip
                pictures.setdefault(field, []).append(Upload(name, content))
    request.state.num_pictures = sum(map(len, pictures.values()))  # For logs and metrics.
    return PageForm(texts, pictures)
