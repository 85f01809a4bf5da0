"""A run is a folder that says all it needs to be repeated, and a checkpoint to go on from.

    settings.json               the settings after "auto" has chosen
    run.json                    data fingerprint, versions, machine, seed, command, what was chosen
    split.csv                   path, identity, role, split of every picture that was used
    history.csv                 step, epoch, seconds, loss, rate, the validation metric, events
    tensorboard/                the same curves as TensorBoard events
    checkpoint.safetensors      weights, best weights, optimiser; its header holds the small state
    model/                      the model (see model/bundle.py)
    report.html, results.json   how well it does

Every file is written beside its place and renamed, so a run that is killed can be resumed.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from twinlens.errors import TrainingError
from twinlens.files import replacing_file

__all__ = ["Checkpoint", "HistoryRow", "RunFolder", "lock_run_folder", "new_run_folder"]

log = logging.getLogger("twinlens")

HISTORY_FIELDS = ("step", "epoch", "seconds", "loss", "rate", "metric", "event")


@dataclass(frozen=True)
class HistoryRow:
    """One line of `history.csv`; `metric` is None between validations, `event` usually empty."""

    step: int
    epoch: float
    seconds: float
    loss: float
    rate: float
    metric: float | None = None
    event: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """Everything that training needs to go on: tensors by name, and small state as plain data."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]


class RunFolder:
    """The files of one run; nothing here knows what the numbers mean."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def model(self) -> Path:
        """Where the model lies."""
        return self.path / "model"

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is something to go on from."""
        return self._checkpoint.is_file()

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end and its report is written."""
        return bool((self.read_json("run.json") or {}).get("finished"))

    def finish(self) -> None:
        """Note that there is nothing left to do."""
        self.write_json("run.json", (self.read_json("run.json") or {}) | {"finished": True})

    def start(self, resume: bool) -> None:
        """Make the folder, or check that it may be gone on with.

        Raises:
            TrainingError: it holds something already and `resume` was not asked for.
        """
        if self.path.exists() and not self.path.is_dir():
            raise TrainingError(f"{self.path} is a file: --out needs a folder")
        if not resume and self.path.exists() and any(self.path.iterdir()):
            raise TrainingError(
                f"{self.path} is not empty: go on with it by --resume, or name another --out"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(f"cannot make the run folder: {error}") from error

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file of the run."""
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        self._write(name, text.encode("utf-8", "backslashreplace") + b"\n")

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Read a JSON file of the run; None where there is none."""
        try:
            return dict(json.loads((self.path / name).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise TrainingError(f"{self.path / name} cannot be read: {error}") from error

    def write_table(self, name: str, fields: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Write a CSV file of the run."""
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(fields)
        writer.writerows(rows)
        self._write(name, text.getvalue().encode("utf-8", "backslashreplace"))

    def write_history(self, rows: Sequence[HistoryRow]) -> None:
        """Write `history.csv` whole: it has a few hundred lines."""
        table = [
            [r.step, f"{r.epoch:.3f}", f"{r.seconds:.3f}", repr(r.loss), repr(r.rate),
             "" if r.metric is None else repr(r.metric), r.event]
            for r in rows
        ]  # fmt: skip
        self.write_table("history.csv", HISTORY_FIELDS, table)

    def read_history(self, up_to_step: int) -> list[HistoryRow]:
        """The rows of `history.csv` up to and including a step: what a checkpoint knew.

        Raises:
            TrainingError: it is damaged.
        """
        file_path = self.path / "history.csv"
        if not file_path.is_file():
            return []
        try:
            with file_path.open(newline="", encoding="utf-8") as file:
                rows = [_history_row(row) for row in csv.DictReader(file)]
        except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
            raise TrainingError(
                f"{file_path} is damaged ({error!r}): delete it to go on without these rows"
            ) from error
        return [row for row in rows if row.step <= up_to_step]

    def write_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write the checkpoint; a kill at any moment leaves the old one or the new one."""
        tensors = {k: v.detach().cpu().contiguous() for k, v in checkpoint.tensors.items()}
        metadata = {"state": json.dumps(checkpoint.state)}
        # Straight from the tensors' memory, which there may be little of.
        with self._written(self._checkpoint.name) as part:
            save_file(tensors, part, metadata)

    def read_checkpoint(self) -> Checkpoint | None:
        """The last checkpoint; None where there is none yet.

        Raises:
            TrainingError: it is damaged.
        """
        path = self._checkpoint
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                state = json.loads(file.metadata()["state"])
            return Checkpoint(load_file(path), state)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise TrainingError(
                f"{path} is damaged ({error}): delete it to start this run again"
            ) from error

    @property
    def _checkpoint(self) -> Path:
        return self.path / "checkpoint.safetensors"

    def _write(self, name: str, content: bytes) -> None:
        with self._written(name) as part:
            part.write_bytes(content)

    @contextmanager
    def _written(self, name: str) -> Iterator[Path]:
        """A place to write a file, which takes its name when it is safe on the disk."""
        # One name for all times: what a kill leaves behind is written over by the next.
        with replacing_file(self.path / name, self.path / f"{name}.part") as part:
            yield part
            with part.open("rb+") as file:
                os.fsync(file.fileno())


def _history_row(row: Mapping[str, str]) -> HistoryRow:
    return HistoryRow(
        int(row["step"]),
        float(row["epoch"]),
        float(row["seconds"]),
        float(row["loss"]),
        float(row["rate"]),
        float(row["metric"]) if row["metric"] else None,
        row["event"],
    )


def new_run_folder(name: str) -> Path:
    """Make `runs/NAME`, or `runs/NAME-2` and so on where that is taken.

    Of two that ask at the same moment each gets its own.

    Raises:
        TrainingError: it cannot be made.
    """
    top = Path("runs")
    try:
        top.mkdir(exist_ok=True)
        for number in count(1):
            folder = top / (name if number == 1 else f"{name}-{number}")
            with suppress(FileExistsError):
                folder.mkdir()
                break
    except OSError as error:
        raise TrainingError(f"cannot make the run folder: {error}") from error
    return folder


@contextmanager
def lock_run_folder(folder: Path) -> Iterator[None]:
    """Keep a run's folder, which need not be there yet, from others that would train in it.

    Meanwhile `.NAME.lock` lies beside it. Where none can be made, or the file system knows no
    locks, nobody is kept from it.

    Raises:
        TrainingError: somebody else holds it.
    """
    place = folder.resolve()
    file = place.parent / f".{place.name}.lock"
    lock = FileLock(file, timeout=0)
    with ExitStack() as after:
        try:
            made = [above for above in place.parents if not above.exists()]
            place.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            after.callback(_give_up, lock, file, made)
        except Timeout as error:
            raise TrainingError(
                f"another training is at work in {folder}: wait for its end, or name another --out"
            ) from error
        except (OSError, NotImplementedError) as error:
            log.debug("%s is not locked: %s", folder, error)
        yield


def _give_up(lock: FileLock, file: Path, made: Sequence[Path]) -> None:
    # While it is held: a lock on a file that is gone is given up by whoever gets it.
    with suppress(OSError):
        file.unlink()
    lock.release()
    for folder in made:
        with suppress(OSError):  # Something has come of the run.
            folder.rmdir()
