"""The page that shares: models, exports and reports to download, and requests for programs."""

from __future__ import annotations

from urllib.parse import quote

from fastapi import APIRouter, Request, Response

from twinlens.service.pages import snippets, view
from twinlens.service.pages.galleries import allows
from twinlens.service.pages.train import caution_of
from twinlens.service.security import Read
from twinlens.service.state import Service

__all__ = ["router"]

router = APIRouter(include_in_schema=False, route_class=view.PageRoute)


@router.get("/share")
async def share(request: Request, service: Service, caller: Read) -> Response:
    """All models with their downloads, and what programs send."""
    models = await service.queue.run(
        lambda: [service.models.info(name) for name in service.models.folders()]
    )
    strict = await service.queue.run(
        lambda: {
            model["name"] for model in models
            if caution_of(model.get("calibration"), service.models.at_threshold(model["name"]))
            == "strict"
        }
    )  # fmt: skip
    galleries = [(name, snippets.identify(request, service, name, 5))
                 for name in service.galleries.places()]  # fmt: skip
    return view.render(
        request, "share.html.j2", models=models, strict=strict, galleries=galleries,
        model_url=_model_url,
        may_download=allows(caller, "admin"), has_keys=service.settings.keys is not None,
        verify_code=lambda name: snippets.verify(request, service, name),
        local_code=snippets.PYTHON_LOCAL,
    )  # fmt: skip


def _model_url(name: str, part: str) -> str:
    return f"/v1/models/{quote(name, safe='')}/{part}"
