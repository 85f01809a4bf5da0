"""State of a worker: models, galleries, queue and settings, shared by its requests."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from twinlens.service.compute import ComputeQueue
from twinlens.service.galleries import Galleries
from twinlens.service.models import Models
from twinlens.service.settings import ServiceSettings

__all__ = ["Service", "ServiceState"]


class ServiceState:
    """What the handlers of one worker process share.

    Attributes:
        settings: settings of the service.
        models: loaded models, by name.
        galleries: open galleries, by name.
        queue: admits requests and computes.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self.settings = settings
        self.models = Models(settings)
        self.galleries = Galleries(settings, self.models)
        self.queue = ComputeQueue(settings.limits)

    def close(self) -> None:
        """Release threads."""
        self.queue.close()


def _of_request(request: Request) -> ServiceState:
    state: ServiceState = request.app.state.service
    return state


Service = Annotated[ServiceState, Depends(_of_request)]
"""Parameter of a handler: the state of its worker."""
