from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

import twinlens
from twinlens.commands.prepare import choose_run_settings
from twinlens.data.folders import read_table
from twinlens.data.splits import assign_splits
from twinlens.errors import ConfigError
from twinlens.learn.auto import choose_levels
from twinlens.model.drawing_start import drawing_start_folder, read_start
from twinlens.model.encoder import Encoder
from twinlens.model.pretrained import find_drawing_start
from twinlens.model.stored import read_stored_model
from twinlens.recipes import load_recipe

QUICK = {
    "train.steps": 2, "train.validations": 1, "model.channels": (8, 8), "picture.size": (16, 16),
}  # fmt: skip


def draw(folder, *, ground=255, ink=0, seed=0, identities=8):
    """Drawings: lines between points that an identity shares, on an even ground."""
    rng = np.random.default_rng(seed)
    for name in range(identities):
        (folder / str(name)).mkdir(parents=True)
        row, column = rng.integers(2, 12, 2)
        for number in range(4):
            pixels = np.full((20, 20), ground, np.uint8)
            pixels[row : row + 2, number : number + 10] = ink
            pixels[2 + number : 12, column] = ink
            Image.fromarray(pixels).save(folder / f"{name}/{number}.png")
    return folder


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """The drawings of a pretraining, and the cache that holds its start."""
    top = tmp_path_factory.mktemp("pretrained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TWINLENS_CACHE", str(top / "cache"))
        data = draw(top / "drawings")
        folder = twinlens.pretrain(data, out=top / "run", settings=QUICK, quiet=True)
        assert folder == drawing_start_folder()
    return top


@pytest.fixture
def started(pretrained, own_cache):
    """The same in the cache of one test."""
    shutil.copytree(pretrained / "cache/starts", own_cache / "starts")
    return pretrained


def settings_for(folder, overrides=None):
    table = assign_splits(read_table(folder), mode="identities", fractions=(0.6, 0.4, 0), seed=0)
    recipe = load_recipe("auto", overrides)
    settings, choices = choose_run_settings(recipe, table)
    blank = np.zeros((1, settings.picture.channels, 16, 16), np.uint8)
    settings, levels = choose_levels(recipe, settings, blank)
    return settings, {choice.key: choice.why for choice in [*choices, *levels]}


def test_a_start_is_the_backbone_of_the_run(pretrained):
    start = read_start(pretrained / "cache/starts/drawings")
    assert start is not None
    assert start.record.identities == 8
    assert start.record.trained_on == "32 drawings of 8 identities"
    model = read_stored_model(pretrained / "run").description
    assert (start.model, start.picture) == (model.model, model.picture)
    assert model.origin is not None
    assert start.record.fingerprint == model.origin.fingerprint
    run = load_file(pretrained / "run/model/model.safetensors")
    for name, tensor in load_file(pretrained / "cache/starts/drawings/weights.safetensors").items():
        assert (tensor == run[f"encoder.backbone.{name}"]).all()


def test_drawings_begin_with_the_start(started, tmp_path):
    settings, why = settings_for(draw(tmp_path / "other", seed=1))
    start = read_start(drawing_start_folder())
    assert start is not None
    for key in ("backbone", "channels"):
        assert getattr(settings.model, key) == getattr(start.model, key)
    for key in ("size", "color", "mean", "std"):
        assert getattr(settings.picture, key) == getattr(start.picture, key)
    assert "32 drawings of 8 identities" in why["model.weights"]
    weights = load_file(drawing_start_folder() / "weights.safetensors")
    for name, tensor in Encoder(settings.model, settings.picture).backbone.state_dict().items():
        assert (tensor == weights[name]).all()


@pytest.mark.parametrize(
    "overrides",
    [
        {"model.pretrained": False},
        {"model.backbone": "residual"},
        {"model.kernel": 5},
        {"picture.size": (20, 20)},
        {"picture.color": "rgb"},
    ],
)
def test_settings_of_the_user_stay(started, tmp_path, overrides):
    settings, _ = settings_for(draw(tmp_path / "other"), overrides)
    assert settings.model.weights is None


def test_other_pictures_learn_from_nothing(started, tmp_path):
    inverted, _ = settings_for(draw(tmp_path / "inverted", ground=0, ink=255))
    assert inverted.model.weights is None
    assert find_drawing_start(0) is None
    assert find_drawing_start(255) is not None


@pytest.mark.slow
def test_the_model_and_the_log_name_the_pretraining(started, tmp_path, capfd):
    settings = {"train.steps": 2, "train.validations": 1, "train.candidates": False}
    twinlens.train(started / "drawings", out=tmp_path / "run", settings=settings)
    record = read_stored_model(tmp_path / "run").description.start
    assert record is not None
    assert record.identities == 8
    err = capfd.readouterr().err
    assert "held-out pictures belong to the pretraining" in err


def test_photographs_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    for name in "abcdef":
        (tmp_path / f"photos/{name}").mkdir(parents=True)
        for number in range(3):
            pixels = rng.integers(0, 256, (20, 20, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"photos/{name}/{number}.png")
    with pytest.raises(ConfigError, match="shows photographs"):
        twinlens.pretrain(tmp_path / "photos")
    assert not drawing_start_folder().exists()


@pytest.mark.parametrize("damage", ["weights", "description", "newer"])
def test_a_damaged_start_is_explained(started, damage):
    folder = drawing_start_folder()
    if damage == "weights":
        (folder / "weights.safetensors").write_bytes(b"")
    elif damage == "description":
        (folder / "start.json").write_text("{")
    else:
        values = json.loads((folder / "start.json").read_text()) | {"format": 2}
        (folder / "start.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"is damaged: .*twinlens pretrain"):
        find_drawing_start(255)
