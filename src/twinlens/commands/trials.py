"""Trials from a CSV file: pairs, or one-shot trials with several candidates."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from twinlens.commands.training_overlap import known_pictures
from twinlens.data.columns import as_groups
from twinlens.data.csv_file import path_of_cell, read_csv
from twinlens.data.pixel_cache import decode_table
from twinlens.data.table import ImageTable
from twinlens.errors import DataError, one_line
from twinlens.match.matcher import Matcher
from twinlens.measure.groups import GroupsResult, trial_group_rates
from twinlens.measure.pairs import PairSet, pair_distances
from twinlens.measure.trials import (
    OneShotTrialsResult,
    PairTrialsResult,
    one_shot_trials,
    pair_trials,
)
from twinlens.model.training_record import find_record
from twinlens.progress import Progress

__all__ = ["run_trials"]

log = logging.getLogger("twinlens")

PAIR_COLUMNS = ("a", "b", "same")
ONE_SHOT_COLUMNS = ("trial", "probe", "candidate", "same")
CLUSTER = "cluster"
TRUE, FALSE = ("1", "true", "yes", "same"), ("0", "false", "no", "different")


def run_trials(
    matcher: Matcher,
    file: Path,
    folder: Path | None,
    *,
    prior: float = 0.5,
    by: Sequence[str] = (),
    seed: int,
) -> tuple[PairTrialsResult | OneShotTrialsResult, dict[str, GroupsResult]]:
    """Evaluate a model on the trials of a CSV file.

    Args:
        matcher: the model.
        file: columns `a,b,same`, or `trial,probe,candidate,same`; `same` is 1 or 0. With a column
            `cluster` the bootstrap draws these clusters instead of trials. A relative path starts
            from the file's folder, then `folder`, then the working directory.
        folder: further folder of the pictures.
        prior: prior probability of a genuine pair, for the reliability of pairs.
        by: columns to group pairs by; those that the file lacks are left out.
        seed: random seed for the bootstrap.
    Returns:
        The results, and those by column.
    Raises:
        DataError: wrong columns, an unknown value of `same`, no trials, or unreadable pictures.
    """
    rows, columns = _read(file)
    first, second = (columns[-3], columns[-2])
    paths_2N = [[_find(row[name], file, folder) for row in rows] for name in (first, second)]
    distinct = sorted(set(paths_2N[0]) | set(paths_2N[1]))
    place = {path: index for index, path in enumerate(distinct)}
    emb_ND = _embed(matcher, distinct, file)
    a, b = (np.array([place[path] for path in paths]) for paths in paths_2N)
    same = np.array([row["same"].strip().lower() in TRUE for row in rows])
    distance = pair_distances(emb_ND, PairSet(a, b, same), matcher.comparison)
    cluster = np.array([row[CLUSTER] for row in rows]) if CLUSTER in rows[0] else None
    if columns == PAIR_COLUMNS:
        calibrated = matcher.calibration
        result = pair_trials(
            distance, same, calibrated=calibrated, prior=prior, cluster=cluster, seed=seed
        )
        columns_of = {name: [row[name] for row in rows] for name in by if name in rows[0]}
        groups = {
            name: trial_group_rates(
                distance, same, as_groups(values, name),
                calibrated=calibrated, cluster=cluster, seed=seed,
            )
            for name, values in columns_of.items()
        }  # fmt: skip
        return result, groups
    trial = np.array([row["trial"] for row in rows])
    return one_shot_trials(trial, distance, same, cluster=cluster, seed=seed), {}


def _read(file: Path) -> tuple[list[dict[str, str]], tuple[str, ...]]:
    def check_columns(names: list[str]) -> None:
        if names and all(name.isdecimal() for name in names):
            raise DataError(
                f"{file} begins with numbers, as pairs.txt of LFW does, which is not read: write "
                f"the line {','.join(PAIR_COLUMNS)}, then one for each pair, such as "
                "NAME/NAME_0001.jpg,NAME/NAME_0002.jpg,1"
            )
        if not any(set(columns) <= set(names) for columns in (ONE_SHOT_COLUMNS, PAIR_COLUMNS)):
            raise DataError(
                f"{file} has the columns {one_line(', '.join(names)) or '(none)'}; trials need "
                f"{','.join(PAIR_COLUMNS)} or {','.join(ONE_SHOT_COLUMNS)}"
            )

    lines = list(read_csv(file, "the trials", check_columns))
    if not lines:
        raise DataError(f"{file} holds no trials: it needs a line for each pair")
    header = lines[0][1]
    columns = ONE_SHOT_COLUMNS if set(ONE_SHOT_COLUMNS) <= set(header) else PAIR_COLUMNS
    needed = (*columns, CLUSTER) if CLUSTER in header else columns
    for number, row in lines:
        if any(not row[name].strip() for name in needed):
            raise DataError(f"{file} line {number}: {', '.join(needed)} are all needed")
        if row["same"].strip().lower() not in TRUE + FALSE:
            raise DataError(
                f"{file} line {number}: same is 1 or 0, found '{one_line(row['same'])}'"
            )
    return [row for _, row in lines], columns


def _find(name: str, file: Path, folder: Path | None) -> str:
    for base in (file.parent, *([folder] if folder is not None else []), Path()):
        path = path_of_cell(base, name)
        if path.is_file():
            return str(path)
    return str(file.parent / name)


def _embed(matcher: Matcher, paths: list[str], file: Path) -> np.ndarray:
    settings = matcher.data_settings
    unknown = np.full(len(paths), "", dtype=object)
    table = ImageTable(
        np.array(paths, dtype=object), unknown, np.zeros(len(paths), dtype=bool), unknown,
        source=str(file), root=file.parent,
    )  # fmt: skip
    decoded = decode_table(
        table,
        matcher.picture,
        max_pixels=settings.max_pixels,
        max_broken=1.0,
        progress=Progress("reading"),
    )
    if decoded.broken:
        named = "; ".join(f"{b.path}: {b.reason}" for b in decoded.broken[:5])
        raise DataError(
            f"{len(decoded.broken)} of the {len(paths)} pictures in {file} cannot be read "
            f"({named}): repair them, or remove their trials"
        )
    record = find_record(matcher.path, matcher.origin)
    overlap = known_pictures(matcher, record, decoded.table, decoded.pixels).overlap("train")
    if overlap.picture.any():
        log.warning(
            "the model was trained on %d of the %d pictures in %s: expect worse figures for new "
            "pictures (%s)",
            overlap.picture.sum(), len(paths), file, overlap.reasons(),
        )  # fmt: skip
    emb_ND = matcher.embed_pixels(decoded.pixels, progress=Progress("embedding"))
    domain = matcher.summarize_domain(emb_ND, decoded.pixels)
    if domain is not None and not domain.in_domain:
        log.warning("%s: %s", file, domain.as_text())
    return emb_ND
