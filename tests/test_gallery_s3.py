"""A gallery in an object store, which a server on loopback stands in for."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TinyRun
from gallery_traces import found_in, traces_of_texts, traces_of_vectors
from gallery_writer import DIM, batch, enrol
from lance.file import LanceFileSession
from PIL import Image
from test_matcher import make_matcher

from twinlens.errors import GalleryError
from twinlens.gallery.gallery import Gallery
from twinlens.gallery.maintain import finish

moto = pytest.importorskip("moto.server", reason="moto, which stands in for S3, is not installed")

# botocore and moto use what Python is giving up; that is not ours.
pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning:botocore|moto|werkzeug")

WRITER = """
import json, sys
sys.path.insert(0, sys.argv[1])
from gallery_writer import batch, enrol
from twinlens.gallery.gallery import Gallery
gallery = Gallery.open(sys.argv[2], options=json.loads(sys.argv[3]))
for number in range(int(sys.argv[4]), int(sys.argv[4]) + 4):
    enrol(gallery, batch(number, 5))
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    """The server of an empty object store."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def options(server: Any) -> dict[str, str]:
    """Storage options for an object store with one empty bucket."""
    import boto3

    host, port = server.get_host_and_port()
    result = {
        "aws_endpoint": f"http://{host}:{port}",
        "allow_http": "true",
        "aws_access_key_id": "nobody",
        "aws_secret_access_key": "nothing",
        "aws_region": "us-east-1",
    }
    client = boto3.client(
        "s3",
        endpoint_url=result["aws_endpoint"],
        aws_access_key_id="nobody",
        aws_secret_access_key="nothing",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="bucket")
    return result


@pytest.fixture
def place(request: pytest.FixtureRequest) -> str:
    return f"s3://bucket/{request.node.name}"


@pytest.fixture
def gallery(place: str, tiny_run: TinyRun, options: dict[str, str]) -> Gallery:
    return Gallery.create(place, tiny_run.model, options=options)


def fetched(place: str, options: dict[str, str], folder: Path) -> Path:
    """All that the store holds of a gallery."""
    session = LanceFileSession(place, storage_options=options)
    names = session.list()
    assert names
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        session.download_file(name, str(folder / name))
    return folder


def test_a_gallery_from_making_to_erasing(
    gallery: Gallery, place: str, options: dict[str, str], tiny_run: TinyRun, tmp_path: Path
) -> None:
    assert gallery.enrol(tiny_run.data, metadata={"where": "s3"}).num_new == 60
    opened = Gallery.open(place, options=options)
    assert opened.identities() == {f"thing {number}": 6 for number in range(10)}
    picture = tiny_run.data / "thing 3" / "2.png"
    for each in (gallery, opened):  # The second one has to fetch the model.
        hit = each.search(picture, k=1, where="metadata.where = 's3'")[0]
        assert (hit.identity, hit.path) == ("thing 3", str(picture))
        assert each.identify(picture).candidates[0].identity == "thing 3"
    assert opened.enrol(tiny_run.data).num_known == 60

    rows = gallery.store.find("identity = 'thing 3'")
    mine = traces_of_vectors(np.array(rows["vector"].to_pylist(), np.float32))
    mine += traces_of_texts(["thing 3", *rows["path"].to_pylist(), *rows["hash"].to_pylist()])
    assert found_in(fetched(place, options, tmp_path / "before"), mine)
    assert opened.optimize(partitions=2).partitions == 2
    assert gallery.erase("thing 3").num_templates == 6
    assert found_in(fetched(place, options, tmp_path / "after"), mine) == {}
    assert opened.rename("thing 4", "thing 3") == 6
    assert gallery.info().num_templates == len(opened) == 54
    with Image.open(picture) as known:
        assert opened.search(known, k=54)[0].identity != "thing 4"


def test_two_threads_enrol(gallery: Gallery, place: str, options: dict[str, str]) -> None:
    problems: list[BaseException] = []

    def work(first: int) -> None:
        try:
            own = gallery if first else Gallery.open(place, options=options)
            for number in range(first, first + 4):
                enrol(own, batch(number, 5))
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    numbers = [*range(4), *range(100, 104)]
    assert gallery.identities() == {f"person-{number:07d}": 5 for number in numbers}


def test_two_processes_enrol(gallery: Gallery, place: str, options: dict[str, str]) -> None:
    words = [sys.executable, "-c", WRITER, str(Path(__file__).parent), place, json.dumps(options)]
    writers = [subprocess.Popen([*words, first], stderr=subprocess.PIPE) for first in ("0", "200")]
    for writer in writers:
        _, said = writer.communicate(timeout=120)
        assert writer.returncode == 0, said.decode()
    numbers = [*range(4), *range(200, 204)]
    assert gallery.identities() == {f"person-{number:07d}": 5 for number in numbers}
    new = batch(202, 5)
    assert gallery.search_embedding(new.emb[3], k=1)[0].hash == new.hash[3]


def test_the_same_picture_by_two_writers_is_one_template(
    gallery: Gallery, place: str, options: dict[str, str]
) -> None:
    problems: list[BaseException] = []

    def work() -> None:
        try:
            enrol(Gallery.open(place, options=options), batch(7, 20))
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert len(gallery) == 20


def at_once(*works: Callable[[], object]) -> list[BaseException]:
    """Errors of threads that run these functions at the same time."""
    problems: list[BaseException] = []

    def watched(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=watched, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return problems


@pytest.mark.slow
def test_two_erase_while_one_enrols_and_one_renames(
    gallery: Gallery, place: str, options: dict[str, str]
) -> None:
    for number in range(6):
        enrol(gallery, batch(number, 5))
    gallery.optimize(partitions=2)

    def erase(*numbers: int) -> None:
        own = Gallery.open(place, options=options)
        for number in numbers:
            assert own.erase(f"person-{number:07d}").num_templates == 5

    def write() -> None:
        own = Gallery.open(place, options=options)
        for number in (10, 11, 12):
            enrol(own, batch(number, 5))

    def rename() -> None:
        assert Gallery.open(place, options=options).rename("person-0000004", "new") == 5

    assert at_once(lambda: erase(0, 1), lambda: erase(2, 3), write, rename) == []
    left = {f"person-{number:07d}": 5 for number in (5, 10, 11, 12)}
    assert gallery.identities() == left | {"new": 5}
    gallery.optimize(partitions=2)
    info = gallery.info()
    assert (info.num_deletions, info.search, info.num_unindexed) == (0, "index", 0)


def enrol_two(gallery: Gallery) -> dict[str, int]:
    enrol(gallery, batch(10, 2))
    return {"person-0000010": 2}


def rename_four(gallery: Gallery) -> dict[str, int]:
    assert gallery.rename("person-0000004", "new") == 5
    return {"person-0000004": 0, "new": 5}


@pytest.mark.parametrize("write", [enrol_two, rename_four])
@pytest.mark.parametrize("held", ["_transactions", "_versions"])
def test_old_versions_are_kept_for_a_commit_that_has_begun(
    server: Any, gallery: Gallery, place: str, options: dict[str, str],
    monkeypatch: pytest.MonkeyPatch, held: str, write: Callable[[Gallery], dict[str, int]],
) -> None:  # fmt: skip
    """An erasure deletes the versions that a commit is checked against once it has ended."""
    for number in range(5):
        enrol(gallery, batch(number, 5))
    answer, begun, may_end = server._server.app, threading.Event(), threading.Event()
    writers = []

    def hold(request: dict[str, Any], start: Any) -> Any:
        method, path = request["REQUEST_METHOD"], request["PATH_INFO"]
        if method == "PUT" and not begun.is_set():
            if ".writers/" in path:
                writers.append(path)
            if f"{held}/" in path:
                begun.set()
                assert may_end.wait(60)
        elif begun.is_set() and method == "HEAD" and path in writers:
            may_end.set()  # The erasure waits for it.
        return answer(request, start)

    def erase() -> None:
        assert begun.wait(60)
        try:
            Gallery.open(place, options=options).erase("person-0000001")
        finally:
            may_end.set()

    monkeypatch.setattr(server._server, "app", hold)
    changes: dict[str, int] = {}
    assert at_once(lambda: changes.update(write(gallery)), erase) == []
    expected = {f"person-{number:07d}": 5 for number in (0, 2, 3, 4)} | changes
    found = Gallery.open(place, options=options).identities()
    assert found == {name: num for name, num in expected.items() if num}


def test_a_killed_writer_holds_back_an_erasure_for_an_hour(
    gallery: Gallery, place: str, options: dict[str, str], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    for number in range(2):
        enrol(gallery, batch(number, 5))
    fresh, old = (f".writers/{time.time() - ago:.0f}-{'0' * 32}" for ago in (0, 3700))
    monkeypatch.setattr("twinlens.gallery.table.PATIENCE", 0)
    upload(place, options, fresh, b"", tmp_path)
    with pytest.raises(GalleryError, match=r"5 templates .*another process .* more than a min"):
        gallery.erase("person-0000000")
    assert gallery.info().num_deletions > 0
    monkeypatch.setattr("twinlens.gallery.store.MAX_FRAGMENTS", 0)
    enrol(gallery, batch(2, 5))  # It compacts, and leaves the old files.
    assert gallery.identities() == {"person-0000001": 5, "person-0000002": 5}
    LanceFileSession(place, storage_options=options).delete_file(fresh)
    monkeypatch.undo()
    upload(place, options, old, b"", tmp_path)
    gallery.optimize()
    assert gallery.info().num_deletions == 0
    assert LanceFileSession(place, storage_options=options).list(".writers") == []


def test_a_rebuild_beside_a_writer_says_that_old_files_remain(
    gallery: Gallery, place: str, options: dict[str, str], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path, tiny_run: TinyRun, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    gallery.enrol_files("anna", tiny_run.data / "thing 0" / "0.png")
    monkeypatch.setattr("twinlens.gallery.table.PATIENCE", 0)
    upload(place, options, f".writers/{time.time():.0f}-{'0' * 32}", b"", tmp_path)
    new = make_matcher(tmp_path / "m", "grey")
    gallery.rebuild(new)
    assert f"old files remain until `twinlens gallery optimize {place}`" in caplog.text
    opened = Gallery.open(place, options=options)
    assert (opened.fingerprint, len(opened)) == (new.fingerprint, 1)


def test_a_sweep_by_another_does_not_count_for_a_later_deletion(
    gallery: Gallery, place: str, options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2):
        enrol(gallery, batch(number, 5))
    gallery.optimize()  # One file, which a sweep has no cause to write again.
    other, store = Gallery.open(place, options=options), gallery.store
    real, real_wait = store._change, other.store.table.wait_for_writers
    counted, waits = threading.Event(), threading.Event()

    def change(*args: Any) -> Any:
        result = real(*args)
        monkeypatch.setattr(store, "_change", real)
        counted.set()
        assert waits.wait(60)  # The other has compacted, after this one has counted.
        return result

    def wait() -> None:
        waits.set()
        real_wait()

    def delete() -> None:
        rows = store.find("identity = 'person-0000000'", ["hash"])
        store.delete(rows["hash"].to_pylist())

    def sweep() -> None:
        assert counted.wait(60)
        finish(other)

    monkeypatch.setattr(store, "_change", change)
    monkeypatch.setattr(other.store.table, "wait_for_writers", wait)
    assert at_once(delete, sweep) == []
    assert gallery.identities() == {"person-0000001": 5}
    assert gallery.info().num_deletions > 0  # As if killed here: there are bytes left.
    gallery.optimize()
    assert gallery.info().num_deletions == 0


def test_settings_of_several_writers_are_all_kept(
    gallery: Gallery, place: str, options: dict[str, str]
) -> None:
    def count(name: str) -> None:
        own = Gallery.open(place, options=options).store
        for _ in range(4):
            own.change_settings(lambda old: old | {name: old.get(name, 0) + 1})

    assert at_once(*(lambda name=name: count(name) for name in "abc")) == []
    result = gallery.store.settings()
    assert [result[name] for name in "abc"] == [4, 4, 4]


@pytest.mark.parametrize("is_seen", [True, False])  # before the commit, or by Lance in it
def test_what_is_acknowledged_during_a_rebuild_is_kept(
    gallery: Gallery, place: str, options: dict[str, str], monkeypatch: pytest.MonkeyPatch,
    is_seen: bool,
) -> None:  # fmt: skip
    enrol(gallery, batch(1, 5))
    other = Gallery.open(place, options=options)

    def batches(table: Any) -> Any:
        rows = table.to_table()
        enrol(other, batch(2, 5))
        if not is_seen:
            monkeypatch.setattr(gallery.store.table, "_open", lambda: table)
        return rows.to_reader()

    with pytest.raises(GalleryError, match=r"another writer changed the gallery .* meanwhile"):
        gallery.store.table.replace_all(batches)
    assert gallery.identities() == {"person-0000001": 5, "person-0000002": 5}


def test_what_is_not_there(
    gallery: Gallery, place: str, options: dict[str, str], tiny_run: TinyRun
) -> None:
    with pytest.raises(GalleryError, match="there is no gallery at s3://bucket/absent"):
        Gallery.open("s3://bucket/absent", options=options)
    with pytest.raises(GalleryError, match="exists already"):
        Gallery.create(place, tiny_run.model, options=options)
    assert gallery.dim == DIM


def test_a_store_that_cannot_be_reached(options: dict[str, str], tiny_run: TinyRun) -> None:
    away = options | {"aws_endpoint": "http://127.0.0.1:1", "client_max_retries": "0"}
    with pytest.raises(GalleryError, match="cannot open the gallery s3://bucket/away") as opened:
        Gallery.open("s3://bucket/away", options=away)
    with pytest.raises(GalleryError, match="cannot create the gallery s3://bucket/away") as made:
        Gallery.create("s3://bucket/away", tiny_run.model, options=away)
    for error in (opened, made):
        assert "Check the address, the network, and the region and credentials" in str(error.value)
        assert "LanceError" not in str(error.value)


# --- a store that means harm ---


def upload(place: str, options: dict[str, str], name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "upload").write_bytes(content)
    session = LanceFileSession(place, storage_options=options)
    session.upload_file(str(tmp_path / "upload"), name)


def test_a_fingerprint_that_leads_out_of_the_cache(
    gallery: Gallery, place: str, options: dict[str, str], own_cache: Path, tmp_path: Path
) -> None:
    gallery.store.change_settings(lambda old: old | {"fingerprint": "../../../OUTSIDE"})
    before = set(tmp_path.rglob("*"))
    with pytest.raises(GalleryError, match=r"is damaged: fingerprint: .*'\.\./\.\./\.\./OUTSIDE'"):
        Gallery.open(place, options=options)
    assert set(tmp_path.rglob("*")) == before
    assert not own_cache.exists()


def test_a_model_that_is_not_the_claimed_one_stays_out_of_the_cache(
    gallery: Gallery, place: str, options: dict[str, str], own_cache: Path, tmp_path: Path,
    tiny_run: TinyRun,
) -> None:  # fmt: skip
    """Otherwise a store could spoil the model of an honest gallery."""
    other = make_matcher(tmp_path / "m", "grey")
    folder = f"models/{gallery.fingerprint}"
    picture = tiny_run.data / "thing 0" / "0.png"
    for name in ("model.json", "model.onnx"):
        upload(place, options, f"{folder}/{name}", (other.path / name).read_bytes(), tmp_path)
    with pytest.raises(GalleryError, match=f"holds the model {other.fingerprint}, but the gallery"):
        Gallery.open(place, options=options).embed(picture)
    upload(place, options, f"{folder}/model.json", b"{}", tmp_path)
    with pytest.raises(GalleryError, match=f"is damaged: the model {gallery.fingerprint}"):
        Gallery.open(place, options=options).embed(picture)
    assert [path for path in own_cache.rglob("*") if path.is_file()] == []
    for name in ("model.json", "model.onnx"):
        upload(place, options, f"{folder}/{name}", (tiny_run.model / name).read_bytes(), tmp_path)
    assert Gallery.open(place, options=options).embed(picture).shape == (1, DIM)


def test_other_names_in_a_store_are_left_alone(
    gallery: Gallery, place: str, options: dict[str, str], own_cache: Path, tmp_path: Path,
    tiny_run: TinyRun,
) -> None:  # fmt: skip
    """Neither fetched nor deleted: only a model's known files are."""
    folder = f"models/{gallery.fingerprint}"
    names = [f"{folder}/evil.py", "models/0123456789abcdef/model.json", f"{folder}/a/model.json"]
    for name in names:
        upload(place, options, name, b"evil", tmp_path)
    gallery.enrol_files("anna", tiny_run.data / "thing 0" / "0.png")
    opened = Gallery.open(place, options=options)
    opened.embed(tiny_run.data / "thing 0" / "0.png")
    fetched_names = {path.name for path in own_cache.rglob("*") if path.is_file()}
    assert fetched_names == {"model.json", "model.onnx", "trained_on.safetensors"}
    new = make_matcher(tmp_path / "m", "grey")
    opened.rebuild(new)
    left = LanceFileSession(place, storage_options=options).list("models")
    assert set(left) == {
        *names, f"models/{new.fingerprint}/model.json", f"models/{new.fingerprint}/model.onnx"
    }  # fmt: skip


@pytest.mark.slow
def test_shards_and_tenants_of_a_bucket(
    place: str, tiny_run: TinyRun, options: dict[str, str]
) -> None:
    sharded = Gallery.create(f"{place}/hash", tiny_run.model, shards=2, options=options)
    for number in range(4):
        enrol(sharded, batch(number, 3))
    again = Gallery.open(f"{place}/hash", options=options)
    assert len(again) == 12
    assert again.nearest(batch(1, 3).emb[2], 1)[0].identity == batch(1).identity
    assert again.erase(batch(1).identity).num_left == 9
    for number, name in enumerate(["north", "south"]):
        tenant = Gallery.create(f"{place}/all/{name}", tiny_run.model, options=options)
        enrol(tenant, batch(number, 3))
    joined = Gallery.join(f"{place}/all", options=options)
    assert sorted(joined.identities()) == [batch(0).identity, batch(1).identity]
