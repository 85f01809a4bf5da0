"""The portfolio of candidates: which features a data set gets, and what may be fused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from twinlens.config import AugmentSettings, Member, ModelSettings, PictureSettings, Settings
from twinlens.learn.candidates import (
    MAX_FEATURES,
    MOST_CLASSES,
    feature_candidates,
    tapped_before,
    tuned,
)
from twinlens.learn.cross_validation import FeatureBank
from twinlens.learn.embed_batch import LabelledPixels
from twinlens.learn.features import FrozenPart
from twinlens.model.compute import Compute
from twinlens.model.encoder import Encoder
from twinlens.model.fused import FusedEncoder, fused_settings

GREY = PictureSettings(size=(28, 28), color="grey")
COLOR = PictureSettings(size=(64, 64), color="rgb", mean=(0.5,) * 3, std=(0.25,) * 3)
NETWORK = ModelSettings(backbone="resnet18", pretrained=True)


def test_descriptors_come_as_they_are_and_whitened() -> None:
    grey = feature_candidates(GREY, None, GREY)
    assert {(one.model.backbone, one.model.init) for one in grey.values()} == {
        (name, init) for name in ("pixels", "gradients") for init in ("own", "whitened")
    }
    color = feature_candidates(COLOR, None, COLOR)
    assert "colour histogram" in color
    assert "colour histogram, whitened" in color
    for one in color.values():  # Descriptors take pixels in [0, 1].
        assert set(one.picture.mean) == {0.0}
        assert set(one.picture.std) == {1.0}


def test_a_network_is_tapped_at_its_last_stages() -> None:
    every = feature_candidates(GREY, NETWORK, COLOR)
    taps = {name: one for name, one in every.items() if one.model.backbone == "resnet18"}
    assert {one.model.stage for one in taps.values()} == {None, 1, 2, 3, 4}
    assert all(one.picture == COLOR for one in taps.values())
    members = list(every.values())
    fused = FusedEncoder(fused_settings(members), COLOR, members)
    assert max(fused.widths[len(every) - len(taps) :]) <= MAX_FEATURES
    assert len(fused.networks) == 1 + len(every) - len(taps)


def test_identities_of_a_closed_set_are_classes_of_the_network() -> None:
    (name,) = set(feature_candidates(GREY, NETWORK, COLOR, 7)) - set(
        feature_candidates(GREY, NETWORK, COLOR)
    )
    model = feature_candidates(GREY, NETWORK, COLOR, 7)[name].model
    assert (model.classes, model.embedding, model.stage) == (True, 7, None)
    assert name not in feature_candidates(GREY, None, GREY, 7)
    assert name not in feature_candidates(GREY, NETWORK, COLOR, MOST_CLASSES + 1)


def test_small_pictures_have_no_late_stages() -> None:
    small = COLOR.model_copy(update={"size": (32, 32)})
    every = feature_candidates(small, NETWORK, small)
    assert {one.model.stage for one in every.values()} == {None, 1, 2, 3}


def member(**model: Any) -> Member:
    values = {"backbone": "resnet18", **model}
    return Member(model=ModelSettings.model_validate(values), picture=COLOR, weight=1.0)


@pytest.mark.parametrize(
    ("one", "layer", "expected"),
    [
        ({"stage": 3}, "layer4", True),
        ({"stage": 4}, "layer4", False),
        ({}, "layer4", False),
        ({"stage": 1}, "none", False),
        ({"backbone": "pixels"}, "none", True),
        ({"backbone": "resnet34"}, "none", True),
    ],
)
def test_features_before_the_tuned_layers_may_be_fused(
    one: dict[str, Any], layer: str, expected: bool
) -> None:
    assert tapped_before(member(**one), member(freeze=layer)) is expected
    assert tapped_before(member(**one), None)


def test_the_recipe_of_tuning() -> None:
    views = AugmentSettings(flip=True, rotate=10.0)
    settings = Settings(model=NETWORK, picture=COLOR, augment=views)
    on_cpu, on_gpu = tuned(settings, 70, on_gpu=False), tuned(settings, 70, on_gpu=True)
    assert (on_cpu.model.freeze, on_gpu.model.freeze) == ("layer4", "none")
    assert on_cpu.augment == AugmentSettings(flip=True)  # Frozen layers then run once a picture.
    assert on_gpu.augment == views
    for one in (on_cpu, on_gpu):
        assert one.model.init == "whitened"
        assert (one.train.steps, one.train.time_budget) == (70, None)


def test_inputs_of_the_tuned_layers_come_from_the_pass_that_gives_features(tmp_path: Path) -> None:
    """They equal those of the network to be tuned, in both views."""
    file = tmp_path / "weights.pth"
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet", num_classes=0).state_dict(), file)
    network = ModelSettings(backbone="test_resnet", weights=str(file))
    settings = Settings(model=network, picture=COLOR, augment=AugmentSettings(flip=True))
    pixels = np.random.default_rng(0).integers(0, 256, (40, 3, 64, 64), dtype=np.uint8)
    images = LabelledPixels.of(pixels, np.arange(40) // 4, np.zeros(40, bool))
    recipe, compute = tuned(settings, 10, on_gpu=False), Compute("cpu")
    members = feature_candidates(COLOR, network, COLOR)
    bank = FeatureBank.of(members, COLOR, images, compute, mirrored=True, tuned=recipe)
    assert bank.tuned is not None
    part = FrozenPart(Encoder(recipe.model, COLOR), compute)
    for view, stored in enumerate(bank.tuned.views):
        expected = part.compute_all(pixels, images.row, mirrored=bool(view))
        assert expected is not None
        assert stored.dtype == expected.dtype
        assert stored.float().numpy() == pytest.approx(expected.float().numpy(), abs=1e-3)
    frozen = FeatureBank.of(members, COLOR, images, compute, mirrored=True)
    assert frozen.tuned is None
    for name, features in frozen.features.items():
        assert torch.equal(features, bank.features[name])
