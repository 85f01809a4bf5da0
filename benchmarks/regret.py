"""`auto` beside simple baselines, a row for each data set: nothing simple may beat it.

`python -m benchmarks regret [--only NAME ...] [--columns NAME ...] [--budget S] [--divisions N]`
measures what is not kept yet in `build/benchmarks/regret`, prints the table of all that is kept,
and writes it to `benchmarks/REGRET.md`. Errors are means over the divisions. A baseline beats
`auto` where the 95 % interval of their paired difference, over test identities, excludes zero.
`auto` is `twinlens.train` with a time budget and no other word; its seconds are those of the call.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.regret_baselines import COLUMNS as SIMPLE
from benchmarks.regret_baselines import Pictures, embed_baseline
from benchmarks.regret_data import DATA_SETS, WEIGHTS, DataSet
from benchmarks.regret_errors import Errors, measure_errors
from benchmarks.table import KEPT, heading
from twinlens.files import writing_file
from twinlens.measure.bootstrap import interval

__all__ = ["Cell", "main", "measure", "table"]

PML, RECIPE, AUTO = "pytorch-metric-learning", "recipe", "auto"
COLUMNS = (*SIMPLE, PML, RECIPE, AUTO)
TIMED = (PML, RECIPE, AUTO)
PAGE = Path(__file__).with_name("REGRET.md")


@dataclass(frozen=True)
class Cell:
    """A column's errors on a data set, (V,) of V divisions each, and replicates (V, R)."""

    value: dict[str, NDArray[np.float64]]
    replicates: dict[str, NDArray[np.float64]]
    seconds: float
    variants: tuple[str, ...]

    def beats(self, other: Cell, error: str) -> bool:
        """Whether this error is lower by more than the interval of the difference."""
        _, high = interval((self.replicates[error] - other.replicates[error]).mean(axis=0))
        return high is not None and high < 0


def main(words: Sequence[str]) -> int:
    """Measure what is missing and show the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks regret", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=tuple(DATA_SETS), default=tuple(DATA_SETS))
    parser.add_argument("--columns", nargs="+", choices=COLUMNS, default=COLUMNS)
    parser.add_argument("--budget", type=int, help="seconds of each training")
    parser.add_argument("--divisions", type=int, help="random divisions of each data set")
    parser.add_argument("--anew", action="store_true", help="measure again what is kept")
    args = parser.parse_args(words)
    for name in args.only:
        data = DATA_SETS[name]
        budget = data.budget if args.budget is None else args.budget
        for division in range(data.divisions if args.divisions is None else args.divisions):
            measure(name, division, args.columns, budget, anew=args.anew)
    text = table(PAGE.read_text(encoding="utf-8") if PAGE.exists() else "")
    print(text)
    with writing_file(PAGE) as part:
        part.write_text(page(text), encoding="utf-8")
    return 0


def measure(
    name: str, division: int, columns: Sequence[str], budget: int, *, anew: bool = False
) -> None:
    """Measure the columns of a division that are not kept, and keep them."""
    data = DATA_SETS[name]
    missing = [
        column for column in columns
        if (column != RECIPE or data.recipe)
        and (anew or not is_kept(name, division, column, budget))
    ]  # fmt: skip
    if not missing:
        return
    pictures = Pictures(data.make(division), data.protocol)
    for column in missing:
        errors, seconds, variant = measure_column(pictures, data, column, budget)
        keep_cell(name, division, column, budget, errors, seconds, variant)
        shown = ", ".join(f"{key} {100 * value:.1f} %" for key, value in errors.value.items())
        print(f"{name} {division} | {column} | {shown} | {seconds:.0f} s | {variant}", flush=True)


def measure_column(
    pictures: Pictures, data: DataSet, column: str, budget: int
) -> tuple[Errors, float, str]:
    """Test errors, seconds until the features or the model are there, and the variant."""
    if column == AUTO:
        return trained(pictures, budget)
    if column == RECIPE:
        return trained(pictures, budget, data.recipe, data.settings)
    if column == PML:
        from benchmarks.regret_pml import embed_by_pml

        embedded = embed_by_pml(pictures, budget)
    else:
        embedded = embed_baseline(pictures, column)
    errors = measure_errors(pictures.protocol, pictures.table, embedded.emb)
    return errors, embedded.seconds, embedded.variant


def trained(
    pictures: Pictures, budget: int, recipe: str = "auto", settings: Any = None
) -> tuple[Errors, float, str]:
    """Train by twinlens and embed all pictures; seconds of the whole training call."""
    import twinlens

    os.environ["TWINLENS_WEIGHTS"] = str(WEIGHTS)
    chosen = Chosen()
    logging.getLogger("twinlens").addHandler(chosen)
    table = pictures.table
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        model = twinlens.train(
            table, out=Path(folder) / "run", recipe=recipe,
            settings={**(settings or {}), "train.time_budget": budget},
        )  # fmt: skip
        seconds = time.perf_counter() - started
        logging.getLogger("twinlens").removeHandler(chosen)
        emb = model.embed(list(table.path if table.pixels is None else table.pixels))
        errors = measure_errors(pictures.protocol, table, emb, model.comparison)
        return errors, seconds, chosen.variant or f"{recipe}, {model.settings.backbone}"


class Chosen(logging.Handler):
    """The candidates that a training chose, with their weights, from its log; "" before."""

    variant = ""

    def emit(self, record: logging.LogRecord) -> None:
        word, _, rest = record.getMessage().partition(": ")
        if word == "chosen":
            self.variant = rest


def cell_file(name: str, division: int, column: str) -> Path:
    return KEPT / "regret" / f"{name}.{division}.{column}.json"


def is_kept(name: str, division: int, column: str, budget: int) -> bool:
    """Whether a cell is kept, of the same budget if that matters."""
    file = cell_file(name, division, column)
    if not file.exists():
        return False
    return column not in TIMED or json.loads(file.read_text(encoding="utf-8"))["budget"] == budget


def keep_cell(
    name: str, division: int, column: str, budget: int, errors: Errors, seconds: float, variant: str
) -> None:
    file = cell_file(name, division, column)
    file.parent.mkdir(parents=True, exist_ok=True)
    kept = {
        "budget": budget, "seconds": seconds, "variant": variant, "value": errors.value,
        "date": time.strftime("%Y-%m-%d"), "machine": heading(),
        "replicates": {key: np.round(rows, 6).tolist() for key, rows in errors.replicates.items()},
    }  # fmt: skip
    with writing_file(file) as part:
        part.write_text(json.dumps(kept), encoding="utf-8")


def read_row(name: str) -> dict[str, Cell | None]:
    """Kept cells of a data set, of the divisions that all have; None where nothing is kept."""
    kept = {column: kept_divisions(name, column) for column in COLUMNS}
    num = min((len(one) for one in kept.values() if one), default=0)
    return {column: read_cell(one[:num]) if one else None for column, one in kept.items()}


def kept_divisions(name: str, column: str) -> list[dict[str, Any]]:
    kept = []
    while (file := cell_file(name, len(kept), column)).exists():
        kept.append(json.loads(file.read_text(encoding="utf-8")))
    return kept


def read_cell(kept: list[dict[str, Any]]) -> Cell:
    return Cell(
        {key: np.array([one["value"][key] for one in kept]) for key in kept[0]["value"]},
        {key: np.array([one["replicates"][key] for one in kept]) for key in kept[0]["value"]},
        float(np.mean([one["seconds"] for one in kept])),
        tuple(one["variant"] for one in kept),
    )


def table(before: str = "") -> str:
    """The table of all that is kept, errors in per cent, and seconds; other cells as before."""
    head = ["", *COLUMNS]
    rows = [head, ["---"] * len(head)]
    lines = [line.split("|")[1:-1] for line in before.splitlines() if line.startswith("|")]
    earlier = {label.strip(): [cell.strip() for cell in cells] for label, *cells in lines}
    for name in DATA_SETS:
        found = rows_of(name) or {row: [] for row in earlier if row.startswith(f"{name}: ")}
        for label, shown in found.items():
            pairs = zip_longest(shown, earlier.get(label, []), fillvalue="")
            rows.append([label, *(new or old for new, old in pairs)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def rows_of(name: str) -> dict[str, list[str]]:
    """The rows of a data set by their first cell; none if nothing is kept."""
    cells = read_row(name)
    kept = [cell for cell in cells.values() if cell is not None]
    if not kept:
        return {}
    rows = {
        f"{name}: {error}, %": [shown_error(cell, cells[AUTO], error) for cell in cells.values()]
        for error in kept[0].value
    }
    times = ["" if cell is None else f"{cell.seconds:.0f}" for cell in cells.values()]
    return rows | {f"{name}: seconds; divisions: {len(kept[0].variants)}": times}


def shown_error(cell: Cell | None, auto: Cell | None, error: str) -> str:
    """Mean over the divisions; bold with a sign if it beats `auto` by more than the interval."""
    if cell is None:
        return ""
    text = f"{100 * cell.value[error].mean():.1f}"
    if auto is None or cell is auto:
        return text
    return f"**{text} < auto**" if cell.beats(auto, error) else text


def page(text: str) -> str:
    return (
        "# Regret\n\nWritten by `python -m benchmarks regret`. Errors in per cent, lower is better;"
        " where a\nbaseline is below `auto` by more than the interval of the paired difference, the"
        " cell says so.\n\n"
        f"{text}\n\nLatest run: {heading()}. Cells that it did not measure are of earlier ones.\n"
    )
