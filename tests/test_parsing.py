"""JSON and TOML within bounds: values come back, and all else is a `ValueError` that says why."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinlens.parsing import MAX_DEPTH, parse_json, parse_toml, read_json, read_text

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)  # fmt: skip


@settings(max_examples=50)
@given(plain)
def test_what_json_writes_comes_back(value: object) -> None:
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value).encode()) == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        ("1e999", "the number 1e999 is not finite"),
        ("[-1e999]", "is not finite"),
        ('{"a": NaN}', "the number NaN is not finite"),
        ("-Infinity", "is not finite"),
        ("1" * 5000, "exceeds 64 bits"),
        (str(2**64), "exceeds 64 bits"),
        (str(-(2**63) - 1), "exceeds 64 bits"),
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' occurs twice"),
        ('[{"a\\nb": {"c": 1, "c": 1}}]', "the key 'c' occurs twice"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), f"nested more than {MAX_DEPTH} deep"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested more than"),
        ("[" * 100_000, "nested more than"),
        ("[" + "[]," * 2_000_001 + "[]]", "more than 2,000,000 objects, lists and keys"),
    ],
)
def test_refused_json(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_json(text)


def test_the_deepest_json_that_is_read() -> None:
    text = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert json.dumps(parse_json(text)) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a = ", "Invalid value"),
        ("a = 1\na = 2", "Cannot overwrite"),
        ("a = " + "[" * 2000 + "]" * 2000, "nested more than"),
        ("a = " + "{a = " * 500 + "1" + "}" * 500, "nested more than"),
        ("a." * 50 + "a = 1", "nested more than"),
        ("a." * 10_000 + "a = 1", "the longest line 20,005"),
        ("a = 1\n" * 100_000, "it has 600,000 characters"),
    ],
)
def test_refused_toml(text: str, reason: str) -> None:
    started = time.monotonic()
    with pytest.raises(ValueError, match=reason):
        parse_toml(text)
    assert time.monotonic() - started < 20


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "absent")
    with pytest.raises(ValueError, match="it is a folder, not a file"):
        read_text(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(ValueError, match="it is a device or pipe"):
            read_text(tmp_path / name)
    (tmp_path / "bytes").write_bytes(b"a\xff")
    with pytest.raises(ValueError, match=r"not UTF-8 text \(byte 1\)"):
        read_text(tmp_path / "bytes")
    (tmp_path / "large").write_bytes(b"1" * 2049)
    with pytest.raises(ValueError, match=r"larger than 0\.001953"):
        read_text(tmp_path / "large", 2048)
    (tmp_path / "mark").write_bytes(b"\xef\xbb\xbf[1]")
    assert read_json(tmp_path / "mark") == [1]
