"""Models at the hub: published with a card, loaded by address, refused if they are none."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import TinyRun
from hub_server import TOKEN, Hub, running_hub
from huggingface_hub import constants

import twinlens
from twinlens.cli.main import main
from twinlens.commands.push import card_facts
from twinlens.errors import ModelError
from twinlens.exports.model_card import CardFacts, model_card
from twinlens.model.hub_models import parse_hub_address
from twinlens.model.stored import MODEL_FILES


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub on this machine, which huggingface_hub talks to, and an empty cache."""
    with running_hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        yield server


def files_of(model: Path) -> dict[str, bytes]:
    return {name: (model / name).read_bytes() for name in MODEL_FILES if (model / name).is_file()}


def test_a_published_model_is_loaded_by_its_address(hub: Hub, tiny_run: TinyRun) -> None:
    model = twinlens.load(tiny_run.run)
    address = model.push_to_hub("anna/things", token=TOKEN, private=True)
    oid, files = hub.files("anna/things", "main") or ("", {})
    assert address == f"hf://anna/things@{oid}"
    assert set(files) - {".gitattributes"} == {
        "README.md", "model.json", "model.onnx", "model.safetensors",
    }  # fmt: skip
    assert hub.private == {"anna/things"}
    assert str(tiny_run.data).encode() not in b"".join(files.values())
    again = twinlens.load("hf://anna/things")
    pair = [tiny_run.data / "thing 0" / "0.png", tiny_run.data / "thing 3" / "0.png"]
    assert again.verify(*pair).distance == pytest.approx(model.verify(*pair).distance, abs=1e-6)
    assert again.calibration == model.calibration
    second = model.push_to_hub("anna/things", token=TOKEN)
    assert twinlens.load(address).path != twinlens.load(second).path
    with pytest.raises(ModelError, match="belongs to the hub's cache: copy its folder"):
        twinlens.calibrate(address, tiny_run.data, split="all", quiet=True)


def test_the_command_line_takes_addresses(
    hub: Hub, tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main(["push", str(tiny_run.run), "anna/things", "--quiet"]) == 0
    address = capsys.readouterr().out.strip()
    picture = str(tiny_run.data / "thing 0" / "0.png")
    assert main(["verify", address, picture, picture, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["match"] is True
    assert main(["embed", address, str(tiny_run.data), "--out", f"{tiny_run.run}/no/e.csv"]) == 2


def test_a_cached_model_answers_without_the_hub(
    hub: Hub, tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.commit("anna/things", files_of(tiny_run.model))
    first = twinlens.load("hf://anna/things").path
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert twinlens.load("hf://anna/things").path == first
    with pytest.raises(ModelError, match=r"cannot download hf://anna/other: "):
        twinlens.load("hf://anna/other")


def test_what_is_no_model_is_refused_before_it_is_downloaded(hub: Hub, tiny_run: TinyRun) -> None:
    hub.commit("anna/text", {"config.json": b"{}", "model.safetensors": b"x"})
    with pytest.raises(
        ModelError, match=r"hf://anna/text is no model of twinlens: it has no model"
    ):
        twinlens.load("hf://anna/text")
    hub.commit("anna/large", files_of(tiny_run.model))
    hub.claimed = {"model.onnx": 2**40}
    with pytest.raises(ModelError, match=r"model.onnx has 1099511627776 bytes, at most"):
        twinlens.load("hf://anna/large")
    assert not [path for path in hub.requested if "/resolve/" in path]


def test_only_files_of_a_model_are_downloaded_and_they_are_checked(
    hub: Hub, tiny_run: TinyRun
) -> None:
    files = files_of(tiny_run.model)
    hub.commit("anna/things", files | {"evil.py": b"import os", "model.pkl": b"\x80"})
    twinlens.load("hf://anna/things")
    assert not [path for path in hub.requested if "evil" in path or "pkl" in path]
    hub.commit("anna/things", {"model.onnx": files["model.onnx"][:-1] + b"x"})
    with pytest.raises(ModelError, match="is damaged"):
        twinlens.load("hf://anna/things")


@pytest.mark.parametrize("address", ["hf://things", "hf://a/b/c", "hf://../x", "hf://a/b@"])
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(ModelError, match=r"an address at the hub is hf://name/model"):
        twinlens.load(address)


def test_an_address_survives_as_a_path() -> None:
    assert parse_hub_address(Path("hf://anna/things@v1.0")) == ("anna/things", "v1.0")


def test_missing_repositories_and_tokens_are_named(hub: Hub, tiny_run: TinyRun) -> None:
    with pytest.raises(
        ModelError, match=r"there is no model hf://anna/none at http.*or it is priv"
    ):
        twinlens.load("hf://anna/none")
    hub.commit("anna/things", files_of(tiny_run.model))
    with pytest.raises(ModelError, match=r"there is no model hf://anna/things@v2"):
        twinlens.load("hf://anna/things@v2")
    with pytest.raises(ModelError, match=r"cannot publish anna/things at .*hf auth login"):
        twinlens.push_to_hub(tiny_run.run, "anna/things", token="hf_wrong", quiet=True)


def test_a_card_states_data_figures_limits_and_licence(tiny_run: TinyRun, tmp_path: Path) -> None:
    model = twinlens.load(tiny_run.run)
    text = model_card(model.stored.description, card_facts(model, "anna/things"))
    for part in (
        'library_name: "twinlens"', "# things\n", 'twinlens.load("hf://anna/things")', "| EER | ",
        "| FRR at the threshold | ", "none of these identities was trained on", "## Limits",
        "Learned from 36 pictures of 6 identities.", "The threshold comes from", "| brightness | ",
        "licence of the training pictures is not known", "import json, sys",
    ):  # fmt: skip
        assert part in text
    assert str(tiny_run.data) not in text
    alone = tmp_path / "model"
    shutil.copytree(tiny_run.model, alone)
    bare = twinlens.load(alone)
    text = model_card(bare.stored.description, card_facts(bare))
    assert "The run holds no error rates." in text
    calibration = bare.stored.description.calibration | {"assumed_share": 0.05, "curve": None}
    unlabelled = bare.stored.description.model_copy(update={"calibration": calibration})
    assert "The threshold comes from pairs without labels" in model_card(unlabelled, CardFacts())


@pytest.mark.slow
def test_the_environment_names_the_hub_and_no_torch_is_needed(
    hub: Hub, tiny_run: TinyRun, tmp_path: Path
) -> None:
    hub.commit("anna/things", files_of(tiny_run.model))
    code = (
        "import sys, twinlens; model = twinlens.load('hf://anna/things'); "
        "print(model.distance(sys.argv[1], sys.argv[1]), 'torch' in sys.modules)"
    )
    words = [sys.executable, "-c", code, tiny_run.data / "thing 0" / "0.png"]
    more = {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": str(tmp_path / "c")}
    answer = subprocess.run(
        words, env=os.environ | more, capture_output=True, text=True, check=False
    )
    assert answer.stdout.split() == ["0.0", "False"], answer.stderr
