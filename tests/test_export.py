"""Exports: folders that answer like a model, with their own threshold, and graphs used alone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TinyRun, save_networks
from PIL import ExifTags, Image

import twinlens
from twinlens.config import ModelSettings, PictureSettings
from twinlens.errors import CalibrationError, ConfigError, DataError, MissingExtraError, ModelError
from twinlens.exports import readme
from twinlens.exports.web import RUNTIME_VERSION
from twinlens.measure.calibration import Calibration
from twinlens.measure.probability import Platt
from twinlens.model.comparators import COMPARATORS, Network, make_comparator
from twinlens.model.encoder import Encoder
from twinlens.model.runtime import OnnxEncoder

DOCUMENT = Path(__file__).parents[1] / "docs" / "export.md"
CALIBRATION = Calibration(0.3, 0.2, 0.4, 0.1, 9, 9, 3, Platt(2.0, -1.0), None, None)
GRAPHS = {
    "onnx": {"model.onnx"},
    "onnx-int8": {"model.onnx"},
    "openvino": {"model.xml", "model.bin"},
    "hub": {"model.onnx", "model.safetensors"},
}


def pair_of(run: TinyRun) -> tuple[Path, Path]:
    return run.data / "thing 0" / "0.png", run.data / "thing 3" / "0.png"


def conv_model(folder: Path, comparator: str = "cosine", color: str = "grey", **more: Any) -> Path:
    """A model whose pictures are 24 x 20."""
    torch.manual_seed(1)
    values = {"backbone": "conv", "channels": (4, 6), "embedding": 8, "comparator": comparator}
    picture = PictureSettings.model_validate({"size": (24, 20), "color": color} | more)
    encoder = Encoder(ModelSettings.model_validate(values), picture)
    networks = make_comparator(comparator, 8)
    if isinstance(networks, Network):  # Untrained it would often say 0.
        networks.hidden.weight.data.abs_()
        networks.out.weight.data.abs_().neg_()
    calibration = CALIBRATION.as_json()
    return save_networks(folder, encoder, networks, calibration=calibration).path


def smooth(size: tuple[int, int], seed: int, color: str = "grey") -> Image.Image:
    """A made-up photograph of (width, height)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    return picture.convert("L" if color == "grey" else "RGB")


@pytest.mark.parametrize("form", GRAPHS)
def test_an_export_answers_like_a_model(form: str, tiny_run: TinyRun, tmp_path: Path) -> None:
    if form == "openvino":
        pytest.importorskip("openvino")
    out = tmp_path / "out"
    result = twinlens.export(tiny_run.run, out, format=form, quiet=True)
    assert {path.name for path in out.iterdir()} == GRAPHS[form] | {
        "model.json", "README.md", "export.json",
    }  # fmt: skip
    a, b = pair_of(tiny_run)
    model, exported = twinlens.load(tiny_run.run), twinlens.load(out)
    moved = abs(exported.distance(a, b) - model.distance(a, b))
    assert moved <= (0.2 if form == "onnx-int8" else 1e-5)
    answer = twinlens.verify(out, a, b)
    assert answer.threshold == exported.require_calibration().threshold
    assert (answer.threshold == model.require_calibration().threshold) == (form != "onnx-int8")
    assert exported.fingerprint == result.fingerprint != model.fingerprint
    pairs = result.comparison.pairs
    assert pairs is not None
    assert pairs.num_pictures == 12  # those of validation
    assert result.comparison.num_changed is not None
    stored = json.loads((out / "export.json").read_text())
    assert stored == {k: v for k, v in result.as_json().items() if k != "path"}
    # Neither places nor names of people leave this machine.
    for name in ("model.json", "README.md", "export.json"):
        text = (out / name).read_text()
        assert str(tiny_run.data) not in text
        assert "thing 0" not in text
    galleries = twinlens.Gallery.create(tmp_path / "gallery", out)
    galleries.enrol_files("a", a)
    assert galleries.search(a)[0].distance == pytest.approx(0, abs=1e-6)
    twinlens.evaluate(out, tiny_run.data, quiet=True)


def test_the_command_prints_the_comparison(
    tiny_run: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from twinlens.cli.main import main

    words = ["export", str(tiny_run.run), str(tmp_path / "out"), "--format", "onnx", "--quiet"]
    assert main(words) == 0
    out = capsys.readouterr().out
    for text in ("EER (95 % interval)", "threshold", "milliseconds a picture", "megabytes",
                 "distances move by 0 on average", "calibration: that of the model"):  # fmt: skip
        assert text in out
    assert main(words) == 2
    assert "not empty" in capsys.readouterr().err


def test_calibrating_an_export_names_the_threshold_in_its_graph(
    tiny_run: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twinlens.export(tiny_run.run, tmp_path / "out", quiet=True)
    twinlens.calibrate(tmp_path / "out", tiny_run.data, far=0.2)
    assert "keeps the threshold of the export" in capsys.readouterr().err
    twinlens.calibrate(shutil.copytree(tiny_run.model, tmp_path / "m"), tiny_run.data, far=0.2)
    assert "keeps the threshold" not in capsys.readouterr().err


def test_wrong_words_are_refused_before_any_work(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    for words, message in (
        ({"format": "tflite"}, "unknown format 'tflite'"),
        ({"resize": "within"}, "unknown resize 'within'"),
        ({"format": "hub", "resize": "inside"}, "--resize inside belongs to --format onnx or"),
    ):
        with pytest.raises(ConfigError, match=message):
            twinlens.export(tiny_run.run, out, quiet=True, **words)
    with pytest.raises(ModelError, match="nothing is there"):
        twinlens.export(tmp_path / "none", out, quiet=True)
    with pytest.raises(DataError, match="no such file or folder"):
        twinlens.export(tiny_run.run, out, data=tmp_path / "none", quiet=True)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"twinlens\[openvino\]"):
        twinlens.export(tiny_run.run, out, format="openvino", quiet=True)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"twinlens\[export\]"):
        twinlens.export(tiny_run.run, out, quiet=True)
    assert not out.exists()


def test_an_export_is_no_model_to_export(tiny_run: TinyRun, tmp_path: Path) -> None:
    twinlens.export(tiny_run.run, tmp_path / "out", quiet=True)
    with pytest.raises(ModelError, match="is an export itself"):
        twinlens.export(tmp_path / "out", tmp_path / "again", quiet=True)


def test_without_labelled_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A float export keeps the threshold, for int8 pictures must be named."""
    model = conv_model(tmp_path / "m")
    result = twinlens.export(model, tmp_path / "out")
    assert "the export is not measured on pictures" in capsys.readouterr().err
    assert result.comparison.pairs is None
    assert twinlens.load(tmp_path / "out").calibration == CALIBRATION
    with pytest.raises(ConfigError, match=r"onnx-int8 finds the ranges .*--data"):
        twinlens.export(model, tmp_path / "int8", format="onnx-int8", quiet=True)


@pytest.mark.parametrize(("fit", "color"), [("stretch", "rgb"), ("pad", "grey"), ("crop", "rgb")])
def test_a_graph_that_resizes(fit: str, color: str, tmp_path: Path) -> None:
    """Approximately as Pillow, for every way of fitting; whole data sets are refused."""
    model = conv_model(tmp_path / "m", color=color, fit=fit)
    for name in "ab":
        for number in range(4):
            (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
            picture = smooth((90 + 9 * number, 70), 10 * number + ord(name), color)
            picture.save(tmp_path / "data" / name / f"{number}.png")
    result = twinlens.export(
        model, tmp_path / "out", resize="inside", data=tmp_path / "data", quiet=True
    )
    levels = result.comparison.levels
    assert levels is not None
    assert levels.mean < 2
    assert levels.largest <= 16
    before, after = twinlens.load(model), twinlens.load(tmp_path / "out")
    a, b = tmp_path / "data" / "a" / "0.png", tmp_path / "data" / "b" / "1.png"
    assert after.distance(a, b) == pytest.approx(before.distance(a, b), abs=0.02)
    assert after.distance(a, a) == 0
    with pytest.raises(ModelError, match="resizes pictures itself, one at a time"):
        twinlens.evaluate(tmp_path / "out", tmp_path / "data", quiet=True)


def test_strokes_are_refused_where_a_graph_needs_pictures(tmp_path: Path) -> None:
    picture = PictureSettings(size=(30, 40), color="grey")
    settings = ModelSettings(backbone="strokes", embedding=4)
    model = save_networks(
        tmp_path / "m", Encoder(settings, picture), make_comparator("cosine", 4)
    ).path
    for words in ({"format": "web"}, {"format": "onnx-int8"}, {"resize": "inside"}):
        with pytest.raises(ConfigError, match="strokes takes features"):
            twinlens.export(model, tmp_path / "out", quiet=True, **words)
    twinlens.export(model, tmp_path / "out", quiet=True)
    image = smooth((80, 60), 0)
    expected = twinlens.load(model).embed(image)
    np.testing.assert_allclose(twinlens.load(tmp_path / "out").embed(image), expected, atol=1e-6)


# --- used alone ---------------------------------------------------------------------------------


def run_alone(folder: Path, *files: Path) -> Any:
    """The answer of the Python script, where importing twinlens fails."""
    blocked = (
        "import sys\n"
        "for name in ('twinlens', 'torch', 'timm', 'pydantic'): sys.modules[name] = None\n"
    )
    script = folder.parent / "compare.py"
    script.write_text(blocked + block("python"))
    return subprocess.run(
        [sys.executable, script, folder, *files], capture_output=True, text=True, check=False
    )


def block(language: str) -> str:
    """The script of docs/export.md in a language."""
    found = re.search(rf"```{language}\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


def test_the_script_of_the_documents_is_that_of_the_exports() -> None:
    assert f"```python\n{block('python')}```" in readme.ALONE


@pytest.mark.parametrize("comparator", COMPARATORS)
def test_a_graph_is_used_alone(comparator: str, tmp_path: Path) -> None:
    """With onnxruntime, numpy and Pillow only."""
    color = "rgb" if comparator == "cosine" else "grey"
    model = conv_model(tmp_path / "m", comparator, color)
    twinlens.export(model, tmp_path / "out", quiet=True)
    files = []
    for seed in range(2):
        files.append(tmp_path / f"{seed}.png")
        smooth((60, 50), seed, color).save(files[-1])
    answer = json.loads(run_alone(tmp_path / "out", *files).stdout)
    expected = twinlens.verify(tmp_path / "out", *files)
    assert answer["distance"] == pytest.approx(expected.distance, abs=1e-4)
    assert answer["verdict"] == expected.verdict


@pytest.mark.parametrize("color", ["grey", "rgb"])
def test_turned_and_transparent_pictures_used_alone(color: str, tmp_path: Path) -> None:
    model = conv_model(tmp_path / "m", color=color)
    twinlens.export(model, tmp_path / "out", quiet=True)
    turned, clear, deep = (tmp_path / name for name in ("a.png", "b.png", "c.png"))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    smooth((60, 40), 0, "rgb").save(turned, exif=exif)
    picture = smooth((50, 50), 1, "rgb").convert("RGBA")
    picture.putalpha(smooth((50, 50), 2))
    picture.save(clear)
    answer = json.loads(run_alone(tmp_path / "out", turned, clear).stdout)
    expected = twinlens.load(tmp_path / "out").distance(turned, clear)
    assert answer["distance"] == pytest.approx(expected, abs=1e-4)
    Image.fromarray(np.full((20, 20), 40_000, np.uint16)).save(deep)
    run = run_alone(tmp_path / "out", deep, clear)
    assert (run.returncode, "convert it to 8 bits" in run.stderr) == (1, True)


def test_an_uncalibrated_graph_used_alone_gives_no_verdict(tmp_path: Path) -> None:
    model = conv_model(tmp_path / "m")
    description = json.loads((model / "model.json").read_text()) | {"calibration": None}
    (model / "model.json").write_text(json.dumps(description))
    result = twinlens.export(model, tmp_path / "out", resize="inside", quiet=True)
    assert result.calibration.endswith("export again with --data DATA")
    file = tmp_path / "a.png"
    smooth((30, 30), 0).save(file)
    assert json.loads(run_alone(tmp_path / "out", file, file).stdout) == {
        "distance": 0, "verdict": None,
    }  # fmt: skip
    with pytest.raises(CalibrationError, match="export its model again"):
        twinlens.verify(tmp_path / "out", file, file)
    with pytest.raises(DataError, match="lies in the model"):
        twinlens.export(model, model / "inner", quiet=True)


@pytest.mark.slow
def test_a_graph_is_used_alone_in_javascript(tmp_path: Path) -> None:
    """Under Node, with onnxruntime-web from npm."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    install = ["npm", "install", f"onnxruntime-web@{RUNTIME_VERSION}", "--ignore-scripts",
               "--no-audit", "--no-fund"]  # fmt: skip
    if subprocess.run(install, cwd=tmp_path, capture_output=True, check=False).returncode:
        pytest.skip("npm cannot install onnxruntime-web")
    twinlens.export(conv_model(tmp_path / "m"), tmp_path / "out", quiet=True)
    matcher, files = twinlens.load(tmp_path / "out"), []
    for seed in range(2):
        files.append(tmp_path / f"{seed}.png")
        smooth((60, 50), seed).save(files[-1])
        pixels_HWC = matcher.pixels([files[-1]])[0].transpose(1, 2, 0)
        (tmp_path / f"{seed}.bin").write_bytes(np.ascontiguousarray(pixels_HWC).tobytes())
    (tmp_path / "compare.mjs").write_text(block("js"))
    run = subprocess.run(
        ["node", "compare.mjs", "out", "0.bin", "1.bin"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    answer, expected = json.loads(run.stdout), matcher.verify(*files)
    assert answer["distance"] == pytest.approx(expected.distance, abs=1e-4)
    assert answer["verdict"] == expected.verdict


# --- int8 ---------------------------------------------------------------------------------------


def test_quantised_weights_have_a_quarter_of_the_size(tiny_run: TinyRun, tmp_path: Path) -> None:
    result = twinlens.export(
        tiny_run.run, tmp_path / "out", format="onnx-int8", data=tiny_run.data, quiet=True
    )
    assert result.comparison.export_bytes < result.comparison.model_bytes
    stored = twinlens.load(tmp_path / "out").stored
    assert stored.description.precision == "int8"
    pixels = np.random.default_rng(0).integers(0, 256, (4, 1, 16, 16), dtype=np.uint8)
    emb_ND = OnnxEncoder(stored, "cpu").embed(pixels)
    np.testing.assert_allclose(np.linalg.norm(emb_ND, axis=1), 1, atol=1e-5)
