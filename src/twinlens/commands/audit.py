"""`twinlens audit`: labels that are probably wrong, with corrections to edit and apply."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from twinlens.commands.audit_distances import distances_across, distances_by_model
from twinlens.commands.selection import read_data
from twinlens.config import DataSettings
from twinlens.data.adapters import Data
from twinlens.data.corrections import (
    CorrectedTable,
    Finding,
    apply_corrections,
    read_findings,
    write_findings,
    write_manifest,
)
from twinlens.data.csv_file import write_csv
from twinlens.data.decode import open_picture
from twinlens.data.folders import is_folder, read_table
from twinlens.data.inspection import Inspection, inspect_table
from twinlens.data.table import ImageTable, require_identities
from twinlens.display import Result
from twinlens.errors import ConfigError, one_line
from twinlens.files import check_output_folder, creating_folder, expand_user
from twinlens.match.matcher import Matcher, Model
from twinlens.measure.bootstrap import check_seed
from twinlens.measure.identity_errors import Merge, Split, find_merges, find_splits
from twinlens.measure.label_errors import LabelErrors, collect_evidence, label_errors
from twinlens.progress import Progress, console_log
from twinlens.report.audit import AuditPage, write_audit_page
from twinlens.report.formatting import count_of

__all__ = ["AuditResult", "CorrectionResult", "audit"]

log = logging.getLogger("twinlens")

LEAST = 0.5  # probability of a finding
SURE = 0.9  # probability from which the action is a change
KINDS = (
    "wrong_label", "merge", "split", "contradiction", "exact_copy", "near_copy", "blank", "broken",
)  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class AuditResult(Result):
    """Findings of an audit.

    Attributes:
        out: folder with `audit.html` and `audit.csv`.
        source: data as the user named it.
        pictures: number of pictures, unreadable ones included.
        identities: number of identities.
        judged: number of pictures whose label was judged: genuine, and not the only one of its
            identity.
        share: estimated share of wrong labels among them.
        findings: rows of the CSV.
        notes: sentences on what limits the audit.
    """

    ROWS = "findings"

    out: Path
    source: str
    pictures: int
    identities: int
    judged: int
    share: float
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    def counts(self) -> dict[str, int]:
        """Number of findings of each kind; a split identity counts once."""
        subjects = {
            (one.finding, one.identity if one.finding == "split" else (one.identity, one.path))
            for one in self.findings
        }
        numbers = Counter(kind for kind, _ in subjects)
        return {kind: numbers[kind] for kind in KINDS}

    def as_json(self) -> dict[str, Any]:
        """Plain data; see docs/json.md."""
        return {
            "source": self.source,
            "pictures": self.pictures,
            "identities": self.identities,
            "judged": self.judged,
            "wrong_share": self.share,
            "counts": self.counts(),
            "findings": [
                vars(one) | {"score": float(one.score) if one.score else None}
                for one in self.findings
            ],
            "notes": list(self.notes),
            "page": str(self.out / "audit.html"),
            "list": str(self.out / "audit.csv"),
        }

    def as_text(self) -> str:
        """Lines to read."""
        counts = self.counts()
        names = {
            "wrong_label": "probably another's label", "merge": "one identity under two names",
            "split": "two identities under one name", "contradiction": "copies with another label",
            "exact_copy": "exact copies", "near_copy": "near copies", "blank": "show nothing",
            "broken": "cannot be read",
        }  # fmt: skip
        lines = [
            f"{self.source}: {count_of(self.pictures, 'picture')} of {self.identities:,} "
            f"identities, {self.judged:,} labels judged",
            *(f"  {counts[kind]:>6,}  {name}" for kind, name in names.items()),
        ]
        worst = [one for one in self.findings if one.finding == "wrong_label"][:5]
        lines += [
            f"  {one.path}: {one.identity}, probably {one.suggestion} ({one.score})"
            for one in worst
        ]
        lines += [f"note: {note}" for note in self.notes]
        lines.append(f"page: {self.out / 'audit.html'}")
        lines.append(f"edit the actions in {self.out / 'audit.csv'}, then give it with --apply")
        text = "\n".join(one_line(line, None) for line in lines)
        return text.encode("utf-8", "backslashreplace").decode("utf-8")


@dataclass(frozen=True, eq=False)
class CorrectionResult:
    """A corrected manifest.

    Attributes:
        out: folder with `manifest.csv` and `dropped.csv`.
        corrected: the corrected table.
    """

    out: Path
    corrected: CorrectedTable

    def as_json(self) -> dict[str, Any]:
        """Plain data; see docs/json.md."""
        return {
            "pictures": len(self.corrected.table),
            "identities": len(self.corrected.table.identities()),
            "relabelled": self.corrected.relabelled,
            "merged": self.corrected.merged,
            "dropped": len(self.corrected.dropped),
            "manifest": str(self.out / "manifest.csv"),
            "dropped_list": str(self.out / "dropped.csv"),
        }

    def as_text(self) -> str:
        """Lines to read."""
        values = self.as_json()
        return "\n".join([
            f"{values['manifest']}: {count_of(values['pictures'], 'picture')} of "
            f"{values['identities']:,} identities",
            f"  {values['relabelled']:,} relabelled, {values['merged']:,} identities merged, "
            f"{values['dropped']:,} left out (listed in {values['dropped_list']})",
        ])  # fmt: skip


def audit(
    data: Data,
    *,
    out: str | Path,
    model: Model | None = None,
    apply: str | Path | None = None,
    root: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    quiet: bool = False,
) -> AuditResult | CorrectionResult:
    """Find labels that are probably wrong; or apply corrections.

    Without a model, pictures are compared by features that need no training, with maps that were
    fitted to other identities, so no label has a part in its own judgement.

    Args:
        data: a folder, a manifest, the name of a set, or other data (see docs/data.md); all splits.
        out: new or empty folder. It receives `audit.html` and `audit.csv`; with `apply`,
            `manifest.csv` and `dropped.csv`.
        model: model whose embeddings are compared instead: its folder, a run, or a loaded model.
        apply: an `audit.csv` with edited actions: write the corrected manifest of DATA instead.
        root: folder of a named set's copy, or of a manifest's relative paths.
        seed: random seed of folds and of the errors that are made on purpose.
        device: device of the model's embeddings, as in `twinlens.load`.
        quiet: whether to log only warnings.
    Raises:
        ConfigError: both `model` and `apply`, or a negative seed.
        DataError: nothing to read, too few identities, `out` in use, or wrong corrections.
        MissingExtraError: without `model` and without torch.

    Example:
        >>> import twinlens
        >>> twinlens.audit("photos", out="audit").counts()["wrong_label"]  # doctest: +SKIP
        7
    """
    check_seed(seed)
    if model is not None and apply is not None:
        raise ConfigError("--apply corrects labels and compares nothing: leave out --model")
    with console_log(quiet):
        matcher = None if model is None else Matcher.of(model, device)
        table = (
            read_table(data, root=None if root is None else Path(root))
            if matcher is None
            else read_data(matcher, data, root)
        )
        folder = table.root if is_folder(data) else None
        place = check_output_folder(expand_user(out), "the audit", folder)
        if apply is not None:
            return _apply(table, expand_user(apply), place)
        return _audit(table, matcher, place, seed)


def _apply(table: ImageTable, file: Path, out: Path) -> CorrectionResult:
    corrected = apply_corrections(table, read_findings(file))
    with creating_folder(out, str(out.parent), "name another place") as folder:
        write_manifest(folder / "manifest.csv", corrected.table)
        write_csv(folder / "dropped.csv", ("path", "identity", "finding"), corrected.dropped)
    return CorrectionResult(out, corrected)


def _audit(table: ImageTable, matcher: Matcher | None, out: Path, seed: int) -> AuditResult:
    max_pixels = DataSettings().max_pixels if matcher is None else matcher.max_pixels
    inspection = inspect_table(table, max_pixels=max_pixels, progress=Progress("inspecting"))
    usable = _usable(table, inspection)
    part = table.select(usable)
    require_identities(part, minimum=3, purpose="an audit of labels")
    notes = list(_notes(table, part))
    if matcher is None:
        distances = distances_across(part, seed=seed)
    else:
        distances, note = distances_by_model(matcher, part)
        notes += [note] if note else []
    label, group = part.labels(), _groups(table, usable, inspection)
    evidence = collect_evidence(distances, label, group)
    errors = label_errors(evidence)
    merges = find_merges(distances, evidence, errors, label, group, seed=seed)
    splits = find_splits(distances, errors, label, group, seed=seed)
    findings = (
        *_wrong_labels(part, errors), *_merged(part, merges), *_divided(part, splits),
        *_copies(table, inspection), *_unusable(table, inspection),
    )  # fmt: skip
    result = AuditResult(
        out, table.source, len(table), len(table.identities()), int(evidence.judged.sum()),
        errors.share, findings, tuple(notes),
    )  # fmt: skip
    own_fit = np.nan_to_num(errors.scores(evidence)[:, 0], nan=-np.inf)
    page = AuditPage(
        table.source, result.as_json(), _opener(table, max_pixels), _typical(part, errors, own_fit)
    )
    with creating_folder(out, str(out.parent), "name another place") as folder:
        write_findings(folder / "audit.csv", findings)
        write_audit_page(folder / "audit.html", page)
    return result


def _usable(table: ImageTable, inspection: Inspection) -> NDArray[np.int64]:
    """Rows of genuine pictures that can be read and show something."""
    bad = {*inspection.blank, *(one.path for one in inspection.broken)}
    rows = [
        row for row in range(len(table)) if not table.forged[row] and table.relative(row) not in bad
    ]
    return np.array(rows, dtype=np.int64)


def _notes(table: ImageTable, part: ImageTable) -> Iterator[str]:
    forged = int(table.forged.sum())
    if forged:
        yield f"{count_of(forged, 'forgery')} were not judged: they imitate their identity."
    alone = int((np.bincount(part.labels()) == 1).sum())
    if alone:
        were = "label was" if alone == 1 else "labels were"
        yield f"{alone:,} {were} not judged: the identity has no other picture."


def _groups(
    table: ImageTable, usable: NDArray[np.int64], inspection: Inspection
) -> NDArray[np.int64]:
    """A number for each usable picture, the same for copies."""
    number = {table.relative(int(row)): place for place, row in enumerate(usable)}
    for group in (*inspection.exact.groups, *inspection.near.groups):
        members = [path for path in group if path in number]
        if members:
            least = min(number[path] for path in members)
            number |= dict.fromkeys(members, least)
    return np.array([number[table.relative(int(row))] for row in usable], dtype=np.int64)


def _typical(
    part: ImageTable, errors: LabelErrors, own_fit: NDArray[np.float64]
) -> dict[str, list[str]]:
    """Paths of each identity's pictures, those that fit it best first; suspicious ones are last."""
    order = np.lexsort((-own_fit, errors.wrong >= LEAST))
    typical: dict[str, list[str]] = {}
    for row in order.tolist():
        typical.setdefault(str(part.identity[row]), []).append(part.relative(row))
    return typical


def _opener(table: ImageTable, max_pixels: int) -> Callable[[str], Image.Image]:
    row_of = {table.relative(row): row for row in range(len(table))}

    def opened(path: str) -> Image.Image:
        return open_picture(table.picture(row_of[path]), max_pixels=max_pixels)

    return opened


# --- findings -----------------------------------------------------------------------------------


def _wrong_labels(part: ImageTable, errors: LabelErrors) -> Iterator[Finding]:
    names = part.identities()
    for row in np.argsort(-errors.wrong, kind="stable").tolist():
        score = float(errors.wrong[row])
        if score < LEAST:
            return
        yield Finding(
            "wrong_label", part.relative(row), str(part.identity[row]),
            names[errors.suggestion[row]], f"{score:.4f}",
            action="relabel" if score >= SURE else "keep",
        )  # fmt: skip


def _merged(part: ImageTable, merges: list[Merge]) -> Iterator[Finding]:
    """The smaller identity joins the larger one."""
    names, size = part.identities(), np.bincount(part.labels())
    taken = set[int]()
    for one in sorted(merges, key=lambda one: -one.probability):
        if one.probability < LEAST:
            return
        small, large = sorted((one.a, one.b), key=lambda c: (size[c], -c))
        sure = one.probability >= SURE and not taken & {small, large}
        taken |= {small, large}
        yield Finding(
            "merge", "", names[small], names[large], f"{one.probability:.4f}",
            action="merge" if sure else "keep",
        )  # fmt: skip


def _divided(part: ImageTable, splits: list[Split]) -> Iterator[Finding]:
    """A row for each picture of the smaller group, under a new name."""
    names = part.identities()
    for one in sorted(splits, key=lambda one: -one.probability):
        if one.probability < LEAST:
            return
        number = 2
        while f"{names[one.identity]} ({number})" in names:
            number += 1
        for row in one.rows.tolist():
            yield Finding(
                "split", part.relative(row), names[one.identity],
                f"{names[one.identity]} ({number})", f"{one.probability:.4f}",
            )  # fmt: skip


def _copies(table: ImageTable, inspection: Inspection) -> Iterator[Finding]:
    """Copies with another label, then all copies but the first of each group."""
    row_of = {table.relative(row): row for row in range(len(table))}
    blank, listed = set(inspection.blank), set[str]()
    for contradiction in inspection.contradictions:
        for path, identity in zip(contradiction.paths, contradiction.identities, strict=True):
            if path not in listed | blank:
                listed.add(path)
                first = contradiction.paths[0] if path != contradiction.paths[0] else ""
                yield Finding("contradiction", path, identity, copy_of=first)
    kinds = (("exact_copy", inspection.exact, "drop"), ("near_copy", inspection.near, "keep"))
    for kind, groups, action in kinds:
        for group in groups.groups:
            for path in group[1:]:
                if path not in listed | blank:
                    listed.add(path)
                    identity = str(table.identity[row_of[path]])
                    yield Finding(kind, path, identity, copy_of=group[0], action=action)


def _unusable(table: ImageTable, inspection: Inspection) -> Iterator[Finding]:
    identity = {table.relative(row): str(table.identity[row]) for row in range(len(table))}
    for path in inspection.blank:
        yield Finding("blank", path, identity[path], action="drop")
    for one in inspection.broken:
        yield Finding("broken", one.path, identity[one.path], action="drop")
