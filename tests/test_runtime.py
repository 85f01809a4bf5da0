"""Answers on ONNX Runtime are those of torch, over all settings of a network.

An export takes a second or two, so most networks are slow tests.
"""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from twinlens.config import ModelSettings, PictureSettings
from twinlens.errors import ConfigError, ModelError
from twinlens.model.comparators import (
    Comparator,
    Network,
    Sigmoid,
    TorchComparison,
    make_comparator,
)
from twinlens.model.descriptors import DESCRIPTORS
from twinlens.model.encoder import Encoder, embed_pixels
from twinlens.model.networks import Networks, check_parity, save_model
from twinlens.model.onnx_file import read_onnx_header
from twinlens.model.own_backbones import OWN_BACKBONES
from twinlens.model.runtime import GraphComparison, OnnxEncoder
from twinlens.model.stored import StoredModel, file_sha256, read_stored_model

SMALL: dict[str, Any] = {"size": (13, 10), "color": "rgb", "mean": (0.4, 0.5, 0.6), "std": (0.2,)}
slow = pytest.mark.slow


def stored_network(
    folder: Path, model: dict[str, Any], picture: dict[str, Any] = SMALL
) -> tuple[Networks, StoredModel]:
    """Networks with statistics and slopes that are not where they begin.

    In a deep network slopes up to 3 would make rounding large, also that of torch alone.
    """
    slope, mean = (3, 1) if model["backbone"] in OWN_BACKBONES else (1.5, 0.1)
    torch.manual_seed(0)
    settings = ModelSettings.model_validate({"embedding": 6} | model)
    encoder = Encoder(settings, PictureSettings.model_validate(picture)).eval()
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.uniform_(-mean, mean)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(1, slope)
            module.bias.data.uniform_(-0.5, 1)
    comparator = make_comparator(settings.comparator, settings.embedding)
    if isinstance(comparator, Network):  # Else all its distances may be 0.
        comparator.out.weight.data.abs_().neg_()
    networks = Networks(encoder, comparator)
    return networks, save_model(folder, networks)


def random_pixels(picture: PictureSettings, num: int = 3) -> NDArray[np.uint8]:
    """Noise of another brightness for each picture, so that deep networks separate them."""
    shape = (num, picture.channels, *picture.size)
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return noise >> (np.arange(num, dtype=np.uint8) % 6)[:, None, None, None]


def embeddings(num: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(num, 6)).astype(np.float32)


# --- embeddings of torch --------------------------------------------------------------------------

QUICK: dict[str, dict[str, Any]] = {
    "conv, as in tutorials": {
        "backbone": "conv", "channels": (5, 7), "kernel": 2, "batch_norm": False,
        "block_dropout": 0.3, "pool": "average", "init": "glorot",
    },
    "conv, several in a block": {"backbone": "conv", "channels": (5, 7), "convolutions": 2},
    "residual, attention": {"backbone": "residual", "channels": (3, 40), "attention": "eca"},
    "classes, shifts, mirrored": {
        "backbone": "mlp", "channels": (9,), "classes": True, "shifts": True, "mirrored": True,
    },
    "head, normed": {
        "backbone": "mlp", "channels": (9,), "head": (8, 7), "head_norm": "all", "dropout": 0.5,
        "normalize": False,
    },
}  # fmt: skip
SLOW: dict[str, dict[str, Any]] = {
    "conv": {"backbone": "conv", "channels": (5, 7)},
    "conv, deeper than the picture": {"backbone": "conv", "channels": (5, 4, 3, 6, 7)},
    "conv, even kernel": {"backbone": "conv", "channels": (5, 7), "kernel": 2},
    "conv, even kernel of four": {"backbone": "conv", "channels": (5,), "kernel": 4, "leak": 0.1},
    "conv, kernel of one": {"backbone": "conv", "channels": (5, 7), "kernel": 1},
    "conv, kernel of five": {"backbone": "conv", "channels": (5, 7), "kernel": 5},
    "conv, without pooling": {"backbone": "conv", "channels": (2, 3), "max_pool": False},
    "conv, several in a block, as in tutorials": {
        "backbone": "conv", "channels": (5, 7), "convolutions": 3, "kernel": 2, "leak": 0.1,
        "batch_norm": False, "block_dropout": 0.3,
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
    "head": {"backbone": "mlp", "channels": (9,), "head": (8, 7, 5)},
    "head, never normed": {
        "backbone": "mlp", "channels": (9,), "head": (8, 7), "head_norm": "none", "dropout": 0.5,
    },
    "no head, dropout": {"backbone": "mlp", "channels": (9,), "dropout": 0.5},
    "frozen": {"backbone": "conv", "channels": (5, 7), "freeze": "all"},
    "classes": {"backbone": "conv", "channels": (5, 7), "classes": True},
    "shifts": {"backbone": "conv", "channels": (5, 7), "shifts": True},
    "mirrored": {"backbone": "conv", "channels": (5, 7), "mirrored": True},
    "shifts, not normalised": {
        "backbone": "residual", "channels": (5,), "shifts": True, "normalize": False,
    },
}  # fmt: skip


def assert_same(encoder: Encoder, stored: StoredModel, num: int = 3) -> None:
    pixels = random_pixels(encoder.picture, num)
    expected = embed_pixels(encoder, pixels)
    emb = OnnxEncoder(stored).embed(pixels)
    assert (emb.dtype, emb.shape) == (np.float32, (num, encoder.model_settings.embedding))
    np.testing.assert_allclose(emb, expected, atol=1e-5, rtol=1e-5)
    assert np.abs(expected[0] - expected[1]).max() > 1e-3


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=slow) for name in SLOW)])
def test_the_embeddings_are_those_of_torch(name: str, tmp_path: Path) -> None:
    networks, stored = stored_network(tmp_path / "m", (QUICK | SLOW)[name])
    assert_same(networks.encoder, stored)


@slow
@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("normalize", [True, False])
def test_grey_pictures(name: str, normalize: bool, tmp_path: Path) -> None:
    picture = SMALL | {"color": "grey", "mean": (0.3,)}
    model = QUICK[name] | {"normalize": normalize}
    networks, stored = stored_network(tmp_path / "m", model, picture)
    assert_same(networks.encoder, stored)


@slow
@pytest.mark.parametrize(("stride", "pool"), [(1, "own"), (4, "average")])
def test_signet(stride: int, pool: str, tmp_path: Path) -> None:
    """Its normalisation too, whose parts are in no weights."""
    picture = {"size": (75 * stride, 67 * stride), "color": "grey"}
    if stride == 4:
        picture["size"] = (190, 130)
    model = {"backbone": "signet", "stride": stride, "pool": pool, "head": (7,), "dropout": 0.5}
    networks, stored = stored_network(tmp_path / "m", model, picture)
    assert_same(networks.encoder, stored, 2)


@pytest.mark.parametrize(
    "options", [{"shifts": True, "head": (7,)}, {"clip": 0.5, "pressure": False}, {}]
)
def test_strokes(options: dict[str, object], tmp_path: Path) -> None:
    """Their features are computed in front of the graph."""
    picture = {"size": (20, 24), "color": "grey", "mean": (0.3,), "std": (0.2,)}
    model = {"backbone": "strokes", **options}
    networks, stored = stored_network(tmp_path / "m", model, picture)
    assert_same(networks.encoder, stored)


@slow
@pytest.mark.parametrize(
    ("backbone", "shifts"),
    [
        ("test_resnet.r160_in1k", True), ("test_vit", False), ("resnet18", False),
        ("mobilenetv3_small_050", False), ("tf_efficientnet_lite0", False),
        ("tf_efficientnet_lite0", True), ("vit_tiny_patch16_224", False), ("convnext_atto", False),
    ],
)  # fmt: skip
def test_networks_of_timm(backbone: str, shifts: bool, tmp_path: Path) -> None:
    side = 224 if "224" in backbone else 160 if "vit" in backbone else 64
    model = {"backbone": backbone, "shifts": shifts, "pretrained": False}
    networks, stored = stored_network(tmp_path / "m", model, {"size": (side, side)})
    assert_same(networks.encoder, stored, 2)


def test_every_setting_of_a_network_is_known() -> None:
    """A new one must be added to the networks above."""
    assert set(ModelSettings.model_fields) == {
        "backbone", "channels", "convolutions", "kernel", "batch_norm", "max_pool",
        "block_dropout", "leak", "attention", "stride", "init", "pool", "pretrained", "weights",
        "freeze", "head", "head_norm", "dropout", "embedding", "normalize", "classes", "shifts",
        "mirrored", "comparator", "clip", "norms", "pressure",
        "stage", "grid",  # of timm's networks alone
    }  # fmt: skip
    known = {str(network["backbone"]) for network in (QUICK | SLOW).values()}
    # Descriptors: tests/test_fused.py.
    assert known | {"signet", "strokes", *DESCRIPTORS} == set(OWN_BACKBONES)


def test_by_hand(tmp_path: Path) -> None:
    """Two pixels, one hidden unit max(0, x0 - x1 + 1), embedded as (3 h, 4 h): length one."""
    settings = ModelSettings(backbone="mlp", channels=(1,), embedding=2)
    picture = PictureSettings(size=(1, 2), color="grey", mean=(0.0,), std=(1.0,))
    encoder = Encoder(settings, picture).eval()
    hidden, out = encoder.backbone[1], encoder.head[0]  # type: ignore[index]
    hidden.weight.data, hidden.bias.data = torch.tensor([[1.0, -1.0]]), torch.tensor([1.0])
    out.weight.data, out.bias.data = torch.tensor([[3.0], [4.0]]), torch.tensor([0.0, 0.0])
    stored = save_model(tmp_path / "m", Networks(encoder, make_comparator("cosine", 2)))
    pixels = np.array([[[[255, 0]]], [[[0, 255]]]], dtype=np.uint8)
    # The second one's unit is 0 - 1 + 1 = 0, and zeros stay zeros.
    np.testing.assert_allclose(OnnxEncoder(stored).embed(pixels), [[0.6, 0.8], [0, 0]], atol=1e-7)


# --- batches --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def conv(tmp_path_factory: pytest.TempPathFactory) -> tuple[Networks, StoredModel]:
    """A network with a learned comparator; tests change neither."""
    model = {"backbone": "conv", "channels": (4, 8), "comparator": "network"}
    return stored_network(tmp_path_factory.mktemp("runtime") / "m", model)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_picture_does_not_depend_on_the_others(
    conv: tuple[Networks, StoredModel], threads: int
) -> None:
    """Bit for bit, whatever stands beside it, and whatever the number of threads."""
    networks, stored = conv
    pixels = random_pixels(networks.encoder.picture, 150)
    encoder = OnnxEncoder(stored, threads=threads)
    together = encoder.embed(pixels)
    np.testing.assert_array_equal(encoder.embed(pixels[::-1])[::-1], together)
    for num in (1, 2, 3, 63, 64, 65, 129):
        np.testing.assert_array_equal(encoder.embed(pixels[:num]), together[:num])
        np.testing.assert_array_equal(encoder.embed(pixels[-num:]), together[-num:])


@slow
@pytest.mark.parametrize("channels", [(8, 8), (5, 7)])
def test_networks_that_average(channels: tuple[int, ...], tmp_path: Path) -> None:
    """Bit for bit with a multiple of 4 channels; others are added up in another order."""
    networks, stored = stored_network(tmp_path, {"backbone": "residual", "channels": channels})
    pixels = random_pixels(networks.encoder.picture, 20)
    encoder = OnnxEncoder(stored)
    alone = np.concatenate([encoder.embed(pixels[[index]]) for index in range(20)])
    bound = 0 if channels[-1] % 4 == 0 else 1e-6
    np.testing.assert_allclose(alone, encoder.embed(pixels), rtol=0, atol=bound)


def test_no_pictures(conv: tuple[Networks, StoredModel]) -> None:
    networks, stored = conv
    emb = OnnxEncoder(stored).embed(random_pixels(networks.encoder.picture, 0))
    assert (emb.dtype, emb.shape) == (np.float32, (0, 6))


def test_arrays_of_any_layout(conv: tuple[Networks, StoredModel], tmp_path: Path) -> None:
    """Memory-mapped, read-only and not contiguous."""
    networks, stored = conv
    pixels = random_pixels(networks.encoder.picture, 9)
    np.save(tmp_path / "p.npy", pixels)
    encoder = OnnxEncoder(stored)
    expected = encoder.embed(pixels)
    np.testing.assert_array_equal(encoder.embed(np.load(tmp_path / "p.npy", "r")), expected)
    np.testing.assert_array_equal(encoder.embed(np.asfortranarray(pixels)), expected)
    np.testing.assert_array_equal(encoder.embed(np.repeat(pixels, 2, 0)[::2]), expected)


@pytest.mark.parametrize("threads", [1, 3])
def test_progress(conv: tuple[Networks, StoredModel], threads: int) -> None:
    networks, stored = conv
    calls: list[tuple[int, int]] = []
    pixels = random_pixels(networks.encoder.picture, 150)
    OnnxEncoder(stored, threads=threads).embed(pixels, lambda done, num: calls.append((done, num)))
    assert calls == [(64, 150), (128, 150), (150, 150)]


def test_threads_share_an_encoder(conv: tuple[Networks, StoredModel]) -> None:
    networks, stored = conv
    pixels = random_pixels(networks.encoder.picture, 70)
    encoder = OnnxEncoder(stored)
    with ThreadPoolExecutor(4) as pool:
        every = list(pool.map(encoder.embed, [pixels] * 8))
    for emb in every:
        np.testing.assert_array_equal(emb, every[0])
    np.testing.assert_allclose(every[0], embed_pixels(networks.encoder, pixels), atol=1e-5)


# --- comparators ----------------------------------------------------------------------------------


def assert_same_distances(comparator: Comparator, comparison: GraphComparison) -> None:
    reference = TorchComparison(comparator)
    a, b = embeddings(7, 1), embeddings(7, 2)
    # Different pictures: the exporter merges two inputs that are one object.
    distances = comparison.pairwise(a, b)
    np.testing.assert_allclose(distances, reference.pairwise(a, b), atol=1e-5, rtol=1e-5)
    assert distances.std() > 1e-3
    np.testing.assert_allclose(comparison.pairwise(b, a), distances, atol=1e-5, rtol=1e-5)
    np.testing.assert_array_equal(comparison.pairwise(a, a), 0)
    matrix = comparison.matrix(a[:5], b)
    assert (matrix.dtype, matrix.shape) == (np.float32, (5, 7))
    np.testing.assert_allclose(matrix, reference.matrix(a[:5], b), atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(np.diag(matrix), distances[:5], atol=1e-5, rtol=1e-5)
    for left, right in ((0, 7), (5, 0), (0, 0), (1, 1)):
        assert comparison.matrix(a[:left], b[:right]).shape == (left, right)
    assert comparison.pairwise(a[:0], b[:0]).shape == (0,)


def test_the_comparator_network(conv: tuple[Networks, StoredModel]) -> None:
    networks, stored = conv
    assert_same_distances(networks.comparator, GraphComparison(stored))


def test_the_comparator_sigmoid(tmp_path: Path) -> None:
    model = {"backbone": "mlp", "channels": (5,), "comparator": "sigmoid"}
    networks, _ = stored_network(tmp_path / "m", model)
    assert isinstance(networks.comparator, Sigmoid)
    networks.comparator.log_scale.data.fill_(0.75)
    stored = save_model(tmp_path / "m", networks)
    comparison = GraphComparison(stored)
    assert_same_distances(networks.comparator, comparison)
    a, b = embeddings(4, 1), embeddings(4, 2)
    expected = np.exp(0.75) * np.linalg.norm(a - b, axis=1)
    np.testing.assert_allclose(comparison.pairwise(a, b), expected, rtol=1e-5)


# --- the file -------------------------------------------------------------------------------------


def test_the_graph_describes_itself(conv: tuple[Networks, StoredModel]) -> None:
    networks, stored = conv
    header = read_onnx_header(stored.path / "model.onnx")
    metadata = header.metadata
    assert metadata["twinlens.weights"] == file_sha256(stored.weights_file)
    picture = PictureSettings.model_validate_json(metadata["twinlens.picture"])
    assert picture == networks.encoder.picture
    model = ModelSettings.model_validate_json(metadata["twinlens.model"])
    assert model == stored.description.model
    assert stored.description.graphs == {
        name: file_sha256(stored.path / name) for name in ("model.onnx", "comparator.onnx")
    }


def test_the_graph_names_no_file_of_this_machine(conv: tuple[Networks, StoredModel]) -> None:
    for name in ("model.onnx", "comparator.onnx"):
        content = (conv[1].path / name).read_bytes()
        for word in (os.fsencode(Path(__file__).parents[1]), b".py", b"site-packages"):
            assert word not in content


@pytest.mark.parametrize("change", ["weights", "NaN"])
def test_a_graph_that_differs_from_torch_is_not_used(
    change: str, conv: tuple[Networks, StoredModel], tmp_path: Path
) -> None:
    networks, _ = stored_network(tmp_path / "m", {"backbone": "mlp", "channels": (5,)})
    stored = read_stored_model(tmp_path / "m")
    pixels = random_pixels(networks.encoder.picture)
    check_parity(stored, networks.encoder, pixels)
    weight = networks.encoder.head[0].weight.data  # type: ignore[index]
    if change == "NaN":
        weight[0, 0] = torch.nan
    else:
        weight *= torch.rand(weight.shape)
    with pytest.raises(ModelError, match=r"model\.onnx differs from torch by"):
        check_parity(stored, networks.encoder, pixels)
    assert not read_stored_model(tmp_path / "m").description.graphs


@pytest.mark.parametrize("device", ["tpu", "cpu:1", "cuda:x", "", "CPU"])
def test_unknown_devices(device: str, conv: tuple[Networks, StoredModel]) -> None:
    with pytest.raises(ConfigError, match=f"found '{re.escape(device)}'"):
        OnnxEncoder(conv[1], device)


def test_devices_that_this_installation_lacks(conv: tuple[Networks, StoredModel]) -> None:
    with pytest.raises(ConfigError, match="needs another build of ONNX Runtime, this one has cpu"):
        OnnxEncoder(conv[1], "coreml" if os.name == "nt" else "directml")


def test_pictures_of_another_size(conv: tuple[Networks, StoredModel]) -> None:
    with pytest.raises(ModelError, match=r"cannot compute model\.onnx"):
        OnnxEncoder(conv[1]).embed(np.zeros((1, 3, 9, 9), np.uint8))


def test_a_model_without_graphs_is_no_encoder(conv: tuple[Networks, StoredModel]) -> None:
    stored = conv[1]
    description = stored.description.model_copy(update={"graphs": {}})
    folder = stored.path.parent / "nothing"
    with pytest.raises(ModelError, match=r"cannot load model\.onnx"):
        OnnxEncoder(replace(stored, path=folder, description=description)).embed(
            random_pixels(description.picture)
        )
