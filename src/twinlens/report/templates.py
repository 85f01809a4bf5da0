"""Templates and the style sheet of all pages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined, Template

__all__ = ["page_template", "style_sheet"]


def page_template(name: str, filters: Mapping[str, Callable[..., Any]] | None = None) -> Template:
    """A template of this room; values are escaped, and an undefined one is an error.

    Args:
        name: file name.
        filters: filters that the template uses, by name.
    """
    page = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page.filters |= filters or {}
    return page.from_string(_text(name))


def style_sheet() -> str:
    """The style sheet of all pages: CSS for light, dark and print."""
    return _text("report.css")


def _text(name: str) -> str:
    return (resources.files("twinlens.report") / name).read_text(encoding="utf-8")
