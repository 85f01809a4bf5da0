"""Each published system learns its task at small scale, by the command line.

A thing is a pattern in red, with random patterns in green and blue, so that an untrained network
confuses things. Signatures are curves; forgeries are the same curves with tremor. Errors are
measured on the test split.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from twinlens.cli.main import main
from twinlens.commands import train as train_job
from twinlens.config import without_effect
from twinlens.model.encoder import Encoder
from twinlens.model.networks import load_networks
from twinlens.model.stored import read_stored_model
from twinlens.recipes import load_recipe, recipe_names, recipe_values

FIXED = ("train.precision=float32", "train.channels_last=no", "train.target_far=0.1")
RANDOM_WEIGHTS = ("model.pretrained=false", "picture.size=[32,32]", "optimizer.rate=1e-3")
SCRIPTS = ("Brücke", "Εκκλησία", "Башня", "塔", "قلعة", 'O\'Hara, "Mühle" #1')

PUBLISHED = sorted(set(recipe_names()) - {"auto"})


@pytest.fixture(autouse=True)
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the report, which takes longer than these runs."""
    monkeypatch.setattr(train_job, "write_model_report", lambda path, *_: path.touch())


def thing(pattern: np.ndarray, rng: np.random.Generator, size: int = 64) -> Image.Image:
    """A picture of a thing: its coarse pattern in red, random patterns in green and blue."""
    layers = [pattern, *rng.integers(0, 256, (2, 4, 4), dtype=np.uint8)]
    sized = [Image.fromarray(layer).resize((size, size)) for layer in layers]
    return Image.merge("RGB", sized)


def draw_things(paths: Iterable[tuple[int, Path]], seed: int = 0) -> None:
    """Write a picture for each (number of the thing, path)."""
    rng = np.random.default_rng(seed)
    patterns = rng.integers(0, 256, (100, 4, 4), dtype=np.uint8)
    for number, path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        thing(patterns[number], rng).save(path)


def class_folders(top: Path, num: int, each: int) -> Iterator[tuple[int, Path]]:
    for number in range(num):
        for picture in range(each):
            yield number, top / f"thing {number}" / f"{picture}.png"


def counterparts(top: Path, num: int) -> Iterator[tuple[int, Path]]:
    for number in range(num):
        for side in ("left", "right"):
            yield number, top / side / f"{number}.png"


def given_splits(top: Path) -> Iterator[tuple[int, Path]]:
    for number, script in enumerate(SCRIPTS):
        for picture in range(14):
            split = "train" if picture < 10 else "test"
            yield number, top / split / script / f"{picture}.png"


def draw_gratings(top: Path, num: int, each: int) -> None:
    """Waves, 28 x 28, one direction per class; phase, contrast and brightness are random."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:28, :28]
    for number in range(num):
        angle = np.pi * number / num
        (top / str(number)).mkdir(parents=True)
        for picture in range(each):
            phase, contrast, level = rng.uniform(0, 6.28), rng.uniform(30, 60), rng.uniform(70, 185)
            wave = np.sin(1.6 * (np.cos(angle) * x + np.sin(angle) * y) + phase)
            pixels = (level + contrast * wave).astype(np.uint8)
            Image.fromarray(pixels).save(top / str(number) / f"{picture}.png")


def signature(points: np.ndarray, tremor: float, rng: np.random.Generator) -> Image.Image:
    """A curve through points (K, 2) on a page of 70 x 100, with tremor and a random grey level."""
    at, knots = np.linspace(0, 1, 120), np.linspace(0, 1, len(points))
    shaken = points + rng.normal(0, 1, points.shape)
    curve = np.stack([np.interp(at, knots, column) for column in shaken.T], axis=1)
    curve += rng.uniform(-12, 12, 2) + rng.normal(0, tremor, curve.shape)
    page = Image.new("L", (100, 70), 255)
    ImageDraw.Draw(page).line(
        [tuple(point) for point in curve], fill=int(rng.integers(0, 200)), width=2
    )
    return page


def draw_signatures(top: Path, writers: int, each: int) -> None:
    rng = np.random.default_rng(0)
    for writer in range(writers):
        points = np.stack([np.linspace(20, 80, 6), rng.uniform(16, 54, 6)], axis=1)
        for name, tremor in ((f"{writer:03}", 0.0), (f"{writer:03}_forg", 1.2)):
            (top / name).mkdir(parents=True)
            for picture in range(each):
                signature(points, tremor, rng).save(top / name / f"{picture}.png")


def learn(recipe: str, data: Path | str, out: Path, *more: str) -> tuple[float, dict[str, float]]:
    """Train by the command line.

    Returns:
        The validation EER before the first step, and the EERs on the test pictures.
    """
    words = [word for item in (*FIXED, *more) for word in ("--set", item)]
    code = main(["train", str(data), "--recipe", recipe, "--out", str(out), "--quiet", *words])
    assert code == 0
    with (out / "history.csv").open() as file:
        first = next(csv.DictReader(file))
    assert first["step"] == "0"
    verified = json.loads((out / "results.json").read_text())["verification"]
    errors = {"all": verified["eer"]["value"]}
    if "skilled" in verified:
        errors["skilled"] = verified["skilled"]["eer"]["value"]
    return 1 - float(first["metric"]), errors


# --- digits -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["digits-bce", "digits-contrastive"])
def test_digits_by_convolutions(recipe: str, tmp_path: Path) -> None:
    """The network averages local patterns over the picture, so the data are local patterns."""
    draw_gratings(tmp_path / "gratings", 6, 24)
    small = ("data.split=images", "train.steps=100", "train.validations=4", "sampler.batch=32",
             "optimizer.rate=1e-2")  # fmt: skip
    before, after = learn(recipe, tmp_path / "gratings", tmp_path / "run", *small)
    assert before > 0.3
    assert after["all"] < 0.5 * before


@pytest.mark.slow
def test_digits_mlp(tmp_path: Path) -> None:
    """A closed set, as published: new pictures of the same ten digits."""
    small = ("data.split=images", "train.epochs=3.0")
    before, after = learn("digits-mlp", "digits", tmp_path / "run", *small)
    assert before > 0.17
    assert after["all"] < 0.6 * before


@pytest.mark.slow
def test_faces_contrastive(tmp_path: Path) -> None:
    """Digits in place of faces, which are grey and centred too."""
    small = ("data.split=images", "picture.size=[12,12]", "train.steps=200")
    before, after = learn("faces-contrastive", "digits", tmp_path / "run", *small)
    assert before > 0.17
    assert after["all"] < 0.5 * before


# --- an ImageNet network, from random weights -----------------------------------------------------


@pytest.mark.slow
def test_faces_triplet(tmp_path: Path) -> None:
    """Only the head learns: the backbone stays unchanged, batch statistics included."""
    draw_things(class_folders(tmp_path / "things", 40, 8))
    small = (*RANDOM_WEIGHTS, "train.steps=120", "train.validations=2")
    before, after = learn("faces-triplet", tmp_path / "things", tmp_path / "run", *small)
    assert before > 0.3
    assert after["all"] < 0.5 * before
    learned = load_networks(read_stored_model(tmp_path / "run")).encoder
    torch.manual_seed(0)
    initial = Encoder(learned.model_settings, learned.picture)
    for name, tensor in learned.backbone.state_dict().items():
        assert (tensor == initial.backbone.state_dict()[name]).all(), name


@pytest.mark.slow
def test_lookalikes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw_things(counterparts(tmp_path / "pairs", 100))
    small = (*RANDOM_WEIGHTS, "train.steps=50", "train.validations=2")
    before, after = learn("lookalikes", tmp_path / "pairs", tmp_path / "run", *small)
    assert before > 0.3
    assert after["all"] < 0.7 * before
    capsys.readouterr()
    left, right = (str(tmp_path / "pairs" / side / "0.png") for side in ("left", "right"))
    main(["verify", str(tmp_path / "run"), left, right])
    assert "cosine similarity" in capsys.readouterr().out


@pytest.mark.slow
def test_landmarks(tmp_path: Path) -> None:
    """A test picture gets the class of the nearest training picture, a training picture its own."""
    draw_things(given_splits(tmp_path / "places"))
    small = (*RANDOM_WEIGHTS, "train.epochs=20.0", "train.validations=2")
    learn("landmarks", tmp_path / "places", tmp_path / "run", *small)
    answers = tmp_path / "answers.csv"
    words = ["evaluate", str(tmp_path / "run"), str(tmp_path / "places"), "--protocol", "nearest"]
    assert main([*words, "--answers", str(answers), "--quiet"]) == 0
    rows = read_rows(answers)
    assert {row["identity"] for row in rows} == set(SCRIPTS)
    right = [row["identity"] == row["nearest_identity"] for row in rows]
    assert len(right) == 24
    assert np.mean(right) > 0.6  # By chance 0.17.
    assert main([*words, "--on", "train", "--answers", str(answers), "--quiet"]) == 0
    rows = read_rows(answers)
    trained = [row for row in read_rows(tmp_path / "run" / "split.csv") if row["split"] == "train"]
    assert len(rows) == len(trained) > 40
    assert all(float(row["distance"]) == 0 for row in rows)
    assert all(row["path"] == row["nearest_path"] for row in rows)


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# --- characters, signatures, objects --------------------------------------------------------------


@pytest.mark.slow
def test_omniglot_eca(tmp_path: Path) -> None:
    """A learned comparator on unseen waves; fewer, narrower stages and a higher rate."""
    draw_gratings(tmp_path / "gratings", 30, 8)
    small = ("model.channels=[8,16]", "model.embedding=32", "train.steps=120",
             "sampler.batch=24", "optimizer.rate=3e-3")  # fmt: skip
    before, after = learn("omniglot-eca", tmp_path / "gratings", tmp_path / "run", *small)
    assert before > 0.3
    assert after["all"] < 0.6 * before


@pytest.mark.slow
def test_signet(tmp_path: Path) -> None:
    """Forgeries of unseen writers, on smaller pages and with the stride of the published code."""
    draw_signatures(tmp_path / "signs", 24, 8)
    small = ("picture.size=[70,100]", "model.stride=4", "sampler.batch=32", "train.validations=2")
    _, before = learn("signet", tmp_path / "signs", tmp_path / "untrained", *small,
                      "train.steps=1", "optimizer.rate=1e-9")  # fmt: skip
    _, after = learn("signet", tmp_path / "signs", tmp_path / "run", *small, "train.steps=90",
                     "optimizer.rate=3e-4")  # fmt: skip
    assert before["skilled"] > 0.25
    assert after["skilled"] < 0.6 * before["skilled"]


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["contrastive", "triplet"])
def test_cifar(loss: str, tmp_path: Path) -> None:
    draw_things(class_folders(tmp_path / "things", 10, 30))
    small = (f'loss.name="{loss}"', "train.epochs=4.0", "sampler.batch=32")
    before, after = learn("cifar", tmp_path / "things", tmp_path / "run", *small)
    assert before > 0.3
    assert after["all"] < 0.5 * before


# --- all of them ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_names_its_source_and_has_no_key_without_effect(name: str) -> None:
    values = recipe_values(name)
    first, *rest = values.pop("about").strip().splitlines()
    assert len(first) <= 100
    assert first.endswith(".")
    named = r"\b(19|20)\d\d\b|siamese_network_generator"
    assert re.search(named, " ".join(rest)), (
        "the year of the publication, or the name of the repository"
    )
    settings = load_recipe(name).settings()
    keys = [f"{section}.{key}" for section, fields in values.items() for key in fields]
    auto = {"loss.mining"}  # Read if the loss is overridden.
    assert without_effect(settings, sorted(set(keys) - auto)) == []


def test_names_of_the_published_systems() -> None:
    assert PUBLISHED == [
        "cifar", "digits-bce", "digits-contrastive", "digits-mlp", "faces-contrastive",
        "faces-triplet", "landmarks", "lookalikes", "omniglot-eca", "signet",
    ]  # fmt: skip
