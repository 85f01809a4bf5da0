"""`twinlens doctor`, with and without learning."""

from __future__ import annotations

from typing import Any

import pytest

import twinlens
from twinlens.commands import doctor
from twinlens.machine import machine, versions


@pytest.fixture(autouse=True)
def no_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "TRIALS", {})


def facts_of(monkeypatch: pytest.MonkeyPatch, extras: dict[str, bool], **here: Any) -> Any:
    monkeypatch.setattr(doctor, "installed_extras", lambda: extras)
    monkeypatch.setattr(doctor, "machine", lambda: machine() | here)
    return twinlens.doctor()


def test_an_installation_that_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = facts_of(monkeypatch, {"train": True, "heif": False}, gpus=[])
    assert facts["missing"] == {"heif": "pip install 'twinlens[heif]'"}
    assert facts["training"].keys() >= {"device", "threads", "weights", "bfloat16"}
    text = doctor.as_text(facts)
    for part in ("answers and trains", "torch", "AMX", "disk", "bfloat16", "training speed on"):
        assert part in text


def test_an_installation_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = facts_of(monkeypatch, {"train": False}, gpus=[])
    assert facts["training"] is None
    text = doctor.as_text(facts)
    assert "answers, and cannot train" in text
    assert "without train       pip install 'twinlens[train]'" in text
    assert "training speed" not in text


def test_a_gpu_that_answers_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = ["CPUExecutionProvider"]
    facts = facts_of(monkeypatch, {"train": False}, gpus=["H200"], providers=cpu)
    assert facts["missing"]["cuda"].startswith("pip install 'twinlens[cuda]'")
    monkeypatch.setattr(doctor, "versions", lambda: versions() | {"onnxruntime-gpu": "1"})
    facts = facts_of(monkeypatch, {"train": False}, gpus=["H200"], providers=cpu)
    assert facts["missing"]["cuda"] == "pip install --force-reinstall --no-deps onnxruntime-gpu"
    both = ["CUDAExecutionProvider", *cpu]
    facts = facts_of(monkeypatch, {"train": False}, gpus=["H200"], providers=both)
    assert "cuda" not in facts["missing"]


def test_one_thread_is_not_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = facts_of(monkeypatch, {"train": False}, cores=2, threads=1)
    assert "2 cores, 1 thread\n" in doctor.as_text(facts)


def test_free_space_of_a_folder_that_does_not_exist_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWINLENS_CACHE", "/no/such/folder")
    assert twinlens.doctor()["disk_free_gb"]["cache"] > 0
