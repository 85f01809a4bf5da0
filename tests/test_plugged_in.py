"""A module, a loss and an augmentation of a program: checks, names, training, resuming."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, TinyRun
from torch import Tensor, nn
from torchvision.transforms import v2

import twinlens
from twinlens.config import LossSettings, ModelSettings, PictureSettings
from twinlens.errors import ConfigError
from twinlens.learn.objective import Objective
from twinlens.model.comparators import make_comparator
from twinlens.model.encoder import Encoder
from twinlens.model.plugged_in import (
    check_plugged_loss,
    check_plugged_transform,
    named,
    plugged,
    plugged_in,
    plugged_name,
)

GREY = PictureSettings(size=(16, 16), color="grey")
OWN = {key: value for key, value in TINY.items() if not key.startswith("model.")}
OWN |= {"picture.color": "grey"}


class Net(nn.Module):
    """As in many tutorials: `view` in place of `flatten`, which needs channels first."""

    def __init__(self, features: int = 12) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, features, 3, 4)
        self.norm = nn.BatchNorm2d(features)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        return x.view(x.shape[0], -1)


class Centres(nn.Module):
    """A loss with weights: distances to a centre of each of 10 labels."""

    def __init__(self) -> None:
        super().__init__()
        self.centre = nn.Parameter(torch.linspace(-1, 1, 10 * 128).view(10, 128))

    def forward(self, emb: Tensor, label: Tensor) -> Tensor:
        return nn.functional.cross_entropy(-torch.cdist(emb, self.centre), label)


def pull(emb: Tensor, label: Tensor) -> Tensor:
    same = label[:, None] == label
    dist = (emb[:, None] - emb).square().sum(2)
    return dist[same].mean() + (1 - dist[~same]).clamp_min(0).mean()


def encoder_of(module: nn.Module, **model: Any) -> Encoder:
    with plugged_in({"backbone": module}) as names:
        return Encoder(ModelSettings(backbone=names["model.backbone"], **model), GREY)


def test_a_module_is_copied_and_its_features_are_counted() -> None:
    module = Net(5)
    encoder = encoder_of(module, embedding=7)
    assert encoder.num_features == 5 * 4 * 4
    assert encoder(torch.zeros(3, 1, 16, 16, dtype=torch.uint8)).shape == (3, 7)
    assert torch.equal(encoder.backbone.conv.weight, module.conv.weight)
    assert encoder.backbone.conv.weight is not module.conv.weight
    assert encoder_of(nn.Conv2d(1, 6, 3)).num_features == 6 * 14 * 14  # Maps are flattened.
    assert encoder_of(nn.Sequential(nn.Flatten(), nn.LazyLinear(9))).num_features == 9


@pytest.mark.parametrize(
    ("module", "problem"),
    [
        (nn.Conv2d(3, 4, 3), r"fails on pictures \(2, 1, 16, 16\) .*picture.color"),
        (nn.Flatten(0), r"found torch.float32 \(512,\)"),
        (nn.LSTM(16, 4), "fails on pictures"),
        (nn.MaxPool2d(2, return_indices=True), "found <class 'tuple'>: wrap it in a module"),
        (nn.Threshold(1.0, float("nan")), "found NaN or infinite numbers"),
    ],
)
def test_a_module_without_features_is_refused(module: nn.Module, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        encoder_of(module)


def test_settings_of_other_networks_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model.weights is for built-in and timm networks"):
        encoder_of(Net(), weights="weights.pth")


@pytest.mark.parametrize("part", [Net, "resnet18", 3])
def test_what_is_no_module_is_refused(part: object) -> None:
    refused = pytest.raises(ConfigError, match=r"backbone needs a torch.nn.Module, found")
    with refused, plugged_in({"backbone": part}):
        pass


def test_a_name_alone_runs_no_code() -> None:
    with pytest.raises(ConfigError, match=r"os.system of a Python program: pass this object again"):
        plugged("loss", "python:os.system")
    another = pytest.raises(ConfigError, match=r"found test_plugged_in.pull: pass this object")
    with plugged_in({"loss": pull}), another:
        plugged("loss", "python:os.system")
    with pytest.raises(ConfigError, match=r"of a Python program"):
        Encoder(ModelSettings(backbone="python:os.system"), GREY)


def test_a_part_is_named_once() -> None:
    assert named({"train.steps": 3}, {"loss.name": "python:a.b"}) == {
        "train.steps": 3, "loss.name": "python:a.b",
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"loss.name is given twice: 'supcon' and a.b"):
        named({"loss.name": "supcon"}, {"loss.name": "python:a.b"})


@pytest.mark.parametrize(
    ("loss", "problem"),
    [
        (lambda emb, label: emb.sum(1), r"must be a scalar tensor, found \(8,\)"),
        (lambda emb, label: 0.5, "must be a scalar tensor, found 0.5"),
        (lambda emb, label: emb.sum() / 0, "must be finite"),
        (lambda emb, label: emb.detach().sum(), "has no gradient"),
        (lambda emb, label: nn.Parameter(torch.ones(())), "gradient in the embeddings, found none"),
        (lambda emb, label: (emb * 0).sqrt().sum(), "found NaN or infinite numbers"),
        (lambda emb: emb.sum(), "fails: .*takes 1 positional argument"),
    ],
)
def test_a_loss_that_cannot_be_learned_from_is_refused(loss: Any, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        check_plugged_loss(loss, "python:mine", 16)


def test_a_loss_with_weights_is_copied_and_trained() -> None:
    loss = Centres()
    check_plugged_loss(loss, plugged_name(loss), 128)
    with plugged_in({"loss": loss}) as names:
        settings = LossSettings(name=names["loss.name"])
        objective = Objective(settings, make_comparator("cosine", 128), 10, 128)
    assert [parameter.shape for parameter in objective.parameters()] == [(10, 128)]
    assert next(objective.parameters()) is not loss.centre


@pytest.mark.parametrize(
    ("transform", "problem"),
    [
        (v2.Resize(8), r"tensor of the same shape, found \(1, 8, 8\)"),
        (v2.ToPILImage(), "found <class 'PIL.Image.Image'>"),
        (v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.2])]),
         "leave out Normalize"),
        (v2.ToDtype(torch.int64), r"found torch.int64 from"),
        (lambda picture: picture.no_such_method(), "fails: 'Tensor' object has no attribute"),
    ],
)  # fmt: skip
def test_an_augmentation_of_other_pictures_is_refused(transform: Any, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        check_plugged_transform(transform, "python:mine", GREY)


def test_augmentations_of_torchvision_are_taken() -> None:
    views = v2.Compose([v2.RandomResizedCrop(16), v2.RandomHorizontalFlip()])
    for transform in (views, v2.ToDtype(torch.float32, scale=True), v2.ColorJitter(0.5)):
        check_plugged_transform(transform, plugged_name(transform), GREY)


def test_what_cannot_be_exported_is_refused_before_training(
    tiny_run: TinyRun, tmp_path: Path
) -> None:
    class ByValue(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) * (1 if float(x.sum()) > 0 else 2)

    with pytest.raises(ConfigError, match=r"ByValue' gives no portable model: torch cannot export"):
        twinlens.train(tiny_run.data, out=tmp_path / "run", settings=OWN, backbone=ByValue())
    assert not (tmp_path / "run").exists()


def parts() -> dict[str, Any]:
    torch.manual_seed(0)
    return {"backbone": Net(), "loss": pull, "augmentation": v2.RandomHorizontalFlip()}


@pytest.mark.slow
def test_a_run_of_own_parts_resumes_to_the_same_weights_and_answers_without_torch(
    tiny_run: TinyRun, tmp_path: Path
) -> None:
    settings = OWN | {"train.steps": 6, "train.validations": 3}
    whole = twinlens.train(tiny_run.data, out=tmp_path / "whole", settings=settings, **parts())
    stored = json.loads((tmp_path / "whole" / "settings.json").read_text(encoding="utf-8"))
    assert stored["model"]["backbone"] == "python:test_plugged_in.Net"
    assert stored["loss"]["name"] == "python:test_plugged_in.pull"
    assert stored["augment"]["transform"].endswith(".RandomHorizontalFlip")
    assert (stored["augment"]["rotate"], stored["train"]["candidates"]) == (0.0, False)

    class StopError(Exception):
        pass

    def fails(emb: Tensor, label: Tensor) -> Tensor:
        calls.append(None)
        if len(calls) == 6:
            raise StopError
        return pull(emb, label)

    calls: list[None] = []
    fails.__qualname__, fails.__module__ = pull.__qualname__, pull.__module__
    run = {"out": tmp_path / "part"}
    with pytest.raises(StopError):
        twinlens.train(tiny_run.data, settings=settings, **run, **parts() | {"loss": fails})
    with pytest.raises(ConfigError, match=r"Net of a Python program: pass this object again"):
        twinlens.train(tiny_run.data, **run, resume=True)
    with pytest.raises(twinlens.TwinlensError, match=r"Flatten"):
        twinlens.train(tiny_run.data, **run, resume=True, **parts() | {"backbone": nn.Flatten()})
    with pytest.raises(twinlens.TrainingError, match=r"the backbone that was passed does not fit"):
        twinlens.train(tiny_run.data, **run, resume=True, **parts() | {"backbone": Net(5)})
    again = twinlens.train(tiny_run.data, **run, resume=True, **parts())
    assert again.fingerprint == whole.fingerprint
    with pytest.raises(ConfigError, match=r"Net of a Python program: pass this object again"):
        twinlens.train(tiny_run.data, out=tmp_path / "next", init=tmp_path / "whole")
    with pytest.raises(ConfigError, match=r"the backbone that was passed does not fit"):
        twinlens.train(
            tiny_run.data, out=tmp_path / "next", init=tmp_path / "whole", backbone=Net(5)
        )
    picture = next(tiny_run.data.rglob("*.png"))
    code = (
        "import sys, twinlens; model = twinlens.load(sys.argv[1]); "
        "print(model.distance(sys.argv[2], sys.argv[2]), 'torch' in sys.modules)"
    )
    words = [sys.executable, "-c", code, tmp_path / "whole", picture]
    answer = subprocess.run(words, capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["0.0", "False"]
