"""Several processes learn what one process learns: gradients, weights, resumed runs, errors."""

from __future__ import annotations

import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
import torch
from torch import nn

from twinlens.errors import TrainingError
from twinlens.learn.ranks import ALONE, Ranks

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


def test_two_ranks_have_the_gradients_of_one_and_refuse_what_differs(tmp_path: Path) -> None:
    run_ranks(2, tmp_path, "compare_some_gradients", "refuse")


@pytest.mark.slow
def test_every_loss_has_its_gradients_and_a_run_goes_on_with_other_ranks(tmp_path: Path) -> None:
    run_ranks(2, tmp_path, "compare_gradients", "train_together", "resume")
    run_ranks(3, tmp_path, "compare_gradients", "refuse", "train_together", "resume")
    run_ranks(1, tmp_path, "resume")
    assert sorted(path.name for path in tmp_path.glob("on-*")) == ["on-1-20", "on-2-0", "on-3-10"]
