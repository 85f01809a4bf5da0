"""CSV files: cells that a spreadsheet would run, and the files of other programs."""

from __future__ import annotations

import csv
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinlens.data.csv_file import csv_cell, original_cell, path_of_cell, read_csv, write_csv
from twinlens.errors import DataError


def rows(file: Path) -> list[tuple[int, dict[str, str]]]:
    return list(read_csv(file, "the list", lambda names: None))


@pytest.mark.parametrize(
    "name", ["=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\uff1d1+1", "'=1"]
)
def test_a_formula_is_text_for_a_spreadsheet_and_comes_back(name: str, tmp_path: Path) -> None:
    write_csv(tmp_path / "list.csv", ["name"], [[name]])
    with (tmp_path / "list.csv").open(newline="", encoding="utf-8") as text:
        cell = list(csv.reader(text))[1][0]
    assert cell == "'" + name
    assert rows(tmp_path / "list.csv") == [(rows(tmp_path / "list.csv")[0][0], {"name": name})]


@pytest.mark.parametrize("value", ["-0.5", "+3", "-inf", "1e-3", -0.5, 7, "anna", "'quoted'", ""])
def test_numbers_and_ordinary_names_stay_as_they_are(value: object) -> None:
    assert csv_cell(value) == value


@given(st.text())
def test_every_text_comes_back(text: str) -> None:
    assert original_cell(csv_cell(text)) == text


@pytest.mark.parametrize(
    "content",
    [
        b"path,identity\na.png,anna\n",
        b"path;identity\r\na.png;anna\r\n",
        b"Path\tIdentity\na.png\tanna\n",
        b"\xef\xbb\xbfpath, identity\na.png, anna\n",
        "path,identity\na.png,anna\n".encode("utf-16"),
        b"path,identity\ra.png,anna\r",
        b'PATH , "identity"\n"a.png","anna"\n',
    ],
    ids=["comma", "semicolon", "tab", "BOM and blanks", "UTF-16", "old Mac", "quotes"],
)
def test_files_of_other_programs(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    file.write_bytes(content)
    assert [cells for _, cells in rows(file)] == [{"path": "a.png", "identity": "anna"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"path,Path\na,b\n", "the column path twice"),
        (b"path\na,b\n", "2 cells in line 2 and 1 columns"),
        (b"path\nM\xfcller\n", "not UTF-8"),
        (b'path\n"a\n', "close each quotation mark"),
        (b"path\na\0b\n", "NUL in line 2"),
        (b"path\n" + b"a" * 200_000, "field limit"),
        (b'path,identity\na,b\nc,"d\n' + b"e,f\n" * 9, "the row that begins in line 3.*close each"),
        (b"path\n" + b"a," * 2**20, "more than 1,048,576 characters in line 2"),
        (b"a" * 2**21, "more than 1,048,576 characters in line 1"),
        (b"path,,\na,,\nb,,c\n", "a cell in line 3 whose column has no name"),
        ("path\na\n".encode("utf-16-le"), "NUL in line 2"),
    ],
)
def test_what_is_wrong_is_said(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    file.write_bytes(content)
    with pytest.raises(DataError, match=message):
        rows(file)


def test_columns_without_a_name_are_left_out_if_they_are_empty(tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    file.write_text("a,,b,\n1,,2,\n")
    assert rows(file) == [(2, {"a": "1", "b": "2"})]


def test_backslashes_separate_folders_if_only_that_file_exists(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.png").touch()
    assert path_of_cell(tmp_path, "a\\b.png") == tmp_path / "a" / "b.png"
    assert path_of_cell(tmp_path, "a\\c.png") == tmp_path / "a\\c.png"
    (tmp_path / "a\\b.png").touch()
    assert path_of_cell(tmp_path, "a\\b.png") == tmp_path / "a\\b.png"


def test_missing_cells_at_the_end_are_empty(tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    file.write_text("a,b,c\n1\n\n2,3\n")
    assert rows(file) == [(2, {"a": "1", "b": "", "c": ""}), (4, {"a": "2", "b": "3", "c": ""})]


def test_a_pipe_is_read_in_one_pass(tmp_path: Path) -> None:
    pipe = tmp_path / "list.csv"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("a;b\n1;2\n",))
    writer.start()
    assert rows(pipe) == [(2, {"a": "1", "b": "2"})]
    writer.join()
