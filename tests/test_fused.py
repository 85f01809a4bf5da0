"""A fused model: one encoder whose distance is a weighted sum of its members' distances."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import save_networks
from PIL import Image

import twinlens
from twinlens.config import Member, ModelSettings, PictureSettings
from twinlens.errors import ModelError
from twinlens.gallery.gallery import Gallery
from twinlens.measure.calibration import Calibration
from twinlens.measure.probability import Platt
from twinlens.model.comparators import make_comparator
from twinlens.model.encoder import Encoder, as_float, default_batch_size, embed_pixels
from twinlens.model.fused import FusedEncoder, fused_settings
from twinlens.model.networks import check_parity, load_networks
from twinlens.model.stored import fingerprint_of, read_stored_model

GREY = PictureSettings(size=(24, 20), color="grey")
COLOR = PictureSettings(size=(21, 33), color="rgb", mean=(0.0,) * 3, std=(1.0,) * 3)
CALIBRATION = Calibration(0.3, 0.2, 0.4, 0.1, 9, 9, 3, Platt(2.0, -1.0), None, None)


def member(picture: PictureSettings, weight: float = 1.0, **model: Any) -> Member:
    values = {"embedding": 8, **model}
    return Member(model=ModelSettings.model_validate(values), picture=picture, weight=weight)


def network(picture: PictureSettings, weight: float = 1.0, **more: Any) -> Member:
    """A small network that takes grey pictures of its own size."""
    own = PictureSettings(size=(16, 16), color="grey", mean=(0.4,), std=(0.3,))
    return member(own, weight, backbone="conv", channels=(4, 6), **more)


def everything(picture: PictureSettings) -> list[Member]:
    """All descriptors and a network, with weights that do not sum to 1."""
    plain = picture.model_copy(update={"mean": (0.0,), "std": (1.0,)})
    parts = enumerate(("pixels", "histogram", "gradients"), 1)
    return [network(picture, 0.5), *(member(plain, n, backbone=name) for n, name in parts)]


def fused(
    picture: PictureSettings, members: list[Member], *, mirrored: bool = False
) -> FusedEncoder:
    torch.manual_seed(0)
    settings = fused_settings(members, mirrored=mirrored)
    return FusedEncoder(settings, picture, members).eval()  # type: ignore[return-value]


def pictures(picture: PictureSettings) -> np.ndarray:
    """Noise, smooth pictures, and pictures of one colour."""
    rng = np.random.default_rng(0)
    channels, (height, width) = picture.channels, picture.size
    shape = (channels, height, width)
    coarse = rng.integers(0, 256, (4, 4, 4, 3), dtype=np.uint8)
    mode = "L" if channels == 1 else "RGB"
    smooth = [
        np.asarray(Image.fromarray(one).convert(mode).resize((width, height)))
        .reshape(height, width, channels)
        .transpose(2, 0, 1)
        for one in coarse
    ]
    flat = [np.full(shape, level, np.uint8) for level in (0, 1, 51, 128, 255)]
    return np.stack([*rng.integers(0, 256, (4, *shape), dtype=np.uint8), *smooth, *flat])


@pytest.mark.parametrize("picture", [GREY, COLOR], ids=["grey", "colour"])
def test_the_distance_is_the_weighted_sum_of_the_members(picture: PictureSettings) -> None:
    members, pixels = everything(picture), pictures(picture)
    whole = fused(picture, members)
    emb_ND = embed_pixels(whole, pixels)
    assert np.linalg.norm(emb_ND, axis=1) == pytest.approx(np.ones(len(pixels)), abs=1e-5)
    total = np.zeros((len(pixels), len(pixels)))
    x = torch.from_numpy(pixels).float() / 255
    for number, one in enumerate(members):
        with torch.no_grad():
            features = whole.networks[number](whole.inputs[number](x)).flatten(1)
            own = torch.nn.functional.normalize(whole.heads[number](features), dim=1).numpy()
        total += one.weight / 6.5 * (1 - own @ own.T)
    assert 1 - emb_ND @ emb_ND.T == pytest.approx(total, abs=1e-5)


@pytest.mark.parametrize("shifts", [False, True])
@pytest.mark.parametrize("mirrored", [False, True])
def test_each_member_is_averaged_over_the_views_that_it_sees(shifts: bool, mirrored: bool) -> None:
    """So the distance of the average is still the weighted sum of the members' distances."""
    plain = GREY.model_copy(update={"mean": (0.0,), "std": (1.0,)})
    members = [
        network(GREY, 3.0, shifts=shifts),
        member(plain, 1.0, backbone="gradients"),
        member(plain, 4.0, backbone="pixels", classes=True),
    ]
    whole, pixels = fused(GREY, members, mirrored=mirrored), pictures(GREY)
    emb_ND = embed_pixels(whole, pixels)
    assert whole.model_settings.shifts is shifts
    distance = np.zeros((len(pixels), len(pixels)))
    for number, weight in enumerate((0.375, 0.125, 0.5)):
        alone = Alone(whole, number, mirrored=mirrored)
        emb = embed_pixels(alone, pixels)
        distance += weight * (1 - emb @ emb.T)
    assert 1 - emb_ND @ emb_ND.T == pytest.approx(distance, abs=1e-5)
    with torch.inference_mode():
        at_once = whole.embed(torch.from_numpy(pixels), at_once=True).numpy()
    assert at_once == pytest.approx(emb_ND, abs=1e-5)


class Alone(Encoder):
    """A member of a fused model as an encoder of the same pictures."""

    def __init__(self, whole: FusedEncoder, number: int, *, mirrored: bool) -> None:
        one = whole.members[number]
        super().__init__(one.model.model_copy(update={"mirrored": mirrored}), one.picture)
        self.inputs = whole.inputs[number]
        self.backbone, self.head = whole.networks[number], whole.heads[number]
        self.eval()

    def features(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return torch.flatten(self.backbone(self.inputs(as_float(x_BCHW))), 1)


def test_large_pictures_are_embedded_in_small_batches() -> None:
    """Of a member too, whatever the size of the fused model's pictures."""
    enlarged = COLOR.model_copy(update={"size": (224, 224)})
    small, large = everything(COLOR), [member(enlarged, backbone="gradients")]
    sizes = [default_batch_size(fused(COLOR, members)) for members in (small, [*small, *large])]
    assert sizes == [256, 32]
    assert default_batch_size(Encoder(ModelSettings(backbone="mlp"), COLOR)) == 256
    assert default_batch_size(Encoder(ModelSettings(backbone="conv"), enlarged)) == 32


def test_members_at_several_stages_share_one_network() -> None:
    own = PictureSettings(size=(32, 32), color="rgb", mean=(0.5,) * 3, std=(0.25,) * 3)
    taps: list[dict[str, Any]] = [{"stage": 1, "grid": 2}, {}, {"stage": 3}]
    members = [member(own, backbone="resnet18", freeze="all", **tap) for tap in taps]
    whole = fused(own, [*members, member(own, backbone="pixels")])
    assert len(whole.networks) == 2
    assert whole.widths == [64 * 4, 512, 256, 3 * 256]
    pixels = pictures(own)
    x = torch.from_numpy(pixels)
    with torch.no_grad():
        parts = torch.split(whole.features(x), whole.widths, dim=1)
    for one, features in zip(members, parts, strict=False):
        alone = Encoder(one.model, own).eval()
        source = whole.networks[0].network.state_dict()
        inner = alone.backbone if one.model.stage is None else alone.backbone.network
        inner.load_state_dict(source, strict=False)  # A stage is cut off after its last layer.
        with torch.no_grad():
            assert torch.allclose(alone.features(x), features, atol=1e-4)


def test_a_trained_network_is_taken_over() -> None:
    torch.manual_seed(3)
    one = member(GREY, backbone="conv", channels=(4, 6))
    whole = fused(GREY, [member(GREY, backbone="pixels"), one])
    trained = Encoder(one.model, one.picture).eval()
    whole.take_over(1, trained)
    pixels = pictures(GREY)
    emb = embed_pixels(whole, pixels)[:, 8:] * np.sqrt(2)
    assert emb == pytest.approx(embed_pixels(trained, pixels), abs=1e-5)


# --- on disk ------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[GREY, COLOR], ids=["grey", "colour"])
def picture(request: pytest.FixtureRequest) -> PictureSettings:
    made: PictureSettings = request.param
    return made


@pytest.fixture(scope="module")
def model(picture: PictureSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(picture, tmp_path_factory.mktemp("fused") / "model")


@pytest.fixture(scope="module")
def grey_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(GREY, tmp_path_factory.mktemp("grey") / "model")


def save(picture: PictureSettings, folder: Path) -> Path:
    whole = fused(picture, everything(picture), mirrored=True)
    comparator = make_comparator("cosine", whole.model_settings.embedding)
    return save_networks(folder, whole, comparator, calibration=CALIBRATION.as_json()).path


def test_the_graph_gives_the_embeddings_of_torch(model: Path, picture: PictureSettings) -> None:
    """Also of pictures of one colour, where descriptors divide by next to nothing."""
    stored = twinlens.load(model).stored
    loaded = load_networks(stored).encoder
    assert isinstance(loaded, FusedEncoder)
    assert loaded.members == tuple(everything(picture))
    check_parity(stored, loaded, pictures(picture))
    whole = fused(picture, everything(picture), mirrored=True)
    assert (embed_pixels(whole, pictures(picture)) == embed_pixels(loaded, pictures(picture))).all()


def files(folder: Path, picture: PictureSettings) -> list[Path]:
    made = []
    for number, pixels in enumerate(pictures(picture)[:8]):
        image = pixels.transpose(1, 2, 0)
        made.append(folder / f"{number % 2}" / f"{number}.png")
        made[-1].parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0] if picture.channels == 1 else image).save(made[-1])
    return made


def test_a_gallery_of_a_fused_model(model: Path, picture: PictureSettings, tmp_path: Path) -> None:
    one, other = files(tmp_path / "a", picture)[3:5]
    gallery = Gallery.create(tmp_path / "g", model)
    for path in (one, other):
        gallery.enrol_files(path.stem, path)
    answer = gallery.identify(one)
    assert answer.candidates[0].identity == one.stem
    assert answer.candidates[0].distance == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("form", ["onnx", "onnx-int8", "openvino", "web"])
def test_an_export_answers_like_a_fused_model(
    form: str, model: Path, picture: PictureSettings, tmp_path: Path
) -> None:
    if form == "openvino":
        pytest.importorskip("openvino")
    a, b = files(tmp_path / "a", picture)[3:5]
    twinlens.export(model, tmp_path / "out", format=form, data=tmp_path / "a", quiet=True)
    if form != "web":
        exported = twinlens.load(tmp_path / "out").distance(a, b)
        assert exported == pytest.approx(
            twinlens.load(model).distance(a, b), abs=0.1 if form == "onnx-int8" else 1e-4
        )


def model_of(values: dict[str, Any], number: int = 0) -> dict[str, Any]:
    settings: dict[str, Any] = values["members"][number]["model"]
    return settings


def twice(values: dict[str, Any]) -> None:
    values["members"][1] = values["members"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(members=[]), "a fused model has members, and no other has"),
        (lambda v: v.pop("members"), "a fused model has members, and no other has"),
        (lambda v: v["model"].update(backbone="conv"), "a fused model has members, and no other"),
        (lambda v: v.update(members=v["members"] * 250), "at most 100 items"),
        (lambda v: twice(v), "two members are the same network: 'conv'"),
        (lambda v: v["members"].pop(), "have 24 numbers, that of the model 32"),
        (lambda v: v["members"][0].update(weight=-1), "members.0.weight: input"),
        (lambda v: model_of(v).update(backbone="../x"), "'../x'"),
        (lambda v: model_of(v).update(backbone="fused"), "'fused' is made by `auto`"),
        (lambda v: model_of(v).update(backbone="strokes"), "has another shape"),
        (lambda v: model_of(v).update(embedding=10**12), "members.0.model.embedding"),
        (lambda v: model_of(v).update(channels=[60000, 60000]), "numbers, at most"),
        (lambda v: v["members"][1]["picture"].update(size=[8192, 8192]), "members.1.picture.size"),
        (lambda v: v["members"][1]["picture"].update(size=[4096, 4096]), "pixels in all"),
        (lambda v: v["model"].update(embedding=31), "that of the model 31"),
        (lambda v: v.update(members=["x"]), "members.0"),
    ],
)  # fmt: skip
def test_a_hostile_description_is_refused(
    change: Callable[[dict[str, Any]], None], message: str, grey_model: Path, tmp_path: Path
) -> None:
    """Also with a checksum that fits."""
    folder = Path(shutil.copytree(grey_model, tmp_path / "m"))
    values = json.loads((folder / "model.json").read_text())
    change(values)
    values["fingerprint"] = fingerprint_of(values)
    (folder / "model.json").write_text(json.dumps(values))
    with pytest.raises(ModelError) as caught:
        load_networks(read_stored_model(folder))
    assert "\n" not in str(caught.value)
    assert message in str(caught.value)
