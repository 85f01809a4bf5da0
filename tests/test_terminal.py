"""Control characters of names never reach a terminal."""

from __future__ import annotations

import json
import sys

import pytest
from conftest import PictureFolder

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


def test_a_name_begins_no_line_of_a_report(
    picture_folder: PictureFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    """Line breaks in the names of folders and files, among them files that cannot be read."""
    data = picture_folder({"anna\n! forged": 2, "ben\r\nforged": 1, "carl": 3})
    (data / "carl" / "2.png").rename(data / "carl" / "c\nforged.png")
    (data / "carl" / "d\nforged.png").write_bytes(b"no picture")
    (data / "carl" / "e\nforged.png").write_bytes((data / "carl" / "0.png").read_bytes())
    assert main(["inspect", str(data), "--quiet"]) == 0
    assert main(["inspect", f"{data}\ntwinlens: error: none"]) == 2
    out, err = capsys.readouterr()
    assert out.count("\\nforged.png") >= 2
    lines = [*out.splitlines(), *err.splitlines()]
    assert not [line for line in lines if line.startswith(("forged", "! forged"))]
    assert err.count("\ntwinlens: error") == 0
