"""`cluster`: the folder, the list, the page and what is refused; how it groups: test_clusters."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import PictureFolder, TinyRun, draw_pictures
from PIL import Image

import twinlens
from twinlens.cli.main import main
from twinlens.clusters import layout as cluster_places
from twinlens.clusters import page as cluster_page
from twinlens.clusters.constraints import Constraints
from twinlens.clusters.method import Cut
from twinlens.clusters.write import EmbeddedPictures, write_clusters
from twinlens.data.adapters import table_of
from twinlens.data.folders import read_table
from twinlens.errors import CalibrationError, ConfigError, DataError, GalleryError
from twinlens.model.comparators import TorchComparison, make_comparator

Capture = pytest.CaptureFixture[str]
EUCLID = TorchComparison(make_comparator("euclidean", 2))


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Pictures of three things right in a folder, and one below it with a name that is taken."""
    draw_pictures(tmp_path / "made", {"a": 5, "b": 4, "c": 3})
    top = tmp_path / "flat"
    (top / "deep" / "er").mkdir(parents=True)
    for file in sorted((tmp_path / "made").rglob("*.png")):
        shutil.copy(file, top / f"{file.parent.name}{file.name}")
    shutil.copy(top / "a0.png", top / "deep" / "er" / "A0.png")
    shutil.rmtree(tmp_path / "made")
    return top


@pytest.fixture
def cut(tiny_run: TinyRun, flat: Path) -> float:
    """A mean distance that divides the three things."""
    model = twinlens.load(tiny_run.run)
    files = sorted(flat.glob("*.png"))
    dist = model.comparison.matrix(*[model.embed(files)] * 2)
    same = np.array([[a.name[0] == b.name[0] for a in files] for b in files])
    assert dist[same].max() < dist[~same].min()
    return float((dist[same].max() + dist[~same].min()) / 2)


def rows_of(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "clusters.csv").open(encoding="utf-8", newline="") as text:
        return {row["path"]: row for row in csv.DictReader(text)}


def below(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())


def moons(num: int = 6, **more: Any) -> EmbeddedPictures:
    """Pictures in memory, in two groups by their embeddings."""
    rng = np.random.default_rng(0)
    emb = np.array([[row % 2 * 5.0, row * 0.01] for row in range(num)], dtype=np.float32)
    names = [f"made/{row}" for row in range(num)]
    pixels = rng.integers(0, 256, (num, 8, 8), dtype=np.uint8)
    table = table_of(dict(zip(names, pixels[:, None], strict=True)))
    values: dict[str, Any] = {
        "source": "made", "names": names, "files": None, "embeddings": emb, "table": table,
    }  # fmt: skip
    return EmbeddedPictures(**values | more)


# --- what comes out -----------------------------------------------------------------------------


def test_a_flat_folder(tiny_run: TinyRun, flat: Path, cut: float, tmp_path: Path) -> None:
    result = twinlens.cluster(tiny_run.run, flat, out=tmp_path / "out", threshold=cut, quiet=True)
    assert (result.pictures, result.clusters, result.single, result.largest) == (13, 3, 0, 6)
    assert (result.scores, result.files, result.broken, result.missing) == (None, "links", 0, 0)
    assert below(tmp_path / "out") == [
        "cluster-001/A0-2.png", "cluster-001/a0.png", "cluster-001/a1.png", "cluster-001/a2.png",
        "cluster-001/a3.png", "cluster-001/a4.png", "cluster-002/b0.png", "cluster-002/b1.png",
        "cluster-002/b2.png", "cluster-002/b3.png", "cluster-003/c0.png", "cluster-003/c1.png",
        "cluster-003/c2.png", "clusters.csv", "clusters.html", "embeddings.parquet", "names.csv",
    ]  # fmt: skip
    link = tmp_path / "out" / "cluster-001" / "A0-2.png"
    assert link.is_symlink()
    assert link.resolve() == (flat / "deep" / "er" / "A0.png").resolve()
    rows = rows_of(tmp_path / "out")
    assert list(rows) == sorted(rows)
    assert rows["deep/er/A0.png"]["file"] == "cluster-001/A0-2.png"
    assert {name: row["cluster"] for name, row in rows.items() if name[0] == "b"} == dict.fromkeys(
        ["b0.png", "b1.png", "b2.png", "b3.png"], "cluster-002"
    )
    model = twinlens.load(tiny_run.run)
    others = [model.distance(flat / "c0.png", flat / f"c{n}.png") for n in (1, 2)]
    assert float(rows["c0.png"]["distance"]) == pytest.approx(np.mean(others), rel=1e-3)
    # The links still lead somewhere after the folder has moved.
    (tmp_path / "out").rename(tmp_path / "moved")
    assert (tmp_path / "moved" / "cluster-003" / "c0.png").read_bytes() == (
        flat / "c0.png"
    ).read_bytes()


def test_named_clusters_are_class_folders_and_others_are_not(
    tiny_run: TinyRun, flat: Path, cut: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By the name of the folder, or in names.csv; the rest is left out with a word."""
    out = tmp_path / "groups"
    twinlens.cluster(tiny_run.run, flat, out=out, threshold=cut, quiet=True)
    with pytest.raises(DataError, match=r"no cluster of .* has a name yet: rename its folders"):
        read_table(out)
    assert (out / "names.csv").read_text() == (
        "cluster,pictures,name\ncluster-001,6,\ncluster-002,4,\ncluster-003,3,\n"
    )
    (out / "cluster-002").rename(out / "ben")
    (out / "single").mkdir()
    shutil.copy(flat / "a0.png", out / "single" / "x.png")
    with caplog.at_level("INFO", "twinlens"):
        assert read_table(out).identities() == ["ben"]
    assert "clusters without a name are left out (2: cluster-001, cluster-003)" in caplog.text
    assert "pictures in no cluster are left out (1 in " in caplog.text
    (out / "names.csv").write_text("cluster;name\ncluster-003;ben\ncluster-001; Ann \n")
    table = read_table(out)
    assert [(n, int((table.identity == n).sum())) for n in table.identities()] == [
        ("Ann", 6), ("ben", 7),
    ]  # fmt: skip
    twinlens.Gallery.create(tmp_path / "people", tiny_run.run)
    assert twinlens.Gallery.open(tmp_path / "people").enrol(out).num_identities == 2


def test_faces_of_one_photograph_are_kept_apart(
    tiny_run: TinyRun, flat: Path, tmp_path: Path
) -> None:
    (flat / "faces.csv").write_text("path,output\nparty.jpg,a0.png\nparty.jpg,a1.png\n")
    twinlens.cluster(tiny_run.run, flat, out=tmp_path / "apart", threshold=9, quiet=True)
    rows = rows_of(tmp_path / "apart")
    assert rows["a0.png"]["cluster"] != rows["a1.png"]["cluster"]
    (tmp_path / "mirror.csv").write_text("a,b,link\na0.png,a1.png,must\n")
    result = twinlens.cluster(
        tiny_run.run, flat, out=tmp_path / "mirror", threshold=9, quiet=True,
        constraints=tmp_path / "mirror.csv",
    )  # fmt: skip
    assert (result.clusters, result.constraints) == (1, 1)


def test_small_clusters_have_no_folder(
    tiny_run: TinyRun, flat: Path, cut: float, tmp_path: Path
) -> None:
    result = twinlens.cluster(
        tiny_run.run, flat, out=tmp_path / "out", threshold=cut, min_size=4, copy=True, quiet=True
    )
    assert (result.clusters, result.single, result.files) == (2, 3, "copies")
    assert {row["cluster"] for row in rows_of(tmp_path / "out").values()} == {
        "cluster-001", "cluster-002", "single",
    }  # fmt: skip
    copy = tmp_path / "out" / "single" / "c0.png"
    assert not copy.is_symlink()
    assert copy.read_bytes() == (flat / "c0.png").read_bytes()
    assert "In no cluster" in (tmp_path / "out" / "clusters.html").read_text(encoding="utf-8")


def test_folders_are_labels_only_with_labelled(
    tiny_run: TinyRun, picture_folder: PictureFolder, tmp_path: Path
) -> None:
    data = picture_folder({"train/a": 3, "b": 3, "left": 2, "right": 2})  # No layout for training.
    plain = twinlens.cluster(tiny_run.run, data, out=tmp_path / "plain", threshold=1, quiet=True)
    assert (plain.pictures, plain.scores) == (10, None)
    shutil.rmtree(data / "train")
    scored = twinlens.cluster(
        tiny_run.run, data, out=tmp_path / "scored", threshold=1e-6, labelled=True, quiet=True
    )
    assert scored.scores is not None
    assert scored.disjoint is True
    assert (scored.scores.num_identities, scored.scores.num_pictures) == (3, 7)
    assert scored.scores.precision.value == 1
    assert "clusters for 3 identities" in scored.as_text()
    page = (tmp_path / "scored" / "clusters.html").read_text(encoding="utf-8")
    assert 'id="scores"' in page


def test_a_manifest_is_labelled_and_forgeries_are_not_scored(
    tiny_run: TinyRun, flat: Path, cut: float, tmp_path: Path
) -> None:
    lines = [f"flat/{file.name},{file.name[0]},genuine" for file in sorted(flat.glob("*.png"))]
    lines[0] = lines[0].replace("genuine", "forged")
    (tmp_path / "list.csv").write_text("\n".join(["path,identity,role", *lines]))
    words = {"threshold": cut, "quiet": True}
    result = twinlens.cluster(tiny_run.run, tmp_path / "list.csv", out=tmp_path / "a", **words)
    assert result.pictures == 12
    assert result.scores is not None
    assert result.scores.num_pictures == 11
    assert result.scores.f.value == result.scores.nmi.value == result.scores.purity.value == 1
    unscored = twinlens.cluster(
        tiny_run.run, tmp_path / "list.csv", out=tmp_path / "b", labelled=False, **words
    )
    assert unscored.scores is None
    page = (tmp_path / "b" / "clusters.html").read_text(encoding="utf-8")
    assert 'id="scores"' not in page


def test_scores_of_trained_identities_are_called_optimistic(
    tiny_run: TinyRun, tmp_path: Path
) -> None:
    result = twinlens.cluster(
        tiny_run.run, tiny_run.data, out=tmp_path / "out", labelled=True, quiet=True
    )
    assert result.disjoint is False
    assert "optimistic: some of these identities were trained on" in result.as_text()
    assert "the scores are optimistic" in (tmp_path / "out" / "clusters.html").read_text()
    model = twinlens.load(tiny_run.run).require_calibration()
    assert (result.cut.distance, result.cut.target_far) == (model.threshold, model.target_far)


def test_pictures_in_memory_are_written(tmp_path: Path) -> None:
    pictures = moons()
    result = write_clusters(pictures, EUCLID, Cut(1.0, None, False), tmp_path / "out")
    assert (result.clusters, result.files) == (2, "pictures")
    with Image.open(tmp_path / "out" / "cluster-002" / "3.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), pictures.table.picture(3))  # type: ignore[union-attr]


def test_constraints_from_the_file_to_the_folder(
    tiny_run: TinyRun, flat: Path, cut: float, tmp_path: Path
) -> None:
    file = tmp_path / "pairs.csv"
    file.write_text("a,b,link\na0.png,a1.png,cannot\nc0.png,b0.png,must\nb0.png,b1.png,cannot\n")
    result = twinlens.cluster(
        tiny_run.run, flat, out=tmp_path / "out", threshold=cut, constraints=file, quiet=True
    )
    rows = {name: row["cluster"] for name, row in rows_of(tmp_path / "out").items()}
    assert result.constraints == 3
    assert rows["a0.png"] != rows["a1.png"]
    assert rows["b0.png"] == rows["c0.png"] != rows["b1.png"]


def test_a_broken_picture_is_named_left_out_and_cannot_be_linked_to(
    tiny_run: TinyRun, flat: Path, cut: float, tmp_path: Path, capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (flat / "a3.png").write_bytes(b"no picture")
    result = twinlens.cluster(tiny_run.run, flat, out=tmp_path / "out", threshold=cut)
    assert (result.pictures, result.broken) == (12, 1)
    assert f"warning: skipped {flat}/a3.png" in capsys.readouterr().err
    assert "a3.png" not in rows_of(tmp_path / "out")
    assert "1 picture could not be read" in (tmp_path / "out" / "clusters.html").read_text()
    file = tmp_path / "pairs.csv"
    file.write_text("a,b,link\na3.png,a1.png,must\n")
    # Before the work: nothing is embedded.
    monkeypatch.setattr("twinlens.match.matcher.Matcher.embed_pixels", None)
    with pytest.raises(DataError, match=r"'a3\.png' is not among the pictures that were read"):
        twinlens.cluster(
            tiny_run.run, flat, out=tmp_path / "b", threshold=cut, constraints=file, quiet=True
        )
    assert not (tmp_path / "b").exists()


# --- places -------------------------------------------------------------------------------------


def test_equal_names_get_numbers(tmp_path: Path) -> None:
    names = ["x/a.png", "y/a.png", "z/A.PNG", "a-2.png", "q/.hidden.png", "long/" + "ü" * 120, "/",
             "r/" + "ü" * 120, "quote'\"<b>.png", "new\nline.png"]  # fmt: skip
    files = []
    for row in range(len(names)):
        files.append(str(tmp_path / f"{row}.png"))
        Image.new("L", (4, 4), row).save(files[-1])
    pictures = moons(
        len(names), names=names, files=files, table=None, embeddings=np.zeros((len(names), 2))
    )
    write_clusters(pictures, EUCLID, Cut(1.0, None, False), tmp_path / "out", copy=True)
    home = tmp_path / "out" / "cluster-001"
    assert {"a.png", "a-2.png", "A-3.PNG", "a-2-2.png", "_hidden.png", "new\nline.png"} <= {
        file.name for file in home.iterdir()
    }
    for row, line in enumerate(rows_of(tmp_path / "out").values()):
        assert (tmp_path / "out" / line["file"]).read_bytes() == Path(files[row]).read_bytes()
    page = (tmp_path / "out" / "clusters.html").read_text(encoding="utf-8")
    assert "<b>" not in page


def test_without_links_pictures_are_copied(
    tiny_run: TinyRun, flat: Path, cut: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:  # fmt: skip
    def refuse(*_: object, **__: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    result = twinlens.cluster(tiny_run.run, flat, out=tmp_path / "out", threshold=cut)
    assert result.files == "copies"
    assert "links cannot be made" in capsys.readouterr().err
    assert not any(file.is_symlink() for file in (tmp_path / "out").rglob("*"))


@pytest.mark.parametrize("copy", [False, True])
def test_missing_pictures_are_named(tmp_path: Path, copy: bool, capsys: Capture) -> None:
    """As those of a gallery may be."""
    files = [str(tmp_path / f"{row}.png") for row in range(6)]
    for file in files[1:]:
        Image.new("L", (4, 4)).save(file)
    pictures = moons(files=files, table=None)
    result = write_clusters(pictures, EUCLID, Cut(1.0, None, False), tmp_path / "out", copy=copy)
    assert result.missing == 1
    rows = rows_of(tmp_path / "out")
    assert (rows["made/0"]["cluster"], rows["made/0"]["file"]) == ("cluster-001", "")
    page = (tmp_path / "out" / "clusters.html").read_text()
    assert "1 file of pictures are gone" not in page
    assert "The files of 1 picture are missing" in page
    assert "unreadable" in page


# --- the page -----------------------------------------------------------------------------------


def test_the_page_shows_the_doubtful_first(tmp_path: Path) -> None:
    emb = np.array([[0, 0], [0.1, 0], [0.9, 0], [9, 0], [9, 0.1]], dtype=np.float32)
    identities = ["one", "one", "<b>two</b>", "three", "three"]
    pictures = moons(5, embeddings=emb, identities=identities, source="<b>here</b>")
    out = tmp_path / "out <b>"
    write_clusters(pictures, EUCLID, Cut(1.0, 0.01, False), out, command="twinlens <b>")
    page = (out / "clusters.html").read_text(encoding="utf-8")
    assert "<b>" not in page
    assert "http" not in page.replace("http-equiv", "")
    shown = re.findall(r'alt="made/(\d)"', page.split('id="near"')[0])
    assert shown == ["2", "0", "1", "3", "4"]
    assert "0.850" in page  # Of picture 2: (0.9 + 0.8) / 2.
    assert "one (2), &lt;b&gt;two&lt;/b&gt; (1)" in page
    near = page.split('id="near"')[1]
    assert "cluster-001 and cluster-002" in near
    assert "<code>made/1,made/4,must</code>" in near
    assert "threshold at a false accept rate of" in page


def test_the_page_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_page, "MOST_CLUSTERS", 3)
    monkeypatch.setattr(cluster_page, "MOST_SINGLE", 2)
    emb = np.array([[10 * (row // 20), row % 20 * 0.01] for row in range(107)], dtype=np.float32)
    emb[100:, 1] = 100 * np.arange(7)
    result = write_clusters(
        moons(107, embeddings=emb), EUCLID, Cut(1.0, None, False), tmp_path / "out"
    )
    assert (result.clusters, result.single) == (5, 7)
    page = (tmp_path / "out" / "clusters.html").read_text()
    main_part, near = page.split('id="near"')
    assert main_part.count("<img ") == 3 * 12
    assert "The 3 largest are shown; 2 more are in the folders." in main_part
    assert main_part.count("The nine most doubtful pictures and the three surest.") == 3
    assert "7 in all; the first 2 are shown." in near


def test_cannot_link_pairs_are_no_candidates(tmp_path: Path) -> None:
    given = Constraints(cannot=((0, 1),))
    write_clusters(moons(), EUCLID, Cut(1.0, None, False), tmp_path / "out", constraints=given)
    page = (tmp_path / "out" / "clusters.html").read_text()
    assert 'id="clusters"' in page
    assert 'id="near"' not in page


def test_a_cluster_of_nearly_all_is_a_caution(tmp_path: Path) -> None:
    pictures = moons(30, embeddings=np.zeros((30, 2), dtype=np.float32))
    write_clusters(pictures, EUCLID, Cut(1.0, None, False), tmp_path / "out")
    page = (tmp_path / "out" / "clusters.html").read_text()
    assert "More than half of all pictures are in one cluster" in page


# --- the command line ---------------------------------------------------------------------------


def test_the_command(
    tiny_run: TinyRun, flat: Path, cut: float, tmp_path: Path, capsys: Capture
) -> None:
    words = ["cluster", str(tiny_run.run), str(flat), "--threshold", str(cut)]
    assert main([*words, "--out", str(tmp_path / "a"), "--json", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    answer = json.loads(out)
    result = twinlens.cluster(tiny_run.run, flat, out=tmp_path / "b", threshold=cut, quiet=True)
    assert answer == result.as_json() | {
        "out": str(tmp_path / "a"), "report": str(tmp_path / "a" / "clusters.html"),
        "list": str(tmp_path / "a" / "clusters.csv"),
    }  # fmt: skip
    assert rows_of(tmp_path / "a") == rows_of(tmp_path / "b")
    more = ["--out", str(tmp_path / "c"), "--min-size", "5", "--copy", "--no-labelled"]
    assert main([*words, *more]) == 0
    assert capsys.readouterr().out.startswith(f"1 cluster of 13 pictures in {tmp_path / 'c'}\n")
    page = (tmp_path / "c" / "clusters.html").read_text()
    command = re.search(r"<code>(twinlens cluster .*?)</code>", page)
    assert command is not None
    assert f"--threshold {cut} --min-size 5" in command[1]
    assert command[1].endswith("--copy --no-labelled")


def test_errors_before_any_work(
    tiny_run: TinyRun, flat: Path, tmp_path: Path, capsys: Capture
) -> None:
    def run(**settings: Any) -> None:
        twinlens.cluster(tiny_run.run, flat, **{"out": tmp_path / "out"} | settings)

    for settings, message in (
        ({"min_size": 0}, "min_size must be at least 1, found 0"),
        ({"neighbours": 0}, "neighbours must be at least 1"),
        ({"threshold": -1.0}, "threshold must be a distance of 0 or more"),
        ({"threshold": float("nan")}, "threshold must be a distance of 0 or more"),
        ({"threshold": 1.0, "far": 0.1}, "both set the cut"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(**settings)
    with pytest.raises(CalibrationError, match=r"for a FAR of 0.05, not 0.001: run `twinlens cal"):
        run(far=0.001)
    with pytest.raises(DataError, match="is a file: name a new folder for the clusters"):
        run(out=flat / "a0.png")
    with pytest.raises(DataError, match=r"lies in .*flat"):
        run(out=flat / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(DataError, match="full is not empty"):
        run(out=tmp_path / "full")
    with pytest.raises(DataError, match="a root belongs to a named set"):
        run(root=tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no pictures: needed are files, at any depth"):
        twinlens.cluster(tiny_run.run, tmp_path / "empty", out=tmp_path / "out")
    with pytest.raises(DataError, match="pictures without a class folder"):
        run(labelled=True)
    assert main(["cluster", str(tiny_run.run), str(flat)]) == 2
    assert "--out" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} <= {"flat", "full", "empty", "own-cache"}


def test_the_calibrated_far_may_be_given(tiny_run: TinyRun, flat: Path, tmp_path: Path) -> None:
    result = twinlens.cluster(tiny_run.run, flat, out=tmp_path / "out", far=0.05, quiet=True)
    assert result.cut.target_far == pytest.approx(0.05)


def test_an_uncalibrated_model_needs_a_threshold(
    tiny_run: TinyRun, flat: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(tiny_run.model, tmp_path / "model")
    description = json.loads((model / "model.json").read_text()) | {"calibration": None}
    (model / "model.json").write_text(json.dumps(description))
    with pytest.raises(CalibrationError, match="is not calibrated"):
        twinlens.cluster(model, flat, out=tmp_path / "out", quiet=True)
    assert twinlens.cluster(model, flat, out=tmp_path / "out", threshold=1, quiet=True).pictures


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_run_leaves_nothing(
    tiny_run: TinyRun, flat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any
) -> None:
    calls: Iterator[int] = iter(range(99))
    real = cluster_places._free_name

    def stop(*args: Any) -> str:
        if next(calls) == 4:
            raise error
        return real(*args)

    monkeypatch.setattr(cluster_places, "_free_name", stop)
    code = main(["cluster", str(tiny_run.run), str(flat), "--out", str(tmp_path / "out")])
    assert code == (130 if isinstance(error, KeyboardInterrupt) else 2)
    assert {path.name for path in tmp_path.iterdir()} <= {"flat", "own-cache"}


def test_a_table_from_python(tiny_run: TinyRun, flat: Path, tmp_path: Path) -> None:
    draw_pictures(tmp_path / "made", {"a": 2, "b": 2})
    table = read_table(tmp_path / "made")
    result = twinlens.cluster(tiny_run.run, table, out=tmp_path / "out", quiet=True)
    assert result.scores is not None
    nobody = type(table).of_rows(
        [(str(path), "", False, "") for path in table.path], "made", table.root
    )
    plain = twinlens.cluster(tiny_run.run, nobody, out=tmp_path / "plain", quiet=True)
    assert plain.scores is None
    page = (tmp_path / "plain" / "clusters.html").read_text()
    assert "<code>twinlens" not in page  # There is nothing to type.


def test_a_gallery_is_clustered_like_its_pictures(tiny_run: TinyRun, tmp_path: Path) -> None:
    """Without embedding them again; its identities are what the clusters are scored by."""
    gallery = twinlens.Gallery.create(tmp_path / "gallery", tiny_run.run)
    gallery.enrol(tiny_run.data)
    of_folder = twinlens.cluster(
        tiny_run.run, tiny_run.data, out=tmp_path / "a", labelled=True, quiet=True
    )
    result = twinlens.cluster(tmp_path / "gallery", out=tmp_path / "b", quiet=True)
    assert (result.pictures, result.clusters) == (of_folder.pictures, of_folder.clusters)
    assert result.scores is not None
    assert of_folder.scores is not None
    assert result.scores.f.value == of_folder.scores.f.value
    assert (tmp_path / "b" / "clusters.html").is_file()


def test_constraints_of_a_gallery_name_pictures_by_their_paths(
    tiny_run: TinyRun, tmp_path: Path
) -> None:
    gallery = twinlens.Gallery.create(tmp_path / "gallery", tiny_run.run)
    files = sorted((tiny_run.data / "thing 1").iterdir())
    gallery.enrol_files("thing 1", files)
    (tmp_path / "apart.csv").write_text(f"a,b,link\n{files[0]},{files[1]},cannot\n")
    result = twinlens.cluster(
        tmp_path / "gallery", out=tmp_path / "out", threshold=9, min_size=1, quiet=True,
        constraints=tmp_path / "apart.csv",
    )  # fmt: skip
    assert result.clusters == 2
    with pytest.raises(ConfigError, match="--root belongs to DATA"):
        twinlens.cluster(tmp_path / "gallery", out=tmp_path / "x", root=".", quiet=True)
    with pytest.raises(GalleryError, match=r"is a model.*or name the pictures: twinlens clu"):
        twinlens.cluster(tiny_run.run, out=tmp_path / "x", quiet=True)
    empty = twinlens.Gallery.create(tmp_path / "empty", tiny_run.run)
    with pytest.raises(GalleryError, match="is empty"):
        twinlens.cluster(empty.place, out=tmp_path / "y", quiet=True)


# --- the method ---------------------------------------------------------------------------------


def test_hdbscan_and_the_choice_by_labels(
    tiny_run: TinyRun, flat: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(name: str, **settings: Any) -> Any:
        return twinlens.cluster(tiny_run.run, flat, out=tmp_path / name, quiet=True, **settings)

    result = run("a", method="hdbscan", min_size=3)
    assert (result.cut.least, result.cut.distance, result.clusters) == (3, None, 3)
    assert result.as_json()["method"] == "hdbscan"
    assert "HDBSCAN, clusters of 3 pictures or more" in result.as_text()
    page = (tmp_path / "a" / "clusters.html").read_text()
    assert "HDBSCAN chose them by density, from 3 pictures on" in page
    monkeypatch.setattr("twinlens.commands.cluster.MANY", 12)
    assert run("b").cut.least == 5
    assert run("c", threshold=0.1).cut.method == "linkage"
    words = ["cluster", str(tiny_run.run), str(flat), "--validation", str(tiny_run.data), "--json"]
    assert main([*words, "--out", str(tmp_path / "d")]) == 0
    out, err = capsys.readouterr()
    answer = json.loads(out)
    best = max(answer["validation"], key=lambda trial: trial["f"])
    assert (answer["method"], answer["threshold"]) == (best["method"], best["threshold"])
    assert len(answer["validation"]) == err.count("B-cubed F") == 12
    for settings, message in (
        ({"method": "kmeans"}, "unknown method 'kmeans'"),
        ({"method": "hdbscan", "threshold": 1.0}, "threshold and far set where linkage stops"),
        ({"method": "hdbscan", "far": 0.05}, "threshold and far set where linkage stops"),
        ({"validation": tiny_run.data, "threshold": 1.0}, "threshold with validation"),
    ):
        with pytest.raises(ConfigError, match=message):
            run("x", **settings)


# --- onto an earlier clustering -----------------------------------------------------------------


@pytest.mark.parametrize("copy", [False, True])
def test_new_pictures_join_and_corrections_stay(
    tiny_run: TinyRun, flat: Path, cut: float, tmp_path: Path, capsys: Capture, copy: bool
) -> None:
    """A cluster renamed, one named in names.csv, a picture moved, one taken out."""
    later = tmp_path / "later"
    later.mkdir()
    for name in ("a4.png", "b3.png", "c2.png"):
        (flat / name).rename(later / name)
    old = tmp_path / "old"
    twinlens.cluster(tiny_run.run, flat, out=old, threshold=cut, copy=copy, quiet=True)
    homes = {row["path"]: row["cluster"] for row in rows_of(old).values()}
    assert homes["c0.png"] == "cluster-003"
    (old / "cluster-002").rename(old / "ben")
    (old / "names.csv").write_text("cluster,name\ncluster-001,Ann\n")
    (old / "ben" / "b0.png").rename(old / "cluster-001" / "b0.png")
    (old / "cluster-001" / "a1.png").unlink()
    draw_pictures(tmp_path / "more", {"a": 1, "b": 1, "c": 1, "d": 3})
    for name in ("a4.png", "b3.png", "c2.png"):
        (later / name).rename(flat / name)
    for row in range(3):
        shutil.copy(tmp_path / "more" / "d" / f"{row}.png", flat / f"d{row}.png")
    words = ["cluster", str(tiny_run.run), str(flat), "--onto", str(old), "--json"]
    assert main([*words, "--out", str(tmp_path / "new"), *(["--copy"] * copy)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["new"], answer["pictures"]) == (7, 16)  # a1.png counts as new.
    assert answer["threshold"] == pytest.approx(cut)  # That of the earlier clustering.
    rows = {name: row["cluster"] for name, row in rows_of(tmp_path / "new").items()}
    assert rows["b0.png"] == rows["a0.png"] == rows["a4.png"] == rows["a1.png"] == "cluster-001"
    assert rows["b1.png"] == rows["b2.png"] == rows["b3.png"] == "ben"
    assert rows["c0.png"] == rows["c2.png"] == "cluster-003"
    known = {"cluster-001", "ben", "cluster-003"}
    assert answer["joined"] == sum(rows[name] in known for name in ("a1.png", "a4.png", "b3.png",
                                   "c2.png", "d0.png", "d1.png", "d2.png"))  # fmt: skip
    fresh = set(rows.values()) - known - {"single"}
    assert fresh <= {"cluster-004", "cluster-005"}
    names = (tmp_path / "new" / "names.csv").read_text()
    assert re.search(r"^cluster-001,\d+,Ann$", names, re.MULTILINE)
    assert re.search(r"^ben,\d+,$", names, re.MULTILINE)
    # And once more, upon the new one.
    with pytest.raises(DataError, match=r"all 17 pictures of .*flat are in .*new|all 16 pictures"):
        twinlens.cluster(tiny_run.run, flat, out=tmp_path / "x", onto=tmp_path / "new", quiet=True)


def test_clusters_that_cannot_be_joined(
    tiny_run: TinyRun, flat: Path, cut: float, tmp_path: Path
) -> None:
    def join(model: Any = tiny_run.run, data: Any = tiny_run.data, **settings: Any) -> Any:
        onto = settings.pop("onto", tmp_path / "old")
        return twinlens.cluster(model, data, onto=onto, out=tmp_path / "x", quiet=True, **settings)

    twinlens.cluster(tiny_run.run, flat, out=tmp_path / "old", threshold=cut, quiet=True)
    with pytest.raises(DataError, match="holds no clusters to join: name a folder that"):
        join(onto=flat)
    with pytest.raises(ConfigError, match="leave out --method hdbscan and --validation"):
        join(method="hdbscan")
    with pytest.raises(ConfigError, match="join clusters by their files"):
        join(data={"a": np.zeros((2, 8, 8), dtype=np.uint8)})
    file = tmp_path / "pairs.csv"
    file.write_text("a,b,link\na0.png,a2.png,cannot\n")
    with pytest.raises(DataError, match="or an existing cluster joins them"):
        join(constraints=file)
    file.write_text("a,b,link\na0.png,b0.png,must\n")
    result = join(constraints=file, threshold=1e-6)
    assert rows_of(result.out)["b3.png"]["cluster"] == "cluster-001"  # Merged, by the larger name.
    shutil.rmtree(result.out)
    table = pq.read_table(tmp_path / "old" / "embeddings.parquet")
    metadata = {**table.schema.metadata, b"twinlens.fingerprint": b"other"}
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "old" / "embeddings.parquet")
    with pytest.raises(DataError, match=r"those of another model \(other, not "):
        join()
    damaged = table.replace_schema_metadata(table.schema.metadata | {b"twinlens.threshold": b"x"})
    pq.write_table(damaged, tmp_path / "old" / "embeddings.parquet")
    with pytest.raises(DataError, match=r"embeddings.parquet cannot be read .*all pictures again"):
        join()
    (tmp_path / "old" / "embeddings.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(DataError, match=r"embeddings.parquet cannot be read .*all pictures again"):
        join()


def test_templates_of_a_gallery_join(tiny_run: TinyRun, tmp_path: Path) -> None:
    gallery = twinlens.Gallery.create(tmp_path / "gallery", tiny_run.run)
    files = sorted((tiny_run.data / "thing 1").iterdir())
    gallery.enrol_files("thing 1", files[:3])
    first = twinlens.cluster(gallery.place, out=tmp_path / "a", threshold=9, quiet=True)
    assert (first.clusters, first.new) == (1, None)
    with pytest.raises(DataError, match=r"all pictures of .* are in"):
        twinlens.cluster(gallery.place, out=tmp_path / "b", onto=tmp_path / "a", quiet=True)
    gallery.enrol_files("thing 1", files[3:5])
    (tmp_path / "a" / "cluster-001").rename(tmp_path / "a" / "one")
    joined = twinlens.cluster(gallery.place, out=tmp_path / "b", onto=tmp_path / "a", quiet=True)
    assert (joined.pictures, joined.new, joined.joined) == (5, 2, 2)
    assert {row["cluster"] for row in rows_of(tmp_path / "b").values()} == {"one"}
