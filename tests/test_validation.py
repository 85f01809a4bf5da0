"""The number that chooses the weights: what each metric counts."""

from __future__ import annotations

import numpy as np
import pytest

from twinlens.config import ModelSettings, PictureSettings, Settings, TrainSettings
from twinlens.learn import validation
from twinlens.learn.embed_batch import LabelledPixels
from twinlens.learn.validation import Validator
from twinlens.model.comparators import make_comparator
from twinlens.model.compute import Compute
from twinlens.model.encoder import Encoder

PICTURE = PictureSettings(size=(1, 1), color="grey", mean=(0.0,), std=(1.0,))
MODEL = ModelSettings(
    backbone="mlp", channels=(1,), embedding=1, normalize=False, comparator="euclidean"
)
# Two identities far apart, and forgeries that are as near as the genuine pictures to each other.
GREY = np.array([10, 20, 200, 210, 12, 18, 202, 208], dtype=np.uint8)
LABEL = np.array([0, 0, 1, 1, 0, 0, 1, 1])
FORGED = np.array([False] * 4 + [True] * 4)


def judged(metric: str, forged: np.ndarray = FORGED) -> float:
    settings = Settings(
        picture=PICTURE, model=MODEL, train=TrainSettings.model_validate({"metric": metric})
    )
    encoder = Encoder(MODEL, PICTURE)
    for layer in (encoder.backbone[1], encoder.head[0]):  # type: ignore[index]
        layer.weight.data.fill_(1)
        layer.bias.data.zero_()
    pool = LabelledPixels.of(GREY[:, None, None, None], LABEL, forged)
    validator = Validator.make(pool, settings, Compute("cpu"), encoder)
    assert validator is not None
    return validator(encoder, make_comparator("euclidean", 1))


def test_forgeries_alone_count_as_much_as_all_pairs() -> None:
    """Genuine pairs differ by 10; of all impostors 8 of 20 differ by less, of forgeries all 8."""
    everybody = judged("eer")
    assert 1 - everybody == pytest.approx(8 / 20)
    both = judged("eer_forged")
    assert 1 - both == pytest.approx((8 / 20 + 1) / 2)


def test_without_forgeries_it_is_the_plain_one() -> None:
    nobody = np.zeros(len(LABEL), dtype=bool)
    assert judged("eer_forged", nobody) == judged("eer", nobody)


def of_labels(label: np.ndarray, forged: np.ndarray | None = None) -> Validator:
    pixels = np.zeros((len(label), 1, 1, 1), dtype=np.uint8)
    forged = np.zeros(len(label), dtype=bool) if forged is None else forged
    settings = Settings(picture=PICTURE, model=MODEL)
    pool = LabelledPixels.of(pixels, label, forged)
    return Validator(pool, settings, Compute("cpu"), Encoder(MODEL, PICTURE))


@pytest.mark.parametrize(
    ("label", "identities", "each"),
    [
        (np.arange(400) % 200, 20, 2),  # Pairs: as many whole ones as there is room for.
        (np.arange(400) % 10, 10, 4),  # All identities, some pictures of each.
        (np.arange(400) % 40, 10, 4),  # At least four of each, if not of all.
    ],
)
def test_of_many_pictures_those_are_looked_at_that_make_pairs(
    monkeypatch: pytest.MonkeyPatch, label: np.ndarray, identities: int, each: int
) -> None:
    monkeypatch.setattr(validation, "MAX_PICTURES", 40)
    mixed = np.random.default_rng(0).permutation(label)
    actual = of_labels(mixed)
    _, num = np.unique(actual.label, return_counts=True)
    assert num.tolist() == [each] * identities
    assert actual.num_mated == 40


def test_pictures_that_make_no_genuine_pair_are_not_counted() -> None:
    # Three of 0, of which one is forged; 1 alone; 2 with a forgery only beside it.
    label = np.array([0, 0, 0, 1, 2, 2])
    forged = np.array([False, False, True, False, False, True])
    assert of_labels(label, forged).num_mated == 3
