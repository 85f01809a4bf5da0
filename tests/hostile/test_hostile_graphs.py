"""Models whose graphs were tampered with: one message at every door, and nothing is computed.

The models are made here, with a few operations and without torch. An attacker may also write the
hash of the changed graph and the fingerprint that fits it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from twinlens.cli.main import main
from twinlens.config import ModelSettings, PictureSettings
from twinlens.errors import TwinlensError
from twinlens.gallery.gallery import Gallery
from twinlens.match.matcher import Matcher
from twinlens.measure.calibration import Calibration
from twinlens.measure.probability import Platt
from twinlens.model.stored import (
    MODEL_KEY,
    PICTURE_KEY,
    ModelDescription,
    file_sha256,
    fingerprint_of,
    read_values,
    write_description,
)

SIDE, DIM = 8, 4
PICTURES = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE), dtype=np.uint8)
CALIBRATION = Calibration(0.5, 0.4, 0.6, 0.1, 9, 9, 3, Platt(2.0, -1.0), None, None)
FLOAT, UINT8 = TensorProto.FLOAT, TensorProto.UINT8
SETTINGS = ModelSettings(backbone="mlp", embedding=DIM, comparator="network")
PICTURE = PictureSettings(size=(SIDE, SIDE), color="grey")
METADATA = {MODEL_KEY: SETTINGS.model_dump_json(), PICTURE_KEY: PICTURE.model_dump_json()}
PLACE = "../../../../../../etc/passwd"

Change = Callable[[Path], object]


# --- good models ----------------------------------------------------------------------------------


def graph_file(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, Any]],
    outputs: Mapping[str, tuple[int, Any]],
    constants: Mapping[str, Any] | None = None,
    *,
    opset: int = 20,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a graph; inputs and outputs have a type and a shape."""
    values = [
        [helper.make_tensor_value_info(name, *value) for name, value in side.items()]
        for side in (inputs, outputs)
    ]
    tensors = [
        value if isinstance(value, TensorProto) else numpy_helper.from_array(value, name)
        for name, value in (constants or {}).items()
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "g", *values, tensors),
        ir_version=10,
        opset_imports=[helper.make_opsetid("", opset)],
    )
    helper.set_model_props(model, METADATA | dict(metadata or {}))
    path.write_bytes(model.SerializeToString())


node = helper.make_node
PIXELS: dict[str, tuple[int, Any]] = {"pixels": (UINT8, ["N", SIDE, SIDE, 1])}
EMBEDDING: dict[str, tuple[int, Any]] = {"embedding": (FLOAT, ["N", DIM])}
PAIR: dict[str, tuple[int, Any]] = {"a": (FLOAT, ["N", DIM]), "b": (FLOAT, ["N", DIM])}
DISTANCE: dict[str, tuple[int, Any]] = {"distance": (FLOAT, ["N"])}
WEIGHT = np.random.default_rng(1).normal(size=(SIDE * SIDE, DIM)).astype(np.float32)


def encoder(
    path: Path,
    *more: onnx.NodeProto,
    source: str = "pixels",
    result: str = "embedding",
    weight: Any = WEIGHT,
    **options: Any,
) -> None:
    """pixels -> floats -> rows -> @ weight -> embedding; `more` begins with the input `e`."""
    last = "e" if more else result
    nodes = [
        node("Cast", [source], ["f"], to=FLOAT),
        node("Flatten", ["f"], ["rows"]),
        node("MatMul", ["rows", "w"], [last]),
        *more,
    ]
    options = {"inputs": PIXELS, "outputs": EMBEDDING} | options
    graph_file(path, nodes, constants={"w": weight, **options.pop("constants", {})}, **options)


def comparator(path: Path, *more: onnx.NodeProto, **options: Any) -> None:
    """The sum of |a - b|; `more` begins with the input `d`."""
    nodes = [
        node("Sub", ["a", "b"], ["s"]),
        node("ReduceL1", ["s", "axis"], ["d" if more else "distance"], keepdims=0),
        *more,
    ]
    constants = {"axis": np.array([1]), **options.pop("constants", {})}
    options = {"inputs": PAIR, "outputs": DISTANCE} | options
    graph_file(path, nodes, constants=constants, **options)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model as `twinlens export` writes it, with a learned comparator."""
    folder = tmp_path / "m"
    folder.mkdir()
    encoder(folder / "model.onnx")
    comparator(folder / "comparator.onnx")
    graphs = {name: file_sha256(folder / name) for name in ("model.onnx", "comparator.onnx")}
    description = ModelDescription(
        picture=PICTURE,
        model=SETTINGS,
        weights=None,
        graphs=graphs,  # type: ignore[arg-type]
        fingerprint="0" * 16,
        calibration=CALIBRATION.as_json(),
    )
    write_description(folder, description.model_dump(mode="json"))
    sign(folder)
    for person in range(3):
        (tmp_path / "d" / f"p{person}").mkdir(parents=True)
        for number in range(2):
            picture = Image.fromarray(np.roll(PICTURES[number], person, 0))
            picture.save(tmp_path / "d" / f"p{person}" / f"{number}.png")
    return folder


def sign(folder: Path, **values: Any) -> None:
    """Make hashes and fingerprint fit the files."""
    values = read_values(folder) | values
    for name in values["graphs"]:
        if (folder / name).is_file() and (folder / name).stat().st_size < 2**30:
            with (folder / name).open("rb") as file:
                values["graphs"][name] = file_sha256(folder / name) if file.peek(1) else "0" * 64
    write_description(folder, values | {"fingerprint": fingerprint_of(values)})


DOORS: dict[str, Callable[[Path, Path], list[object]]] = {
    "verify": lambda m, d: ["verify", m, d / "p0/0.png", d / "p1/0.png"],
    "embed": lambda m, d: ["embed", m, d, "--out", d.parent / "e.parquet"],
    "evaluate": lambda m, d: ["evaluate", m, d, "--on", "all"],
    "cluster": lambda m, d: ["cluster", m, d, "--out", d.parent / "c", "--threshold", "1"],
    "gallery": lambda m, d: ["identify", d.parent / "g", d / "p0/0.png"],
}


def answers(model: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, tuple[int, str]]:
    """Exit code and message of every command that loads a model."""
    data = model.parent / "d"
    results = {}
    for name, words in DOORS.items():
        code = main([str(word) for word in words(model, data)])
        out, err = capsys.readouterr()
        if code == 2:
            assert (out, err.count("twinlens: error: "), err.count("Traceback")) == ("", 1, 0)
        results[name] = (code, err.rpartition("twinlens: error: ")[2])
    return results


def make_gallery(model: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    place = model.parent / "g"
    gallery = Gallery.create(place, model)
    gallery.enrol(model.parent / "d")
    capsys.readouterr()
    return place / "models" / gallery.fingerprint


def test_the_model_itself_is_good(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_gallery(model, capsys)
    results = answers(model, capsys)
    assert {name: code for name, (code, _) in results.items()} == {
        "verify": 1, "embed": 0, "evaluate": 0, "cluster": 0, "gallery": 0,
    }, results  # fmt: skip
    emb = Matcher.load(model).embed(list(PICTURES))
    np.testing.assert_allclose(emb, PICTURES.reshape(2, -1) @ WEIGHT, rtol=1e-5)
    a, b = emb
    assert Matcher.load(model).distance(*PICTURES) == pytest.approx(np.abs(a - b).sum())


# --- files that are refused before anything is loaded ---------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def replace(path: Path, make: Change) -> None:
    path.unlink()
    make(path)


def outside(path: Path) -> None:
    """A graph whose weights lie in a file outside of the folder."""
    tensor = TensorProto(name="w", data_type=FLOAT, dims=WEIGHT.shape)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=PLACE)
    encoder(path, weight=tensor)


def other_operators(path: Path) -> None:
    model = onnx.load(path)
    model.opset_import.append(helper.make_opsetid("evil", 1))
    onnx.save(model, path)


FILES: dict[str, tuple[Change, str]] = {
    "cut off": (cut, "cut off"),
    "empty": (lambda p: p.write_bytes(b""), "it is empty"),
    "text": (lambda p: p.write_text("see you"), "no ONNX file"),
    "opset 17": (lambda p: encoder(p, opset=17), "its opset is 17, and 18 to 21"),
    "opset 22": (lambda p: encoder(p, opset=22), "its opset is 22, and 18 to 21"),
    "other operators": (other_operators, "operators of evil"),
    "weights outside": (outside, "takes weights from another file"),
    "5 GB": (lambda p: os.truncate(p, 5 * 10**9), "5,000,000,000 bytes"),
    "missing": (Path.unlink, "missing, or no regular file"),
    "a folder": (lambda p: replace(p, Path.mkdir), "missing, or no regular file"),
    "a pipe": (lambda p: replace(p, os.mkfifo), "missing, or no regular file"),
    "a device": (lambda p: replace(p, lambda p: p.symlink_to("/dev/zero")), "no regular file"),
    "a link to itself": (lambda p: replace(p, lambda p: p.symlink_to(p)), "no regular file"),
}


@pytest.fixture
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("a session was opened")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("name", ["model.onnx", "comparator.onnx"])
@pytest.mark.parametrize("kind", FILES)
@pytest.mark.usefixtures("nothing_is_loaded")
def test_files_that_are_no_graph(kind: str, name: str, signed: bool, model: Path) -> None:
    change, message = FILES[kind]
    change(model / name)
    if signed:
        sign(model)
    with pytest.raises(TwinlensError, match=message) as caught:
        Matcher.load(model)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["cut off", "weights outside", "5 GB", "a pipe"])
def test_files_that_are_no_graph_at_every_door(
    kind: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = make_gallery(model, capsys)
    change, message = FILES[kind]
    for folder in (model, own):
        change(folder / "model.onnx")
    for name, (code, said) in answers(model, capsys).items():
        assert code == 2, (name, said)
        assert message in said or (name == "gallery" and "holds a pipe" in said), (name, said)


@pytest.mark.usefixtures("nothing_is_loaded")
def test_the_graph_of_another_model(model: Path) -> None:
    encoder(model / "model.onnx", weight=WEIGHT[::-1].copy())
    with pytest.raises(TwinlensError, match=r"model\.onnx is not the file that model\.json names"):
        Matcher.load(model)


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize("key", ["network", "pictures"])
def test_a_graph_of_other_settings(key: str, model: Path) -> None:
    other = {
        "network": {MODEL_KEY: ModelSettings(backbone="conv", embedding=DIM).model_dump_json()},
        "pictures": {PICTURE_KEY: PictureSettings(size=(SIDE, SIDE)).model_dump_json()},
    }
    encoder(model / "model.onnx", metadata=other[key])
    sign(model)
    with pytest.raises(TwinlensError, match=r"model\.onnx and model\.json disagree"):
        Matcher.load(model)


@pytest.mark.usefixtures("nothing_is_loaded")
def test_a_graph_of_other_weights(model: Path) -> None:
    """Its metadata says which weights it was made from."""
    encoder(model / "model.onnx", metadata={"twinlens.weights": "a" * 64})
    sign(model, weights="b" * 64)
    with pytest.raises(TwinlensError, match=r"model\.onnx and model\.safetensors disagree"):
        Matcher.load(model)


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize(
    ("graphs", "message"),
    [
        ({"comparator.onnx": 0}, r"graphs"),
        ({"model.onnx": 0}, r"graphs"),
        ({"model.onnx": 0, "comparator.onnx": 0, "../x.onnx": 0}, r"graphs\.\.\./x\.onnx"),
        ({"model.onnx": 0, "comparator.onnx": 0, "model.xml": 0}, r"graphs|model\.xml"),
        ({"model.onnx": None, "comparator.onnx": 0}, r"graphs\.model\.onnx"),
        ([], "graphs"),
        (None, "graphs"),
    ],
)
def test_graphs_that_are_not_named(graphs: Any, message: str, model: Path) -> None:
    """A file that model.json does not name is not checked, so it must not be loaded either."""
    if isinstance(graphs, dict):
        graphs = {
            name: value if value is None else file_sha256(model / "model.onnx")
            for name, value in graphs.items()
        }
        if graphs.get("comparator.onnx"):
            graphs["comparator.onnx"] = file_sha256(model / "comparator.onnx")
    values = read_values(model) | {"graphs": graphs}
    write_description(model, values | {"fingerprint": fingerprint_of(values)})
    with pytest.raises(TwinlensError, match=message):
        Matcher.load(model)


@pytest.mark.usefixtures("nothing_is_loaded")
def test_a_graph_of_openvino_of_5_gb(model: Path) -> None:
    (model / "model.xml").write_text("<net/>")
    (model / "model.bin").touch()
    os.truncate(model / "model.bin", 5 * 10**9)
    names = ("model.xml", "comparator.onnx")
    hashes = {name: file_sha256(model / name) for name in names} | {"model.bin": "0" * 64}
    sign(model, graphs=hashes)
    with pytest.raises(TwinlensError, match=r"model\.bin: it has more than 2,147,483,647 bytes"):
        Matcher.load(model)


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize(
    ("key", "value"),
    [("precision", "int2"), ("resize", "any"), ("weights", "x"), ("format", 4), ("format", 0)],
)
def test_other_values_of_the_description(key: str, value: Any, model: Path) -> None:
    sign(model, **{key: value})
    with pytest.raises(TwinlensError, match=key):
        Matcher.load(model)


# --- graphs of another kind than the settings say -------------------------------------------------


OTHER = "the inputs and outputs of {} are of another model"


def with_graph(path: Path, graph: bytes) -> None:
    """Keep all of a file but its graph."""
    model = onnx.load(path)
    model.ClearField("graph")
    path.write_bytes(model.SerializeToString() + graph)


def not_utf8(path: Path) -> None:
    encoder(path, node("Teleport", ["e"], ["embedding"]))
    path.write_bytes(path.read_bytes().replace(b"Teleport", b"Tele\x80ort"))


ENCODERS: dict[str, tuple[Change, str]] = {
    "another input": (
        lambda p: encoder(p, source="x", inputs={"x": PIXELS["pixels"]}), OTHER,
    ),
    "another output": (
        lambda p: encoder(p, result="y", outputs={"y": EMBEDDING["embedding"]}), OTHER,
    ),
    "two inputs": (
        lambda p: encoder(p, inputs=PIXELS | {"more": (FLOAT, [1])}), OTHER,
    ),
    "two outputs": (
        lambda p: encoder(p, outputs=EMBEDDING | {"rows": (FLOAT, ["N", SIDE * SIDE])}), OTHER,
    ),
    "floats": (
        lambda p: encoder(p, inputs={"pixels": (FLOAT, ["N", SIDE, SIDE, 1])}), OTHER,
    ),
    "rank 3": (lambda p: encoder(p, inputs={"pixels": (UINT8, ["N", 64, 1])}), OTHER),
    "no rank": (lambda p: encoder(p, inputs={"pixels": (UINT8, None)}), OTHER),
    "other height": (
        lambda p: encoder(p, inputs={"pixels": (UINT8, ["N", 4, 16, 1])}), OTHER,
    ),
    "any height": (
        lambda p: encoder(p, inputs={"pixels": (UINT8, ["N", "H", "W", 1])}), OTHER,
    ),
    "three channels": (
        lambda p: encoder(
            p, inputs={"pixels": (UINT8, ["N", SIDE, SIDE, 3])}, weight=np.ones((192, 4), "f4"),
        ), OTHER,
    ),
    "fewer dimensions": (
        lambda p: encoder(p, weight=WEIGHT[:, :3], outputs={"embedding": (FLOAT, ["N", 3])}),
        "{} gives numbers of shape .*3|" + OTHER,
    ),
    "fewer dimensions than it says": (
        lambda p: encoder(
            p, weight=WEIGHT[:, :3].copy(), outputs={"embedding": (FLOAT, ["N", "D"])},
        ),
        "{} gives numbers of shape .*3",
    ),
    "one number less": (
        lambda p: encoder(
            p, node("Reshape", ["e", "one"], ["embedding"]), constants={"one": np.array([1, -1])},
            outputs={"embedding": (FLOAT, ["M", "D"])},
        ), r"{} gives numbers of shape \(1, 8\), not \(2, 4\)",
    ),
    "rank 1": (
        lambda p: encoder(
            p, node("Reshape", ["e", "flat"], ["embedding"]), constants={"flat": np.array([-1])},
            outputs={"embedding": (FLOAT, ["M"])},
        ), OTHER,
    ),
    "float64": (
        lambda p: encoder(
            p, node("Cast", ["e"], ["embedding"], to=TensorProto.DOUBLE),
            outputs={"embedding": (TensorProto.DOUBLE, ["N", DIM])},
        ), OTHER,
    ),
    "words": (
        lambda p: encoder(
            p, node("Cast", ["e"], ["embedding"], to=TensorProto.STRING),
            outputs={"embedding": (TensorProto.STRING, ["N", DIM])},
        ), OTHER,
    ),
    "an operation that there is not": (
        lambda p: encoder(p, node("Teleport", ["e"], ["embedding"])), "cannot load {}",
    ),
    "control characters": (
        lambda p: encoder(p, node("Tele\x1b[31m\nport\u202e", ["e"], ["embedding"])),
        "cannot load {}",
    ),
    "a loop of operations": (
        lambda p: encoder(
            p, node("Add", ["e", "z"], ["z"]), node("Add", ["z", "e"], ["embedding"]),
        ),
        "cannot load {}",
    ),
    "a name that is not UTF-8": (not_utf8, "cannot load {}"),
    "a graph of junk": (lambda p: with_graph(p, b"\x3a\x05hello"), "cannot load {}"),
    "no operation": (lambda p: with_graph(p, b"\x3a\x00"), "cannot load {}|" + OTHER),
    "4 TB when it is loaded": (
        lambda p: encoder(
            p, node("ConstantOfShape", ["huge"], ["h"]), node("ReduceSum", ["h"], ["s"]),
            node("Add", ["e", "s"], ["embedding"]), constants={"huge": np.array([2**40])},
        ), "cannot (load|compute) {}",
    ),
    "4 TB when it is used": (
        lambda p: encoder(
            p, node("Shape", ["pixels"], ["n"], end=1), node("Mul", ["n", "huge"], ["m"]),
            node("ConstantOfShape", ["m"], ["h"]), node("ReduceSum", ["h"], ["s"]),
            node("Add", ["e", "s"], ["embedding"]), constants={"huge": np.array([2**40])},
        ), "cannot compute {}",
    ),
    "NaN": (
        lambda p: encoder(p, node("Mul", ["e", "c"], ["embedding"]),
                          constants={"c": np.array(np.nan, np.float32)}),
        "NaN|not finite",
    ),
    "infinite": (
        lambda p: encoder(p, weight=np.full_like(WEIGHT, 3e38)), "NaN|not finite",
    ),
    "one picture only": (
        lambda p: encoder(p, inputs={"pixels": (UINT8, [1, SIDE, SIDE, 1])}), "cannot compute {}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ENCODERS)
def test_graphs_of_another_kind(kind: str, model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    change, message = ENCODERS[kind]
    change(model / "model.onnx")
    sign(model)
    with pytest.raises(TwinlensError, match=message.replace("{}", r"model\.onnx")) as caught:
        Matcher.load(model).embed(list(PICTURES))
    assert str(caught.value).isprintable(), caught.value
    assert len(str(caught.value)) < 1000
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["three channels", "words", "NaN", "4 TB when it is used"])
def test_graphs_of_another_kind_at_every_door(
    kind: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, _ = ENCODERS[kind]
    change(model / "model.onnx")
    sign(model)
    gallery = Gallery.create(model.parent / "g", model)
    assert len(gallery) == 0
    for name, (code, said) in answers(model, capsys).items():
        assert code == 2, (name, code, said)


COMPARATORS: dict[str, tuple[Change, str]] = {
    "another input": (
        lambda p: comparator(p, inputs={"a": PAIR["a"], "c": PAIR["b"], "b": PAIR["b"]}), OTHER,
    ),
    "another size": (
        lambda p: comparator(p, inputs={"a": (FLOAT, ["N", 3]), "b": (FLOAT, ["N", 3])}), OTHER,
    ),
    "one number": (
        lambda p: comparator(
            p, node("ReduceSum", ["d"], ["distance"], keepdims=1),
            outputs={"distance": (FLOAT, ["M"])},
        ), "{} gives numbers of shape",
    ),
    "a scalar": (
        lambda p: comparator(
            p, node("ReduceSum", ["d"], ["distance"], keepdims=0),
            outputs={"distance": (FLOAT, [])},
        ), OTHER,
    ),
    "the encoder": (encoder, OTHER),
    "NaN": (
        lambda p: comparator(p, node("Mul", ["d", "c"], ["distance"]),
                             constants={"c": np.array(np.nan, np.float32)}),
        "{} gives distances",
    ),
    "infinite": (
        lambda p: comparator(p, node("Div", ["d", "c"], ["distance"]),
                             constants={"c": np.array(0, np.float32)}),
        "{} gives distances",
    ),
    "negative": (
        lambda p: comparator(p, node("Neg", ["d"], ["distance"])), "{} gives distances",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", COMPARATORS)
def test_comparators_of_another_kind(
    kind: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, message = COMPARATORS[kind]
    change(model / "comparator.onnx")
    sign(model)
    a, b = np.random.default_rng(0).normal(size=(2, 3, DIM))
    for use in (
        lambda: Matcher.load(model).comparison.pairwise(a, b),
        lambda: Matcher.load(model).comparison.matrix(a, b),
    ):
        with pytest.raises(TwinlensError, match=message.replace("{}", r"comparator\.onnx")):
            use()


def test_a_scale_that_is_no_number(model: Path) -> None:
    """The graph of a sigmoid is a factor of the Euclidean distance."""
    settings = SETTINGS.model_copy(update={"comparator": "sigmoid"})
    encoder(model / "model.onnx", metadata={MODEL_KEY: settings.model_dump_json()})
    COMPARATORS["NaN"][0](model / "comparator.onnx")
    sign(model, model=settings.model_dump(mode="json"))
    with pytest.raises(TwinlensError, match=r"comparator\.onnx gives"):
        Matcher.load(model).verify(*PICTURES)


def test_the_copy_in_a_gallery_is_of_the_gallery(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another graph in it, with hash and fingerprint that fit, is another model."""
    own = make_gallery(model, capsys)
    encoder(own / "model.onnx", weight=WEIGHT[::-1].copy())
    sign(own)
    with pytest.raises(TwinlensError, match=r"holds the model .* belongs to the model"):
        Gallery.open(model.parent / "g").identify(PICTURES[0])
    shutil.rmtree(own)
    own.symlink_to(model)
    with pytest.raises(TwinlensError):
        Gallery.open(model.parent / "g").identify(PICTURES[0])
