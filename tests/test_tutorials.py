"""The notebooks of docs/tutorials run from top to bottom, and hold no output."""

from __future__ import annotations

import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from twinlens.face.detectors import YUNET_FOLDER, YUNET_NAME

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
NOTEBOOKS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))
FOLDERS = {
    "faces": ("faces", "orl_faces"),
    "products": ("groceries", "groceries"),
    "signatures": ("signatures", "signatures"),
}
"""The folder that a notebook reads, and its pictures in shared/data."""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_output_is_stored(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, source = FOLDERS[path.stem]
    pictures = SHARED / "data" / source
    if not pictures.is_dir():
        pytest.skip(f"no {pictures}")
    (tmp_path / name).symlink_to(pictures)
    detector = tmp_path / "cache" / "downloads" / YUNET_FOLDER / YUNET_NAME
    detector.parent.mkdir(parents=True)
    shutil.copy(SHARED / "weights" / YUNET_NAME, detector)
    monkeypatch.setenv("TWINLENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TWINLENS_WEIGHTS", str(SHARED / "weights"))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
