"""Choices from the data and their reasons; settings of the user stay."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from twinlens.config import AugmentSettings, Settings
from twinlens.data.inspection import TableStatistics
from twinlens.errors import ConfigError
from twinlens.learn import auto_facts
from twinlens.learn.auto import choose_levels, choose_settings, start_for
from twinlens.learn.records import Choice
from twinlens.model.pretrained import STARTS
from twinlens.recipes import AUTO_KEYS, load_recipe

LEVELS = {"picture.mean", "picture.std"}


def statistics(**values: Any) -> TableStatistics:
    """Ten identities of twenty grey 28x28 drawings on white, except for `values`."""
    plain = {
        "num_pictures": 200, "num_identities": 10, "num_forged": 0, "num_singletons": 0,
        "min_pictures": 20, "median_pictures": 20.0, "max_pictures": 20, "median_height": 28,
        "median_width": 28, "grey": True, "border_level": 255, "border_share": 0.8,
    }  # fmt: skip
    return TableStatistics(**(plain | values))


PHOTOS = {"grey": False, "border_share": 0.1, "border_level": 90}
CHARACTERS = statistics(num_pictures=4000, num_identities=200, median_height=105, median_width=105)
SIGNATURES = statistics(
    num_pictures=1600, num_identities=60, num_forged=700, median_height=150, median_width=300
)


def chosen(
    data: TableStatistics, overrides: dict[str, Any] | None = None, closed: bool = False
) -> tuple[Settings, dict[str, Choice]]:
    settings, choices = choose_settings(load_recipe("auto", overrides), data, closed=closed)
    return settings, {choice.key: choice for choice in choices}


KINDS = {
    "digits": statistics(),
    "photos": statistics(**PHOTOS, median_height=300, median_width=400),
    "characters": CHARACTERS,
    "signatures": SIGNATURES,
    "two pictures each": statistics(num_identities=2, num_pictures=4, median_pictures=2.0),
    "singletons": statistics(num_identities=150, num_singletons=140, median_pictures=1.0),
    "tiny": statistics(median_height=8, median_width=8),
    "one line": statistics(median_height=3, median_width=900),
    "huge": statistics(median_height=6000, median_width=4000, num_pictures=10**6),
}


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("closed", [False, True])
def test_every_key_is_chosen_once_with_a_reason(kind: str, closed: bool) -> None:
    settings, choices = chosen(KINDS[kind], closed=closed)
    assert set(choices) == AUTO_KEYS - LEVELS
    for choice in choices.values():
        assert choice.why
        section, field = choice.key.split(".")
        assert getattr(getattr(settings, section), field) == choice.value
    assert 16 <= max(settings.picture.size) <= 512
    assert Settings.model_validate(settings.model_dump(mode="json")) == settings


def test_grey_drawings_and_colour_photographs() -> None:
    drawings, _ = chosen(KINDS["digits"])
    photos, _ = chosen(KINDS["photos"])
    assert (drawings.picture.color, photos.picture.color) == ("grey", "rgb")
    assert (drawings.model.backbone, photos.model.backbone) == ("conv", "residual")
    assert (drawings.augment.flip, photos.augment.flip) == (False, True)
    assert drawings.augment.rotate > 0
    assert photos.augment.brightness > 0
    assert drawings.picture.size == (28, 28)
    assert drawings.picture.fill == 255
    height, width = photos.picture.size
    assert height / width == pytest.approx(3 / 4, abs=0.1)


def test_forged_handwriting_gets_the_strokes_backbone() -> None:
    settings, choices = chosen(SIGNATURES)
    assert settings.model.backbone == "strokes"
    assert (settings.model.freeze, settings.model.init) == ("all", "whitened")
    assert settings.augment == Settings().augment
    assert settings.picture.fit == "pad"
    assert settings.picture.size == (228, 300)  # Room for pictures of other proportions.
    assert "150 x 300" in choices["picture.size"].why
    assert not settings.sampler.rotations
    assert settings.sampler.forged_per_label == settings.sampler.images_per_label == 8
    assert settings.train.metric == "eer_forged"
    assert settings.loss.forged_weight == 8
    assert (settings.optimizer.weight_decay, settings.loss.temperature) == (0.5, 0.02)
    assert (settings.model.clip, chosen(SIGNATURES, {"model.init": "own"})[0].model.clip) == (3, 0)
    assert chosen(SIGNATURES, {"loss.name": "contrastive"})[0].loss.forged_weight == 1
    assert chosen(KINDS["digits"], {"model.backbone": "strokes"})[0].loss.forged_weight == 1
    upright, _ = chosen(replace(SIGNATURES, median_height=4000, median_width=900))
    assert upright.picture.size == (512, 384)


def test_another_backbone_for_forgeries_keeps_proportions_and_details() -> None:
    settings, choices = chosen(SIGNATURES, {"model.backbone": "conv"})
    assert settings.model.freeze == "none"
    assert settings.picture.fit == "pad"
    assert settings.picture.size == (64, 128)
    assert "150 x 300" in choices["picture.size"].why
    assert settings.sampler.forged_per_label == 2
    assert settings.train.metric == "eer_forged"
    assert settings.loss.forged_weight == 1


def test_photographs_with_forgeries_do_not_get_the_strokes_backbone() -> None:
    settings, _ = chosen(replace(SIGNATURES, border_share=0.1))
    assert settings.model.backbone == "conv"


def test_rotated_characters_are_further_identities_only_in_an_open_set() -> None:
    assert chosen(CHARACTERS)[0].sampler.rotations
    assert not chosen(CHARACTERS, closed=True)[0].sampler.rotations
    assert chosen(CHARACTERS)[0].model.shifts
    assert not chosen(CHARACTERS, closed=True)[0].model.shifts
    assert not chosen(CHARACTERS, {"picture.size": [256, 256]})[0].model.shifts
    assert chosen(CHARACTERS)[0].loss.temperature == 0.05
    assert chosen(KINDS["digits"])[0].loss.temperature == 0.1
    assert not chosen(CHARACTERS, {"picture.size": [32, 40]})[0].sampler.rotations


def test_rotations_set_by_the_user_make_the_picture_square() -> None:
    overrides = {"sampler.rotations": True, "model.backbone": "conv"}
    settings, _ = chosen(SIGNATURES, overrides)
    assert settings.picture.size == (128, 128)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_batches_fit_the_identities(kind: str) -> None:
    data = KINDS[kind]
    settings, _ = chosen(data)
    turns = 4 if settings.sampler.rotations else 1
    assert 2 <= settings.sampler.labels_per_batch <= min(32, turns * data.num_identities)
    assert 2 <= settings.sampler.images_per_label <= max(2, data.median_pictures)


def test_settings_of_the_user_stay() -> None:
    overrides = {
        "picture.size": [20, 24], "picture.color": "rgb", "model.backbone": "mlp",
        "model.channels": [33], "sampler.labels_per_batch": 5, "augment.flip": True,
        "optimizer.rate": 0.5, "train.steps": 3, "train.metric": "recall_at_1",
    }  # fmt: skip
    settings, choices = chosen(KINDS["digits"], overrides)
    assert not set(overrides) & set(choices)
    for key, value in overrides.items():
        section, field = key.split(".")
        kept = getattr(getattr(settings, section), field)
        assert kept == (tuple(value) if isinstance(value, list) else value)


def test_a_length_set_by_the_user_replaces_steps() -> None:
    settings, choices = chosen(KINDS["digits"], {"train.epochs": 3.0})
    assert (settings.train.steps, settings.train.epochs) == (None, 3.0)
    assert "train.steps" not in choices


def test_a_pretrained_backbone_gets_the_input_of_its_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings, _ = chosen(CHARACTERS, {"model.backbone": "test_resnet"})
    assert settings.model.pretrained
    assert settings.picture.size == (160, 160)
    assert settings.picture.color == "rgb"
    # Without a GPU the backbone is frozen, so there is one view of each picture.
    assert settings.model.freeze == "all"
    assert settings.augment == Settings().augment
    assert not settings.sampler.rotations
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    tuned, _ = chosen(CHARACTERS, {"model.backbone": "test_resnet"})
    assert tuned.model.freeze == "none"
    assert tuned.picture.size == (160, 160)
    assert (tuned.model.stage, tuned.model.init) == (None, "own")
    beside, _ = chosen(CHARACTERS, {"model.backbone": "test_resnet", "train.device": "cpu"})
    assert beside.model.freeze == "all"
    random, _ = chosen(CHARACTERS, {"model.backbone": "test_resnet", "model.pretrained": False})
    assert tuned.optimizer.rate < random.optimizer.rate


LITE0 = {"model.backbone": "tf_efficientnet_lite0", "model.weights": "w"}


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    ("pixels", "size", "stage", "grid"),
    [
        (8, 64, 2, 4),  # At least two cells of the whole network's last map.
        (28, 64, 2, 4),  # Stride 8 at 64 pixels is 8 x 8 cells, and 32 at 224 is 7 x 7.
        (33, 96, 3, 3),  # 16 is nearer than 8 to 32 * 96 / 224 = 13.7.
        (60, 128, 3, 4),
        (90, 192, None, 1),  # 32 is nearest to 27: the whole network.
        (97, 224, None, 1),
        (500, 224, None, 1),
    ],
)
def test_small_pictures_get_a_small_input_and_early_stages(
    pixels: int, size: int, stage: int | None, grid: int
) -> None:
    data = statistics(**PHOTOS, median_height=pixels, median_width=pixels - 5)
    settings, choices = chosen(data, LITE0)
    assert settings.picture.size == (size, size)
    assert (settings.model.stage, settings.model.grid) == (stage, grid)
    if stage is not None:
        assert f"size of {size}, not 224" in choices["model.stage"].why
        wanted, _ = chosen(data, LITE0 | {"picture.size": [224, 224]})
        assert wanted.model.stage is None


@pytest.mark.usefixtures("no_gpu")
def test_a_backbone_with_maps_of_one_stride_stays_whole() -> None:
    settings, _ = chosen(KINDS["digits"], {"model.backbone": "test_vit", "model.weights": "w"})
    assert settings.picture.size == (160, 160)
    assert (settings.model.stage, settings.model.grid) == (None, 1)


@pytest.mark.usefixtures("no_gpu")
def test_few_pictures_get_a_whitened_head_and_few_steps() -> None:
    photos = statistics(**PHOTOS)
    few, _ = chosen(photos, LITE0)
    many, _ = chosen(statistics(**PHOTOS, num_pictures=10_000), LITE0)
    assert (few.model.init, many.model.init) == ("whitened", "own")
    assert few.train.steps is not None
    assert many.train.steps is not None
    assert few.train.steps < many.train.steps
    assert few.optimizer.rate < many.optimizer.rate
    assert few.augment.flip
    assert chosen(photos, LITE0 | {"model.freeze": "none"})[0].model.init == "own"
    assert chosen(photos, LITE0 | {"model.head": [64]})[0].model.init == "own"
    assert not chosen(KINDS["digits"], LITE0)[0].augment.flip
    large, _ = chosen(statistics(**PHOTOS, median_height=600, median_width=400), LITE0)
    assert (large.model.init, large.augment.flip) == ("own", False)


def test_a_timm_backbone_with_random_weights_gets_the_size_of_the_data() -> None:
    overrides = {"model.backbone": "test_resnet", "model.pretrained": False}
    settings, _ = chosen(KINDS["digits"], overrides)
    assert settings.picture.size == (28, 28)
    assert settings.model.freeze == "none"
    local, choices = chosen(
        KINDS["digits"], {"model.backbone": "test_resnet", "model.weights": "w"}
    )
    assert not local.model.pretrained
    assert "w" in choices["model.pretrained"].why
    assert local.picture.size == (64, 64)


def test_an_unknown_backbone_is_an_error() -> None:
    with pytest.raises(ConfigError, match="unknown backbone 'resnt50'"):
        chosen(KINDS["digits"], {"model.backbone": "resnt50"})


def levels(pixels: np.ndarray, overrides: dict[str, Any]) -> tuple[Settings, dict[str, Choice]]:
    recipe = load_recipe("auto", overrides)
    settings, _ = choose_settings(recipe, KINDS["digits"], closed=False)
    settings, choices = choose_levels(recipe, settings, pixels)
    Settings.model_validate(settings.model_dump())  # The limits hold for measured levels, too.
    return settings, {choice.key: choice for choice in choices}


def test_levels_of_the_training_pictures() -> None:
    pixels = np.random.default_rng(0).integers(0, 200, (30, 3, 9, 7), dtype=np.uint8)
    settings, choices = levels(pixels, {"picture.color": "rgb"})
    np.testing.assert_allclose(settings.picture.mean, pixels.mean((0, 2, 3)) / 255, atol=1e-4)
    np.testing.assert_allclose(settings.picture.std, pixels.std((0, 2, 3)) / 255, atol=1e-4)
    assert set(choices) == LEVELS
    assert "training pictures" in choices["picture.mean"].why
    blank, _ = levels(np.full((4, 1, 5, 5), 255, np.uint8), {})
    assert (blank.picture.mean, blank.picture.std) == ((1.0,), (0.001,))


def test_levels_of_pretrained_weights_and_levels_of_the_user() -> None:
    pixels = np.zeros((2, 3, 4, 4), np.uint8)
    settings, choices = levels(pixels, {"model.backbone": "resnet18", "picture.std": [0.5]})
    assert settings.picture.mean == (0.485, 0.456, 0.406)
    assert settings.picture.std == (0.5,)
    assert set(choices) == {"picture.mean"}
    assert "pretrained" in choices["picture.mean"].why
    grey, _ = levels(pixels[:, :1], {"model.backbone": "resnet18", "picture.color": "grey"})
    assert grey.picture.mean == (0.449,)


@pytest.mark.parametrize(
    ("closed", "size", "begins"), [(True, 300, True), (True, 32, False), (False, 32, True)]
)
def test_many_photographs_begin_with_weights_unless_small_and_of_a_closed_set(
    closed: bool, size: int, begins: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWINLENS_WEIGHTS", str(tmp_path))
    (tmp_path / f"{STARTS[0].name}.safetensors").touch()
    many = statistics(**PHOTOS, num_pictures=8000, median_height=size, median_width=size)
    assert (start_for(load_recipe("auto"), many, closed=closed) is not None) == begins


def test_a_closed_set_with_many_pictures_is_learned_as_classes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(auto_facts, "has_bfloat16", lambda device: True)
    garments = statistics(num_pictures=40_000, num_identities=10, median_pictures=4000.0)
    settings, choices = chosen(garments, closed=True)
    assert (settings.loss.name, settings.model.classes, settings.model.embedding) == (
        "classes", True, 10,
    )  # fmt: skip
    assert "4000 pictures each" in choices["model.classes"].why
    assert settings.augment == AugmentSettings(translate=1 / 16)
    short, _ = chosen(garments, {"train.time_budget": 30.0}, closed=True)
    assert short.augment == AugmentSettings()
    assert (settings.model.shifts, short.model.shifts) == (True, False)
    for settings, _ in (
        chosen(garments),  # An open set.
        chosen(garments, {"loss.name": "supcon"}, closed=True),
        chosen(statistics(median_pictures=99.0), closed=True),
        chosen(statistics(median_pictures=500.0, num_forged=9), closed=True),
        chosen(garments, {"model.embedding": 9}, closed=True),
        chosen(garments, {"sampler.rotations": True}, closed=True),
        chosen(statistics(num_identities=101, median_pictures=500.0), closed=True),
    ):
        assert (settings.loss.name, settings.model.classes) == ("supcon", False)


@pytest.mark.parametrize(
    ("seconds", "fast", "channels", "convolutions"),
    [
        (None, True, (64, 256, 256), 2), (600.0, True, (64, 256, 256), 2),
        (60.0, True, (32, 64, 128), 2), (20.0, True, (32, 64, 128), 1),
        (600.0, False, (32, 64, 128), 2), (60.0, False, (32, 64, 128), 1),
    ],
)  # fmt: skip
def test_the_network_of_a_closed_set_follows_the_time(
    seconds: float | None, fast: bool, channels: tuple[int, ...], convolutions: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(auto_facts, "has_bfloat16", lambda device: fast)
    garments = statistics(num_pictures=40_000, num_identities=10, median_pictures=4000.0)
    for data in (garments, replace(garments, **PHOTOS)):
        budget = {} if seconds is None else {"train.time_budget": seconds}
        model = chosen(data, budget, closed=True)[0].model
        assert (model.backbone, model.channels, model.convolutions) == (
            "conv", channels, convolutions,
        )  # fmt: skip
        assert model.pool == ("average" if convolutions > 1 else "own")


def test_photographs_that_learn_mirrored_are_embedded_mirrored_too() -> None:
    for closed in (False, True):
        assert chosen(KINDS["photos"], closed=closed)[0].model.mirrored
        assert not chosen(CHARACTERS, closed=closed)[0].model.mirrored
    assert not chosen(KINDS["photos"], {"augment.flip": False})[0].model.mirrored
    assert not chosen(KINDS["photos"], {"model.mirrored": False})[0].model.mirrored


def test_many_identities_get_muon() -> None:
    assert chosen(CHARACTERS)[0].optimizer.name == "muon"
    assert chosen(KINDS["digits"])[0].optimizer.name == "adamw"
    assert chosen(CHARACTERS, {"optimizer.name": "sgd"})[0].optimizer.name == "sgd"


def test_classes_are_not_rotated() -> None:
    settings, _ = chosen(CHARACTERS, {"loss.name": "classes"})
    assert (settings.model.embedding, settings.sampler.rotations) == (200, False)


def test_augmentation_excludes_whitening() -> None:
    settings, _ = chosen(SIGNATURES, {"augment.rotate": 5.0})
    assert (settings.model.backbone, settings.model.init) == ("strokes", "own")
