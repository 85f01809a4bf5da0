from __future__ import annotations

import hashlib
import importlib.util
import math
import os
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from twinlens.errors import ConfigError, DataError, MissingExtraError
from twinlens.face import detectors
from twinlens.face.crop import choose_face, crop_face
from twinlens.face.detection import detect_faces, refine_eyes
from twinlens.face.detectors import DetectorChoice, choose_detector, one_thread, opencv, yunet_file
from twinlens.face.geometry import Box, Face, clip, frontality, rotation_matrix

SHARED = Path(__file__).parents[2] / "shared"
MODEL = SHARED / "weights" / "face_detection_yunet_2026may.onnx"
ATT = SHARED / "data" / "att_faces"
HOPPER = (190, 130, 340, 320)
"""Where Grace Hopper's face is in matplotlib's picture of her, by eye."""

needs_cv2 = pytest.mark.skipif(
    importlib.util.find_spec("cv2") is None, reason="the extra `faces` is not installed"
)
needs_model = pytest.mark.skipif(not MODEL.is_file(), reason="no YuNet model beside the project")


def near(box, expected, within):
    sides = (box.left, box.top, box.right, box.bottom)
    return max(abs(a - b) for a, b in zip(sides, expected, strict=True)) <= within


class Fixed:
    """A detector with fixed faces, in shares of the size; records its inputs."""

    def __init__(self, *faces, sides=(320, 640)):
        self.faces, self.sides, self.seen = faces, sides, []

    def detect(self, pixels):
        self.seen.append(pixels)
        height, width = pixels.shape[:2]
        size = (width, height, width, height)
        return [
            Face(Box(*(s * v for s, v in zip(shares, size, strict=True))), score)
            for shares, score in self.faces
        ]


# --- boxes --------------------------------------------------------------------------------------


def test_a_box_by_hand():
    box = Box(10, 20, 30, 60)
    assert (box.width, box.height, box.area, box.centre) == (20, 40, 800, (20, 40))
    assert box.grown(0.25) == Box(5, 10, 35, 70)
    assert box.moved(-1, 2, 2) == Box(19, 42, 59, 122)
    assert Box(3, 3, 1, 9).area == 0


@pytest.mark.parametrize(
    ("box", "clipped"),
    [
        (Box(-5, -1, 50, 30), Box(0, 0, 40, 30)),
        (Box(3, 4, 5, 6), Box(3, 4, 5, 6)),
        (Box(50, 60, 70, 80), Box(40, 30, 40, 30)),
    ],
)
def test_boxes_are_clipped_to_the_picture(box, clipped):
    assert clip(box, (40, 30)) == clipped


def test_boxes_lie_in_the_picture_and_small_pictures_are_enlarged():
    picture = Image.new("L", (40, 20))
    detector = Fixed(((-0.1, 0, 0.5, 1.2), 0.9))
    (face,) = detect_faces(picture, detector)
    assert near(face.box, (0, 0, 20, 20), 1e-6)
    assert [pixels.shape for pixels in detector.seen] == [(80, 160, 3)]


def test_a_face_that_is_mostly_outside_is_none():
    detector = Fixed(((-0.3, 0, 0.2, 1), 0.9))
    assert detect_faces(Image.new("L", (200, 200)), detector) == []


@pytest.mark.parametrize(
    ("size", "seen"),
    [
        ((1280, 640), [(160, 320), (320, 640)]),
        ((400, 300), [(240, 320), (300, 400)]),
        ((300, 200), [(200, 300)]),
        ((5000, 1), [(1, 320), (1, 640)]),
        ((1, 1), [(160, 160)]),
    ],
)
def test_sizes_that_are_searched(size, seen):
    detector = Fixed()
    detect_faces(Image.new("RGB", size), detector)
    assert [pixels.shape[:2] for pixels in detector.seen] == seen


def test_of_two_detections_of_one_face_the_surer_stays():
    picture = Image.new("RGB", (1280, 1280))

    class Twice(Fixed):
        def detect(self, pixels):
            large = pixels.shape[0] == 640
            self.faces = [((0.1, 0.1, 0.5, 0.5), 0.6)] if large else [((0.1, 0.1, 0.4, 0.4), 0.8)]
            return super().detect(pixels) + ([Face(Box(600, 600, 630, 630), 0.7)] if large else [])

    faces = detect_faces(picture, Twice())
    assert [face.score for face in faces] == [0.8, 0.7]
    assert near(faces[0].box, (128, 128, 512, 512), 1e-6)
    assert near(faces[1].box, (1200, 1200, 1260, 1260), 1e-6)


def test_padding_has_the_border_s_colour_and_is_removed_again():
    picture = Image.new("RGB", (200, 100), (9, 80, 200))
    ImageDraw.Draw(picture).rectangle((5, 5, 190, 90), fill=(0, 0, 0))
    detector = Fixed(((0.25, 0.25, 0.75, 0.75), 0.9))
    (face,) = detect_faces(picture, detector, pad=0.5)  # 100 pixels: 400 x 300
    assert detector.seen[-1].shape == (300, 400, 3)
    assert detector.seen[-1][0, 0].tolist() == [9, 80, 200]
    assert near(face.box, (0, 0, 200, 100), 1e-6)  # (100, 75, 300, 225) less the border, clipped
    grey = Fixed()
    detect_faces(picture.convert("L"), grey, pad=0.1)
    assert len(set(grey.seen[0][0, 0].tolist())) == 1


def test_best_and_largest():
    small, large = Face(Box(0, 0, 5, 5), 0.9), Face(Box(0, 0, 9, 9), 0.6)
    twin = Face(Box(0, 0, 6, 6), 0.9)
    assert choose_face([large, small], "best") is small
    assert choose_face([small, large], "largest") is large
    assert choose_face([small, twin], "best") is twin


# --- crops --------------------------------------------------------------------------------------


def gradient(width, height):
    """Every pixel says where it is: (x, y, 7)."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y, np.full_like(x, 7)], -1).astype(np.uint8))


def test_margin_by_hand():
    face = Face(Box(10, 20, 30, 60), 1)
    plain = np.asarray(crop_face(gradient(100, 100), face))
    assert plain.shape == (40, 20, 3)
    assert plain[0, 0].tolist() == [10, 20, 7]
    assert plain[-1, -1].tolist() == [29, 59, 7]
    wide = np.asarray(crop_face(gradient(100, 100), face, margin=0.5))
    assert wide.shape == (80, 40, 3)
    assert wide[0, 0].tolist() == [0, 0, 7]
    cut_off = np.asarray(crop_face(gradient(35, 65), face, margin=0.5))
    assert cut_off.shape == (65, 35, 3)


def test_a_size_takes_a_square_that_stays_in_the_picture():
    face = Face(Box(90, 40, 100, 60), 1)  # A square of 20 would reach to 105.
    square = np.asarray(crop_face(gradient(100, 100), face, size=20))
    assert square.shape == (20, 20, 3)
    assert square[0, 0].tolist() == [80, 40, 7]
    # In a picture narrower than the square nothing is stretched: 10 columns stand in the middle.
    narrow = gradient(10, 100)
    crop = np.asarray(crop_face(narrow, Face(Box(0, 40, 10, 60), 1), size=20))
    assert crop[:, 5:15, 0].tolist() == [list(range(10))] * 20
    assert len(np.unique(crop[:, :5].reshape(-1, 3), axis=0)) == 1


def test_a_face_of_less_than_a_pixel_is_still_a_picture():
    assert crop_face(gradient(9, 9), Face(Box(3.4, 3.4, 3.45, 3.45), 1)).size == (1, 1)
    assert crop_face(gradient(9, 9), Face(Box(8.6, 8.6, 9, 9), 1)).size == (1, 1)


@needs_cv2
@pytest.mark.parametrize("degrees", [0, 20, -35, 90, 180])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_aligned_eyes_are_level_and_the_right_way_round(degrees, mode):
    picture = Image.new(mode, (200, 200))
    draw = ImageDraw.Draw(picture)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    eyes = ((100 - 30 * cos, 100 - 30 * sin), (100 + 30 * cos, 100 + 30 * sin))
    for (x, y), level in zip(eyes, (255, 128), strict=True):
        draw.ellipse((x - 5, y - 5, x + 5, y + 5), fill=level if mode == "L" else (level,) * 3)
    face = Face(Box(40, 40, 160, 160), 1, eyes)
    turned = np.asarray(crop_face(picture, face, align=True).convert("L"))
    assert turned.shape == (120, 120)
    # The middle of each eye: the person's right one, the brighter, stands on the left.
    for level, expected in ((range(192, 256), (30.0, 60.0)), (range(100, 160), (90.0, 60.0))):
        rows, columns = np.nonzero(np.isin(turned, list(level)))
        assert np.median(columns) == pytest.approx(expected[0], abs=1.5)
        assert np.median(rows) == pytest.approx(expected[1], abs=1.5)


@needs_cv2
def test_level_eyes_turn_nothing_and_no_eyes_cannot_be_aligned():
    face = Face(Box(10, 20, 30, 60), 1, ((12, 30), (25, 30)))
    aligned, plain = (crop_face(gradient(100, 100), face, align=on) for on in (True, False))
    assert aligned.tobytes() == plain.tobytes()
    same = Face(face.box, 1, ((12, 30), (12, 30)))
    assert crop_face(gradient(100, 100), same, align=True).tobytes() == plain.tobytes()
    with pytest.raises(ValueError, match="without eyes"):
        crop_face(gradient(100, 100), Face(face.box, 1), align=True)


# --- OpenCV -------------------------------------------------------------------------------------


def test_without_opencv_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'twinlens\[faces\]'") as caught:
        choose_detector("auto")
    assert "\n" not in str(caught.value)


def test_opencv_5_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", SimpleNamespace(__version__="5.0.1"))
    with pytest.raises(MissingExtraError, match=r"OpenCV 5\.0\.1 is installed.*below 5"):
        opencv()


@needs_cv2
def test_one_thread_is_for_a_while():
    cv2 = opencv()
    before = cv2.getNumThreads()
    with one_thread():
        assert cv2.getNumThreads() == 1
    assert cv2.getNumThreads() == before


@needs_cv2
def test_wrong_detectors_and_models_are_explained(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown detector 'yunett': did you mean yunet\?"):
        choose_detector("yunett")
    with pytest.raises(ConfigError, match="the Haar cascade takes no model file"):
        choose_detector("haar", tmp_path / "x.onnx")
    with pytest.raises(DataError, match=r"cannot read the model .*gone\.onnx"):
        DetectorChoice("yunet", tmp_path / "gone.onnx").make(0.3)
    (tmp_path / "bad.onnx").write_bytes(b"no network" * 50)
    with pytest.raises(DataError, match=r"bad\.onnx is not a YuNet model"):
        DetectorChoice("yunet", tmp_path / "bad.onnx").make(0.3)
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(DataError, match=r"empty\.onnx is not a YuNet model"):
        DetectorChoice("yunet", tmp_path / "empty.onnx").make(0.3)


@needs_cv2
def test_haar_finds_a_face_and_has_no_confidence(hopper):
    detector = choose_detector("haar").make(0.3)
    (face,) = detect_faces(hopper, detector)
    assert face.eyes is None
    assert face.score > 1
    assert near(face.box, HOPPER, 50)
    assert not DetectorChoice("haar").has_confidence
    assert detect_faces(Image.new("RGB", (300, 300)), detector) == []


@needs_cv2
@needs_model
def test_yunet_finds_the_face_and_its_eyes(hopper):
    detector = choose_detector("yunet", MODEL).make(0.3)
    (face,) = detect_faces(hopper, detector)
    assert face.score > 0.9
    assert near(face.box, HOPPER, 25)
    (ax, ay), (bx, by) = face.eyes
    assert face.box.left < ax < bx < face.box.right
    assert abs(ay - by) < 15
    assert detect_faces(Image.new("L", (30, 300)), detector) == []


@needs_cv2
@needs_model
def test_yunet_does_not_depend_on_earlier_pictures(hopper):
    """Of pictures of at most 32 pixels OpenCV's network depends on what was in memory."""
    sizes = [(32, 32), (640, 1), (20, 160), (320, 32), (20, 640), (70, 90), (33, 200)]
    pictures = [np.asarray(hopper.crop((150, 90, 390, 360)).resize(size)) for size in sizes]
    detector = DetectorChoice("yunet", MODEL).make(0.05)
    first = [detector.detect(pixels) for pixels in pictures]
    assert any(first)
    for turn in range(6):
        order = np.random.default_rng(turn).permutation(len(sizes))
        assert all(detector.detect(pictures[place]) == first[place] for place in order)


@needs_cv2
@needs_model
@pytest.mark.parametrize("longest", [80, 300, 1500, 4000])
def test_yunet_finds_one_face_at_any_size_of_the_picture(hopper, longest):
    """A single look at 1024 pixels takes this close-up for two faces of 0.6."""
    close = hopper.crop((150, 90, 390, 360))
    scale = longest / 270
    large = close.resize((round(240 * scale), longest))
    faces = detect_faces(large, DetectorChoice("yunet", MODEL).make(0.5))
    assert len(faces) == 1
    expected = [(v - o) * scale for v, o in zip(HOPPER, (150, 90) * 2, strict=True)]
    assert near(faces[0].box, expected, 30 * scale)


class Spots:
    """Takes a bright and a dim spot for eyes, of which it tells half of the tilt, like YuNet."""

    sides = (320,)

    def __init__(self, share):
        self.share, self.looks = share, 0

    def detect(self, pixels):
        self.looks += 1
        eyes = []
        for low, high in ((200, 256), (90, 150)):
            rows, columns = np.nonzero((pixels[:, :, 0] >= low) & (pixels[:, :, 0] < high))
            eyes.append((np.median(columns) + 0.5, np.median(rows) + 0.5))
        (ax, ay), (bx, by) = eyes
        lift = (by - ay) * (1 - self.share) / 2
        eyes = ((ax, ay + lift), (bx, by - lift))
        far = Face(Box(0, 0, 9, 9), 1.0, ((0, 0), (0, 9)))
        return [far, Face(Box(ax - 40, ay - 60, bx + 40, by + 60), 0.9, eyes)]


@needs_cv2
@pytest.mark.parametrize(("share", "looks"), [(1.0, 2), (0.7, 3)])
@pytest.mark.parametrize("shift", [0, 40])
def test_refined_eyes_are_where_they_should_be(share, looks, shift):
    picture = Image.new("L", (300, 280))
    draw = ImageDraw.Draw(picture)
    eyes = ((100 + shift, 120), (160 + shift, 150))  # 26.6 degrees
    for (x, y), level in zip(eyes, (255, 120), strict=True):
        draw.ellipse((x - 6, y - 6, x + 6, y + 6), fill=level)
    box = Box(70 + shift, 80, 190 + shift, 220)
    detector = Spots(share)
    refined = refine_eyes(picture, Face(box, 0.5, ((1, 1), (2, 1))), detector)
    assert (refined.box, refined.score, detector.looks) == (box, 0.5, looks)
    for eye, expected in zip(refined.eyes, eyes, strict=True):
        assert math.dist(eye, expected) < (1.5 if share == 1 else 4)


@needs_cv2
def test_eyes_are_kept_if_the_refinement_detects_nothing():
    face = Face(Box(10, 10, 50, 60), 0.5, ((20, 30), (40, 32)))
    assert refine_eyes(Image.new("RGB", (80, 80)), face, Fixed()) == face


@needs_cv2
@needs_model
@pytest.mark.parametrize("degrees", [-30, -12, 0, 12, 30])
def test_rotated_photographs_are_levelled(hopper, degrees):
    """Of YuNet's eyes alone some of these come out 20 degrees wrong."""
    detector = DetectorChoice("yunet", MODEL).make(0.3)
    tilted = hopper.rotate(degrees, Image.Resampling.BICUBIC, expand=True)
    face = refine_eyes(tilted, detect_faces(tilted, detector)[0], detector)
    (ax, ay), (bx, by) = face.eyes
    assert math.degrees(math.atan2(by - ay, bx - ax)) == pytest.approx(-degrees, abs=9)


@needs_cv2
@needs_model
@pytest.mark.skipif(not ATT.is_dir(), reason="no AT&T faces beside the project")
def test_faces_of_att_by_yunet_as_they_are_and_enlarged():
    files = sorted(ATT.rglob("*.pgm"))[::40]
    pictures = [Image.open(file).convert("RGB") for file in files]
    detector = DetectorChoice("yunet", MODEL).make(0.5)
    if max(pictures[0].size) < 40:  # Some copies are 23 x 28, others 92 x 112.
        assert sum(bool(detector.detect(np.asarray(picture))) for picture in pictures) <= 5
    assert [len(detect_faces(picture, detector)) for picture in pictures] == [1] * len(pictures)
    padded = [detect_faces(picture, detector, pad=0.25) for picture in pictures]
    assert [len(faces) for faces in padded] == [1] * len(pictures)


# --- the model file -----------------------------------------------------------------------------


@pytest.fixture
def host():
    """A server of one file; `content` may be changed, `asked` counts."""
    state = SimpleNamespace(content=b"a network", status=200, asked=0)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            state.asked += 1
            self.send_response(state.status)
            self.send_header("Content-Length", str(len(state.content)))
            self.end_headers()
            self.wfile.write(state.content)

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        state.url = f"http://127.0.0.1:{server.server_port}/model.onnx"
        yield state
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("TWINLENS_WEIGHTS", raising=False)


def test_the_model_is_downloaded_once(host, own_cache):
    digest = hashlib.sha256(host.content).hexdigest()
    file = yunet_file(host.url, digest)
    assert file.read_bytes() == host.content
    assert file.is_relative_to(own_cache / "downloads")
    host.content = b"another"
    assert yunet_file(host.url, digest) == file
    assert host.asked == 1


@pytest.mark.parametrize("status", [200, 404])
def test_another_file_is_not_kept(host, own_cache, status):
    host.status = status
    with pytest.raises(DataError, match="cannot download") as caught:
        yunet_file(host.url, "0" * 64)
    line = str(caught.value)
    assert "\n" not in line
    assert "--model" in line
    assert "--detector haar" in line
    assert host.url in line
    assert ("SHA-256" if status == 200 else "404") in line
    assert not list(own_cache.rglob("*"))


@needs_cv2
def test_a_host_that_is_not_there_is_one_line_and_auto_takes_the_cascade(monkeypatch, caplog):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/x"
    monkeypatch.setattr(detectors, "yunet_file", lambda: yunet_file(url))
    with pytest.raises(DataError, match=r"(?s)^cannot download .*--model, or .*--detector haar$"):
        choose_detector("yunet")
    assert choose_detector("auto") == DetectorChoice("haar")
    assert "using the Haar cascade" in caplog.text
    assert "Connection refused" in caplog.text


@needs_cv2
@needs_model
def test_the_pinned_checksum_is_that_of_the_model_at_hand(host, monkeypatch):
    assert hashlib.sha256(MODEL.read_bytes()).hexdigest() == detectors.YUNET_SHA256
    host.content = MODEL.read_bytes()
    monkeypatch.setattr(detectors, "yunet_file", lambda: yunet_file(host.url))
    choice = choose_detector("auto")
    assert choice.name == "yunet"
    assert choice.has_confidence
    choice.make(0.5)


@pytest.mark.parametrize("angle", [0.0, 0.6, 2.5])
def test_frontality_is_that_of_the_nose_between_the_eyes(angle: float) -> None:
    turn = 7 * rotation_matrix(angle)
    for nose, expected in (((0, 1.5), 1), ((0.5, 1), 0.5), ((-0.5, 1), 0.5), ((1, 1), 0),
                           ((3, 1), 0)):  # fmt: skip
        a, b, tip = (turn @ np.array(point) + 40 for point in ((-1, 0), (1, 0), nose))
        eyes = ((a[0], a[1]), (b[0], b[1]))
        assert frontality(eyes, (tip[0], tip[1])) == pytest.approx(expected)
    assert frontality(((1, 1), (1, 1)), (2, 2)) == 0
