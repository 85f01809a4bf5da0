"""The tests of the installation that answers, in a process that cannot import what learns."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ANSWERING = Path(__file__).parent / "answering"

WITHOUT = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, *where):
        learns = ("torch", "torchvision", "timm", "tensorflow", "onnx", "onnxscript")
        return None if name.split(".")[0] in learns else self.finder.find_spec(name, *where)

sys.meta_path[:] = map(Without, sys.meta_path)
import pytest
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *sys.argv[1:]]))
"""


def test_answers_without_torch_even_where_it_is_installed() -> None:
    words = [sys.executable, "-c", WITHOUT, str(ANSWERING)]
    run = subprocess.run(words, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout
    assert "skipped" not in run.stdout
