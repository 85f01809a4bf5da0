"""`twinlens inspect`: look at a data set before training on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from twinlens.commands.prepare import batches_of, choose, divide, in_words, spread
from twinlens.config import Settings
from twinlens.data.decode import open_picture
from twinlens.data.folders import read_table
from twinlens.data.inspection import Inspection, inspect_table
from twinlens.data.pixel_cache import decode_table
from twinlens.data.table import ImageTable
from twinlens.errors import DataError
from twinlens.files import check_output_file, writing_file
from twinlens.learn.auto import Choice, choose_levels
from twinlens.progress import Progress, console_log
from twinlens.recipes import load_recipe
from twinlens.report.montage import draw_montage

__all__ = ["Inspected", "inspect"]


@dataclass(frozen=True)
class Inspected:
    """What is in the data, and what a run would do with it.

    `problem` says why a run would refuse it, and then there are no settings.
    """

    inspection: Inspection
    settings: Settings | None
    choices: tuple[Choice, ...]
    problem: str | None

    def as_json(self) -> dict[str, Any]:
        """Plain data; see docs/json.md."""
        run: dict[str, Any] = {"problem": self.problem}
        if self.settings is not None:
            run["settings"] = self.settings.model_dump(mode="json")
            run["choices"] = [asdict(choice) for choice in self.choices]
        return self.inspection.as_json() | {"run": run}

    def as_text(self) -> str:
        """Lines to read."""
        lines = [self.inspection.as_text(), ""]
        if self.problem is not None:
            return "\n".join([*lines, f"A run would refuse this: {self.problem}"])
        lines.append("What a run would do with it:")
        lines += [in_words(choice) for choice in self.choices]
        return "\n".join(lines)


def inspect(
    data: str | Path | ImageTable,
    *,
    recipe: str = "auto",
    settings: Mapping[str, Any] | None = None,
    root: str | Path | None = None,
    montage: str | Path | None = None,
    quiet: bool = False,
) -> Inspected:
    """Report what is in the data, with the splits and settings that a run would choose.

    Args:
        data: a folder, a manifest, the name of a set, or a table (see docs/data.md).
        recipe: as for `train`.
        settings: what overrides the recipe, "section.key" -> value.
        root: where the copy of a named set lies.
        montage: where to draw sample pairs and triplets as training would take them.
        quiet: say only warnings.
    Raises:
        DataError: nothing there that can be looked at.
        ConfigError: wrong settings.
    """
    if montage is not None:
        check_output_file(montage)
    with console_log(quiet):
        loaded = load_recipe(recipe, settings)
        plain = loaded.settings()
        table = read_table(
            data, root=None if root is None else Path(root), forged_suffix=plain.data.forged_suffix
        )
        chosen, choices, problem = None, list[Choice](), None
        try:
            table = divide(table, plain)
            chosen, choices = choose(loaded, table)
        except DataError as error:
            problem = str(error)
        found = inspect_table(table, max_pixels=plain.data.max_pixels, progress=Progress("looking"))
        if chosen is not None:
            try:
                readable = _readable(table, found, chosen)
                chosen, levels = choose_levels(loaded, chosen, _sample(readable, chosen))
                choices += levels
            except DataError as error:
                problem, chosen, choices = str(error), None, []
        if montage is not None:
            if chosen is None:
                raise DataError(f"there are no pairs to draw: {problem}")
            _draw(table, chosen, montage)
        return Inspected(found, chosen, tuple(choices), problem)


def _readable(table: ImageTable, found: Inspection, settings: Settings) -> ImageTable:
    """The pictures that a run would use.

    Raises:
        DataError: too few can be read, as in `decode_table`.
    """
    num, allowed = len(found.broken), settings.data.max_broken
    if num > allowed * len(table):
        raise DataError(
            f"{num:,} of {len(table):,} pictures cannot be read, which is "
            f"{num / len(table):.1%} where at most {allowed:.1%} is allowed: repair or remove "
            "them, or raise data.max_broken to skip them"
        )
    broken = {picture.path for picture in found.broken}
    good = [row for row in range(len(table)) if table.relative(row) not in broken]
    readable = table.select(good)
    batches_of(readable, settings)
    return readable


def _sample(table: ImageTable, settings: Settings) -> NDArray[np.uint8]:
    """Pixels of the training pictures whose levels a run would measure."""
    training = table.of_split("train")
    few = training.select(spread(np.arange(len(training))))
    decoded = decode_table(
        few, settings.picture, max_pixels=settings.data.max_pixels, max_broken=1.0
    )
    return decoded.pixels


def _draw(table: ImageTable, settings: Settings, to: str | Path) -> None:
    batch = batches_of(table, settings).batch(0)
    training = table.of_split("train")
    picture = draw_montage(training, _opener(training, settings), batch)
    with writing_file(to) as part:
        picture.save(part)


def _opener(table: ImageTable, plain: Settings) -> Any:
    if table.pixels is not None:
        pixels = table.pixels
        return lambda row: Image.fromarray(pixels[row])
    return lambda row: open_picture(str(table.path[row]), max_pixels=plain.data.max_pixels)
