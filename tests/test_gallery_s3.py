"""A gallery in an object store, which a server on loopback stands in for."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import TinyRun
from gallery_traces import found_in, traces_of_texts, traces_of_vectors
from gallery_writer import DIM, batch, enrol
from lance.file import LanceFileSession
from PIL import Image

from twinlens.errors import GalleryError
from twinlens.match.gallery import Gallery

moto = pytest.importorskip("moto.server", reason="moto, which stands in for S3, is not installed")

# botocore and moto use what Python is giving up; that is not ours.
pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning:botocore|moto|werkzeug")

WRITER = """
import json, sys
sys.path.insert(0, sys.argv[1])
from gallery_writer import batch, enrol
from twinlens.match.gallery import Gallery
gallery = Gallery.open(sys.argv[2], options=json.loads(sys.argv[3]))
for number in range(int(sys.argv[4]), int(sys.argv[4]) + 4):
    enrol(gallery, batch(number, 5))
"""


@pytest.fixture(scope="module")
def options() -> Iterator[dict[str, str]]:
    """How to reach a store with one empty bucket."""
    import boto3

    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    found = {
        "aws_endpoint": f"http://{host}:{port}",
        "allow_http": "true",
        "aws_access_key_id": "nobody",
        "aws_secret_access_key": "nothing",
        "aws_region": "us-east-1",
    }
    client = boto3.client(
        "s3",
        endpoint_url=found["aws_endpoint"],
        aws_access_key_id="nobody",
        aws_secret_access_key="nothing",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="bucket")
    yield found
    server.stop()


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


def test_what_is_not_there(
    gallery: Gallery, place: str, options: dict[str, str], tiny_run: TinyRun
) -> None:
    with pytest.raises(GalleryError, match="there is no gallery at s3://bucket/absent"):
        Gallery.open("s3://bucket/absent", options=options)
    with pytest.raises(GalleryError, match="is there already"):
        Gallery.create(place, tiny_run.model, options=options)
    assert gallery.dim == DIM


def test_a_store_that_cannot_be_reached(options: dict[str, str]) -> None:
    away = options | {"aws_endpoint": "http://127.0.0.1:1", "client_max_retries": "0"}
    with pytest.raises(GalleryError, match="cannot open the gallery s3://bucket/away"):
        Gallery.open("s3://bucket/away", options=away)
