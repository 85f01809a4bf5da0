"""Headers of ONNX files: by hand, of real exports, and of files made to mislead."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from twinlens.model.onnx_file import MAX_SIZE, OnnxHeader, read_onnx_header

# Type and number of a field in one byte (8 * number + type), its length, its content.
IR_10 = b"\x08\x0a"
GRAPH = b"\x3a\x02gg"
OPSET_20 = b"\x42\x02\x10\x14"  # without a domain
BY_HAND = IR_10 + GRAPH + OPSET_20


def entry(key: bytes, value: bytes) -> bytes:
    """Metadata of less than 128 bytes."""
    return b"\x72" + field(b"\x0a" + field(key) + b"\x12" + field(value))


def field(content: bytes) -> bytes:
    return bytes([len(content)]) + content


def read(content: bytes, folder: Path) -> OnnxHeader:
    (folder / "m.onnx").write_bytes(content)
    return read_onnx_header(folder / "m.onnx")


def graph(nodes: list[Any], constants: list[TensorProto]) -> onnx.GraphProto:
    value = helper.make_tensor_value_info
    inputs, outputs = (value(name, TensorProto.FLOAT, [3]) for name in ("x", "y"))
    return helper.make_graph(nodes, "g", [inputs], [outputs], constants)


def made(
    opsets: dict[str, int] | None = None,
    constants: list[TensorProto] | None = None,
    nodes: list[Any] | None = None,
) -> onnx.ModelProto:
    """The model y = x + c."""
    constants = constants or [numpy_helper.from_array(np.ones(3, np.float32), "c")]
    nodes = nodes or [helper.make_node("Add", ["x", "c"], ["y"])]
    opsets = {"": 20} if opsets is None else opsets
    return helper.make_model(
        graph(nodes, constants),
        ir_version=10,
        opset_imports=[helper.make_opsetid(*pair) for pair in opsets.items()],
    )


def external(name: str, place: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[3])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=place)
    return tensor


# --- good files -----------------------------------------------------------------------------------


def test_by_hand(tmp_path: Path) -> None:
    texts = entry(b"b", "ü".encode()) + entry(b"a", b"") + b"\x72\x00"
    assert read(BY_HAND, tmp_path) == OnnxHeader(10, 20, {})
    assert read(texts + OPSET_20 + GRAPH + IR_10, tmp_path).metadata == {"b": "ü", "a": "", "": ""}


@pytest.mark.parametrize(
    "other",
    [
        b"\x12\x03abc",  # the producer's name
        b"\x28\x81\x80\x80\x80\x80\x80\x80\x80\x80\x01",  # a version of ten bytes
        b"\xa2\x01\x00",  # field 20, of two bytes
        b"\x21" + bytes(8) + b"\x25" + bytes(4),  # fixed sizes
        b"\x42\x11\x0a\x0dcom.microsoft\x10\x01",
    ],
)
def test_other_fields_are_skipped(other: bytes, tmp_path: Path) -> None:
    assert read(BY_HAND + other, tmp_path) == OnnxHeader(10, 20, {})


def test_as_onnx_reads_it(tmp_path: Path) -> None:
    model = made({"ai.onnx": 18, "com.microsoft": 1})
    helper.set_model_props(model, {"twinlens.model": '{"backbone": "ü"}', "empty": "", "": "x"})
    header = read(model.SerializeToString(), tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    assert header == OnnxHeader(10, 18, session.get_modelmeta().custom_metadata_map)


def test_an_export_of_torch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU()).eval()
    pictures = torch.zeros(1, 1, 5, 5)
    program = torch.onnx.export(net, (pictures,), dynamo=True, verbose=False)
    program.save(tmp_path / "m.onnx")
    header = read_onnx_header(tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    assert (header.ir_version, header.opset) == (model.ir_version, model.opset_import[0].version)


# --- bad files ------------------------------------------------------------------------------------

BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it is empty"),
    "text": (b"hello, this is no model", "no ONNX file"),
    "JSON": (b'{"format": 3}', "no ONNX file"),
    "zip": (b"PK\x03\x04" + bytes(100), "no ONNX file"),
    "zeros": (bytes(100), "no ONNX file"),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\n", "no ONNX file"),
    "no version": (GRAPH + OPSET_20, "no ONNX file"),
    "no graph": (IR_10 + OPSET_20, "no ONNX file"),
    "two graphs": (BY_HAND + GRAPH, "no ONNX file"),
    "no opset": (IR_10 + GRAPH, "no ONNX file"),
    "one byte short": (BY_HAND[:-1], "cut off"),
    "one byte more": (BY_HAND + b"\0", "damaged"),
    "a length beyond the end": (BY_HAND + b"\x72\x05abcd", "cut off"),
    "a length of 2^64 - 1": (BY_HAND + b"\x72" + b"\xff" * 9 + b"\x01", "cut off"),
    "a number of eleven bytes": (b"\x08" + b"\x80" * 10 + b"\x01" + BY_HAND, "damaged"),
    "a group": (BY_HAND + b"\x0b\x0c", "damaged"),
    "field 0": (BY_HAND + b"\x02\x00", "damaged"),
    "a field above the last": (BY_HAND + b"\x82\x80\x80\x80\x10\x00", "damaged"),
    "a graph in a group": (IR_10 + b"\x3b\x3c" + OPSET_20, "damaged"),
    "opset 0": (IR_10 + GRAPH + b"\x42\x00", "its opset is 0, and 18 to 21 are supported"),
    "opset 17": (IR_10 + GRAPH + b"\x42\x02\x10\x11", "its opset is 17"),
    "opset 2^63": (IR_10 + GRAPH + b"\x42\x0b\x10" + b"\x80" * 9 + b"\x01", "opset is 92233"),
    "two opsets": (BY_HAND + b"\x42\x02\x10\x12", "its opset is 20 and 18"),
    "two opsets by two names": (BY_HAND + b"\x42\x0b\x0a\x07ai.onnx\x10\x12", "opset is 20 and 18"),
    "a version twice": (IR_10 + GRAPH + b"\x42\x04\x10\x14\x10\x12", "damaged"),
    "other operators": (BY_HAND + b"\x42\x08\x0a\x04evil\x10\x01", "operators of evil, which"),
    "only other operators": (
        IR_10 + GRAPH + b"\x42\x11\x0a\x0dcom.microsoft\x10\x01", "its opset is missing",
    ),
    "a key twice": (BY_HAND + entry(b"k", b"1") + entry(b"k", b"2"), "metadata holds 'k' twice"),
    "two keys in one": (BY_HAND + b"\x72\x06\x0a\x01a\x0a\x01b", "damaged"),
    "no text": (BY_HAND + entry(b"k", b"\xff"), "no text in UTF-8"),
    "long metadata": (BY_HAND + b"\x72\x81\x80\x40" + bytes(2**20 + 1), "longer than 1,048,576"),
    "much metadata": (
        BY_HAND + b"".join(b"\x72\xff\xff\x3f" + bytes([n]) * 0xFFFFF for n in range(2)),
        "longer",
    ),
    "many parts": (BY_HAND + b"\x12\x00" * 10_000, "more than 10,000 parts"),
    "another format of onnxruntime": (b"\x08\x0a\x12\x04ORTM" + BY_HAND, "onnxruntime's own"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_files(kind: str, tmp_path: Path) -> None:
    content, message = BAD[kind]
    with pytest.raises(ValueError, match=message) as caught:
        read(content, tmp_path)
    assert len(str(caught.value)) < 120


PLACES: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
}


@pytest.mark.parametrize("kind", PLACES)
def test_no_regular_file(kind: str, tmp_path: Path) -> None:
    PLACES[kind](tmp_path / "m.onnx")
    with pytest.raises(ValueError, match="it is missing, or no regular file"):
        read_onnx_header(tmp_path / "m.onnx")


def test_five_gigabytes(tmp_path: Path) -> None:
    """Sparse, so that it takes no space on the disk; its size is looked at before it is read."""
    (tmp_path / "m.onnx").write_bytes(BY_HAND)
    os.truncate(tmp_path / "m.onnx", 5 * 2**30)
    with pytest.raises(ValueError, match=f"5,368,709,120 bytes, .* at most {MAX_SIZE:,}"):
        read_onnx_header(tmp_path / "m.onnx")


# --- weights in other files -----------------------------------------------------------------------


def branches(*constants: TensorProto) -> Any:
    """A node `If` with a graph inside that holds the constants."""
    inner = helper.make_graph(
        [helper.make_node("Add", ["x", "c"], ["z"])], "inner", [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [3])], list(constants),
    )  # fmt: skip
    return helper.make_node("If", ["yes"], ["y"], then_branch=inner, else_branch=inner)


def test_weights_in_another_file(tmp_path: Path) -> None:
    place = "../../etc/passwd"
    models = {
        "constant": made(constants=[external("c", place)]),
        "in a branch": made(
            nodes=[branches(external("c", place))],
            constants=[numpy_helper.from_array(np.array(True), "yes")],
        ),
        "in a node": made(
            nodes=[
                helper.make_node("Constant", [], ["d"], value=external("d", place)),
                helper.make_node("Add", ["x", "d"], ["y"]),
            ]
        ),
    }
    content = {name: model.SerializeToString() for name, model in models.items()}
    # The key's length in two bytes, and the place a byte shorter: as valid for protobuf.
    before, after = b"\x08location\x12\x10", b"\x88\x00location\x12\x0f"
    content["a longer length"] = content["constant"].replace(before + b".", after)
    tensor = onnx.load_from_string(content["a longer length"]).graph.initializer[0]
    assert (tensor.external_data[0].key, tensor.external_data[0].value) == ("location", place[1:])
    for other in content.values():
        with pytest.raises(ValueError, match="it takes weights from another file"):
            read(other, tmp_path)


@pytest.mark.parametrize("position", range(2**18 - 12, 2**18 + 4))
def test_the_name_of_a_file_across_windows(position: int, tmp_path: Path) -> None:
    content = bytearray(2**18 + 100)
    content[position : position + 9] = b"\x08location"
    message = IR_10 + OPSET_20 + b"\x3a\xe4\x80\x10" + bytes(content)
    with pytest.raises(ValueError, match="another file"):
        read(message, tmp_path)
    read(message.replace(b"\x08loc", b"\x09loc"), tmp_path)


def test_a_word_that_holds_location_is_no_such_key(tmp_path: Path) -> None:
    model = made()
    model.graph.node[0].name = "/data/geolocation/allocation"
    helper.set_model_props(model, {"weights": "/data/location/w.pth"})
    read(model.SerializeToString(), tmp_path)


# --- any bytes ------------------------------------------------------------------------------------

GOOD = (
    made({"": 20, "com.microsoft": 1}).SerializeToString()
    + entry(b"twinlens.version", b"1.0")
    + entry(b"twinlens.weights", b"0" * 64)
)


def read_or_refuse(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> OnnxHeader | None:
    with contextlib.suppress(ValueError):
        return read(content, tmp_path_factory.getbasetemp())
    return None


@given(st.integers(0, len(GOOD) - 1))
@settings(deadline=2000)
def test_beginnings(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    """A beginning is refused, unless it ends between two fields behind the opset."""
    header = read_or_refuse(GOOD[:length], tmp_path_factory)
    if header is not None:
        assert onnx.load_from_string(GOOD[:length]).graph.node
        assert len(header.metadata) < 2


@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=4))
@settings(deadline=2000)
def test_changed_bytes(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    content = bytearray(GOOD)
    for index, byte in changes:
        content[index] = byte
    read_or_refuse(bytes(content), tmp_path_factory)


@given(st.binary(max_size=200))
@example(b"\x42" * 200)
@example(b"\x72" * 200)
@settings(deadline=2000)
def test_random_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    read_or_refuse(content, tmp_path_factory)
    read_or_refuse(BY_HAND + content, tmp_path_factory)
