"""What is chosen from the data, why, and that the user's word stands."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from twinlens.config import Settings
from twinlens.data.inspection import Statistics
from twinlens.errors import ConfigError
from twinlens.learn.auto import Choice, choose_levels, choose_settings
from twinlens.recipes import AUTO_KEYS, load_recipe

LEVELS = {"picture.mean", "picture.std"}


def statistics(**values: Any) -> Statistics:
    """Ten identities of twenty grey 28x28 drawings on white, unless said otherwise."""
    plain = {
        "num_pictures": 200, "num_identities": 10, "num_forged": 0, "num_singletons": 0,
        "min_pictures": 20, "median_pictures": 20.0, "max_pictures": 20, "median_height": 28,
        "median_width": 28, "grey": True, "border_level": 255, "border_share": 0.8,
    }  # fmt: skip
    return Statistics(**(plain | values))


PHOTOS = {"grey": False, "border_share": 0.1, "border_level": 90}
CHARACTERS = statistics(num_pictures=4000, num_identities=200, median_height=105, median_width=105)
SIGNATURES = statistics(
    num_pictures=1600, num_identities=60, num_forged=700, median_height=150, median_width=300
)


def chosen(
    data: Statistics, overrides: dict[str, Any] | None = None, closed: bool = False
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
    assert 16 <= max(settings.picture.size) <= 128
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


def test_forgeries_keep_their_proportions_and_details() -> None:
    settings, choices = chosen(SIGNATURES)
    assert settings.picture.fit == "pad"
    assert settings.picture.size == (64, 128)
    assert "150 x 300" in choices["picture.size"].why
    assert not settings.sampler.rotations
    assert settings.train.metric == "eer"


def test_turned_characters_are_new_ones_only_in_an_open_set() -> None:
    assert chosen(CHARACTERS)[0].sampler.rotations
    assert not chosen(CHARACTERS, closed=True)[0].sampler.rotations
    assert not chosen(CHARACTERS, {"picture.size": [32, 40]})[0].sampler.rotations


def test_asking_for_turns_makes_the_picture_square() -> None:
    settings, _ = chosen(SIGNATURES, {"sampler.rotations": True})
    assert settings.picture.size == (128, 128)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_batches_fit_the_identities_there_are(kind: str) -> None:
    data = KINDS[kind]
    settings, _ = chosen(data)
    turns = 4 if settings.sampler.rotations else 1
    assert 2 <= settings.sampler.labels_per_batch <= min(32, turns * data.num_identities)
    assert 2 <= settings.sampler.images_per_label <= max(2, data.median_pictures)


def test_the_users_word_stands() -> None:
    overrides = {
        "picture.size": [20, 24], "picture.color": "rgb", "model.backbone": "mlp",
        "model.channels": [33], "sampler.labels_per_batch": 5, "augment.flip": True,
        "optimizer.rate": 0.5, "train.steps": 3, "train.metric": "recall_at_1",
    }  # fmt: skip
    settings, choices = chosen(KINDS["digits"], overrides)
    assert not set(overrides) & set(choices)
    for key, value in overrides.items():
        section, field = key.split(".")
        found = getattr(getattr(settings, section), field)
        assert found == (tuple(value) if isinstance(value, list) else value)


def test_a_length_that_is_asked_for_leaves_no_steps() -> None:
    settings, choices = chosen(KINDS["digits"], {"train.epochs": 3.0})
    assert (settings.train.steps, settings.train.epochs) == (None, 3.0)
    assert "train.steps" not in choices


def test_a_network_of_timm_gets_what_it_was_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings, _ = chosen(KINDS["digits"], {"model.backbone": "test_resnet"})
    assert settings.model.pretrained
    assert settings.picture.size == (160, 160)
    assert settings.picture.color == "rgb"
    # Without a GPU the backbone rests, so no view may differ from another.
    assert settings.model.freeze == "all"
    assert settings.augment == Settings().augment
    assert not settings.sampler.rotations
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    tuned, _ = chosen(KINDS["digits"], {"model.backbone": "test_resnet"})
    assert tuned.model.freeze == "none"
    assert tuned.optimizer.rate < settings.optimizer.rate


def test_a_network_of_timm_from_random_weights_looks_at_the_data() -> None:
    overrides = {"model.backbone": "test_resnet", "model.pretrained": False}
    settings, _ = chosen(KINDS["digits"], overrides)
    assert settings.picture.size == (28, 28)
    assert settings.model.freeze == "none"
    local, choices = chosen(
        KINDS["digits"], {"model.backbone": "test_resnet", "model.weights": "w"}
    )
    assert not local.model.pretrained
    assert "w" in choices["model.pretrained"].why
    assert local.picture.size == (160, 160)


def test_an_unknown_backbone_is_told_before_any_work() -> None:
    with pytest.raises(ConfigError, match="unknown backbone 'resnt50'"):
        chosen(KINDS["digits"], {"model.backbone": "resnt50"})


def levels(pixels: np.ndarray, overrides: dict[str, Any]) -> tuple[Settings, dict[str, Choice]]:
    recipe = load_recipe("auto", overrides)
    settings, _ = choose_settings(recipe, KINDS["digits"], closed=False)
    settings, choices = choose_levels(recipe, settings, pixels)
    Settings.model_validate(settings.model_dump())  # The rules hold for what was measured, too.
    return settings, {choice.key: choice for choice in choices}


def test_levels_are_measured_on_the_pictures() -> None:
    pixels = np.random.default_rng(0).integers(0, 200, (30, 3, 9, 7), dtype=np.uint8)
    settings, choices = levels(pixels, {"picture.color": "rgb"})
    np.testing.assert_allclose(settings.picture.mean, pixels.mean((0, 2, 3)) / 255, atol=1e-4)
    np.testing.assert_allclose(settings.picture.std, pixels.std((0, 2, 3)) / 255, atol=1e-4)
    assert set(choices) == LEVELS
    assert "training pictures" in choices["picture.mean"].why
    blank, _ = levels(np.full((4, 1, 5, 5), 255, np.uint8), {})
    assert (blank.picture.mean, blank.picture.std) == ((1.0,), (0.001,))


def test_levels_of_pretrained_weights_and_of_the_user() -> None:
    pixels = np.zeros((2, 3, 4, 4), np.uint8)
    settings, choices = levels(pixels, {"model.backbone": "resnet18", "picture.std": [0.5]})
    assert settings.picture.mean == (0.485, 0.456, 0.406)
    assert settings.picture.std == (0.5,)
    assert set(choices) == {"picture.mean"}
    assert "pretrained" in choices["picture.mean"].why
    grey, _ = levels(pixels[:, :1], {"model.backbone": "resnet18", "picture.color": "grey"})
    assert grey.picture.mean == (0.449,)
