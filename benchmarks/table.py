"""One line for each comparison, and the page that shows them all: `benchmarks/RESULTS.md`.

What a module measured is kept in `build/benchmarks`, so that one module can be measured again
without the others; the page says of each when and on what. This module measures nothing itself.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from twinlens.files import writing_file
from twinlens.machine import machine, versions

__all__ = ["Line", "heading", "keep", "write_page"]

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "build" / "benchmarks"
PAGE = ROOT / "benchmarks" / "RESULTS.md"

REACHED, MISSED = " reached |", " **missed** |"
CUT = "This run was cut short: the lines after these are missing."


@dataclass(frozen=True)
class Line:
    """A comparison: both sides with their units, their ratio, and what was aimed at.

    `ratio` says what it is a ratio of ("peer / ours 3.1 (2.9 to 3.4)"); `reached` is None where
    no aim was set; `note` is what a reader must know to trust the figures, or why an aim is missed.
    """

    what: str
    beside: str
    ours: str
    theirs: str
    ratio: str = ""
    aim: str = ""
    reached: bool | None = None
    note: str = ""

    def __str__(self) -> str:
        verdict = {True: "reached", False: "MISSED", None: ""}[self.reached]
        aim = f"aim: {self.aim} {verdict}" if self.aim else ""
        parts = [f"{self.what} | {self.beside}", self.ours, self.theirs, self.ratio, aim, self.note]
        return " | ".join(part for part in parts if part)


def heading() -> str:
    """The machine and the versions, in one line."""
    here = machine()
    result = ", ".join(f"{name} {version}" for name, version in versions().items())
    return f"{here['processor']}, {here['cores']} cores, {here['threads']} threads; {result}"


def keep(name: str, doc: str, lines: Iterable[Line], *, complete: bool) -> None:
    """Keep what a module measured so far, with when and on what, and whether that is all."""
    KEPT.mkdir(parents=True, exist_ok=True)
    kept = {
        "name": name,
        "about": doc.strip().splitlines()[0],
        "date": time.strftime("%Y-%m-%d"),
        "machine": heading(),
        "command": f"python -m benchmarks {name}",
        "complete": complete,
        "lines": [asdict(line) for line in lines],
    }
    with writing_file(KEPT / f"{name}.json") as part:
        part.write_text(json.dumps(kept, indent=1), encoding="utf-8")


def write_page(names: Iterable[str]) -> Path:
    """Write the page of these modules, in their order; what is not kept here stays as it was."""
    section = {}
    if PAGE.exists():
        parts = PAGE.read_text(encoding="utf-8").split("\n## ")[1:]
        section = {part.partition("\n")[0]: f"## {part.rstrip()}\n" for part in parts}
    for name in names:
        if (file := KEPT / f"{name}.json").exists():
            section[name] = _section(json.loads(file.read_text(encoding="utf-8")))
    sections = [section[name] for name in names if name in section]
    reached, missed = (
        sum(text.count(verdict) for text in sections) for verdict in (REACHED, MISSED)
    )
    with writing_file(PAGE) as part:
        part.write_text("\n".join([_top(reached, missed), *sections]), encoding="utf-8")
    return PAGE


def _top(reached: int, missed: int) -> str:
    return (
        "# Results of the benchmarks\n\n"
        "Written by `make bench` (all of them), or `python -m benchmarks NAME ...` (some of them;\n"
        "the others are left as they were). Both sides of a line were measured in one run: work\n"
        "of seconds in turns, with the median of the rounds' ratios, which need not be the ratio\n"
        "of the medians beside it, and the least and the most of several rounds in brackets;\n"
        "trainings once, one after the other, with the 95 % interval of an error rate. Times are\n"
        "of this machine, ratios hold. How often the test pictures were looked at, and what was\n"
        "tried and did not help, is in [NOTES.md](NOTES.md).\n\n"
        f"Aims reached: {reached} of {reached + missed}.\n"
    )


def _section(one: dict[str, Any]) -> str:
    rows = ["| what | beside | ours | theirs | ratio | aim |  |", "|---|---|---|---|---|---|---|"]
    notes = []
    for line in one["lines"]:
        verdict = {True: REACHED, False: MISSED, None: " |"}[line["reached"]]
        mark = ""
        if line["note"]:
            notes.append(line["note"])
            mark = f" [{len(notes)}]"
        cells = [line["what"] + mark, line["beside"], line["ours"], line["theirs"], line["ratio"]]
        rows.append("| " + " | ".join([*cells, line["aim"]]) + f" |{verdict}")
    listed = "\n".join(f"{number}. {note}" for number, note in enumerate(notes, 1))
    where = f"`{one['command']}`, {one['date']}; {one['machine']}."
    cut = "" if one.get("complete", True) else CUT
    parts = [f"## {one['name']}", one["about"], "\n".join(rows), cut, listed, where]
    return "\n\n".join(part for part in parts if part) + "\n"
