"""The domain of a calibration, against scikit-learn, simulated identities and pictures by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TinyRun
from PIL import Image
from sklearn.covariance import LedoitWolf

import twinlens
from twinlens.errors import ModelError
from twinlens.measure.domain import Domain, DomainCheck, _density, fit_domain
from twinlens.measure.picture_statistics import STATISTICS, picture_statistics

NAMES = list(STATISTICS)


def drawn_pictures(num: int, identities: int, seed: int = 0, shape: Any = (3, 24, 20)) -> Any:
    """Pictures of soft patches, whose levels belong to their identity, and the identities."""
    rng = np.random.default_rng(seed)
    identity = np.repeat(np.arange(identities), num // identities)
    level = rng.normal(128, 12, identities)[identity]
    coarse = rng.normal(0, 30, (len(identity), shape[0], 6, 5))
    soft = coarse.repeat(4, 2).repeat(4, 3) + rng.normal(0, 4, (len(identity), *shape))
    pixels = np.clip(level[:, None, None, None] + soft, 0, 255).astype(np.uint8)
    return pixels, identity


def test_statistics_by_hand() -> None:
    flat = np.full((1, 3, 16, 16), 90, np.uint8)
    halves = np.zeros((1, 3, 16, 16), np.uint8)
    halves[..., 8:] = 100  # A vertical edge.
    flat_S, halves_S = (dict(zip(NAMES, picture_statistics(x)[0], strict=True))
                        for x in (flat, halves))  # fmt: skip
    assert flat_S["brightness"] == pytest.approx(90, abs=0.01)
    assert flat_S["level 1"] == flat_S["level 99"]
    assert flat_S["sharpness 0"] == flat_S["contrast"] == pytest.approx(0, abs=1e-4)
    assert flat_S["saturation"] == 0
    assert flat_S["flat 0"] == 1
    assert halves_S["brightness"] == pytest.approx(50, abs=0.01)
    assert halves_S["contrast"] == pytest.approx(np.log(51), abs=1e-4)
    # One column in 16 has a difference of 100; the Laplacian has two.
    assert halves_S["across 0"] == pytest.approx(np.log1p(100 / 16), abs=1e-4)
    assert halves_S["down 0"] == 0
    assert (halves_S["left"], halves_S["top right"]) == pytest.approx((-50, 50), abs=0.01)
    assert halves_S["sharpness 0"] == pytest.approx(np.log1p(200 / 16), abs=1e-4)
    assert halves_S["flat 0"] == pytest.approx(15 / 16)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 3), (3, 9, 30)])
def test_statistics_of_any_shape_are_those_of_each_picture_alone(shape: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, *shape)).astype(np.uint8)
    stats = picture_statistics(pixels)
    assert stats.shape == (5, len(NAMES) - (9 if shape[0] == 1 else 0))
    assert np.isfinite(stats).all()
    alone = np.concatenate([picture_statistics(pixels[row : row + 1]) for row in range(5)])
    np.testing.assert_allclose(stats, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num", [20, 400])
def test_the_distance_is_that_of_scikit_learn(num: int) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(num, 30)) @ rng.normal(size=(30, 30))
    z = (x - x.mean(0)) / x.std(0)
    known = LedoitWolf(assume_centered=True).fit(z)
    expected = np.sqrt(known.mahalanobis(z) / 30)
    # All but one direction are kept, so nothing is approximated.
    np.testing.assert_allclose(_density(x, np.zeros(30)).distance(x), expected, rtol=0.02)


def test_pictures_of_new_identities_are_inside() -> None:
    """At most 1 % is the aim, on average over calibrations with few identities."""
    flagged = []
    for seed in range(6):
        pixels, identity = drawn_pictures(1000, 50, seed)
        stats = picture_statistics(pixels)
        emb = np.random.default_rng(seed).normal(size=(50, 8))[identity]
        emb = emb + np.random.default_rng(seed + 99).normal(0, 0.5, emb.shape)
        known = identity < 8
        domain = fit_domain(emb[known], identity[known], stats[known], identity[known])
        assert domain is not None
        flagged.append((domain.scores(emb[~known], stats[~known]) > 1).mean())
    assert np.mean(flagged) <= 0.01


@pytest.fixture(scope="module")
def domain() -> Domain:
    pixels, identity = drawn_pictures(300, 15)
    emb = np.random.default_rng(0).normal(size=(300, 8))
    known = fit_domain(emb, identity, picture_statistics(pixels), identity)
    assert known is not None
    return known


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda x: x // 4, "darker"),
        (lambda x: np.minimum(x.astype(int) + 120, 255), "brighter"),
        (lambda x: x.mean((2, 3), keepdims=True).repeat(24, 2).repeat(20, 3), "even areas"),
        (lambda x: x.mean(1, keepdims=True).repeat(3, 1), "colour"),
    ],
)
def test_a_picture_outside_has_a_reason(domain: Domain, change: Any, word: str) -> None:
    pixels, _ = drawn_pictures(20, 5, seed=7)
    emb = np.random.default_rng(3).normal(size=(20, 8))
    inside = domain.check(emb, picture_statistics(pixels))
    assert sum(check.in_domain for check in inside) >= 19
    checks = domain.check(emb, picture_statistics(change(pixels).astype(np.uint8)))
    assert sum(check.in_domain for check in checks) <= 1
    assert any(check.reason is not None and word in check.reason for check in checks)
    summary = domain.summary(emb, picture_statistics(change(pixels).astype(np.uint8)))
    assert (summary.in_domain, summary.num_pictures) == (False, 20)
    assert summary.score > 1
    assert summary.outside > 0.9
    assert summary.reason
    assert "twinlens calibrate" in summary.as_text()


def test_an_embedding_far_away_is_outside_by_its_features(domain: Domain) -> None:
    pixels, _ = drawn_pictures(10, 5, seed=7)
    (check, *_) = domain.check(np.full((10, 8), 9.0), picture_statistics(pixels))
    assert not check.in_domain
    assert check.reason == "unlike them in its features"
    assert DomainCheck.as_json([DomainCheck(True, 0.2, None), check]) == {
        "in_domain": False, "domain_score": check.score, "domain_reason": check.reason,
    }  # fmt: skip


def test_a_domain_survives_json(domain: Domain) -> None:
    text = json.dumps(domain.as_json())
    assert len(text) < 200_000
    again = Domain.from_json(json.loads(text))
    assert again is not None
    pixels, _ = drawn_pictures(20, 5, seed=8)
    emb, stats = np.random.default_rng(4).normal(size=(20, 8)), picture_statistics(pixels)
    np.testing.assert_array_equal(again.scores(emb, stats), domain.scores(emb, stats))


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values["pictures"].update(mean="AAAA"),
        lambda values: values["pictures"].update(mean="no base64"),
        lambda values: values["pictures"].update(limit=0.0),
        lambda values: values["embeddings"].update(variance=values["embeddings"]["mean"][:8]),
        lambda values: values.update(quantiles=""),
        lambda values: values.pop("num_pictures"),
    ],
)
def test_a_damaged_domain_is_refused(domain: Domain, change: Any) -> None:
    values = json.loads(json.dumps(domain.as_json()))
    change(values)
    with pytest.raises(ModelError, match=r"domain is damaged.*twinlens calibrate"):
        Domain.from_json(values)


def test_a_domain_of_other_statistics_is_unknown(domain: Domain) -> None:
    assert Domain.from_json(domain.as_json() | {"statistics": ["another"]}) is None


def test_few_identities_have_no_domain() -> None:
    pixels, identity = drawn_pictures(20, 2)
    emb = np.zeros((20, 4))
    assert fit_domain(emb, identity, picture_statistics(pixels), identity) is None


def test_a_trained_model_knows_its_domain(tiny_run: TinyRun, tmp_path: Path) -> None:
    model = twinlens.load(tiny_run.run)
    assert model.domain is not None
    assert model.domain.num_identities == 8
    a, b = sorted(tiny_run.data.glob("thing 0/*.png"))[:2]
    answer = model.verify(a, b)
    assert answer.as_json()["in_domain"] is True
    assert 0 < answer.as_json()["domain_score"] <= 1
    blank = tmp_path / "blank.png"
    Image.new("L", (40, 40)).save(blank)
    answer = model.verify(a, blank)
    assert answer.as_json()["in_domain"] is False
    assert "second picture is unlike" in answer.explain()
    result = twinlens.evaluate(tiny_run.run, tiny_run.data, quiet=True)
    assert result.as_json()["domain"]["in_domain"] is True


def test_calibrate_sets_the_domain_and_an_older_model_has_none(
    tiny_run: TinyRun, tmp_path: Path
) -> None:
    shutil.copytree(tiny_run.run / "model", tmp_path / "model")
    file = tmp_path / "model" / "model.json"
    values = json.loads(file.read_text())
    del values["domain"]
    file.write_text(json.dumps(values))
    a, b = sorted(tiny_run.data.glob("thing 0/*.png"))[:2]
    answer = twinlens.verify(tmp_path / "model", a, b)
    assert answer.as_json()["in_domain"] is None
    model = twinlens.calibrate(tmp_path / "model", tiny_run.data, far=0.1, split="all", quiet=True)
    assert model.domain is not None
    assert model.domain.num_identities == 10
    assert model.verify(a, b).as_json()["in_domain"] is True
