"""Halving by the largest: torch's own pooling to the bit, with and without a gradient."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from twinlens.model.layers import HalvingMaxPool


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
