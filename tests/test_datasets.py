from __future__ import annotations

import gc
import gzip
import hashlib
import io
import pickle
import socket
import subprocess
import sys
import threading
import warnings
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from twinlens.data.datasets import NAMED_SETS, read_idx
from twinlens.data.folders import read_table
from twinlens.errors import DataError

SHARED = Path(__file__).parents[2] / "shared" / "data"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    return header + array.tobytes()


def write_idx_set(folder, *, zipped=False, dot="-"):
    """Three training and two test pictures of 2 x 2; returns all pixels, training first."""
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 2, 2), dtype=np.uint8)
    labels = np.array([9, 0, 9, 0, 1], np.uint8)
    for word, rows in (("train", slice(0, 3)), ("t10k", slice(3, 5))):
        for kind, array in ((f"images{dot}idx3", pixels), (f"labels{dot}idx1", labels)):
            name = f"{word}-{kind}-ubyte" + (".gz" if zipped else "")
            content = idx(array[rows])
            (folder / name).write_bytes(gzip.compress(content, mtime=0) if zipped else content)
    return pixels


def png():
    file = io.BytesIO()
    Image.new("L", (2, 2)).save(file, "PNG")
    return file.getvalue()


def write_omniglot(folder, name, drawings, *, zipped):
    folder.mkdir(parents=True, exist_ok=True)
    if zipped:
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            for drawing in drawings:
                archive.writestr(f"{name}/{drawing}.png", png())
    else:
        for drawing in drawings:
            file = folder / name / f"{drawing}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png())


@pytest.fixture
def server(monkeypatch):
    """A local HTTP server: (address, {path: bytes}); all other paths are 404."""
    files: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            content = files.get(self.path)
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *arguments):
            pass

    monkeypatch.setenv("no_proxy", "*")
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}", files
    running.shutdown()
    thread.join()
    running.server_close()
    with warnings.catch_warnings():
        # torchvision leaves the answer to a failed request open; it goes here, not in a later test.
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def test_idx_by_hand(tmp_path):
    file = tmp_path / "file"
    content = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6])
    for written in (content, gzip.compress(content, mtime=0)):
        file.write_bytes(written)
        assert read_idx(file).tolist() == [[1, 2, 3], [4, 5, 6]]


def test_idx_agrees_with_torchvision(tmp_path):
    from torchvision.datasets.mnist import read_image_file, read_label_file

    write_idx_set(tmp_path / "raw")
    images, labels = (
        tmp_path / f"raw/t10k-{name}-ubyte" for name in ("images-idx3", "labels-idx1")
    )
    assert np.array_equal(read_idx(images), read_image_file(str(images)).numpy())
    assert np.array_equal(read_idx(labels), read_label_file(str(labels)).numpy())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX file"),
        (b"\x89PNG....", "not an IDX file"),
        (b"\0\0\x0d\x01\0\0\0\x01....", "not an IDX file of unsigned bytes"),
        (b"\0\0\x08\x02\0\0\0\x02\0", "damaged"),
        (b"\0\0\x08\x01\0\0\0\x03ab", "damaged: its header says .3. bytes, and it holds 2"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x01a", mtime=0)[:-3], "cannot read"),
        (b"\x1f\x8bnonsense that is no gzip", "cannot read"),
    ],
)
def test_damaged_idx_files(tmp_path, content, message):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_idx(tmp_path / "file")


def test_digits_need_no_network():
    from sklearn.datasets import load_digits

    table = read_table("digits")
    bunch = load_digits()
    assert table.pixels.shape == (1797, 8, 8)
    assert np.abs(table.pixels / 255 - bunch.images / 16).max() <= 0.5 / 255 + 1e-9
    assert (table.pixels.min(), table.pixels.max()) == (0, 255)
    assert table.identity.tolist() == [str(digit) for digit in bunch.target]
    assert (table.path[17], table.relative(17)) == ("digits/00017", "digits/00017")
    assert set(table.split) == {""}
    with pytest.raises(DataError, match="takes no root"):
        read_table("digits", root=Path.cwd())


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("below", ["", "raw", "FashionMNIST/raw"])
def test_idx_sets_in_every_layout(tmp_path, zipped, below):
    pixels = write_idx_set(tmp_path / "root" / below, zipped=zipped)
    table = read_table("fashion-mnist", root=tmp_path / "root")
    assert table.path.tolist() == [
        f"fashion-mnist/{name}"
        for name in ("test/00000", "test/00001", "train/00000", "train/00001", "train/00002")
    ]
    assert table.split.tolist() == ["test"] * 2 + ["train"] * 3
    boot, shirt = "Ankle boot", "T-shirt/top"
    assert table.identity.tolist() == [shirt, "Trouser", boot, shirt, boot]
    assert np.array_equal(table.pixels, pixels[[3, 4, 0, 1, 2]])
    assert table.root is None


def test_mnist_is_read_from_names_with_dots_too(tmp_path):
    write_idx_set(tmp_path / "root", dot=".")
    assert read_table("mnist", root=tmp_path / "root").identities() == ["0", "1", "9"]


def test_idx_sets_that_lack_a_file_or_do_not_match_are_refused(tmp_path):
    write_idx_set(tmp_path / "root")
    images = tmp_path / "root/t10k-images-idx3-ubyte"
    images.write_bytes(idx(np.zeros((3, 2, 2), np.uint8)))
    with pytest.raises(DataError, match=r"t10k files .* do not belong together"):
        read_table("mnist", root=tmp_path / "root")
    images.unlink()
    with pytest.raises(DataError, match=r"holds no t10k-images-idx3-ubyte.*MNIST/raw"):
        read_table("mnist", root=tmp_path / "root")
    with pytest.raises(DataError, match="no such file or folder"):
        read_table("mnist", root=tmp_path / "nowhere")


def test_idx_sets_load_no_torch(tmp_path):
    write_idx_set(tmp_path / "root")
    code = (
        "import sys; from pathlib import Path; from twinlens.data.folders import read_table;"
        "read_table('mnist', root=Path(sys.argv[1])); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "root"], check=True)


@pytest.fixture
def cifar_root(tmp_path, monkeypatch):
    """A root with a tiny CIFAR-10 whose MD5 sums torchvision is made to expect."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "root/cifar-10-batches-py"
    folder.mkdir(parents=True)

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    red = np.zeros((2, 3, 32, 32), np.uint8)
    red[:, 0] = 200
    batch = {"data": red.reshape(2, -1), "labels": [1, 0]}
    sums = {name: write(name, batch) for name in ("data_batch_1", "test_batch")}
    meta = write("batches.meta", {"label_names": ["airplane", "automobile"]})
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", sums["data_batch_1"]]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": meta})
    return tmp_path / "root"


@pytest.mark.parametrize("below", ["", "cifar-10-batches-py"])
def test_cifar10(cifar_root, below):
    table = read_table("cifar10", root=cifar_root / below)
    assert table.path[0] == "cifar10/test/00000"
    assert table.identity.tolist() == ["automobile", "airplane"] * 2
    assert table.split.tolist() == ["test", "test", "train", "train"]
    assert table.pixels.shape == (4, 32, 32, 3)
    assert table.pixels[0, 5, 5].tolist() == [200, 0, 0]


def test_cifar10_with_changed_pickles_is_never_opened(cifar_root):
    (cifar_root / "cifar-10-batches-py/test_batch").write_bytes(b"cos\nabort\n(tR.")
    with pytest.raises(DataError, match="holds no complete cifar-10-batches-py"):
        read_table("cifar10", root=cifar_root)


SMALL1 = ["Greek/character01/0394_01", "Greek/character01/0394_02", "Latin/character01/0683_01"]
SMALL2 = ["Greek/character01/0394_02", "Greek/character02/0395_01"]


@pytest.mark.parametrize("zipped", [(True, True), (False, False), (True, False)])
def test_omniglot_sets_are_merged_and_drawings_counted_once(tmp_path, own_cache, zipped):
    root = tmp_path / "root"
    write_omniglot(root, "images_background_small1", SMALL1, zipped=zipped[0])
    write_omniglot(root, "images_background_small2", SMALL2, zipped=zipped[1])
    (root / "all_runs.zip").write_bytes(b"something else")
    before = sorted(root.rglob("*"))
    table = read_table("omniglot", root=root)
    assert len(table) == 4
    assert table.identities() == ["Greek/character01", "Greek/character02", "Latin/character01"]
    assert set(table.split) == {""}
    assert all(Path(path).is_file() for path in table.path)
    assert sorted(root.rglob("*")) == before
    assert own_cache.exists() == any(zipped)


def test_omniglot_has_one_fingerprint_zipped_and_extracted(tmp_path):
    for zipped in (False, True):
        write_omniglot(tmp_path / str(zipped), "images_background", SMALL1, zipped=zipped)
    one, two = (read_table("omniglot", root=tmp_path / name) for name in ("False", "True"))
    assert one.fingerprint() == two.fingerprint()
    assert one.relative(0) == "images_background/Greek/character01/0394_01.png"


@pytest.mark.parametrize("below", [".", "omniglot-py"])
def test_omniglot_with_evaluation_has_given_splits(tmp_path, below):
    root = tmp_path / "root"
    write_omniglot(root / below, "images_background", SMALL1, zipped=True)
    write_omniglot(root / below, "images_evaluation", ["Gurmukhi/character01/1_01"], zipped=True)
    table = read_table("omniglot", root=root)
    assert dict(zip(table.identity, table.split, strict=True)) == {
        "Greek/character01": "train",
        "Latin/character01": "train",
        "Gurmukhi/character01": "test",
    }


def test_omniglot_without_its_files_is_refused(tmp_path):
    (tmp_path / "root").mkdir()
    with pytest.raises(DataError, match=r"needs images_background\.zip"):
        read_table("omniglot", root=tmp_path / "root")
    write_omniglot(tmp_path / "root", "images_background", [], zipped=True)
    with pytest.raises(DataError, match=r"no Alphabet/character/drawing\.png"):
        read_table("omniglot", root=tmp_path / "root")


@pytest.mark.parametrize("below", ["lfw-py/lfw-deepfunneled", "lfw", "lfw_funneled"])
def test_lfw_layouts_with_and_without_lists(tmp_path, below):
    root = tmp_path / "root"
    for name in ("Ann_A", "Bob_B"):
        (root / below / name).mkdir(parents=True)
        (root / below / name / f"{name}_0001.jpg").write_bytes(b"x")
    table = read_table("lfw", root=root)
    assert table.identities() == ["Ann_A", "Bob_B"]
    assert table.relative(0) == "Ann_A/Ann_A_0001.jpg"
    assert read_table("lfw", root=root / below).fingerprint() == table.fingerprint()
    assert set(table.split) == {""}
    lists = (root / below).parent
    (lists / "peopleDevTrain.txt").write_text("1\nAnn_A\t1\n")
    (lists / "peopleDevTest.txt").write_text("1\nBob_B\t1\n")
    assert read_table("lfw", root=root).split.tolist() == ["train", "test"]


def test_error_of_lfw_without_a_root_names_a_mirror(tmp_path):
    with pytest.raises(DataError, match=r"no longer be downloaded.*--root"):
        read_table("lfw")
    with pytest.raises(DataError, match="holds none of lfw-deepfunneled"):
        read_table("lfw", root=tmp_path)


def test_omniglot_is_downloaded_once_by_torchvision(server, tmp_path, own_cache, monkeypatch):
    from torchvision.datasets import Omniglot

    address, files = server
    sums = {}
    for name, drawings in (("images_background", SMALL1), ("images_evaluation", SMALL2[1:])):
        write_omniglot(tmp_path / "made", name, drawings, zipped=True)
        content = (tmp_path / f"made/{name}.zip").read_bytes()
        files[f"/{name}.zip"] = content
        sums[name] = hashlib.md5(content).hexdigest()
    monkeypatch.setattr(Omniglot, "download_url_prefix", address)
    monkeypatch.setattr(Omniglot, "zips_md5", sums)
    table = read_table("omniglot")
    assert sorted(table.split) == ["test", "train", "train", "train"]
    assert all(Path(path).is_relative_to(own_cache) for path in table.path)
    files.clear()
    assert read_table("omniglot").fingerprint() == table.fingerprint()


def test_mnist_is_downloaded_by_torchvision(server, tmp_path, monkeypatch):
    from torchvision.datasets import MNIST

    address, files = server
    pixels = write_idx_set(tmp_path / "made", zipped=True)
    made = {file.name: file.read_bytes() for file in (tmp_path / "made").iterdir()}
    files.update({f"/{name}": content for name, content in made.items()})
    sums = [(name, hashlib.md5(content).hexdigest()) for name, content in made.items()]
    monkeypatch.setattr(MNIST, "mirrors", [f"{address}/nothing/", f"{address}/"])
    monkeypatch.setattr(MNIST, "resources", sums)
    assert np.array_equal(read_table("mnist").pixels, pixels[[3, 4, 0, 1, 2]])


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "omniglot"])
@pytest.mark.parametrize("refused", [False, True])
def test_a_failed_download_ends_in_one_line(server, own_cache, monkeypatch, name, refused):
    from torchvision import datasets

    # A bound socket that does not listen refuses connections.
    silent = socket.socket()
    silent.bind(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{silent.getsockname()[1]}" if refused else server[0]
    monkeypatch.setattr(datasets.MNIST, "mirrors", [f"{address}/"])
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [f"{address}/"])
    monkeypatch.setattr(datasets.CIFAR10, "url", f"{address}/cifar-10-python.tar.gz")
    monkeypatch.setattr(datasets.Omniglot, "download_url_prefix", address)
    with silent, pytest.raises(DataError) as caught:
        read_table(name)
    message = str(caught.value)
    assert message.startswith(f"cannot download {name} from {address}")
    assert ("refused" in message) if refused else ("404" in message)
    assert "--root" in message
    assert "\n" not in message
    assert not list(own_cache.rglob("*"))


def test_a_download_with_wrong_content_is_refused(server, own_cache, monkeypatch):
    from torchvision.datasets import Omniglot

    address, files = server
    files["/images_background.zip"] = b"a login page of the hotel's network"
    monkeypatch.setattr(Omniglot, "download_url_prefix", address)
    with pytest.raises(DataError, match=r"cannot download omniglot .*corrupted.*--root"):
        read_table("omniglot")
    assert not list(own_cache.rglob("*"))


def test_every_named_set_of_the_readme_exists():
    assert sorted(NAMED_SETS) == [
        "cifar10", "digits", "fashion-mnist", "glyphs", "lfw", "mnist", "omniglot",
    ]  # fmt: skip


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_debians_fashion_mnist():
    table = read_table("fashion-mnist", root=DEBIAN)
    assert table.pixels.shape == (70_000, 28, 28)
    assert set(np.bincount(table.labels()).tolist()) == {7_000}
    assert len(table.of_split("test")) == 10_000


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not here")
def test_the_small_omniglot_sets():
    table = read_table("omniglot", root=SHARED / "omniglot")
    assert len({name.split("/")[0] for name in table.identities()}) == 8
    assert len(table.identities()) == 242
    assert set(np.bincount(table.labels()).tolist()) == {20}
