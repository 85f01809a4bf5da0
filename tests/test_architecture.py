"""Imports go only the way that ARCHITECTURE.md says, and every module can be imported."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import twinlens

SOURCE = Path(twinlens.__file__).parent
MODULES = sorted(SOURCE.rglob("*.py"))

# Each room may import itself and the rooms before it.
ROOMS = (
    "errors",
    "files",
    "config",
    "recipes",
    "progress",
    "data",
    "model",
    "measure",
    "learn",
    "match",
    "jobs",
    "arguments",
    "cli_gallery",
    "cli",
)
# `measure` stands beside `model`: it needs no torch.
FORBIDDEN = {"measure": {"model", "progress"}, "model": {"progress"}, "data": {"progress"}}
NO_TORCH = (
    "errors.py",
    "config.py",
    "cli.py",
    "cli_gallery.py",
    "data/table.py",
    "data/sources.py",
    "measure",
)


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def name_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def imports_of(path: Path) -> set[str]:
    """Every module that a file names in an import, wherever it stands, but for type checking."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for inner in ast.walk(node):
                if isinstance(inner, ast.ImportFrom | ast.Import):
                    inner.names = []
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.names and node.module:
            found.add(node.module)
            if node.module == "twinlens":  # `from twinlens import config`
                found |= {f"twinlens.{alias.name}" for alias in node.names if alias.name in ROOMS}
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_down_the_path_of_the_data(path: Path) -> None:
    room = room_of(name_of(path))
    if room in ("", "__main__"):
        return
    assert room in ROOMS, f"{room} is a new room: say in ROOMS and ARCHITECTURE.md where it stands"
    allowed = set(ROOMS[: ROOMS.index(room) + 1]) - FORBIDDEN.get(room, set())
    used = {room_of(name) for name in imports_of(path) if name.startswith("twinlens.")}
    assert used <= allowed


@pytest.mark.parametrize("place", NO_TORCH)
def test_no_torch_at_the_top_of(place: str) -> None:
    files = sorted((SOURCE / place).rglob("*.py")) if "." not in place else [SOURCE / place]
    assert files
    for path in files:
        assert not {
            n for n in imports_of(path) if n.split(".")[0] in ("torch", "torchvision", "timm")
        }


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_imports_and_says_what_it_offers(path: Path) -> None:
    if path.name == "__main__.py":
        return
    module = importlib.import_module(name_of(path))
    assert module.__doc__
    for name in getattr(module, "__all__", []):
        assert getattr(module, name) is not None


def test_public_names_are_as_listed() -> None:
    assert twinlens.__all__ == sorted(twinlens.__all__)
    for name in twinlens.__all__:
        assert callable(getattr(twinlens, name))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        twinlens.trian  # noqa: B018


@pytest.mark.parametrize("words", [["-c", "import twinlens"], ["-m", "twinlens", "--help"]])
def test_start_loads_nothing_heavy(words: list[str]) -> None:
    run = subprocess.run(
        [sys.executable, "-X", "importtime", *words], capture_output=True, text=True, check=True
    )
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in run.stderr.splitlines()}
    assert "twinlens" in loaded
    assert not loaded & {"torch", "numpy", "pydantic", "PIL", "matplotlib", "sklearn"}
