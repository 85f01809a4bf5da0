"""Hooks of mkdocs: pages outside of docs/, generated pages, links, and sections of docstrings.

README.md is the home page. The texts are written for the repository, so a link to `docs/data.md`
or `../benchmarks/NOTES.md` becomes one between pages of the site. A notebook becomes a page of its
cells, and the argument parser the reference of the command line.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
from typing import Any

import griffe
import nbformat
from mkdocs.structure.files import File, Files

from twinlens.cli.main import make_parser

ROOT = Path(__file__).parents[1]
OUTSIDE = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "ARCHITECTURE.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "benchmarks/MEASUREMENTS.md": "benchmarks/MEASUREMENTS.md",
    "benchmarks/RESULTS.md": "benchmarks/RESULTS.md",
    "benchmarks/NOTES.md": "benchmarks/NOTES.md",
    "benchmarks/HONESTY.md": "benchmarks/HONESTY.md",
    "benchmarks/REGRET.md": "benchmarks/REGRET.md",
}
SOURCES = {page: source for source, page in OUTSIDE.items()}
LINK = re.compile(r"(\]\()([^)#:\s]+)(?=[#)])")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages outside of docs/, and those that are generated."""
    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for notebook in sorted((ROOT / "docs" / "tutorials").glob("*.ipynb")):
        page = f"tutorials/{notebook.stem}.md"
        files.append(File.generated(config, page, content=_notebook_page(notebook)))
    files.append(File.generated(config, "reference/command-line.md", content=_command_line()))
    return files


def _notebook_page(path: Path) -> str:
    """The cells of a notebook, and a link to it below its heading."""
    notebook = nbformat.read(path, as_version=4)
    heading, _, rest = notebook.cells[0].source.partition("\n")
    cells = [
        cell.source if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```"
        for cell in notebook.cells[1:]
    ]
    link = f"[Download this page as a notebook]({path.name})"
    return "\n\n".join([heading, rest.strip(), link, *cells])


def _command_line() -> str:
    """A section for each command, with its arguments and options."""
    parser = make_parser()
    parts = ["# Command line", parser.description or ""]
    for command in _commands(parser):
        usage = command.format_usage().removeprefix("usage: ")
        parts += [f"## {command.prog}", (command.description or "").strip()]
        parts += [f"```text\n{usage}```", _options(command)]
    return "\n\n".join(parts)


def _commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parsers of all commands that run, subcommands included."""
    groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not groups:
        yield parser
    for group in groups:
        for command in group.choices.values():
            yield from _commands(command)


def _options(command: argparse.ArgumentParser) -> str:
    """A table of the arguments and options of a command."""
    rows = ["| argument | meaning |", "|---|---|"]
    formatter = command._get_formatter()
    for action in command._actions:
        if not isinstance(action, argparse._HelpAction):
            name = formatter._format_action_invocation(action)
            text = formatter._expand_help(action) if action.help else ""
            rows.append(f"| `{name}` | {text.replace('|', '&#124;')} |")
    return "\n".join(rows)


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
            # griffe draws a section "Examples" as code, and "Example" as text.
            text = re.sub(r"\nExample:\n", "\nExamples:\n", obj.docstring.value)
            headings = r"(?<!\n)\n(?=(Args|Returns|Yields|Raises|Attributes|Examples):\n)"
            obj.docstring.value = re.sub(headings, "\n\n", text)
