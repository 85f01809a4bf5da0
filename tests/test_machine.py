"""Facts of the machine and the installation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from twinlens import machine as facts
from twinlens.errors import EXTRAS, MissingExtraError, naming_extras
from twinlens.machine import available_cores, installed_extras, machine, num_threads, versions


def test_versions_leave_out_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert versions().keys() >= {"twinlens", "python", "onnxruntime", "numpy"}
    monkeypatch.setattr(facts, "PACKAGES", ("numpy", "no-such-package"))
    assert versions().keys() == {"twinlens", "python", "numpy"}


def test_an_extra_is_installed_if_all_its_packages_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "EXTRAS", {"json": "a", "csv": "a", "no_such": "b", "os": "b"})
    assert installed_extras() == {"a": True, "b": False}


def test_the_machine() -> None:
    here = machine()
    assert here["cores"] >= 1
    assert here["processor"]
    assert here["memory_gb"] > 0.1
    assert here["providers"][-1] == "CPUExecutionProvider"
    assert "AzureExecutionProvider" not in here["providers"]


@pytest.fixture
def linux_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of the root of the file system, as Linux would fill it."""
    monkeypatch.setattr(facts, "Path", lambda name: tmp_path / name.lstrip("/"))
    return tmp_path


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_processor_and_gpus_of_linux(linux_file: Path) -> None:
    assert (machine()["instructions"], machine()["amx"], machine()["gpus"]) == (None, False, [])
    cpu = "model name\t: Some CPU\nflags\t\t: fpu avx2 avx512f amx_tile\n\n"
    write(linux_file / "proc/cpuinfo", cpu * 2)
    write(linux_file / "proc/driver/nvidia/gpus/0/information", "Model: \t NVIDIA H200\nIRQ: 1\n")
    here = machine()
    assert (here["processor"], here["instructions"]) == ("Some CPU", "AVX-512")
    assert (here["amx"], here["gpus"]) == (True, ["NVIDIA H200"])


def test_a_container_has_its_share(linux_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    write(linux_file / "sys/fs/cgroup/cpu.max", "max 100000\n")
    write(linux_file / "sys/fs/cgroup/memory.max", "max\n")
    assert (available_cores(), num_threads()) == (8, 8)
    assert machine()["memory_gb"] > 0.1
    write(linux_file / "sys/fs/cgroup/cpu.max", "150000 100000\n")
    write(linux_file / "sys/fs/cgroup/memory.max", "500000000\n")
    assert (available_cores(), num_threads(), machine()["memory_gb"]) == (2, 2, 0.5)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert (available_cores(), num_threads()) == (2, 1)
    for name in ("many", "1000000"):
        monkeypatch.setenv("OMP_NUM_THREADS", name)
        assert num_threads() == 2


@pytest.mark.parametrize(("name", "extra"), EXTRAS.items())
def test_a_missing_package_names_its_extra(name: str, extra: str) -> None:
    message = rf"^this needs {name}: pip install 'twinlens\[{extra}\]'$"
    with pytest.raises(MissingExtraError, match=message), naming_extras():
        raise ModuleNotFoundError(name=f"{name}.inner")


def test_other_errors_of_imports_pass() -> None:
    for error in (ModuleNotFoundError(name="nothing"), ModuleNotFoundError(), ImportError("torch")):
        with pytest.raises(ImportError) as caught, naming_extras():
            raise error
        assert caught.value is error


def test_facts_of_the_machine_load_nothing_heavy() -> None:
    code = "import sys, twinlens.machine; print({'torch', 'numpy', 'onnxruntime'} & {*sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"
