"""The files of a run: written whole or not at all, and read back as they were written."""

from __future__ import annotations

import json
import logging
import math
import sys
from pathlib import Path

import pytest
import torch
from conftest import file_limit

from twinlens.config import Settings
from twinlens.errors import DataError, TrainingError
from twinlens.learn.callbacks import RunStart
from twinlens.learn.history import History
from twinlens.learn.records import Choice, HistoryRow
from twinlens.learn.run_folder import Checkpoint, RunFolder, RunRecord
from twinlens.learn.trackers import TensorBoard
from twinlens.model.compute import Compute

ROWS = [
    HistoryRow(0, 0.0, 0.0, math.nan, 0.0, 0.5),
    HistoryRow(3, 0.3, 1.5, 1 / 3, 1e-3),
    HistoryRow(6, 0.6, 2.5, 0.1, 2e-3, 2 / 3, 'odd, "quoted"\nevent'),
]


RECORD = RunRecord(
    source="digits", root=None, recipe="auto", command="twinlens train digits", fingerprint="ab",
    division="cd", seed=3, versions={"twinlens": "1"}, machine={"cores": 2},
    choices=[Choice("model.channels", (3, 4), "few pictures")],
)  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.start(resume=False)
    return folder


def test_a_folder_is_made_and_never_overwritten(run: RunFolder) -> None:
    run.start(resume=False)  # Still empty.
    run.write_record(RECORD)
    with pytest.raises(TrainingError, match="is not empty: resume its run with --resume"):
        run.start(resume=False)
    run.start(resume=True)
    assert run.read_record() == RECORD.model_copy(
        update={"choices": [Choice("model.channels", [3, 4], "few pictures")]}
    )
    assert run.model == run.path / "model"


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(TrainingError, match="is a file"):
        RunFolder(tmp_path / "file").start(resume=False)
    with pytest.raises(TrainingError, match="cannot make the run folder"):
        RunFolder(tmp_path / "file" / "below").start(resume=False)


def test_a_record_keeps_its_keys_and_what_another_version_wrote(run: RunFolder) -> None:
    assert not run.finished
    run.write_record(RECORD)
    assert not run.finished
    file = run.path / "run.json"
    first = json.loads(file.read_text())
    assert list(first) == [
        "source", "root", "recipe", "command", "fingerprint", "division", "seed", "versions",
        "machine", "choices",
    ]  # fmt: skip
    old = {key: value for key, value in first.items() if key != "division"} | {"note": [1]}
    file.write_text(json.dumps(old))
    run.update_record(compute=Compute("cpu", True, False))
    run.finish()
    assert run.finished
    compute = {"device": "cpu", "bfloat16": True, "channels_last": False}
    assert json.loads(file.read_text()) == old | {"compute": compute, "finished": True}
    record = run.read_record()
    assert record is not None
    assert (record.division, record.compute) == (None, Compute("cpu", True, False))


def test_settings_come_back(run: RunFolder) -> None:
    assert run.read_settings() is None
    settings = Settings(seed=7)
    run.write_settings(settings)
    assert run.read_settings() == settings


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read"),
        ("{", "cannot be read"),
        ("3", r"another version of twinlens wrote it \(input should be a valid dictionary"),
        ("[1]", "another version of twinlens wrote it"),
        (
            '{"seed": "x", "loss": {"nonsense": 1}}',
            r"seed: input should .* found 'x'; loss\.nonsense is unknown",
        ),
    ],
)
def test_a_damaged_file_of_the_run(content: str, message: str, run: RunFolder) -> None:
    (run.path / "settings.json").write_text(content)
    with pytest.raises(TrainingError, match=rf"settings\.json .*{message}"):
        run.read_settings()


def test_the_history_comes_back_up_to_a_step(run: RunFolder) -> None:
    assert run.read_history(10) == []
    run.write_history(ROWS)
    rows = run.read_history(10)
    assert rows[1:] == ROWS[1:]
    assert math.isnan(rows[0].loss)
    for last, steps in ((2, [0]), (3, [0, 3]), (5, [0, 3]), (6, [0, 3, 6])):
        assert [row.step for row in run.read_history(last)] == steps
    text = (run.path / "history.csv").read_text()
    run.write_history(rows)
    assert (run.path / "history.csv").read_text() == text


@pytest.mark.parametrize(
    "text", ["step,epoch\n1,0.1\n", "x", "step,epoch,seconds,loss,rate,metric,event\none,,,,,,\n",
             "step,epoch,seconds,loss,rate,metric,event\n1,0.1\n", "\xff"],
)  # fmt: skip
def test_a_damaged_history(text: str, run: RunFolder) -> None:
    (run.path / "history.csv").write_bytes((text + "\n7").encode("latin-1"))
    with pytest.raises(TrainingError, match=r"history\.csv is damaged .* delete it"):
        run.read_history(10)


def test_a_table_that_fails_changes_nothing(run: RunFolder) -> None:
    run.write_table("split.csv", ("path",), [("a",)])
    before = (run.path / "split.csv").read_bytes()

    class Unwritable:
        def __str__(self) -> str:
            raise OSError("no room")

    with pytest.raises(DataError, match="no room"):
        run.write_table("split.csv", ("path",), [("b",), (Unwritable(),)])
    assert (run.path / "split.csv").read_bytes() == before
    assert [p.name for p in run.path.iterdir()] == ["split.csv"]


def test_a_checkpoint_that_finds_no_room_changes_nothing(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.write_record(RECORD)
    before = (run.path / "run.json").read_bytes()

    def full(_: int) -> None:
        raise OSError("no room")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DataError, match=r"cannot write .+run\.json: no room"):
        run.update_record(seed=4)
    assert (run.path / "run.json").read_bytes() == before
    assert [p.name for p in run.path.iterdir()] == ["run.json"]


def test_a_checkpoint_comes_back_to_the_last_bit(run: RunFolder) -> None:
    assert run.read_checkpoint() is None
    tensors = {
        "now.a": torch.randn(3, 2, 2, 2).to(memory_format=torch.channels_last),
        "now.count": torch.tensor(7),
        "best.a": torch.randn(4).bfloat16(),
        "optimizer.0.exp_avg": torch.randn(2, 3).T,
    }
    state = {"step": 3, "seconds": 0.1 + 0.2, "best_metric": None, "watch": {"answers": 1}}
    run.write_checkpoint(Checkpoint(tensors, state))
    checkpoint = run.read_checkpoint()
    assert checkpoint is not None
    assert checkpoint.state == state
    assert checkpoint.tensors.keys() == tensors.keys()
    assert all(torch.equal(checkpoint.tensors[k], v) for k, v in tensors.items())
    run.write_checkpoint(Checkpoint({}, {"step": 4}))
    again = run.read_checkpoint()
    assert again is not None
    assert again.state == {"step": 4}
    assert [p.name for p in run.path.iterdir()] == ["checkpoint.safetensors"]


def test_a_checkpoint_on_a_full_disk_changes_nothing(run: RunFolder) -> None:
    run.write_checkpoint(Checkpoint({"now.a": torch.ones(3)}, {"step": 3}))
    message = r"^cannot write .+/checkpoint\.safetensors: File too large; raise the limit"
    with pytest.raises(DataError, match=message), file_limit(2000):
        run.write_checkpoint(Checkpoint({"now.a": torch.ones(3000)}, {"step": 4}))
    checkpoint = run.read_checkpoint()
    assert checkpoint is not None
    assert checkpoint.state == {"step": 3}
    assert [p.name for p in run.path.iterdir()] == ["checkpoint.safetensors"]


@pytest.mark.parametrize("keep", [0, 4, 30])
def test_error_of_a_damaged_checkpoint_names_the_remedy(keep: int, run: RunFolder) -> None:
    run.write_checkpoint(Checkpoint({"now.a": torch.ones(30)}, {"step": 3}))
    path = run.path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(TrainingError, match=r"is damaged .* delete it to start this run again"):
        run.read_checkpoint()


def test_a_table_of_the_run(run: RunFolder) -> None:
    run.write_table("split.csv", ("path", "identity"), [("a,b.png", "ü"), ("c.png", "x")])
    text = (run.path / "split.csv").read_text(encoding="utf-8")
    assert text.splitlines() == ["path,identity", '"a,b.png",ü', "c.png,x"]


def events(run: RunFolder, name: str) -> dict[int, float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run.path / "tensorboard"))
    board.Reload()
    scalars = board.Scalars(name)
    assert len({s.step for s in scalars}) == len(scalars)
    return {s.step: s.value for s in scalars}


def tensorboard(run: RunFolder, step: int) -> TensorBoard:
    board = TensorBoard()
    board.on_start(RunStart(run.path, "photos", Settings(), step))
    return board


def test_a_history_writes_both_files_and_drops_rows_after_a_checkpoint(
    run: RunFolder,
) -> None:
    first, board = History(run, 0), tensorboard(run, 0)
    for row in (*ROWS, HistoryRow(9, 0.9, 3.0, 0.05, 1e-3)):
        first.add(row)
        board.add(row)
    second, board = History(run, 3), tensorboard(run, 3)  # The checkpoint was of step 3.
    assert [row.step for row in second.rows] == [0, 3]
    second.add(HistoryRow(8, 0.8, 2.0, 0.2, 1e-3, 0.75))
    board.add(HistoryRow(8, 0.8, 2.0, 0.2, 1e-3, 0.75))
    assert [row.step for row in run.read_history(100)] == [0, 3, 8]
    assert events(run, "loss") == pytest.approx({3: 1 / 3, 8: 0.2})
    assert events(run, "validation") == pytest.approx({0: 0.5, 8: 0.75})


def test_a_history_on_a_full_disk_is_one_error(run: RunFolder) -> None:
    history, board = History(run, 0), tensorboard(run, 0)
    for row in ROWS:
        history.add(row)
        board.add(row)
    before = (run.path / "history.csv").read_bytes()
    limits = ((history, 20, "history.csv"), (board, len(before) + 60, "events.out.tfevents"))
    for writer, limit, name in limits:
        message = rf"^cannot write .+{name}.*: File too large"
        with pytest.raises(DataError, match=message), file_limit(limit):
            writer.add(HistoryRow(9, 0.9, 3.0, 0.05, 1e-3))
    assert not list(run.path.glob(".*"))


def test_a_history_without_a_folder_stays_in_memory(tmp_path: Path) -> None:
    history = History(None, 0)
    history.add(ROWS[1])
    assert history.rows == [ROWS[1]]
    assert list(tmp_path.iterdir()) == []


def test_without_tensorboard_there_are_no_events(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with caplog.at_level(logging.INFO, logger="twinlens"):
        board = tensorboard(run, 0)
    assert caplog.messages == [
        "TensorBoard events are not written: pip install 'twinlens[tensorboard]'"
    ]
    for row in ROWS:
        board.add(row)
    assert list(run.path.iterdir()) == []
