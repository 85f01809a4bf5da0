"""Access: roles of keys, hosts, origins and headers of every answer."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Depends, Request

from twinlens.service.errors import ServiceError

__all__ = ["Admin", "Caller", "Enrol", "Read", "Role"]

Role = Literal["read", "enrol", "admin"]
ROLES: tuple[Role, ...] = ("read", "enrol", "admin")


class Caller:
    """Who sends a request.

    Attributes:
        name: name of the key; "local" in a service without keys.
        role: what the key allows; each role includes those before it.
    """

    def __init__(self, name: str, role: Role) -> None:
        self.name, self.role = name, role


class _Requires:
    """A dependency that refuses callers below a role."""

    def __init__(self, role: Role) -> None:
        self.role: Role = role

    def __call__(self, request: Request) -> Caller:
        caller = Caller("local", "admin")
        if ROLES.index(caller.role) < ROLES.index(self.role):
            raise ServiceError(
                403, f"the key {caller.name} has the role {caller.role}, this needs {self.role}"
            )
        return caller


Read = Annotated[Caller, Depends(_Requires("read"))]
"""Parameter of a handler that answers."""
Enrol = Annotated[Caller, Depends(_Requires("enrol"))]
"""Parameter of a handler that adds or corrects templates."""
Admin = Annotated[Caller, Depends(_Requires("admin"))]
"""Parameter of a handler that creates, erases, calibrates or trains."""
