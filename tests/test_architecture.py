"""Imports go only the way that ARCHITECTURE.md says, in no circle, and every module imports."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import twinlens

SOURCE = Path(twinlens.__file__).parent
MODULES = sorted(SOURCE.rglob("*.py"))

# Each room may import itself and the rooms before it. Imports within functions and those for
# type checking count too.
ROOMS = (
    "_version",
    "errors",
    "files",
    "parsing",
    "config",
    "machine",
    "recipes",
    "progress",
    "data",
    "model",
    "measure",
    "learn",
    "match",
    "report",
    "gallery",
    "clusters",
    "face",
    "commands",
    "cli",
)
# `measure` stands beside `model`, and the last three before `commands` beside each other.
FORBIDDEN = {
    "data": {"progress"},
    "model": {"progress"},
    "measure": {"model", "progress"},
    "match": {"learn"},
    "gallery": {"learn"},
    "clusters": {"learn", "gallery"},
    "face": {"model", "learn", "match", "gallery", "clusters"},
}
NO_TORCH = (
    "errors.py",
    "files.py",
    "parsing.py",
    "config.py",
    "cli",
    "data/table.py",
    "data/folders.py",
    "model/stored.py",
    "measure",
)


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def name_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


NAMES = {name_of(path): path for path in MODULES}


@cache
def imports_of(path: Path) -> frozenset[str]:
    """Every module that a file names in an import, wherever the import stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: a relative import"
            # `from twinlens.learn import losses` names a module, `... import fit` a function.
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & set(NAMES)
            names |= inner or {node.module}
    return frozenset(names)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_down_the_path_of_the_data(path: Path) -> None:
    room = room_of(name_of(path))
    if room in ("", "__main__"):
        return
    assert room in ROOMS, f"{room} is a new room: say in ROOMS and ARCHITECTURE.md where it stands"
    allowed = set(ROOMS[: ROOMS.index(room) + 1]) - FORBIDDEN.get(room, set())
    used = {room_of(name) for name in imports_of(path) if name.startswith("twinlens.")}
    assert used <= allowed


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {
        name: {used for used in imports_of(path) if used in NAMES and used != name}
        for name, path in NAMES.items()
        if name != "twinlens"
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("place", NO_TORCH)
def test_no_torch_at_the_top_of(place: str) -> None:
    files = sorted((SOURCE / place).rglob("*.py")) if "." not in place else [SOURCE / place]
    assert files
    for path in files:
        assert not {
            n for n in imports_of(path) if n.split(".")[0] in ("torch", "torchvision", "timm")
        }


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_imports_and_declares_all(path: Path) -> None:
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


def test_no_room_takes_the_name_of_a_public_function() -> None:
    # `import twinlens.clusters.linkage` binds `twinlens.clusters`: with a room named `cluster`,
    # `twinlens.cluster(...)` would call a module.
    assert not set(twinlens.__all__) & {room_of(name) for name in NAMES}


def test_names_in_the_design_exist() -> None:
    text = (SOURCE.parents[1] / "ARCHITECTURE.md").read_text(encoding="utf-8")
    names = re.findall(rf"`((?:{'|'.join(ROOMS)})(?:\.\w+)+)`", text)
    assert len(names) > 20
    for name in set(names) - {"model.json", "model.safetensors"}:
        parts = f"twinlens.{name}".split(".")
        end = next(end for end in range(len(parts), 1, -1) if ".".join(parts[:end]) in NAMES)
        value = importlib.import_module(".".join(parts[:end]))
        for part in parts[end:]:
            value = getattr(value, part)


@pytest.mark.parametrize("words", [["-c", "import twinlens"], ["-m", "twinlens", "--help"]])
def test_start_loads_nothing_heavy(words: list[str]) -> None:
    run = subprocess.run(
        [sys.executable, "-X", "importtime", *words], capture_output=True, text=True, check=True
    )
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in run.stderr.splitlines()}
    assert "twinlens" in loaded
    assert not loaded & {"torch", "numpy", "pydantic", "PIL", "matplotlib", "sklearn"}
