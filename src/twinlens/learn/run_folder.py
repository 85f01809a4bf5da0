"""The folder of a run: all that is needed to repeat it, and a checkpoint to resume from.

    settings.json               settings after "auto" has chosen
    race.json                   short trainings that chose some of them, if there were any
    run.json                    data fingerprint, versions, machine, seed, command, choices
    split.csv                   path, identity, role, split of every picture that was used
    trained_on.safetensors      keyed hashes and thumbnails of these (see model/training_record.py)
    history.csv                 step, epoch, seconds, loss, rate, validation metric, events
    tensorboard/                the same curves as TensorBoard events
    checkpoint.safetensors      weights, best weights, optimiser; small state in its header
    model/                      the model (see model/bundle.py)
    report.html, results.json   the evaluation

Files are written under another name and renamed, so that a killed run can be resumed.
"""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields
from itertools import count
from pathlib import Path
from typing import Annotated, Any, TypeVar

from filelock import FileLock, Timeout
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    TypeAdapter,
    ValidationError,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from twinlens.config import Settings
from twinlens.data.csv_file import write_csv
from twinlens.errors import TrainingError, first_line, validation_problems
from twinlens.files import writing_file
from twinlens.learn.records import CandidateRow, Choice, HistoryRow
from twinlens.model.compute import Compute
from twinlens.model.fused import encoder_layout
from twinlens.model.plugged_in import is_plugged_in
from twinlens.model.stored import StartRecord
from twinlens.model.tensor_file import layout_problem, read_layout, tensors_under
from twinlens.parsing import parse_json, read_json, read_text

__all__ = ["Checkpoint", "RaceRecord", "RunFolder", "RunRecord", "lock_run_folder",
           "new_run_folder"]  # fmt: skip

log = logging.getLogger("twinlens")

S = TypeVar("S", bound=BaseModel)


class RunRecord(BaseModel):
    """Contents of `run.json`.

    Attributes:
        division: digest of the pictures and their splits; None in runs of twinlens 0.1.
        init: model that the training began with, as the user named it.
        start: description of that model.
        overrides: settings of the user, "section.key" -> value; None in older runs.
        compute: arithmetic format, once it is chosen.
        finished: whether the report is written.
    """

    model_config = ConfigDict(frozen=True, extra="allow")  # Fields of other versions are kept.

    source: str
    root: str | None = None
    recipe: str
    init: str | None = None
    start: StartRecord | None = None
    overrides: dict[str, Any] | None = None
    command: str
    fingerprint: str
    division: str | None = None
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**63)]
    versions: dict[str, str]
    machine: dict[str, Any]
    choices: list[Choice]
    compute: Compute | None = None
    finished: StrictBool = False


class RaceRecord(BaseModel):
    """Contents of `race.json`.

    Attributes:
        updates: settings that the race changed, "section.key" -> value.
        rows: the short trainings on held-out pictures.
    """

    model_config = ConfigDict(frozen=True)

    updates: dict[str, Any]
    rows: list[CandidateRow]


_HISTORY = TypeAdapter(list[HistoryRow])


@dataclass(frozen=True)
class Checkpoint:
    """Everything that training needs to resume: tensors by name, and plain data in the header."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]


class RunFolder:
    """The files of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def model(self) -> Path:
        """The model's folder."""
        return self.path / "model"

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return self._checkpoint.exists()

    @property
    def finished(self) -> bool:
        """Whether the run is over and its report is written."""
        record = self.read_record()
        return record is not None and record.finished

    def finish(self) -> None:
        """Note in `run.json` that nothing is left to do."""
        self.update_record(finished=True)

    def start(self, resume: bool) -> None:
        """Make the folder, or check that a run may be resumed in it.

        Raises:
            TrainingError: the folder is not empty, and `resume` is False.
        """
        if self.path.exists() and not self.path.is_dir():
            raise TrainingError(f"{self.path} is a file: --out needs a folder")
        if not resume and self.path.exists() and any(self.path.iterdir()):
            raise TrainingError(
                f"{self.path} is not empty: resume its run with --resume, or name another --out"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(
                f"cannot make the run folder: {error}; name another place with --out"
            ) from error

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file of the run."""
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        self._write(name, text.encode("utf-8", "backslashreplace") + b"\n")

    def write_record(self, record: RunRecord) -> None:
        """Write `run.json`."""
        self.write_json("run.json", record.model_dump(mode="json", exclude_unset=True))

    def update_record(self, **fields: Any) -> None:
        """Change some fields of `run.json`."""
        record = self.read_record()
        assert record is not None, "the run was not started"
        self.write_record(record.model_copy(update=fields))

    def read_record(self) -> RunRecord | None:
        """The contents of `run.json`; None if missing.

        Raises:
            TrainingError: damaged, or of another version.
        """
        return self._read("run.json", RunRecord)

    def write_settings(self, settings: Settings) -> None:
        """Write `settings.json`."""
        self.write_json("settings.json", settings.model_dump(mode="json"))

    def read_settings(self) -> Settings | None:
        """The contents of `settings.json`; None if missing.

        Raises:
            TrainingError: damaged, or of another version.
        """
        return self._read("settings.json", Settings)

    def write_race(self, race: RaceRecord) -> None:
        """Write `race.json`."""
        self.write_json("race.json", race.model_dump(mode="json"))

    def read_race(self) -> RaceRecord | None:
        """The contents of `race.json`; None if missing.

        Raises:
            TrainingError: damaged, or of another version.
        """
        return self._read("race.json", RaceRecord)

    def write_table(self, name: str, fields: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Write a CSV file of the run."""
        with writing_file(self.path / name) as part:
            write_csv(part, fields, rows)

    def write_history(self, rows: Sequence[HistoryRow]) -> None:
        """Write all of `history.csv`, a few hundred lines."""
        table = [
            [r.step, f"{r.epoch:.3f}", f"{r.seconds:.3f}", repr(r.loss), repr(r.rate),
             "" if r.metric is None else repr(r.metric), r.event]
            for r in rows
        ]  # fmt: skip
        self.write_table("history.csv", [field.name for field in fields(HistoryRow)], table)

    def read_history(self, up_to_step: int) -> list[HistoryRow]:
        """The rows of `history.csv` up to and including a step, such as a checkpoint's.

        Raises:
            TrainingError: it is damaged.
        """
        path = self.path / "history.csv"
        if not path.exists():
            return []
        try:
            table = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
            rows = _HISTORY.validate_python(list(table))
        except (OSError, ValueError, csv.Error) as error:
            raise TrainingError(
                f"{path} is damaged ({_in_one_line(error)}): delete it to resume without its rows"
            ) from error
        return [row for row in rows if row.step <= up_to_step]

    def write_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write the checkpoint; a kill at any moment leaves the old one or the new one."""
        tensors = {k: v.detach().cpu().contiguous() for k, v in checkpoint.tensors.items()}
        metadata = {"state": json.dumps(checkpoint.state)}
        # safetensors writes from the tensors' own memory: no second copy of the weights.
        with writing_file(self._checkpoint) as part:
            save_file(tensors, part, metadata)

    def read_checkpoint(self) -> Checkpoint | None:
        """The last checkpoint; None if missing.

        Raises:
            TrainingError: it is damaged.
        """
        path = self._checkpoint
        if not path.exists():
            return None
        try:
            return Checkpoint(load_file(path), self._state(path))
        except (OSError, ValueError, SafetensorError) as error:
            raise self._damaged_checkpoint(first_line(error)) from error

    def steps_done(self) -> int:
        """The steps behind the last checkpoint; 0 if missing.

        Raises:
            TrainingError: it is damaged.
        """
        path = self._checkpoint
        if not path.exists():
            return 0
        try:
            return int(self._state(path)["step"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise self._damaged_checkpoint(first_line(error)) from error

    @staticmethod
    def _state(path: Path) -> Any:
        """The plain data in the header of a checkpoint."""
        read_layout(path)  # Checks the header.
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        if "state" not in metadata:
            raise ValueError("it is no checkpoint")
        return parse_json(metadata["state"])

    def check_checkpoint(self, settings: Settings | None) -> None:
        """Check, before memory is spent, that the checkpoint belongs to a run's settings.

        Args:
            settings: contents of `settings.json`; None if missing.
        Raises:
            TrainingError: damaged, without settings, or its encoder has other shapes.
        """
        if settings is None:
            raise TrainingError(
                f"{self.path} has a checkpoint but no settings.json: restore it, or start a new "
                "run in another folder"
            )
        try:
            layout = tensors_under(read_layout(self._checkpoint), "now.encoder.")
            problem = layout_problem(layout, encoder_layout(settings.model, settings.picture))
        except (OSError, ValueError) as error:
            raise self._damaged_checkpoint(first_line(error)) from error
        if problem is not None and is_plugged_in(settings.model.backbone):
            raise TrainingError(
                f"the backbone that was passed does not fit {self._checkpoint}: {problem}"
            )
        if problem is not None:
            raise self._damaged_checkpoint(f"it does not fit settings.json: {problem}")

    def _damaged_checkpoint(self, problem: str) -> TrainingError:
        return TrainingError(
            f"{self._checkpoint} is damaged ({problem}): delete it to start this run again"
        )

    @property
    def _checkpoint(self) -> Path:
        return self.path / "checkpoint.safetensors"

    def _read(self, name: str, schema: type[S]) -> S | None:
        path = self.path / name
        try:
            return schema.model_validate(read_json(path))
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise TrainingError(
                f"{path} was changed, or another version of twinlens wrote it "
                f"({validation_problems(error)}): start a new run in another folder"
            ) from error
        except (OSError, ValueError) as error:
            raise TrainingError(
                f"{path} cannot be read ({first_line(error)}): restore it, or start a new run in "
                "another folder"
            ) from error

    def _write(self, name: str, content: bytes) -> None:
        with writing_file(self.path / name) as part:
            part.write_bytes(content)


def _in_one_line(error: Exception) -> str:
    return validation_problems(error) if isinstance(error, ValidationError) else first_line(error)


def new_run_folder(name: str) -> Path:
    """Make `runs/NAME`, or `runs/NAME-2` and so on if that exists.

    Two processes at the same moment get different folders.

    Raises:
        TrainingError: the folder cannot be made.
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
        raise TrainingError(
            f"cannot make the run folder: {error}; name another place with --out"
        ) from error
    return folder


@contextmanager
def lock_run_folder(folder: Path) -> Iterator[None]:
    """Lock a run's folder, which need not exist yet, against other trainings.

    The lock is the file `.NAME.lock` beside it. If that file cannot be made, or the file system has
    no locks, the training runs without a lock.

    Raises:
        TrainingError: another process holds the lock.
    """
    path = folder.resolve()
    file = path.parent / f".{path.name}.lock"
    lock = FileLock(file, timeout=0)
    with ExitStack() as after:
        try:
            made = [parent for parent in path.parents if not parent.exists()]
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            after.callback(_release, lock, file, made)
        except Timeout as error:
            raise TrainingError(
                f"another process trains in {folder}: wait until it ends, or name another --out"
            ) from error
        except (OSError, NotImplementedError) as error:
            log.debug("%s is not locked: %s", folder, error)
        yield


def _release(lock: FileLock, file: Path, made: Sequence[Path]) -> None:
    # Unlinked while it is held: a process that then gets the deleted file's lock gives it up.
    with suppress(OSError):
        file.unlink()
    lock.release()
    for folder in made:
        with suppress(OSError):  # Not empty: the run was made.
            folder.rmdir()
