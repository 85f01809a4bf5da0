"""Models without training: features of a timm network, and ONNX networks from elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import PictureFolder, TinyRun
from onnx import helper, numpy_helper

import twinlens
from twinlens.cli.main import main
from twinlens.config import FaceSettings
from twinlens.errors import CalibrationError, ConfigError, ModelError
from twinlens.match.matcher import Matcher
from twinlens.model.stored import read_values, write_description

SIDE, DIM = 16, 12
NETWORK = "test_resnet.r160_in1k"


def write_network(
    file: Path, *, opset: int = 11, batch: int | str = 1, channels: int = 3, twice: bool = False
) -> np.ndarray:
    """An ONNX network of random weights on (1, C, 16, 16), as older exporters write it."""
    weight = np.random.default_rng(0).normal(size=(channels * SIDE**2, DIM)).astype(np.float32)
    nodes = [
        helper.make_node("Reshape", ["data", "flat"], ["row"]),
        helper.make_node("MatMul", ["row", "weight"], ["fc1"]),
    ]
    shape = [batch, channels, SIDE, SIDE]
    outputs = [helper.make_tensor_value_info("fc1", 1, [batch, DIM])]
    graph = helper.make_graph(
        nodes, "network", [helper.make_tensor_value_info("data", 1, shape)],
        outputs + ([helper.make_tensor_value_info("row", 1, [batch, None])] if twice else []),
        [numpy_helper.from_array(weight, "weight"),
         numpy_helper.from_array(np.array([1, -1]), "flat")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=6)
    onnx.save(model, file)
    return weight


def test_an_onnx_network_becomes_a_model_that_ranks_and_then_answers(
    tmp_path: Path, picture_folder: PictureFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = picture_folder({f"p{number}": 4 for number in range(8)}, size=(20, 20))
    weight = write_network(tmp_path / "face.onnx")
    words = ["pack", str(tmp_path / "face.onnx"), "--out", str(tmp_path / "packed")]
    words += ["--mean", "127.5", "--std", "128", "--scale", "255", "--bgr", "--licence", "mit"]
    assert main(words) == 0
    captured = capsys.readouterr()
    assert captured.out.strip() == str(tmp_path / "packed")
    assert "licence: mit" in captured.err
    model = twinlens.load(tmp_path / "packed")
    start = model.stored.description.start
    assert start is not None
    assert (start.name, start.licence) == ("face.onnx", "mit")
    # Blue, green, red, one channel after the other, from levels of 0 to 255.
    files = sorted(photos.glob("*/*.png"))[:5]
    pixels = model.pixels(files).astype(np.float32)
    expected = ((pixels[:, ::-1] - 127.5) / 128).reshape(5, -1) @ weight
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(model.embed(files), expected, atol=1e-5)
    pair = [str(file) for file in files[:2]]
    assert main(["verify", str(model.path), *pair]) == 2
    refusal = capsys.readouterr().err
    assert f"the distance of these pictures is {model.distance(*files[:2]):.4f}" in refusal
    gallery = str(tmp_path / "gallery")
    assert main(["gallery", "create", gallery, "--model", str(model.path)]) == 0
    assert main(["gallery", "enrol", gallery, str(photos)]) == 0
    assert main(["identify", gallery, pair[0]]) == 2
    assert f"`twinlens search {gallery} PICTURE` ranks" in capsys.readouterr().err
    assert main(["search", gallery, pair[0]]) == 0
    # The command that the refusal names.
    assert f"twinlens calibrate {model.path} DATA" in refusal
    assert main(["calibrate", str(model.path), str(photos)]) == 0
    assert main(["verify", str(model.path), *pair]) == 0


@pytest.mark.parametrize(
    ("options", "more", "error", "text"),
    [
        ({}, {"scale": None}, ConfigError, "--scale 255"),
        ({}, {"size": 32}, ConfigError, "takes pictures of 16 x 16"),
        ({}, {"weights": "w.safetensors"}, ConfigError, "holds its weights"),
        ({}, {"mean": (0.1, 0.2)}, ConfigError, "needs 1 or 3 numbers"),
        ({}, {"scale": 0.0}, ConfigError, "scale must be in"),
        ({"channels": 1}, {"bgr": True}, ConfigError, "takes grey pictures"),
        ({"channels": 2}, {}, ModelError, "N x 2 x 16 x 16"),
        ({"twice": True}, {}, ModelError, r"\(2, 12\) and \(2, 768\)"),
    ],
)
def test_onnx_networks_that_cannot_be_used_are_refused(
    options: dict[str, object], more: dict[str, object], error: type[Exception], text: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    write_network(tmp_path / "a.onnx", **options)  # type: ignore[arg-type]
    with pytest.raises(error, match=text):
        twinlens.pack(tmp_path / "a.onnx", **({"out": tmp_path / "m", "scale": 1} | more))  # type: ignore[arg-type]
    assert not (tmp_path / "m").exists()


def test_a_file_that_is_no_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"not an ONNX file")
    with pytest.raises(ModelError, match="not a usable ONNX model"):
        twinlens.pack(tmp_path / "a.onnx", out=tmp_path / "m", scale=1)
    (tmp_path / "a.jpg").write_bytes(b"a picture")
    with pytest.raises(ConfigError, match=r"a\.jpg is no ONNX file: needed is one"):
        twinlens.pack(tmp_path / "a.jpg", out=tmp_path / "m")


def test_a_second_try_finds_its_place_free_and_ends_with_the_next_command(
    tmp_path: Path, picture_folder: PictureFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    few = picture_folder({"a": 2, "b": 2}, size=(16, 16))
    write_network(tmp_path / "a.onnx")
    out = str(tmp_path / "packed")
    words = ["pack", str(tmp_path / "a.onnx"), str(few), "--scale", "1", "--out", out]
    assert main([*words, "--unlabelled"]) == 2
    assert "Without these pictures the model ranks only" in capsys.readouterr().err
    assert not list(tmp_path.glob("*packed*"))
    picture_folder({f"p{number}": 4 for number in range(8)}, size=(16, 16))
    assert main([*words, "--unlabelled"]) == 0
    *_, threshold, following = capsys.readouterr().err.splitlines()
    assert threshold.startswith("threshold: ")
    assert following.startswith(f"next: twinlens verify {out} ")
    assert main(following.split(maxsplit=2)[2].replace("'", "").split()) in (0, 1)


@pytest.mark.parametrize(
    ("name", "more", "text"),
    [
        ("vit_small_patch16_dinov3.lvd1689m", {}, "--accept-licence"),
        ("conv", {}, "no pretrained weights for 'conv'"),
        ("resnet1888", {}, "resnet18"),
        (NETWORK, {"bgr": True}, "describe ONNX files"),
        ("auto", {}, "no pretrained weights are at hand"),
    ],
)
def test_networks_without_usable_weights_are_refused(
    name: str, more: dict[str, bool], text: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=text):
        twinlens.pack(name, out=tmp_path / "m", **more)  # type: ignore[arg-type]


@pytest.mark.slow
def test_features_become_a_model_with_and_without_pictures(
    tmp_path: Path, picture_folder: PictureFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm
    from safetensors.torch import save_file

    photos = picture_folder({f"p{number}": 5 for number in range(8)}, size=(32, 32))
    network = timm.create_model(NETWORK, pretrained=False)
    save_file(network.state_dict(), tmp_path / f"{NETWORK}.safetensors")
    monkeypatch.setenv("TWINLENS_WEIGHTS", str(tmp_path))
    plain = twinlens.pack(NETWORK, out=tmp_path / "plain", size=64)
    start = plain.stored.description.start
    assert start is not None
    assert start.licence == "apache-2.0"
    assert plain.calibration is None
    files = sorted(photos.glob("*/*.png"))
    emb_ND = plain.embed(files[:3])
    assert emb_ND.shape[1] == network.num_features
    np.testing.assert_allclose(np.linalg.norm(emb_ND, axis=1), 1, atol=1e-5)
    # Without labels a threshold, and no probability.
    unlabelled = twinlens.pack(NETWORK, photos, out=tmp_path / "unlabelled", size=64,
                               unlabelled=0.1)  # fmt: skip
    assert unlabelled.verify(files[0], files[1]).probability is None
    np.testing.assert_allclose(unlabelled.embed(files[:3]), emb_ND, atol=1e-6)
    fitted = twinlens.pack(NETWORK, photos, out=tmp_path / "fitted", size=64)
    assert fitted.calibration is not None
    assert fitted.calibration.num_identities == 8
    assert fitted.verify(files[0], files[1]).probability is not None
    # Its pictures are known as those of its fit.
    result = twinlens.evaluate(fitted.path, photos)
    assert result.identity_disjoint is False


def test_every_refusal_of_an_uncalibrated_run_leads_to_an_answer(
    tiny_run: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_run.run, tmp_path / "run")
    model = tmp_path / "run" / "model"
    values = read_values(model)
    write_description(model, values | {"calibration": None, "domain": None})
    few = tmp_path / "few"
    files = sorted(tiny_run.data.glob("*/*.png"))
    for file in files:
        (few / file.parent.name).mkdir(parents=True, exist_ok=True)
        if file.stem == "0" or file.parent.name == "thing 0":
            shutil.copy(file, few / file.parent.name)
    pair = [str(file) for file in files[:2]]
    assert main(["verify", str(model), *pair]) == 2
    advice = f"twinlens calibrate {model} {tiny_run.data} --on all"
    assert f"`{advice}`" in capsys.readouterr().err
    # Two pictures of one identity, which the model was trained on, are too few.
    assert main(["calibrate", str(model), str(few), "--on", "val"]) == 2
    assert f"`twinlens calibrate {model} {few} --on all`" in capsys.readouterr().err
    assert main(advice.split()[1:]) == 0
    assert main(["verify", str(model), *pair]) in (0, 1)


def test_where_labels_give_no_pairs_the_next_command_needs_none(
    tiny_run: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_run.model, tmp_path / "model")
    single = tmp_path / "single"
    for number, file in enumerate(sorted(tiny_run.data.glob("*/*.png"))):
        (single / str(number)).mkdir(parents=True)
        shutil.copy(file, single / str(number))
    model = str(tmp_path / "model")
    assert main(["calibrate", model, str(single), "--on", "all"]) == 2
    assert f"`twinlens calibrate {model} {single} --unlabelled`" in capsys.readouterr().err
    assert main(["calibrate", model, str(single), "--unlabelled"]) == 0
    for number in range(20, 60):
        shutil.rmtree(single / str(number))
    with pytest.raises(CalibrationError, match="`twinlens search` the nearest"):
        twinlens.calibrate(model, single, split="all")
    assert Matcher.load(model).calibration is not None


def test_a_network_of_faces_remembers_that_it_compares_them(tmp_path: Path) -> None:
    write_network(tmp_path / "face.onnx")
    model = twinlens.pack(tmp_path / "face.onnx", out=tmp_path / "packed", scale=255, face=True)
    assert twinlens.load(model.path).face == FaceSettings(align=True)
