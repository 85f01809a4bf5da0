"""Routes that answer: verify, embed, identify, search."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse

from twinlens.errors import PictureError
from twinlens.match.matcher import Matcher
from twinlens.service.security import Read
from twinlens.service.state import Service
from twinlens.service.uploads import Upload, read_uploads, require_one

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["answers"])

MODEL = Query(description="name of a model; the first one by default")
QUALITY = Query(ge=0, le=1, description="least quality of a picture; none by default")


@router.post("/verify")
async def verify(
    request: Request,
    service: Service,
    caller: Read,
    model: Annotated[str | None, MODEL] = None,
    prior: Annotated[float, Query(gt=0, lt=1)] = 0.5,
    min_quality: Annotated[float | None, QUALITY] = None,
) -> JSONResponse:
    """Verify whether two pictures, `a` and `b`, show the same thing."""
    async with service.queue.admitted():
        uploads = await read_uploads(request, ("a", "b"), service.settings.limits)
        first, second = require_one(uploads, "a"), require_one(uploads, "b")
        answer = await service.queue.run(
            _verify, service.models.get(model), first, second, prior, min_quality
        )
    return JSONResponse(answer)


def _verify(
    matcher: Matcher, a: Upload, b: Upload, prior: float, min_quality: float | None
) -> dict[str, Any]:
    try:
        answer = matcher.verify(a.content, b.content, prior=prior, min_quality=min_quality)
    except PictureError as error:
        raise PictureError("a picture", error.reason) from error
    return answer.as_json()
