"""Corrections: what they change, what they cost nobody, and that erasing takes all of it along."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import PictureFolder, TinyRun
from gallery_traces import found_in, traces_of_texts, traces_of_vectors
from numpy.typing import NDArray

from twinlens.cli.main import main
from twinlens.errors import ConfigError, DataError, GalleryError
from twinlens.gallery.adapt import MAX_SHIFT
from twinlens.gallery.corrections import packed, unpacked
from twinlens.gallery.gallery import Gallery
from twinlens.gallery.metric import Metric, fit_metric
from twinlens.measure.fusion import RULES

Floats = NDArray[np.float32]
DIM = 16


def people(
    num: int, each: int, *, seed: int = 0, nuisance: float = 1.0, first: int = 0
) -> tuple[Floats, list[str]]:
    """Embeddings that vary within an identity along two directions, the same for all."""
    rng = np.random.default_rng(seed)
    centre = np.random.default_rng(99).normal(size=(first + num, DIM))[first:]
    centre[:, :2] = 0
    emb = np.repeat(centre, each, axis=0) + 0.2 * rng.normal(size=(num * each, DIM))
    emb[:, :2] += nuisance * rng.normal(size=(num * each, 2)) * np.sqrt(DIM)
    return emb.astype(np.float32), [f"p{first + i:03}" for i in range(num) for _ in range(each)]


@pytest.fixture
def gallery(tmp_path: Path, tiny_run: TinyRun) -> Gallery:
    return Gallery.create(tmp_path / "gallery", tiny_run.model)


def enrol(gallery: Gallery, emb: Floats, names: list[str]) -> None:
    gallery.enrol_embeddings(emb, names, fingerprint=gallery.fingerprint)


def correct(gallery: Gallery, emb: Floats, kind: str, names: list[str]) -> Any:
    return gallery.feedback_embeddings(
        emb, [kind] * len(emb), names, fingerprint=gallery.fingerprint
    )


def state_of(gallery: Gallery) -> dict[str, Any]:
    """All that answers depend on besides the templates."""
    state = gallery.state()
    feedback = state.settings.feedback
    fit = None if feedback is None else feedback.model_dump(include={"metric", "open_set"})
    return {"fit": fit, "threshold": gallery.threshold().value, "vetoes": sorted(state.vetoes)}


# --- the metric ---------------------------------------------------------------------------------


def test_the_metric_by_hand() -> None:
    """One direction of variance v: its share is 1, so its weight is 1 / sqrt(1 + 1 / shrinkage)."""
    emb = np.array([[1, 0, 5], [-1, 0, 5], [1, 7, 0], [-1, 7, 0]], np.float32)
    metric = fit_metric(emb, [0, 0, 1, 1])
    assert metric is not None
    weight = 1 / np.sqrt(1 + 1 / (0.01 * (1 + 30 / 2)))
    mapped = metric.apply(emb) / metric.scale
    np.testing.assert_allclose(mapped[:, 0], weight * emb[:, 0], rtol=1e-5)
    np.testing.assert_allclose(mapped[:, 1:], emb[:, 1:], atol=1e-6)
    assert np.isclose(metric.apply(emb).var(axis=0).sum(), emb.var(axis=0).sum(), rtol=1e-5)
    again = Metric.of(metric.stored())
    np.testing.assert_array_equal(again.apply(emb), metric.apply(emb))
    assert fit_metric(emb, [0, 1, 2, 3]) is None
    assert fit_metric(emb[[0, 0]], [0, 0]) is None


def test_the_metric_turns_with_the_embeddings_and_ignores_names() -> None:
    emb, names = people(12, 3)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(DIM, DIM)))[0].astype(np.float32)
    _, code = np.unique(names, return_inverse=True)
    one, other = fit_metric(emb, code), fit_metric(emb @ turn, 100 - code)
    assert one is not None
    assert other is not None
    np.testing.assert_allclose(one.apply(emb) @ turn, other.apply(emb @ turn), atol=1e-3)


def test_vectors_as_text() -> None:
    vector = np.array([1.5, -2.25], np.float32)
    assert unpacked(packed(vector)).tolist() == vector.tolist()
    for text in ("", "AAA", "!!!!", packed(np.array([np.nan], np.float32))):
        with pytest.raises(ValueError, match=r"base 64|finite|buffer size"):
            unpacked(text)


# --- the effect ---------------------------------------------------------------------------------


def test_a_helpful_metric_is_applied_and_shown(gallery: Gallery) -> None:
    emb, names = people(30, 3)
    enrol(gallery, emb, names)
    before = gallery.calibrate(fpir=0.1)
    query, who = people(30, 4, seed=7)
    extra, own = people(30, 1, seed=3)
    result = correct(gallery, extra[:10], "is", own[:10])

    assert (result.num_new, result.num_corrections, len(gallery)) == (10, 10, 100)
    adaptation = result.adaptation
    assert adaptation.metric_applied
    assert adaptation.num_answers == 90
    assert adaptation.rank_1.gain > 0.05
    assert adaptation.rank_1.low > 0
    assert adaptation.threshold_before == before.threshold
    assert adaptation.threshold_after == gallery.threshold().value
    assert "metric applied" in result.as_text()
    assert "95 % interval" in result.as_text()
    # On queries that nothing was fitted to.
    wrong = {}
    for kept in (False, True):
        if not kept:
            gallery_off = Gallery.create(Path(gallery.place).parent / "off", gallery.matcher)
            enrol(gallery_off, np.concatenate([emb, extra[:10]]), names + own[:10])
            first = [gallery_off.nearest(one, 1)[0].identity for one in query]
        else:
            first = [gallery.nearest(one, 1)[0].identity for one in query]
        wrong[kept] = np.mean([a != b for a, b in zip(first, who, strict=True)])
    assert wrong[True] < wrong[False] - 0.05


def test_no_gain_no_metric(gallery: Gallery) -> None:
    emb, names = people(30, 3, nuisance=0.05)
    enrol(gallery, emb, names)
    gallery.calibrate(fpir=0.1)
    result = correct(gallery, people(1, 1, seed=3)[0], "is", ["p000"])
    assert not result.adaptation.metric_applied
    assert "metric not applied: " in result.as_text()
    assert gallery.state().metric is None


def test_the_rule_is_chosen_again_unless_it_was_given(gallery: Gallery, tmp_path: Path) -> None:
    emb, names = people(12, 2, nuisance=0.5)
    extra, own = people(12, 1, seed=3)
    enrol(gallery, emb, names)
    whole = Gallery.create(tmp_path / "whole", gallery.matcher)
    enrol(whole, np.concatenate([emb, extra]), names + own)
    chosen = whole.calibrate(fpir=0.3).rule
    other = next(rule for rule in RULES if rule != chosen)
    gallery.calibrate(fpir=0.3, rule=other)
    assert correct(gallery, extra, "is", own).adaptation.rule_after == other == gallery.state().rule
    gallery.calibrate(fpir=0.3)
    assert gallery.state().rule == chosen


def test_metric_and_index_agree(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    emb, names = people(30, 3)
    enrol(gallery, emb, names)
    gallery.calibrate(fpir=0.1)
    assert correct(gallery, people(30, 1, seed=3)[0][:9], "is", names[:27:3]).num_new == 9
    query, _ = people(5, 1, seed=8)
    expected = [gallery.nearest(one, 3) for one in query]
    hits = [gallery.search_embedding(one, k=3) for one in query]
    assert gallery.state().metric is not None
    monkeypatch.setattr("twinlens.gallery.index.NUM_PROBES", 5)
    gallery.optimize(partitions=2)
    for one, ranked, near in zip(query, expected, hits, strict=True):
        again = gallery.nearest(one, 3)
        assert [row.identity for row in again] == [row.identity for row in ranked]
        np.testing.assert_allclose(
            [row.distance for row in again], [row.distance for row in ranked], atol=1e-5
        )
        distances = [hit.distance for hit in gallery.search_embedding(one, k=3)]
        np.testing.assert_allclose(distances, [hit.distance for hit in near], atol=1e-5)


def test_the_threshold_moves_by_a_quarter_at_most(gallery: Gallery) -> None:
    emb, names = people(20, 3, nuisance=0.1)
    enrol(gallery, emb, names)
    before = gallery.calibrate(fpir=0.1, rule="nearest").threshold
    # Near copies of others' pictures: strangers come very near.
    noise = np.random.default_rng(4).normal(scale=0.01, size=(30, DIM)).astype(np.float32)
    result = correct(gallery, emb[:30] + noise, "is", names[30:])
    adaptation = result.adaptation
    assert adaptation.bounded
    assert adaptation.threshold_after == pytest.approx(before * (1 - MAX_SHIFT))
    assert adaptation.fpir > 0.1
    assert "largest change" in result.as_text()


def test_a_counterexample_is_nearer_than_the_identity(gallery: Gallery) -> None:
    emb, names = people(20, 3, nuisance=0.05)
    enrol(gallery, emb, names)
    gallery.calibrate(fpir=0.2)
    probe = emb[0] + np.float32(0.02)
    assert gallery.identify_embedding(probe).identity == "p000"
    correct(gallery, probe[None], "is-not", ["p000"])
    assert len(gallery) == 60
    assert gallery.identify_embedding(probe).identity != "p000"
    assert all(one.identity != "p000" for one in gallery.nearest(probe, 20))
    assert gallery.identify_embedding(emb[1]).identity == "p000"
    assert gallery.undo_feedback(1).num_corrections == 0
    assert gallery.identify_embedding(probe).identity == "p000"
    assert gallery.state().settings.format == 1


def test_templates_move_leave_and_come_back(gallery: Gallery) -> None:
    emb, names = people(3, 3)
    enrol(gallery, emb, names)
    counts = gallery.identities()
    correct(gallery, emb[:1], "is", ["p001"])
    assert gallery.identities() == {"p000": 2, "p001": 4, "p002": 3}
    correct(gallery, emb[3:4], "is-not", ["p001"])
    assert gallery.identities() == {"p000": 2, "p001": 3, "p002": 3}
    listed = gallery.corrections()
    assert [(one.number, one.kind, one.identity) for one in listed.corrections] == [
        (1, "is", "p001"), (2, "is-not", "p001"),
    ]  # fmt: skip
    gallery.rename("p001", "new")
    assert {one.identity for one in gallery.corrections().corrections} == {"new"}
    gallery.undo_feedback(2)
    gallery.undo_feedback(1)
    assert gallery.identities() == {"p000": 3, "new": 3, "p002": 3}
    assert counts["p000"] == 3
    with pytest.raises(GalleryError, match="no correction 1"):
        gallery.undo_feedback(1)


def test_other_pictures_calibrated_it(gallery: Gallery, picture_folder: PictureFolder) -> None:
    """Their distances are not kept, so threshold and metric stay, and the answer says so."""
    folder = picture_folder({f"thing {i}": 3 for i in range(12)})
    for place in sorted(folder.iterdir())[:6]:
        gallery.enrol_files(place.name, [place / "0.png", place / "1.png"])
    threshold = gallery.calibrate(folder, fpir=0.2).threshold
    result = gallery.feedback(folder / "thing 0" / "2.png", is_="thing 0")
    assert result.adaptation is not None
    assert result.adaptation.threshold_after == threshold == gallery.threshold().value
    assert "without DATA" in result.as_text()
    gallery.calibrate(fpir=0.2)
    assert gallery.state().settings.calibrated_on is None
    assert "without DATA" not in gallery.corrections().as_text()


# --- erasing ------------------------------------------------------------------------------------


def traces(vector: Floats) -> list[bytes]:
    return [*traces_of_vectors(vector[None]), base64.b64encode(vector.tobytes())[:40]]


def test_erasing_an_identity_erases_its_corrections_and_their_influence(
    gallery: Gallery, tmp_path: Path
) -> None:
    emb, names = people(30, 3)
    extra, own = people(30, 1, seed=3)
    secret, whose = people(1, 4, seed=5, first=30)
    never = Gallery.create(tmp_path / "never", gallery.matcher)
    for one in (gallery, never):
        enrol(one, emb, names)
        one.calibrate(fpir=0.1)
    enrol(gallery, secret[:2], whose[:2])
    correct(gallery, secret[2:3], "is", whose[:1])
    stray = gallery.prepared(secret[3:])[0]
    correct(gallery, stray[None], "is-not", whose[:1])
    for one in (gallery, never):
        correct(one, extra[:10], "is", own[:10])
    place = Path(gallery.place)
    kinds = {"name": traces_of_texts(whose[:1]), "stray": traces(stray)} | {
        f"template {row}": traces(gallery.prepared(secret[row : row + 1])[0]) for row in range(3)
    }
    assert all(found_in(place, needles) for needles in kinds.values())
    assert state_of(gallery) != state_of(never)

    gallery.erase(whose[0])

    assert {kind: found_in(place, needles) for kind, needles in kinds.items()} == {
        kind: {} for kind in kinds
    }
    assert state_of(gallery) == state_of(never)
    for one in people(5, 1, seed=9)[0]:
        assert gallery.identify_embedding(one) == never.identify_embedding(one)


def test_undoing_erases_the_embedding(gallery: Gallery) -> None:
    emb, names = people(4, 2)
    enrol(gallery, emb, names)
    stray = gallery.prepared(people(1, 1, seed=4)[0])[0]
    for kind in ("is", "is-not"):
        correct(gallery, stray[None], kind, ["p002"])
        assert found_in(Path(gallery.place), traces(stray))
        assert gallery.undo_feedback(1).num_undone == 1
        assert found_in(Path(gallery.place), traces(stray)) == {}
    assert gallery.state().settings.feedback is None


def test_a_killed_adaptation_is_completed(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    emb, names = people(30, 3)
    extra, own = people(30, 1, seed=3)
    enrol(gallery, emb, names)
    gallery.calibrate(fpir=0.1)

    def killed(core: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("twinlens.gallery.feedback.adapt", killed)
        with pytest.raises(KeyboardInterrupt):
            correct(gallery, extra[:10], "is", own[:10])
    feedback = gallery.state().settings.feedback
    assert feedback is not None
    assert feedback.stale
    assert feedback.metric is None
    correct(gallery, extra[10:11], "is", own[10:11])
    feedback = gallery.state().settings.feedback
    assert feedback is not None
    assert not feedback.stale
    assert feedback.metric is not None


# --- files and the command line -----------------------------------------------------------------


@pytest.fixture
def pictures(gallery: Gallery, picture_folder: PictureFolder) -> Path:
    folder = picture_folder({"anna": 4, "bert": 4, "carl": 3})
    for name in ("anna", "bert"):
        gallery.enrol_files(name, [folder / name / "0.png", folder / name / "1.png"])
    return folder


def test_pairs(gallery: Gallery, pictures: Path) -> None:
    anna, bert, carl = (sorted((pictures / name).iterdir()) for name in ("anna", "bert", "carl"))
    gallery.feedback(same=(anna[2], anna[0]))
    gallery.feedback(different=(bert[0], carl[0]))
    again = gallery.feedback(different=(bert[0], carl[0]))
    assert (again.num_new, again.num_corrections) == (0, 2)
    assert gallery.feedback(same=(carl[1], carl[2])).num_new == 1
    listed = gallery.corrections().corrections
    assert [(one.kind, one.identity) for one in listed] == [
        ("is", "anna"), ("is-not", "bert"), ("same", None),
    ]  # fmt: skip
    assert listed[2].pictures == (str(carl[1]), str(carl[2]))
    assert gallery.identities() == {"anna": 3, "bert": 2}
    assert gallery.feedback(same=(anna[0], anna[1])).skipped[0].reason == (
        "both are templates of 'anna'"
    )


def test_words(
    gallery: Gallery, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: object) -> tuple[int, str, str]:
        code = main(["gallery", "feedback", str(gallery.place), *map(str, words)])
        return code, *capsys.readouterr()

    rows = "picture,is,is_not,same_as\nanna/2.png,anna,,\ncarl/0.png,,bert,\nnone.png,anna,,\n"
    (pictures / "c.csv").write_text(rows)
    code, out, err = run("--csv", pictures / "c.csv", "--json")
    assert code == 0, err
    assert json.loads(out)["num_new"] == 2
    assert "skipped" in err
    assert "none.png" in err
    code, out, _ = run(pictures / "anna" / "3.png", "--is", "anna")
    assert (code, out.splitlines()[0]) == (0, "corrections: 1 new, 3 in all")
    code, out, _ = run("--list")
    assert out.count("\n") >= 3
    assert "carl/0.png is not bert" in out
    assert run("--undo", 2)[1].startswith("corrections: 1 taken back, 2 in all")
    for words, message in (
        ([], "found 0 kinds"),
        (["--is", "anna"], "need one picture"),
        ([pictures / "anna" / "3.png", "--is", "ana"], "anna"),
        ([pictures / "anna" / "3.png", "--is", "anna"], "template of 'anna' already"),
        (["--list", "--undo", "1"], "stand alone"),
        (["--csv", tmp_path / "none.csv"], "none.csv"),
    ):
        code, _, err = run(*words)
        assert code == 2, err
        assert message in err


def test_mistakes_in_a_csv_file(gallery: Gallery, tmp_path: Path) -> None:
    file = tmp_path / "c.csv"
    for text, message in (
        ("a,b\n1,2\n", "need the column picture"),
        ("picture,is,is_not\nx.png,a,b\n", "found is, is_not"),
        ("picture,is\n", "no rows"),
    ):
        file.write_text(text)
        with pytest.raises(DataError, match=message):
            gallery.feedback(csv=file)
    with pytest.raises(ConfigError, match="two files"):
        gallery.feedback(same=["a.png"])


def test_rebuilding_embeds_counterexamples_again(gallery: Gallery, pictures: Path) -> None:
    gallery.feedback(pictures / "carl" / "0.png", is_not="anna")
    gallery.feedback(pictures / "carl" / "1.png", is_not="bert")
    stored = gallery.state().vetoes
    (pictures / "carl" / "1.png").unlink()
    gallery.rebuild(gallery.matcher, drop_missing=True)
    again = Gallery.open(gallery.place).state()
    np.testing.assert_allclose(again.vetoes["anna"], stored["anna"], atol=1e-6)
    assert set(again.vetoes) == {"anna"}
