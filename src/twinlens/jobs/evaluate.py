"""`twinlens evaluate`: how well a model does on pictures that it has not seen."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from twinlens.data.table import ImageTable
from twinlens.errors import ConfigError, DataError
from twinlens.jobs.measured import Measured, measure
from twinlens.jobs.outputs import check_place
from twinlens.jobs.pages import RunFacts, write_page
from twinlens.jobs.pictures import ChosenPictures, pictures_for, read_data
from twinlens.jobs.trials import run_trials
from twinlens.match.matcher import Matcher
from twinlens.progress import console_log

__all__ = ["evaluate"]

log = logging.getLogger("twinlens")


def evaluate(
    model: str | Path,
    data: str | Path | ImageTable | None = None,
    *,
    split: str = "auto",
    trials: str | Path | None = None,
    pairs: int | None = None,
    way: int = 20,
    shot: int = 1,
    episodes: int = 1000,
    report: str | Path | None = None,
    root: str | Path | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> Measured:
    """Measure a model: verification, retrieval and one-shot episodes, and a list of trials.

    Args:
        model: a model's folder or a run's.
        data: labelled pictures. With `trials` they may be left out, or be a folder without
            classes, which is then only where the list's relative paths may start from.
        split: which pictures: "train", "val", "test", "all", or "auto": the test pictures where
            the model was trained on this data or the data says which they are, else all but the
            identities that the model was trained on.
        trials: a CSV file of given pairs (`a,b,same`) or of one-shot trials
            (`trial,probe,candidate,same`), either with a column `cluster` or without.
        pairs: how many genuine and as many impostor pairs; all, or a large sample, by default.
        way: identities in an episode, as far as there are so many.
        shot: pictures of each identity in an episode.
        episodes: how many.
        report: where to write a page to look at.
        root: where the copy of a named set lies.
        seed: draws pairs, episodes and replicates.
        quiet: say only warnings.
    Raises:
        DataError: no pictures, or none that can be compared.
        ConfigError: neither data nor trials are given.
    """
    _check_numbers(pairs=(pairs, 1), way=(way, 2), shot=(shot, 1), episodes=(episodes, 1),
                   seed=(seed, 0))  # fmt: skip
    if trials is None and data is None:
        raise ConfigError("evaluate needs DATA, or --trials FILE.csv")
    if report is not None:
        if data is None:
            raise ConfigError("--report is of the pictures in DATA: name them, or leave it out")
        check_place(report)
    with console_log(quiet):
        matcher = Matcher.load(model)
        table = None if data is None else _read(matcher, data, root, refuse=trials is None)
        if table is None and report is not None:
            raise DataError(f"{data} has no classes that a report could be of: leave out --report")
        measured = Measured()
        if trials is not None:
            place = _place(data, table)
            measured = Measured(trials=run_trials(matcher, Path(trials), place, seed=seed))
        if table is None:
            return measured
        chosen = pictures_for(matcher.bundle, table, wanted=split, prefer="test")
        found = measure(
            matcher.bundle, matcher.calibration, chosen.table, chosen.pixels,
            split=chosen.split, identity_disjoint=chosen.identity_disjoint, pairs=pairs, way=way,
            shot=shot, episodes=episodes, seed=seed,
        )  # fmt: skip
        measured = replace(found, trials=measured.trials)
        if report is not None:
            _write_report(Path(report), matcher, measured, chosen)
        return measured


def _read(
    matcher: Matcher,
    data: str | Path | ImageTable,
    root: str | Path | None,
    *,
    refuse: bool,
) -> ImageTable | None:
    """The pictures to measure on; None for a folder that only holds the pictures of trials."""
    try:
        return read_data(matcher.bundle, data, root)
    except DataError as error:
        if refuse or isinstance(data, ImageTable) or not Path(data).expanduser().is_dir():
            raise
        log.warning("only the trials are measured: %s", error)
        return None


def _place(data: str | Path | ImageTable | None, table: ImageTable | None) -> Path | None:
    """Where the pictures of trials may lie besides the list's own folder."""
    if table is not None:
        return table.root
    return None if data is None else Path(str(data)).expanduser()


def _write_report(path: Path, matcher: Matcher, measured: Measured, chosen: ChosenPictures) -> None:
    facts = RunFacts(
        title=matcher.path.resolve().parent.name,
        data=chosen.table.source,
        splits=[(chosen.split, len(chosen.table), len(chosen.table.identities()))],
        broken=[(b.path, b.reason) for b in chosen.broken],
    )
    write_page(path, matcher.bundle, measured, facts)


def _check_numbers(**numbers: tuple[int | None, int]) -> None:
    for name, (value, least) in numbers.items():
        if value is not None and value < least:
            raise ConfigError(f"{name} must be at least {least}, found {value}")
