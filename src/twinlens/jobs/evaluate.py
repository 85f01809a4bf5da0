"""`twinlens evaluate`: how well a model does on pictures that it has not seen."""

from __future__ import annotations

from pathlib import Path

from twinlens.data.table import ImageTable
from twinlens.errors import ConfigError, DataError
from twinlens.jobs.measured import Measured, measure
from twinlens.jobs.outputs import check_place
from twinlens.jobs.pages import RunFacts, write_page
from twinlens.jobs.pictures import pictures_for
from twinlens.jobs.trials import run_trials
from twinlens.match.matcher import Matcher
from twinlens.progress import console_log

__all__ = ["evaluate"]


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
    """Measure a model: verification, retrieval and one-shot episodes, or a list of trials.

    Args:
        model: a model's folder or a run's.
        data: labelled pictures. With `trials`, only the folder that relative paths may lie in.
        split: which pictures: "train", "val", "test", "all", or "auto": the test pictures where
            the model was trained on this data or the data says which they are, else all.
        trials: a CSV file of given pairs (`a,b,same`) or of one-shot trials
            (`trial,probe,candidate,same`); only these are measured then.
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
        if trials is not None:
            raise ConfigError("--report is of the pictures in DATA: leave it out with --trials")
        check_place(report)
    with console_log(quiet):
        matcher = Matcher.load(model)
        if trials is not None:
            return Measured(trials=run_trials(matcher, Path(trials), _folder(data), seed=seed))
        assert data is not None
        chosen = pictures_for(matcher.bundle, data, wanted=split, prefer="test", root=root)
        measured = measure(
            matcher.bundle, matcher.calibration, chosen.table, chosen.pixels,
            split=chosen.split, identity_disjoint=chosen.identity_disjoint, pairs=pairs, way=way,
            shot=shot, episodes=episodes, seed=seed,
        )  # fmt: skip
        if report is not None:
            facts = RunFacts(
                title=matcher.path.resolve().parent.name,
                data=chosen.table.source,
                splits=[(chosen.split, len(chosen.table), len(chosen.table.identities()))],
                broken=[(b.path, b.reason) for b in chosen.broken],
            )
            write_page(Path(report), matcher.bundle, measured, facts)
        return measured


def _check_numbers(**numbers: tuple[int | None, int]) -> None:
    for name, (value, least) in numbers.items():
        if value is not None and value < least:
            raise ConfigError(f"{name} must be at least {least}, found {value}")


def _folder(data: str | Path | ImageTable | None) -> Path | None:
    """Where the pictures of trials may lie besides the list's own folder."""
    if data is None or isinstance(data, ImageTable):
        return None
    if not Path(data).is_dir():
        raise DataError(
            f"there is no folder '{data}': with --trials, DATA is the folder that the list's "
            "paths start from"
        )
    return Path(data)
