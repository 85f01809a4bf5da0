"""A folder with a page that compares two pictures in a browser, wholly on the visitor's machine.

The page (`web_page`) decodes pictures, resizes them as `data.decode` does, and runs the model's
graphs with onnxruntime-web, which is copied beside it. It needs a web server for static files, and
calls no other.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from twinlens.data.download import cache_folder, create_once
from twinlens.errors import DataError, ModelError, first_line
from twinlens.match.matcher import Matcher
from twinlens.model.stored import StoredModel, read_values, write_description

__all__ = ["RUNTIME_VERSION", "fetch_runtime", "write_web"]

RUNTIME_VERSION = "1.30.0"
RUNTIME_FILES = {
    "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort-wasm-simd-threaded.wasm": (
        "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2"
    ),
}
"""Files of onnxruntime-web that the page needs, and their SHA-256."""

LICENSES = ("LICENSE", "ThirdPartyNotices.txt")
FETCH_SECONDS = 600
PLACES = (".", "dist", "package/dist", "node_modules/onnxruntime-web/dist")


def write_web(stored: StoredModel, folder: Path, runtime: Path | None = None) -> None:
    """Write the page, the model and onnxruntime-web into an empty folder.

    `model.json` is written without the origin, which names the training data.

    Args:
        stored: a model with graphs.
        folder: an existing empty folder.
        runtime: folder of onnxruntime-web; None for the cache, filled by `npm pack` if necessary.
    Raises:
        ModelError: a model whose input a browser cannot compute.
        DataError: onnxruntime-web is missing, or has another version.
    """
    description = stored.description
    if description.model.backbone == "strokes":
        raise ModelError(
            f"the model {stored.path} has the backbone strokes, whose features are computed "
            "outside of its graph: the format web needs another backbone"
        )
    if description.resize == "inside":
        raise ModelError(
            f"the model {stored.path} resizes inside its graph, and the page resizes exactly: "
            "export it with --format web from the run"
        )
    source = fetch_runtime() if runtime is None else runtime_folder(runtime)
    _copy_runtime(source, folder / "onnxruntime-web")
    with resources.as_file(resources.files("twinlens.exports") / "web_page") as page:
        shutil.copytree(page, folder, dirs_exist_ok=True)
    for name in description.graphs:
        shutil.copyfile(stored.path / name, folder / name)
    write_description(folder, read_values(stored.path) | {"origin": None})
    _write_check(folder)


def _write_check(folder: Path) -> None:
    """Two pictures and their distance, by which the page checks its browser.

    One has transparency and a gamma that must be ignored, the other an orientation.
    """
    down, right = np.mgrid[0:90, 0:140].astype(np.float64)
    waves = [np.sin(down / 9 + shift) * np.cos(right / (11 + shift)) for shift in range(3)]
    rgb = np.rint(127.5 + 127.5 * np.stack(waves, axis=-1)).astype(np.uint8)
    alpha = np.rint(255 * right / right.max()).astype(np.uint8)
    gamma = PngInfo()
    gamma.add(b"gAMA", (100_000).to_bytes(4, "big"))
    Image.fromarray(np.dstack([rgb, alpha])).save(folder / "check-a.png", pnginfo=gamma)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(rgb[:61, ::-1]).save(folder / "check-b.png", exif=exif)
    names = ["check-a.png", "check-b.png"]
    distance = Matcher.load(folder, "cpu").distance(*[folder / name for name in names])
    text = json.dumps({"pictures": names, "distance": distance}, indent=1)
    (folder / "check.json").write_text(text + "\n", encoding="utf-8")


# --- onnxruntime-web ----------------------------------------------------------------------------


def runtime_folder(given: Path) -> Path:
    """The folder of the needed files in an npm package that a user names.

    Raises:
        DataError: they are not there.
    """
    for place in PLACES:
        if all((given / place / name).is_file() for name in RUNTIME_FILES):
            return given / place
    raise DataError(
        f"{given} is no onnxruntime-web: it needs {' and '.join(RUNTIME_FILES)}, there or in its "
        f"folder dist, as in the npm package onnxruntime-web {RUNTIME_VERSION}"
    )


def fetch_runtime() -> Path:
    """The cached folder of the needed files, fetched by `npm pack` if missing.

    Raises:
        DataError: npm is missing or fails.
    """
    name = f"onnxruntime-web-{RUNTIME_VERSION}"
    return create_once(cache_folder() / "downloads" / name, _pack)


def _pack(folder: Path) -> None:
    package = f"onnxruntime-web@{RUNTIME_VERSION}"
    other = "or name a folder that holds it: --onnxruntime-web FOLDER"
    npm = shutil.which("npm")
    if npm is None:
        raise DataError(
            f"the page needs {package}, and npm, which fetches it, is not installed: install "
            f"Node.js, {other}"
        )
    with tempfile.TemporaryDirectory() as top:
        command = [npm, "pack", package, "--ignore-scripts", "--silent", "--pack-destination", top]
        try:
            subprocess.run(command, cwd=top, check=True, capture_output=True, timeout=FETCH_SECONDS)
            (archive,) = Path(top).glob("*.tgz")
            with tarfile.open(archive) as tar:
                for name in RUNTIME_FILES:
                    member = tar.extractfile(f"package/dist/{name}")
                    if member is None:
                        raise KeyError(f"{name} is no file")
                    (folder / name).write_bytes(member.read())
        except (
            OSError, KeyError, ValueError, tarfile.TarError, subprocess.SubprocessError
        ) as error:  # fmt: skip
            reason = getattr(error, "stderr", None) or str(error).encode()
            raise DataError(
                f"npm cannot fetch {package} "
                f"({first_line(Exception(reason.decode(errors='replace').strip()))}): connect to "
                f"the network, {other}"
            ) from error


def _copy_runtime(source: Path, folder: Path) -> None:
    """Copy the needed files, whose hashes are known, and their licences."""
    folder.mkdir()
    for name, expected in RUNTIME_FILES.items():
        content = (source / name).read_bytes()
        if hashlib.sha256(content).hexdigest() != expected:
            raise DataError(
                f"{source / name} is not the file of onnxruntime-web {RUNTIME_VERSION} (its "
                "SHA-256 is another): name a folder of that version, or delete this one to fetch "
                "it again"
            )
        # Many servers send .mjs with a type that browsers do not run.
        (folder / name).with_suffix(".js" if name.endswith(".mjs") else ".wasm").write_bytes(
            content
        )
    spec = find_spec("onnxruntime")
    origin = Path(spec.origin).parent if spec and spec.origin else folder
    for name in LICENSES:  # The same project's: the npm package has none.
        if (origin / name).is_file():
            shutil.copyfile(origin / name, folder / name)
