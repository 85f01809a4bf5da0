"""The Python of the README and of the documents: every block that answers runs as it stands.

Blocks that train, fetch or serve are checked for names and arguments.
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import TinyRun, draw_pictures
from PIL import Image

import twinlens

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = {
    str(path.relative_to(ROOT)): blocks
    for path in PAGES
    if (blocks := re.findall(r"^```python\n(.*?)^```$", path.read_text("utf-8"), re.M | re.S))
}
# Training takes long, and tests/test_plugged_in.py does it; tests/test_export.py runs the script of
# docs/export.md, and CompreFace is another service.
NOT_RUN = re.compile(r"\btwinlens\.(train|Callback)\b|^import requests|\bsys\.argv\b", re.M)


@pytest.fixture(scope="module")
def folder(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a reader: photographs, a model, a gallery."""
    top = tmp_path_factory.mktemp("reader")
    draw_pictures(top / "photos", {"anna": 4, "ben": 4, "cem": 4}, seed=3)
    draw_pictures(top, {"door": 3}, seed=4)
    for name in ("a", "b"):
        Image.open(top / "door" / "1.png").save(top / f"{name}.jpg")
    (top / "runs").mkdir()
    (top / "runs" / "photos").symlink_to(tiny_run.run)
    gallery = twinlens.Gallery.create(top / "people", tiny_run.run)
    gallery.enrol(top / "photos")
    return top


@pytest.mark.parametrize("page", BLOCKS)
def test_blocks_that_answer_run(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, as the cells of one notebook."""
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"twinlens": twinlens}
    for block in BLOCKS[page]:
        if not NOT_RUN.search(block):
            exec(compile(block, page, "exec"), names)


@pytest.mark.parametrize("page", BLOCKS)
def test_names_and_arguments_exist(page: str) -> None:
    for block in BLOCKS[page]:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "twinlens":
                assert node.attr in twinlens.__all__, f"{page}: twinlens.{node.attr}"
            if isinstance(node, ast.Call) and re.fullmatch(
                r"twinlens(\.\w+)+", ast.unparse(node.func)
            ):
                name = ast.unparse(node.func).removeprefix("twinlens.")
                function: Any = twinlens
                for part in name.split("."):
                    function = getattr(function, part)
                keywords = {keyword.arg: None for keyword in node.keywords if keyword.arg}
                inspect.signature(function).bind(*node.args, **keywords)
