"""Inputs of public reports, by name: what makes them, the command, and what it must say."""

from __future__ import annotations

import csv
import json
import os
import shutil
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from conftest import draw_pictures, tiny_words
from hostile_inputs import FEW_STEPS, Words, manifest_rows, pickled, png, sign, webp
from PIL import Image


class Named(NamedTuple):
    """An input.

    Attributes:
        make: makes it in the working directory, from the base; returns the command.
        code: exit code.
        says: a regular expression in the output.
        check: what holds in the working directory afterwards.
    """

    make: Callable[[Path], Words]
    code: int
    says: str
    check: Callable[[], bool] = lambda: True


def folder_with(files: Mapping[str, bytes]) -> None:
    """Ten pictures of three classes, and more files."""
    draw_pictures(Path("d"), dict.fromkeys("abcdef", 4))
    for name, content in files.items():
        path = Path("d", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def inspect_with(files: Mapping[str, bytes]) -> Callable[[Path], Words]:
    def make(base: Path) -> Words:
        folder_with(files)
        return ["inspect", "d"]

    return make


def linked_folders(base: Path) -> Words:
    folder_with({})
    for one in "abcdef":
        for other in "abcdef":
            Path("d", one, f"to {other}").symlink_to(Path("d", other).absolute())
    return ["inspect", "d"]


def link_to_itself(base: Path) -> Words:
    folder_with({})
    Path("d/a/loop.png").symlink_to("loop.png")
    return ["inspect", "d"]


def pipe(base: Path) -> Words:
    os.mkfifo("x.jpg")
    shutil.copytree(base / "gallery", "g")
    return ["gallery", "enrol", "g", "--identity", "x", "x.jpg"]


def endless_file(base: Path) -> Words:
    rows = [["path", "identity"], ["/dev/zero", "x"], [str(base / "photos/a/0.png"), "a"]]
    write_rows("m.csv", rows)
    shutil.copytree(base / "gallery", "g")
    return ["gallery", "enrol", "g", "m.csv"]


def write_rows(name: str, rows: list[list[str]], mark: str = ",") -> None:
    with Path(name).open("w", newline="") as file:
        csv.writer(file, delimiter=mark).writerows(rows)


def renamed(base: Path) -> Path:
    for number, folder in enumerate(sorted((base / "pictures").iterdir())):
        shutil.copytree(folder, f"d/other {number}")
    return base / "run"


def evaluate_renamed(base: Path) -> Words:
    return ["evaluate", str(renamed(base)), "d", "--json"]


def calibrate_renamed(base: Path) -> Words:
    shutil.copytree(renamed(base), "r")
    return ["calibrate", "r", "d", "--on", "all", "--far", "0.1"]


def condition(text: str) -> Callable[[Path], Words]:
    def make(base: Path) -> Words:
        picture = str(base / "pictures/thing 0/0.png")
        return ["search", str(base / "gallery"), picture, "--where", text]

    return make


def model_with(change: Callable[[str], str]) -> Callable[[Path], Words]:
    """A model whose description is changed, with the fingerprint that fits."""

    def make(base: Path) -> Words:
        shutil.copytree(base / "bundle", "m")
        file = Path("m/model.json")
        file.write_text(change(file.read_text()))
        sign(Path("m"))
        picture = str(base / "pictures/thing 0/0.png")
        return ["verify", "m", picture, picture]

    return make


def model_key(key: str, value: object) -> Callable[[str], str]:
    def change(text: str) -> str:
        values = json.loads(text)
        place = values["settings"]["model"] if "settings" in values else values["model"]
        assert key in place
        place[key] = value
        return json.dumps(values)

    return change


def terabyte(base: Path) -> Words:
    """A sparse file instead of the weights."""
    shutil.copytree(base / "bundle", "m")
    os.truncate("m/model.safetensors", 2**40)
    picture = str(base / "pictures/thing 0/0.png")
    return ["verify", "m", picture, picture]


def graph_with(change: Callable[[Path], object]) -> Callable[[Path], Words]:
    """A model whose graph is changed, with the checksum and the fingerprint that fit."""

    def make(base: Path) -> Words:
        shutil.copytree(base / "bundle", "m")
        change(Path("m/model.onnx"))
        if Path("m/model.onnx").stat().st_size < 2**30:
            sign(Path("m"))
        picture = str(base / "pictures/thing 0/0.png")
        return ["verify", "m", picture, picture]

    return make


def weights_outside(path: Path) -> None:
    import onnx

    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../etc/passwd")
    onnx.save(model, path)


def yunet_pipe(base: Path) -> Words:
    os.mkfifo("y.onnx")
    return ["faces", str(base / "photos"), "f", "--detector", "yunet", "--model", "y.onnx"]


def import_of(table: Callable[[pa.Table], pa.Table]) -> Callable[[Path], Words]:
    def make(base: Path) -> Words:
        shutil.copytree(base / "gallery", "g")
        pq.write_table(table(pq.read_table(base / "all.parquet")), "t.parquet", compression="zstd")
        return ["gallery", "import", "g", "t.parquet"]

    return make


def with_vectors(value: float) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        name = next(n for n in table.column_names if pa.types.is_list(table[n].type)
                    or pa.types.is_fixed_size_list(table[n].type))  # fmt: skip
        rows = pa.array([[value] * 16] * len(table), pa.list_(pa.float32(), 16))
        table = table.set_column(table.column_names.index(name), name, rows)
        hashes = pa.array([f"{n:032x}" for n in range(len(table))])
        at = table.column_names.index("hash")
        return table.set_column(at, "hash", hashes)

    return change


def many_rows(table: pa.Table) -> pa.Table:
    """1 million equal rows in some 30 KB."""
    names = [name for name in table.column_names if name != "hash"]
    once = table.select(names).slice(0, 1)
    return pa.table(
        {name: pa.DictionaryArray.from_arrays(pa.array(np.zeros(1_000_000, np.int32)),
                                              once[name].combine_chunks())
         if pa.types.is_string(once[name].type)
         else once[name].take(pa.array(np.zeros(1_000_000, np.int64)))
         for name in names},
        schema=None,
    ).replace_schema_metadata(table.schema.metadata)  # fmt: skip


def linked_model(base: Path) -> Words:
    """The folder of the gallery's model is a link to a folder of documents."""
    shutil.copytree(base / "gallery", "g")
    Path("documents").mkdir()
    Path("documents/letter.txt").write_text("keep")
    stored = next(Path("g/models").iterdir())
    shutil.copytree(stored, "documents", dirs_exist_ok=True)
    shutil.rmtree(stored)
    stored.symlink_to(Path("documents").absolute())
    return ["gallery", "rebuild", "g", "--model", str(base / "bundle")]


def is_kept() -> bool:
    return (
        Path("documents/letter.txt").read_text() == "keep"
        and len([*Path("documents").iterdir()]) > 2
    )


def models_are_kept() -> bool:
    return any(Path("g/models").iterdir())


def fingerprint(text: str) -> Callable[[Path], Words]:
    def make(base: Path) -> Words:
        import lance

        shutil.copytree(base / "gallery", "g")
        data = lance.dataset("g/templates.lance")
        metadata = {k.decode(): v.decode() for k, v in data.schema.metadata.items()}
        for key, value in metadata.items():
            values = json.loads(value)
            if "fingerprint" in values:
                metadata[key] = json.dumps(values | {"fingerprint": text})
        data.replace_schema_metadata(metadata)
        return ["gallery", "rebuild", "g", "--model", str(base / "bundle")]

    return make


def spreadsheet(base: Path) -> Words:
    draw_pictures(Path("d"), {"=cmd|'calc'!A0": 3, "@b": 3})
    return ["cluster", str(base / "bundle"), "d", "--out", "c", "--labelled"]


def no_cell_runs() -> bool:
    rows = csv.reader(Path("c/clusters.csv").read_text().splitlines())
    cells = [cell for row in rows for cell in row]
    return not [cell for cell in cells if cell[:1] in ("=", "@", "+", "\t")]


def terminal(base: Path) -> Words:
    draw_pictures(Path("d"), {"\x1b]0;title\x07": 3, "\x1b[2J": 3, "\u202egpj": 3})
    return ["inspect", "d"]


def private(base: Path) -> Words:
    return ["gallery", "create", "g", "--model", str(base / "bundle")]


def is_private() -> bool:
    paths = [Path("g"), *Path("g").rglob("*")]
    return all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in paths)


def trials(rows: list[list[str]], mark: str = ",") -> Callable[[Path], Words]:
    def make(base: Path) -> Words:
        Path("pictures").symlink_to(base / "pictures")
        write_rows("t.csv", rows, mark)
        return ["evaluate", str(base / "bundle"), "--trials", "t.csv"]

    return make


PAIRS = [
    [f"pictures/thing {a}/0.png", f"pictures/thing {b}/1.png", "01"[a == b]]
    for a in range(10)
    for b in range(10)
]


def manifest_with(change: Callable[[list[list[str]]], object]) -> Callable[[Path], Words]:
    import random

    def make(base: Path) -> Words:
        Path("pictures").symlink_to(base / "pictures")
        rows = [row[:2] for row in manifest_rows(base, random.Random(1))]
        change(rows)
        write_rows("m.csv", rows)
        return ["train", "m.csv", "--out", "r", *FEW_STEPS]

    return make


def add_column(name: str, value: str) -> Callable[[list[list[str]]], None]:
    def change(rows: list[list[str]]) -> None:
        for number, row in enumerate(rows):
            row.append(value if number else name)

    return change


def backslashes(rows: list[list[str]]) -> None:
    for row in rows[1:]:
        row[0] = row[0].replace("/", "\\")


def weights(name: str, content: Callable[[Path], bytes]) -> Callable[[Path], Words]:
    def make(base: Path) -> Words:
        Path(name).write_bytes(content(base))
        return ["train", str(base / "pictures"), "--out", "r", *FEW_STEPS, "--weights", name]

    return make


def a_model(base: Path) -> bytes:
    return (base / "bundle/model.safetensors").read_bytes()


def twelve_bits(base: Path) -> Words:
    rng = np.random.default_rng(0)
    for number in range(24):
        path = Path(f"d/{number // 4}/{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 4096, (16, 16), dtype=np.uint16)).save(path)
    return ["inspect", "d"]


def settings(*words: str) -> Callable[[Path], Words]:
    return lambda base: ["train", str(base / "pictures"), "--out", "r", *tiny_words(), *words]


NAMED: Mapping[str, Named] = {
    "34 bytes of WebP": Named(
        inspect_with({f"{n}/x.webp": webp(9_999, 9_999) for n in range(8)}),
        0, "8 files cannot be read",
    ),
    "a long PNG": Named(inspect_with({"a/x.png": png(1, 99_999_999)}), 0, "MiB to decode"),
    "PostScript in a JPEG": Named(
        inspect_with({"a/x.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"}), 0, "EPS"
    ),
    "photographs in HEIC": Named(
        inspect_with({f"a/{n}.HEIC": b"\0\0\0\x18ftypheic" * 9 for n in range(12)}), 0, "12 .heic"
    ),
    "folders of systems": Named(
        inspect_with({f"{name}/x.png": png(8, 8, body=b"\0" * 72)
                      for name in ("@eaDir", "#recycle", "__MACOSX", "$RECYCLE.BIN")}),
        0, "(?s)4 folders of the operating system left out.*|6 identities",
    ),
    "folders linked to each other": Named(linked_folders, 0, "36 linked folders left out"),
    "a link to itself": Named(link_to_itself, 0, r"loop\.png"),
    "a pipe": Named(pipe, 2, "not a regular file"),
    "a device in a manifest": Named(endless_file, 0, "/dev/zero.*not a regular file"),
    "trained pictures evaluated under other names": Named(
        evaluate_renamed, 0, "(?s)\"num_probes\": 12,.*split as in training"
    ),
    "trained pictures calibrated under other names": Named(calibrate_renamed, 0, "trained on"),
    "a forgotten AND": Named(condition("identity = 'a' metadata.room = 'south'"), 2, "condition"),
    "a second statement": Named(condition("1=1; DROP TABLE x"), 2, "condition"),
    "LIMIT": Named(condition("identity = 'a' LIMIT 1"), 2, "condition"),
    "a billion letters": Named(condition("path = repeat('a',1000000000)"), 2, "condition"),
    "a deep condition": Named(condition("(" * 20_000), 2, "condition"),
    "a claimed embedding": Named(model_with(model_key("embedding", 10**9)), 2, "embedding"),
    "a giant backbone": Named(
        model_with(model_key("backbone", "vit_giant_patch14_clip_224")), 2, "m.*model"
    ),
    "1e999": Named(model_with(lambda text: text.replace("16", "1e999")), 2, "not finite"),
    "a deep model.json": Named(
        model_with(lambda _: '{"a":' * 100_000 + "1" + "}" * 100_000), 2, "nested"
    ),
    "a terabyte of weights": Named(terabyte, 2, "not the file"),
    "a terabyte of graph": Named(graph_with(lambda p: os.truncate(p, 2**40)), 2, "at most 2,147"),
    "weights outside of the folder": Named(graph_with(weights_outside), 2, "from another file"),
    "a pipe for a detector": Named(yunet_pipe, 2, "not a file"),
    "1 million rows": Named(import_of(many_rows), 2, "claims 1,000,000 rows"),
    "vectors of zeros": Named(import_of(with_vectors(0.0)), 2, "zero"),
    "vectors of NaN": Named(import_of(with_vectors(float("nan"))), 2, "finite|NaN"),
    "a linked model": Named(linked_model, 2, "link", is_kept),
    "an empty fingerprint": Named(fingerprint(""), 2, "fingerprint", models_are_kept),
    "a fingerprint outside": Named(fingerprint("../../../OUTSIDE"), 2, "fingerprint"),
    "cells that a spreadsheet runs": Named(spreadsheet, 0, "c", no_cell_runs),
    "names that a terminal obeys": Named(terminal, 0, "3 identities"),
    "a private gallery": Named(private, 0, "", is_private),
    "trials with semicolons": Named(trials([["a", "b", "same"], *PAIRS], ";"), 0, "EER|eer"),
    "trials in capitals": Named(trials([["A", " B", "Same "], *PAIRS]), 0, "EER|eer"),
    "test rows only": Named(manifest_with(add_column("split", "test")), 2, "mark some"),
    "backslashes": Named(manifest_with(backslashes), 0, "36 pictures"),
    "a column twice": Named(manifest_with(add_column("identity", "x")), 2, "twice|2 columns"),
    "fractions of test only": Named(settings("--set", "data.fractions=[0,0,1]"), 2, "fractions is"),
    "safetensors called .pth": Named(weights("w.pth", a_model), 0, "report"),
    "HDF5": Named(weights("w.h5", lambda _: b"\x89HDF\r\n\x1a\n" + b"\0" * 99), 2, "HDF5|Keras"),
    "a pickle": Named(weights("w.pth", lambda _: b"\x80\x04cos\nsystem\n(S'id'\ntR."), 2, "w.pth"),
    "foreign weights": Named(weights("w.pt", lambda _: pickled()), 2, "w.pt"),
    "12 bits in 16": Named(twelve_bits, 0, "12|bits"),
    "a giant network": Named(settings("--set", "model.embedding=1000000000"), 2, "embedding"),
}  # fmt: skip
