"""Generated pictures, a tiny trained run, and a cache apart from the user's."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from twinlens.model.stored import Origin, StoredModel, read_stored_model, store_calibration

if TYPE_CHECKING:
    from twinlens.model.comparators import Comparator
    from twinlens.model.encoder import Encoder

PictureFolder = Callable[..., Path]
# Run by `make test-answer`, and by tests/test_without_torch.py.
collect_ignore_glob = [] if find_spec("torch") is None else ["answering/*"]
EXPORTS = tempfile.TemporaryDirectory()
# No test downloads weights, or takes those of the user. The hub's client reads these once.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": f"{EXPORTS.name}/hub", "TWINLENS_WEIGHTS": ""}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder of this test."""
    folder = tmp_path / "own-cache"
    monkeypatch.setenv("TWINLENS_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session", autouse=True)
def shared_graphs() -> Iterator[None]:
    """Templates of graphs serve the whole session: each network is exported once."""
    with pytest.MonkeyPatch.context() as patch:
        if find_spec("torch") is not None:
            place = Path(EXPORTS.name) / "graphs"
            patch.setattr("twinlens.model.graph_templates.template_folder", lambda: place)
        yield


@pytest.fixture
def picture_folder(tmp_path: Path) -> PictureFolder:
    """A factory of folders: `picture_folder({"a": 3, "deep/b": 2})` has a/0.png ... deep/b/1.png.

    Pictures in one class folder share a coarse pattern and differ by noise.
    """

    def make(
        classes: Mapping[str, int],
        *,
        size: tuple[int, int] = (16, 16),
        seed: int = 0,
        suffix: str = ".png",
        top: str = "pictures",
    ) -> Path:
        draw_pictures(tmp_path / top, classes, size=size, seed=seed, suffix=suffix)
        return tmp_path / top

    return make


def draw_pictures(
    top: Path,
    classes: Mapping[str, int],
    *,
    size: tuple[int, int] = (16, 16),
    seed: int = 0,
    suffix: str = ".png",
) -> None:
    """The pictures of `picture_folder`, for fixtures with a scope beyond one test."""
    generator = np.random.default_rng(seed)
    for name, count in classes.items():
        folder = top / name
        folder.mkdir(parents=True, exist_ok=True)
        coarse = generator.integers(30, 226, (4, 4), dtype=np.uint8)
        pattern = np.asarray(Image.fromarray(coarse).resize(size[::-1]), dtype=np.int64)
        for number in range(count):
            noise = generator.integers(-20, 21, size)
            Image.fromarray((pattern + noise).astype(np.uint8)).save(folder / f"{number}{suffix}")


@pytest.fixture(scope="session")
def hopper() -> Image.Image:
    """A photograph with one face that matplotlib carries. Shared by all tests: do not change it."""
    import matplotlib

    file = Path(matplotlib.__file__).parent / "mpl-data" / "sample_data" / "grace_hopper.jpg"
    if not file.is_file():
        pytest.skip("this matplotlib carries no photograph of Grace Hopper")
    with Image.open(file) as picture:
        return picture.convert("RGB")


@contextlib.contextmanager
def file_limit(num_bytes: int) -> Iterator[None]:
    """A limit of a file's size: writing beyond it fails, as on a full disk."""
    resource = pytest.importorskip("resource", reason="Windows has no such limit")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# A run of a second or two; the format is given, so that all machines compute the same. The model is
# not fitted again to training and validation pictures; tests/test_refit.py does that.
TINY = {
    "model.backbone": "mlp",
    "model.channels": (32,),
    "model.embedding": 16,
    "picture.size": (16, 16),
    "train.steps": 20,
    "train.validations": 2,
    "train.precision": "float32",
    "train.channels_last": "no",
    "train.refit": False,
}


def tiny_words(**more: object) -> list[str]:
    """The settings of a tiny run as words of the command line; `train__steps=5` changes one."""
    settings = TINY | {key.replace("__", "."): value for key, value in more.items()}
    listed = {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}
    words = [f"{key}={json.dumps(value).strip(chr(34))}" for key, value in listed.items()]
    return [word for setting in words for word in ("--set", setting)]


@dataclass(frozen=True)
class TinyRun:
    """A run folder, the pictures that it was trained on, and the log of its training."""

    run: Path
    data: Path
    said: str

    @property
    def model(self) -> Path:
        return self.run / "model"


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A small trained and calibrated model. Shared by all tests: do not change its files."""
    import twinlens

    top = tmp_path_factory.mktemp("tiny")
    draw_pictures(top / "pictures", {f"thing {number}": 6 for number in range(10)})
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said):
        patch.setenv("TWINLENS_CACHE", str(top / "cache"))
        twinlens.train(top / "pictures", out=top / "run", settings=TINY)
    return TinyRun(top / "run", top / "pictures", said.getvalue())


def save_networks(
    folder: Path,
    encoder: Encoder,
    comparator: Comparator,
    *,
    origin: Origin | None = None,
    calibration: dict[str, Any] | None = None,
) -> StoredModel:
    """A model folder, with a calibration if given; equal networks are exported once."""
    from twinlens.model.networks import Networks, save_model

    networks = Networks(encoder.eval(), comparator.eval())
    described = (encoder.model_settings, encoder.picture, encoder.members, origin)
    content = hashlib.sha256(repr(described).encode())
    for network in networks:
        for name, tensor in network.state_dict().items():
            content.update(name.encode() + tensor.numpy().tobytes())
    made = Path(EXPORTS.name) / content.hexdigest()
    if not made.exists():
        save_model(made, networks, origin)
    shutil.copytree(made, folder, dirs_exist_ok=True)
    stored = read_stored_model(folder)
    return stored if calibration is None else store_calibration(stored, calibration)


@pytest.fixture(scope="session", autouse=True)
def quick_exports() -> Iterator[None]:
    """Graphs are exported once for all tests, and torch's exporter reads its operators once."""
    with pytest.MonkeyPatch.context() as patch:
        with contextlib.suppress(ImportError):
            from torch.onnx._internal.exporter._registration import ONNXRegistry

            from twinlens.model import graph_templates

            patch.setattr(graph_templates, "template_folder", lambda: Path(EXPORTS.name, "graphs"))
            cached = staticmethod(functools.cache(ONNXRegistry.from_torchlib))
            patch.setattr(ONNXRegistry, "from_torchlib", cached)
        yield
    EXPORTS.cleanup()
