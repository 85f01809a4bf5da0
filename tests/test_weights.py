"""Files of weights from elsewhere: what fits is found, all else is refused in our words."""

from __future__ import annotations

import argparse
import gzip
import io
import json
import logging
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from twinlens.errors import ConfigError
from twinlens.model.weights import load_weights

Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def classifier() -> Weights:
    torch.manual_seed(1)
    return dict(timm.create_model("test_resnet", num_classes=7).state_dict())


def network() -> torch.nn.Module:
    net: torch.nn.Module = timm.create_model("test_resnet", num_classes=0)
    return net


def load(content: object, path: Path) -> Weights:
    """The weights of a network after loading a file: bytes as they are, all else by torch."""
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    net = network()
    load_weights(net, path)
    return dict(net.state_dict())


def refusal(content: object, path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(content, path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert len(message) < 700
    return message


def named(weights: Weights, prefix: str) -> Weights:
    return {prefix + name: value for name, value in weights.items()}


AROUND: dict[str, Callable[[Weights], object]] = {
    "module.": lambda w: named(w, "module."),
    "backbone.": lambda w: named(w, "backbone."),
    "module.encoder.": lambda w: named(w, "module.encoder."),
    "_orig_mod.": lambda w: named(w, "_orig_mod."),
    "state_dict": lambda w: {"state_dict": named(w, "module."), "arch": "x", "epoch": 3},
    "model": lambda w: {"model": w, "optimizer": {"state": {0: {"step": torch.ones(())}}}},
    "model_state_dict": lambda w: {"model_state_dict": named(w, "backbone.")},
    "model_ema": lambda w: {"model_ema": named(w, "module.")},
    "nested": lambda w: {"checkpoint": {"ema": {"net": named(w, "student.backbone.")}}},
    "lightning": lambda w: {"state_dict": named(w, "model.net."), "hyper_parameters": {"lr": 0.1}},
    "parameters": lambda w: {k: torch.nn.Parameter(v, False) for k, v in w.items()},
}


@pytest.mark.parametrize("around", AROUND)
def test_weights_in_dictionaries_and_with_prefixes(
    around: str, classifier: Weights, tmp_path: Path
) -> None:
    weights = load(AROUND[around](classifier), tmp_path / "w.pth")
    assert all(torch.equal(weights[name], classifier[name]) for name in weights)


def test_the_content_decides_the_kind_of_file(classifier: Weights, tmp_path: Path) -> None:
    old, new = io.BytesIO(), io.BytesIO()
    torch.save(classifier, old, _use_new_zipfile_serialization=False)
    torch.save(classifier, new)
    for content in (old.getvalue(), new.getvalue(), safetensors_bytes(classifier)):
        for name in ("w.safetensors", "w.pth", "w.bin", "w"):
            weights = load(content, tmp_path / name)
            assert torch.equal(weights["conv1.0.weight"], classifier["conv1.0.weight"])


@pytest.mark.parametrize("first", [*b"<{\x80B\x1f\x89\xfdPv"])
def test_the_length_of_a_header_may_look_like_another_format(
    first: int, classifier: Weights, tmp_path: Path
) -> None:
    content = safetensors_bytes(classifier)
    length = int.from_bytes(content[:8], "little")
    padding = (first - length) % 256
    longer = (length + padding).to_bytes(8, "little")
    assert longer[0] == first
    load(longer + content[8 : 8 + length] + b" " * padding + content[8 + length :], tmp_path / "w")


def test_other_precisions_are_converted(classifier: Weights, tmp_path: Path) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        as_dtype = {k: v.to(dtype) if v.is_floating_point() else v for k, v in classifier.items()}
        weights = load(as_dtype, tmp_path / "w.pth")
        assert weights["conv1.0.weight"].dtype == torch.float32
        expected = classifier["conv1.0.weight"].to(dtype).float()
        assert torch.equal(weights["conv1.0.weight"], expected)


def test_averaged_weights_are_preferred_and_named(
    classifier: Weights, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    average = {k: v * 2 for k, v in classifier.items()}
    with caplog.at_level(logging.INFO, logger="twinlens"):
        weights = load({"model": classifier, "model_ema": average}, tmp_path / "w.pth")
    assert torch.equal(weights["conv1.0.weight"], average["conv1.0.weight"])
    assert "several of the weights fit (model, model_ema): model_ema is used" in caplog.text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_weights_that_are_not_finite(value: float, classifier: Weights, tmp_path: Path) -> None:
    wrong = {k: v.double() if v.is_floating_point() else v for k, v in classifier.items()}
    wrong["layer1.0.conv1.weight"][0, 0, 0, :2] = value
    message = refusal(wrong, tmp_path / "w.pth")
    count = classifier["layer1.0.conv1.weight"].numel()
    assert f"layer1.0.conv1.weight holds NaN or infinite numbers (2 of {count:,})" in message
    assert "1 of" in message
    assert "diverged" in message
    wrong["fc.weight"] = wrong.pop("layer1.0.conv1.weight")  # The classifier is not used.
    wrong["layer1.0.conv1.weight"] = classifier["layer1.0.conv1.weight"]
    load(wrong, tmp_path / "w.pth")


def test_weights_of_another_network(classifier: Weights, tmp_path: Path) -> None:
    half = dict(list(classifier.items())[: len(classifier) // 2])
    message = refusal(named(half, "module."), tmp_path / "resnet18-f37072fd.pth")
    assert "belongs to another network" in message
    assert "are missing and 0 have another shape" in message
    assert message.endswith("--backbone (the file's name suggests resnet18)")
    grey = {k: v[:, :1] if k == "conv1.0.weight" else v for k, v in classifier.items()}
    assert refusal(grey, tmp_path / "w.pth").endswith(
        "It takes grey pictures: --set picture.color=grey"
    )
    whole = {k: v.to(torch.int8) for k, v in classifier.items()}
    assert "belongs to another network" in refusal(whole, tmp_path / "w.pth")


class Program:
    """A pickle of it would touch a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def zipped(files: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", kind) as archive:
        for name, part in files.items():
            archive.writestr(name, part)
    return content.getvalue()


def header(table: object, tail: bytes = b"") -> bytes:
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return len(text).to_bytes(8, "little") + text + tail


def f32(*shape: int, begin: int = 0, end: int | None = None, dtype: str = "F32") -> object:
    size = 4 * int(np.prod(shape, dtype=object))
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, size if end is None else end]}


NO_WEIGHTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it is empty"),
    "web page": (b"\n <!DOCTYPE html><p>404</p>", "web page"),
    "text": (b"no weights", "no safetensors file"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + b"\0" * 99, "HDF5"),
    "json": (b'{"metadata": {}}', "it is JSON"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "gzip": (gzip.compress(b"x" * 99), "compressed"),
    "pickle": (pickle.dumps({"a": np.ones(3)}), "pickle of other objects"),
    "pickle that calls": (pickle.dumps(argparse.Namespace(a=1), 2), "pickle of other objects"),
    "zip": (zipped({"a.npy": b"x"}), "not one of torch.save"),
    "zip, damaged": (zipped({"w/data.pkl": b"x"})[:30], "cut off or damaged"),
    "zip, no pickle": (zipped({"w/data.pkl": b"x" * 30}), "cut off or damaged"),
    "script": (zipped({"w/data.pkl": b"x", "w/constants.pkl": b"x"}), "TorchScript"),
    "deflated": (zipped({"w/data.pkl": b"x" * 999}, zipfile.ZIP_DEFLATED), "compressed zip"),
    "header of terabytes": (b"\0\0\0\0\0\1\0\0{}", "it is no safetensors file"),
    "header of 30 MB, cut": ((30 * 2**20).to_bytes(8, "little") + b"{}", "cut off, damaged"),
    "header cut": (header({"a": f32(3)}, b"\0" * 12)[:20], "cut off, damaged"),
    "body cut": (header({"a": f32(3)}, b"\0" * 4), "cut off, damaged"),
    "overlap": (header({"a": f32(2), "b": f32(2, begin=4, end=12)}, b"\0" * 12), "damaged"),
    "huge": (header({"a": f32(10**9, 10**9)}, b"\0" * 12), "cut off, damaged"),
    "overflow": (header({"a": f32(2**40, 2**40)}, b"\0" * 12), "cut off, damaged"),
    "negative": (header(b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}'), "damaged"),
    "deep": (header(b'{"a":' * 20_000), "cut off, damaged"),
    "other type": (header({"a": f32(3, dtype="F31")}, b"\0" * 12), "damaged"),
    "not utf-8": (header(b'{"\xff":{}}'), "damaged"),
    "no tensors": (header({}), "belongs to another network"),
}


@pytest.mark.parametrize("kind", NO_WEIGHTS)
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_files_that_hold_no_weights(kind: str, name: str, tmp_path: Path) -> None:
    content, reason = NO_WEIGHTS[kind]
    assert reason in refusal(content, tmp_path / name)


def test_a_truncated_file_of_torch(classifier: Weights, tmp_path: Path) -> None:
    for is_zip in (True, False):
        content = io.BytesIO()
        torch.save(classifier, content, _use_new_zipfile_serialization=is_zip)
        for keep in (20, 300, len(content.getvalue()) // 2, len(content.getvalue()) - 40):
            refusal(content.getvalue()[:keep], tmp_path / "w.pth")


def test_no_object_but_tensors_is_unpickled(classifier: Weights, tmp_path: Path) -> None:
    for is_zip in (True, False):
        for extra in (argparse.Namespace(lr=1), Program(tmp_path / "touched"), network()):
            content = io.BytesIO()
            stored = {"model": classifier, "args": extra}
            torch.save(stored, content, _use_new_zipfile_serialization=is_zip)
            message = refusal(content.getvalue(), tmp_path / "w.pth")
            assert "holds more than tensors (" in message
            assert "torch.save(model.state_dict(), FILE)" in message
    assert not (tmp_path / "touched").exists()


def test_a_short_pickle_that_asks_for_memory(tmp_path: Path) -> None:
    """torch's own reader of tensors allows `bytearray`, with the size as an argument."""
    ten_gigabytes = b"\x8a\x05" + (10**10).to_bytes(5, "little")
    program = b"\x80\x02c__builtin__\nbytearray\n" + ten_gigabytes + b"\x85R."
    content = zipped({"w/data.pkl": program, "w/version": b"3\n"})
    assert "holds more than tensors (__builtin__.bytearray)" in refusal(content, tmp_path / "w.pth")


def test_folders_and_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="are a folder: give the file"):
        load_weights(network(), tmp_path)
    with pytest.raises(ConfigError, match="there is no weights file"):
        load_weights(network(), tmp_path / "absent.pth")
