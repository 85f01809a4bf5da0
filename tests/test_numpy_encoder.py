"""Inference with NumPy gives the embeddings of torch, over all settings of a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn

from twinlens.config import ModelSettings, PictureSettings
from twinlens.errors import ModelError
from twinlens.model.bundle import save_bundle
from twinlens.model.comparators import Sigmoid, make_comparator
from twinlens.model.encoder import Encoder, embed_pixels
from twinlens.model.numpy_encoder import NumpyEncoder, load_numpy_encoder, sigmoid_scale
from twinlens.model.own_backbones import OWN_BACKBONES
from twinlens.model.stored import StoredModel, read_stored_model

SMALL: dict[str, Any] = {"size": (13, 10), "color": "rgb", "mean": (0.4, 0.5, 0.6), "std": (0.2,)}


def stored_network(
    folder: Path, model: dict[str, Any], picture: dict[str, Any] = SMALL
) -> tuple[Encoder, StoredModel]:
    """A network with statistics and slopes that are not where they begin."""
    torch.manual_seed(0)
    settings = ModelSettings.model_validate({"embedding": 6} | model)
    encoder = Encoder(settings, PictureSettings.model_validate(picture)).eval()
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(1, 3)
            module.bias.data.uniform_(-0.5, 1)
    save_bundle(folder, encoder, make_comparator(settings.comparator, settings.embedding))
    return encoder, read_stored_model(folder)


def random_pixels(picture: PictureSettings, num: int = 3) -> NDArray[np.uint8]:
    """Noise of another brightness for each picture, so that deep networks separate them."""
    shape = (num, picture.channels, *picture.size)
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return noise >> np.arange(num, dtype=np.uint8)[:, None, None, None]


def numpy_encoder(stored: StoredModel) -> NumpyEncoder:
    encoder = load_numpy_encoder(stored)
    assert encoder is not None
    return encoder


NETWORKS: dict[str, dict[str, Any]] = {
    "conv": {"backbone": "conv", "channels": (5, 7)},
    "conv, deeper than the picture": {"backbone": "conv", "channels": (5, 4, 3, 6, 7)},
    "conv, even kernel": {"backbone": "conv", "channels": (5, 7), "kernel": 2},
    "conv, even kernel of four": {"backbone": "conv", "channels": (5,), "kernel": 4, "leak": 0.1},
    "conv, kernel of one": {"backbone": "conv", "channels": (5, 7), "kernel": 1},
    "conv, kernel of five": {"backbone": "conv", "channels": (5, 7), "kernel": 5},
    "conv, as in tutorials": {
        "backbone": "conv", "channels": (5, 7), "kernel": 2, "batch_norm": False,
        "block_dropout": 0.3, "pool": "average", "init": "glorot",
    },
    "conv, leaking": {"backbone": "conv", "channels": (5, 7), "leak": 0.2},
    "mlp": {"backbone": "mlp", "channels": (9, 8, 7)},
    "mlp, leaking": {"backbone": "mlp", "channels": (9,), "leak": 0.3},
    "residual": {"backbone": "residual", "channels": (5, 7)},
    "residual, one width": {"backbone": "residual", "channels": (5, 5)},
    "residual, leaking, stride": {
        "backbone": "residual", "channels": (5, 7, 9), "leak": 0.2, "stride": 2,
    },
    "residual, flattened": {"backbone": "residual", "channels": (5, 7), "pool": "flatten"},
    "residual, attention": {"backbone": "residual", "channels": (3, 40), "attention": "eca"},
    "head": {"backbone": "mlp", "channels": (9,), "head": (8, 7, 5)},
    "head, normed": {"backbone": "mlp", "channels": (9,), "head": (8, 7), "head_norm": "all"},
    "head, never normed": {
        "backbone": "mlp", "channels": (9,), "head": (8, 7), "head_norm": "none", "dropout": 0.5,
    },
    "head, dropout": {"backbone": "mlp", "channels": (9,), "head": (8, 7), "dropout": 0.5},
    "no head, dropout": {"backbone": "mlp", "channels": (9,), "dropout": 0.5},
    "frozen": {"backbone": "conv", "channels": (5, 7), "freeze": "all"},
    "classes": {"backbone": "conv", "channels": (5, 7), "classes": True},
    "shifts": {"backbone": "conv", "channels": (5, 7), "shifts": True},
    "classes, shifts": {"backbone": "mlp", "channels": (9,), "classes": True, "shifts": True},
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("color", ["grey", "rgb"])
def test_the_embeddings_are_those_of_torch(
    name: str, normalize: bool, color: str, tmp_path: Path
) -> None:
    picture = SMALL | {"color": color} | ({"mean": (0.3,)} if color == "grey" else {})
    encoder, stored = stored_network(
        tmp_path / "m", NETWORKS[name] | {"normalize": normalize}, picture
    )
    pixels = random_pixels(encoder.picture)
    expected = embed_pixels(encoder, pixels)
    emb = numpy_encoder(stored).embed(pixels)
    assert (emb.dtype, emb.shape) == (np.float32, (3, 6))
    np.testing.assert_allclose(emb, expected, atol=1e-5, rtol=1e-5)
    assert np.abs(expected[0] - expected[1]).max() > 3e-3


@pytest.mark.parametrize(("stride", "pool"), [(1, "own"), (4, "average")])
def test_signet(stride: int, pool: str, tmp_path: Path) -> None:
    """Its normalisation too, whose parts are in no weights."""
    picture = {"size": (75 * stride, 67 * stride), "color": "grey"}
    if stride == 4:
        picture["size"] = (190, 130)
    model = {"backbone": "signet", "stride": stride, "pool": pool, "head": (7,), "dropout": 0.5}
    encoder, stored = stored_network(tmp_path / "m", model, picture)
    pixels = random_pixels(encoder.picture, 2)
    np.testing.assert_allclose(
        numpy_encoder(stored).embed(pixels), embed_pixels(encoder, pixels), atol=1e-5
    )


def test_every_setting_of_a_network_is_known() -> None:
    """A new one must be looked at here: one without weights would be passed over in silence."""
    assert set(ModelSettings.model_fields) == {
        "backbone", "channels", "kernel", "batch_norm", "block_dropout", "leak", "attention",
        "stride", "init", "pool", "pretrained", "weights", "freeze", "head", "head_norm",
        "dropout", "embedding", "normalize", "classes", "shifts", "comparator",
        "stage", "grid",  # of timm's networks alone
    }  # fmt: skip
    known = {str(network["backbone"]) for network in NETWORKS.values()}
    assert known | {"signet", "strokes"} == set(OWN_BACKBONES)


def test_by_hand(tmp_path: Path) -> None:
    """Two pixels, one hidden unit max(0, x0 - x1 + 1), embedded as (3 h, 4 h): length one."""
    encoder, _ = stored_network(
        tmp_path / "m",
        {"backbone": "mlp", "channels": (1,), "embedding": 2},
        {"size": (1, 2), "color": "grey", "mean": (0.0,), "std": (1.0,)},
    )
    hidden, out = encoder.backbone[1], encoder.head[0]  # type: ignore[index]
    hidden.weight.data, hidden.bias.data = torch.tensor([[1.0, -1.0]]), torch.tensor([1.0])
    out.weight.data, out.bias.data = torch.tensor([[3.0], [4.0]]), torch.tensor([0.0, 0.0])
    save_bundle(tmp_path / "m", encoder, make_comparator("cosine", 2))
    network = numpy_encoder(read_stored_model(tmp_path / "m"))
    pixels = np.array([[[[255, 0]]], [[[0, 255]]]], dtype=np.uint8)
    # The second one's unit is 0 - 1 + 1 = 0, and zeros stay zeros.
    np.testing.assert_allclose(network.embed(pixels), [[0.6, 0.8], [0, 0]], atol=1e-7)


def test_a_picture_does_not_depend_on_the_others(tmp_path: Path) -> None:
    encoder, stored = stored_network(tmp_path / "m", NETWORKS["residual"])
    pixels = random_pixels(encoder.picture, 4)
    together = numpy_encoder(stored).embed(pixels)
    for index in range(4):
        alone = numpy_encoder(stored).embed(pixels[index : index + 1])[0]
        np.testing.assert_allclose(alone, together[index], atol=1e-6)


def test_networks_of_others_are_left_to_torch(tmp_path: Path) -> None:
    _, stored = stored_network(
        tmp_path / "m", {"backbone": "test_resnet.r160_in1k"}, {"size": (32, 32)}
    )
    assert load_numpy_encoder(stored) is None


def other_weights(stored: StoredModel, change: str) -> None:
    weights = load_file(stored.weights_file)
    name = "encoder.backbone.0.0.weight"
    if change == "one too many":
        weights["encoder.backbone.0.9.weight"] = torch.zeros(3)
    elif change == "one too few":
        del weights[name]
    elif change == "another shape":
        weights[name] = weights[name][:, :2].contiguous()
    else:
        weights[name] = weights[name].to(getattr(torch, change))
    save_file(weights, stored.weights_file)


@pytest.mark.parametrize(
    "change", ["one too many", "one too few", "another shape", "float16", "bfloat16"]
)
def test_weights_that_do_not_match_the_settings_are_left_to_torch(
    change: str, tmp_path: Path
) -> None:
    _, stored = stored_network(tmp_path / "m", NETWORKS["conv"])
    assert load_numpy_encoder(stored) is not None
    other_weights(stored, change)
    assert load_numpy_encoder(stored) is None


def test_the_scale_of_a_sigmoid(tmp_path: Path) -> None:
    encoder, _ = stored_network(tmp_path / "m", NETWORKS["mlp"] | {"comparator": "sigmoid"})
    comparator = Sigmoid()
    comparator.log_scale.data.fill_(0.75)
    save_bundle(tmp_path / "m", encoder, comparator)
    assert sigmoid_scale(read_stored_model(tmp_path / "m")) == pytest.approx(np.exp(0.75))
    save_bundle(tmp_path / "m", encoder, make_comparator("cosine", 6))
    with pytest.raises(ModelError, match="damaged: its weights lack the comparator's"):
        sigmoid_scale(read_stored_model(tmp_path / "m"))


def test_a_model_of_the_first_format(tmp_path: Path) -> None:
    golden = Path(__file__).parent / "golden" / "bundle_1"
    pixels = np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), dtype=np.uint8)
    answer = json.loads((golden / "answer.json").read_text())
    emb = numpy_encoder(read_stored_model(golden)).embed(pixels)
    np.testing.assert_allclose(emb, answer["embeddings"], atol=1e-5)
