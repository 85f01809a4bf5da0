"""The losses of pytorch-metric-learning by name, with forged pictures and class weights."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from peer_libraries import agree, embedded
from pytorch_metric_learning import distances, reducers
from pytorch_metric_learning import losses as library

from twinlens.config import LossSettings
from twinlens.errors import ConfigError, MissingExtraError
from twinlens.learn.losses import check_loss
from twinlens.learn.pml import pml_loss, roles_as_labels


@pytest.mark.parametrize(
    ("name", "args", "theirs"),
    [
        ("pml:MultiSimilarityLoss", {"alpha": 3.0}, library.MultiSimilarityLoss(alpha=3.0)),
        ("CircleLoss", {}, library.CircleLoss()),
        (
            "pml:TripletMarginLoss",
            {"margin": 0.4, "distance": {"name": "LpDistance", "p": 1}, "reducer": "MeanReducer"},
            library.TripletMarginLoss(
                margin=0.4, distance=distances.LpDistance(p=1), reducer=reducers.MeanReducer()
            ),
        ),
    ],
)
def test_pml_by_name(name, args, theirs):
    emb, label = embedded(0)
    agree(pml_loss(name, args)(emb, label), theirs(emb, label), emb)


def test_pml_forged_pictures_are_negatives_to_everything():
    emb, label = embedded(0, 12, 3)
    forged = torch.arange(12) >= 9
    alone = torch.cat([label[:9], torch.tensor([50, 51, 52])])
    theirs = library.ContrastiveLoss()(emb, alone)
    agree(pml_loss("pml:ContrastiveLoss", {})(emb, label, forged), theirs, emb)


def test_roles_as_labels_by_hand():
    label, forged = torch.tensor([4, 4, 0, 4]), torch.tensor([False, True, False, True])
    assert roles_as_labels(label, forged).tolist() == [4, 5, 0, 6]
    assert roles_as_labels(label[:0], forged[:0]).tolist() == []


@pytest.mark.parametrize(
    "name", ["ArcFaceLoss", "CosFaceLoss", "SubCenterArcFaceLoss", "ProxyAnchorLoss",
             "NormalizedSoftmaxLoss", "SoftTripleLoss", "P2SGradLoss", "ProxyNCALoss"],
)  # fmt: skip
def test_pml_losses_with_weights_train_and_leave_forgeries_out(name):
    torch.manual_seed(0)
    loss = pml_loss(f"pml:{name}", {}, num_classes=3, embedding_size=8)
    assert loss.is_classification
    weights = list(loss.parameters())
    assert sum(weight.numel() for weight in weights) >= 24
    emb = torch.randn(12, 8, requires_grad=True)
    label, forged = torch.arange(12) % 3, torch.arange(12) >= 9
    value = loss(emb, label, forged)
    torch.testing.assert_close(value, loss(emb[:9], label[:9]))
    value.backward()
    assert not emb.grad[9:].any()
    assert emb.grad[:9].any()
    assert all(weight.grad is not None and weight.grad.any() for weight in weights)
    nothing = loss(emb, label, forged | True)
    nothing.backward()
    assert nothing.item() == 0.0


def test_pml_losses_without_classes_take_none():
    assert not pml_loss("pml:MarginLoss", {}, num_classes=3, embedding_size=8).is_classification


def test_pml_half_precision_is_widened():
    emb, label = embedded(0)
    loss = pml_loss("pml:MultiSimilarityLoss", {})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(emb.bfloat16(), label)
    torch.testing.assert_close(value, loss(emb.bfloat16().float(), label))


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    message = (
        r"^the loss 'pml:CircleLoss' needs pytorch-metric-learning: "
        r"pip install 'twinlens\[losses\]'$"
    )
    with pytest.raises(MissingExtraError, match=message):
        pml_loss("pml:CircleLoss", {})
    with pytest.raises(MissingExtraError, match=message):
        check_loss(LossSettings(name="pml:CircleLoss"))


def test_the_library_is_imported_only_for_its_losses():
    code = "import sys, twinlens.learn.losses; print('pytorch_metric_learning' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("TripletMarginLoss", {"margin": "x"}),
        ("TripletMarginLoss", {"margin": [1]}),
        ("ProxyAnchorLoss", {"num_classes": 2}),
        ("ArcFaceLoss", {"embedding_size": 3}),
    ],
)
def test_arguments_that_fail_only_with_a_batch(name: str, args: dict[str, object]) -> None:
    loss = pml_loss(f"pml:{name}", args, num_classes=4, embedding_size=2)
    with pytest.raises(
        ConfigError, match=rf"pml:{name} fails \(.*change or leave out its loss.args"
    ):
        loss(torch.rand(8, 2), torch.arange(8) % 4)


def test_arguments_that_ask_for_memory() -> None:
    for args in ({"num_classes": 10**9}, {"embedding_size": 10**12}):
        with pytest.raises(ConfigError, match="pml:ArcFaceLoss would be too large"):
            pml_loss("pml:ArcFaceLoss", args, num_classes=4, embedding_size=2)
