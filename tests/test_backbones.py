"""Networks by name: sizes, weights from files, freezing. Nothing here touches the network."""

from __future__ import annotations

import io
import urllib.error
import urllib.request
from collections.abc import Iterator
from itertools import pairwise, product
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from twinlens.config import ModelSettings, PictureSettings
from twinlens.errors import ConfigError
from twinlens.model.backbones import (
    check_backbone,
    freeze_before,
    make_backbone,
    num_features,
)
from twinlens.model.comparators import make_comparator
from twinlens.model.encoder import Encoder, embed_pixels
from twinlens.model.hub import hub_problem
from twinlens.model.layers import make_head
from twinlens.model.own_backbones import OWN_BACKBONES, Strokes, is_own
from twinlens.model.timm_backbones import has_pretrained, pretrained_picture, stage_strides
from twinlens.model.weights import load_weights
from twinlens.recipes import load_recipe

SHARED = Path(__file__).parents[2] / "shared"
LITE = SHARED / "weights" / "tf_efficientnet_lite0.in1k.safetensors"
RGB = PictureSettings(size=(64, 64))


def grey(height: int, width: int) -> PictureSettings:
    return PictureSettings(size=(height, width), color="grey")


def refusal(model: ModelSettings, picture: PictureSettings = RGB) -> str:
    with pytest.raises(ConfigError) as caught:
        make_backbone(model, picture)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (5, 5), (31, 17), (1, 9), (155, 220)])
@pytest.mark.parametrize("name", sorted(OWN_BACKBONES.keys() - {"signet"}))
def test_our_networks_take_any_size(name: str, size: tuple[int, int]) -> None:
    picture = grey(*size)
    torch.manual_seed(0)  # Four units may by chance all be dead.
    backbone = make_backbone(ModelSettings(backbone=name, channels=(8, 8, 8)), picture)
    features = backbone.eval()(torch.rand(2, 1, *size))
    assert features.dim() == 2
    assert features.shape == (2, num_features(backbone, picture))
    assert not torch.equal(features[0], features[1])


def test_signet_needs_pictures_of_some_size() -> None:
    with pytest.raises(ConfigError, match=r"set another picture\.size"):
        num_features(make_backbone(ModelSettings(backbone="signet"), grey(20, 20)), grey(20, 20))


def test_how_many_features() -> None:
    def features(name: str, size: tuple[int, int]) -> int:
        model = ModelSettings(backbone=name, channels=(4, 6, 8))
        return num_features(make_backbone(model, grey(*size)), grey(*size))

    assert features("conv", (28, 28)) == 8 * 3 * 3  # 28 -> 14 -> 7 -> 3
    assert features("conv", (3, 40)) == 8 * 1 * 20  # 3 -> 1, and then it no longer pools
    assert features("mlp", (28, 28)) == 8
    assert features("residual", (28, 28)) == 8


def test_a_network_of_timm_by_name() -> None:
    for name in ("test_resnet", "test_resnet.r160_in1k"):
        assert not is_own(name)
        backbone = make_backbone(ModelSettings(backbone=name), RGB)
        assert backbone(torch.rand(2, 3, 64, 64)).shape == (2, num_features(backbone, RGB))
    one_channel = make_backbone(ModelSettings(backbone="test_resnet"), grey(64, 64))
    assert num_features(one_channel, grey(64, 64)) > 0


def test_a_vision_transformer_is_built_for_the_pictures_size() -> None:
    picture = PictureSettings(size=(64, 96))
    backbone = make_backbone(ModelSettings(backbone="test_vit"), picture)
    assert num_features(backbone, picture) == backbone.num_features


def test_an_unknown_name_gets_the_near_ones() -> None:
    assert "did you mean resnet50" in refusal(ModelSettings(backbone="resnt50"))
    check_backbone("mlp")
    check_backbone("resnet18.a1_in1k")
    with pytest.raises(ConfigError, match="unknown backbone 'zzz': choose from") as caught:
        check_backbone("zzz")
    assert len(str(caught.value)) < 150  # timm knows more than a thousand.


def test_an_unknown_tag_is_one_line() -> None:
    assert "timm could not build" in refusal(ModelSettings(backbone="test_resnet.never_was"))


def test_pictures_that_are_too_small_for_a_network() -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 2, 9), nn.Flatten())
    with pytest.raises(ConfigError, match="3-channel pictures of 8x8"):
        num_features(backbone, PictureSettings(size=(8, 8)))


def test_there_are_no_pretrained_weights_for_ours() -> None:
    assert "no pretrained weights" in refusal(ModelSettings(backbone="conv", pretrained=True))


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tests are offline otherwise; the answer of the host is asked for once a process."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    hub_problem.cache_clear()
    yield
    hub_problem.cache_clear()


@pytest.mark.usefixtures("online")
def test_a_download_without_network_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise OSError("We couldn't connect to 'https://huggingface.co'\nmore\nlines")

    monkeypatch.setattr(urllib.request, "urlopen", lambda *args, **kwargs: io.BytesIO())
    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", unreachable)
    message = refusal(ModelSettings(backbone="test_resnet", pretrained=True))
    assert "the pretrained weights of 'test_resnet'" in message
    assert "couldn't connect" in message
    assert message.endswith("a local copy can be given with --weights FILE")
    # A bundle brings its own weights, so it does not ask for a download.
    make_backbone(ModelSettings(backbone="test_resnet", pretrained=True), RGB, load=False)


@pytest.mark.usefixtures("online")
def test_an_unreachable_host_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's client would try for minutes, with many lines of log."""

    def silent(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", silent)
    message = refusal(ModelSettings(backbone="test_resnet.r160_in1k", pretrained=True))
    assert "no route to host" in message
    for way in ("--weights FILE", "--backbone", "--set model.pretrained=false"):
        assert way in message


@pytest.mark.parametrize("kind", ["safetensors", "pth", "checkpoint"])
def test_weights_from_a_file(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    classifier = timm.create_model("test_resnet", num_classes=5)
    weights = classifier.state_dict()
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        save_file(weights, path)
    else:
        torch.save({"state_dict": weights, "epoch": 3} if kind == "checkpoint" else weights, path)
    backbone = make_backbone(ModelSettings(backbone="test_resnet", weights=str(path)), RGB)
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, weights[name])
    assert len(backbone.state_dict()) == len(weights) - 2  # All but the classifier.


def test_old_files_lack_the_count_of_batches(tmp_path: Path) -> None:
    weights = timm.create_model("test_resnet").state_dict()
    old = {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}
    assert len(old) < len(weights)
    save_file(old, tmp_path / "old.safetensors")
    model = ModelSettings(backbone="test_resnet", weights=str(tmp_path / "old.safetensors"))
    assert torch.equal(
        make_backbone(model, RGB).state_dict()["conv1.0.weight"], old["conv1.0.weight"]
    )


def test_weights_of_another_network_and_files_that_hold_none(tmp_path: Path) -> None:
    def message(content: object, name: str) -> str:
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        return refusal(ModelSettings(backbone="test_resnet", weights=str(path)))

    other = timm.create_model("test_efficientnet").state_dict()
    assert "belongs to another network" in message(other, "other.pth")
    shifted = timm.create_model("test_resnet", in_chans=1).state_dict()
    assert "1 have another shape, the first of them 'conv1.0.weight'" in message(shifted, "c.pth")
    assert "holds no tensors by name" in message([1, 2], "list.pth")
    assert "holds no tensors by name" in message({"state_dict": None, "conv1": 3}, "odd.pth")
    assert "holds no weights that can be read" in message(b"no weights", "text.pth")
    assert "holds no weights that can be read" in message(b"none", "text.safetensors")
    absent = ModelSettings(backbone="test_resnet", weights=str(tmp_path / "absent.pth"))
    assert "there is no weights file" in refusal(absent)


def test_a_weights_file_cannot_run_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (Path(tmp_path / "touched"),)  # type: ignore[return-value]

    torch.save({"x": Evil()}, tmp_path / "evil.pth")
    model = ModelSettings(backbone="test_resnet", weights=str(tmp_path / "evil.pth"))
    assert "holds no weights" in refusal(model)
    assert not (tmp_path / "touched").exists()


@pytest.mark.skipif(not LITE.is_file(), reason="../shared/weights is absent")
def test_real_weights_are_all_used_and_embed() -> None:
    model = ModelSettings(backbone="tf_efficientnet_lite0", weights=str(LITE), embedding=8)
    picture = PictureSettings(size=(64, 64))
    encoder = Encoder(model, picture)
    weights = load_file(LITE)
    own = encoder.backbone.state_dict()
    unused = set(weights) - set(own)
    assert unused <= {"classifier.weight", "classifier.bias"}
    assert all(torch.equal(own[k], weights[k]) for k in weights if k in own)
    pictures = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8).numpy()
    assert embed_pixels(encoder, pictures).shape == (2, 8)
    expected = pretrained_picture(model)
    assert expected == {"size": 224, "mean": (0.5,) * 3, "std": (0.5,) * 3}


def test_what_pretrained_weights_expect() -> None:
    assert pretrained_picture(ModelSettings(backbone="conv")) is None
    assert pretrained_picture(ModelSettings(backbone="test_resnet")) is None  # Random weights.
    actual = pretrained_picture(ModelSettings(backbone="test_resnet", pretrained=True))
    assert actual is not None
    assert actual["size"] == 160
    assert has_pretrained("resnet50")
    assert not has_pretrained("resnet50.never_was")


def step(encoder: Encoder) -> tuple[set[str], set[str]]:
    """One training step with weight decay; the names of the tensors that moved and of the rest."""
    for parameter in encoder.parameters():  # Some begin at 0, and would stop the gradient.
        parameter.data += 0.1 * torch.rand_like(parameter)
    before = {k: v.clone() for k, v in encoder.backbone.state_dict().items()}
    params = [p for p in encoder.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=0.1, weight_decay=0.1)
    encoder.train()
    size = encoder.picture.size
    encoder(torch.rand(4, encoder.picture.channels, *size)).square().mul(
        torch.rand(4, encoder.model_settings.embedding)
    ).sum().backward()
    optimizer.step()
    after = encoder.backbone.state_dict()
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    return moved, set(before) - moved


@pytest.mark.parametrize("name", ["conv", "residual", "test_resnet", "test_vit"])
def test_freezing_all_moves_nothing_but_the_head(name: str) -> None:
    picture = (
        PictureSettings(size=(32, 32)) if name != "test_vit" else PictureSettings(size=(64, 64))
    )
    model = ModelSettings(backbone=name, channels=(4, 6), embedding=3, freeze="all")
    encoder = Encoder(model, picture)
    head = [p.clone() for p in encoder.head.parameters()]
    moved, still = step(encoder)
    assert moved == set()
    assert still
    assert not any(torch.equal(a, b) for a, b in zip(head, encoder.head.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "layer", "frozen"),
    [
        ("conv", "1", ("0.",)),
        ("conv", "1.1", ("0.", "1.0.")),
        ("test_resnet", "layer2", ("conv1", "bn1", "layer1")),
        (
            "test_resnet",
            "layer2.0.conv2",
            ("conv1", "bn1", "layer1", "layer2.0.conv1", "layer2.0.bn1"),
        ),
        ("test_vit", "blocks.1", ("cls_token", "pos_embed", "patch_embed", "blocks.0")),
    ],
)
def test_freezing_up_to_a_layer(name: str, layer: str, frozen: tuple[str, ...]) -> None:
    model = ModelSettings(backbone=name, channels=(4, 6), embedding=3, freeze=layer)
    moved, still = step(Encoder(model, RGB))
    assert {k for k in still if not k.startswith(frozen)} == set()
    assert {k for k in moved if k.startswith(frozen)} == set()
    assert any(k.startswith(layer) for k in moved)
    assert still


def test_freezing_nothing_moves_everything() -> None:
    model = ModelSettings(backbone="conv", channels=(4, 6), embedding=3)
    assert step(Encoder(model, RGB))[1] == set()


def test_freezing_an_unknown_layer_names_the_near_ones() -> None:
    backbone = make_backbone(ModelSettings(backbone="test_resnet"), RGB)
    with pytest.raises(ConfigError, match=r"unknown layer of the backbone 'layr2': did you mean"):
        freeze_before(backbone, "layr2")


def unbuilt(recipe: str) -> tuple[Encoder, nn.Module]:
    """A recipe's encoder and comparator without memory for weights: shapes and counts only."""
    settings = load_recipe(recipe, {"model.pretrained": False}).settings()
    with torch.device("meta"):
        encoder = Encoder(settings.model, settings.picture)
        return encoder, make_comparator(settings.model.comparator, settings.model.embedding)


def num(module: nn.Module, *, learned: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not learned)


def test_lookalikes_counts_what_keras_counts_but_for_what_torch_keeps_elsewhere() -> None:
    """Keras: 75,168,640, of them 60,510,720 trainable from conv5_block1_out on."""
    encoder = unbuilt("lookalikes")[0].train()
    # Per block two convolutions of w channels and one of 4 w, per stage a shortcut of 4 w.
    stages = ((64, 3), (128, 4), (256, 6), (512, 3))
    channels = 64 + sum(blocks * 6 * w + 4 * w for w, blocks in stages)
    assert channels == 26_560
    biases = channels  # Each of its convolutions has one, though a batch norm follows.
    statistics = 2 * (channels + 512 + 256)  # Mean and variance are buffers in torch.
    assert num(encoder) == 75_168_640 - biases - statistics
    running = [b for name, b in encoder.named_buffers() if "running" in name]
    assert sum(b.numel() for b in running) == statistics
    assert num(encoder, learned=True) == 60_510_720 - 2 * (512 + 512 + 2048)
    stage = encoder.backbone.layer4
    assert num(stage[0], learned=True) == 0
    assert num(stage[1:], learned=True) == num(stage[1:])
    in_training = [module.training for module in (stage[0].bn3, stage[1].bn1, encoder.head[2])]
    assert in_training == [False, True, True]
    assert encoder.head[0].in_features == 7 * 7 * 2048


def test_what_the_other_published_networks_count() -> None:
    def dense(*widths: int) -> int:
        return sum((a + 1) * b for a, b in pairwise(widths))

    digits, sigmoid = unbuilt("digits-bce")
    assert num(digits) == (4 + 1) * 64 + (4 * 64 + 1) * 64 + dense(64, 48)
    assert num(sigmoid) == dense(1, 1)
    assert num(unbuilt("digits-mlp")[0]) == dense(784, 512, 256, 128) == 566_144
    faces = make_head(2048, load_recipe("faces-triplet").settings().model)
    assert num(faces) == dense(2048, 1024, 512, 256, 128) + 2 * (1024 + 512) == 2_790_272

    omniglot, network = unbuilt("omniglot-eca")
    assert num(network) == dense(512, 512, 1)
    widths = (64, 64, 128, 256, 512)
    stages = sum(9 * a * b + 3 * 9 * b * b + 4 * 2 * b for a, b in pairwise(widths))
    shortcuts = sum(a * b + 2 * b for a, b in pairwise(widths[1:]))
    assert num(omniglot) == 9 * 64 + 2 * 64 + stages + shortcuts + 3 + 5 + 5 + 5 + dense(512, 512)


def test_the_shapes_of_signet() -> None:
    """Table 1 of arXiv 1707.02131; their zero padding is ours."""
    encoder, _ = unbuilt("signet")
    seen = []
    for layer in encoder.backbone:
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.Flatten):
            layer.register_forward_hook(lambda _layer, _x, out: seen.append(tuple(out.shape[1:])))
    assert encoder(torch.zeros(1, 1, 155, 220, device="meta")).shape == (1, 128)
    assert seen == [
        (96, 145, 210), (96, 72, 104), (256, 72, 104), (256, 35, 51),
        (384, 35, 51), (256, 35, 51), (256, 17, 25), (256 * 17 * 25,),
    ]  # fmt: skip
    convolutions = ((11 * 11, 96), (5 * 5 * 96, 256), (3 * 3 * 256, 384), (3 * 3 * 384, 256))
    by_hand = sum((inside + 1) * out for inside, out in convolutions)
    assert num(encoder.backbone) == by_hand == 2_396_480
    assert num(encoder.head) == (256 * 17 * 25 + 1) * 1024 + (1024 + 1) * 128


def test_the_response_normalisation_of_signet_is_krizhevskys() -> None:
    """b_i = a_i / (2 + 1e-4 sum of a_j^2 over the five channels around i) ^ 0.75."""
    layers = make_backbone(ModelSettings(backbone="signet"), grey(80, 80))
    layer = next(module for module in layers if isinstance(module, nn.LocalResponseNorm))
    a = 100 * torch.rand(1, 7, 1, 1, generator=torch.Generator().manual_seed(0))
    around = [a[0, max(0, i - 2) : i + 3].square().sum() for i in range(7)]
    expected = [a[0, i] / (2 + 1e-4 * around[i]) ** 0.75 for i in range(7)]
    torch.testing.assert_close(layer(a)[0], torch.stack(expected))


@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
def test_a_convolution_that_keeps_the_size_pads_as_keras_does(kernel: int) -> None:
    """ "same" in Keras at stride 1: kernel - 1 zeros, the larger half below and to the right."""
    model = ModelSettings(backbone="conv", channels=(3,), kernel=kernel, batch_norm=False)
    torch.manual_seed(0)
    block = make_backbone(model, PictureSettings(size=(5, 4)))[0]
    layers = [m for m in block if isinstance(m, nn.ZeroPad2d | nn.Conv2d)]
    x = torch.rand(1, 3, 5, 4)
    weight, bias = layers[-1].weight.tolist(), layers[-1].bias.tolist()
    before, picture = (kernel - 1) // 2, x[0].tolist()
    expected = torch.zeros(3, 5, 4)
    for out, row, column in product(range(3), range(5), range(4)):
        total = bias[out]
        for channel, dy, dx in product(range(3), range(kernel), range(kernel)):
            y, x_at = row + dy - before, column + dx - before
            if 0 <= y < 5 and 0 <= x_at < 4:
                total += weight[out][channel][dy][dx] * picture[channel][y][x_at]
        expected[out, row, column] = total
    torch.testing.assert_close(nn.Sequential(*layers)(x)[0], expected)


def test_the_convolutions_of_a_block_after_the_first_work_on_the_pooled_map() -> None:
    model = ModelSettings(backbone="conv", channels=(2, 3), convolutions=2)
    torch.manual_seed(0)
    network = make_backbone(model, grey(6, 7)).eval()
    convs = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    x = x0 = torch.rand(4, 1, 6, 7)
    for index, conv in enumerate(convs):
        x = F.conv2d(x, conv.weight, padding=1)
        x = F.max_pool2d(x, 2) if index in (0, 2) else x
        x = F.relu(x / (1 + 1e-5) ** 0.5)
    torch.testing.assert_close(network(x0), x.flatten(1))
    assert [tuple(c.weight.shape[:2]) for c in convs] == [(2, 1), (2, 2), (3, 2), (3, 3)]


def test_channel_attention_by_hand() -> None:
    model = ModelSettings(backbone="residual", channels=(64, 128, 256, 512), attention="eca")
    stages = make_backbone(model, grey(8, 8))[1:5]
    attention = [stage[-1] for stage in stages]
    assert [a.conv.kernel_size for a in attention] == [(3,), (5,), (5,), (5,)]
    x = torch.randn(2, 64, 3, 4, generator=torch.Generator().manual_seed(0))
    before, at, after = attention[0].conv.weight.flatten().tolist()
    mean = F.pad(x.mean(dim=(2, 3)), (1, 1))
    gate = torch.sigmoid(before * mean[:, :-2] + at * mean[:, 1:-1] + after * mean[:, 2:])
    torch.testing.assert_close(attention[0](x), x * gate[:, :, None, None])


@pytest.mark.parametrize("name", ["conv", "mlp", "residual"])
def test_the_slope_below_zero(name: str) -> None:
    def slopes(leak: float) -> set[float]:
        model = ModelSettings(backbone=name, channels=(2, 2), leak=leak)
        layers = list(make_backbone(model, grey(8, 8)).modules())
        plain = {0.0 for layer in layers if isinstance(layer, nn.ReLU)}
        return plain | {m.negative_slope for m in layers if isinstance(m, nn.LeakyReLU)}

    assert slopes(0.2) == {0.2}
    assert slopes(0.0) == {0.0}


def test_a_leaky_unit_by_hand() -> None:
    model = ModelSettings(backbone="mlp", channels=(1,), leak=0.2)
    backbone = make_backbone(model, grey(1, 1))
    for parameter, value in zip(backbone.parameters(), (3.0, 1.0), strict=True):
        parameter.data.fill_(value)
    x = torch.tensor([-2.0, 2.0]).view(2, 1, 1, 1)
    torch.testing.assert_close(backbone(x), torch.tensor([[-5 * 0.2], [7.0]]))


@pytest.mark.parametrize(
    ("name", "own"), [("conv", "flatten"), ("residual", "average"), ("test_resnet", "average")]
)
def test_the_last_map_flattened_or_averaged(name: str, own: str) -> None:
    def features(pool: str) -> torch.Tensor:
        torch.manual_seed(0)
        model = ModelSettings(backbone=name, channels=(4, 6), pool=pool)
        return Encoder(model, RGB).eval().features(x)

    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        flat, average = features("flatten"), features("average")
        torch.testing.assert_close(features("own"), flat if own == "flatten" else average)
    assert flat.shape[1] > average.shape[1]
    by_channel = flat.view(2, average.shape[1], -1)
    torch.testing.assert_close(by_channel.mean(dim=2), average)


@pytest.mark.parametrize(("stage", "grid"), [(0, 1), (2, 4), (3, 2), (4, 1)])
def test_a_stage_is_the_networks_own_map_averaged(stage: int, grid: int) -> None:
    torch.manual_seed(0)
    cut = make_backbone(ModelSettings(backbone="test_resnet", stage=stage, grid=grid), RGB).eval()
    whole = timm.create_model("test_resnet", num_classes=0).eval()
    whole.load_state_dict(cut.network.state_dict(), strict=False)
    x = torch.rand(2, 3, 64, 64)
    (expected,) = whole.forward_intermediates(x, indices=[stage], intermediates_only=True)
    torch.testing.assert_close(cut(x), F.adaptive_avg_pool2d(expected, grid).flatten(1))
    assert num_features(cut, RGB) == expected.shape[1] * grid * grid
    side = expected.shape[-1]
    assert stage_strides("test_resnet")[stage] == 64 / side


def test_a_stage_leaves_out_what_comes_after_it() -> None:
    cut = make_backbone(ModelSettings(backbone="test_resnet", stage=1), RGB)
    names = {name.split(".")[1] for name, _ in cut.named_parameters()}
    assert "layer1" in names
    assert not {"layer2", "layer3", "layer4"} & names
    freeze_before(cut, "layer1")
    free = {name.split(".")[1] for name, p in cut.named_parameters() if p.requires_grad}
    assert free == {"layer1"}
    freeze_before(cut, "all")
    assert not any(p.requires_grad for p in cut.parameters())


def test_networks_without_such_a_stage() -> None:
    assert "has no stage 7 (it has 0 to 4)" in refusal(
        ModelSettings(backbone="test_resnet", stage=7)
    )
    for name in ("conv", "test_vit"):
        assert stage_strides(name) == ()
        assert "(it has none)" in refusal(ModelSettings(backbone=name, stage=1))


def test_strokes_have_no_weights_to_load(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="are for a backbone without weights: leave --weights out"
    ):
        load_weights(Strokes(PictureSettings(), ModelSettings()), tmp_path / "w.safetensors")
