from __future__ import annotations

import http.server
import logging
import threading

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save_file

import twinlens
from twinlens.commands.fit_model import frozen_network
from twinlens.commands.prepare import choose_run_settings
from twinlens.config import ModelSettings, PictureSettings
from twinlens.data.folders import read_table
from twinlens.data.splits import assign_splits
from twinlens.errors import ConfigError
from twinlens.exports.model_card import CardFacts, model_card
from twinlens.model import hub, pretrained
from twinlens.model.encoder import Encoder
from twinlens.model.pretrained import STARTS, describe_start, find_start
from twinlens.model.stored import ModelDescription, StartRecord, read_stored_model
from twinlens.recipes import load_recipe

LITE = "tf_efficientnet_lite0.in1k"
LEVELS = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
TRANSFORMER = "vit_small_patch14_reg4_dinov2.lvd142m"
NON_FREE = "convnextv2_tiny.fcmae_ft_in22k_in1k"


@pytest.fixture(autouse=True)
def fresh_process():
    """The hub is tried once in a process."""
    hub.hub_problem.cache_clear()
    pretrained._download.cache_clear()


@pytest.fixture
def weights_folder(tmp_path, monkeypatch):
    folder = tmp_path / "weights"
    folder.mkdir()
    monkeypatch.setenv("TWINLENS_WEIGHTS", str(folder))
    return folder


@pytest.fixture(scope="session")
def lite_weights(tmp_path_factory):
    """Random weights in a file as timm writes it, classifier included."""
    file = tmp_path_factory.mktemp("lite") / f"{LITE}.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model(LITE).state_dict(), file)
    return file


@pytest.fixture
def photographs(tmp_path):
    """Colour pictures of 8 identities, 4 each."""
    rng = np.random.default_rng(0)
    for name in range(8):
        folder = tmp_path / f"photographs/{name}"
        folder.mkdir(parents=True)
        for number in range(4):
            Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).save(
                folder / f"{number}.png"
            )
    return tmp_path / "photographs"


def settings_for(folder, overrides=None, **options):
    table = assign_splits(read_table(folder), mode="identities", fractions=(0.6, 0.4, 0), seed=0)
    settings, choices = choose_run_settings(load_recipe("auto", overrides), table, **options)
    return settings, {choice.key: choice.why for choice in choices}


@pytest.mark.parametrize("start", STARTS, ids=lambda start: start.name)
def test_the_table_agrees_with_timm(start):
    record = timm.models.get_pretrained_cfg(start.name)
    assert start.licence == record.license
    assert record.hf_hub_id == f"timm/{start.name}"
    side = record.input_size[-1]
    assert start.size == side or (record.fixed_input_size and start.size < side)
    with torch.device("meta"):
        network = timm.create_model(start.name)
    size = sum(tensor.numel() for tensor in network.parameters()) * 4e-6
    assert start.megabytes == pytest.approx(size, rel=0.1, abs=6)


def test_ranks_are_distinct():
    assert len({start.gpu for start in STARTS}) == len(STARTS)
    cpu = [start.cpu for start in STARTS if start.cpu is not None]
    assert len(set(cpu)) == len(cpu)


def test_without_weights_one_line_says_what_to_do(caplog):
    assert find_start("cpu") is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    for words in (LITE, "TWINLENS_WEIGHTS", "--weights", "EER"):
        assert words in record.message


def test_the_best_for_the_device_is_taken_from_the_folder(weights_folder):
    (weights_folder / f"{LITE}.safetensors").touch()
    (weights_folder / "vit_pe_core_base_patch16_224.fb.safetensors").touch()
    (weights_folder / "resnet18.a1_in1k.safetensors").touch()
    assert find_start("cpu").name == LITE
    assert find_start("cuda").name == "vit_pe_core_base_patch16_224.fb"
    assert find_start("cuda:1").place == "TWINLENS_WEIGHTS"


def test_licences_with_conditions_need_consent(weights_folder, caplog):
    (weights_folder / f"{NON_FREE}.safetensors").touch()
    assert find_start("cpu") is None
    (record,) = caplog.records
    assert "--accept-licence" in record.message
    assert "cc-by-nc-4.0" in record.message
    assert find_start("cpu", accept_licence=True).name == NON_FREE


def test_a_missing_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TWINLENS_WEIGHTS", str(tmp_path / "gone"))
    with pytest.raises(ConfigError, match="gone, which is no folder"):
        find_start("cpu")


def test_the_cache_of_the_hub_comes_first(weights_folder, tmp_path, monkeypatch, lite_weights):
    (weights_folder / f"{LITE}.safetensors").symlink_to(lite_weights)
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", "", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / f"hub/models--timm--{LITE}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("0" * 40)
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to(lite_weights)
    assert find_start("cpu").place == "the hub's cache"


# --- training -----------------------------------------------------------------------------------


def test_photographs_begin_with_weights_at_hand(photographs, weights_folder, lite_weights):
    (weights_folder / lite_weights.name).symlink_to(lite_weights)
    settings, why = settings_for(photographs)
    assert settings.model.backbone == LITE
    assert settings.model.pretrained
    assert settings.picture.color == "rgb"
    assert "apache-2.0" in why["model.backbone"]
    encoder = Encoder(settings.model.model_copy(update={"stage": None}), settings.picture)
    stored = timm.create_model(LITE, checkpoint_path=lite_weights).state_dict()
    for name, tensor in encoder.backbone.state_dict().items():
        torch.testing.assert_close(tensor, stored[name])


def test_grey_photographs_are_given_as_colour(tmp_path, weights_folder, lite_weights):
    (weights_folder / lite_weights.name).symlink_to(lite_weights)
    rng = np.random.default_rng(0)
    for name in range(6):
        (tmp_path / f"grey/{name}").mkdir(parents=True)
        for number in range(3):
            pixels = rng.integers(0, 256, (24, 24), np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"grey/{name}/{number}.png")
    settings, _ = settings_for(tmp_path / "grey")
    assert (settings.model.backbone, settings.picture.color) == (LITE, "rgb")


@pytest.mark.parametrize(
    "overrides",
    [
        {"model.backbone": "conv"},
        {"model.pretrained": False},
        {"picture.color": "grey"},
        {"model.weights": "own.safetensors"},
    ],
)
def test_settings_of_the_user_stay(photographs, weights_folder, lite_weights, overrides):
    (weights_folder / lite_weights.name).symlink_to(lite_weights)
    settings, _ = settings_for(photographs, overrides)
    assert settings.model.backbone in ("conv", "residual")


def test_drawings_learn_from_nothing(tmp_path, weights_folder, lite_weights):
    (weights_folder / lite_weights.name).symlink_to(lite_weights)
    for name in range(6):
        (tmp_path / f"drawn/{name}").mkdir(parents=True)
        for number in range(3):
            pixels = np.full((24, 24), 255, np.uint8)
            pixels[name : name + 4, number : number + 8] = 0
            Image.fromarray(pixels).save(tmp_path / f"drawn/{name}/{number}.png")
    settings, _ = settings_for(tmp_path / "drawn")
    assert (settings.model.backbone, settings.picture.color) == ("conv", "grey")


def test_damaged_weights_are_refused_by_name(photographs, weights_folder, tmp_path):
    (weights_folder / f"{LITE}.safetensors").write_bytes(b"damaged")
    with pytest.raises(ConfigError, match=rf"{LITE}\.safetensors holds no weights"):
        twinlens.train(photographs, out=tmp_path / "run", quiet=True)


def test_weights_of_another_network_are_refused(weights_folder):
    file = weights_folder / f"{LITE}.safetensors"
    save_file(timm.create_model("resnet10t").state_dict(), file)
    settings = load_recipe("auto", {"model.backbone": LITE, "model.pretrained": True}).settings()
    with pytest.raises(ConfigError, match="belongs to another network"):
        Encoder(settings.model, settings.picture.model_copy(update={"color": "rgb"}))


def test_the_start_of_a_named_network_is_described():
    name = "convnextv2_atto.fcmae"
    record = describe_start(ModelSettings(backbone="convnextv2_atto.fcmae", pretrained=True))
    source = f"https://huggingface.co/timm/{name}"
    assert record == StartRecord(name, "cc-by-nc-4.0", source, "fcmae")


@pytest.mark.slow
def test_training_begins_with_the_weights(photographs, weights_folder, lite_weights, tmp_path):
    (weights_folder / lite_weights.name).symlink_to(lite_weights)
    # Without candidates, of which another may win on made-up pictures.
    overrides = {"train.candidates": False, "train.steps": 1, "picture.size": (32, 32)}
    twinlens.train(photographs, out=tmp_path / "run", settings=overrides, quiet=True)
    start = read_stored_model(tmp_path / "run").description.start
    assert start is not None
    assert (start.name, start.licence, start.trained_on) == (LITE, "apache-2.0", "ImageNet-1k")
    assert start.source == f"https://huggingface.co/timm/{LITE}"


def test_a_file_of_the_user_has_an_unknown_licence():
    model = load_recipe("auto", {"model.weights": "somewhere/own.pth"}).settings().model
    record = describe_start(model)
    assert record is not None
    assert (record.name, record.licence) == ("own.pth", "unknown")


def test_a_model_learned_from_nothing_has_no_start(tiny_run):
    assert read_stored_model(tiny_run.model).description.start is None


def test_a_named_network_takes_the_folder_too(weights_folder, lite_weights):
    (weights_folder / lite_weights.name).symlink_to(lite_weights)
    # Without a tag, its default weights are meant.
    assert hub.weights_in_folder("tf_efficientnet_lite0") == weights_folder / lite_weights.name
    assert hub.weights_in_folder("resnet18") is None


@pytest.mark.parametrize(
    ("size", "name", "side"),
    [
        ((20, 16), LITE, 96), ((64, 64), LITE, 96), ((384, 512), LITE, 224),
        ((20, 16), TRANSFORMER, 224),  # Its positions are of one size.
    ],
)  # fmt: skip
def test_drawings_are_enlarged_less_for_convolutions(weights_folder, size, name, side):
    (weights_folder / f"{name}.safetensors").touch()
    settings = load_recipe("auto", {"model.backbone": "conv", "picture.size": size}).settings()
    model, picture = frozen_network(settings, 100)
    assert (model.backbone, model.pretrained) == (name, True)
    assert (picture.size, picture.color) == ((side, side), "rgb")
    most = 3000 * (224 // side) ** 2
    assert frozen_network(settings, most)[0] == model
    assert frozen_network(settings, 3 * most) == (None, settings.picture)


@pytest.mark.slow
def test_a_vision_transformer_takes_another_size(weights_folder):
    name = TRANSFORMER
    save_file(timm.create_model(name).state_dict(), weights_folder / f"{name}.safetensors")
    settings = load_recipe("auto", {"model.backbone": name, "model.pretrained": True}).settings()
    picture = PictureSettings(size=(56, 56), color="rgb", **LEVELS)
    encoder = Encoder(settings.model, picture)
    assert encoder(torch.zeros(1, 3, 56, 56)).shape == (1, settings.model.embedding)
    same = Encoder(settings.model, picture, load=False)
    same.load_state_dict(encoder.state_dict())


# --- the hub ------------------------------------------------------------------------------------


@pytest.fixture
def local_hub(lite_weights, monkeypatch, tmp_path):
    """A server that answers as the hub does for one file, and the paths of its requests."""
    content, paths = lite_weights.read_bytes(), []

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self, *, body):
            paths.append(self.path)
            known = self.path in ("/", f"/timm/{LITE}/resolve/main/model.safetensors")
            self.send_response(200 if known else 404)
            self.send_header("X-Repo-Commit", "1" * 40)
            self.send_header("ETag", '"' + "2" * 64 + '"')
            self.send_header("Content-Length", str(len(content) if known else 0))
            self.end_headers()
            if body and known:
                self.wfile.write(content)

        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield paths
    server.shutdown()
    server.server_close()


def test_weights_are_downloaded_once(local_hub):
    start = find_start("cpu")
    assert start is not None
    assert start.place == "a download"
    num = len(local_hub)
    start = find_start("cpu")
    assert start is not None
    assert start.place == "the hub's cache"
    assert len(local_hub) == num > 0


def test_offline_nothing_is_requested(local_hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find_start("cpu") is None
    assert local_hub == []


def test_weights_that_are_not_there_are_explained(local_hub, monkeypatch, caplog):
    gone = STARTS[0]._replace(name="mobilenetv4_conv_small.e2400_r224_in1k")
    monkeypatch.setattr(pretrained, "STARTS", (gone,))
    assert find_start("cpu") is None
    assert "cannot download mobilenetv4_conv_small" in caplog.text


def test_a_hub_that_does_not_answer_is_tried_once(monkeypatch, caplog):
    calls = []

    def refuse(request, timeout):
        calls.append(timeout)
        raise OSError("connection refused")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub.urllib.request, "urlopen", refuse)
    assert find_start("cpu") is None
    assert find_start("cpu") is None
    assert len(calls) == 1
    assert find_start("cpu", download=False) is None
    settings = load_recipe("auto", {"model.backbone": LITE, "model.pretrained": True}).settings()
    with pytest.raises(ConfigError, match=r"connection refused.*TWINLENS_WEIGHTS"):
        Encoder(settings.model, settings.picture.model_copy(update={"color": "rgb"}))


def test_a_model_card_names_the_licence_of_the_start():
    def front(start: StartRecord | None) -> str:
        model = ModelSettings(backbone=LITE)
        description = ModelDescription(
            picture=PictureSettings(), model=model, weights=None, fingerprint="0" * 16, start=start
        )
        return model_card(description, CardFacts()).split("---")[1]

    text = front(describe_start(ModelSettings(backbone=LITE, pretrained=True)))
    assert f'base_model: "timm/{LITE}"\nlicense: "apache-2.0"\n' in text
    for start in (None, describe_start(ModelSettings(backbone=LITE, weights="own.pth"))):
        assert "license" not in front(start)
        assert "base_model" not in front(start)
