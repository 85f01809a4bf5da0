"""Answers of the service, compared with the schemas of its OpenAPI description."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel

__all__ = ["answered"]


def answered(response: Any, schema: type[BaseModel] | None = None, status: int = 200) -> Any:
    assert response.status_code == status, response.text
    answer = response.json()
    if schema is not None:
        again = schema.model_validate(answer, strict=True).model_dump(exclude_unset=True)
        assert json.loads(json.dumps(again)) == answer
    return answer
