"""One embedding and one verdict for a picture, however it is given."""

from __future__ import annotations

import dataclasses
import html
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TinyRun, save_networks
from PIL import Image

import twinlens
from twinlens.config import ModelSettings, PictureSettings
from twinlens.data.folders import read_table
from twinlens.data.pixel_cache import decode_table
from twinlens.errors import CalibrationError, ConfigError, DataError, ModelError, PictureError
from twinlens.match.answers import VerifyAnswer
from twinlens.match.matcher import Matcher
from twinlens.measure.calibration import Calibration
from twinlens.measure.probability import Platt
from twinlens.model.comparators import COMPARATORS, Network, make_comparator
from twinlens.model.encoder import Encoder


@pytest.fixture(scope="module")
def model(tiny_run: TinyRun) -> Matcher:
    return twinlens.load(tiny_run.run)


def make_matcher(
    folder: Path, color: str, comparator: str = "cosine", *, normalize: bool = True,
    zeros: bool = False,
) -> Matcher:  # fmt: skip
    """An untrained model that takes 12 x 10 pictures."""
    torch.manual_seed(0)
    picture = PictureSettings.model_validate({"size": (12, 10), "color": color})
    settings = ModelSettings.model_validate(
        {"backbone": "conv", "channels": (4,), "embedding": 8, "comparator": comparator,
         "normalize": normalize}
    )  # fmt: skip
    encoder = Encoder(settings, picture)
    if zeros:
        for weights in encoder.parameters():
            weights.data.zero_()
    networks = make_comparator(comparator, 8)
    if isinstance(networks, Network) and not zeros:
        # As training leaves it: a difference speaks against "same", so that few distances are 0.
        networks.out.weight.data.abs_().neg_()
    return Matcher(save_networks(folder, encoder, networks))


def grey(seed: int = 0, size: tuple[int, ...] = (20, 24)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


# Every form of one grey picture; the network's answer must not depend on it.
GREY_FORMS: dict[str, Callable[[np.ndarray, Path], object]] = {
    "path": lambda a, file: file,
    "str": lambda a, file: str(file),
    "Pillow L": lambda a, file: Image.fromarray(a),
    "Pillow RGB": lambda a, file: Image.fromarray(a).convert("RGB"),
    "Pillow RGBA": lambda a, file: Image.fromarray(a).convert("RGBA"),
    "Pillow file": lambda a, file: Image.open(file),
    "array (H, W)": lambda a, file: a,
    "array (H, W, 1)": lambda a, file: a[:, :, None],
    "array (H, W, 3)": lambda a, file: np.stack([a] * 3, axis=2),
    "array that is not contiguous": lambda a, file: np.asfortranarray(a),
    "array of floats": lambda a, file: a / 255,
    "array of float32": lambda a, file: (a / 255).astype(np.float32),
    "tensor (H, W)": lambda a, file: torch.from_numpy(a),
    "tensor (1, H, W)": lambda a, file: torch.from_numpy(a)[None],
    "tensor (3, H, W)": lambda a, file: torch.from_numpy(a)[None].repeat(3, 1, 1),
    "tensor of floats": lambda a, file: torch.from_numpy(a)[None].float() / 255,
    "tensor that learns": lambda a, file: (torch.from_numpy(a) / 255).requires_grad_(),
}


@pytest.mark.parametrize("form", GREY_FORMS)
@pytest.mark.parametrize("color", ["grey", "rgb"])
def test_a_grey_picture_in_every_form(form: str, color: str, tmp_path: Path) -> None:
    model, array, file = make_matcher(tmp_path / "model", color), grey(), tmp_path / "a.png"
    Image.fromarray(array).save(file)
    given = GREY_FORMS[form](array, file)
    expected = model.embed(file)
    assert expected.shape == (1, 8)
    assert expected.dtype == np.float32
    # Cast, since the type checker knows only the forms that are allowed.
    np.testing.assert_array_equal(model.pixels(given), model.pixels(file))  # type: ignore[arg-type]
    np.testing.assert_allclose(model.embed(given), expected, atol=1e-6)  # type: ignore[arg-type]
    assert model.distance(file, given) == 0  # type: ignore[arg-type]


def test_a_colour_picture_in_every_form(tmp_path: Path) -> None:
    model, array = make_matcher(tmp_path / "model", "rgb"), grey(1, (20, 24, 3))
    file = tmp_path / "a.png"
    Image.fromarray(array).save(file)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    forms = [file, Image.fromarray(array), array, array / 255, tensor, tensor / 255]
    for form in forms:
        np.testing.assert_array_equal(model.pixels(form), model.pixels(file))
    # The channels are in their order: another order is another picture.
    assert model.distance(file, array[:, :, ::-1]) > 0
    half = (tensor / 255).to(torch.bfloat16)
    assert model.distance(file, half) < 1e-3


def test_a_photograph_is_embedded_as_training_saw_it(tmp_path: Path) -> None:
    """A JPEG is read at a reduced size in training, so a path must be here too."""
    file = tmp_path / "photo" / "thing" / "a.jpg"
    file.parent.mkdir(parents=True)
    smooth = Image.fromarray(grey(2, (6, 8))).resize((640, 480), Image.Resampling.BICUBIC)
    smooth.save(file, quality=90)
    model = make_matcher(tmp_path / "model", "grey")
    table = read_table(tmp_path / "photo")
    trained = decode_table(table, model.picture, max_pixels=10**8, max_broken=0).pixels
    np.testing.assert_array_equal(model.pixels(file), trained)
    full = model.pixels(Image.open(file))
    assert 0 < np.abs(full.astype(int) - trained).max() <= 8


def test_lists(model: Matcher, tiny_run: TinyRun) -> None:
    files = sorted(tiny_run.data.rglob("*.png"))[:5]
    arrays = [np.asarray(Image.open(file)) for file in files]
    together, pixels = model.embed(files), model.pixels(files)
    assert together.shape == (5, 16)
    np.testing.assert_array_equal(model.pixels([str(file) for file in files]), pixels)
    np.testing.assert_array_equal(model.pixels(arrays), pixels)
    np.testing.assert_array_equal(model.pixels(tuple(arrays)), pixels)
    np.testing.assert_array_equal(model.pixels(np.array([str(f) for f in files])), pixels)
    np.testing.assert_array_equal(model.pixels(np.array(files, dtype=object)), pixels)
    mixed = [
        files[0],
        arrays[1],
        Image.open(files[2]),
        torch.from_numpy(arrays[3].copy()),
        files[4],
    ]
    np.testing.assert_array_equal(model.pixels(mixed), pixels)
    assert len(np.unique(together, axis=0)) == 5
    # No picture changes the embedding of another.
    for row, file in enumerate(files):
        np.testing.assert_array_equal(model.embed(file)[0], together[row])


def test_the_bytes_of_a_file_are_a_picture(model: Matcher, tiny_run: TinyRun) -> None:
    path = tiny_run.data / "thing 0" / "0.png"
    np.testing.assert_array_equal(model.embed(path.read_bytes()), model.embed(path))


def test_embeddings_have_length_one(model: Matcher, tiny_run: TinyRun) -> None:
    emb_ND = model.embed(sorted(tiny_run.data.rglob("*.png"))[:7])
    np.testing.assert_allclose(np.linalg.norm(emb_ND, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([], "no pictures"),
        ((), "no pictures"),
        (5, "found int"),
        ([None], "found NoneType"),
        (b"bytes", "not a picture|broken"),
        (np.zeros((8, 8, 2), np.uint8), "1, 3 or 4 channels"),
        (np.zeros((0, 8), np.uint8), "needs pixels"),
        (np.zeros((8, 8), np.int64), "int64"),
        (np.full((8, 8), 2.0), "values in"),
        (np.full((8, 8), np.nan), "values in"),
        (torch.zeros(8, 8, 3), "1, 3 or 4 channels"),
    ],
)
def test_what_is_no_picture(model: Matcher, wrong: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        model.embed(wrong)  # type: ignore[arg-type]


def test_a_file_that_does_not_open(model: Matcher, tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="no such file"):
        model.embed(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(PictureError, match=r"text\.png: not a picture"):
        model.verify(tmp_path / "text.png", np.zeros((8, 8), np.uint8))


@pytest.mark.parametrize("comparator", COMPARATORS)
def test_distance_of_a_picture_to_itself_is_exactly_zero(comparator: str, tmp_path: Path) -> None:
    model = make_matcher(tmp_path / "model", "grey", comparator)
    for seed in range(5):
        a, b = grey(seed), grey(seed + 100)
        assert model.distance(a, a.copy()) == 0
        # A learned one need not keep its distance from things that it calls the same.
        assert model.distance(a, b) > 0 or comparator == "network"
        assert model.distance(a, b) == model.distance(b, a)


def test_the_distance_is_that_of_the_embeddings(model: Matcher, tiny_run: TinyRun) -> None:
    files = sorted(tiny_run.data.rglob("*.png"))
    for a, b in ((0, 1), (0, 30), (12, 59)):
        emb_a, emb_b = (model.embed(files[row])[0].astype(np.float64) for row in (a, b))
        assert model.distance(files[a], files[b]) == pytest.approx(1 - emb_a @ emb_b, abs=1e-6)


def test_verdicts_turn_at_the_threshold(model: Matcher, tiny_run: TinyRun) -> None:
    """At a distance equal to the threshold a pair matches; just below it, it does not."""
    a, b = tiny_run.data / "thing 0" / "0.png", tiny_run.data / "thing 3" / "0.png"
    distance = model.distance(a, b)
    calibrated = model.require_calibration()
    for threshold, match in ((distance, True), (np.nextafter(distance, 0), False)):
        moved = Matcher(model.stored)
        moved.calibration = dataclasses.replace(calibrated, threshold=float(threshold))
        answer = moved.verify(a, b)
        assert (answer.match, answer.verdict) == (match, "same" if match else "different")
        assert (answer.distance, answer.threshold) == (distance, threshold)


def test_an_answer(model: Matcher, tiny_run: TinyRun) -> None:
    a, b = tiny_run.data / "thing 0" / "0.png", tiny_run.data / "thing 3" / "0.png"
    answer = model.verify(a, b)
    calibration = model.require_calibration()
    assert answer.target_far == calibration.target_far == 0.05
    assert answer.probability == float(calibration.probability(answer.distance))
    assert 0 < answer.probability < 1
    assert answer.probability <= model.verify(a, a).probability
    values = answer.as_json()
    later = ("reason", "quality", "in_domain", "domain_score", "domain_reason")
    plain = {name: value for name, value in values.items() if name not in later}
    assert VerifyAnswer(**plain) == dataclasses.replace(answer, quality=None, domain=None)
    assert values["in_domain"] is True
    with pytest.raises(dataclasses.FrozenInstanceError):
        answer.match = True  # type: ignore[misc]


def test_an_answer_explains_itself() -> None:
    near = VerifyAnswer("same", True, 0.25, 0.5, 0.01, 0.875, 0.9312)
    assert near.explain() == (
        "same: distance 0.2500 is within the threshold 0.5000, set to accept 1 % of impostor "
        "pairs; probability of a genuine pair 87.5 % (at even odds); cosine similarity 0.93"
    )
    far = VerifyAnswer("different", False, 0.75, 0.5, 0.01, 0.125, -0.5)
    assert far.explain().startswith("different: distance 0.7500 is beyond the threshold 0.5000,")
    assert far.explain().endswith("cosine similarity -0.50")
    assert near.reason is far.reason is None
    assert "reason" not in far.as_json()


def test_a_verdict_against_the_probability_has_a_reason() -> None:
    far = VerifyAnswer("different", False, 0.75, 0.5, 0.01, 0.65, -0.5)
    assert (
        far.as_json()["reason"]
        == far.reason
        == (
            "the same is more probable (65.0 % at even odds), but a threshold at this distance "
            "could accept more than 1 % of impostor pairs"
        )
    )
    assert far.explain().splitlines()[1] == f"reason: {far.reason}"
    near = VerifyAnswer("same", True, 0.25, 0.5, 0.001, 0.2, 0.9, prior=0.0001)
    assert near.reason is not None
    assert near.reason.startswith("different is more probable (80.0 % at a prior of 0.0001), but")
    assert near.reason.endswith("within the threshold for a FAR of 0.1 %")


def test_the_prior_moves_the_probability_and_not_the_verdict(
    model: Matcher, tiny_run: TinyRun
) -> None:
    a, b = tiny_run.data / "thing 0" / "0.png", tiny_run.data / "thing 3" / "0.png"
    even, rare = model.verify(a, b), model.verify(a, b, prior=0.01)
    assert (even.prior, rare.prior) == (0.5, 0.01)
    odds = [answer.probability / (1 - answer.probability) for answer in (even, rare)]
    assert odds[1] == pytest.approx(odds[0] / 99)
    assert rare.verdict == even.verdict
    for wrong in (0.0, 1.0, math.nan):
        with pytest.raises(ConfigError, match=r"must be in \(0, 1\), found"):
            model.verify(a, b, prior=wrong)


@pytest.mark.parametrize("comparator", COMPARATORS)
def test_similarity_is_the_cosine_for_every_comparator(comparator: str, tmp_path: Path) -> None:
    """By the definition; 1 exactly for a picture and itself."""
    model = make_matcher(tmp_path / "model", "grey", comparator)
    model.calibration = Calibration(0.5, 0.4, 0.6, 0.1, 9, 9, 3, Platt(1.0, 0.0), None, None)
    for seed in range(4):
        a, b = grey(seed), grey(seed + 100)
        x, y = (model.embed(picture)[0].astype(np.float64).tolist() for picture in (a, b))
        by_hand = sum(p * q for p, q in zip(x, y, strict=True)) / math.hypot(*x) / math.hypot(*y)
        answer = model.verify(a, b)
        assert answer.similarity == pytest.approx(by_hand, abs=1e-6)
        assert answer.distance == model.distance(a, b)
        assert model.verify(a, a.copy()).similarity == 1


def test_similarity_of_an_embedding_of_zeros_is_zero(tmp_path: Path) -> None:
    """A network whose units are all dead gives similarity 0, not NaN."""
    model = make_matcher(tmp_path / "model", "grey", "euclidean", normalize=False, zeros=True)
    model.calibration = Calibration(0.5, 0.4, 0.6, 0.1, 9, 9, 3, Platt(1.0, 0.0), None, None)
    assert not model.embed(grey()).any()
    answer = model.verify(grey(), grey(1))
    assert (answer.distance, answer.similarity) == (0, 0)


def test_error_of_an_uncalibrated_model_names_the_command(tmp_path: Path) -> None:
    model = make_matcher(tmp_path / "model", "grey")
    with pytest.raises(CalibrationError, match=r"twinlens calibrate .*model DATA"):
        model.verify(grey(), grey(1))
    assert model.distance(grey(), grey(1)) > 0
    assert "uncalibrated" in repr(model)


def test_loading_run_or_model_folder_is_the_same(tiny_run: TinyRun, tmp_path: Path) -> None:
    a, b = tiny_run.data / "thing 0" / "0.png", tiny_run.data / "thing 3" / "0.png"
    moved = shutil.copytree(tiny_run.model, tmp_path / "elsewhere")
    models = [twinlens.load(place) for place in (tiny_run.run, str(tiny_run.model), moved)]
    assert len({model.fingerprint for model in models}) == 1
    assert len({model.verify(a, b) for model in models}) == 1
    assert "calibrated, fingerprint" in repr(models[0])
    with pytest.raises(ModelError, match="nothing is there"):
        twinlens.load(tmp_path / "none")


def test_every_function_takes_a_loaded_model(
    model: Matcher, tiny_run: TinyRun, tmp_path: Path
) -> None:
    a, b = sorted(tiny_run.data.rglob("*.png"))[:2]
    assert twinlens.verify(model, a, b) == twinlens.verify(tiny_run.run, a, b)
    assert Matcher.of(model) is model
    assert Matcher.of(model, "cpu").on_cpu
    result = twinlens.evaluate(model, tiny_run.data, quiet=True)
    assert result.as_json() == twinlens.evaluate(tiny_run.run, tiny_run.data, quiet=True).as_json()
    out = tmp_path / "clusters"
    made = twinlens.cluster(model, tiny_run.data, out=out, threshold=0.1, labelled=True, quiet=True)
    assert made.pictures == 60
    shutil.copytree(tiny_run.model, tmp_path / "model")
    copy = twinlens.load(tmp_path / "model")
    assert twinlens.calibrate(copy, tiny_run.data, split="all", quiet=True).path == copy.path
    for wrong in (None, 3, model.stored):
        with pytest.raises(ModelError, match=r"what twinlens\.train and twinlens\.load return"):
            twinlens.verify(wrong, a, b)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="give DATA"):
        twinlens.cluster(model, out=tmp_path / "more")


def test_an_array_of_pictures_is_a_list_of_them(model: Matcher, tiny_run: TinyRun) -> None:
    pixels = [np.array(Image.open(file)) for file in sorted(tiny_run.data.rglob("*.png"))[:3]]
    emb_ND = model.embed(pixels)
    for pictures in (np.stack(pixels)[..., None], torch.from_numpy(np.stack(pixels))[:, None]):
        np.testing.assert_array_equal(model.embed(pictures), emb_ND)


def test_many_pairs_have_the_answers_of_each(
    model: Matcher, tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twinlens.match.matcher.AT_ONCE", 3)
    files = sorted(tiny_run.data.rglob("*.png"))[:4]
    pixels = [np.asarray(Image.open(file)) for file in files]
    pairs = [(a, b) for a in files for b in (*files, *pixels)]
    answers = model.verify_many(iter(pairs), prior=0.1)
    each = [model.verify(a, b, prior=0.1) for a, b in pairs]
    assert [answer.verdict for answer in answers] == [answer.verdict for answer in each]
    assert [answer.quality for answer in answers] == [answer.quality for answer in each]
    for name in ("distance", "probability", "similarity"):  # Equal but for rounding.
        found, expected = ([getattr(answer, name) for answer in part] for part in (answers, each))
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert [a.distance for (i, a) in enumerate(answers) if i // 8 == i % 4] == [0] * 8
    embedded = []
    embed = model.embed_pixels
    monkeypatch.setattr(
        model, "embed_pixels", lambda pixels: embedded.append(len(pixels)) or embed(pixels)
    )
    model.verify_many([(str(a), b) for a in files for b in files])
    assert sum(embedded) == len(files)
    assert model.verify_many([]) == []
    for wrong in ([(*files[:2], files[2])], files[:2], [str(files[0])]):
        with pytest.raises(DataError, match="item 1 is no pair of pictures"):
            model.verify_many(wrong)
    with pytest.raises(PictureError, match=r"nowhere\.png"):
        model.verify_many([(files[0], "nowhere.png")])
    with pytest.raises(PictureError, match="quality"):
        model.verify_many([(files[0], np.zeros((16, 16), np.uint8))], min_quality=0.5)


def test_a_comparison_is_drawn_as_by_show(
    model: Matcher, tiny_run: TinyRun, tmp_path: Path
) -> None:
    a, b = sorted(tiny_run.data.rglob("*.png"))[:2]
    twinlens.verify(model, a, b, show=tmp_path / "shown.png")
    drawn = model.compare(a, b)
    with Image.open(tmp_path / "shown.png") as shown:
        assert shown.tobytes() == drawn.tobytes()
    first, second = (np.array(Image.open(file)) for file in (a, b))
    assert model.compare(first, torch.from_numpy(second)[None]).tobytes() == drawn.tobytes()


def test_the_page_of_a_run(
    model: Matcher, tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = model.report()
    assert Path(page) == (tiny_run.run / "report.html").resolve()
    frame = re.fullmatch(r'<iframe srcdoc="([^"]*)" sandbox="([^"]*)"[^>]*></iframe>',
                         page._repr_html_())  # fmt: skip
    assert frame is not None
    assert html.unescape(frame[1]) == page.path.read_text(encoding="utf-8")
    assert "allow-same-origin" not in frame[2]
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    page.open()
    assert opened == [page.path.as_uri()]
    shutil.copytree(tiny_run.model, tmp_path / "model")
    with pytest.raises(ModelError, match=r"no report\.html beside the model"):
        twinlens.load(tmp_path / "model").report()
