"""The page that compares two pictures in a browser: its arithmetic, its files, and the page."""

from __future__ import annotations

import base64
import hashlib
import http.server
import io
import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import chromium, complaints_of, wait_until
from conftest import TinyRun
from numpy.typing import NDArray
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from twinlens.config import ModelSettings, PictureSettings
from twinlens.data.decode import to_array
from twinlens.errors import DataError, ModelError
from twinlens.exports import web
from twinlens.match.matcher import Matcher
from twinlens.measure.calibration import Calibration
from twinlens.measure.distances import EuclideanComparison
from twinlens.measure.probability import Isotonic, Platt
from twinlens.model.stored import StoredModel, read_stored_model, store_calibration

PAGE = Path(web.__file__).parent / "web_page"
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed")


# --- arithmetic, under Node ---------------------------------------------------------------------


def in_node(folder: Path, script: str, cases: Any) -> Any:
    """What a function `(case) => result` in JavaScript, with the page's modules, returns."""
    for file in PAGE.glob("*.js"):
        shutil.copy(file, folder)
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "run.js").write_text(
        'import { readFileSync } from "node:fs";\n'
        'import * as pixels from "./pixels.js";\n'
        'import * as compare from "./compare.js";\n'
        'const bytes = (text) => new Uint8Array(Buffer.from(text, "base64"));\n'
        'const text = (bytes) => Buffer.from(bytes).toString("base64");\n'
        f"const answer = {script};\n"
        'const cases = JSON.parse(readFileSync("cases.json", "utf8"));\n'
        "console.log(JSON.stringify(cases.map(answer)));\n"
    )
    (folder / "cases.json").write_text(json.dumps(cases))
    assert NODE is not None
    done = subprocess.run(
        [NODE, "run.js"], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def as_raster(picture: Image.Image) -> dict[str, Any]:
    """A picture as browsers decode it: always RGBA."""
    rgba = np.asarray(picture.convert("RGBA"))
    height, width = rgba.shape[:2]
    pixels = base64.b64encode(rgba.tobytes()).decode()
    return {"pixels": pixels, "width": width, "height": height, "channels": 4}


def decoded(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(base64.b64decode(text), dtype=np.uint8)


NETWORK_INPUT = """({raster, picture, isJpeg}) => text(
  pixels.networkInput({...raster, pixels: bytes(raster.pixels)}, picture, isJpeg))"""


def noise(height: int, width: int, mode: str, seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    shape = (height, width, len(mode)) if len(mode) > 1 else (height, width)
    # Blocks of black and white among the noise reach both ends of rounding and clipping.
    values = rng.choice([0, 1, 127, 128, 254, 255, *rng.integers(0, 256, 6)], shape)
    return Image.fromarray(values.astype(np.uint8), mode=None)


SIZES = [(1, 1), (1, 40), (37, 1), (7, 5), (24, 36), (25, 31), (64, 48), (113, 97), (300, 211)]


@needs_node
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
def test_network_input_equals_that_of_python_bit_for_bit(
    tmp_path: Path, mode: str, fit: str
) -> None:
    cases, expected = [], []
    for seed, (height, width) in enumerate(SIZES):
        picture = noise(height, width, mode, seed)
        for color in ("grey", "rgb"):
            for size in ((24, 36), (17, 17), (50, 9), (130, 140)):
                spec = PictureSettings(size=size, color=color, fit=fit, fill=77)
                cases.append({
                    "raster": as_raster(picture), "picture": spec.model_dump(), "isJpeg": False
                })  # fmt: skip
                expected.append(to_array(picture, spec).transpose(1, 2, 0).ravel())
    results = [decoded(text) for text in in_node(tmp_path, NETWORK_INPUT, cases)]
    for case, result, wanted in zip(cases, results, expected, strict=True):
        difference = np.abs(result.astype(int) - wanted)
        raster, size = case["raster"], case["picture"]["size"]
        assert difference.max() == 0, (raster["height"], raster["width"], size, difference.max())


@needs_node
def test_transparent_colours_are_blended_as_by_pillow_for_every_value_and_alpha(
    tmp_path: Path,
) -> None:
    value, alpha = np.meshgrid(np.arange(256), np.arange(256))
    picture = Image.fromarray(np.dstack([value, value, value, alpha]).astype(np.uint8))
    spec = PictureSettings(size=(256, 256), color="rgb")
    case = {"raster": as_raster(picture), "picture": spec.model_dump(), "isJpeg": False}
    (text,) = in_node(tmp_path, NETWORK_INPUT, [case])
    assert np.array_equal(decoded(text), to_array(picture, spec).transpose(1, 2, 0).ravel())


@needs_node
def test_large_jpegs_are_reduced_as_far_as_twinlens_decodes_them_reduced(tmp_path: Path) -> None:
    sizes = [(64, 64), (127, 300), (128, 128), (255, 257), (300, 1000), (513, 700)]
    spec = PictureSettings(size=(32, 20), color="rgb")
    cases, expected = [], []
    for seed, (height, width) in enumerate(sizes):
        picture = noise(height, width, "RGB", seed)
        stream = io.BytesIO()
        picture.save(stream, "JPEG")
        whole, drafted = Image.open(stream), Image.open(stream)
        drafted.draft(None, (64, 64))
        factor = round(width / drafted.width)
        for is_jpeg in (True, False):
            cases.append({
                "raster": as_raster(whole), "picture": spec.model_dump(), "isJpeg": is_jpeg
            })  # fmt: skip
            expected.append(to_array(whole.reduce(factor) if is_jpeg else whole, spec))
    for text, wanted in zip(in_node(tmp_path, NETWORK_INPUT, cases), expected, strict=True):
        # Pillow's reduced pictures round a few means otherwise.
        difference = np.abs(decoded(text).astype(int) - wanted.transpose(1, 2, 0).ravel())
        assert difference.max() <= 1


@needs_node
@pytest.mark.parametrize("name", ["euclidean", "squared-euclidean", "cosine"])
def test_distances_that_are_formulas(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 8, 16)).astype(np.float32)
    b[0], a[1], b[2] = a[0], 0, 0
    script = f'([a, b]) => compare.formulaDistance("{name}", Float32Array.from(a), b)'
    pairs = [[left.tolist(), right.tolist()] for left, right in zip(a, b, strict=True)]
    distances = in_node(tmp_path, script, pairs)
    assert distances[0] == 0
    np.testing.assert_allclose(distances, EuclideanComparison(name).pairwise(a, b), rtol=1e-5)


CURVES = {
    "platt": Platt(a=7.0, b=-3.0),
    "level": Platt(a=0.0, b=1.0),
    "isotonic": Isotonic(x=(0.1, 0.4, 0.5, 0.9), y=(1.0, 0.75, 0.75, 0.0)),
    "one knot": Isotonic(x=(0.4,), y=(0.3,)),
}


def calibration_of(curve: Platt | Isotonic, threshold: float = 0.4) -> Calibration:
    return Calibration(
        threshold=threshold, low=None, high=None, target_far=0.01, num_genuine=48,
        num_impostor=998, num_identities=9, curve=curve, log_loss_platt=None,
        log_loss_isotonic=None,
    )  # fmt: skip


@needs_node
@pytest.mark.parametrize("name", CURVES)
def test_probabilities_and_verdicts(tmp_path: Path, name: str) -> None:
    calibration = calibration_of(CURVES[name])
    distances = [0.0, 0.1, 0.25, 0.4, 0.40001, 0.45, 0.5, 0.7, 0.9, 5.0, 1e9]
    script = f"""(distance) => {{
      const calibration = {json.dumps(calibration.as_json())};
      return [compare.probability(distance, calibration), compare.isMatch(distance, calibration)];
    }}"""
    probabilities, verdicts = zip(*in_node(tmp_path, script, distances), strict=True)
    np.testing.assert_allclose(probabilities, calibration.probability(distances), rtol=1e-12)
    assert list(verdicts) == [distance <= 0.4 for distance in distances]
    unlabelled = json.dumps(replace(calibration, curve=None).as_json())
    assert in_node(tmp_path, f"(d) => compare.probability(d, {unlabelled})", [0.1]) == [None]


# --- files --------------------------------------------------------------------------------------


@pytest.fixture
def fake_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An unpacked npm package of small files, whose hashes are the expected ones."""
    folder = tmp_path / "package"
    (folder / "dist").mkdir(parents=True)
    for name in web.RUNTIME_FILES:
        (folder / "dist" / name).write_text(f"content of {name}")
    digests = {
        name: hashlib.sha256(f"content of {name}".encode()).hexdigest()
        for name in web.RUNTIME_FILES
    }
    monkeypatch.setattr(web, "RUNTIME_FILES", digests)
    return folder


def write(stored: StoredModel, folder: Path, runtime: Path | None) -> Path:
    folder.mkdir()
    web.write_web(stored, folder, runtime)
    return folder


def test_the_folder_holds_page_model_and_runtime_and_answers_alone(
    tmp_path: Path, tiny_run: TinyRun, fake_runtime: Path
) -> None:
    out = write(read_stored_model(tiny_run.run), tmp_path / "out", fake_runtime)
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert names == {
        "check-a.png", "check-b.png", "check.json", "compare.js", "decode.js", "icon.svg",
        "index.html", "model.js", "model.json", "model.onnx", "page.js", "pixels.js", "style.css",
        "onnxruntime-web/LICENSE", "onnxruntime-web/ThirdPartyNotices.txt",
        "onnxruntime-web/ort-wasm-simd-threaded.wasm",
        "onnxruntime-web/ort.wasm.bundle.min.js",
    }  # fmt: skip
    pictures = sorted(tiny_run.data.rglob("*.png"))[:2]
    assert Matcher.load(out).verify(*pictures) == Matcher.load(tiny_run.run).verify(*pictures)
    check = json.loads((out / "check.json").read_text())
    assert check["distance"] == Matcher.load(out).distance(
        *[out / name for name in check["pictures"]]
    )


def test_the_folder_does_not_name_the_training_data(
    tmp_path: Path, tiny_run: TinyRun, fake_runtime: Path
) -> None:
    assert str(tiny_run.data) in (tiny_run.model / "model.json").read_text()
    out = write(read_stored_model(tiny_run.run), tmp_path / "out", fake_runtime)
    assert not [
        file for file in out.rglob("*.*")
        if file.is_file() and str(tiny_run.data).encode() in file.read_bytes()
    ]  # fmt: skip


def test_the_page_is_written_for_its_strict_policy() -> None:
    html = (PAGE / "index.html").read_text()
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    assert policy.startswith("default-src 'none';")
    assert "unsafe-inline" not in policy
    assert "http" not in policy
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", html)
    text = "".join(file.read_text() for file in PAGE.iterdir())
    outside = set(re.findall(r"https?://[^\"'\s<>]*", text))
    assert outside == {"http://www.w3.org/2000/svg"}  # A name, not an address.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": ModelSettings(backbone="strokes")}, "backbone strokes"),
        ({"resize": "inside"}, "resizes inside its graph"),
    ],
)
def test_models_that_a_browser_cannot_run_are_refused(
    tmp_path: Path, tiny_run: TinyRun, fake_runtime: Path, change: dict[str, Any], message: str
) -> None:
    stored = read_stored_model(tiny_run.run)
    stored = replace(stored, description=stored.description.model_copy(update=change))
    with pytest.raises(ModelError, match=message) as caught:
        write(stored, tmp_path / "out", fake_runtime)
    assert "\n" not in str(caught.value)
    assert not any((tmp_path / "out").iterdir())


def test_a_folder_without_the_runtime_is_named(tmp_path: Path, tiny_run: TinyRun) -> None:
    with pytest.raises(DataError, match=r"is no onnxruntime-web: it needs ort\.wasm"):
        write(read_stored_model(tiny_run.run), tmp_path / "out", tmp_path)


def test_a_file_of_another_version_is_named(
    tmp_path: Path, tiny_run: TinyRun, fake_runtime: Path
) -> None:
    (fake_runtime / "dist" / "ort-wasm-simd-threaded.wasm").write_text("of another version")
    with pytest.raises(DataError, match=r"threaded\.wasm is not the file of onnxruntime-web 1"):
        write(read_stored_model(tiny_run.run), tmp_path / "out", fake_runtime)


def test_without_npm_one_line_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match=r"Node\.js, or name a folder .* --onnxruntime-web FOLDER"):
        web.fetch_runtime()


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for npm is a shell script")
def test_npm_is_called_once_and_its_failure_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fake_runtime: Path
) -> None:
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text("#!/bin/sh\necho 'no network' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(npm.parent), prepend=os.pathsep)
    with pytest.raises(DataError, match=r"npm cannot fetch onnxruntime-web@\S+ \(no network\)"):
        web.fetch_runtime()
    calls = tmp_path / "calls"
    npm.write_text(
        f'#!/bin/sh\necho "$@" >> {calls}\nfor last; do :; done\n'
        f'tar czf "$last/onnxruntime-web.tgz" -C {fake_runtime.parent} package\n'
    )
    folder = web.fetch_runtime()
    assert web.fetch_runtime() == folder
    assert {path.name for path in folder.iterdir()} == set(web.RUNTIME_FILES)
    assert calls.read_text().startswith(f"pack onnxruntime-web@{web.RUNTIME_VERSION} ")
    assert len(calls.read_text().splitlines()) == 1


# --- the page, in a browser ---------------------------------------------------------------------

ANSWERED = ("same", "different", "uncalibrated")
ISOLATION = {
    "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"
}  # fmt: skip
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any], Calibration | None]] = {
    "cosine": ({}, {"color": "grey", "fit": "crop"}, calibration_of(CURVES["platt"], 0.0)),
    "euclidean": ({}, {"fit": "pad", "fill": 90}, calibration_of(CURVES["isotonic"], 10.0)),
    "squared-euclidean": ({"shifts": True}, {}, calibration_of(CURVES["platt"], 10.0)),
    "sigmoid": ({}, {"fit": "crop"}, None),
    "network": ({}, {"color": "grey", "fit": "pad"}, calibration_of(CURVES["isotonic"], 0.0)),
}


@pytest.fixture(scope="session")
def runtime() -> Path:
    """onnxruntime-web, from the user's cache or from npm."""
    try:
        return web.fetch_runtime()
    except DataError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as driver:
        yield driver


@contextmanager
def serving(folder: Path, headers: Mapping[str, str] | None = None) -> Iterator[str]:
    """The address of a server of static files on this machine."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def end_headers(self) -> None:
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            super().end_headers()

    handler = partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def state_of(browser: Any, *awaited: str) -> str:
    """The state of the answer, once it is one of those awaited or an error."""

    def state(driver: Any) -> str | None:
        answer = driver.find_element("id", "answer")
        name: str = answer.get_attribute("data-state")
        assert name != "error", answer.text
        return name if name in awaited else None

    return str(wait_until(browser, state))


def choose(browser: Any, side: int, file: Path) -> None:
    label = browser.find_elements("class name", "file")[side]
    browser.execute_script("arguments[0].textContent = ''", label)
    browser.find_elements("css selector", "input[type=file]")[side].send_keys(str(file))
    wait_until(browser, lambda _: file.name in label.text)


def numbers_of(browser: Any) -> dict[str, float]:
    data = browser.execute_script("return {...document.getElementById('answer').dataset}")
    return {name: float(data[name]) for name in ("distance", "probability") if name in data}


def stored_network(
    folder: Path, model: Mapping[str, Any], picture: Mapping[str, Any]
) -> StoredModel:
    """A small network with initial weights."""
    torch = pytest.importorskip("torch", reason="networks are made with torch")
    from twinlens.model.comparators import Network, make_comparator
    from twinlens.model.encoder import Encoder
    from twinlens.model.networks import Networks, save_model

    torch.manual_seed(0)
    settings = ModelSettings(backbone="conv", channels=(8, 16), embedding=12, **model)
    comparator = make_comparator(settings.comparator, settings.embedding)
    if isinstance(comparator, Network):  # Else all its distances may be 0.
        comparator.out.weight.data.abs_().neg_()
    encoder = Encoder(settings, PictureSettings(size=(40, 28), **picture))
    return save_model(folder, Networks(encoder.eval(), comparator))


def draw_files(folder: Path) -> list[Path]:
    """PNG, JPEG, WebP and GIF files, some with transparency, an orientation or a gamma."""

    def waves(height: int, width: int, channels: int) -> Image.Image:
        down, right = np.mgrid[0:height, 0:width]
        planes = [
            np.sin(down / (5 + channel + height / 30) + channel) * np.cos(right / 7 + channel)
            for channel in range(channels)
        ]
        values = np.uint8(np.rint(127.5 + 127.5 * np.dstack(planes)))
        return Image.fromarray(values[:, :, 0] if channels == 1 else values)

    folder.mkdir()
    gamma, turned = PngInfo(), Image.Exif()
    gamma.add(b"gAMA", (100_000).to_bytes(4, "big"))
    turned[ExifTags.Base.Orientation] = 8
    waves(61, 90, 4).save(folder / "transparent.png")
    waves(90, 61, 3).save(folder / "gamma.png", pnginfo=gamma)
    waves(20, 17, 1).save(folder / "grey.png")
    waves(70, 40, 3).save(folder / "turned.jpg", exif=turned)
    waves(45, 79, 3).save(folder / "smooth.jpg", quality=60, subsampling=2)
    waves(50, 50, 4).save(folder / "lossless.webp", lossless=True, exact=True)
    waves(33, 64, 3).quantize(50).save(folder / "palette.gif")
    return sorted(folder.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("comparator", MODELS)
def test_the_page_answers_as_python_does(
    tmp_path: Path, browser: Any, runtime: Path, comparator: str
) -> None:
    model, picture, calibration = MODELS[comparator]
    stored = stored_network(tmp_path / "model", model | {"comparator": comparator}, picture)
    if calibration is not None:
        stored = store_calibration(stored, calibration.as_json())
    out = write(stored, tmp_path / "out", runtime)
    matcher, files = Matcher.load(out), draw_files(tmp_path / "files")
    with serving(out) as address:
        browser.get(address)
        state_of(browser, "waiting")
        check = browser.find_element("id", "checked").get_attribute("textContent")
        assert "as they should be" in check
        for left, right in zip(files, [*files[1:], files[-1]], strict=True):
            choose(browser, 0, left)
            choose(browser, 1, right)
            state, numbers = state_of(browser, *ANSWERED), numbers_of(browser)
            distance = matcher.distance(left, right)
            assert numbers["distance"] == pytest.approx(distance, abs=1e-4), (left.name, right.name)
            if calibration is None:
                assert (state, len(numbers)) == ("uncalibrated", 1)
            else:
                answer = matcher.verify(left, right)
                assert state == answer.verdict
                assert numbers["probability"] == pytest.approx(answer.probability, abs=1e-3)
        assert numbers["distance"] == 0  # The last file was compared with itself.
        assert complaints_of(browser, address) == []


@pytest.mark.slow
def test_the_page_with_threads_a_camera_and_wrong_files(
    tmp_path: Path, browser: Any, runtime: Path, tiny_run: TinyRun
) -> None:
    out = write(read_stored_model(tiny_run.run), tmp_path / "out", runtime)
    left, right = sorted(tiny_run.data.rglob("*.png"))[:2]
    text = tmp_path / "text.png"
    text.write_text("no picture")
    with serving(out, ISOLATION) as address:
        browser.get(address)
        state_of(browser, "waiting")
        assert browser.execute_script("return self.crossOriginIsolated")
        choose(browser, 0, left)
        choose(browser, 1, right)
        state_of(browser, *ANSWERED)
        expected = Matcher.load(out).distance(left, right)
        assert numbers_of(browser)["distance"] == pytest.approx(expected, abs=1e-4)

        choose(browser, 1, text)
        assert "not a picture" in browser.find_elements("class name", "file")[1].text
        assert numbers_of(browser)["distance"] == pytest.approx(expected, abs=1e-4)

        browser.find_element("class name", "camera").click()
        shoot = browser.find_element("class name", "shoot")
        wait_until(browser, lambda _: shoot.is_displayed())
        shoot.click()
        label = browser.find_element("class name", "file")
        wait_until(browser, lambda _: label.text.startswith("camera, "))
        state_of(browser, *ANSWERED)
        assert complaints_of(browser, address) == []


@pytest.mark.slow
def test_the_page_says_if_the_model_or_the_pixels_are_not_the_expected_ones(
    tmp_path: Path, browser: Any, runtime: Path, tiny_run: TinyRun
) -> None:
    out = write(read_stored_model(tiny_run.run), tmp_path / "out", runtime)
    check = json.loads((out / "check.json").read_text())
    (out / "check.json").write_text(json.dumps(check | {"distance": check["distance"] + 0.01}))
    with serving(out) as address:
        browser.get(address)
        state_of(browser, "waiting")
        assert "may be wrong" in browser.find_element("id", "checked").text
        with (out / "model.onnx").open("ab") as file:
            file.write(b"more")
        later = time.time() + 10  # Servers compare whole seconds.
        os.utime(out / "model.onnx", (later, later))
        browser.get(address + "?again")
        wait_until(
            browser, lambda _: "is not the file" in browser.find_element("id", "status").text
        )
    browser.get_log("browser")
