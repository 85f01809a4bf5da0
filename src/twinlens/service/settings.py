"""Settings of the service, which every worker process reads."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from twinlens.errors import ConfigError, one_line
from twinlens.machine import num_threads

__all__ = ["NAME", "Limits", "ServiceSettings", "check_name"]

VARIABLE = "TWINLENS_SERVICE"
"""Environment variable by which worker processes get the settings, as JSON."""

NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_. -]{0,62}[A-Za-z0-9_-])?")
"""Names of models, galleries, picture sets and runs, which become folders."""


class Limits(BaseModel):
    """Limits of requests; each names the status that answers what is beyond it.

    Attributes:
        body_bytes: of a request (413).
        picture_bytes: of one uploaded picture (413).
        pictures: uploaded in one request (422).
        memory_bytes: of all bodies that a process holds at the same time (503).
        seconds: of an answer, after its body has come (503).
        body_seconds: in which a body must come (408).
        header_seconds: in which the headers of a request must come (408).
        header_bytes: of the address and headers of a request (431).
        connections: that a process answers; further ones are refused (503).
        slots: requests that compute at the same time.
        queue: requests that wait for a slot; further ones are refused (503).
        requests_a_minute: of one key or, without keys, one address (429); 0 for no limit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    body_bytes: Annotated[int, Field(gt=0)] = 64 * 2**20
    picture_bytes: Annotated[int, Field(gt=0)] = 16 * 2**20
    pictures: Annotated[int, Field(gt=0)] = 64
    memory_bytes: Annotated[int, Field(gt=0)] = 128 * 2**20
    seconds: Annotated[float, Field(gt=0)] = 30.0
    body_seconds: Annotated[float, Field(gt=0)] = 60.0
    header_seconds: Annotated[float, Field(gt=0)] = 10.0
    header_bytes: Annotated[int, Field(gt=0)] = 32 * 2**10
    connections: Annotated[int, Field(gt=0)] = 512
    slots: Annotated[int, Field(gt=0)] = Field(default_factory=num_threads)
    queue: Annotated[int, Field(ge=0)] = 16
    requests_a_minute: Annotated[int, Field(ge=0)] = 0


class ServiceSettings(BaseModel):
    """What a service serves, and how.

    Attributes:
        model: folder of a model or of a run, if one was named.
        galleries: folders or addresses of galleries.
        data: folder for picture sets, runs, galleries and jobs; None for a service that only
            answers.
        host: address to listen at.
        port: port to listen at.
        keys: file of hashed keys; None for no keys, which needs a loopback address.
        certificate: TLS certificate chain.
        private_key: key of the certificate.
        workers: number of processes.
        device: computes embeddings, as in `Matcher.load`.
        limits: limits of requests.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Path | None = None
    galleries: tuple[str, ...] = ()
    data: Path | None = None
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    keys: Path | None = None
    certificate: Path | None = None
    private_key: Path | None = None
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    device: str = "auto"
    limits: Limits = Field(default_factory=Limits)

    def to_environment(self) -> None:
        """Pass the settings to worker processes that start later."""
        os.environ[VARIABLE] = self.model_dump_json()

    @classmethod
    def from_environment(cls) -> ServiceSettings:
        """The settings that `to_environment` passed."""
        return cls.model_validate_json(os.environ[VARIABLE])


def check_name(kind: str, name: str) -> str:
    """A name that is safe as that of a folder.

    Raises:
        ConfigError: any other name.
    """
    if NAME.fullmatch(name) is None:
        raise ConfigError(
            f"a {kind} needs a name of 1 to 64 letters, digits, dots, blanks, '_' or '-', "
            f"beginning with a letter or digit; found '{one_line(name)}'"
        )
    return name
