"""The reference of all routes as a page, made of the OpenAPI description."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import APIRouter, Request, Response

from twinlens.service.pages.view import render
from twinlens.service.schemas import ERRORS
from twinlens.service.security import Read

__all__ = ["router"]

router = APIRouter(prefix="/v1", include_in_schema=False)

LONGEST = 12  # entries of a type in words


@router.get("/docs")
async def reference(request: Request, caller: Read) -> Response:
    """The reference of the service; it loads nothing from elsewhere."""
    described = request.app.openapi()
    address = str(request.base_url).rstrip("/")
    groups: dict[str, list[dict[str, Any]]] = {}
    for route in _routes(described, address):
        groups.setdefault(route["tag"], []).append(route)
    errors = [(status, facts["description"]) for status, facts in ERRORS.items()]
    return render(request, "reference.html.j2", groups=groups, errors=errors,
                  version=described["info"]["version"])  # fmt: skip


def _routes(described: Mapping[str, Any], address: str) -> Iterator[dict[str, Any]]:
    schemas = described.get("components", {}).get("schemas", {})
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            bodies = operation.get("requestBody", {}).get("content", {})
            answers = [
                _answer(status, facts, schemas)
                for status, facts in operation["responses"].items()
                if int(status) < 400
            ]
            yield {
                "id": operation["operationId"],
                "tag": operation["tags"][-1],
                "method": method.upper(),
                "path": path,
                "summary": operation.get("description", operation["summary"]).replace("`", ""),
                "parameters": [
                    {"name": each["name"], "in": each["in"], "required": each.get("required"),
                     "type": _type(each["schema"], schemas),
                     "default": each["schema"].get("default", ""),
                     "text": each.get("description", each["schema"].get("description", ""))}
                    for each in operation.get("parameters", ())
                ],
                "bodies": [(kind, _type(facts.get("schema", {}), schemas))
                           for kind, facts in bodies.items()],
                "answers": answers,
                "curl": _curl(method.upper(), address + path, operation),
            }  # fmt: skip


def _answer(
    status: str, facts: Mapping[str, Any], schemas: Mapping[str, Any]
) -> tuple[str, str, str | None]:
    """Status, description and example of an answer."""
    for kind, content in facts.get("content", {}).items():
        schema = _resolved(content.get("schema", {}), schemas)
        example = schema.get("example", content.get("example"))
        text = None if example is None else json.dumps(example, indent=1, ensure_ascii=False)
        return status, f"{schema.get('description', facts['description'])} ({kind})", text
    return status, facts["description"], None


def _resolved(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Mapping[str, Any]:
    name = schema.get("$ref", "").rpartition("/")[2]
    resolved: Mapping[str, Any] = schemas.get(name, schema)
    return resolved


def _type(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    """A schema in a few words."""
    schema = _resolved(schema, schemas)
    options = schema.get("anyOf", schema.get("oneOf"))
    if options is not None:
        kinds = [option for option in options if option.get("type") != "null"]
        return " or ".join(_type(option, schemas) for option in kinds)
    if "enum" in schema:
        return " or ".join(str(value) for value in schema["enum"][:LONGEST])
    if schema.get("format") == "binary":
        return "a file"
    if schema.get("type") == "array":
        kind = _type(schema.get("items", {}), schemas)
        return "one file or several" if kind == "a file" else f"list of {kind}"
    if schema.get("type") == "object" and schema.get("properties"):
        fields = schema["properties"].items()
        return ", ".join(f"{name}: {_type(field, schemas)}" for name, field in fields)
    limits = [
        f"{sign} {schema[key]}"
        for key, sign in (("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="),
                          ("exclusiveMaximum", "<"))
        if key in schema
    ]  # fmt: skip
    kind = "base64" if schema.get("contentEncoding") == "base64" else schema.get("type", "any")
    return " ".join([str(kind), *limits])


def _curl(method: str, address: str, operation: Mapping[str, Any]) -> str:
    """A command that calls a route; words in capitals are to be filled in."""
    for each in operation.get("parameters", ()):
        if each["in"] == "path":
            address = address.replace(f"{{{each['name']}}}", each["name"].upper())
    needed = [f"{each['name']}={each['name'].upper()}" for each in operation.get("parameters", ())
              if each["in"] == "query" and each.get("required")]  # fmt: skip
    query = "?" + "&".join(needed) if needed else ""
    words = ["curl"]
    content = operation.get("requestBody", {}).get("content", {})
    if "multipart/form-data" in content:
        fields = content["multipart/form-data"]["schema"].get("properties", {})
        words += [f"-F {name}=@FILE" for name in fields]
    elif "application/json" in content:
        words += ["--json @FILE.json"]
    if method != ("POST" if len(words) > 1 else "GET"):
        words.append(f"-X {method}")
    return " ".join([*words, f"'{address}{query}'"])
