"""A head in closed form: what whitened means, beside scikit-learn and by its effect."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import nn

from twinlens.learn import whitening
from twinlens.learn.whitening import (
    SHRINKAGE,
    TEMPERATURE,
    discriminant_head,
    whiten_head,
    whitening_transform,
)

LABEL = torch.arange(12).repeat_interleave(6)


def features(dims: int = 10, seed: int = 0) -> torch.Tensor:
    """Twelve identities of six: identity in all dimensions, and a loud nuisance in the first."""
    generator = torch.Generator().manual_seed(seed)
    identity = torch.randn(12, dims, generator=generator)[LABEL]
    noise = 0.3 * torch.randn(72, dims, generator=generator)
    noise[:, 0] *= 30
    return identity + noise + 5


def within(z: np.ndarray) -> np.ndarray:
    rest = np.concatenate([z[c == LABEL] - z[c == LABEL].mean(0) for c in range(12)])
    return rest.T @ rest / len(rest)


def test_the_shrunken_covariance_within_identities_becomes_even() -> None:
    x = features()
    weight, mean = whitening_transform(x, LABEL, 10)
    std = x.double().std(0, correction=0)
    # Undo the map step by step in numpy: standardised, turned, and the covariance as written.
    standard = ((x.double() - mean) / std).numpy()
    turned = PCA(10, svd_solver="full").fit_transform(standard)
    spread = within(turned)
    shrunk = (1 - SHRINKAGE) * spread + SHRINKAGE * np.trace(spread) / 10 * np.eye(10)
    ours = ((x.double() - mean) @ weight.T).numpy()
    # Distances are all that counts: Mahalanobis under the shrunken covariance.
    for a, b in ((0, 1), (3, 40), (70, 12)):
        gap = turned[a] - turned[b]
        expected = gap @ np.linalg.solve(shrunk, gap)
        assert np.square(ours[a] - ours[b]).sum() == pytest.approx(expected, rel=1e-9)


def test_a_loud_nuisance_counts_for_less() -> None:
    x = features()
    head = nn.Linear(10, 10)
    whiten_head(head, x, LABEL)
    other = features(seed=1)

    def right(z: torch.Tensor) -> float:
        """The share whose nearest other picture is of the same identity."""
        dist = torch.cdist(z, z).fill_diagonal_(torch.inf)
        return float((LABEL[dist.argmin(1)] == LABEL).float().mean())

    assert right(head(other)) > right(other) + 0.1


@pytest.mark.parametrize(("dims", "out"), [(10, 4), (10, 16), (200, 128)])
def test_any_widths(dims: int, out: int) -> None:
    x = features(dims)
    head = nn.Linear(dims, out)
    whiten_head(head, x, LABEL)
    z = head(x)
    assert torch.isfinite(z).all()
    torch.testing.assert_close(z.mean(0), torch.zeros(out), atol=1e-3, rtol=0)
    assert float(z.detach().square().sum(1).mean()) == pytest.approx(out, rel=1e-3)
    known = min(out, dims, 71)
    assert bool((z.detach()[:, known:] == 0).all())


def test_renaming_labels_changes_nothing_and_constants_are_nothing() -> None:
    x = torch.cat([features(), torch.full((72, 1), 7.0)], 1)
    weight, mean = whitening_transform(x, LABEL, 8)
    renamed, _ = whitening_transform(x, 100 - 3 * LABEL, 8)
    torch.testing.assert_close(weight, renamed)
    assert bool((weight[:, -1] == 0).all())
    assert bool(torch.isfinite(mean).all())


def test_one_picture_an_identity_leaves_the_directions_as_they_are() -> None:
    x = features()[::6]
    weight, mean = whitening_transform(x, torch.arange(12), 5)
    z = (x.double() - mean) @ weight.T
    assert bool(torch.isfinite(z).all())
    assert float(z.std()) > 0


def test_of_many_directions_the_first_are_found_without_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = features(dims=60)
    exact, _ = whitening_transform(x, LABEL, 5)
    monkeypatch.setattr(whitening, "EXACT", 10)
    before = torch.random.get_rng_state()
    quick, _ = whitening_transform(x, LABEL, 5)
    assert torch.equal(torch.random.get_rng_state(), before)
    # The same map but for a rotation: distances are equal.
    near, far = (torch.cdist(x.double() @ one.T, x.double() @ one.T) for one in (quick, exact))
    assert torch.allclose(near, far, atol=1e-4 * float(far.max()))


def test_class_probabilities_are_those_of_a_linear_discriminant_analysis() -> None:
    x, other = features(), features(seed=1)
    head = nn.Linear(10, 14)  # Two classes have no pictures.
    discriminant_head(head, x, LABEL)
    logits = (head(other).double() * TEMPERATURE).detach()
    mean, std = x.mean(0), x.std(0, correction=0)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=SHRINKAGE)
    theirs.fit(((x - mean) / std).double().numpy(), LABEL.numpy())
    expected = theirs.predict_proba(((other - mean) / std).double().numpy())
    found = logits.softmax(1).numpy()
    np.testing.assert_allclose(found[:, :12], expected, atol=1e-3)
    assert found[:, 12:].max() == 0
