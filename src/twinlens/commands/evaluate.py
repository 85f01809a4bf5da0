"""`twinlens evaluate`: error rates of a model on pictures that it was not trained on."""

from __future__ import annotations

import logging
from collections.abc import Container, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twinlens.commands.protocols import evaluate_nearest, evaluate_open_set, evaluate_standard
from twinlens.commands.selection import (
    ProbeGallerySelection,
    Selection,
    read_data,
    select_pictures,
    select_probes_and_gallery,
)
from twinlens.commands.trials import run_trials
from twinlens.data.adapters import Data
from twinlens.data.columns import as_groups, column_names, read_column
from twinlens.data.csv_file import write_csv
from twinlens.data.folders import is_folder
from twinlens.data.pair_list import pairs_in
from twinlens.data.table import ImageTable, require_identities
from twinlens.errors import ConfigError, DataError, one_line, unknown_name
from twinlens.files import check_output_file, expand_user, writing_file
from twinlens.match.matcher import Matcher, Model
from twinlens.measure.error_rates import matches
from twinlens.measure.evaluation_result import (
    EvaluationResult,
    NearestNeighbourEvaluation,
    OpenSetEvaluation,
    TrialEvaluation,
)
from twinlens.measure.fusion import check_rule
from twinlens.measure.groups import GroupsResult
from twinlens.measure.probability import check_prior
from twinlens.measure.trials import OneShotTrialsResult, PairTrialsResult
from twinlens.progress import console_log
from twinlens.report.build import ReportFacts, write_model_report

__all__ = ["evaluate"]

log = logging.getLogger("twinlens")

PROTOCOLS = ("standard", "nearest", "open-set")
# Protocols that an option belongs to, if not to all.
PROTOCOLS_OF = {
    "trials": ("standard",),
    "by": ("standard",),
    "group_thresholds": ("standard",),
    "prior": ("standard",),
    "pairs": ("standard",),
    "way": ("standard",),
    "shot": ("standard", "open-set"),
    "episodes": ("standard",),
    "answers": ("nearest",),
    "rule": ("open-set",),
}
ANSWERS = ("path", "identity", "nearest_identity", "nearest_path", "distance", "match")
Evaluation = EvaluationResult | TrialEvaluation | NearestNeighbourEvaluation | OpenSetEvaluation


def evaluate(
    model: Model,
    data: Data | None = None,
    *,
    protocol: str = "standard",
    split: str = "auto",
    trials: Data | None = None,
    pairs: int | None = None,
    way: int | None = None,
    shot: int | None = None,
    episodes: int | None = None,
    rule: str | None = None,
    prior: float | None = None,
    by: str | Sequence[str] | None = None,
    group_thresholds: bool = False,
    report: str | Path | None = None,
    answers: str | Path | None = None,
    root: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    quiet: bool = False,
) -> Evaluation:
    """Evaluate a model on pictures that it was not trained on.

    The protocol "standard" measures verification, retrieval and one-shot accuracy, and given
    trials if any. "nearest" is for closed sets: each test picture gets the identity of the nearest
    training picture. "open-set" enrols half of the identities; the other half are strangers, which
    must be rejected.

    Args:
        model: folder of a model or of a run, or a loaded model.
        data: labelled pictures (see docs/data.md), or pairs, which are `trials` then. Optional with
            `trials`; then it may be a folder without classes, the base of relative paths.
        protocol: "standard", "nearest" or "open-set".
        split: "train", "val", "test", "all", or "auto": the test pictures if the model was trained
            on this data or the data names its splits, else all but the identities that the model
            was trained on. With "nearest", the split of the probes; each picture of "train" then
            finds itself.
        trials: CSV file of pairs (`a,b,same`) or of one-shot trials
            (`trial,probe,candidate,same`), with or without a column `cluster`; or pairs as a data
            frame or a list.
        pairs: number of genuine and of impostor pairs; by default all, or a large sample.
        way: identities in an episode, at most; 20 by default.
        shot: pictures of each identity in an episode, or templates of each enrolled identity with
            "open-set"; 1 by default.
        episodes: number of episodes; 1000 by default.
        rule: fusion of an identity's templates with "open-set": "nearest" (default), "mean" or
            "vote".
        prior: prior probability of a genuine pair, for the calibration error of probabilities; 0.5,
            even odds, by default.
        by: column or columns to group by: metadata of a manifest, "folder" (the folder above that
            of the picture), or further columns of a list of pairs. Each group gets its error rates.
        group_thresholds: whether to show a threshold for each group too. The model keeps its own,
            since the group of a new pair may be unknown, or two.
        report: HTML file for a report.
        answers: CSV file for the answers of "nearest":
            `path,identity,nearest_identity,nearest_path,distance,match`; `match` is 1 at or below
            the calibrated threshold, else 0, and empty without a calibration.
        root: folder of a named set's local copy.
        seed: random seed for pairs, episodes and bootstrap.
        device: device of the embeddings, as in `twinlens.load`.
        quiet: log warnings only.
    Returns:
        The results of the protocol; `as_text()` and `as_json()` show them.
    Raises:
        DataError: no pictures, or none that can be compared.
        ConfigError: neither data nor trials, an unknown protocol, or an option of another one.

    Example:
        >>> result = twinlens.evaluate("runs/photos", "photos/")  # doctest: +SKIP
        >>> result.verification.eer.value  # doctest: +SKIP
        0.021
    """
    _check_numbers(pairs=(pairs, 1), way=(way, 2), shot=(shot, 1), episodes=(episodes, 1),
                   seed=(seed, 0))  # fmt: skip
    if trials is None and protocol == "standard" and (given := pairs_in(data, root)) is not None:
        if split != "auto":
            raise ConfigError(f"pairs have no splits: leave out --on {split}")
        data, trials = None, given
    _check_protocol(protocol, data, trials=trials, pairs=pairs, way=way, shot=shot,
                    episodes=episodes, answers=answers, rule=rule, prior=prior, by=by,
                    group_thresholds=group_thresholds or None)  # fmt: skip
    columns = [by] if isinstance(by, str) else list(by or ())
    if group_thresholds and (data is None or not columns):
        raise ConfigError("--group-thresholds belongs to --by COLUMN and DATA: give both")
    prior = 0.5 if prior is None else prior
    check_prior(prior)
    if rule is not None:
        check_rule(rule)
    if report is not None and data is None:
        raise ConfigError("--report shows the pictures of DATA: give DATA, or leave out --report")
    for file in (report, answers):
        if file is not None:
            check_output_file(file)
    with console_log(quiet):
        matcher = Matcher.of(model, device)
        table = None if data is None else _read(matcher, data, root, trials_only=trials is not None)
        if table is None and report is not None:
            raise DataError(f"{data} has no classes, which a report needs: leave out --report")
        trial_scores: PairTrialsResult | OneShotTrialsResult | None = None
        trial_groups: dict[str, GroupsResult] = {}
        if trials is not None:
            trial_scores, trial_groups = run_trials(
                matcher, trials, _folder(data, table), prior=prior, by=columns, seed=seed
            )
        if table is None:
            assert trial_scores is not None
            name = str(trials) if isinstance(trials, str | Path) else "the list of pairs"
            _check_columns(columns, trial_groups, name)
            return TrialEvaluation(trial_scores, trial_groups)
        of_pictures = [
            name for name in columns if name not in trial_groups or name in column_names(table)
        ]
        for name in of_pictures:  # Before the pictures are decoded.
            as_groups(read_column(table, name), name)
        if protocol == "nearest":
            return _nearest(matcher, table, split, seed, answers, report)
        selection = select_pictures(matcher, table, split=split, prefer="test")
        _require_impostors(selection)
        shot = 1 if shot is None else shot
        result: EvaluationResult | OpenSetEvaluation
        if protocol == "open-set":
            result = evaluate_open_set(
                matcher, selection, shot=shot,
                rule="nearest" if rule is None else rule, seed=seed,
            )  # fmt: skip
            rows = np.flatnonzero(~selection.table.forged)
        else:
            scores = evaluate_standard(
                matcher, selection, pairs=pairs, shot=shot,
                way=20 if way is None else way, episodes=1000 if episodes is None else episodes,
                prior=prior, by=of_pictures, group_thresholds=group_thresholds, seed=seed,
            )  # fmt: skip
            result = replace(scores, trials=trial_scores, trial_groups=trial_groups)
            rows = np.arange(len(selection.table))
        if report is not None:
            _write_report(report, matcher, result, selection, [(selection.split, rows)])
        return result


def _check_protocol(protocol: str, data: object, **options: object) -> None:
    """Refuse an unknown protocol, options of another one, and missing pictures."""
    if protocol not in PROTOCOLS:
        raise ConfigError(unknown_name("protocol", protocol, PROTOCOLS))
    for name, value in options.items():
        if value is not None and protocol not in PROTOCOLS_OF[name]:
            protocols = " or ".join(PROTOCOLS_OF[name])
            raise ConfigError(
                f"--{name.replace('_', '-')} belongs to --protocol {protocols}: leave it out here"
            )
    if data is None and protocol != "standard":
        pictures = " with training and test pictures" if protocol == "nearest" else ""
        raise ConfigError(f"--protocol {protocol} needs DATA{pictures}")
    if data is None and options["trials"] is None:
        raise ConfigError("evaluate needs DATA, or --trials FILE.csv")


def _check_columns(columns: Sequence[str], groups: Container[str], file: str) -> None:
    """Refuse columns that a list of trials lacks.

    Raises:
        DataError: names the first one.
    """
    for name in columns:
        if name not in groups:
            raise DataError(
                f"{file} has no column '{one_line(name)}' to group pairs by: add it, or leave out "
                "--by"
            )


def _check_numbers(**numbers: tuple[int | None, int]) -> None:
    for name, (value, minimum) in numbers.items():
        if value is not None and value < minimum:
            raise ConfigError(f"{name} must be at least {minimum}, found {value}")


def _read(
    matcher: Matcher,
    data: str | Path | ImageTable,
    root: str | Path | None,
    *,
    trials_only: bool,
) -> ImageTable | None:
    """The labelled pictures; None for a folder without classes, if `trials_only` is allowed."""
    try:
        return read_data(matcher, data, root)
    except DataError as error:
        if not trials_only or not is_folder(data):
            raise
        log.warning("only the trials are measured: %s", error)
        return None


def _folder(data: str | Path | ImageTable | None, table: ImageTable | None) -> Path | None:
    """The folder that paths of trials may start from, besides the list's own."""
    if table is not None:
        return table.root
    return None if data is None else expand_user(str(data))


def _require_impostors(selection: Selection) -> None:
    """Check that pictures of an identity can be compared with those of another."""
    table = selection.table
    names = table.identities()
    if table.forged.any():
        return
    if len(names) == 1 and names != [""] and selection.split != "all":
        raise DataError(
            f"the pictures to evaluate on ({selection.split}) are all of {names[0]!r}: add some "
            'of others, or take all with --on all (split="all"), on which the error rates are too '
            "low if the model was trained on them"
        )
    require_identities(table, purpose="evaluation")


def _nearest(
    matcher: Matcher,
    table: ImageTable,
    split: str,
    seed: int,
    answers: str | Path | None,
    report: str | Path | None,
) -> NearestNeighbourEvaluation:
    selection = select_probes_and_gallery(matcher, table, split=split)
    result = evaluate_nearest(matcher, selection, seed=seed)
    if answers is not None:
        _write_answers(answers, matcher, result)
    if report is not None:
        parts = [(selection.split, selection.probe), ("gallery", selection.gallery)]
        _write_report(report, matcher, result, selection, parts)
    return result


def _write_answers(path: str | Path, matcher: Matcher, result: NearestNeighbourEvaluation) -> None:
    """Write a line for each probe, in the order of the table."""
    table = result.table
    nearest, distances = result.gallery[result.nearest.row[:, 0]], result.nearest.distance[:, 0]
    match = [""] * len(nearest)
    if matcher.calibration is not None:
        within = matches(distances.astype(np.float64), matcher.calibration.threshold)
        match = [str(int(is_match)) for is_match in within]
    rows = (
        [table.relative(a), table.identity[a], table.identity[b], table.relative(b),
         f"{distance:.9g}", text]
        for a, b, distance, text in zip(result.probe, nearest, distances, match, strict=True)
    )  # fmt: skip
    with writing_file(path) as part:
        write_csv(part, ANSWERS, rows)


def _write_report(
    path: str | Path,
    matcher: Matcher,
    result: EvaluationResult | NearestNeighbourEvaluation | OpenSetEvaluation,
    selection: Selection | ProbeGallerySelection,
    parts: list[tuple[str, NDArray[np.int64]]],
) -> None:
    """Write the report; `parts` are rows of the table, with a name for each."""
    table = selection.table
    facts = ReportFacts(
        title=matcher.path.resolve().parent.name,
        data=table.source,
        splits=[(name, len(rows), len(set(table.identity[rows]))) for name, rows in parts],
        broken=[(broken.path, broken.reason) for broken in selection.broken],
        findings=selection.notes,
    )
    write_model_report(Path(path), matcher, result, facts)
