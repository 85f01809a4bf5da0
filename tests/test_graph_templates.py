"""A graph made of a template equals the one exported anew, whatever the weights are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from twinlens.config import Member, ModelSettings, PictureSettings
from twinlens.model import graph_templates, onnx_graphs
from twinlens.model.comparators import make_comparator
from twinlens.model.encoder import Encoder
from twinlens.model.fused import fused_settings, make_encoder
from twinlens.model.networks import Networks, save_model
from twinlens.model.stored import StoredModel

LEVEL = {"mean": (0.3,), "std": (0.25,)}
PICTURE = PictureSettings(size=(8, 8), color="grey", **LEVEL)
MODEL = ModelSettings(backbone="conv", channels=(3, 4), embedding=4, comparator="cosine")


@pytest.fixture
def exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each export; the templates lie in a folder of this test."""
    calls: list[str] = []
    whole = onnx_graphs._export
    monkeypatch.setattr(graph_templates, "template_folder", lambda: tmp_path / "graphs")
    monkeypatch.setattr(onnx_graphs, "_export", lambda *a: calls.append(a[2]) or whole(*a))
    return calls


def saved(folder: Path, encoder: Encoder) -> StoredModel:
    comparator = make_comparator("cosine", encoder.model_settings.embedding)
    return save_model(folder, Networks(encoder.eval(), comparator))  # It compares both.


def encoder(seed: int, picture: PictureSettings = PICTURE, *, plain: bool = False) -> Encoder:
    """An encoder whose batch norm and biases a graph folds; with `plain` less is to be folded."""
    torch.manual_seed(seed)
    encoder = Encoder(MODEL, picture)
    for name, tensor in encoder.state_dict().items():
        if not plain and name.endswith(("bias", "running_mean")):
            tensor.uniform_(-1, 1)
    return encoder


def graphs(folder: Path) -> list[Path]:
    return sorted((folder / "graphs").glob("*.onnx"))


def test_one_export_serves_all_weights_and_levels(exports: list[str], tmp_path: Path) -> None:
    first = saved(tmp_path / "a", encoder(0, plain=True))
    again = saved(tmp_path / "b", encoder(0, plain=True))
    assert first.description.fingerprint == again.description.fingerprint
    assert (first.path / "model.onnx").read_bytes() == (again.path / "model.onnx").read_bytes()
    other = PICTURE.model_copy(update={"mean": (0.6,), "std": (0.1,)})
    saved(tmp_path / "c", encoder(1))
    saved(tmp_path / "d", encoder(1, other))
    assert exports == ["embedding"]
    assert graphs(tmp_path)[0].stat().st_size < 50_000
    graphs(tmp_path)[0].write_bytes(b"damaged")
    new = saved(tmp_path / "e", encoder(0, plain=True))
    assert (len(exports), new.description.fingerprint) == (2, first.description.fingerprint)


def test_weights_of_members_need_no_new_export_and_the_oldest_templates_go(
    exports: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_templates, "MOST_KEPT", 2)
    (tmp_path / "graphs").mkdir()
    for number in (1, 2):
        (tmp_path / f"graphs/{number}.onnx").touch()
        os.utime(tmp_path / f"graphs/{number}.onnx", (number, number))
    gradients = ModelSettings(backbone="gradients", embedding=3, comparator="cosine")
    for number, weight in enumerate((0.3, 0.7)):
        members = [
            Member(model=MODEL, picture=PICTURE, weight=weight),
            Member(model=gradients, picture=PICTURE, weight=1 - weight),
        ]
        settings = fused_settings(members)
        saved(tmp_path / str(number), make_encoder(settings, PICTURE, members, load=False))
    assert len(exports) == 1
    assert [path.name for path in graphs(tmp_path) if len(path.name) < 9] == ["2.onnx"]


def test_without_facts_nothing_is_kept(exports: list[str], tmp_path: Path) -> None:
    network = torch.nn.Linear(2, 2)
    file = tmp_path / "model.onnx"
    for _ in range(2):
        onnx_graphs._write(network, {"x": torch.rand(2, 2)}, "y", file, {}, None)
    assert (exports, graphs(tmp_path)) == (["y", "y"], [])
