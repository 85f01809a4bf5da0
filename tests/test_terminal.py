"""Control characters of names never reach a terminal."""

from __future__ import annotations

import json
import sys

import pytest

from twinlens.cli.main import main
from twinlens.cli.terminal import escaped_streams


def test_codes_of_a_terminal_are_escaped_and_layout_stays(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with escaped_streams():
        print("a\x1b]0;title\x07b\tc\r\u202egpj.exe\x9b31m")
        print("\x1b[31m", file=sys.stderr)
    shown = capsys.readouterr()
    assert shown.out == "a\\u001b]0;title\\u0007b\tc\r\\u202egpj.exe\\u009b31m\n"
    assert shown.err == "\\u001b[31m\n"


def test_json_with_such_names_is_still_json(capsys: pytest.CaptureFixture[str]) -> None:
    name = "rtl\u202egpj\x7f\x85"
    with escaped_streams():
        print(json.dumps({"name": name}, ensure_ascii=False))
    text = capsys.readouterr().out
    assert text.isascii()
    assert json.loads(text) == {"name": name}


@pytest.mark.parametrize(
    "words",
    [["verify", "no\x1b[31mmodel", "a.png", "b.png"], ["inspect", "no\x1b[31m"], ["in\x1b[31m"],
     ["inspect", "digits", "--no\x1b[31m"]],
)  # fmt: skip
def test_messages_about_such_names(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out + shown.err
    assert "1b[31m" in shown.err
