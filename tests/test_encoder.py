"""The encoder and its heads: what goes in, what comes out, and what it depends on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from twinlens.config import ModelSettings, PictureSettings
from twinlens.model.encoder import Encoder, embed_features, embed_pixels
from twinlens.model.layers import make_head

PICTURE = PictureSettings(size=(12, 10), mean=(0.2, 0.4, 0.6), std=(0.1, 0.2, 0.3))


def made(picture: PictureSettings = PICTURE, **model: object) -> Encoder:
    torch.manual_seed(0)
    values = {"backbone": "conv", "channels": (6, 8), "embedding": 5} | model
    return Encoder(ModelSettings.model_validate(values), picture).eval()


def pictures(num: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, 3, 12, 10), dtype=np.uint8)


@pytest.mark.parametrize(
    ("head", "dropout", "kinds"),
    [
        ((), 0.0, [nn.Linear]),
        ((), 0.5, [nn.Dropout, nn.Linear]),
        ((7,), 0.0, [nn.Linear, nn.ReLU, nn.Linear]),
        ((7,), 0.5, [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]),
        ((7, 6), 0.0, [nn.Linear, nn.ReLU, nn.BatchNorm1d, nn.Linear, nn.ReLU, nn.Linear]),
    ],
)
def test_layers_of_a_head(head: tuple[int, ...], dropout: float, kinds: list[type]) -> None:
    made_head = make_head(9, ModelSettings(head=head, dropout=dropout, embedding=4))
    assert [type(layer) for layer in made_head] == kinds
    assert made_head(torch.rand(3, 9)).shape == (3, 4)


def test_an_embedding_by_hand() -> None:
    """One grey pixel through an MLP of one unit and a head: ((x - mean) / std * w) * v."""
    picture = PictureSettings(size=(1, 1), color="grey", mean=(0.25,), std=(0.5,))
    model = ModelSettings(backbone="mlp", channels=(1,), embedding=1, normalize=False)
    encoder = Encoder(model, picture)
    for parameter, value in zip(encoder.parameters(), (2.0, 0.0, 3.0, 1.0), strict=True):
        parameter.data.fill_(value)
    x = torch.tensor([[[[204]]]], dtype=torch.uint8)  # 0.8
    assert encoder(x).item() == pytest.approx((0.8 - 0.25) / 0.5 * 2 * 3 + 1)


def test_uint8_and_float_pictures_agree() -> None:
    encoder, pixels = made(), torch.from_numpy(pictures(4))
    with torch.no_grad():
        torch.testing.assert_close(encoder(pixels), encoder(pixels.float() / 255))


@pytest.mark.parametrize("backbone", ["conv", "residual", "mlp"])
def test_a_picture_does_not_depend_on_its_batch(backbone: str) -> None:
    encoder, pixels = made(backbone=backbone, head=(7, 7), dropout=0.3), pictures(9)
    together = embed_pixels(encoder, pixels)
    alone = np.concatenate([embed_pixels(encoder, pixels[i : i + 1]) for i in range(9)])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(embed_pixels(encoder, pixels, batch_size=2), together, atol=1e-5)
    backwards = embed_pixels(encoder, pixels[::-1])
    np.testing.assert_allclose(backwards[::-1], together, atol=1e-5)


def test_preprocessing_is_the_encoders_own() -> None:
    other = PICTURE.model_copy(update={"mean": (0.5,), "std": (0.5,)})
    encoder, plain = made(), made(other)
    plain.load_state_dict(encoder.state_dict())  # The weights do not carry it, the settings do.
    pixels = torch.from_numpy(pictures(2))
    with torch.no_grad():
        assert not torch.allclose(encoder(pixels), plain(pixels))
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (PICTURE.mean, PICTURE.std))
        by_hand = ((pixels / 255 - mean) / std) * 0.5 + 0.5
        torch.testing.assert_close(plain(by_hand), encoder(pixels))


def test_normalised_embeddings_have_length_one() -> None:
    pixels = pictures(5)
    lengths = np.linalg.norm(embed_pixels(made(), pixels), axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-6)
    free = embed_pixels(made(normalize=False), pixels)
    assert np.ptp(np.linalg.norm(free, axis=1)) > 1e-3
    np.testing.assert_allclose(
        embed_pixels(made(), pixels), free / np.linalg.norm(free, axis=1, keepdims=True), atol=1e-6
    )


def test_classes_are_square_roots_of_probabilities() -> None:
    pixels = pictures(5)
    logits = torch.from_numpy(embed_pixels(made(normalize=False), pixels))
    emb_ND = embed_pixels(made(classes=True), pixels)
    np.testing.assert_allclose(emb_ND**2, logits.softmax(1).numpy(), atol=1e-6)


@pytest.mark.parametrize("normalize", [True, False])
def test_shifts_are_averaged_in_inference_and_not_in_training(normalize: bool) -> None:
    """By rolling pictures with an even border of two pixels, of which none comes in."""
    pixels = np.pad(pictures(4)[:, :, 2:-2, 2:-2], ((0, 0), (0, 0), (2, 2), (2, 2)))
    plain, shifted = made(normalize=normalize), made(normalize=normalize, shifts=True)
    shifted.load_state_dict(plain.state_dict())
    moves = [(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)]
    views = [embed_pixels(plain, np.roll(pixels, move, (2, 3))) for move in moves]
    expected = np.mean(views, axis=0)
    if normalize:
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(embed_pixels(shifted, pixels), expected, atol=1e-6)
    assert np.abs(expected - views[0]).max() > 1e-3
    torch.testing.assert_close(
        shifted.train()(torch.from_numpy(pixels)), plain.train()(torch.from_numpy(pixels))
    )


def test_mirror_images_are_averaged_in_inference_and_not_in_training() -> None:
    pixels = pictures(4)
    plain, mirrored = made(), made(mirrored=True)
    mirrored.load_state_dict(plain.state_dict())
    expected = embed_pixels(plain, pixels) + embed_pixels(plain, pixels[..., ::-1].copy())
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(embed_pixels(mirrored, pixels), expected, atol=1e-6)
    x = torch.from_numpy(pixels)
    torch.testing.assert_close(mirrored.train()(x), plain.train()(x))
    both = torch.stack(made(mirrored=True, shifts=True).eval().views(x))
    torch.testing.assert_close(both[5:], both[:5].flip(4))


def test_features_then_projection_is_the_whole() -> None:
    encoder, pixels = made(), pictures(6)
    with torch.no_grad():
        features = encoder.features(torch.from_numpy(pixels))
    np.testing.assert_allclose(
        embed_features(encoder, features), embed_pixels(encoder, pixels), atol=1e-6
    )


def test_embedding_leaves_the_encoder_as_it_was() -> None:
    encoder = made(dropout=0.5).train()
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    first = embed_pixels(encoder, pictures(4))
    np.testing.assert_allclose(embed_pixels(encoder, pictures(4)), first, atol=1e-6)
    assert encoder.training
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


def test_memory_that_is_read_only_and_no_pictures_at_all() -> None:
    pixels = pictures(3)
    pixels.flags.writeable = False
    done: list[tuple[int, int]] = []
    embed_pixels(made(), pixels, batch_size=2, progress=lambda *at: done.append(at))
    assert done == [(2, 3), (3, 3)]
    assert embed_pixels(made(), pixels[:0]).shape == (0, 5)


def test_bfloat16_and_channels_last_come_near() -> None:
    encoder, pixels = made(), pictures(8)
    plain = embed_pixels(encoder, pixels)
    half = embed_pixels(encoder, pixels, bfloat16=True)
    assert half.dtype == np.float32
    np.testing.assert_allclose(half, plain, atol=0.05)
    assert not np.array_equal(half, plain)
    assert not encoder.uses_channels_last
    encoder.to(memory_format=torch.channels_last)
    assert encoder.uses_channels_last
    np.testing.assert_allclose(embed_pixels(encoder, pixels), plain, atol=1e-5)


@pytest.mark.parametrize(
    ("norm", "normed"), [("all", [7, 6, 5]), ("between", [7, 6]), ("none", [])]
)
def test_where_a_head_is_normalised(norm: str, normed: list[int]) -> None:
    model = ModelSettings(head=(7, 6, 5), head_norm=norm, dropout=0.2, embedding=4)
    layers = list(make_head(9, model))
    assert [m.num_features for m in layers if isinstance(m, nn.BatchNorm1d)] == normed
    # A norm is the last of what belongs to its hidden layer, as in the tutorials.
    assert all(isinstance(layers[i - 1], nn.Dropout) for i, m in enumerate(layers)
               if isinstance(m, nn.BatchNorm1d))  # fmt: skip
    assert isinstance(layers[-1], nn.Linear)


def test_glorots_bounds() -> None:
    """Uniform within sqrt(6 / (ins + outs)), where a convolution's widths count its kernel."""
    encoder = made(channels=(32, 64), kernel=2, batch_norm=False, head=(40,), init="glorot")
    first, second = (m for m in encoder.backbone.modules() if isinstance(m, nn.Conv2d))
    hidden, out = (m for m in encoder.head if isinstance(m, nn.Linear))
    features = hidden.in_features
    widths = ((4 * 3, 4 * 32), (4 * 32, 4 * 64), (features, 40), (40, 5))
    for layer, (ins, outs) in zip((first, second, hidden, out), widths, strict=True):
        bound = (6 / (ins + outs)) ** 0.5
        assert 0.9 * bound < layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.15)
        assert (layer.bias == 0).all()


@pytest.mark.parametrize(("backbone", "anew"), [("conv", True), ("test_resnet", False)])
def test_glorot_leaves_a_network_of_timms_as_it_was(backbone: str, anew: bool) -> None:
    size = PictureSettings(size=(32, 32))
    plain, glorot = (made(size, backbone=backbone, init=init) for init in ("own", "glorot"))
    pairs = zip(plain.backbone.parameters(), glorot.backbone.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs) == anew
    assert not torch.equal(plain.head[0].weight, glorot.head[0].weight)


def test_glorot_leaves_weights_from_a_file_as_they_are(tmp_path: Path) -> None:
    given = made().backbone.state_dict()
    save_file(given, tmp_path / "given.safetensors")
    encoder = made(init="glorot", weights=str(tmp_path / "given.safetensors"))
    for name, tensor in encoder.backbone.state_dict().items():
        assert torch.equal(tensor, given[name]), name
