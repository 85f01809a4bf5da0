"""`twinlens inspect`: a report on a data set before training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from twinlens.commands.training_table import choice_line, sample_rows, split_table, training_sampler
from twinlens.config import Settings
from twinlens.data.adapters import Data
from twinlens.data.decode import open_picture
from twinlens.data.folders import read_table
from twinlens.data.inspection import Inspection, inspect_table
from twinlens.data.pixel_cache import decode_table
from twinlens.data.table import ImageTable
from twinlens.display import Result
from twinlens.errors import DataError, MissingExtraError, message_lines, naming_extras
from twinlens.files import check_output_file, save_picture, writing_file
from twinlens.learn.records import Choice
from twinlens.progress import Progress, console_log
from twinlens.recipes import Recipe, load_recipe
from twinlens.report.montage import draw_montage

__all__ = ["InspectResult", "inspect"]


@dataclass(frozen=True, repr=False)
class InspectResult(Result):
    """A report on the data, and the settings of a training run on it.

    Attributes:
        inspection: the report.
        settings: settings of a run; None if it would fail.
        choices: settings chosen from the data, with reasons.
        problem: reason why a run would fail, such as a missing extra; None if it would not.
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
        """The report as lines of text."""
        lines = [self.inspection.as_text(), ""]
        if self.problem is not None:
            return "\n".join([*lines, f"Training would fail: {message_lines(self.problem)}"])
        lines.append("Settings of a training run:")
        lines += [choice_line(choice) for choice in self.choices]
        return "\n".join(lines)


def inspect(
    data: Data,
    *,
    recipe: str = "auto",
    settings: Mapping[str, Any] | None = None,
    root: str | Path | None = None,
    montage: str | Path | None = None,
    quiet: bool = False,
) -> InspectResult:
    """Report on a data set, with the splits and settings of a training run.

    Args:
        data: a folder, a manifest, the name of a set, or other data (see docs/data.md).
        recipe: name of a recipe, or path of a .toml file.
        settings: overrides of the recipe, "section.key" -> value.
        root: folder of a named set's local copy.
        montage: file for a picture of sample pairs and triplets of a training batch.
        quiet: log warnings only.
    Raises:
        DataError: nothing to read, or no pairs for `montage`.
        ConfigError: wrong settings.

    Example:
        >>> print(twinlens.inspect("photos/").as_text())  # doctest: +SKIP
    """
    if montage is not None:
        check_output_file(montage)
    with console_log(quiet):
        loaded = load_recipe(recipe, settings)
        plain = loaded.settings()
        table = read_table(
            data,
            root=None if root is None else Path(root),
            forged_suffix=plain.data.forged_suffix,
            identity_depth=plain.data.identity_depth,
        )
        chosen, choices, problem = None, list[Choice](), None
        try:
            table = split_table(table, plain)
            chosen, choices = _choose(loaded, table)
        except (DataError, MissingExtraError) as error:
            problem = str(error)
        inspection = inspect_table(
            table, max_pixels=plain.data.max_pixels, progress=Progress("inspecting")
        )
        if chosen is not None:
            from twinlens.learn.auto import choose_levels

            try:
                readable = _readable(table, inspection, chosen)
                chosen, levels = choose_levels(loaded, chosen, _sample(readable, chosen))
                choices += levels
            except DataError as error:
                problem, chosen, choices = str(error), None, []
        if montage is not None:
            if chosen is None:
                raise DataError(f"there are no pairs to draw: {problem}")
            _draw(table, chosen, montage)
        return InspectResult(inspection, chosen, tuple(choices), problem)


@naming_extras("training")
def _choose(recipe: Recipe, table: ImageTable) -> tuple[Settings, list[Choice]]:
    """The settings of a run, which need the networks of the extra `train`."""
    from twinlens.commands.prepare import choose_run_settings

    return choose_run_settings(recipe, table)


def _readable(table: ImageTable, inspection: Inspection, settings: Settings) -> ImageTable:
    """The readable pictures of a table.

    Raises:
        DataError: too many broken ones, as in `decode_table`.
    """
    num, limit = len(inspection.broken), settings.data.max_broken
    if num > limit * len(table):
        raise DataError(
            f"{num:,} of {len(table):,} pictures cannot be read "
            f"({100 * num / len(table):.1f} %, at most {100 * limit:.1f} % allowed): repair or "
            "remove them, or raise data.max_broken to skip them"
        )
    broken = {picture.path for picture in inspection.broken}
    good = [row for row in range(len(table)) if table.relative(row) not in broken]
    readable = table.select(good)
    training_sampler(readable, settings)
    return readable


def _sample(table: ImageTable, settings: Settings) -> NDArray[np.uint8]:
    """Pixels of a sample of the training pictures, for `picture.mean` and `picture.std`."""
    training = table.of_split("train")
    sample = training.select(sample_rows(np.arange(len(training))))
    decoded = decode_table(
        sample, settings.picture, max_pixels=settings.data.max_pixels, max_broken=1.0
    )
    return decoded.pixels


def _draw(table: ImageTable, settings: Settings, path: str | Path) -> None:
    batch = training_sampler(table, settings).batch(0)
    training = table.of_split("train")
    picture = draw_montage(training, _opener(training, settings), batch)
    with writing_file(path) as part:
        save_picture(picture, part)


def _opener(table: ImageTable, settings: Settings) -> Callable[[int], Image.Image]:
    return lambda row: open_picture(table.picture(row), max_pixels=settings.data.max_pixels)
