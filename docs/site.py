"""Hooks of mkdocs: pages of the site that lie outside of docs/, links, and sections of docstrings.

README.md is the home page. The texts are written for the repository, so a link to `docs/data.md`
or `../benchmarks/NOTES.md` becomes one between pages of the site.
"""

from __future__ import annotations

import re
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
OUTSIDE = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "ARCHITECTURE.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "benchmarks/MEASUREMENTS.md": "benchmarks/MEASUREMENTS.md",
    "benchmarks/RESULTS.md": "benchmarks/RESULTS.md",
    "benchmarks/NOTES.md": "benchmarks/NOTES.md",
}
SOURCES = {page: source for source, page in OUTSIDE.items()}
LINK = re.compile(r"(\]\()([^)#:\s]+)(?=[#)])")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages outside of docs/."""
    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links between files of the repository into links between pages."""
    here = page.file.src_uri
    source = SOURCES.get(here, f"docs/{here}")

    def between_pages(match: re.Match[str]) -> str:
        target = normpath(join(dirname(source), match[2]))
        place = OUTSIDE.get(target, target.removeprefix("docs/"))
        return match[1] + relpath(place, dirname(here) or ".")

    return LINK.sub(between_pages, markdown)


class Sections(griffe.Extension):
    """Separate the sections of a docstring by the blank line that griffe needs."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Insert a blank line before each section."""
        if obj.docstring:
            headings = r"(?<!\n)\n(?=(Args|Returns|Yields|Raises|Attributes):\n)"
            obj.docstring.value = re.sub(headings, "\n\n", obj.docstring.value)
