"""Lists of pairs with same or different, and no identities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from twinlens.data.folders import read_table
from twinlens.data.pair_list import PairList, pairs_in
from twinlens.errors import DataError

PIXELS = {
    name: np.random.default_rng(row).integers(0, 256, (8, 8), dtype=np.uint8)
    for row, name in enumerate("abcde")
}
# e, d and c are one identity, a and b another; the table is sorted, the pairs are not.
ROWS = [("e.png", "d.png", 1), ("d.png", "c.png", 1), ("b.png", "./a.png", 1),
        ("a.png", "e.png", 0), ("./b.png", "c.png", 0)]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, pixels in PIXELS.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    return tmp_path


def in_memory(rows: list[tuple[str, str, int]]) -> list[tuple[Any, Any, bool]]:
    pixels = {f"{dot}{name}.png": PIXELS[name] for name in PIXELS for dot in ("", "./")}
    return [(pixels[a], pixels[b], bool(same)) for a, b, same in rows]


def check(pairs: PairList | None) -> None:
    assert pairs is not None
    for a, b, same, (first, second, expected) in zip(
        pairs.a, pairs.b, pairs.same, ROWS, strict=True
    ):
        assert same == bool(expected)
        for row, name in ((a, first), (b, second)):
            picture = pairs.table.picture(int(row))
            pixels = np.asarray(Image.open(picture)) if isinstance(picture, str) else picture
            np.testing.assert_array_equal(pixels, PIXELS[Path(name).stem])
    first, second = pairs.labels()
    np.testing.assert_array_equal(first == second, pairs.same)
    assert len(pairs.table) == 5


def test_pairs_of_each_kind(folder: Path) -> None:
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    names = ("a", "b", "same")
    for ending, mark in ((".csv", ","), (".tsv", "\t")):
        lines = [mark.join((*map(str, row), "x")) for row in ROWS]
        file = folder / f"pairs{ending}"
        file.write_text("\n".join([mark.join((*names, "where")), *lines]))
        pairs = pairs_in(file)
        check(pairs)
        assert pairs is not None
        assert pairs.columns == {"where": ["x"] * 5}
        assert read_table(str(file)).identity.tolist() == ["2", "2", "1", "1", "1"]
    check(pairs_in(pandas.DataFrame(ROWS, columns=list(names)), folder))
    check(pairs_in(polars.DataFrame(ROWS, schema=["A", "b", "Same"], orient="row"), folder))
    check(pairs_in(ROWS, folder))
    check(pairs_in([dict(zip(names, row, strict=True)) for row in ROWS], folder))
    check(pairs_in(in_memory(ROWS)))
    table = read_table(in_memory(ROWS))
    assert table.identity.tolist() == ["1", "1", "1", "2", "2"]


def test_other_data_is_no_list_of_pairs(folder: Path) -> None:
    manifest = folder / "list.csv"
    manifest.write_text("path,identity,a,b,same\na.png,x,1,2,3\n")
    for data in (manifest, folder, "digits", [("a.png", "x")], PIXELS, np.zeros((3, 8, 8)), None):
        assert pairs_in(data) is None


def test_what_pairs_state(folder: Path) -> None:
    rows = [*ROWS, ("c.png", "c.png", 1), ("b.png", "e.png", 0)]
    pairs = pairs_in(rows, folder)
    assert pairs is not None
    assert pairs.describe() == (
        "4 genuine pairs join 5 pictures to 2 identities, which count as different; impostor pairs "
        "state this of 1 of their 1 pairs"
    )
    # A picture of impostor pairs alone is an identity of its own.
    alone = pairs_in([("a.png", "b.png", 1), ("a.png", "c.png", 0), ("d.png", "e.png", 0)], folder)
    assert alone is not None
    assert alone.table.identity.tolist() == ["1", "1", "2", "3", "4"]
    assert "state this of 2 of their 6 pairs" in alone.describe()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("e.png", "c.png", 0), r"1 pairs: e\.png and c\.png are not the same, but other pairs"),
        (("e.png", "c.png", "maybe"), "row 5 of the list: same is 1 or 0, found 'maybe'"),
        (("e.png", "c.png", None), "row 5 of the list: same is 1 or 0, found ''"),
        (("e.png", 3, 1), "picture 5: a picture is a path"),
        (("e.png", "c.png"), "each item of a list of pairs needs a, b and same"),
    ],
)
def test_wrong_pairs(row: tuple[Any, ...], message: str, folder: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_table([*ROWS, row], root=folder)
