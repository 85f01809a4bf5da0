"""State of a worker: models, galleries, queue and settings, shared by its requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import Depends, Request

from twinlens.service.audit_log import AuditLog
from twinlens.service.compute import ComputeQueue
from twinlens.service.galleries import Galleries
from twinlens.service.jobs import Jobs
from twinlens.service.models import Models
from twinlens.service.pair_views import PairViews
from twinlens.service.picture_sets import PictureSets
from twinlens.service.settings import ServiceSettings

__all__ = ["Service", "ServiceState"]

T = TypeVar("T")


class ServiceState:
    """What the handlers of one worker process share.

    Attributes:
        settings: settings of the service.
        models: loaded models, by name.
        galleries: open galleries, by name.
        queue: admits requests and computes.
        jobs: long work in processes of its own.
        picture_sets: uploaded pictures.
        pair_views: distances of their pairs, by model.
        audit: log of changes.
        closing: set when the process was told to end; event streams end then.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self.settings = settings
        self.models = Models(settings)
        self.galleries = Galleries(settings, self.models)
        self.queue = ComputeQueue(settings.limits)
        self.jobs = Jobs(settings, self.models, self.galleries)
        self.picture_sets = PictureSets(settings)
        self.pair_views = PairViews(self.models, self.picture_sets)
        self.audit = AuditLog(settings.data)
        self.closing = asyncio.Event()

    def warm_up(self) -> None:
        """Open the model and the galleries of the start, so that no request waits for that.

        Raises:
            ModelError: a damaged model.
            GalleryError: no gallery, or a damaged one.
        """
        if self.settings.model is not None:
            self.models.get()
        for name in self.start_galleries():
            gallery = self.galleries.get(name)
            picture = gallery.matcher.picture
            shape = (picture.channels, *picture.size)
            emb_1D = gallery.matcher.embed_decoded(np.zeros(shape, dtype=np.uint8))
            if len(gallery):
                gallery.nearest(emb_1D[0], 1)

    def start_galleries(self) -> list[str]:
        """Names of the galleries that were given at the start."""
        places = self.galleries.places()
        return [name for name, place in places.items() if place in self.settings.galleries]

    async def until_closing(self, events: AsyncIterator[T]) -> AsyncIterator[T]:
        """The events of a stream, until it ends or the process does."""
        waits: list[asyncio.Future[Any]] = [asyncio.ensure_future(self.closing.wait())]
        try:
            while True:
                waits[1:] = [asyncio.ensure_future(anext(events))]
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                if self.closing.is_set():
                    return
                try:
                    event = waits[1].result()
                except StopAsyncIteration:
                    return
                yield event
        finally:
            for wait in waits:
                wait.cancel()

    def close(self) -> None:
        """Release threads."""
        self.queue.close()


async def _of_request(request: Request) -> ServiceState:  # Without `async`, on a thread.
    state: ServiceState = request.app.state.service
    return state


Service = Annotated[ServiceState, Depends(_of_request)]
"""Parameter of a handler: the state of its worker."""
