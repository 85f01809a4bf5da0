"""Corrections of answers: stored with the gallery, listed and undone.

- "is": the picture becomes a template of the identity, or moves there.
- "is-not": the picture is kept as a counterexample. The identity is no answer for a picture that
  is nearer to it than to the identity. A template of that identity is one no more.
- "same": two pictures of one identity, for the metric. If one of the two is a template, the other
  one becomes a template of the same identity.
- "different": if one of the two is a template, the other one is a counterexample of its identity.

Shapes: N pictures, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from twinlens.data.csv_file import path_of_cell, read_csv
from twinlens.errors import ConfigError, DataError, GalleryError, NotEnrolledError, PictureError
from twinlens.gallery import maintain
from twinlens.gallery.adapt import adapt
from twinlens.gallery.core import GalleryCore
from twinlens.gallery.corrections import (
    MAX_FEEDBACK,
    Correction,
    Feedback,
    Kind,
    StrayPicture,
    packed,
    unpacked,
    with_feedback,
    without,
)
from twinlens.gallery.enrol import Enrolment, make_rows
from twinlens.gallery.enrol_embeddings import rows_of_embeddings
from twinlens.gallery.feedback_results import CorrectionList, FeedbackResult, ListedCorrection
from twinlens.gallery.results import SkippedPicture
from twinlens.gallery.schema import quoted
from twinlens.gallery.settings import in_format
from twinlens.gallery.snapshot import vectors
from twinlens.gallery.sources import PictureFile, Source, check_identity

__all__ = ["correct", "correct_embeddings", "corrections", "requests_of", "undo"]

NO_FEEDBACK = Feedback(
    corrections=[], pictures={}, stale=True, metric=None, open_set=None, adaptation=None
)
COLUMNS: dict[str, Kind] = {
    "is": "is", "is_not": "is-not", "same_as": "same", "different_from": "different",
}  # fmt: skip

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Request:
    """A correction by its pictures: one file and an identity, or two files."""

    kind: Kind
    files: tuple[PictureFile, ...]
    identity: str | None = None


def requests_of(
    files: Sequence[PictureFile],
    is_: str | None,
    is_not: str | None,
    same: Sequence[PictureFile] | None,
    different: Sequence[PictureFile] | None,
    csv: str | Path | None,
) -> list[Request]:
    """The corrections that the arguments of `Gallery.feedback` describe.

    Raises:
        ConfigError: none or several kinds at once, or not two files for a pair.
        DataError: an unreadable CSV file.
    """
    given = [one for one in (is_, is_not, same, different, csv) if one is not None]
    if len(given) != 1:
        raise ConfigError(
            f"found {len(given)} kinds of corrections, but one is needed: PICTURE --is ID, PICTURE "
            "--is-not ID, --same A B, --different A B, or --csv FILE"
        )
    by_identity = is_ is not None or is_not is not None
    if by_identity != bool(files):
        raise ConfigError(
            "--is and --is-not need one picture or more, and nothing else takes PICTURE; found "
            f"{len(files)}"
        )
    if csv is not None:
        return read_requests(Path(csv))
    pair = same if same is not None else different
    if pair is not None:
        if isinstance(pair, str) or len(pair) != 2:
            raise ConfigError(f"a pair has two files, found {len(pair)}: give A and B")
        return [Request("different" if same is None else "same", tuple(pair))]
    kind: Kind = "is" if is_ is not None else "is-not"
    return [Request(kind, (file,), is_ if is_ is not None else is_not) for file in files]


def read_requests(file: Path) -> list[Request]:
    """Corrections from a CSV file: `picture`, and one of `is, is_not, same_as, different_from`.

    Raises:
        DataError: unreadable, other columns, or a row with none or several of the four.
    """

    def check(names: list[str]) -> None:
        unknown = sorted(set(names) - {"picture", *COLUMNS, ""})
        if "picture" not in names or unknown or not set(names) & set(COLUMNS):
            raise DataError(
                f"the corrections {file} need the column picture and one or more of "
                f"{', '.join(COLUMNS)}; found {', '.join(names) or 'nothing'}"
            )

    requests = []
    for line, cells in read_csv(file, "the corrections", check):
        given = [name for name in COLUMNS if cells.get(name, "").strip()]
        if not cells["picture"].strip() or len(given) != 1:
            raise DataError(
                f"the corrections {file} need in line {line} a picture and one of "
                f"{', '.join(COLUMNS)}; found {', '.join(given) or 'none'}"
            )
        picture = path_of_cell(file.parent, cells["picture"])
        kind, value = COLUMNS[given[0]], cells[given[0]]
        if kind in ("is", "is-not"):
            requests.append(Request(kind, (picture,), value))
        else:
            requests.append(Request(kind, (picture, path_of_cell(file.parent, value))))
    if not requests:
        raise DataError(f"the corrections {file} have no rows: give one for each correction")
    return requests


def correct(
    core: GalleryCore, requests: Sequence[Request], progress: Progress | None
) -> FeedbackResult:
    """Store corrections of picture files, and adapt; see `Gallery.feedback`."""
    maintain.finish(core)
    for identity in dict.fromkeys(one.identity for one in requests):
        if identity is not None:
            core.require(check_identity(identity))
    files = dict.fromkeys(file for one in requests for file in one.files)
    hash_of, skipped = _hashed(files)
    owners = core.owners(list(hash_of.values()))
    unknown = {name: file for file, name in hash_of.items() if name not in owners}
    rows = []
    if unknown:
        run = Enrolment(core, keep_thumbnails=False, min_quality=None)
        sources = [Source.of_file(file, "", {}) for file in unknown.values()]
        rows = list(run.rows(sources, progress))
        skipped += run.skipped
    pictures = {name: picture for part in rows for name, picture in _pictures(part).items()}
    entries = [
        _Entry(one.kind, tuple(hash_of[file] for file in one.files), one.identity)
        for one in requests
        if all(hash_of.get(file) in {*owners, *pictures} for file in one.files)
    ]
    return _store(core, entries, pictures, skipped)


def correct_embeddings(
    core: GalleryCore,
    emb_ND: NDArray[Any],
    kind: Sequence[str],
    identity: Sequence[str],
    fingerprint: str,
) -> FeedbackResult:
    """Store corrections of embeddings, and adapt; see `Gallery.feedback_embeddings`."""
    if not len(emb_ND) == len(kind) == len(identity):
        raise GalleryError(
            f"found {len(emb_ND)} embeddings, {len(kind)} kinds and {len(identity)} identities: "
            "give as many of each"
        )
    maintain.finish(core)
    for name in dict.fromkeys(identity):
        core.require(check_identity(name))
    rows = rows_of_embeddings(core, emb_ND, identity, fingerprint)
    entries = []
    for name, one, who in zip(rows["hash"].to_pylist(), kind, identity, strict=True):
        if one not in ("is", "is-not"):
            raise GalleryError(f"an embedding is corrected by 'is' or 'is-not', found {one!r}")
        entries.append(_Entry("is" if one == "is" else "is-not", (name,), who))
    return _store(core, entries, _pictures(rows), [])


def _hashed(files: Iterable[PictureFile]) -> tuple[dict[PictureFile, str], list[SkippedPicture]]:
    hash_of: dict[PictureFile, str] = {}
    skipped = []
    for file in files:
        source = Source.of_file(file, "", {})
        try:
            hash_of[file] = source.hash()
        except PictureError as error:
            skipped.append(SkippedPicture(source.path, error.reason))
    return hash_of, skipped


def _pictures(rows: pa.Table) -> dict[str, StrayPicture]:
    """Pictures by their hashes, from rows of a gallery's table."""
    columns = rows["hash"].to_pylist(), rows["path"].to_pylist(), vectors(rows["vector"])
    return {
        name: StrayPicture(path=path, vector=packed(vector_D))
        for name, path, vector_D in zip(*columns, strict=True)
    }


@dataclass(frozen=True)
class _Entry:
    """A correction by the hashes of its pictures."""

    kind: Kind
    pictures: tuple[str, ...]
    identity: str | None


@dataclass(frozen=True)
class _Change:
    """A correction and the identity that its (first) picture is enrolled as, None if it is not."""

    entry: _Entry
    before: str | None


def _store(
    core: GalleryCore,
    entries: Sequence[_Entry],
    pictures: Mapping[str, StrayPicture],
    skipped: list[SkippedPicture],
) -> FeedbackResult:
    """Store corrections, change the templates, and adapt.

    Args:
        core: the gallery.
        entries: the corrections.
        pictures: pictures of the corrections that are not enrolled, by hash.
        skipped: pictures that were left out; more are added.
    """
    changes = _changes(core, entries, skipped)
    num_new = _num_new(core, changes)
    _check_room(core, changes, pictures)
    enrolled = [one for one in changes if one.entry.kind == "is" and one.before is None]
    if enrolled:
        hashes = [one.entry.pictures[0] for one in enrolled]
        core.insert(
            make_rows(
                np.stack([unpacked(pictures[name].vector) for name in hashes]),
                [str(one.entry.identity) for one in enrolled],
                [pictures[name].path for name in hashes], hashes, [{}] * len(hashes),
            )
        )  # fmt: skip
    moved: dict[str, list[str]] = {}
    for one in changes:
        if one.entry.kind == "is" and one.before is not None:
            moved.setdefault(str(one.entry.identity), []).append(one.entry.pictures[0])
    for identity, hashes in moved.items():
        core.store.move(hashes, identity)
    dropped = [
        one.entry.pictures[0]
        for one in changes
        if one.entry.kind == "is-not" and one.before == one.entry.identity
    ]
    stray = dict(pictures)
    if dropped:
        where = f"hash IN ({', '.join(map(quoted, dropped))})"
        stray |= _pictures(core.store.find(where, columns=["hash", "path", "vector"]))
    for one in enrolled:  # Now templates.
        stray.pop(one.entry.pictures[0])
    _change_feedback(core, lambda old: _with(old, changes, stray))
    if dropped:
        core.store.delete(dropped)
    adapt(core)
    return FeedbackResult.of(core.state(), num_new=num_new, skipped=skipped)


def _changes(
    core: GalleryCore, entries: Sequence[_Entry], skipped: list[SkippedPicture]
) -> list[_Change]:
    """The corrections that change something; the others are added to `skipped`."""
    names = list(dict.fromkeys(name for entry in entries for name in entry.pictures))
    owners: dict[str, str | None] = dict(core.owners(names))
    changes: dict[_Entry, _Change] = {}
    for entry in entries:
        entry = _resolved(entry, owners)
        name, before = entry.pictures[0], owners.get(entry.pictures[0])
        if entry.kind == "is" and before == entry.identity:
            skipped.append(SkippedPicture(name, f"it is a template of {_short(before)} already"))
        elif len(entry.pictures) == 2 and before is not None and before == owners.get(
            entry.pictures[1]
        ):  # fmt: skip
            reason = f"both are templates of {_short(before)}"
            if entry.kind == "different":
                reason += ": say which of them is not"
            skipped.append(SkippedPicture(" and ".join(entry.pictures), reason))
        else:
            first = changes.get(entry)
            changes[entry] = _Change(entry, before) if first is None else first
            if entry.kind == "is":
                owners[name] = entry.identity
            elif entry.kind == "is-not" and before == entry.identity:
                owners[name] = None
    return list(changes.values())


def _num_new(core: GalleryCore, changes: Sequence[_Change]) -> int:
    """The number of changes that are no stored correction once more."""
    feedback = core.state().settings.feedback
    stored = () if feedback is None else feedback.corrections
    known = {(old.kind, frozenset(old.pictures), old.identity) for old in stored}
    num = 0
    for one in changes:
        entry = one.entry
        moves = entry.kind == "is" or (entry.kind == "is-not" and one.before == entry.identity)
        num += moves or (entry.kind, frozenset(entry.pictures), entry.identity) not in known
    return num


def _short(identity: str | None) -> str:
    return repr((identity or "")[:80])


def _resolved(entry: _Entry, owners: Mapping[str, str | None]) -> _Entry:
    """A pair with one template as a correction of the other picture."""
    if len(entry.pictures) == 1:
        return entry
    of = [owners.get(name) for name in entry.pictures]
    if (of[0] is None) == (of[1] is None):
        return entry
    other = entry.pictures[0 if of[0] is None else 1]
    kind: Kind = "is" if entry.kind == "same" else "is-not"
    return _Entry(kind, (other,), of[0] if of[0] is not None else of[1])


def _check_room(
    core: GalleryCore, changes: Sequence[_Change], pictures: Mapping[str, StrayPicture]
) -> None:
    """Refuse more embeddings of pictures that are no templates than the settings may hold."""
    feedback = core.state().settings.feedback
    stray = {} if feedback is None else dict(feedback.pictures)
    for one in changes:
        if one.entry.kind != "is":
            stray |= {name: pictures[name] for name in one.entry.pictures if name in pictures}
    size = sum(len(picture.vector) for picture in stray.values())
    if size > MAX_FEEDBACK:
        each = size // len(stray)
        raise GalleryError(
            f"found corrections of {len(stray)} pictures that are no templates; a gallery of "
            f"{core.dim} dimensions keeps {MAX_FEEDBACK // each}: enrol some of the pictures, or "
            "take corrections back with --undo"
        )


def _change_feedback(core: GalleryCore, change: Callable[[Feedback], Feedback]) -> None:
    """Store changed corrections, in one commit."""

    def changed(old: dict[str, Any]) -> dict[str, Any]:
        core.check_model(old["fingerprint"])
        stored = old.get("feedback")
        feedback = NO_FEEDBACK if stored is None else Feedback.model_validate(stored)
        return in_format(with_feedback(old, change(feedback)))

    core.store.change_settings(changed)


def _with(
    feedback: Feedback, changes: Sequence[_Change], stray: Mapping[str, StrayPicture]
) -> Feedback:
    """The corrections with more of them; a later one replaces what it contradicts."""
    time = datetime.now(UTC).isoformat(timespec="seconds")
    kept = list(feedback.corrections)
    for one in changes:
        entry = one.entry
        kept = [old for old in kept if not _replaces(entry, old)]
        number = max((old.number for old in kept), default=0) + 1
        kept.append(
            Correction(
                number=number, time=time, kind=entry.kind, pictures=list(entry.pictures),
                identity=entry.identity, before=one.before,
            )
        )  # fmt: skip
    pictures = feedback.pictures | {
        name: picture for name, picture in stray.items()
        if any(name in one.entry.pictures for one in changes)
    }  # fmt: skip
    # The fit in force stays until the next one.
    return feedback.model_copy(update={"corrections": kept, "pictures": pictures, "stale": True})


def _replaces(entry: _Entry, old: Correction) -> bool:
    if set(entry.pictures) != set(old.pictures):
        return False
    if len(entry.pictures) == 2:
        return True
    # A picture is of one identity, and may be not of several.
    return entry.kind == old.kind == "is" or entry.identity == old.identity


def corrections(core: GalleryCore) -> CorrectionList:
    """The stored corrections, with the paths of their pictures."""
    feedback = core.state().settings.feedback
    if feedback is None:
        return CorrectionList((), None)
    names = {name for one in feedback.corrections for name in one.pictures}
    where = f"hash IN ({', '.join(map(quoted, sorted(names)))})"
    rows = core.store.find(where, columns=["hash", "path"])
    path_of = dict(zip(rows["hash"].to_pylist(), rows["path"].to_pylist(), strict=True))
    path_of |= {name: picture.path for name, picture in feedback.pictures.items()}
    listed = tuple(
        ListedCorrection(
            one.number, one.kind, tuple(path_of.get(name, "") or name for name in one.pictures),
            one.identity, one.time,
        )
        for one in feedback.corrections
    )  # fmt: skip
    return CorrectionList(listed, feedback.adaptation)


def undo(core: GalleryCore, number: int) -> FeedbackResult:
    """Take a correction back, and erase what it stored; see `Gallery.undo_feedback`."""
    feedback = core.state().settings.feedback
    numbers = {} if feedback is None else {one.number: one for one in feedback.corrections}
    if feedback is None or number not in numbers:
        known = f"1 to {max(numbers)}" if numbers else "none"
        raise NotEnrolledError(
            f"there is no correction {number} (numbers: {known}): see `twinlens gallery feedback "
            f"{core.place} --list`"
        )
    one = numbers[number]
    name, picture = one.pictures[0], feedback.pictures.get(one.pictures[0])
    if one.kind == "is-not" and one.before == one.identity and picture is not None:
        emb_1D = unpacked(picture.vector)[None]
        core.insert(make_rows(emb_1D, [str(one.identity)], [picture.path], [name], [{}]))
    elif one.kind == "is" and one.before is not None:
        core.store.move([name], one.before)

    def removed(old: Feedback) -> Feedback:
        kept = [other for other in old.corrections if other.number != number]
        return without(old.model_copy(update={"corrections": kept}))

    _change_feedback(core, removed)
    deleted = [name] if one.kind == "is" and one.before is None else []
    core.store.delete(deleted)  # Counts the embedding of a correction too.
    adapt(core)
    maintain.finish(core)
    return FeedbackResult.of(core.state(), num_undone=1)
