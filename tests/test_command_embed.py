"""`embed`: the embeddings in the file are those that the model gives."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import PictureFolder, TinyRun

import twinlens
from twinlens.cli.main import main
from twinlens.data.folders import read_table
from twinlens.errors import DataError


def test_the_file_holds_what_the_model_gives(
    tiny_run: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "all.parquet"
    capsys.readouterr()
    assert main(["embed", str(tiny_run.run), str(tiny_run.data), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"60 embeddings in {out}\n"
    model, found = twinlens.load(tiny_run.run), pq.read_table(out)
    assert found.column_names == [
        "path", "identity", "forged", "embedding", "quality", "domain_score",
    ]  # fmt: skip
    assert found["forged"].to_pylist() == [False] * 60
    assert found.schema.metadata == {b"twinlens.fingerprint": model.fingerprint.encode()}
    paths = found["path"].to_pylist()
    assert paths == sorted(str(path) for path in tiny_run.data.rglob("*.png"))
    assert found["identity"].to_pylist() == [Path(path).parent.name for path in paths]
    emb_ND = np.array(found["embedding"].to_pylist(), dtype=np.float32)
    assert found.schema.field("embedding").type.list_size == emb_ND.shape[1] == 16
    np.testing.assert_array_equal(emb_ND, model.embed(paths))  # To the last bit.
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["all.parquet"]


def test_broken_pictures_are_left_out(
    tiny_run: TinyRun, picture_folder: PictureFolder, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    data = picture_folder({"x": 5, "y": 5})
    (data / "y" / "1.png").write_bytes(b"no picture")
    out = tmp_path / "some.parquet"
    assert twinlens.embed(tiny_run.run, data, out=out) == 9
    assert f"warning: skipped {data}/y/1.png" in capsys.readouterr().err
    assert str(data / "y" / "1.png") not in pq.read_table(out)["path"].to_pylist()


def test_forgeries_are_embedded_and_marked(
    tiny_run: TinyRun, picture_folder: PictureFolder, tmp_path: Path
) -> None:
    data = picture_folder({"x": 3, "x_forg": 2, "y": 2})
    (data / "x" / "0.png").write_bytes(b"no picture")
    out = tmp_path / "x.parquet"
    assert twinlens.embed(tiny_run.run, data, out=out, quiet=True) == 6
    rows = pq.read_table(out).to_pylist()
    assert {row["identity"] for row in rows} == {"x", "y"}
    assert [row["forged"] for row in rows] == ["x_forg" in row["path"] for row in rows]
    assert sum(row["forged"] for row in rows) == 2


def test_names_that_are_not_text(
    tiny_run: TinyRun, picture_folder: PictureFolder, tmp_path: Path
) -> None:
    """Written escaped, in the file and in a report."""
    data = picture_folder({"x": 4, "Ünï 日本": 4})
    try:
        (data / "x" / "0.png").rename(data / "x" / os.fsdecode(b"\xff.png"))
    except OSError:
        pytest.skip("this file system takes no such names")
    assert twinlens.embed(tiny_run.run, data, out=tmp_path / "x.parquet", quiet=True) == 8
    found = pq.read_table(tmp_path / "x.parquet")
    assert str(data / "x" / r"\udcff.png") in found["path"].to_pylist()
    assert set(found["identity"].to_pylist()) == {"x", "Ünï 日本"}
    twinlens.evaluate(tiny_run.run, data, report=tmp_path / "page.html", quiet=True)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert r"\udcff" in page.replace("<wbr>", "")
    assert "Ünï 日本" in page


def test_a_named_set(tiny_run: TinyRun, tmp_path: Path) -> None:
    out = tmp_path / "digits.parquet"
    num = twinlens.embed(tiny_run.run, "digits", out=out, quiet=True)
    table = read_table("digits")
    assert num == len(table)
    found = pq.read_table(out)
    assert found["path"].to_pylist() == table.path.tolist()
    assert table.pixels is not None
    expected = twinlens.load(tiny_run.run).embed(list(table.pixels))
    np.testing.assert_array_equal(np.array(found["embedding"].to_pylist(), np.float32), expected)


def test_an_old_file_is_replaced_and_never_half(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "all.parquet"
    out.write_text("old")

    def full(writer: object, table: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("twinlens.commands.embedding_files.pq.ParquetWriter.write_table", full)
        with pytest.raises(DataError, match=r"cannot write .*: No space left on device"):
            twinlens.embed(tiny_run.run, tiny_run.data, out=out, quiet=True)
    assert out.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["all.parquet"]
    link = tmp_path / "link.parquet"
    link.symlink_to(out)
    twinlens.embed(tiny_run.run, tiny_run.data, out=link, quiet=True)
    assert link.is_symlink()
    assert pq.read_table(out).num_rows == 60


def test_csv_and_numpy_files_hold_the_same_as_parquet(tiny_run: TinyRun, tmp_path: Path) -> None:
    model = twinlens.load(tiny_run.run)
    for ending in ("parquet", "csv", "npy"):
        assert twinlens.embed(model, tiny_run.data, out=tmp_path / f"e.{ending}", quiet=True) == 60
    table = pq.read_table(tmp_path / "e.parquet")
    emb_ND = np.array(table["embedding"].to_pylist(), np.float32)
    others = table.drop_columns("embedding").to_pandas()
    cells = pd.read_csv(tmp_path / "e.csv", keep_default_na=False)
    assert list(cells) == [*others, *(f"e{place}" for place in range(16))]
    numbers = cells.loc[:, "e0":].to_numpy(np.float32)
    np.testing.assert_array_equal(numbers, emb_ND)  # To the last bit.
    assert cells["path"].tolist() == others["path"].tolist()
    assert cells["identity"].tolist() == others["identity"].tolist()
    array = np.load(tmp_path / "e.npy", allow_pickle=False)
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, emb_ND)
    rows = pd.read_csv(tmp_path / "e.rows.csv", keep_default_na=False)
    assert rows.to_csv() == cells[list(others)].to_csv()
    if os.name == "posix":  # They hold names and embeddings.
        assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("e.*")} == {0o600}


def test_other_endings_are_refused_before_any_work(tiny_run: TinyRun, tmp_path: Path) -> None:
    for name in ("e.txt", "e", "e.parquet.gz"):
        with pytest.raises(DataError, match=r"one of \.parquet, \.lance, \.csv, \.npy"):
            twinlens.embed(tiny_run.run, "no such folder", out=tmp_path / name)
    with pytest.raises(DataError, match=r"to s3://shop/e\.parquet: name a file on a disk"):
        twinlens.embed(tiny_run.run, "no such folder", out="s3://shop/e.parquet")
    (tmp_path / "e.rows.csv").mkdir()
    with pytest.raises(DataError, match=r"cannot write .*e\.rows\.csv: it is a folder"):
        twinlens.embed(tiny_run.run, "no such folder", out=tmp_path / "e.npy")


def test_folders_without_class_folders(
    tiny_run: TinyRun, picture_folder: PictureFolder, tmp_path: Path
) -> None:
    data = picture_folder({"x": 3, "deep/y": 2})
    (data / "x" / "0.png").rename(data / "loose.png")
    out = tmp_path / "e.parquet"
    assert twinlens.embed(tiny_run.run, data, out=out, quiet=True) == 5
    assert pq.read_table(out)["identity"].to_pylist() == [""] * 5
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no pictures"):
        twinlens.embed(tiny_run.run, empty, out=out, quiet=True)
