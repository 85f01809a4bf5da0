"""The frozen layers of a network run once: stored inputs give the features of a full pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from twinlens.config import ModelSettings, PictureSettings
from twinlens.learn import features
from twinlens.learn.features import FrozenPart
from twinlens.machine import memory
from twinlens.model.compute import Compute
from twinlens.model.encoder import Encoder

PICTURE = PictureSettings(size=(40, 32), color="rgb", mean=(0.5,) * 3, std=(0.25,) * 3)
PLAIN = Compute("cpu", bfloat16=False, channels_last=False)


def frozen(layer: str = "layer4") -> tuple[Encoder, Tensor, np.ndarray]:
    torch.manual_seed(0)
    model = ModelSettings(backbone="resnet18", freeze=layer, embedding=8)
    encoder = Encoder(model, PICTURE).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 3, 40, 32), dtype=np.uint8)
    return encoder, torch.from_numpy(pixels), pixels


def test_stored_inputs_give_the_features_of_a_full_pass() -> None:
    encoder, x, pixels = frozen()
    part = FrozenPart(encoder, PLAIN)
    rows = np.array([5, 0, 39, *range(1, 35)])  # More than a batch, in any order.
    stored = part.compute_all(pixels, rows)
    assert stored is not None
    assert stored.dtype == torch.float16
    assert stored.shape == (37, 256, 3, 2)
    with torch.no_grad():
        whole = encoder.features(x[torch.from_numpy(rows)])
    assert torch.allclose(part.features(stored), whole, atol=1e-2 * float(whole.abs().max()))
    turned = part.compute_all(pixels, rows, mirrored=True)
    assert turned is not None
    with torch.no_grad():
        whole = encoder.features(x[torch.from_numpy(rows)].flip(3))
    assert torch.allclose(part.features(turned), whole, atol=1e-2 * float(whole.abs().max()))


def test_gradients_reach_the_layers_that_learn_and_no_others() -> None:
    encoder, _, pixels = frozen()
    part = FrozenPart(encoder, PLAIN)
    stored = part.compute_all(pixels, np.arange(4))
    assert stored is not None
    part.after(stored).sum().backward()
    learned = {name for name, p in encoder.backbone.named_parameters() if p.grad is not None}
    assert learned
    assert all(name.startswith("layer4") for name in learned)


def test_a_layer_whose_input_does_not_suffice_gives_none() -> None:
    """Here the features hold the mean of the picture as well, past the layer."""
    encoder, _, pixels = frozen()

    class Past(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network, self.layer4 = network, network.layer4

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x) + x.mean((1, 2, 3))[:, None]

    encoder.backbone = Past(encoder.backbone)
    assert FrozenPart(encoder, PLAIN).compute_all(pixels, np.arange(4)) is None


def test_inputs_beyond_the_memory_give_none(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, _, pixels = frozen()
    monkeypatch.setattr(features, "memory", lambda: 1000)
    assert FrozenPart(encoder, PLAIN).compute_all(pixels, np.arange(4)) is None


def test_inputs_on_a_gpu_need_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", {torch.device("cuda:1"): (7, 8)}.get)
    assert features._memory_of(torch.device("cuda:1")) == 7
    assert features._memory_of(torch.device("cpu")) == memory()


def test_a_frozen_backbone_gives_its_features() -> None:
    encoder, x, pixels = frozen("all")
    part = FrozenPart(encoder, PLAIN)
    stored = part.compute_all(pixels, np.arange(5))
    assert stored is not None
    with torch.no_grad():
        assert torch.allclose(stored, encoder.features(x[:5]), atol=1e-5)
    assert part.features(stored) is not None
    assert torch.equal(part.features(stored), stored)
