"""`twinlens evaluate`: how well a model does on pictures that it has not seen."""

from __future__ import annotations

import csv
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twinlens.commands.choose_pictures import (
    AgainstTraining,
    ChosenPictures,
    against_training,
    pictures_for,
    read_data,
)
from twinlens.commands.measure import measure, measure_nearest, measure_open_set
from twinlens.commands.trials import run_trials
from twinlens.data.table import ImageTable
from twinlens.errors import ConfigError, DataError, unknown_name
from twinlens.files import check_output_file, expand_user, writing_file
from twinlens.match.matcher import Matcher
from twinlens.measure.error_rates import matches
from twinlens.measure.evaluation_result import Measured
from twinlens.measure.fusion import check_rule
from twinlens.progress import console_log
from twinlens.report.build import RunFacts, write_page

__all__ = ["evaluate"]

log = logging.getLogger("twinlens")

PROTOCOLS = ("standard", "nearest", "open-set")
ANSWERS = ("path", "identity", "nearest_identity", "nearest_path", "distance", "match")


def evaluate(
    model: str | Path,
    data: str | Path | ImageTable | None = None,
    *,
    protocol: str = "standard",
    split: str = "auto",
    trials: str | Path | None = None,
    pairs: int | None = None,
    way: int | None = None,
    shot: int | None = None,
    episodes: int | None = None,
    rule: str | None = None,
    report: str | Path | None = None,
    answers: str | Path | None = None,
    root: str | Path | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> Measured:
    """Measure a model: verification, retrieval and one-shot episodes, and a list of trials.

    Or, by the protocol "nearest", look test pictures up among the training pictures of DATA: each
    gets the identity of its nearest one. That is for closed sets, whose test pictures show what
    training pictures show. Or, by "open-set", enrol half of the identities and ask about all: who
    is named rightly, and are the strangers turned away?

    Args:
        model: a model's folder or a run's.
        data: labelled pictures. With `trials` they may be left out, or be a folder without
            classes, which is then only where the list's relative paths may start from.
        protocol: "standard", "nearest" or "open-set".
        split: which pictures: "train", "val", "test", "all", or "auto": the test pictures where
            the model was trained on this data or the data says which they are, else all but the
            identities that the model was trained on. With "nearest": the test pictures, or those of
            another split, "train" meaning that each training picture finds itself.
        trials: a CSV file of given pairs (`a,b,same`) or of one-shot trials
            (`trial,probe,candidate,same`), either with a column `cluster` or without.
        pairs: how many genuine and as many impostor pairs; all, or a large sample, by default.
        way: identities in an episode, as far as there are so many; 20 by default.
        shot: pictures of each identity in an episode, or, with "open-set", templates of each
            enrolled identity; 1 by default.
        episodes: how many; 1000 by default.
        rule: with "open-set", how the templates of an identity are fused: "nearest" by default,
            "mean" or "vote".
        report: where to write a page to look at.
        answers: with "nearest", where to write what each picture was taken for: a CSV file of
            `path,identity,nearest_identity,nearest_path,distance,match`, the last 1 where the
            distance is within the calibrated threshold, else 0, and empty without a calibration.
        root: where the copy of a named set lies.
        seed: draws pairs, episodes and replicates.
        quiet: say only warnings.
    Raises:
        DataError: no pictures, or none that can be compared.
        ConfigError: neither data nor trials are given, an unknown protocol, or what belongs to
            the other one.
    """
    _check_numbers(pairs=(pairs, 1), way=(way, 2), shot=(shot, 1), episodes=(episodes, 1),
                   seed=(seed, 0))  # fmt: skip
    if protocol not in PROTOCOLS:
        raise ConfigError(unknown_name("protocol", protocol, PROTOCOLS))
    if protocol != "standard":
        more = {} if protocol == "open-set" else {"shot": shot}
        _check_alone(protocol, data, trials=trials, pairs=pairs, way=way, episodes=episodes, **more)
    if answers is not None and protocol != "nearest":
        raise ConfigError("--answers belongs to --protocol nearest")
    if rule is not None:
        if protocol != "open-set":
            raise ConfigError("--rule belongs to --protocol open-set")
        check_rule(rule)
    if trials is None and data is None:
        raise ConfigError("evaluate needs DATA, or --trials FILE.csv")
    if report is not None:
        if data is None:
            raise ConfigError("--report is of the pictures in DATA: name them, or leave it out")
        check_output_file(report)
    if answers is not None:
        check_output_file(answers)
    with console_log(quiet):
        matcher = Matcher.load(model)
        if protocol == "nearest":
            assert data is not None
            return _nearest(matcher, read_data(matcher.bundle, data, root), split=split, seed=seed,
                            report=report, answers=answers)  # fmt: skip
        if protocol == "open-set":
            assert data is not None
            return _open_set(
                matcher, read_data(matcher.bundle, data, root), split=split, seed=seed,
                shot=1 if shot is None else shot, rule="nearest" if rule is None else rule,
                report=report,
            )  # fmt: skip
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
            split=chosen.split, identity_disjoint=chosen.identity_disjoint, pairs=pairs, seed=seed,
            way=20 if way is None else way, shot=1 if shot is None else shot,
            episodes=1000 if episodes is None else episodes,
        )  # fmt: skip
        measured = replace(found, trials=measured.trials)
        if report is not None:
            everything = np.arange(len(chosen.table))
            _write_report(Path(report), matcher, measured, chosen, [(chosen.split, everything)])
        return measured


def _check_alone(protocol: str, data: object, **others: object) -> None:
    """Refuse what `protocol` cannot do."""
    if data is None:
        what = " with training and test pictures" if protocol == "nearest" else ""
        raise ConfigError(f"--protocol {protocol} needs DATA{what}")
    for name, given in others.items():
        if given is not None:
            where = "standard or open-set" if name == "shot" else "standard"
            raise ConfigError(f"--{name} belongs to --protocol {where}: leave it out here")


def _nearest(
    matcher: Matcher,
    table: ImageTable,
    *,
    split: str,
    seed: int,
    report: str | Path | None,
    answers: str | Path | None,
) -> Measured:
    chosen = against_training(matcher.bundle, table, wanted=split)
    measured = measure_nearest(matcher.bundle, chosen, seed=seed)
    if answers is not None:
        _write_answers(answers, matcher, measured)
    if report is not None:
        searched = ("gallery", chosen.gallery)
        asked = (chosen.split, chosen.probe)
        _write_report(Path(report), matcher, measured, chosen, [asked, searched])
    return measured


def _open_set(
    matcher: Matcher,
    table: ImageTable,
    *,
    split: str,
    shot: int,
    rule: str,
    seed: int,
    report: str | Path | None,
) -> Measured:
    chosen = pictures_for(matcher.bundle, table, wanted=split, prefer="test")
    measured = measure_open_set(
        matcher.bundle, matcher.calibration, chosen, shot=shot, rule=rule, seed=seed
    )
    if report is not None:
        genuine = np.flatnonzero(~chosen.table.forged)
        _write_report(Path(report), matcher, measured, chosen, [(chosen.split, genuine)])
    return measured


def _write_answers(path: str | Path, matcher: Matcher, measured: Measured) -> None:
    """A line for each probe, in the order of the table."""
    table, found = measured.table, measured.nearest
    assert table is not None
    assert found is not None
    assert measured.probe is not None
    assert measured.gallery is not None
    first, distance = measured.gallery[found.row[:, 0]], found.distance[:, 0]
    match = [""] * len(first)
    if matcher.calibration is not None:
        within = matches(distance.astype(np.float64), matcher.calibration.threshold)
        match = [str(int(is_match)) for is_match in within]
    # File names need not be UTF-8; those that are not are written escaped.
    with (
        writing_file(path) as part,
        part.open("w", encoding="utf-8", errors="backslashreplace", newline="") as stream,
    ):
        writer = csv.writer(stream)
        writer.writerow(ANSWERS)
        for a, b, far, word in zip(measured.probe, first, distance, match, strict=True):
            writer.writerow([table.relative(a), table.identity[a], table.identity[b],
                             table.relative(b), f"{far:.9g}", word])  # fmt: skip


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
        if refuse or isinstance(data, ImageTable) or not expand_user(data).is_dir():
            raise
        log.warning("only the trials are measured: %s", error)
        return None


def _place(data: str | Path | ImageTable | None, table: ImageTable | None) -> Path | None:
    """Where the pictures of trials may lie besides the list's own folder."""
    if table is not None:
        return table.root
    return None if data is None else expand_user(str(data))


def _write_report(
    path: Path,
    matcher: Matcher,
    measured: Measured,
    chosen: ChosenPictures | AgainstTraining,
    parts: list[tuple[str, NDArray[np.int64]]],
) -> None:
    """Write the page; `parts` are the table's rows under the names that the page gives them."""
    facts = RunFacts(
        title=matcher.path.resolve().parent.name,
        data=chosen.table.source,
        splits=[(name, len(rows), len(set(chosen.table.identity[rows]))) for name, rows in parts],
        broken=[(b.path, b.reason) for b in chosen.broken],
    )
    write_page(path, matcher.bundle, measured, facts)


def _check_numbers(**numbers: tuple[int | None, int]) -> None:
    for name, (value, least) in numbers.items():
        if value is not None and value < least:
            raise ConfigError(f"{name} must be at least {least}, found {value}")
