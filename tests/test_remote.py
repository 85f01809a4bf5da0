"""Downloads from stand-ins on this machine: moto for S3, and a server with a certificate."""

from __future__ import annotations

import datetime
import functools
import http.server
import io
import logging
import ssl
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import twinlens
from twinlens.data.folders import read_table
from twinlens.errors import DataError

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning:botocore|moto|werkzeug")


def png(seed: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 9), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


FILES = {"anna/1.png": png(0), "anna/2.png": png(1), "ben/1.png": png(2), "notes.txt": b"x"}
PICTURES = {name: content for name, content in FILES.items() if name.endswith(".png")}


class _Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/away.zip":
            self.send_response(302)
            self.send_header("Location", "http://127.0.0.1:9/a.zip")
            self.end_headers()
        else:
            super().do_GET()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address and the folder of a server; its certificate is trusted."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    top = tmp_path_factory.mktemp("site")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
        .add_extension(x509.BasicConstraints(True, None), True).sign(key, hashes.SHA256())
    )  # fmt: skip
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    both = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    (top / "both.pem").write_bytes(both + certificate.public_bytes(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(top / "both.pem")
    folder = top / "files"
    for file, content in FILES.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(_Handler, directory=str(folder))
    )
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(top / "both.pem"))
        yield f"https://localhost:{server.server_port}", folder
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The query that leads Arrow to a stand-in for S3, with the pictures in its bucket."""
    moto = pytest.importorskip("moto.server")
    import boto3

    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
        client.create_bucket(Bucket="shop")
        for name, content in FILES.items():
            client.put_object(Bucket="shop", Key=f"photos/{name}", Body=content)
        yield f"?scheme=http&endpoint_override={host}:{port}&region=us-east-1"
    server.stop()


def check(data: Path) -> None:
    table = read_table(data)
    assert table.identity.tolist() == ["anna", "anna", "ben"]
    contents = [table.picture(row) for row in range(3)]
    read = [Path(one).read_bytes() if isinstance(one, str) else one for one in contents]
    assert read == list(PICTURES.values())


@pytest.mark.slow
def test_a_folder_in_a_bucket(bucket: str, tmp_path: Path) -> None:
    check(twinlens.fetch(f"s3://shop/photos{bucket}", tmp_path / "photos", quiet=True))
    assert not (tmp_path / "photos" / "notes.txt").exists()
    for place in ("nowhere", "photos/notes.txt"):
        with pytest.raises(DataError, match=rf"s3://shop/{place}"):
            twinlens.fetch(f"s3://shop/{place}{bucket}", tmp_path / "none", quiet=True)
    with pytest.raises(DataError, match=r"s3://nobucket/photos.*: check the name of the bucket"):
        twinlens.fetch(f"s3://nobucket/photos{bucket}", tmp_path / "none", quiet=True)
    assert not (tmp_path / "none").exists()


def test_archives(site: tuple[str, Path], tmp_path: Path) -> None:
    address, folder = site
    with zipfile.ZipFile(folder / "a.zip", "w") as packed:
        for name, content in FILES.items():
            packed.writestr(f"photos/{name}", content)
    with tarfile.open(folder / "a.tar", "w") as archive:
        for name in ("anna", "ben"):
            archive.add(folder / name, name)
    for kind in ("zip", "tar"):
        check(twinlens.fetch(f"{address}/a.{kind}", tmp_path / kind, quiet=True))
    with zipfile.ZipFile(folder / "bad.zip", "w") as packed:
        packed.writestr("../1.png", b"x")
    with pytest.raises(DataError, match=r"the name \.\./1\.png leads out of its folder"):
        twinlens.fetch(f"{address}/bad.zip", tmp_path / "bad", quiet=True)
    (folder / "half.zip").write_bytes((folder / "a.zip").read_bytes()[:200])
    with pytest.raises(DataError, match=r"half\.zip is not a complete zip file"):
        twinlens.fetch(f"{address}/half.zip", tmp_path / "bad", quiet=True)
    assert not (tmp_path / "bad").exists()


def test_manifests_with_addresses(
    site: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, folder = site
    names = list(PICTURES)
    rows = [f"{address}/{name},{name.split('/')[0]}" for name in names[:2]]
    local = tmp_path / "list.csv"
    local.write_text("\n".join(["path,identity", *rows, f"{names[2]},ben"]))
    (tmp_path / "ben").mkdir()
    (tmp_path / names[2]).write_bytes(PICTURES[names[2]])
    with pytest.raises(DataError, match=r"line 2: path is an address: `twinlens fetch MANIFEST"):
        read_table(local)
    assert sorted(read_table(twinlens.fetch(str(local), tmp_path / "a", quiet=True)).identity) == [
        "anna", "anna", "ben",
    ]  # fmt: skip
    (folder / "list.tsv").write_text("\n".join(["path\tidentity", *(
        f"{name}\t{name.split('/')[0]}" for name in names)]))  # fmt: skip
    check(twinlens.fetch(f"{address}/list.tsv", tmp_path / "b", quiet=True))
    pairs = [f"{names[0]},{address}/{names[1]},1", f"{names[0]},{names[2]},0"]
    (folder / "pairs.csv").write_text("\n".join(["a,b,same", *pairs]))
    data = twinlens.fetch(f"{address}/pairs.csv", tmp_path / "c", quiet=True)
    assert sorted(read_table(data).identity) == ["1", "1", "2"]
    monkeypatch.setattr("twinlens.data.remote.memory_limit", lambda: 10)
    with pytest.raises(DataError, match="more than 10 bytes"):
        twinlens.fetch(f"{address}/pairs.csv", tmp_path / "d", quiet=True)
    assert not (tmp_path / "d").exists()


def test_addresses_that_are_not_read(site: tuple[str, Path], tmp_path: Path) -> None:
    address, _ = site
    for name, message in (
        (f"{address}/none.zip", "cannot read .*the host answers .*404.*check the address"),
        ("https://127.0.0.1:9/a.zip", r"a\.zip: check .* network \(Connection refused\)"),
        (f"{address}/away.zip", "cannot reach .*away.zip|without https"),
        (f"{address}/anna", r"needed is a \.zip, \.tar, \.csv or \.tsv"),
        ("http://localhost/a.zip", "only https:// and s3://"),
    ):
        with pytest.raises(DataError, match=message):
            twinlens.fetch(name, tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()


def test_only_stores_are_read_without_a_download() -> None:
    message = r"on the network, which is read only when asked: `twinlens fetch ADDRESS FOLDER`"
    for data in ("https://localhost/a.tar", "https://localhost/a.zip", Path("s3://shop/photos")):
        with pytest.raises(DataError, match=message):
            read_table(data)
    with pytest.raises(DataError, match=f"picture 0: https://localhost/1.png is {message}"):
        read_table([("https://localhost/1.png", "anna")])
