"""Keys of a service: their file, its changes, sessions, and the command line."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from test_cli import arguments_of, parameters_of

from twinlens.cli.keys import KEY_COMMANDS, key_function
from twinlens.cli.main import main
from twinlens.errors import ConfigError
from twinlens.service import keys as module
from twinlens.service.app import create_app
from twinlens.service.keys import Keys, add_key, list_keys, remove_key
from twinlens.service.settings import Limits, ServiceSettings


def test_a_key_is_nowhere_but_in_its_one_answer(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    new = add_key(file, name="camera 1", role="enrol")
    assert len(new.key) > 40
    assert new.key not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert add_key(file, name="b").key != new.key
    assert [(key.name, key.role) for key in list_keys(file).keys] == [
        ("camera 1", "enrol"), ("b", "read"),
    ]  # fmt: skip
    assert "hash" not in json.dumps(list_keys(file).as_json())
    assert Keys(file).find(new.key) == list_keys(file).keys[0]
    for text in ("", "x", new.key[:-1], new.key.lower(), "\ud800", "ä" * 1000):
        assert Keys(file).find(text) is None


def test_what_is_no_keys_file(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    for call in (lambda: Keys(file), lambda: list_keys(file), lambda: remove_key(file, name="a")):
        with pytest.raises(ConfigError, match="make one with `twinlens keys add"):
            call()
    add_key(file, name="a")
    with pytest.raises(ConfigError, match="there is a key a already"):
        add_key(file, name="a")
    for name in ("", "../a", "a\nb", "x" * 65):
        with pytest.raises(ConfigError, match="a key needs a name"):
            add_key(file, name=name)
    with pytest.raises(ConfigError, match="unknown role 'boss'"):
        add_key(file, name="b", role="boss")
    with pytest.raises(ConfigError, match="unknown key 'b'"):
        remove_key(file, name="b")
    good = file.read_text()
    for text in (
        "",
        "{}",
        "[]",
        good[:-5],
        good.replace('"read"', '"root"'),
        '{"twinlens_keys": 2}',
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match="is no keys file of twinlens"):
            list_keys(file)


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    first = add_key(file, name="a").key
    keys = Keys(file)
    second = add_key(file, name="b").key
    assert keys.find(second) is not None
    remove_key(file, name="a")
    assert keys.find(first) is None
    file.unlink()
    with pytest.raises(ConfigError, match="there is no keys file"):
        keys.find(second)


def test_sessions_are_signed_expire_and_end_with_their_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys.json"
    add_key(file, name="a", role="admin")
    add_key(file, name="b")
    keys, (a, b) = Keys(file), list_keys(file).keys
    session = keys.new_session(a)
    assert keys.of_session(session) == a
    assert Keys(file).of_session(session) == a  # In another worker.
    name, expires, signature = session.split(".")
    other = keys.new_session(b)
    for forged in (
        "", ".", "..", session[:-1], f"{name}.{int(expires) + 1}.{signature}", f"{name}.{expires}.",
        f"{other.split('.')[0]}.{expires}.{signature}", f"{name}.x.{signature}", f"{session}.x",
        f"{name}.{expires}.ä",
    ):  # fmt: skip
        assert keys.of_session(forged) is None
    monkeypatch.setattr(module.time, "time", lambda: float(expires))
    assert keys.of_session(session) is None
    monkeypatch.undo()
    remove_key(file, name="a")
    assert keys.of_session(session) is None
    add_key(file, name="a", role="admin")  # Another key of the same name.
    assert keys.of_session(session) is None


# --- the command line ---


@pytest.mark.parametrize("name", KEY_COMMANDS)
def test_arguments_are_the_parameters_of_the_function(name: str) -> None:
    assert arguments_of("keys", name) == parameters_of(key_function(KEY_COMMANDS[name][2]))


def test_keys_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "keys.json")
    assert main(["keys", "add", file, "--name", "app"]) == 0
    key = capsys.readouterr().out.strip()
    assert Keys(Path(file)).find(key) is not None
    assert main(["keys", "list", file]) == 0
    assert capsys.readouterr().out.split()[::2] == ["read", "app"]
    assert main(["keys", "remove", file, "--name", "app", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"keys": []}
    assert main(["keys", "ad", file]) == 2
    assert "did you mean add" in capsys.readouterr().err


# --- in the service ---


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[TestClient, Path, dict[str, str]]]:
    file = tmp_path / "keys.json"
    texts = {role: add_key(file, name=role, role=role).key for role in ("read", "enrol", "admin")}
    settings = ServiceSettings(
        data=tmp_path / "data", keys=file, limits=Limits(requests_a_minute=30)
    )
    (tmp_path / "data").mkdir()
    with TestClient(create_app(settings), base_url="http://twins.example") as client:
        yield client, file, texts


Served = tuple[TestClient, Path, dict[str, str]]


def test_roles(served: Served) -> None:
    client, file, texts = served
    status = {
        (role, method): client.request(method, path, headers={"x-api-key": text}).status_code
        for role, text in texts.items()
        for method, path in (
            ("DELETE", "/v1/models/none"),
            ("POST", "/v1/galleries/none/templates?identity=a"),
        )
    }
    assert status == {
        ("read", "DELETE"): 403, ("enrol", "DELETE"): 403, ("admin", "DELETE"): 404,
        ("read", "POST"): 403, ("enrol", "POST"): 422, ("admin", "POST"): 422,
    }  # fmt: skip
    for headers in ({"Authorization": f"Bearer {texts['read']}"}, {"X-API-Key": texts["read"]}):
        assert client.get("/v1/models", headers=headers).status_code == 200
    refused = client.get("/v1/models")
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    assert refused.json()["error"]["code"] == "no_key"
    remove_key(file, name="read")
    answer = client.get("/v1/models", headers={"x-api-key": texts["read"]})
    assert answer.json()["error"]["code"] == "wrong_key"
    file.write_text("{")
    assert client.get("/v1/models", headers={"x-api-key": texts["admin"]}).status_code == 503
    assert client.get("/v1/health").status_code == 200


def test_login_and_logout(served: Served) -> None:
    client, file, texts = served
    page = client.get("/look?a=1", headers={"accept": "text/html"}, follow_redirects=False)
    assert (page.status_code, page.headers["location"]) == (303, "/login?next=%2Flook%3Fa%3D1")
    assert 'value="/look?a=1"' in client.get("/login?next=/look?a=1").text
    part = client.get("/look", headers={"hx-request": "true"})
    assert (part.status_code, part.headers["hx-redirect"]) == (401, "/login")
    wrong = client.post("/login", data={"key": "tl_x", "next": "/"})
    assert wrong.status_code == 401
    assert "no key of this service" in wrong.text
    form = {"key": texts["read"], "next": "//evil.example"}
    begun = client.post("/login", data=form, follow_redirects=False)
    assert (begun.status_code, begun.headers["location"]) == (303, "/")
    cookie = begun.headers["set-cookie"].lower()
    assert {"httponly", "samesite=strict", "path=/"} < set(cookie.split("; "))
    assert "secure" not in cookie
    assert client.get("/v1/models").status_code == 200
    assert "Log out" in client.get("/").text
    assert client.delete("/v1/models/none").status_code == 403
    foreign = client.post("/v1/verify", headers={"origin": "http://evil.example"})
    assert foreign.json()["error"]["code"] == "foreign_origin"
    client.post("/logout", follow_redirects=False)
    assert client.get("/v1/models").status_code == 401
    client.post("/login", data=form, follow_redirects=False)
    remove_key(file, name="read")
    assert client.get("/v1/models").status_code == 401
    client.base_url = "https://twins.example"
    begun = client.post("/login", data={"key": texts["admin"]}, follow_redirects=False)
    assert begun.headers["set-cookie"].startswith("__Host-")
    assert "Secure" in begun.headers["set-cookie"]
    assert begun.headers["strict-transport-security"] == "max-age=31536000"
    assert client.get("/v1/models").status_code == 200


def test_rates(served: Served) -> None:
    client, _, texts = served
    statuses = [
        client.get("/v1/models", headers={"x-api-key": texts["read"]}).status_code
        for _ in range(32)
    ]
    assert statuses == [200] * 30 + [429] * 2
    other = {"x-api-key": texts["admin"]}
    assert client.get("/v1/models", headers=other).status_code == 200
    wrong: list[Any] = [client.get("/v1/models", headers={"x-api-key": "x"}) for _ in range(22)]
    assert [answer.status_code for answer in wrong] == [401] * 20 + [429] * 2
    assert 1 <= int(wrong[-1].headers["retry-after"]) <= 3
    assert client.get("/v1/models", headers=other).status_code == 200


@pytest.mark.skipif(os.name != "posix", reason="modes of files are those of POSIX")
def test_a_file_that_others_may_read_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add_key(tmp_path / "keys.json", name="a")
    (tmp_path / "keys.json").chmod(0o644)
    Keys(tmp_path / "keys.json")
    assert "chmod 600" in caplog.text
