"""What all our pages share: how a template is read, and the style sheet.

This module does not know what a page shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined, Template

__all__ = ["page_template", "style_sheet"]


def page_template(
    package: str, name: str, filters: Mapping[str, Callable[..., Any]] | None = None
) -> Template:
    """A template that lies in a package; it escapes what it is given, and misses nothing quietly.

    Args:
        package: such as "twinlens.jobs".
        name: of the file.
        filters: that the template uses, by name.
    """
    page = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page.filters |= filters or {}
    return page.from_string(_text(package, name))


def style_sheet() -> str:
    """The style of our pages, CSS for light, dark and print."""
    return _text("twinlens.measure", "report.css")


def _text(package: str, name: str) -> str:
    return (resources.files(package) / name).read_text(encoding="utf-8")
