"""Sharded galleries (see `shards`): the methods that differ, creation, and joining galleries."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from twinlens.errors import GalleryError
from twinlens.gallery import index, maintain
from twinlens.gallery.core import GalleryCore
from twinlens.gallery.enrol import enrol_pictures
from twinlens.gallery.info import GalleryInfo, describe
from twinlens.gallery.location import (
    check_free,
    galleries_inside,
    gallery_errors,
    is_taken,
    normalized,
)
from twinlens.gallery.results import EnrolResult, EraseReceipt, OptimizeResult
from twinlens.gallery.schema import quoted
from twinlens.gallery.settings import Shards, in_format, model_files, new_settings, read_settings
from twinlens.gallery.shards import ShardedCore, ShardedStore, check_same_model
from twinlens.gallery.sources import check_identity, text
from twinlens.gallery.store import Store, name_taken
from twinlens.gallery.templates import require_templates

if TYPE_CHECKING:
    from twinlens.match.matcher import Matcher

__all__ = ["ShardedMethods", "create_sharded", "join", "open_sharded"]

MAX_SHARDS = 1024


Progress = Callable[[int, int], None]


class ShardedMethods:
    """Methods of `gallery.ShardedGallery` that take the place of those of `Gallery`."""

    core: ShardedCore

    @property
    def parts(self) -> tuple[GalleryCore, ...]:
        """The open galleries that it consists of."""
        return self.core.parts

    def info(self) -> GalleryInfo:
        """The gallery in numbers, of all parts together."""
        parts = [describe(part) for part in self.parts]
        kinds = {part.search for part in parts}
        return replace(
            describe(self.core),
            search=next(kind for kind in ("scan", "index", "exact") if kind in kinds),
            partitions=sum(part.partitions for part in parts),
            nprobes=sum(part.nprobes or 0 for part in parts) or None,
            recall=min((part.recall for part in parts if part.recall is not None), default=None),
            num_unindexed=sum(part.num_unindexed for part in parts),
            num_deletions=sum(part.num_deletions for part in parts),
            num_parts=len(parts),
        )

    def _enrol(self, *args: Any) -> EnrolResult:
        for part in self.parts:
            maintain.finish(part)
        return enrol_pictures(self.core, *args)

    def erase(self, identity: str) -> EraseReceipt:
        """As `Gallery.erase`, in every part that has the identity."""
        where, receipts = f"identity = {quoted(text(identity))}", []
        for part in self.parts:
            if part.store.count(where):
                receipts.append(maintain.erase(part, identity))
            else:
                maintain.finish(part)  # The bytes of an erasure that was killed.
        if not receipts:
            self.core.require(identity)
            return self.erase(identity)  # Enrolled since.
        return replace(self._sum(receipts), num_identities=1)

    def erase_templates(self, hashes: Sequence[str]) -> EraseReceipt:
        """As `Gallery.erase_templates`."""
        require_templates(self.core, hashes)
        own = [(part, list(part.owners(hashes))) for part in self.parts]
        return self._sum([maintain.erase_templates(part, names) for part, names in own if names])

    def _sum(self, receipts: Sequence[EraseReceipt]) -> EraseReceipt:
        names = ("num_identities", "num_templates", "num_thumbnails", "num_versions", "num_bytes",
                 "seconds")  # fmt: skip
        sums = {name: sum(getattr(receipt, name) for receipt in receipts) for name in names}
        return replace(receipts[-1], **sums, num_left=self.core.store.count())

    def delete(self) -> None:
        """As `Gallery.delete`, with all parts."""
        with contextlib.ExitStack() as stack:
            for part in self.parts:
                stack.enter_context(part.store.table.writing(single=False))
            self.core.store.destroy()

    def rename(self, old: str, new: str, *, merge: bool = False) -> int:
        """As `Gallery.rename`; the templates stay in their part."""
        old, new = text(old), check_identity(new)
        self.core.require(old)
        if not merge and old != new and (num := self.core.store.count(f"identity = {quoted(new)}")):
            raise name_taken(new, num)
        where = f"identity = {quoted(old)}"
        having = [part for part in self.parts if part.store.count(where)]
        return sum(maintain.rename(part, old, new, merge) for part in having)

    def optimize(
        self,
        *,
        partitions: int | None = None,
        target_recall: float = 0.95,
        progress: Progress | None = None,
    ) -> OptimizeResult:
        """As `Gallery.optimize`, part by part; the figures are of all parts together."""
        start, results = time.monotonic(), []
        for number, part in enumerate(self.parts):
            results.append(index.optimize(part, partitions, target_recall, None))
            if progress is not None:
                progress(number + 1, len(self.parts))
        kinds = {result.search for result in results}
        return OptimizeResult(
            sum(result.num_templates for result in results),
            next(kind for kind in ("scan", "index", "exact") if kind in kinds),
            sum(result.partitions for result in results),
            sum(result.nprobes or 0 for result in results) or None,
            min(result.recall for result in results),
            index.median_time(self.core),
            sum(result.num_versions for result in results),
            sum(result.num_bytes for result in results),
            time.monotonic() - start,
        )  # fmt: skip

    def needs_index(self) -> bool:
        """Whether searching a part has become slow."""
        return any(index.needs_index(part) for part in self.parts)

    def feedback(self, *args: Any, **values: Any) -> NoReturn:
        """Refused: corrections belong to a part."""
        self._only_parts("corrected")

    feedback_embeddings = undo_feedback = corrections = feedback

    def export(self, path: str | Path) -> NoReturn:
        """Refused: parts are exported by themselves."""
        self._only_parts("exported")

    def rebuild(self, *args: Any, **values: Any) -> NoReturn:
        """Refused: parts are rebuilt by themselves, and joined again."""
        self._only_parts("rebuilt with another model")

    def _only_parts(self, done: str) -> NoReturn:
        raise GalleryError(
            f"a sharded gallery is not {done} as a whole: name one of its {len(self.parts)} parts, "
            f"such as {self.parts[0].place}"
        )


def open_sharded(store: Store, device: str, threads: int | None, as_is: bool) -> ShardedCore:
    """Open a sharded gallery, and its parts.

    Raises:
        GalleryError: a part is missing or damaged, or belongs to another model.
    """
    shards = read_settings(store.place, store.settings()).shards
    assert shards is not None
    whole = ShardedStore(store.place, store.table.options, shards)
    return ShardedCore(whole, device, threads, as_is=as_is)


def create_sharded(
    place: str | Path,
    model: Matcher,
    num: int,
    options: Mapping[str, str] | None,
    device: str,
) -> ShardedCore:
    """Create empty parts, and the gallery of them; see `Gallery.create`."""
    if not 1 <= num <= MAX_SHARDS:
        raise GalleryError(f"shards must be 1 to {MAX_SHARDS}, found {num}")
    base = normalized(place)
    names = [f"shard-{number:04d}" for number in range(num)]
    dim = model.settings.embedding
    with model_files(model) as files, gallery_errors(f"cannot create the gallery {place}"):
        check_free(base, files, options, names)
        for name in names:
            if not is_taken(f"{base}/{name}", files, options):  # By a creation that was killed.
                Store.create(f"{base}/{name}", dim, new_settings(model), files, options=options)
    return _create(base, model, Shards(names=names, by="hash"), options, device)


def join(place: str | Path, options: Mapping[str, str] | None, device: str) -> ShardedCore:
    """Join the galleries inside a folder or bucket; see `Gallery.join`."""
    base = normalized(place)
    names = galleries_inside(base, options)
    if not names:
        raise GalleryError(
            f"there are no galleries inside {place}: create some there, such as with `twinlens "
            f"gallery create {place}/north --model MODEL`"
        )
    parts = [GalleryCore(Store.open(f"{base}/{name}", options=options), device) for name in names]
    for part in parts:
        check_same_model(parts[0], part)
    shards = Shards(names=names, by="tenant")
    try:
        store = Store.open(base, options=options)
    except GalleryError:
        return _create(base, parts[0].matcher, shards, options, device)

    def joined(old: dict[str, Any]) -> dict[str, Any]:
        by = old.get("shards", {}).get("by")
        if by is None or old["fingerprint"] != parts[0].fingerprint:
            raise GalleryError(f"{place} is a gallery of its own: name a folder of galleries")
        return in_format(old | {"shards": shards.model_copy(update={"by": by}).model_dump()})

    store.change_settings(joined)
    return open_sharded(store, device, None, False)


def _create(
    base: str, model: Matcher, shards: Shards, options: Mapping[str, str] | None, device: str
) -> ShardedCore:
    """The gallery of parts that exist."""
    settings = in_format(new_settings(model) | {"shards": shards.model_dump()})
    with model_files(model) as files:
        store = Store.create(
            base, model.settings.embedding, settings, files, options=options, parts=shards.names
        )
    return open_sharded(store, device, None, False)
