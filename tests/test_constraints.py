"""The CSV of pairs that must or cannot be together: how pictures are named, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import PictureFolder

from twinlens.clusters.constraints import Constraints, read_constraints, rows_by_name
from twinlens.data.folders import read_table, read_unlabelled
from twinlens.errors import DataError

PLACES = {name: row for row, name in enumerate("abcdef")}


def read(tmp_path: Path, text: str) -> Constraints:
    file = tmp_path / "pairs.csv"
    file.write_text(text, encoding="utf-8")
    return read_constraints(file, PLACES)


def refused(tmp_path: Path, text: str) -> str:
    with pytest.raises(DataError) as error:
        read(tmp_path, text)
    return str(error.value)


def test_pairs_of_rows(tmp_path: Path) -> None:
    constraints = read(tmp_path, "a,b,link\na,b,must\n\nc,d, Cannot \nb,e,must\n")
    assert constraints == Constraints(must=((0, 1), (1, 4)), cannot=((2, 3),))
    assert len(constraints) == 3


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffa,b,link\na,b,must\n",
        "a;b;link\na;b;must\n",
        "a\tb\tlink\na\tb\tmust\n",
        "link,why,B,A\r\nmust,we know,b,a\r\n",
        'a,b,link\n"a","b",MUST',
    ],
)
def test_formats_of_spreadsheets(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text) == Constraints(must=((0, 1),))


def test_pictures_are_named_as_in_the_data_or_by_a_path(
    picture_folder: PictureFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = picture_folder({"x": 2, "deep/ü, 日本": 2})
    monkeypatch.chdir(tmp_path)
    table = read_unlabelled(top)
    names = [table.relative(row) for row in range(4)]
    assert names == ["deep/ü, 日本/0.png", "deep/ü, 日本/1.png", "x/0.png", "x/1.png"]
    lines = [
        '"deep/ü, 日本/0.png",x/0.png,must',
        f"./x/1.png,{top}/x/0.png,cannot",
        f'{top.name}/x/0.png,"{top}/x/../deep/ü, 日本/1.png",must',
    ]
    file = tmp_path / "pairs.csv"
    file.write_text("\n".join(["a,b,link", *lines]), encoding="utf-8")
    constraints = read_constraints(file, rows_by_name(table))
    assert constraints == Constraints(must=((0, 2), (2, 1)), cannot=((3, 2),))


def test_pictures_in_memory_are_named_by_their_paths() -> None:
    places = rows_by_name(read_table("digits"))
    assert places["digits/00017"] == 17
    assert len(places) == 1797


def test_invalid_lines_are_listed_together(tmp_path: Path) -> None:
    said = refused(tmp_path, "a,b,link\na,x y,must\na,b,maybe\n,b,must\nc,d,must\n")
    assert "pairs.csv has invalid lines" in said
    assert "line 2: 'x y' is not among the pictures that were read" in said
    assert "line 3: link must be 'must' or 'cannot', found 'maybe'" in said
    assert "line 4: a and b are both required" in said
    assert "line 5" not in said
    said = refused(tmp_path, "a,b,link\n" + "\n".join(f"a,no{n},must" for n in range(30)))
    assert said.count("is not among") == 10
    assert said.endswith("and 20 more")


def test_contradictions_name_their_lines(tmp_path: Path) -> None:
    said = refused(tmp_path, "a,b,link\na,b,must\na,b,cannot\n")
    assert "line 3 keeps 'a' and 'b' apart, and line 2 brings them together" in said
    said = refused(tmp_path, "a,b,link\na,b,cannot\nb,c,must\ne,f,must\nd,c,must\na,d,must\n")
    assert "line 2 keeps 'a' and 'b' apart, and lines 6, 5, 3 bring them together" in said
    said = refused(tmp_path, "a,b,link\nc,c,cannot\n")
    assert "line 2: 'c' and 'c' are the same picture" in said


def test_a_long_chain_is_shortened(tmp_path: Path) -> None:
    places = {str(number): number for number in range(40)}
    lines = [f"{number},{number + 1},must" for number in range(39)]
    file = tmp_path / "pairs.csv"
    file.write_text("\n".join(["a,b,link", *lines, "0,39,cannot"]))
    with pytest.raises(DataError, match=r"lines 2, 3, 4, 5, 6, 7, 8, 9, 10, \.\.\., 40 bring"):
        read_constraints(file, places)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\na,b\n", "has the columns a, b: pairs that must or cannot be together need a,b,link"),
        ("", r"has the columns \(none\)"),
        ("a,b,link\n", "has no pairs"),
        ('a,b,link\n"a,b,must\n', "cannot read .*pairs.csv"),
    ],
)
def test_files_without_pairs(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, text)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*none\.csv"):
        read_constraints(tmp_path / "none.csv", PLACES)
