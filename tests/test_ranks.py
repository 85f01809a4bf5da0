"""Several processes learn what one process learns: gradients, weights, resumed runs, errors."""

from __future__ import annotations

import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
import torch
from digits_run import CPU, TRAIN, digit_settings
from torch import nn

from twinlens.data.samplers import make_sampler
from twinlens.errors import ConfigError, TrainingError
from twinlens.learn.embed_batch import BatchEmbedder
from twinlens.learn.grad_cache import moving_norms
from twinlens.learn.ranks import ALONE, Ranks
from twinlens.model.encoder import Encoder

WORK = Path(__file__).with_name("rank_work.py")


def run_ranks(size: int, folder: Path, *works: str) -> None:
    """Run functions of `rank_work` on so many ranks."""
    command = [sys.executable, "-W", "error", str(WORK), str(size), str(folder), *works]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_one_rank_changes_nothing() -> None:
    emb_BD, net = torch.randn(5, 2), nn.Linear(2, 2)
    assert ALONE.gather(emb_BD, 5) is emb_BD
    assert ALONE.from_first(1.0, 2.0) == [1.0, 2.0]
    assert ALONE.object_of_first("a") == "a"
    assert ALONE.own(3).tolist() == [0, 1, 2]
    assert not ALONE.all(False)
    ALONE.reduce_gradients(net, net)
    ALONE.check_same({"settings": "a"})
    ALONE.check_batch(1)


def test_every_picture_has_one_rank() -> None:
    for num in (4, 7, 9):
        owned = [Ranks(rank, 3).own(num).tolist() for rank in range(3)]
        assert sorted(chain(*owned)) == list(range(num))
        assert max(map(len, owned)) - min(map(len, owned)) <= 1
    with pytest.raises(TrainingError, match="a batch of 5 pictures for 3 processes"):
        Ranks(0, 3).check_batch(5)


def test_norms_over_ranks_are_the_same_network(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = digit_settings()
    encoder = Encoder(settings.model, settings.picture).eval()
    x, weights = torch.rand(4, 1, 8, 8), encoder.state_dict()
    expected = encoder(x)
    with pytest.raises(ConfigError, match="needs GPUs"):
        Ranks(0, 2).synchronise_norms(encoder)
    with monkeypatch.context() as on_gpu:
        on_gpu.setattr(torch.Tensor, "is_cuda", True)
        Ranks(0, 2).synchronise_norms(encoder)
    learning = moving_norms(encoder.train())
    assert learning
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in learning)
    assert encoder.state_dict().keys() == weights.keys()
    assert torch.equal(encoder.eval()(x), expected)


@pytest.mark.parametrize("loud", [False, True])
def test_the_view_of_a_picture_depends_on_no_other(loud: bool) -> None:
    """Each rank, and each chunk, makes the views of the whole batch."""
    settings = digit_settings(augment={"rotate": 20.0, "crop": 0.2, "flip": True})
    embed = BatchEmbedder(Encoder(settings.model, settings.picture), TRAIN, settings, CPU)
    if loud:
        embed.transform = lambda picture: picture / 255 + torch.rand(())
    batch = make_sampler(TRAIN.label, TRAIN.forged, settings.sampler, 0).batch(0)
    views = embed.pictures(batch, 3)
    position = Ranks(1, 3).own(len(batch.row))
    assert torch.equal(embed.pictures(batch, 3, position), views[position])


def test_two_ranks_have_the_gradients_of_one_and_refuse_what_differs(tmp_path: Path) -> None:
    run_ranks(2, tmp_path, "compare_some_gradients", "refuse")


@pytest.mark.slow
def test_every_loss_has_its_gradients_and_a_run_goes_on_with_other_ranks(tmp_path: Path) -> None:
    run_ranks(2, tmp_path, "compare_gradients", "train_together", "end_together", "resume")
    run_ranks(3, tmp_path, "compare_gradients", "refuse", "train_together", "resume")
    run_ranks(1, tmp_path, "resume")
    assert sorted(path.name for path in tmp_path.glob("on-*")) == ["on-1-20", "on-2-0", "on-3-10"]
