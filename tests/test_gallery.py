"""Gallery operations on small pictures: enrol, identify, search, rename, erase, calibrate."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import PictureFolder, TinyRun, draw_pictures
from PIL import Image
from test_matcher import make_matcher

import twinlens
from twinlens.data.folders import read_table
from twinlens.errors import CalibrationError, DataError, GalleryError, ModelError, PictureError
from twinlens.gallery.enrol_embeddings import rows_of_embeddings
from twinlens.gallery.gallery import Gallery
from twinlens.match.matcher import Matcher
from twinlens.measure.open_set_calibration import OpenSetCalibration


@pytest.fixture(scope="module")
def model(tiny_run: TinyRun) -> Matcher:
    return twinlens.load(tiny_run.run)


@pytest.fixture
def gallery(tmp_path: Path, model: Matcher) -> Gallery:
    return Gallery.create(tmp_path / "gallery", model)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Eight things, five pictures of each, that the model has not seen."""
    draw_pictures(tmp_path / "new", {f"new {n}": 5 for n in range(8)}, seed=99)
    return tmp_path / "new"


def split(pictures: Path, num_known: int = 6) -> tuple[list[Path], list[Path]]:
    """Probes: the first pictures of the enrolled identities, held out, and those of strangers."""
    known = [pictures / f"new {n}" / "0.png" for n in range(num_known)]
    strangers = [pictures / f"new {n}" / "0.png" for n in range(num_known, 8)]
    return known, strangers


def enrol_known(gallery: Gallery, pictures: Path, num_known: int = 6) -> None:
    for n in range(num_known):
        files = [pictures / f"new {n}" / f"{k}.png" for k in range(1, 5)]
        gallery.enrol_files(f"new {n}", files, metadata={"number": n, "side": "left"})


# --- making and opening ---


def test_a_gallery_carries_its_model(gallery: Gallery, model: Matcher, pictures: Path) -> None:
    again = Gallery.open(gallery.place)
    assert again.fingerprint == model.fingerprint
    assert again.matcher.fingerprint == model.fingerprint
    file = pictures / "new 0" / "0.png"
    np.testing.assert_array_equal(again.embed(file), model.embed(file))
    assert str(model.path) not in str(again.matcher.path)
    assert len(again) == 0


def test_places_that_are_no_gallery(tmp_path: Path, gallery: Gallery, tiny_run: TinyRun) -> None:
    with pytest.raises(
        GalleryError, match=r"no gallery at .*: create one with `twinlens gallery cr"
    ):
        Gallery.open(tmp_path / "nowhere")
    with pytest.raises(GalleryError):
        Gallery.open(tiny_run.run)
    with pytest.raises(GalleryError, match="exists already"):
        Gallery.create(gallery.place, tiny_run.run)
    with pytest.raises(GalleryError, match="exists already"):
        Gallery.create(tiny_run.run, tiny_run.run)


def test_a_newer_format_is_refused(gallery: Gallery) -> None:
    gallery.store.change_settings(lambda old: old | {"format": 99})
    with pytest.raises(
        GalleryError, match=r"has format 99, but twinlens .* reads formats up to 3: upgrade"
    ):
        Gallery.open(gallery.place)


def test_no_torch_for_vectors(gallery: Gallery, pictures: Path) -> None:
    enrol_known(gallery, pictures)
    gallery.calibrate(fpir=0.1)
    code = (
        "import sys, numpy as np\n"
        "from twinlens import Gallery\n"
        f"gallery = Gallery.open({gallery.place!r})\n"
        "probe = np.ones(gallery.dim, dtype=np.float32)\n"
        "print(gallery.identify_embedding(probe).verdict, len(gallery.search_embedding(probe)))\n"
        "assert 'torch' not in sys.modules\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split()[0] in ("identified", "nobody", "ambiguous")


# --- enrolling ---


def test_enrol_counts_new_known_and_skipped(gallery: Gallery, pictures: Path) -> None:
    broken = pictures / "new 1" / "3.png"
    broken.write_bytes(broken.read_bytes()[:50])
    shutil.copy(pictures / "new 2" / "0.png", pictures / "new 3" / "copy.png")
    shutil.copy(pictures / "new 2" / "0.png", pictures / "new 2" / "twin.png")
    result = gallery.enrol(pictures)
    assert (result.num_new, result.num_known, result.num_identities) == (39, 1, 8)
    reasons = {Path(one.path).name: one.reason for one in result.skipped}
    assert set(reasons) == {"3.png", "copy.png"}
    assert "enrolled already, as 'new 2'" in reasons["copy.png"]
    assert len(gallery) == 39
    again = gallery.enrol(pictures)
    assert (again.num_new, again.num_known, len(again.skipped)) == (0, 40, 2)
    assert gallery.identities() == {f"new {n}": 4 if n == 1 else 5 for n in range(8)}


def test_enrolment_resumes(
    gallery: Gallery, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twinlens.gallery.enrol.AT_ONCE", 10)

    def stop(done: int, total: int) -> None:
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gallery.enrol(pictures, progress=stop)
    assert len(gallery) == 20
    seen: list[int] = []
    monkeypatch.setattr(
        Matcher,
        "read",
        lambda matcher, source: seen.append(1) or (np.zeros((1, 16, 16), dtype=np.uint8), 256),
    )
    result = gallery.enrol(pictures)
    assert (result.num_new, result.num_known) == (20, 20)
    assert len(seen) == 20  # Known ones are not even decoded.


def test_a_long_enrolment_keeps_few_files(
    gallery: Gallery, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twinlens.gallery.enrol.AT_ONCE", 4)
    monkeypatch.setattr("twinlens.gallery.store.MAX_FRAGMENTS", 4)
    result = gallery.enrol(pictures)
    assert result.num_new == len(gallery) == 40
    assert len(list(Path(gallery.place).glob("templates.lance/data/*"))) <= 4
    assert sum(gallery.identities().values()) == 40


def test_a_picture_like_no_other_in_a_thousand_is_named(gallery: Gallery, tmp_path: Path) -> None:
    """The files differ, whatever they show; the one that does not open is skipped."""
    folder = tmp_path / "many"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(1000):
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / f"{number}.png")
    (folder / "500.png").write_bytes(b"not a picture")
    result = gallery.enrol_files("one", sorted(folder.iterdir()))
    assert result.num_new == 999
    assert [Path(one.path).name for one in result.skipped] == ["500.png"]


def test_what_a_template_keeps(gallery: Gallery, pictures: Path) -> None:
    file = pictures / "new 0" / "0.png"
    gallery.enrol_files("new 0", [file], metadata={"camera": "north", "year": 2024, "ok": True},
                        keep_thumbnails=True)  # fmt: skip
    hit = gallery.search(file, k=1)[0]
    assert (hit.path, hit.identity) == (str(file), "new 0")
    assert hit.metadata == {"camera": "north", "year": 2024, "ok": True}
    assert hit.time.tzinfo is not None
    assert gallery.info().num_thumbnails == 1
    thumbnail = gallery.store.find(columns=["thumbnail"])["thumbnail"][0].as_py()
    assert thumbnail.startswith(b"\xff\xd8")  # A JPEG.
    gallery.enrol_files("new 1", [pictures / "new 1" / "0.png"])
    assert gallery.info().num_thumbnails == 1


def test_a_manifests_further_columns_are_metadata(
    gallery: Gallery, pictures: Path, tmp_path: Path
) -> None:
    manifest = tmp_path / "list.csv"
    manifest.write_text(
        "path,identity,camera,year\nnew/new 0/0.png,anna,north,2020\nnew/new 1/0.png,ben,,2021\n"
    )
    gallery.enrol(manifest, metadata={"batch": 7})
    result = {hit.identity: hit.metadata for hit in gallery.search(pictures / "new 0" / "0.png")}
    assert result["anna"] == {"camera": "north", "year": "2020", "batch": 7}
    assert result["ben"] == {"year": "2021", "batch": 7}
    late = gallery.search(pictures / "new 0" / "0.png", where="metadata.year > 2020")
    assert [hit.identity for hit in late] == ["ben"]


def test_forgeries_are_not_enrolled(gallery: Gallery, picture_folder: PictureFolder) -> None:
    result = gallery.enrol(picture_folder({"anna": 3, "anna_forg": 2}))
    assert result.num_new == 3
    assert len(result.skipped) == 2
    assert "forgery" in result.skipped[0].reason


def test_pictures_of_named_sets_are_identified_by_their_pixels(gallery: Gallery) -> None:
    few = read_table("digits").select(np.arange(40))
    result = gallery.enrol(few)
    assert result.num_new + result.num_known == 40
    assert gallery.enrol(few).num_new == 0


@pytest.mark.parametrize("name", ["", "  ", "\n"])
def test_a_name_is_needed(gallery: Gallery, pictures: Path, name: str) -> None:
    with pytest.raises(GalleryError, match="an identity needs a name"):
        gallery.enrol_files(name, [pictures / "new 0" / "0.png"])


def test_metadata_that_json_cannot_say(gallery: Gallery, pictures: Path) -> None:
    with pytest.raises(GalleryError, match="metadata must be text, numbers"):
        gallery.enrol_files("a", [pictures / "new 0" / "0.png"], metadata={"what": object()})
    assert len(gallery) == 0


def test_embeddings_of_others_are_refused(gallery: Gallery) -> None:
    emb = np.ones((2, gallery.dim), dtype=np.float32)
    with pytest.raises(
        GalleryError,
        match=rf"belong to the model 0123.* belongs to the model {gallery.fingerprint}",
    ):
        gallery.enrol_embeddings(emb, ["a", "b"], fingerprint="0123")
    for wrong in (emb[:, :3], np.full_like(emb, np.nan)):
        with pytest.raises(GalleryError):
            gallery.enrol_embeddings(wrong, ["a", "b"], fingerprint=gallery.fingerprint)
    with pytest.raises(GalleryError, match="found 2 embeddings, 1 identities"):
        gallery.enrol_embeddings(emb, ["a"], fingerprint=gallery.fingerprint)
    assert len(gallery) == 0


# --- answering ---


def test_mated_probes_are_identified_and_strangers_are_nobody(
    gallery: Gallery, pictures: Path
) -> None:
    enrol_known(gallery, pictures)
    known, strangers = split(pictures)
    result = gallery.calibrate(fpir=0.1)
    assert result.num_identities == 6
    right = [gallery.identify(file).identity == file.parent.name for file in known]
    assert sum(right) >= 4
    for file in strangers:
        answer = gallery.identify(file)
        near = answer.candidates[0]
        assert (answer.verdict == "nobody") == (near.distance > result.threshold)
        assert answer.threshold_of == "gallery"
        assert answer.target_fpir == 0.1
    answer = gallery.identify(known[0], k=3)
    assert len(answer.candidates) == 3
    assert answer.as_json()["candidates"][0]["identity"] == answer.candidates[0].identity
    json.dumps(answer.as_json())


def test_a_list_of_pictures_has_a_list_of_answers(
    gallery: Gallery, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enrol_known(gallery, pictures)
    known, strangers = split(pictures)
    probes = [*map(str, known), *strangers, known[0].read_bytes()]
    monkeypatch.setattr("twinlens.gallery.gallery.AT_ONCE", 4)
    answers = gallery.identify(probes, k=2)
    each = [gallery.identify(probe, k=2) for probe in probes]
    assert [answer.identity for answer in answers] == [answer.identity for answer in each]
    assert [answer.quality for answer in answers] == [answer.quality for answer in each]
    distances = ([answer.distance for answer in part] for part in (answers, each))
    np.testing.assert_allclose(*distances, atol=1e-6)  # Equal but for rounding.
    assert gallery.identify([]) == []
    with pytest.raises(PictureError, match=r"nowhere\.png"):
        gallery.identify([known[0], "nowhere.png"])


def test_another_rate_moves_the_threshold(gallery: Gallery, pictures: Path) -> None:
    enrol_known(gallery, pictures)
    gallery.calibrate(fpir=0.1)
    file = pictures / "new 0" / "0.png"
    thresholds = [gallery.identify(file, far=far).threshold for far in (0.1, 0.2, 0.4)]
    assert thresholds == sorted(thresholds)
    assert thresholds[0] < thresholds[2]
    with pytest.raises(CalibrationError, match="needs at least 10000"):
        gallery.identify(file, far=0.0001)


def test_before_calibration_the_pairs_threshold_warns(gallery: Gallery, pictures: Path) -> None:
    enrol_known(gallery, pictures)
    answer = gallery.identify(pictures / "new 0" / "0.png")
    pairs = gallery.matcher.require_calibration()
    assert answer.threshold == pairs.threshold
    assert answer.threshold_of == "pairs"
    assert answer.target_fpir == pytest.approx(1 - (1 - pairs.target_far) ** 24)
    assert "for pairs" in answer.explain()
    assert answer.probability is None
    with pytest.raises(
        CalibrationError, match=r"no threshold for an FPIR of 0\.1 yet.*gallery calibrate"
    ):
        gallery.identify(pictures / "new 0" / "0.png", far=0.1)


def test_an_uncalibrated_model_answers_only_in_a_calibrated_gallery(
    tmp_path: Path, pictures: Path
) -> None:
    gallery = Gallery.create(tmp_path / "g", make_matcher(tmp_path / "m", "grey"))
    enrol_known(gallery, pictures)
    with pytest.raises(CalibrationError, match="no threshold yet"):
        gallery.identify(pictures / "new 0" / "0.png")
    assert gallery.info().threshold is None
    assert "none: run" in gallery.info().as_text()
    gallery.calibrate(fpir=0.2)
    assert gallery.identify(pictures / "new 0" / "0.png").threshold_of == "gallery"


def test_questions_that_make_no_sense(gallery: Gallery, pictures: Path, tmp_path: Path) -> None:
    enrol_known(gallery, pictures, 2)
    file = pictures / "new 0" / "0.png"
    with pytest.raises(GalleryError, match="k must be at least 1, found 0"):
        gallery.identify(file, k=0)
    with pytest.raises(GalleryError, match="k must be at least 1, found -1"):
        gallery.search(file, k=-1)
    with pytest.raises(PictureError):
        gallery.identify(tmp_path / "nothing.png")
    for where in ("year > 3", "metadata.x = = 2", "'"):
        with pytest.raises(GalleryError, match="is not understood at character"):
            gallery.search(file, where=where)


def test_quotes_in_a_condition_are_text(gallery: Gallery, pictures: Path) -> None:
    gallery.enrol_files("metadata.side's", [pictures / "new 0" / "0.png"], metadata={"side": "'"})
    gallery.enrol_files("other", [pictures / "new 1" / "0.png"])
    file = pictures / "new 0" / "0.png"
    for where in ("identity = 'metadata.side''s'", "metadata.side = ''''"):
        assert [h.identity for h in gallery.search(file, where=where)] == ["metadata.side's"]


def test_a_damaged_calibration_stops_answers_and_can_be_made_again(
    gallery: Gallery, pictures: Path
) -> None:
    enrol_known(gallery, pictures)
    gallery.calibrate(fpir=0.2)
    gallery.store.change_settings(
        lambda old: old | {"open_set": old["open_set"] | {"threshold": "far"}}
    )
    again = Gallery.open(gallery.place)
    with pytest.raises(ModelError, match=r"threshold: .*found 'far'.*gallery calibrate GALLERY"):
        again.identify(pictures / "new 0" / "0.png")
    again.calibrate(fpir=0.2)
    assert again.identify(pictures / "new 0" / "0.png").threshold_of == "gallery"


def test_calibration_on_given_pictures_leaves_the_enrolled_out(
    gallery: Gallery, pictures: Path
) -> None:
    enrol_known(gallery, pictures)
    result = gallery.calibrate(pictures, fpir=0.2)
    # Of 40 pictures 24 are enrolled; 6 show enrolled things, and 10 show strangers.
    assert (result.num_mated, result.num_strangers) == (6, 10)
    assert Gallery.open(gallery.place).state().open_set == result
    assert isinstance(result, OpenSetCalibration)
    shutil.rmtree(pictures / "new 6")
    shutil.rmtree(pictures / "new 7")
    for n in range(6):
        (pictures / f"new {n}" / "0.png").unlink()
    with pytest.raises(GalleryError, match=r"every picture of .* is enrolled"):
        gallery.calibrate(pictures)


def test_an_empty_gallery(gallery: Gallery, pictures: Path) -> None:
    answer = gallery.identify(pictures / "new 0" / "0.png")
    assert (answer.verdict, answer.candidates, answer.distance) == ("nobody", (), None)
    with pytest.raises(GalleryError, match="is empty"):
        gallery.calibrate()
    assert gallery.optimize().num_templates == 0
    with pytest.raises(GalleryError, match="unknown identity 'anna'"):
        gallery.erase("anna")


# --- keeping ---


def test_two_views_of_one_gallery_see_each_others_changes(gallery: Gallery, pictures: Path) -> None:
    other = Gallery.open(gallery.place)
    file = pictures / "new 0" / "0.png"
    gallery.enrol_files("anna", [file])
    assert other.identify(file).candidates[0].identity == "anna"
    other.rename("anna", "ben")
    assert gallery.identify(file).candidates[0].identity == "ben"
    gallery.enrol_files("carl", [pictures / "new 1" / "0.png"])
    other.erase("ben")
    assert [c.identity for c in gallery.identify(file).candidates] == ["carl"]


def test_rename_and_merge(gallery: Gallery, pictures: Path) -> None:
    enrol_known(gallery, pictures, 2)
    assert gallery.rename("new 0", "O'Brien \U0001f600") == 4
    with pytest.raises(GalleryError, match=r"exists already, with 4 templates: give --merge"):
        gallery.rename("new 1", "O'Brien \U0001f600")
    assert gallery.rename("new 1", "O'Brien \U0001f600", merge=True) == 4
    assert gallery.identities() == {"O'Brien \U0001f600": 8}
    with pytest.raises(GalleryError, match="unknown identity 'new 1'"):
        gallery.rename("new 1", "x")
    with pytest.raises(GalleryError, match="needs a name"):
        gallery.rename("O'Brien \U0001f600", " ")


def test_erase_counts_and_completes_an_interrupted_erasure(
    gallery: Gallery, pictures: Path
) -> None:
    enrol_known(gallery, pictures, 3)
    receipt = gallery.erase("new 1")
    assert (receipt.num_templates, receipt.num_left) == (4, 8)
    assert "new 1" not in receipt.as_text() + json.dumps(receipt.as_json())
    with pytest.raises(GalleryError, match="did you mean new"):
        gallery.erase("new 1")
    # As a kill right after the deletion leaves it:
    hashes = gallery.store.find("identity = 'new 0'", columns=["hash", "vector"])
    gallery.store.delete(hashes["hash"].to_pylist())
    assert gallery.info().num_deletions == 1
    vector = np.asarray(hashes["vector"][0].as_py(), dtype=np.float32).tobytes()
    assert holds(gallery, vector)
    gallery.optimize()
    assert gallery.info().num_deletions == 0
    assert not holds(gallery, vector)


def holds(gallery: Gallery, needle: bytes) -> bool:
    files = (path for path in Path(gallery.place).rglob("*") if path.is_file())
    return any(needle in path.read_bytes() for path in files)


def test_optimize_measures_an_index(gallery: Gallery) -> None:
    rng = np.random.default_rng(0)
    emb = rng.normal(size=(600, gallery.dim)).astype(np.float32)
    gallery.enrol_embeddings(emb, [f"p{n // 3}" for n in range(600)],
                             fingerprint=gallery.fingerprint)  # fmt: skip
    result = gallery.optimize(partitions=8, target_recall=0.9)
    assert (result.search, result.partitions) == ("index", 8)
    assert result.recall >= 0.9
    assert 1 <= result.nprobes <= 8
    assert gallery.info().search == "index"
    assert gallery.info().num_unindexed == 0
    # The measured recall is that of the searches which users make.
    assert gallery.nearest(emb[5], 1)[0].identity == "p1"
    gallery.enrol_embeddings(emb[:1] + 9, ["late"], fingerprint=gallery.fingerprint)
    assert gallery.nearest(emb[0] + 9, 1)[0].identity == "late"  # Younger than the index.
    assert gallery.info().num_unindexed == 1
    assert gallery.optimize().search == "exact"
    for wrong in ({"partitions": 1025}, {"partitions": -1}, {"target_recall": 0.0}):
        with pytest.raises(GalleryError):
            gallery.optimize(**wrong)


def test_there_and_back_by_a_file(gallery: Gallery, pictures: Path, tmp_path: Path,
                                  model: Matcher) -> None:  # fmt: skip
    gallery.enrol(pictures, metadata={"side": "left"}, keep_thumbnails=True)
    file = tmp_path / "gallery.parquet"
    assert gallery.export(file) == 40
    assert {one.name for one in tmp_path.iterdir()} == {"gallery", "gallery.parquet", "new"}
    other = Gallery.create(tmp_path / "other", model)
    result = other.import_file(file)
    assert (result.num_new, result.num_identities) == (40, 8)
    both = [g.store.find().sort_by("hash") for g in (gallery, other)]
    # Making unit vectors of unit vectors may change a last bit.
    vectors = [np.array(rows["vector"].to_pylist()) for rows in both]
    np.testing.assert_allclose(*vectors, rtol=1e-6)
    assert both[0].drop_columns("vector").equals(both[1].drop_columns("vector"))
    assert other.import_file(file).num_known == 40
    foreign = Gallery.create(tmp_path / "foreign", make_matcher(tmp_path / "m", "grey"))
    with pytest.raises(GalleryError, match=rf"{gallery.fingerprint}.*{foreign.fingerprint}"):
        foreign.import_file(file)


def test_import_of_what_embed_wrote(gallery: Gallery, pictures: Path, tmp_path: Path,
                                    tiny_run: TinyRun) -> None:  # fmt: skip
    file = tmp_path / "vectors.parquet"
    twinlens.embed(tiny_run.run, pictures, out=file, quiet=True)
    assert gallery.import_file(file).num_new == 40
    # Told by the files' bytes, so that enrolling the pictures themselves adds nothing.
    assert gallery.enrol(pictures).num_known == 40
    plain = tmp_path / "plain.parquet"
    pq.write_table(pq.read_table(file).replace_schema_metadata(None), plain)
    with pytest.raises(GalleryError, match="no model's fingerprint"):
        gallery.import_file(plain)
    pq.write_table(pq.read_table(file).drop_columns(["identity"]), plain)
    with pytest.raises(GalleryError, match="no column identity"):
        gallery.import_file(plain)
    (tmp_path / "text.parquet").write_text("no")
    with pytest.raises(GalleryError, match="cannot read"):
        gallery.import_file(tmp_path / "text.parquet")


def test_rebuild_with_another_model(gallery: Gallery, pictures: Path, tmp_path: Path) -> None:
    gallery.enrol(pictures, metadata={"side": "left"})
    gallery.calibrate(fpir=0.1)
    late = Gallery.open(gallery.place)
    before = gallery.store.find(columns=["hash", "identity", "path", "time", "metadata"])
    other = make_matcher(tmp_path / "m", "grey")
    result = gallery.rebuild(other)
    assert (result.num_templates, result.missing) == (40, ())
    for stale in (gallery, late):  # Vectors of two models never meet, in one process neither.
        for _ in range(2):
            with pytest.raises(
                GalleryError, match="was rebuilt with another model since it was opened"
            ):
                stale.identify(pictures / "new 3" / "0.png")
    gallery = Gallery.open(gallery.place)
    assert (gallery.fingerprint, gallery.dim) == (other.fingerprint, 8)
    assert gallery.state().open_set is None  # Another model's distances.
    assert gallery.store.find(columns=before.column_names).equals(before)
    file = pictures / "new 3" / "0.png"
    assert gallery.search(file, k=1)[0].path == str(file)
    again = Gallery.open(gallery.place)
    assert again.matcher.fingerprint == other.fingerprint


def test_vectors_of_the_old_model_are_refused_after_a_rebuild(
    gallery: Gallery, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery.enrol_files("new 0", [pictures / "new 0" / "0.png"])
    late = Gallery.open(gallery.place)
    rows = rows_of_embeddings(
        late.core, np.ones((1, late.dim), dtype=np.float32), ["late"], late.fingerprint
    )
    gallery.rebuild(make_matcher(tmp_path / "m", "grey"))
    with pytest.raises(GalleryError, match=r"was changed meanwhile: its fingerprint"):
        late.core.insert(rows)
    with pytest.raises(GalleryError, match=r"was rebuilt with another model since it was opened"):
        late.identify_embedding(np.ones(late.dim, dtype=np.float32))
    with pytest.raises(GalleryError, match=r"was rebuilt with another model since it was opened"):
        late.calibrate(fpir=0.5)
    assert Gallery.open(gallery.place).identities() == {"new 0": 1}


def test_the_model_that_lies_in_a_gallery_must_be_its_own(
    gallery: Gallery, pictures: Path, tmp_path: Path
) -> None:
    other = make_matcher(tmp_path / "m", "grey")
    folder = Path(gallery.place) / "models" / gallery.fingerprint
    for name in ("model.json", "model.onnx"):
        shutil.copy(other.path / name, folder / name)
    with pytest.raises(
        GalleryError, match=rf"{other.fingerprint}, but the .*{gallery.fingerprint}"
    ):
        Gallery.open(gallery.place).enrol(pictures)
    assert len(gallery) == 0


def test_rebuild_lists_missing_pictures_and_drops_none_by_default(
    gallery: Gallery, pictures: Path, tmp_path: Path
) -> None:
    gallery.enrol(pictures)
    (pictures / "new 0" / "0.png").unlink()
    shutil.copy(pictures / "new 1" / "1.png", pictures / "new 1" / "0.png")
    old, other = gallery.fingerprint, make_matcher(tmp_path / "m", "grey")
    with pytest.raises(
        GalleryError, match=r"2 of 40 pictures .*is unchanged.*--drop-missing"
    ) as told:
        gallery.rebuild(other)
    assert "no such file" in str(told.value)
    assert "it was changed" in str(told.value)
    assert (gallery.fingerprint, len(gallery)) == (old, 40)
    result = gallery.rebuild(other, drop_missing=True)
    assert (result.num_templates, len(result.missing)) == (38, 2)
    assert len(Gallery.open(gallery.place)) == 38


def test_data_that_cannot_be_enrolled(gallery: Gallery, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        gallery.enrol(tmp_path / "nothing")
