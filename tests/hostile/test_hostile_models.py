"""Tampered models, runs, recipes and calibrations are read, or refused by a `TwinlensError`.

Every mutant is read in this process. Warnings are errors, so none passes by a warning either; and
the process may not grow by more than `MAX_GROWTH`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import save_networks
from mutate_json import TOKENS, Mutant, chosen, mutants
from safetensors.torch import load_file, save_file

from twinlens.config import Settings, setting_fields
from twinlens.errors import TwinlensError
from twinlens.learn.learner import (
    Learner,
    TrainingState,
    make_checkpoint,
    make_optimizer,
    restore_checkpoint,
)
from twinlens.learn.objective import Objective
from twinlens.learn.records import HistoryRow
from twinlens.learn.run_folder import RunFolder, RunRecord
from twinlens.match.matcher import Matcher
from twinlens.measure.bootstrap import Estimate
from twinlens.measure.calibration import Calibration
from twinlens.measure.open_set_calibration import OpenSetCalibration
from twinlens.measure.probability import Isotonic, Platt
from twinlens.model.comparators import make_comparator
from twinlens.model.encoder import Encoder, embed_pixels
from twinlens.model.networks import load_networks
from twinlens.model.stored import fingerprint_of, read_stored_model
from twinlens.parsing import parse_json
from twinlens.recipes import load_recipe, parse_overrides

MAX_GROWTH = 2**29  # bytes
QUICK = 60  # mutants of a kind in the quick tests
PICTURE = np.arange(64, dtype=np.uint8).reshape(8, 8)
SETTINGS = load_recipe(
    "auto",
    {
        "model.backbone": "conv",
        "model.channels": [3, 4],
        "model.head": [5],
        "model.embedding": 4,
        "picture.size": [8, 8],
        "picture.color": "grey",
        "train.device": "cpu",
    },
).settings()
CALIBRATION = Calibration(
    0.5, 0.4, 0.6, 0.01, 20, 200, 10, Isotonic((0.1, 0.5, 0.9), (1.0, 0.5, 0.0)), 0.3, 0.2
)
OPEN_SET = OpenSetCalibration(
    "nearest", 0.1, 0.5, 0.4, 0.6, 0.0, 3, 6, 6, 3, Estimate(0.9, 0.8, 1.0), Estimate(1.0),
    {"nearest": 0.9}, (0.2, 0.3, 0.4), Platt(3.0, -1.0),
)  # fmt: skip

Read = Callable[[Mutant], object]


def each(number: int, every: list[Mutant], read: Read) -> None:
    """Read every mutant; report all that end in another way, or grow the process."""
    wrong = []
    for mutant in every:
        before = peak()
        try:
            read(mutant)
        except TwinlensError as error:
            text = str(error)
            if not text or len(text) > 5000 or "Traceback" in text.splitlines()[-1][:9]:
                wrong.append(f"{mutant.name}: {text[:200]}")
        except Exception as error:
            wrong.append(f"{mutant.name}: {type(error).__name__}: {str(error)[:200]}")
        if peak() - before > MAX_GROWTH:
            wrong.append(f"{mutant.name}: the process grew by {(peak() - before) >> 20} MiB")
    assert not wrong, f"{len(wrong)} of {len(every)}:\n" + "\n".join(wrong[:40])
    assert len(every) >= number


def peak() -> int:
    """The most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


quick_and_slow = pytest.mark.parametrize(
    "every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["some", "all"]
)


def selected(value: Any, every: bool) -> list[Mutant]:
    return list(mutants(value)) if every else chosen(value, QUICK)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder; tests change and restore its files."""
    torch.manual_seed(0)
    encoder = Encoder(SETTINGS.model, SETTINGS.picture)
    folder = tmp_path_factory.mktemp("hostile") / "model"
    comparator = make_comparator(SETTINGS.model.comparator, SETTINGS.model.embedding)
    save_networks(folder, encoder.eval(), comparator, calibration=CALIBRATION.as_json())
    return folder


def use_model(folder: Path) -> None:
    """Everything that reads a model to answer."""
    matcher = Matcher.load(folder)
    assert np.isfinite(matcher.embed(PICTURE)).all()
    if matcher.calibration is not None:
        matcher.verify(PICTURE, PICTURE.T)


def use_weights(folder: Path) -> None:
    """Everything that reads the weights of a model, which are learned on."""
    networks = load_networks(read_stored_model(folder))
    embed_pixels(networks.encoder, PICTURE[None, None])


def signed(text: str) -> str:
    """A description with the fingerprint that fits what was changed, if it can be read at all."""
    with contextlib.suppress(ValueError, RecursionError):
        values = json.loads(text)
        if isinstance(values, dict):
            old = json.dumps(values.get("fingerprint"))
            return text.replace(old, json.dumps(fingerprint_of(values)))
    return text


@quick_and_slow
def test_descriptions_of_models(every: bool, model: Path) -> None:
    file = model / "model.json"

    def read(mutant: Mutant) -> None:
        text = mutant.text
        file.write_text(text if mutant.name.startswith("fingerprint") else signed(text))
        use_model(model)

    with restored(file) as original:
        each(QUICK, selected(json.loads(original), every), read)
    use_model(model)


@contextlib.contextmanager
def restored(path: Path) -> Iterator[str]:
    """The text of a file, which is written back at the end."""
    text = path.read_text()
    try:
        yield text
    finally:
        path.write_text(text)


@contextlib.contextmanager
def header_of(path: Path) -> Iterator[tuple[dict[str, Any], Callable[[str], None]]]:
    """The header of a safetensors file, and a function that writes another; restored at the end."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, body = content[8 : 8 + length], content[8 + length :]

    def write(text: str) -> None:
        raw = text.encode("utf-8", "surrogatepass")
        path.write_bytes(len(raw).to_bytes(8, "little") + raw + body)

    try:
        yield json.loads(header), write
    finally:
        path.write_bytes(content)


@quick_and_slow
def test_headers_of_weights(every: bool, model: Path) -> None:
    weights = model / "model.safetensors"
    with restored(model / "model.json"), header_of(weights) as (header, write):

        def read(mutant: Mutant) -> None:
            write(mutant.text)
            sign_weights(model)
            use_weights(model)

        each(QUICK, selected(header, every), read)
    use_model(model)


def sign_weights(model: Path) -> None:
    """Make checksum and fingerprint fit the weights; graphs would be of other weights."""
    file = model / "model.json"
    values = json.loads(file.read_text())
    content = (model / "model.safetensors").read_bytes()
    values |= {"weights": hashlib.sha256(content).hexdigest(), "graphs": {}}
    values["fingerprint"] = fingerprint_of(values)
    file.write_text(json.dumps(values))


NUMBERS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "NaN": lambda t: t.index_fill(0, torch.tensor(0), float("nan")) if t.dim() else t * np.nan,
    "infinite": lambda t: t * np.inf,
    "huge": lambda t: torch.full_like(t, 3e38),
    "negative": lambda t: -(t.abs() + 1),
    "float64": lambda t: t.double(),
    "float16": lambda t: t.half(),
    "bfloat16": lambda t: t.bfloat16(),
    "int8": lambda t: t.to(torch.int8),
    "one more row": lambda t: torch.cat([t, t[:1]]) if t.dim() else t,
    "flat": lambda t: t.reshape(-1, 1),
    "empty": lambda t: t[:0] if t.dim() else t[None][:0],
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_tensors_of_models(kind: str, model: Path, tmp_path: Path) -> None:
    """NaN with a right checksum is refused; other types and sizes are read or refused."""
    weights = load_file(model / "model.safetensors")
    copy = shutil.copytree(model, tmp_path / "model")
    every = [Mutant(name, "") for name, t in weights.items() if t.is_floating_point()]
    for name in ("extra", "encoder.extra"):
        every.append(Mutant(name, ""))

    def read(mutant: Mutant) -> None:
        tensor = weights.get(mutant.name, torch.ones(3))
        save_file(weights | {mutant.name: NUMBERS[kind](tensor)}, copy / "model.safetensors")
        sign_weights(copy)
        if kind in ("NaN", "infinite"):
            with pytest.raises(TwinlensError, match="is damaged"):
                use_weights(copy)
        use_weights(copy)

    each(len(every), every, read)


def test_graphs_of_huge_weights(model: Path, tmp_path: Path) -> None:
    """They are finite, but embeddings of them are not: no graph is kept that gives such."""
    copy = shutil.copytree(model, tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    huge = {n: torch.full_like(t, 3e38) for n, t in weights.items() if t.is_floating_point()}
    save_file(weights | huge, copy / "model.safetensors")
    sign_weights(copy)
    for _ in range(2):
        with pytest.raises(TwinlensError, match=r"model\.onnx differs from torch by nan"):
            Matcher.load(copy)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run folder with a checkpoint, as if it had been killed; tests restore its files."""
    run = RunFolder(tmp_path_factory.mktemp("hostile") / "run")
    run.start(resume=False)
    run.write_settings(SETTINGS)
    run.write_record(
        RunRecord(
            source="d", recipe="auto", command="twinlens train d", fingerprint="ab", division="cd",
            seed=0, versions={"torch": "2"}, machine={"cores": 2}, choices=[],
        )
    )  # fmt: skip
    run.write_history([HistoryRow(0, 0.0, 0.0, float("nan"), 0.0, 0.5), HistoryRow(3, 1, 2, 3, 4)])
    learner = make_learner()
    for _ in range(2):
        loss = learner.encoder(torch.rand(4, 1, 8, 8)).square().mean()
        learner.update(loss, 1e-3, 0.0)
    learner.best, learner.good = learner.weights(), learner.weights()
    state = TrainingState(step=3, good_step=2, best_metric=0.5, top_metric=0.5)
    run.write_checkpoint(make_checkpoint(learner, state))
    return run


def make_learner(settings: Settings = SETTINGS) -> Learner:
    encoder = Encoder(settings.model, settings.picture)
    comparator = make_comparator(settings.model.comparator, settings.model.embedding)
    objective = Objective(settings.loss, comparator, 3, settings.model.embedding)
    return Learner(encoder, objective, make_optimizer(encoder, objective, settings.optimizer))


def resume(run: RunFolder) -> None:
    """What resuming reads, up to the first step."""
    settings = run.read_settings()
    run.read_record()
    run.check_checkpoint(settings)
    assert settings is not None
    learner = make_learner(settings)
    checkpoint = run.read_checkpoint()
    assert checkpoint is not None
    state = restore_checkpoint(learner, checkpoint)
    run.read_history(state.step)
    if learner.best:
        learner.load(learner.best)
    learner.load(learner.good)
    pictures = torch.rand(4, settings.picture.channels, *settings.picture.size)
    learner.update(learner.encoder(pictures).square().mean(), 1e-3, 0.0)


@quick_and_slow
@pytest.mark.parametrize("name", ["settings.json", "run.json"])
def test_files_of_runs(name: str, every: bool, run: RunFolder) -> None:
    file = run.path / name

    def read(mutant: Mutant) -> None:
        file.write_text(mutant.text)
        resume(run)

    with restored(file) as original:
        each(QUICK, selected(json.loads(original), every), read)
    resume(run)


@quick_and_slow
def test_headers_of_checkpoints(every: bool, run: RunFolder) -> None:
    with header_of(run.path / "checkpoint.safetensors") as (header, write):

        def read(mutant: Mutant) -> None:
            write(mutant.text)
            resume(run)

        def read_state(mutant: Mutant) -> None:
            write(json.dumps(header | {"__metadata__": {"state": mutant.text}}))
            resume(run)

        each(QUICK, selected(header, every), read)
        each(QUICK, selected(json.loads(header["__metadata__"]["state"]), every), read_state)
    resume(run)


@pytest.mark.parametrize(
    "kind", ["NaN", *(pytest.param(kind, marks=pytest.mark.slow) for kind in [*NUMBERS][1:])]
)
def test_tensors_of_checkpoints(kind: str, run: RunFolder) -> None:
    checkpoint = run.read_checkpoint()
    assert checkpoint is not None
    floats = [name for name, t in checkpoint.tensors.items() if t.is_floating_point()]
    every = [Mutant(name, "") for name in floats]

    def read(mutant: Mutant) -> None:
        tensor = NUMBERS[kind](checkpoint.tensors[mutant.name])
        run.write_checkpoint(
            type(checkpoint)(checkpoint.tensors | {mutant.name: tensor}, checkpoint.state)
        )
        resume(run)

    try:
        each(len(floats), every, read)
    finally:
        run.write_checkpoint(checkpoint)
    resume(run)


@pytest.mark.slow
def test_missing_tensors_of_checkpoints(run: RunFolder) -> None:
    checkpoint = run.read_checkpoint()
    assert checkpoint is not None

    def read(mutant: Mutant) -> None:
        kept = {k: v for k, v in checkpoint.tensors.items() if k != mutant.name}
        run.write_checkpoint(type(checkpoint)(kept, checkpoint.state))
        resume(run)

    try:
        each(1, [Mutant(name, "") for name in checkpoint.tensors], read)
    finally:
        run.write_checkpoint(checkpoint)
    resume(run)


def test_histories_of_runs(run: RunFolder) -> None:
    file = run.path / "history.csv"
    lines = file.read_text().splitlines()
    cells = [*TOKENS.values(), "\0", '"', "é", "1,2,3,4,5,6,7,8,9", "\udcff"]
    every = [
        Mutant(f"{column} {cell[:20]!r}", "\n".join([*lines, ",".join(row)]))
        for cell in cells
        for column in range(7)
        for row in [["4", "1", "1", "1", "1", "1", ""][:column] + [cell] + ["1"] * (6 - column)]
    ]

    def read(mutant: Mutant) -> None:
        file.write_text(mutant.text, encoding="utf-8", errors="surrogateescape")
        run.read_history(10)

    with restored(file):
        each(len(every), every, read)


CALIBRATIONS: Mapping[str, tuple[Any, Callable[[Any], Any]]] = {
    "pairs": (CALIBRATION.as_json(), Calibration.from_json),
    "open set": (OPEN_SET.as_json(), OpenSetCalibration.from_json),
}


@quick_and_slow
@pytest.mark.parametrize("kind", CALIBRATIONS)
def test_calibrations(kind: str, every: bool) -> None:
    values, from_json = CALIBRATIONS[kind]

    def read(mutant: Mutant) -> None:
        with contextlib.suppress(ValueError):  # `parse_json` refused it.
            calibration = from_json(parse_json(mutant.text))
            probability = calibration.probability([0.0, 0.3, 1e300])
            assert ((probability >= 0) & (probability <= 1)).all()

    def read_unparsed(mutant: Mutant) -> None:
        with contextlib.suppress(ValueError, RecursionError):
            from_json(json.loads(mutant.text))

    each(QUICK, selected(values, every), read)
    each(QUICK, selected(values, every), read_unparsed)


WORDS = [
    *TOKENS.values(), "inf", "-inf", "nan", "+1", "0x" + "f" * 3000, "1979-05-27", "07:32:00",
    "auto", "AUTO", "!!python/object:os.system", "&a [*a, *a]", "'''", "{a.b.c = 1}", "{a = {}}",
    "a." * 3000, "é", "\0",
]  # fmt: skip


@quick_and_slow
def test_overrides_and_recipes(every: bool, tmp_path: Path) -> None:
    keys = [key for key, _ in setting_fields()]
    pairs = [
        (key, word) for key in [*keys, "loss.args.alpha", "loss", "x", "x.y"] for word in WORDS
    ]
    pairs = pairs if every else pairs[:: max(1, len(pairs) // QUICK)]
    file = tmp_path / "r.toml"

    def read(mutant: Mutant) -> None:
        key, word = mutant
        load_recipe("auto", parse_overrides([f"{key}={word}"])).settings()
        file.write_text(f"{key} = {word}\n", encoding="utf-8")
        load_recipe(str(file)).settings()

    each(QUICK, [Mutant(*pair) for pair in pairs], read)


RECIPES: Mapping[str, bytes] = {
    "empty": b"",
    "BOM": b"\xef\xbb\xbf[train]\nsteps = 3\n",
    "UTF-16": "[train]\nsteps = 3\n".encode("utf-16"),
    "latin": b'about = "\xe9"\n',
    "CRLF": b"[train]\r\nsteps = 3\r\n",
    "NUL": b"a = 1\0",
    "YAML": b"train:\n  steps: &a [*a, *a]\n",
    "JSON": b'{"train": {"steps": 3}}',
    "twice": b"[train]\nsteps = 3\nsteps = 4\n",
    "section twice": b"[train]\nsteps = 3\n[train]\nseed = 4\n",
    "many keys": b"".join(b"k%d = 1\n" % n for n in range(20_000)),
    "too many keys": b"".join(b"k%d = 1\n" % n for n in range(1_000_000)),
    "dotted": b"a." * 4000 + b"a = 1\n",
    "long dotted": b"a." * 100_000 + b"a = 1\n",
    "many dotted": (b"a." * 3000 + b"a = 1\n") * 40,
    "deep list": b"a = " + b"[" * 3000 + b"]" * 3000,
    "deep tables": b"[" + b"a." * 3000 + b"a]\n",
    "deep inline": b"a = " + b"{a = " * 1000 + b"1" + b"}" * 1000,
    "array of tables": b"[[train]]\nsteps = 3\n",
    "dates": b"[loss.args]\na = 1979-05-27T07:32:00Z\n",
    "infinite": b"[loss.args]\na = [inf, nan]\n",
    "section is a value": b"train = 3\n",
    "all sections": b"picture = 1\nmodel = 2\nloss = 3\nsampler = []\ntrain = 'x'\n",
}


@pytest.mark.parametrize("kind", RECIPES)
def test_recipe_files(kind: str, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_bytes(RECIPES[kind])
    refused = contextlib.suppress(TwinlensError)
    with refused:
        load_recipe(str(tmp_path / "r.toml")).settings()
    if kind in ("empty", "BOM", "CRLF"):
        load_recipe(str(tmp_path / "r.toml")).settings()


ODD_FILES: list[Callable[[Path], object]] = [
    Path.mkdir,
    os.mkfifo,
    lambda path: path.symlink_to("/dev/zero"),
    lambda path: path.symlink_to(path.name),
    Path.touch,
    lambda path: path.write_bytes(b"\xff\xfe\0"),
]


def test_folders_pipes_and_devices_are_no_files(
    model: Path, run: RunFolder, tmp_path: Path
) -> None:
    places: list[tuple[Path, Callable[[], object]]] = []
    copy = shutil.copytree(model, tmp_path / "model")
    for name in ("model.json", "model.safetensors"):
        places.append((copy / name, lambda: use_model(copy)))
    copied = RunFolder(Path(shutil.copytree(run.path, tmp_path / "run")))
    for name in ("settings.json", "run.json", "history.csv", "checkpoint.safetensors"):
        places.append((copied.path / name, lambda: resume(copied)))
    (tmp_path / "r.toml").touch()
    places.append((tmp_path / "r.toml", lambda: load_recipe(str(tmp_path / "r.toml"))))
    for path, use in places:
        kept = path.rename(path.with_name("kept"))
        for make in ODD_FILES:
            make(path)
            with contextlib.suppress(TwinlensError):
                use()
            path.rmdir() if path.is_dir() else path.unlink()
        kept.rename(path)
