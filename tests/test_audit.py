"""`twinlens audit`: wrong labels, identities under two names, corrections, the page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import PictureFolder, TinyRun, draw_pictures
from PIL import Image

import twinlens
from twinlens.cli.main import main
from twinlens.commands.audit import AuditResult, CorrectionResult
from twinlens.data.corrections import Finding, apply_corrections, read_findings, write_findings
from twinlens.data.folders import read_table
from twinlens.data.table import ImageTable
from twinlens.errors import DataError
from twinlens.measure.identity_errors import find_merges, find_splits
from twinlens.measure.label_errors import collect_evidence, label_errors


class Points:
    """Euclidean distances of points (N, D), by two members: all coordinates, and the first half."""

    def __init__(self, points: np.ndarray) -> None:
        self.parts = [points, points[:, : points.shape[1] // 2]]
        self.num = len(points)

    def blocks(self, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, self.num, size):
            rows = np.arange(start, min(start + size, self.num))
            dist = [np.linalg.norm(x[rows][:, None] - x, axis=2) for x in self.parts]
            yield rows, np.stack(dist).astype(np.float32)


def clouds(num: int = 16, each: int = 10, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points around the centre of each identity, and the identities."""
    rng = np.random.default_rng(seed)
    label = np.repeat(np.arange(num), each)
    return 2 * rng.standard_normal((num, 16))[label] + rng.standard_normal((len(label), 16)), label


# --- the evidence -------------------------------------------------------------------------------


def test_evidence_is_that_of_the_other_pictures() -> None:
    points, label = clouds(4, 3)
    group = np.arange(len(label))
    group[1] = group[0]  # Copies.
    evidence = collect_evidence(Points(points), label, group)
    dist = np.linalg.norm(points[:, None] - points, axis=2)
    for row in range(len(label)):
        assert evidence.candidate[row, 0] == label[row]
        for place, identity in enumerate(evidence.candidate[row]):
            others = np.flatnonzero((label == identity) & (group != group[row]))
            mean, nearest = dist[row, others].mean(), dist[row, others].min()
            assert evidence.features[row, place, 0] == pytest.approx(mean, rel=1e-5)
            assert evidence.features[row, place, 2] == pytest.approx(nearest, rel=1e-5)


def test_swapped_labels_are_found() -> None:
    points, label = clouds()
    given = label.copy()
    given[[3, 40, 77]] = [5, 9, 2]
    errors = label_errors(collect_evidence(Points(points), given, np.arange(len(label))))
    assert np.flatnonzero(errors.wrong > 0.5).tolist() == [3, 40, 77]
    assert errors.suggestion[[3, 40, 77]].tolist() == label[[3, 40, 77]].tolist()
    assert errors.share == pytest.approx(3 / 160, abs=0.01)


def test_right_labels_are_left_alone() -> None:
    points, label = clouds()
    errors = label_errors(collect_evidence(Points(points), label, np.arange(len(label))))
    assert errors.wrong.max() < 0.5


def test_a_single_picture_is_not_judged() -> None:
    points, label = clouds()
    label = label.copy()
    label[0] = label.max() + 1
    evidence = collect_evidence(Points(points), label, np.arange(len(label)))
    assert not evidence.judged[0]
    assert label_errors(evidence).wrong[0] == 0


def test_identity_under_two_names_and_two_under_one() -> None:
    points, label = clouds(24, 12)
    given = label.copy()
    given[np.flatnonzero(label == 3)[::2]] = 24
    given[label == 7] = 8
    given = np.unique(given, return_inverse=True)[1]  # 8 becomes 7.
    group = np.arange(len(given))
    evidence = collect_evidence(Points(points), given, group)
    errors = label_errors(evidence)
    merges = find_merges(Points(points), evidence, errors, given, group)
    assert [(m.a, m.b) for m in merges if m.probability > 0.5] == [(3, 23)]
    splits = find_splits(Points(points), errors, given, group)
    (split,) = (one for one in splits if one.probability > 0.5)
    assert split.identity == 7
    assert set(label[split.rows]) in ({7}, {8})
    assert len(split.rows) == 12


def test_maps_do_not_know_the_identities_that_they_compare() -> None:
    torch = pytest.importorskip("torch")
    from twinlens.config import Member, ModelSettings, PictureSettings
    from twinlens.learn.cross_embedding import CrossEmbeddings
    from twinlens.learn.cross_validation import fit_map

    points, label = clouds(15, 4)
    model = ModelSettings(backbone="gradients", embedding=8, init="whitened", freeze="all")
    member = Member(model=model, picture=PictureSettings(), weight=1.0)
    features = torch.from_numpy(points[None].astype(np.float32))
    cross = CrossEmbeddings({"a": member}, {"a": features}, label)
    dist = np.empty((len(label), len(label)))
    for rows, dist_MBN in cross.blocks(7):
        dist[rows] = dist_MBN[0]
    np.testing.assert_allclose(dist, dist.T, atol=1e-5)
    a, b = 0, int(np.flatnonzero(cross.fold_N != cross.fold_N[0])[0])
    rest = np.flatnonzero(~np.isin(cross.fold_N, cross.fold_N[[a, b]]))
    with torch.no_grad():
        mapped = fit_map(member, features, label, rest)(features[0])
    expected = 1 - torch.nn.functional.cosine_similarity(mapped[a], mapped[b], dim=0)
    assert dist[a, b] == pytest.approx(float(expected), abs=1e-5)


# --- corrections --------------------------------------------------------------------------------


def table_of(*rows: tuple[str, str]) -> ImageTable:
    return ImageTable.of_rows([(p, i, False, "") for p, i in rows], "data", Path("/data"))


TABLE = table_of(("/data/1.png", "ann"), ("/data/2.png", "bob"), ("/data/3.png", "cy"))


def test_corrections_relabel_merge_and_drop() -> None:
    corrected = apply_corrections(TABLE, [
        Finding("wrong_label", "1.png", "ann", "bob", action="relabel"),
        Finding("merge", "", "bob", "cy", action="merge"),
        Finding("blank", "3.png", "cy", action="drop"),
        Finding("near_copy", "2.png", "bob"),
    ])  # fmt: skip
    assert corrected.table.identity.tolist() == ["cy", "cy"]
    assert (corrected.relabelled, corrected.merged) == (1, 1)
    assert corrected.dropped == (("3.png", "cy", "blank"),)


@pytest.mark.parametrize(
    ("findings", "message"),
    [
        ([Finding("x", "9.png", "ann", action="drop")], "'9.png' of ann is not in it"),
        ([Finding("x", "1.png", "bob", action="drop")], "'1.png' of bob is not in it"),
        ([Finding("x", "", "dan", "ann", action="merge")], "no identity dan"),
        (
            [Finding("x", "1.png", "ann", name, action="relabel") for name in ("bob", "cy")],
            "would become bob and cy",
        ),
        (
            [Finding("x", "", a, b, action="merge") for a, b in (("ann", "bob"), ("bob", "ann"))],
            "in a circle: ann -> bob -> ann",
        ),
        (
            [Finding("x", f"{n}.png", i, action="drop") for n, i in zip("123", ("ann", "bob", "cy"),
                                                                        strict=True)],
            "drop all pictures",
        ),
    ],
)  # fmt: skip
def test_wrong_corrections_are_refused(findings: list[Finding], message: str) -> None:
    with pytest.raises(DataError, match=message):
        apply_corrections(TABLE, findings)


def test_findings_are_read_as_written(tmp_path: Path) -> None:
    findings = [Finding("wrong_label", "=a,b.png", "-x", "y", "0.9", action="relabel")]
    write_findings(tmp_path / "a.csv", findings)
    assert read_findings(tmp_path / "a.csv") == findings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,identity\n", "no column suggestion and no column action"),
        ("path,identity,suggestion,action\n1.png,ann,,erase\n", "line 2: action is keep, relabel"),
        ("path,identity,suggestion,action\n1.png,ann,,relabel\n", "relabel needs an identity"),
        ("path,identity,suggestion,action\n,ann,,drop\n", "drop needs a picture"),
    ],
)
def test_wrong_lists_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_findings(tmp_path / "a.csv")


# --- the command --------------------------------------------------------------------------------


def spoiled(folder: Path) -> Path:
    """Ten identities with a wrong label, a copy, a blank and a broken picture."""
    draw_pictures(folder, {f"thing <{number}>": 6 for number in range(10)})
    (folder / "thing <3>" / "0.png").rename(folder / "thing <4>" / "moved.png")
    copy = folder / "thing <5>" / "copy.png"
    copy.write_bytes((folder / "thing <5>" / "1.png").read_bytes())
    Image.new("L", (16, 16), 90).save(folder / "thing <6>" / "blank.png")
    (folder / "thing <7>" / "broken.png").write_bytes(b"none")
    return folder


def test_audit_by_a_model_and_its_corrections(
    tmp_path: Path, tiny_run: TinyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = spoiled(tmp_path / "data"), tmp_path / "out"
    words = ["audit", str(data), "--out", str(out), "--model", str(tiny_run.run), "--json"]
    assert main([*words, "--quiet"]) == 0
    result = json.loads(capsys.readouterr().out)
    by_kind: dict[str, list[Any]] = {kind: [] for kind in result["counts"]}
    for one in result["findings"]:
        by_kind[one["finding"]].append(one)
    (wrong,) = by_kind["wrong_label"]
    assert wrong["path"] == "thing <4>/moved.png"
    assert (wrong["identity"], wrong["suggestion"]) == ("thing <4>", "thing <3>")
    assert [one["path"] for one in by_kind["exact_copy"]] == ["thing <5>/copy.png"]
    assert [one["path"] for one in by_kind["blank"]] == ["thing <6>/blank.png"]
    assert [one["path"] for one in by_kind["broken"]] == ["thing <7>/broken.png"]
    assert "The model learned from" in result["notes"][0]

    page = (out / "audit.html").read_text()
    assert "thing &lt;3&gt;" in page
    assert "thing <3>" not in page
    assert "http" not in page.replace("http-equiv", "")

    edited = tmp_path / "edited.csv"
    rows = read_findings(out / "audit.csv")
    kept = [Finding(**(vars(one) | {"action": "relabel"})) if one.finding == "wrong_label" else one
            for one in rows]  # fmt: skip
    write_findings(edited, kept)
    correction = twinlens.audit(data, out=tmp_path / "right", apply=edited, quiet=True)
    assert isinstance(correction, CorrectionResult)
    assert "1 relabelled, 0 identities merged, 3 left out" in correction.as_text()
    table = read_table(tmp_path / "right" / "manifest.csv")
    assert len(table) == 60
    moved = [str(p).endswith("moved.png") for p in table.path]
    assert table.identity[moved].tolist() == ["thing <3>"]
    dropped = (tmp_path / "right" / "dropped.csv").read_text().splitlines()
    assert len(dropped) == 4
    assert sum(1 for _ in data.rglob("*.png")) == 63


def test_audit_without_a_model(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    result = twinlens.audit(spoiled(tmp_path / "data"), out=tmp_path / "out", quiet=True)
    assert isinstance(result, AuditResult)
    assert [one.path for one in result.findings if one.finding == "wrong_label"] == [
        "thing <4>/moved.png"
    ]
    assert "1  probably another's label" in result.as_text()


def test_wrong_uses_are_refused(
    tmp_path: Path, picture_folder: PictureFolder, tiny_run: TinyRun
) -> None:
    data = picture_folder({"a": 2, "b": 2})
    with pytest.raises(DataError, match="an audit of labels needs at least 3"):
        twinlens.audit(data, out=tmp_path / "out", quiet=True)
    with pytest.raises(twinlens.ConfigError, match="leave out --model"):
        twinlens.audit(data, out=tmp_path / "out", model=tiny_run.run, apply="a.csv", quiet=True)
    findings = tmp_path / "a.csv"
    write_findings(findings, [])
    with pytest.raises(DataError, match="has no files"):
        twinlens.audit("digits", out=tmp_path / "out", apply=findings, quiet=True)
