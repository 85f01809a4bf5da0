"""Corrections of labels: a CSV of findings with an action each, and the manifest that follows.

A person edits the column `action`. Pictures are never touched: a correction writes another manifest
and lists what it leaves out.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from twinlens.data.csv_file import read_csv, write_csv
from twinlens.data.table import ImageTable
from twinlens.errors import DataError, one_line

__all__ = ["ACTIONS", "CorrectedTable", "Finding", "apply_corrections", "read_findings",
           "write_findings", "write_manifest"]  # fmt: skip

ACTIONS = ("keep", "relabel", "merge", "drop")
MAX_PROBLEMS = 10


@dataclass(frozen=True)
class Finding:
    """A row of the CSV.

    Attributes:
        finding: kind, such as "wrong_label".
        path: the picture; "" for a whole identity.
        identity: its present label.
        suggestion: identity for the actions "relabel" and "merge"; else "".
        score: probability, as text; "" without one.
        copy_of: the picture that it copies, or "".
        action: "keep", "relabel" the picture as the suggestion, "merge" the identity into the
            suggestion, or "drop" the picture.
    """

    finding: str
    path: str
    identity: str
    suggestion: str = ""
    score: str = ""
    copy_of: str = ""
    action: str = "keep"


COLUMNS = tuple(field.name for field in fields(Finding))
NEEDED = ("path", "identity", "suggestion", "action")


@dataclass(frozen=True, eq=False)
class CorrectedTable:
    """A table after its corrections.

    Attributes:
        table: the pictures that remain, with their new identities.
        relabelled: number of pictures whose identity changed by themselves.
        merged: number of identities that joined another one.
        dropped: (path, identity, finding) of each picture that is left out.
    """

    table: ImageTable
    relabelled: int
    merged: int
    dropped: tuple[tuple[str, str, str], ...]


def write_findings(file: Path, findings: Iterable[Finding]) -> None:
    """Write the CSV."""
    write_csv(file, COLUMNS, map(astuple, findings))


def read_findings(file: Path) -> list[Finding]:
    """Read an edited CSV; an empty action is "keep".

    Raises:
        DataError: unreadable, missing columns, or invalid rows; the first ten are reported.
    """
    findings, problems = list[Finding](), list[str]()
    for line, cells in read_csv(file, "the findings", lambda names: _require_columns(names, file)):
        row = {name: cells.get(name, "") for name in COLUMNS}
        row["action"] = row["action"].strip().lower() or "keep"
        one = Finding(**row)
        problems += [f"line {line}: {problem}" for problem in _problems(one)]
        findings.append(one)
    _raise(f"the findings {file} have", problems)
    return findings


def _require_columns(names: Sequence[str], file: Path) -> None:
    missing = [name for name in NEEDED if name not in names]
    if missing:
        raise DataError(
            f"the findings {file} have no column {' and no column '.join(missing)}: give the "
            "audit.csv of `twinlens audit`, with the actions edited"
        )


def _problems(one: Finding) -> list[str]:
    if one.action not in ACTIONS:
        return [f"action is {', '.join(ACTIONS)} or empty, found '{one_line(one.action)}'"]
    if one.action in ("relabel", "merge") and not one.suggestion.strip():
        return [f"{one.action} needs an identity in the column suggestion"]
    if one.action in ("relabel", "drop") and not one.path:
        return [f"{one.action} needs a picture in the column path; merge is for identities"]
    if one.action == "merge" and not one.identity:
        return ["merge needs a name in the column identity"]
    return []


def apply_corrections(table: ImageTable, findings: Sequence[Finding]) -> CorrectedTable:
    """Apply the actions: drop and relabel pictures, then merge identities.

    Args:
        table: the pictures that were audited.
        findings: with their actions.
    Raises:
        DataError: pictures or identities that are not those of the table, or contradicting actions.
    """
    rows = {table.relative(row): row for row in range(len(table))}
    names = {str(name) for name in table.identities()}
    drop, relabel, merge = dict[int, str](), dict[int, str](), dict[str, str]()
    problems = list[str]()
    for one in findings:
        if one.action == "keep":
            continue
        row = rows.get(one.path, -1)
        if one.action != "merge" and (row < 0 or table.identity[row] != one.identity):
            problems.append(f"'{one_line(one.path)}' of {one_line(one.identity)} is not in it")
        elif one.action == "merge" and one.identity not in names:
            problems.append(f"there is no identity {one_line(one.identity)}")
        elif one.action == "drop":
            drop[row] = one.finding
        else:
            chosen: dict[Any, str] = merge if one.action == "merge" else relabel
            key: Any = one.identity if one.action == "merge" else row
            if chosen.setdefault(key, one.suggestion.strip()) != one.suggestion.strip():
                subject = one_line(one.identity if one.action == "merge" else one.path)
                problems.append(
                    f"{subject} would become {one_line(chosen[key])} and {one_line(one.suggestion)}"
                )
    _raise(f"the findings do not fit {table.source}:", problems)
    identity = table.identity.copy()
    for row, name in relabel.items():
        identity[row] = name
    final = {name: _end(name, merge) for name in merge}
    identity = np.array([final.get(name, name) for name in identity], dtype=object)
    kept = np.array([row for row in range(len(table)) if row not in drop], dtype=np.int64)
    if not len(kept):
        raise DataError(f"the findings drop all pictures of {table.source}: keep some")
    corrected = ImageTable(
        table.path, identity, table.forged, table.split, table.source, table.root, table.pixels,
        table.metadata,
    ).select(kept)  # fmt: skip
    dropped = tuple(
        (table.relative(row), str(table.identity[row]), drop[row]) for row in sorted(drop)
    )
    relabelled = sum(row not in drop for row in relabel)
    return CorrectedTable(corrected, relabelled, len(merge), dropped)


def _end(name: str, merge: Mapping[str, str]) -> str:
    """The identity at the end of a chain of merges.

    Raises:
        DataError: the chain is a circle.
    """
    seen = [name]
    while (name := merge.get(name, "")) and name not in seen:
        seen.append(name)
    if name:
        chain = " -> ".join(map(one_line, [*seen, name]))
        raise DataError(f"identities are merged in a circle: {chain}; keep one of them")
    return seen[-1]


def _raise(subject: str, problems: Sequence[str]) -> None:
    if problems:
        more = len(problems) - MAX_PROBLEMS
        shown = [*problems[:MAX_PROBLEMS], *([f"and {more} more"] if more > 0 else [])]
        raise DataError(f"{subject} invalid rows:\n  " + "\n  ".join(shown))


def write_manifest(file: Path, table: ImageTable) -> None:
    """Write a table of files as a CSV manifest, with absolute paths and all metadata.

    Raises:
        DataError: pictures in memory, which no manifest can name, or a path that is not UTF-8.
    """
    if table.pixels is not None:
        raise DataError(f"{table.source} has no files, so a manifest cannot name them: write them "
                        "to a folder first")  # fmt: skip
    others: list[Mapping[str, Any]] = (
        [{}] * len(table) if table.metadata is None else list(table.metadata)
    )
    names = list(Counter(name for values in others for name in values))
    rows = []
    for row in range(len(table)):
        path = os.path.abspath(table.path[row])  # noqa: PTH100 (links stay)
        try:
            path.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"the name of {one_line(path)} is not UTF-8, so a manifest cannot hold it: rename "
                "the file"
            ) from error
        role = "forged" if table.forged[row] else ""
        more = [others[row].get(name, "") for name in names]
        rows.append((path, table.identity[row], role, table.split[row], *more))
    write_csv(file, ("path", "identity", "role", "split", *names), rows)
