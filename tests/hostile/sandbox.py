"""Hostile inputs, each made and run in a process of its own, with limits on memory and time.

`python sandbox.py SCRATCH FAMILY:SEED` makes one input again, runs its command and shows its
output; `python sandbox.py SCRATCH FAMILY:FIRST-LAST ... named` runs many.

Importing twinlens takes seconds. Everything is therefore imported once here, and each process is a
fork. The forks start no thread before that, since only those of one thread may be forked.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import random
import re
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

MAX_BYTES = 2 * 2**30
MAX_SECONDS = 60  # of CPU
MAX_WAIT = 300.0
NOT_MADE, NOT_KEPT = 99, 98
CODES = (0, 1, 2)
UNCLEAN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x9f\u202a-\u202e\u2066-\u2069]")
WARNING = re.compile(r"^.*\w+Warning: .*$", re.MULTILINE)
TRACEBACK = re.compile(r"^Traceback \(most", re.MULTILINE)
MAX_OUTPUT = 200_000


@dataclass(frozen=True)
class Outcome:
    """The end of a process.

    Attributes:
        code: exit code; negative for a signal.
        cpu: seconds of CPU.
        peak: most memory that the process held, in bytes.
        killed: reason why the sandbox killed it.
    """

    name: str
    code: int
    seconds: float
    cpu: float
    peak: int
    words: str
    out: str
    err: str
    killed: str | None

    @property
    def problem(self) -> str | None:
        """Rule that the process broke."""
        if self.killed is not None:
            return self.killed
        if self.peak > MAX_BYTES:
            return f"took {self.peak >> 20} MiB"
        if self.code not in CODES:
            return f"exit code {self.code}"
        if TRACEBACK.search(self.err):
            return "traceback"
        if WARNING.search(self.err):
            return "a warning of Python's"
        if self.code == 2 and not (self.err.count("twinlens: error: ") == 1 and not self.out):
            return "exit code 2 without one message"
        if UNCLEAN.search(self.out + self.err):
            return "control characters in the output"
        if len(self.out) + len(self.err) > MAX_OUTPUT:
            return f"{len(self.out) + len(self.err)} characters of output"
        return None

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.problem or 'fine'} (code {self.code}, {self.seconds:.1f} s, "
            f"{self.peak >> 20} MiB)\n  twinlens {self.words[:300]}\n  "
            + (self.out[-300:] + self.err[-1500:]).strip().replace("\n", "\n  ")
        )


def import_everything(modules: Iterable[str] = ()) -> None:
    """Import what any command may import."""
    import twinlens

    names = [m.name for m in pkgutil.walk_packages(twinlens.__path__, "twinlens.")]
    for name in [*names, *modules]:
        if "__main__" not in name:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    importlib.import_module(name)
                except Exception:  # A part of another package, for another system.
                    continue
    from PIL import Image

    Image.init()


class Running:
    """A forked process that calls a function in a new folder."""

    def __init__(self, name: str, folder: Path, call: Callable[[], int]) -> None:
        self.name, self.folder = name, folder
        self.killed: str | None = None
        self.peak = 0
        self.start = time.monotonic()
        folder.mkdir(parents=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Lance has started no thread here.
            self.pid = os.fork()
        if not self.pid:
            self._call(call)

    def _call(self, call: Callable[[], int]) -> None:
        code = 1
        try:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_CPU, (MAX_SECONDS, MAX_SECONDS))
            os.chdir(self.folder)
            os.environ["TWINLENS_CACHE"] = str(self.folder / "cache")
            for number, name in enumerate(("/dev/null", self._log("out"), self._log("err"))):
                flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC * (number > 0)
                os.dup2(os.open(name, flags), number)
            sys.stdout = open(1, "w")  # noqa: SIM115
            sys.stderr = open(2, "w", 1, errors="backslashreplace")  # noqa: SIM115
            code = call()
        except SystemExit as end:  # --help
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)

    def _log(self, name: str) -> str:
        return f"{self.folder}.{name}"

    def poll(self) -> Outcome | None:
        """The outcome if the process has ended; kills it if it is over a limit."""
        pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        seconds = time.monotonic() - self.start
        if not pid:
            self._check(seconds)
            return None
        self.kill_group()  # What the process started.
        texts = [self._text(Path(self._log(name))) for name in ("out", "err", "words")]
        return Outcome(
            self.name, os.waitstatus_to_exitcode(status), seconds,
            usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, texts[2], *texts[:2],
            self.killed,
        )  # fmt: skip

    @staticmethod
    def _text(path: Path) -> str:
        return path.read_text(errors="replace") if path.exists() else ""

    def _check(self, seconds: float) -> None:
        try:
            pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        except (OSError, IndexError):
            return
        if pages * os.sysconf("SC_PAGE_SIZE") > MAX_BYTES:
            self.killed = f"took over {MAX_BYTES >> 20} MiB"
        elif seconds > MAX_WAIT:
            self.killed = f"no end after {seconds:.0f} s"
        if self.killed:
            self.kill_group()

    def kill_group(self) -> None:
        """Kill the process and all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def wait(self) -> Outcome:
        """Wait for the end."""
        while (outcome := self.poll()) is None:
            time.sleep(0.003)
        return outcome

    def clean_up(self) -> None:
        """Delete the folder and the files of the output."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for name in ("out", "err", "words"):
            Path(self._log(name)).unlink(missing_ok=True)


def run_all(
    cases: Iterable[tuple[str, Callable[[], int]]], scratch: Path, jobs: int
) -> Iterator[tuple[Running, Outcome]]:
    """Run functions in forks, `jobs` at a time; yields each that ended."""
    waiting = iter(cases)
    running: list[Running] = []
    while True:
        while len(running) < jobs and (case := next(waiting, None)) is not None:
            running.append(Running(case[0], scratch / case[0], case[1]))
        if not running:
            return
        for one in list(running):
            if (outcome := one.poll()) is not None:
                running.remove(one)
                yield one, outcome
        time.sleep(0.003)


def in_fork(folder: Path, call: Callable[[], int]) -> Outcome:
    """Call a function in a fork; the rest of the process stays without threads."""
    return Running(folder.name, folder, call).wait()


def prepare(scratch: Path) -> Path:
    """Import everything, and make the files that the inputs are mutations of."""
    import_everything()
    from hostile_inputs import make_base

    from twinlens.model import graph_templates

    # Each process has a cache of its own, and would export the same few networks anew.
    graph_templates.template_folder = lambda: scratch / "prepare" / "graphs"
    modules = scratch / "prepare" / "modules"

    def make() -> int:
        make_base(Path("base"))
        Path("modules").write_text("\n".join(sys.modules))
        return 0

    if not modules.exists():
        outcome = in_fork(modules.parent, make)
        if outcome.code != 0:
            raise RuntimeError(str(outcome))
    import_everything(modules.read_text().splitlines())
    return scratch / "prepare" / "base"


def case(family: str, which: str, base: Path) -> tuple[str, Callable[[], int]]:
    """A name, and the function that makes the input, runs its command and checks what is left."""
    from hostile_inputs import FAMILIES
    from named_inputs import NAMED

    name = f"{family}-{which}"

    def call() -> int:
        from twinlens.cli.main import main

        try:
            if family == "named":
                words = NAMED[which].make(base)
            else:
                words = FAMILIES[family](random.Random(name), base)
            shown = " ".join(map(repr, words))
            Path(f"{Path.cwd()}.words").write_text(shown, errors="backslashreplace")
        except BaseException:
            traceback.print_exc()
            return NOT_MADE
        code = main(words)
        return code if family != "named" or NAMED[which].check() else NOT_KEPT

    return name, call


def fuzz(chosen: Iterable[tuple[str, str]], scratch: Path, jobs: int = 2) -> Iterator[Outcome]:
    """Run inputs, given by family and seed."""
    base = prepare(scratch)
    for running, outcome in run_all((case(*one, base) for one in chosen), scratch, jobs):
        if outcome.problem is None:
            running.clean_up()
        yield outcome


def parse(word: str) -> list[tuple[str, str]]:
    """Inputs of a word: `pictures:7`, `pictures:0-99`, `named:a pipe` or `named`."""
    from named_inputs import NAMED

    family, _, which = word.partition(":")
    if family == "named":
        return [(family, name) for name in ([which] if which else NAMED)]
    first, _, last = which.partition("-")
    return [(family, str(seed)) for seed in range(int(first), int(last or first) + 1)]


def main(scratch: str, *words: str) -> int:
    """Run inputs; every outcome is a line of `outcomes.jsonl`."""
    sys.path.append(str(Path(__file__).parents[1]))
    place, chosen = Path(scratch), [one for word in words for one in parse(word)]
    begin, num_problems, times = time.monotonic(), 0, dict[str, float]()
    with (place / "outcomes.jsonl").open("w") as file:
        for outcome in fuzz(chosen, place):
            print(json.dumps(asdict(outcome) | {"problem": outcome.problem}), file=file, flush=True)
            family = outcome.name.split("-")[0]
            times[family] = times.get(family, 0.0) + outcome.cpu
            num_problems += outcome.problem is not None
            if outcome.problem or len(chosen) == 1:
                print(outcome, flush=True)
    print(f"{len(chosen)} inputs in {time.monotonic() - begin:.0f} s, {num_problems} broke a rule")
    print(f"seconds of CPU: { {family: round(seconds) for family, seconds in times.items()} }")
    return int(num_problems > 0)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main(*sys.argv[1:]))
