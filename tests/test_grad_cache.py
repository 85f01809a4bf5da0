"""A batch in chunks: the gradient of the whole, the same randomness twice, norms moved once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from digits_run import CPU, TRAIN, digest, digit_settings, start
from torch import Tensor, nn

from twinlens.config import Settings
from twinlens.data.samplers import make_sampler
from twinlens.learn.embed_batch import BatchEmbedder
from twinlens.learn.grad_cache import chunks_of, embed_in_chunks, moving_norms
from twinlens.learn.objective import Objective
from twinlens.model.comparators import make_comparator
from twinlens.model.encoder import Encoder


def settings_of(**more: Any) -> Settings:
    return digit_settings(
        **{"model__batch_norm": False, "model__dropout": 0.0, "train__steps": 8} | more
    )


def learned(settings: Settings, chunk: int | None) -> tuple[float, list[Tensor], Encoder, Tensor]:
    """The loss of a batch, all gradients of the encoder, and the random numbers that are next."""
    train = settings.train.model_copy(update={"chunk": chunk})
    settings = settings.model_copy(update={"train": train})
    torch.manual_seed(0)
    encoder = Encoder(settings.model, settings.picture)
    comparator = make_comparator(settings.model.comparator, settings.model.embedding)
    objective = Objective(settings.loss, comparator, 10, settings.model.embedding)
    feed = BatchEmbedder(encoder, TRAIN, settings, CPU)
    batch = make_sampler(TRAIN.label, TRAIN.forged, settings.sampler, 0).batch(0)
    torch.manual_seed(1)
    loss = objective(feed(batch, 5), batch)
    loss.backward()
    grads = [p.grad for p in encoder.parameters() if p.grad is not None]
    return loss.item(), grads, encoder, torch.rand(1)


LOSSES: dict[str, dict[str, Any]] = {
    "supcon": {"loss": {"name": "supcon"}},
    "triplet": {"loss": {"name": "triplet", "mining": "all"}, "sampler__rotations": True},
    "contrastive": {"loss": {"name": "contrastive"}, "sampler": {"kind": "pairs", "mirror": True}},
    "given": {
        "loss": {"name": "triplet", "mining": "given"}, "sampler": {"kind": "triplets", "batch": 30}
    },
    "bce": {"loss": {"name": "bce"}, "model__comparator": "network"},
    "library": {"loss": {"name": "pml:MultiSimilarityLoss"}},
}  # fmt: skip


@pytest.mark.parametrize("chunk", [7, 32])
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_the_gradient_is_that_of_the_whole_batch(name: str, chunk: int) -> None:
    settings = settings_of(**LOSSES[name])
    loss, grads, *_ = learned(settings, None)
    chunked_loss, chunked, *_ = learned(settings, chunk)
    assert chunked_loss == pytest.approx(loss, rel=1e-5)
    assert max(float(grad.abs().max()) for grad in grads) > 1e-3
    for grad, other in zip(grads, chunked, strict=True):
        torch.testing.assert_close(other, grad, rtol=1e-4, atol=1e-6)


def test_a_chunk_that_holds_the_batch_changes_nothing() -> None:
    plain, grads, _, drawn = learned(digit_settings(), None)
    chunked, others, _, other_drawn = learned(digit_settings(), 10**6)
    assert plain == pytest.approx(chunked, rel=1e-6)
    torch.testing.assert_close(others, grads)
    assert torch.equal(drawn, other_drawn)


def test_the_second_pass_is_the_first_and_moves_no_statistics() -> None:
    torch.manual_seed(0)
    norm, last = nn.BatchNorm1d(8), nn.Linear(8, 4)
    net, x = nn.Sequential(nn.Linear(3, 8), norm, nn.Dropout(0.5), last), torch.randn(10, 3)
    seen: list[Tensor] = []
    last.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    parts = chunks_of(10, 4)
    emb = embed_in_chunks(lambda part: net(x[part]), parts, net)
    before_backward = [buffer.clone() for buffer in norm.buffers()]
    assert int(before_backward[2]) == len(parts) == 3
    torch.rand(5)  # What is drawn in between must not matter.
    before = torch.get_rng_state()
    emb.square().sum().backward()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, norm.buffers(), before_backward))
    assert len(seen) == 6
    for first in seen[:3]:
        twins = [x for x in seen[3:] if x.shape == first.shape and torch.allclose(x, first)]
        assert len(twins) == 1


def test_the_gradient_with_norms_is_that_of_the_chunks() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8)), torch.randn(10, 3)
    weight = torch.randn(10, 8)
    expected = torch.autograd.grad(
        sum((net(x[part]) * weight[part]).sum() for part in chunks_of(10, 4)), net[0].weight
    )[0]
    emb = embed_in_chunks(lambda part: net(x[part]), chunks_of(10, 4), net)
    torch.testing.assert_close(
        torch.autograd.grad((emb * weight).sum(), net[0].weight)[0], expected
    )
    assert len(moving_norms(net)) == 1
    assert moving_norms(net.eval()) == []


@pytest.mark.parametrize(("num", "most"), [(0, 4), (1, 4), (4, 4), (9, 4), (13, 4), (4096, 256)])
def test_chunks_are_even_and_cover_the_batch(num: int, most: int) -> None:
    parts = chunks_of(num, most)
    covered = [index for part in parts for index in range(part.start, part.stop)]
    assert covered == list(range(num))
    sizes = [part.stop - part.start for part in parts]
    assert len(parts) == -(-num // most)
    assert max(sizes, default=0) <= most
    assert max(sizes, default=0) - min(sizes, default=0) <= 1


def test_random_views_of_the_second_pass_are_the_first() -> None:
    settings = settings_of(augment={"rotate": 20.0, "crop": 0.2}, train__chunk=16)
    encoder = Encoder(settings.model, settings.picture)
    feed, seen = BatchEmbedder(encoder, TRAIN, settings, CPU), []
    encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    batch = make_sampler(TRAIN.label, TRAIN.forged, settings.sampler, 0).batch(0)
    feed(batch, 3).square().sum().backward()
    half = len(seen) // 2
    assert half == 4
    first, second = ({x.numpy().tobytes() for x in part} for part in (seen[:half], seen[half:]))
    assert first == second
    assert len(first) == half


@pytest.mark.slow
def test_training_in_chunks_learns_and_comes_to_the_same_weights() -> None:
    whole, *_ = start(settings_of(augment={}))
    chunked, *_ = start(settings_of(augment={}, train__chunk=16))
    again, *_ = start(settings_of(augment={}, train__chunk=16))
    assert digest(chunked) == digest(again)
    for one, other in zip(whole.parameters(), chunked.parameters(), strict=True):
        np.testing.assert_allclose(one.detach(), other.detach(), atol=2e-3)


def test_batch_norm_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    for settings, warned in (
        (digit_settings(train__chunk=16), True),
        (settings_of(train__chunk=16), False),
        (digit_settings(train__chunk=16, model__freeze="all"), False),
        (digit_settings(), False),
    ):
        caplog.clear()
        BatchEmbedder(Encoder(settings.model, settings.picture), TRAIN, settings, CPU)
        assert ("statistics of 16 pictures" in caplog.text) is warned
