"""Error messages: names from a user's files stay on one line."""

from __future__ import annotations

import pickle
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinlens.errors import (
    DataError,
    MissingExtraError,
    PictureError,
    TwinlensError,
    message_lines,
    one_line,
    unknown_name,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("anna", "anna"),
        ('O\'Brien "Bob"', 'O\'Brien "Bob"'),
        ("two\nlines", "two\\nlines"),
        ("tab\tbell\a", "tab\\tbell\\x07"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\u2028b\u2029c\x85d", "a\\u2028b\\u2029c\\x85d"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("👩‍👩‍👧 Zoë 東京", "👩‍👩‍👧 Zoë 東京"),
        ("a/b\\c", "a/b\\c"),
        ("", ""),
    ],
)
def test_one_line_escapes_control_characters(text: str, shown: str) -> None:
    assert one_line(text) == shown


@pytest.mark.parametrize(
    "error", [DataError("a"), PictureError("a.jpg", "gone"), MissingExtraError("train", "no torch")]
)
def test_another_process_can_send_errors(error: TwinlensError) -> None:
    same = pickle.loads(pickle.dumps(error))
    assert (type(same), str(same), vars(same)) == (type(error), str(error), vars(error))


def test_long_names_keep_both_ends() -> None:
    assert one_line("abcdefghij", 10) == "abcdefghij"
    assert one_line("abcdefghijk", 10) == "abcdef…ijk"
    assert len(one_line("x" * 4000)) == 80
    assert one_line("x" * 4000, None) == "x" * 4000
    assert one_line("\n" * 4000, 9) == "\\n\\n\\n…\\n"


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), st.integers(4, 40))
def test_one_line_is_one_line_of_at_most_max_length(text: str, max_length: int) -> None:
    shown = one_line(text, max_length)
    assert len(shown) <= max_length
    assert len(shown.splitlines()) <= 1
    assert all(unicodedata.category(char) != "Cc" for char in shown)
    plain = text.isascii() and text.isprintable()
    if plain and len(text) <= max_length:
        assert shown == text


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n "])
def test_a_name_begins_no_line_of_a_message(end: str) -> None:
    message = message_lines(f"skipped a{end}twinlens: error: b.png")
    assert len(message.splitlines()) == 1
    assert message_lines("rows:\n  one\n  two") == "rows:\n  one\n  two"


def test_unknown_names() -> None:
    message = unknown_name("identity", "ana\n", ["anna", "ben", "anna\n"])
    assert message == "unknown identity 'ana\\n': did you mean anna\\n or anna?"
    assert unknown_name("rule", "x", ["mean", "vote"]).endswith("choose from mean, vote")


def test_long_names_are_shortened_in_messages() -> None:
    long = ["a" * 4000 + str(number) for number in range(300)]
    message = unknown_name("identity", "a" * 4000, long)
    assert len(message) < 400
    assert message.startswith(f"unknown identity '{one_line('a' * 4000)}': did you mean a")
