"""`twinlens inspect`: look at a data set before training on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from twinlens.config import Settings, load_recipe
from twinlens.data.batches import make_sampler
from twinlens.data.decode import open_picture
from twinlens.data.inspection import Inspection, inspect_table, survey
from twinlens.data.montage import draw_montage
from twinlens.data.sources import read_table
from twinlens.data.splits import assign_splits, is_identity_disjoint
from twinlens.data.table import ImageTable, require_identities
from twinlens.errors import DataError
from twinlens.jobs.outputs import check_place, whole_file
from twinlens.learn.auto import Choice, choose_settings
from twinlens.progress import Progress, console_log

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
        lines += [f"  {c.key} = {_plain(c.value)}: {c.why}" for c in self.choices]
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
        check_place(montage)
    with console_log(quiet):
        loaded = load_recipe(recipe, settings)
        plain = loaded.settings()
        table = read_table(
            data, root=None if root is None else Path(root), forged_suffix=plain.data.forged_suffix
        )
        chosen, choices, problem = None, list[Choice](), None
        try:
            table = _split(table, plain)
            training = table.of_split("train")
            statistics = survey(training, max_pixels=plain.data.max_pixels)
            chosen, choices = choose_settings(
                loaded, statistics, closed=not is_identity_disjoint(table)
            )
            sampler = make_sampler(training.labels(), training.forged, chosen.sampler, chosen.seed)
        except DataError as error:
            problem, chosen = str(error), None
        found = inspect_table(table, max_pixels=plain.data.max_pixels, progress=Progress("looking"))
        if montage is not None:
            if chosen is None:
                raise DataError(f"there are no pairs to draw: {problem}")
            picture = draw_montage(training, _opener(training, plain), sampler.batch(0))
            with whole_file(montage) as part:
                picture.save(part)
        return Inspected(found, chosen, tuple(choices), problem)


def _split(table: ImageTable, plain: Settings) -> ImageTable:
    require_identities(table, least=2, what="training")
    table = assign_splits(
        table, mode=plain.data.split, fractions=plain.data.fractions, seed=plain.seed
    )
    require_identities(table.of_split("train"), least=2, what="training")
    return table


def _opener(table: ImageTable, plain: Settings) -> Any:
    if table.pixels is not None:
        pixels = table.pixels
        return lambda row: Image.fromarray(pixels[row])
    return lambda row: open_picture(str(table.path[row]), max_pixels=plain.data.max_pixels)


def _plain(value: Any) -> str:
    return " x ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
