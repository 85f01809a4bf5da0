"""Orthogonal steps: against singular values, torch's own Muon, and by hand."""

from __future__ import annotations

import pytest
import torch
from torch.optim import Muon as TorchMuon

from twinlens.learn import muon
from twinlens.learn.muon import MOMENTUM, STEP_RMS, Muon, orthogonal


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 on any hardware."""
    monkeypatch.setattr(muon, "has_bfloat16", lambda device: False)


@pytest.mark.parametrize("shape", [(8, 8), (5, 40), (40, 5), (1, 6)])
def test_the_singular_values_come_near_one_and_the_directions_stay(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, actual, vh = torch.linalg.svd(matrix, full_matrices=False)
    turned = u.T @ orthogonal(matrix) @ vh.T
    keep = actual > 0.05 * actual.norm()
    assert keep.any()
    assert ((turned.diag()[keep] > 0.6) & (turned.diag()[keep] < 1.3)).all()
    assert torch.allclose(turned - turned.diag().diag(), torch.zeros(()), atol=1e-4)


def test_a_matrix_of_zeros_stays_one() -> None:
    assert torch.equal(orthogonal(torch.zeros(3, 4)), torch.zeros(3, 4))


def test_a_longer_gradient_takes_the_same_step() -> None:
    matrix = torch.randn(4, 9, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(orthogonal(matrix), orthogonal(1000 * matrix), atol=1e-5)


def test_two_steps_are_those_of_torch() -> None:
    generator = torch.Generator().manual_seed(2)
    ours = torch.nn.Parameter(torch.randn(6, 10, generator=generator))
    theirs = torch.nn.Parameter(ours.detach().clone())
    mine = Muon([{"params": [ours], "weight_decay": 0.1, "matrices": True}], lr=0.01)
    torchs = TorchMuon(
        [theirs], lr=0.01, weight_decay=0.1, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw"
    )
    begun = ours.detach().clone()
    for _ in range(2):
        gradient = torch.randn(6, 10, generator=generator)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        mine.step()
        torchs.step()
    moved = (theirs - begun).abs().mean()
    assert (ours - theirs).abs().max() < 0.1 * moved  # Theirs multiplies in bfloat16.


def test_a_convolution_is_a_matrix_of_its_output_channels() -> None:
    generator = torch.Generator().manual_seed(3)
    gradient = torch.randn(4, 2, 3, 3, generator=generator)
    kernel = torch.nn.Parameter(torch.zeros(4, 2, 3, 3))
    kernel.grad = gradient.clone()
    Muon([{"params": [kernel], "weight_decay": 0.0, "matrices": True}], lr=1.0).step()
    expected = -STEP_RMS * 18**0.5 * orthogonal(gradient.flatten(1)).view_as(gradient)
    assert torch.allclose(kernel.detach(), expected, atol=1e-5)


def test_bfloat16_gives_nearly_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def stepped() -> torch.Tensor:
        kernel = torch.nn.Parameter(torch.zeros(8, 2, 3, 3))
        kernel.grad = torch.randn(8, 2, 3, 3, generator=torch.Generator().manual_seed(5))
        Muon([{"params": [kernel], "weight_decay": 0.0, "matrices": True}], lr=1.0).step()
        return kernel.detach()

    expected = stepped()
    monkeypatch.setattr(muon, "has_bfloat16", lambda device: True)
    error = (stepped() - expected).norm() / expected.norm()
    assert 0 < float(error) < 0.05


def test_the_memory_format_changes_nothing() -> None:
    def stepped(memory: torch.memory_format) -> torch.Tensor:
        generator = torch.Generator().manual_seed(4)
        start = torch.randn(4, 3, 3, 3, generator=generator).contiguous(memory_format=memory)
        kernel = torch.nn.Parameter(start)
        optimizer = Muon([{"params": [kernel], "weight_decay": 0.1, "matrices": True}], lr=0.1)
        for _ in range(2):
            gradient = torch.randn(4, 3, 3, 3, generator=generator)
            kernel.grad = gradient.contiguous(memory_format=memory)
            optimizer.step()
        return kernel.detach().contiguous()

    first = stepped(torch.contiguous_format)
    assert torch.allclose(first, stepped(torch.channels_last), atol=1e-5)


def test_the_other_groups_take_the_steps_of_adamw() -> None:
    bias, other = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    mine = Muon([{"params": [bias], "weight_decay": 0.1}], lr=0.01)
    adamw = torch.optim.AdamW([other], lr=0.01, weight_decay=0.1, fused=True)
    for step in range(3):
        bias.grad = other.grad = torch.tensor([1.0, -2.0, step])
        mine.step()
        adamw.step()
    torch.testing.assert_close(bias, other)
