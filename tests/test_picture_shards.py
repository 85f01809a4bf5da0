"""Files of many pictures: tar, Parquet and Lance, on a disk and in a stand-in for S3."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_tar_shards import png, write_tar

from twinlens.config import PictureSettings
from twinlens.data import picture_shards, stored_pictures
from twinlens.data.contents import content_digests
from twinlens.data.decode import read_array
from twinlens.data.folders import is_folder, read_table
from twinlens.data.pixel_cache import decode_table
from twinlens.data.table import ImageTable
from twinlens.errors import DataError, PictureError

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning:botocore|moto|werkzeug")

SPEC = PictureSettings(size=(8, 8), color="rgb")
PICTURES = [png(row) for row in range(6)]
NAMES = ["anna", "anna", "ben", "ben", "eve", "eve"]
HUGGING_FACE = {"info": {"features": {"label": {"names": ["anna", "ben", "eve"]}}}}


def columns(rows: slice, **others: Any) -> pa.Table:
    return pa.table({"image": PICTURES[rows], "identity": NAMES[rows], **others})


def hugging_face(rows: slice) -> pa.Table:
    """As `datasets` writes it: pictures with their paths, labels as numbers."""
    pictures = [{"bytes": picture, "path": None} for picture in PICTURES[rows]]
    labels = [["anna", "ben", "eve"].index(name) for name in NAMES[rows]]
    table = pa.table({"image": pictures, "label": labels})
    return table.replace_schema_metadata({"huggingface": json.dumps(HUGGING_FACE)})


def write_all(folder: Path) -> dict[str, str]:
    """The same pictures in each kind of file: name below the folder -> data."""
    folder.mkdir(exist_ok=True)
    for part, rows in enumerate((slice(0, 3), slice(3, 6))):
        members: dict[str, bytes] = {}
        for row in range(6)[rows]:
            members |= {f"{row}.png": PICTURES[row], f"{row}.cls": NAMES[row].encode()}
        write_tar(folder / f"a-{part}.tar", members)
        pq.write_table(columns(rows), folder / f"b-{part}.parquet", row_group_size=2)
    lance.write_dataset(columns(slice(0, 6), size=[1, 2, 3, 4, 5, 6]), str(folder / "c.lance"))
    return {"tar": "a-{0..1}.tar", "parquet": "b-{0..1}.parquet", "lance": "c.lance"}


def check(table: ImageTable) -> None:
    assert table.identity.tolist() == NAMES
    assert [table.picture(row) for row in range(6)] == PICTURES
    assert table.pictures(range(1, 5)) == PICTURES[1:5]
    decoded = decode_table(table, SPEC, max_pixels=10**6, max_broken=0)
    whole = [read_array(picture, SPEC, max_pixels=10**6) for picture in PICTURES]
    np.testing.assert_array_equal(decoded.pixels, whole)
    assert content_digests(table)[4] == content_digests(table.select([4]))[0]


@pytest.mark.parametrize("kind", ["tar", "parquet", "lance"])
def test_the_same_pictures_in_each_kind_of_file(tmp_path: Path, kind: str) -> None:
    place = tmp_path / write_all(tmp_path)[kind]
    table = read_table(str(place))
    check(table)
    copy = tmp_path / "copy"
    write_all(copy)
    assert read_table(str(copy / place.name)).fingerprint() == table.fingerprint()
    if kind == "lance":
        assert table.metadata is not None
        assert table.metadata[2] == {"size": 3}
    else:
        for other in ("a", "b", "c"):
            if other != place.name[0]:
                for path in tmp_path.glob(f"{other}*.*"):
                    path.rename(copy / path.name) if path.is_file() else None
        alone = tmp_path / "alone"
        alone.mkdir()
        for path in tmp_path.glob(f"{place.name[0]}-*"):
            path.rename(alone / path.name)
        check(read_table(alone))


def test_splits_and_labels_as_of_hugging_face(tmp_path: Path) -> None:
    pq.write_table(hugging_face(slice(0, 4)), tmp_path / "train-00000-of-00001.parquet")
    pq.write_table(hugging_face(slice(4, 6)), tmp_path / "validation-00000-of-00001.parquet")
    table = read_table(str(tmp_path))
    check(table)
    assert table.split.tolist() == ["train"] * 4 + ["val"] * 2


def test_labels_without_a_name(tmp_path: Path) -> None:
    file, table = tmp_path / "train.parquet", hugging_face(slice(0, 3))
    for labels, names in (([0, 2, -1], ["anna", "eve", ""]), (["x", "y", "y"], ["x", "y", "y"])):
        table = table.set_column(1, "label", pa.array(labels))
        pq.write_table(table.slice(0, 2), file)
        assert read_table(str(file)).identity.tolist() == names[:2]
    pq.write_table(table.set_column(1, "label", pa.array([0, 1, -1])), file)
    with pytest.raises(DataError, match="1 of 3 pictures have no identity"):
        read_table(str(file))
    for about in ("{", "[]", '{"info": {"features": [1]}}'):
        pq.write_table(table.replace_schema_metadata({"huggingface": about}), file)
        with pytest.raises(DataError, match=r"train\.parquet has damaged metadata of Hugging Face"):
            read_table(str(file))


def test_a_lance_table_is_read_as_it_is_now(tmp_path: Path) -> None:
    for num in (6, 12):
        lance.write_dataset(columns(slice(0, 6)), str(tmp_path / "a.lance"), mode="append")
        assert len(read_table(str(tmp_path / "a.lance"))) == num


def test_pictures_beside_tar_files_are_read_in_their_place(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"b/1.png": PICTURES[0]})
    assert len(read_table(tmp_path)) == 1
    (tmp_path / "c.png").write_bytes(PICTURES[1])
    assert picture_shards.read_shards(tmp_path) is None


def test_pictures_beside_each_other_are_read_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_all(tmp_path)
    table = read_table(str(tmp_path / "a-{0..1}.tar"))
    reads: list[tuple[str, int]] = []
    real = stored_pictures.ByteRanges._range

    def counted(self: stored_pictures.ByteRanges, start: int, size: int) -> bytes:
        reads.append((Path(self.name).name, start))
        return real(self, start, size)

    monkeypatch.setattr(stored_pictures.ByteRanges, "_range", counted)
    assert table.pictures(range(6)) == PICTURES
    assert [name for name, _ in reads] == ["a-0.tar", "a-1.tar"]
    monkeypatch.setattr(stored_pictures, "GAP", 0)
    assert table.pictures(range(3)) == PICTURES[:3]
    assert len(reads) == 5


def test_files_that_are_not_read(tmp_path: Path) -> None:
    write_all(tmp_path)
    for name in ("a-1.tar", "b-1.parquet"):
        file = tmp_path / name
        file.write_bytes(file.read_bytes()[:900])
    with pytest.raises(DataError, match=r"a-1\.tar: it ends within .*\.png; needed is a complete"):
        read_table(str(tmp_path / "a-{0..1}.tar"))
    with pytest.raises(
        DataError, match=r"cannot read .*b-1\.parquet: .* Check that it is complete"
    ):
        read_table(str(tmp_path / "b-{0..1}.parquet"))
    table = pa.table({"image": [b"x"], "path": [b"y"]})
    pq.write_table(table, tmp_path / "two.parquet")
    with pytest.raises(DataError, match="exactly one column of identities is needed"):
        read_table(str(tmp_path / "two.parquet"))
    table = pa.table({"image": [b"x", None], "identity": ["a", "a"]})
    pq.write_table(table, tmp_path / "none.parquet")
    with pytest.raises(PictureError, match="no picture"):
        read_table(str(tmp_path / "none.parquet")).picture(1)
    names = pa.array([b"\xff"], pa.binary()).view(pa.string())  # Are not UTF-8.
    pq.write_table(pa.table({"image": [b"x"], "identity": names}), tmp_path / "names.parquet")
    with pytest.raises(DataError, match=r"cannot read .*names\.parquet: 'utf-8' codec"):
        read_table(str(tmp_path / "names.parquet"))
    (tmp_path / "damaged.lance").mkdir()
    with pytest.raises(DataError, match=r"cannot read .*damaged\.lance"):
        read_table(str(tmp_path / "damaged.lance"))


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"image": None, "blob": [b"x", b"y"]}, r"a\.parquet has no column of pictures: needed is"),
        ({"identity": [b"a", b"b"]}, r"column identity of .*a\.parquet holds binary: needed"),
        ({"identity": ["a", None]}, r"1 of 2 pictures have no identity, such as a\.parquet/1"),
    ],
)
def test_columns_of_other_names_and_types(
    tmp_path: Path, replaced: dict[str, Any], message: str
) -> None:
    values = {"image": [b"x", b"y"], "identity": ["a", "b"]} | replaced
    table = pa.table({name: column for name, column in values.items() if column is not None})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=message):
        read_table(str(tmp_path / "a.parquet"))


def test_one_kind_of_columns_files_and_names(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_all(tmp_path)
    pq.write_table(columns(slice(3, 6)).select(["image"]), tmp_path / "b-1.parquet")
    with pytest.raises(DataError, match=r"3 of 6 .* no identity, such as b-1\.parquet/0"):
        read_table(str(tmp_path / "b-{0..1}.parquet"))
    with pytest.raises(DataError, match=r"cannot read .*none-0\.parquet"):
        read_table(str(tmp_path / "none-{0..1}.parquet"))
    with pytest.raises(DataError, match=r"names 2 Lance tables: give one"):
        read_table(str(tmp_path / "{0..1}.lance"))
    lance.write_dataset(pa.table({"blob": [b"x"]}), str(tmp_path / "d.lance"))
    with pytest.raises(DataError, match=r"^[^ ]*d\.lance has no column of pictures.*found blob$"):
        read_table(str(tmp_path / "d.lance"))
    for name in ("0", "1"):
        (tmp_path / name).mkdir()
        (tmp_path / f"a-{name}.tar").rename(tmp_path / name / "a.tar")
    with pytest.raises(DataError, match=r"0/a\.tar and .*1/a\.tar have one name"):
        read_table(str(tmp_path / "{0..1}" / "a.tar"))
    assert not is_folder(tmp_path / "0")
    assert not is_folder(tmp_path / "c.lance")
    (tmp_path / "b-0.parquet").rename(tmp_path / "0" / "b.parquet")
    assert len(read_table(tmp_path / "0")) == 3
    assert "1 .parquet are left out beside the .tar" in caplog.text


# --- an object store ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A client of a stand-in for S3, whose bucket holds the files; the environment leads to it."""
    moto = pytest.importorskip("moto.server")
    import boto3

    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "ACCESS_KEY_ID": "nobody", "SECRET_ACCESS_KEY": "nothing", "REGION": "us-east-1",
            "ENDPOINT_URL": address, "ALLOW_HTTP": "true", "DEFAULT_REGION": "us-east-1",
        }.items():  # fmt: skip
            patch.setenv(f"AWS_{name}", value)
        client = boto3.client("s3")
        client.create_bucket(Bucket="shop")
        folder = tmp_path_factory.mktemp("files")
        write_all(folder)
        for path in folder.rglob("*"):
            if path.is_file():
                top = "" if "c.lance" in path.parts else f"{path.name[0]}/"
                name = f"{top}{path.relative_to(folder).as_posix()}"
                client.put_object(Bucket="shop", Key=name, Body=path.read_bytes())
        yield client
    server.stop()


@pytest.mark.slow
def test_files_in_a_store(store: Any, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for data in ("a/a-{0..1}.tar", "a", "b/b-{0..1}.parquet", "b/", "c.lance"):
        check(read_table(f"s3://shop/{data}"))
    assert len(list((own_cache / "tars").iterdir())) == 2
    monkeypatch.setattr("twinlens.data.tar_shards._read_members", None)  # By the cache.
    check(read_table("s3://shop/a"))


@pytest.mark.slow
def test_a_store_without_the_files(store: Any, own_cache: Path) -> None:
    for place in ("nowhere", "c.lance/data/"):
        with pytest.raises(DataError, match=f"s3://shop/{place}"):
            read_table(f"s3://shop/{place}")
    with pytest.raises(DataError, match=r"there is no file at s3://shop/x\.tar: check bucket"):
        read_table("s3://shop/x.tar")
    with pytest.raises(DataError, match=r"s3://nobucket/x\.tar: check"):
        read_table("s3://nobucket/x.tar")
    with pytest.raises(DataError, match=r"cannot read s3://shop/x\.lance"):
        read_table("s3://shop/x.lance")
    table = read_table("s3://shop/a/a-0.tar")
    store.delete_object(Bucket="shop", Key="a/a-0.tar")
    with pytest.raises(DataError, match=r"cannot read s3://shop/a/a-0\.tar: check"):
        table.select([0, 1]).pictures(range(2))
    stream = io.BytesIO(store.get_object(Bucket="shop", Key="a/a-1.tar")["Body"].read()[:900])
    store.put_object(Bucket="shop", Key="a/a-1.tar", Body=stream.getvalue())
    with pytest.raises(DataError, match=r"s3://shop/a/a-1\.tar: it ends within"):
        read_table("s3://shop/a/a-1.tar")
