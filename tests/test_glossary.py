"""The glossary: its page, its order, and the command."""

from __future__ import annotations

from pathlib import Path

import pytest

from twinlens.cli.main import main
from twinlens.commands.glossary import TERMS, glossary, glossary_page
from twinlens.errors import ConfigError

PAGE = Path(__file__).parents[1] / "docs" / "glossary.md"


def test_the_page_is_the_one_of_these_terms() -> None:
    command = "python -m twinlens.commands.glossary > docs/glossary.md"
    assert PAGE.read_text(encoding="utf-8") == glossary_page(), f"run {command}"
    assert list(TERMS) == sorted(TERMS, key=str.lower)


def test_terms_are_found_by_name_part_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(glossary("Far")) == ["FAR"]
    assert list(glossary("pair")) == ["genuine pair", "impostor pair"]
    assert "FRR" in glossary("non-match")
    with pytest.raises(ConfigError, match="threshold"):
        glossary("treshold")
    assert main(["glossary", "genuine", "pair"]) == 0
    assert capsys.readouterr().out.startswith("genuine pair  Two pictures")
    assert main(["glossary"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
