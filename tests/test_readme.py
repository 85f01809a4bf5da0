"""Every code block of the README runs, in order, in one folder with pictures."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
NAMES = ("anna", "ben", "cem", "dora", "emil", "fatma", "gus", "hana", "ivo", "jun", "kim", "leo")


def test_it_stays_short() -> None:
    assert len(README.splitlines()) < 150


def test_every_block_is_of_a_kind_that_runs() -> None:
    assert {kind for kind, _ in BLOCKS} == {"bash", "python"}


def test_the_first_two_commands_are_targets_of_make() -> None:
    _, first = BLOCKS[0]
    words = [shlex.split(line, comments=True) for line in first.splitlines()]
    assert words == [["make", "demo"], ["make", "test"]]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for _, target in words)


def test_links_lead_somewhere() -> None:
    for target, anchor in re.findall(r"\]\(([^)#]+)(?:#([^)]+))?\)", README):
        assert (ROOT / target).exists(), target
        if anchor:
            text = (ROOT / target).read_text(encoding="utf-8")
            headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
            assert anchor in [_anchor(heading) for heading in headings], f"{target}#{anchor}"


def _anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.slow
def test_blocks_run(tmp_path: Path, picture_folder: Callable[..., Path]) -> None:
    picture_folder(dict.fromkeys(NAMES, 6), size=(20, 20)).rename(tmp_path / "photos")
    picture_folder(dict.fromkeys(NAMES[-7:], 8), size=(20, 20)).rename(tmp_path / "team")
    for folder in [*(tmp_path / "photos").iterdir(), *(tmp_path / "team").iterdir()]:
        for file in sorted(folder.iterdir(), reverse=True):  # 5.png becomes 6.png first.
            file.rename(folder / f"{int(file.stem) + 1}.png")
    (tmp_path / "door").mkdir()
    for number, name in enumerate(("kim", "leo"), start=1):
        (tmp_path / "team" / name / "8.png").rename(tmp_path / "door" / f"{number}.png")
    for kind, block in BLOCKS[1:]:
        commands = [["-c", block]] if kind == "python" else list(_twinlens(block))
        for words in commands:
            run = subprocess.run(
                [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=False
            )
            allowed = (0, 1) if {"verify", "identify"} & set(words) else (0,)
            assert run.returncode in allowed, f"{words}: {run.stderr}"
    for made in ("verdict.png", "runs/photos/report.html", "who.png"):
        assert (tmp_path / made).is_file()


def _twinlens(block: str) -> list[list[str]]:
    commands = []
    for line in block.splitlines():
        words = shlex.split(line.partition(" > ")[0], comments=True)
        assert words[0] == "twinlens"
        commands.append(["-m", *words])
    return commands
