"""Callbacks of a training, and the trackers that are made of them, with stand-ins for packages."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import TINY, TinyRun
from digits_run import digit_settings, start

import twinlens
from twinlens.config import Settings
from twinlens.errors import ConfigError, MissingExtraError
from twinlens.learn.callbacks import RunEnd, RunStart, StepReport, check_callbacks
from twinlens.learn.records import HistoryRow

ROWS = [
    HistoryRow(0, 0.0, 0.0, float("nan"), 0.0, 0.5),
    HistoryRow(3, 0.1, 0.5, 0.25, 1e-3),
    HistoryRow(6, 0.2, 0.9, 0.125, 1e-3, 0.75),
]


class Log(twinlens.Callback):
    """Each call, in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def on_start(self, run: RunStart) -> None:
        self.calls.append(("start", run))

    def on_step(self, record: StepReport) -> None:
        self.calls.append(("step", record))

    def on_validation(self, record: HistoryRow) -> None:
        self.calls.append(("validation", record))

    def on_end(self, results: RunEnd | None) -> None:
        self.calls.append(("end", results))


class Stops(twinlens.Callback):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_validation(self, record: HistoryRow) -> None:
        if record.step:
            raise self.error


def test_steps_and_validations_are_told_in_order() -> None:
    log = Log()
    *_, fitted = start(digit_settings(train__steps=4, train__validations=2), callbacks=[log])
    names = [(kind, record.step) for kind, record in log.calls]
    assert names == [
        ("validation", 0), ("step", 1), ("step", 2), ("validation", 2), ("step", 3), ("step", 4),
        ("validation", 4),
    ]  # fmt: skip
    rows = [record for kind, record in log.calls if kind == "validation"]
    assert rows == [row for row in fitted.history if row.metric is not None]
    steps = [record for kind, record in log.calls if kind == "step"]
    assert [report.row for report in steps] == fitted.history[1:]
    assert steps[-1].progress == 1
    assert all(report.rate >= 0 for report in steps)


def test_a_callback_ends_the_training_as_ctrl_c_does() -> None:
    *_, fitted = start(digit_settings(train__steps=4), callbacks=[Stops(KeyboardInterrupt())])
    assert fitted.interrupted
    assert fitted.steps < 4


@pytest.mark.parametrize(
    ("callback", "problem"),
    [
        (object(), "found <object object"),
        (Log, "found <class"),
        (SimpleNamespace(on_batch=print), "unknown method of a callback 'on_batch'"),
    ],
)
def test_other_objects_are_no_callbacks(callback: Any, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        check_callbacks([callback])


def test_some_of_the_methods_are_enough() -> None:
    check_callbacks([SimpleNamespace(on_step=print)])
    with pytest.raises(ConfigError, match=r"callbacks are a list.*put it into \[...\]"):
        check_callbacks(SimpleNamespace(on_step=print))  # type: ignore[arg-type]
    start(digit_settings(train__steps=1), callbacks=[SimpleNamespace(on_start=print)])


def feed(tracker: Any, folder: Path, results: RunEnd | None, step: int = 0) -> None:
    """As a training calls a tracker."""
    tracker.on_start(RunStart(folder / "run", "photos", Settings(), step))
    tracker.on_validation(ROWS[0])
    for row in ROWS[1:]:
        tracker.on_step(StepReport(row.step, 0.5, 1.0, 9.0, row.rate, row.metric, row))
        if row.metric is not None:
            tracker.on_validation(row)
    tracker.on_end(results)


CURVE = [
    (0, {"rate": 0.0, "validation": 0.5}),
    (3, {"loss": 0.25, "rate": 1e-3}),
    (6, {"loss": 0.125, "rate": 1e-3, "validation": 0.75}),
]


class FakeWandb(SimpleNamespace):
    """The parts of wandb that are used; an open run is `run`."""

    def __init__(self) -> None:
        super().__init__(run=None, calls=[], config={}, summary={})
        self.opened = SimpleNamespace(
            config=SimpleNamespace(update=lambda values, **_: self.config.update(values)),
            log=lambda values, step: self.calls.append((step, values)),
            summary=self.summary,
            finish=lambda exit_code: self.calls.append(("finish", exit_code)),
        )

    def init(self, **arguments: Any) -> Any:
        self.calls.append(("init", arguments))
        return self.opened


def figures(tiny_run: TinyRun) -> RunEnd:
    result = twinlens.evaluate(tiny_run.run, tiny_run.data, quiet=True)
    return RunEnd(tiny_run.model, tiny_run.run / "report.html", result, 20, 20, False)


def test_weights_and_biases(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)  # type: ignore[arg-type]
    feed(twinlens.WandbTracker(project="faces"), tmp_path, figures(tiny_run))
    assert fake.calls == [
        ("init", {"name": "run", "project": "faces"}), *CURVE, ("finish", 0),
    ]  # fmt: skip
    assert (fake.config["data"], fake.config["seed"]) == ("photos", 0)
    assert fake.config["loss.temperature"] == 0.1
    assert set(fake.summary) == {"test/eer", "test/auc", "test/far", "test/frr"}
    fake.calls.clear()
    feed(twinlens.WandbTracker(), tmp_path, None)
    assert fake.calls[-1] == ("finish", 1)
    fake.calls.clear()
    fake.run = fake.opened  # The program's own run stays open.
    feed(twinlens.WandbTracker(), tmp_path, None)
    assert fake.calls == CURVE


class FakeMlflow(SimpleNamespace):
    def __init__(self) -> None:
        super().__init__(calls=[], active=False)

    def active_run(self) -> object | None:
        return self if self.active else None

    def start_run(self, **arguments: Any) -> None:
        self.calls.append(("start", arguments))

    def log_params(self, params: dict[str, Any]) -> None:
        self.calls.append(("params", params["loss.name"]))

    def log_metrics(self, values: dict[str, float], step: int | None = None) -> None:
        self.calls.append((step, values))

    def end_run(self, status: str) -> None:
        self.calls.append(("end", status))


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)  # type: ignore[arg-type]
    feed(twinlens.MlflowTracker(experiment_id="3"), tmp_path, None)
    started = ("start", {"run_name": "run", "experiment_id": "3"})
    assert fake.calls == [started, ("params", "supcon"), *CURVE, ("end", "FAILED")]
    fake.calls.clear()
    fake.active = True
    feed(twinlens.MlflowTracker(), tmp_path, None, step=2)
    assert fake.calls == CURVE


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    tracker = {"wandb": twinlens.WandbTracker, "mlflow": twinlens.MlflowTracker}[name]()
    with pytest.raises(MissingExtraError, match=rf"pip install 'twinlens\[{name}\]'"):
        tracker.on_start(RunStart(tmp_path, "photos", Settings(), 0))


@pytest.mark.slow
def test_a_run_tells_its_start_its_end_and_its_failure(tiny_run: TinyRun, tmp_path: Path) -> None:
    log = Log()
    settings = TINY | {"train.steps": 4}
    twinlens.train(tiny_run.data, out=tmp_path / "run", settings=settings, callbacks=[log])
    (kind, begun), *_, (last, end) = log.calls
    assert (kind, last) == ("start", "end")
    assert (begun.path, begun.data, begun.step) == (tmp_path / "run", str(tiny_run.data), 0)
    assert begun.settings.train.steps == 4
    assert (end.steps, end.interrupted, end.result.split) == (4, False, "test")
    assert end.report.is_file()
    log = Log()
    stops = Stops(ValueError("pruned"))
    with pytest.raises(ValueError, match="pruned"):
        twinlens.train(
            tiny_run.data, out=tmp_path / "pruned", settings=settings, callbacks=[log, stops]
        )
    assert log.calls[-1] == ("end", None)
    assert (tmp_path / "pruned" / "checkpoint.safetensors").is_file()
