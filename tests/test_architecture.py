"""Imports go only the way that ARCHITECTURE.md says, in no circle, and every module imports."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import twinlens
from twinlens.errors import EXTRAS

SOURCE = Path(twinlens.__file__).parent
MODULES = sorted(SOURCE.rglob("*.py"))

# Each room may import itself and the rooms before it. Imports within functions and those for
# type checking count too.
ROOMS = (
    "_version",
    "errors",
    "display",
    "files",
    "parsing",
    "config",
    "machine",
    "recipes",
    "progress",
    "processes",
    "data",
    "face",
    "model",
    "measure",
    "learn",
    "match",
    "report",
    "exports",
    "gallery",
    "clusters",
    "scale",
    "commands",
    "service",
    "cli",
)
# `measure` stands beside `model`, and the last two before `commands` beside each other.
FORBIDDEN = {
    "data": {"progress"},
    "model": {"progress"},
    "measure": {"face", "model", "progress"},
    "match": {"learn"},
    "gallery": {"learn"},
    "clusters": {"learn", "gallery"},
}
# Modules that may import the packages of extras, such as torch, and each other.
LEARNING = re.compile(
    r"twinlens\.(commands\.(demo|fit_model|follow|initial_model|pack|prepare|pretrain|resume|run_lines|train)"
    r"|data\.augment|scale\.launch|learn\.(?!records$)\w+"
    r"|model\.(backbones|comparators|compute|descriptors|device|encoder|fused|graph_templates|hub"
    r"|layers|networks|onnx_graphs|own_backbones|plugged_in|pretrained|timm_backbones|weights))"
)
# Functions of other modules that import them when they are called.
LAZY = {
    "twinlens.commands.audit_distances",  # features of an audit without a model
    "twinlens.commands.doctor",  # times training steps
    "twinlens.commands.inspect",  # settings of a training run
    "twinlens.data.datasets",  # downloads
    "twinlens.match.matcher",  # graphs of models of older formats
    "twinlens.service.job_work",  # trainings, in a process of their own
}
# Extras without torch, for one function each.
OTHER_EXTRAS = {
    "cv2", "huggingface_hub", "onnx", "openvino", "pandas", "pillow_heif", "pillow_jxl", "ray"
}  # fmt: skip


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


def imports_at(path: Path) -> tuple[set[str], set[str]]:
    """Modules that a file imports at once, and those that its functions import; not for types."""
    at_once: set[str] = set()
    lazily: set[str] = set()

    def walk(node: ast.AST, names: set[str]) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                continue
            if isinstance(child, ast.Import):
                names |= {alias.name for alias in child.names}
            elif isinstance(child, ast.ImportFrom) and child.module:
                inner = {f"{child.module}.{alias.name}" for alias in child.names} & set(NAMES)
                names |= inner or {child.module}
            walk(child, lazily if isinstance(child, ast.FunctionDef) else names)

    walk(ast.parse(path.read_text(encoding="utf-8")), at_once)
    return at_once, lazily


def learns(module: str, packages: Iterable[str] = EXTRAS) -> bool:
    """Whether a module belongs to learning or to the package of an extra."""
    return LEARNING.fullmatch(module) is not None or module.split(".")[0] in packages


@pytest.mark.parametrize("name", [name for name in NAMES if not learns(name)])
def test_what_answers_imports_nothing_for_learning(name: str) -> None:
    at_once, lazily = imports_at(NAMES[name])
    serves = room_of(name) == "service"
    packages = {used for used, extra in EXTRAS.items() if not serves or extra != "serve"}
    assert not {used for used in at_once if learns(used, packages)}
    if name not in LAZY:
        assert not {used for used in lazily if learns(used, packages - OTHER_EXTRAS)}


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
    for name in set(names) - {"model.json", "model.onnx", "model.safetensors"}:
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
