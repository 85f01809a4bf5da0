"""Halving by the largest, to torch's bits; and features clipped by the training pictures."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from twinlens.model.layers import Clipped, HalvingMaxPool


@pytest.mark.parametrize("shape", [(2, 3, 8, 6), (1, 4, 7, 9), (3, 1, 2, 3)])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_it_is_torchs(shape: tuple[int, ...], memory: torch.memory_format) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(memory_format=memory)
    x[0, 0, 0, 0] = torch.nan
    expected = F.max_pool2d(x, 2)
    torch.testing.assert_close(HalvingMaxPool()(x), expected, rtol=0, atol=0, equal_nan=True)


def test_the_gradient_is_torchs() -> None:
    x = torch.randint(0, 3, (2, 2, 6, 6)).float().requires_grad_()  # With ties.
    (ours,) = torch.autograd.grad(HalvingMaxPool()(x).square().sum(), x)
    (theirs,) = torch.autograd.grad(F.max_pool2d(x, 2).square().sum(), x)
    assert torch.equal(ours, theirs)


def test_features_are_standardised_and_clipped_and_constants_are_0() -> None:
    layer = Clipped(3, limit=1.5)
    layer.measure(torch.tensor([[1.0, 10.0, 7.0], [3.0, 30.0, 7.0]]))
    x = torch.tensor([[2.0, 30.0, 7.0], [2.5, -90.0, 8.0], [9.0, 20.0, 0.0]])
    expected = torch.tensor([[0.0, 1.0, 0.0], [0.5, -1.5, 0.0], [1.5, 0.0, 0.0]])
    torch.testing.assert_close(layer(x), expected)
