"""`audit.html`: suspicious pictures beside typical ones of their identity and of the suggested one.

The page uses the report's style sheet, and is one file that loads nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image

from twinlens.errors import PictureError
from twinlens.report.embedding_map import thumbnail_uri
from twinlens.report.formatting import count_of, percent
from twinlens.report.templates import page_template, style_sheet

__all__ = ["AuditPage", "render_audit_page", "write_audit_page"]

MOST_EACH = 60  # findings of a kind
MOST_COPIES = 24
EACH_SIDE = 4  # typical pictures
SIDE = 112  # pixels of a picture on the page


@dataclass(frozen=True, eq=False)
class AuditPage:
    """Contents of the page.

    Attributes:
        source: name of the data as the user gave it.
        result: `AuditResult.as_json()`.
        opened: callable from a path to its picture.
        typical: paths of each identity, the most typical first.
    """

    source: str
    result: Mapping[str, Any]
    opened: Callable[[str], Image.Image]
    typical: Mapping[str, Sequence[str]]


def write_audit_page(file: Path, page: AuditPage) -> None:
    """Write the page."""
    file.write_text(render_audit_page(page), encoding="utf-8", errors="backslashreplace")


def render_audit_page(page: AuditPage) -> str:
    """Render the page as HTML; user text is escaped."""
    of_kind: dict[str, list[Any]] = {kind: [] for kind in page.result["counts"]}
    for one in page.result["findings"]:
        of_kind[one["finding"]].append(one)
    return page_template("audit.html.j2").render(
        page=page,
        style=style_sheet(),
        lead=_lead(page.result),
        key=list(_key_numbers(page.result)),
        wrong=[_wrong(page, one) for one in of_kind["wrong_label"][:MOST_EACH]],
        merges=[_merge(page, one) for one in of_kind["merge"][:MOST_EACH]],
        splits=list(_splits(page, of_kind["split"])),
        copies=list(_copies(page, of_kind)),
        unusable=[_tile(page, one["path"], one["identity"])
                  for one in [*of_kind["blank"], *of_kind["broken"]][:MOST_COPIES]],
        most=MOST_EACH,
    )  # fmt: skip


def _lead(result: Mapping[str, Any]) -> str:
    return (
        f"{count_of(result['judged'], 'label')} of {count_of(result['pictures'], 'picture')} were "
        f"compared with all others; about {percent(result['wrong_share'])} of them are wrong, by "
        "estimate. Every finding is a row of audit.csv beside this page, with an action to edit."
    )


def _key_numbers(result: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    counts = result["counts"]
    copies = counts["exact_copy"] + counts["near_copy"] + counts["contradiction"]
    for name, value, note in (
        ("Wrong labels", counts["wrong_label"], "probably another identity's"),
        ("Under two names", counts["merge"], "pairs of identities"),
        ("Two under one", counts["split"], "identities"),
        ("Copies", copies, f"{counts['contradiction']:,} with another label"),
        ("Show nothing", counts["blank"] + counts["broken"], f"{counts['broken']:,} unreadable"),
    ):
        yield {"name": name, "value": f"{value:,}", "note": note}


def _wrong(page: AuditPage, one: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **one,
        "score": percent(one["score"]),
        "picture": _tile(page, one["path"], one["identity"]),
        "sides": [
            _side(page, "Labelled", one["identity"], one["path"]),
            _side(page, "Probably", one["suggestion"], one["path"]),
        ],
    }


def _merge(page: AuditPage, one: Mapping[str, Any]) -> dict[str, Any]:
    sides = [_side(page, "", name, "") for name in (one["identity"], one["suggestion"])]
    return {**one, "score": percent(one["score"]), "sides": sides}


def _splits(page: AuditPage, findings: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for number, (identity, rows) in enumerate(groupby(findings, lambda one: one["identity"])):
        if number == MOST_EACH:
            return
        group = list(rows)
        second = [one["path"] for one in group]
        first = [path for path in page.typical[identity] if path not in set(second)]
        yield {
            "identity": identity,
            "suggestion": group[0]["suggestion"],
            "score": percent(group[0]["score"]),
            "sides": [
                {"title": title, "name": name, "size": len(paths),
                 "pictures": [_tile(page, path, "") for path in paths[: 2 * EACH_SIDE]]}
                for title, name, paths in (
                    ("", identity, first), ("", group[0]["suggestion"], second)
                )
            ],
        }  # fmt: skip


def _copies(page: AuditPage, of_kind: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    titles = {"contradiction": "Copies with another label", "exact_copy": "Exact copies",
              "near_copy": "Near copies"}  # fmt: skip
    for kind, title in titles.items():
        some = [one for one in of_kind[kind] if one["copy_of"]][:MOST_COPIES]
        if some:
            pairs = [
                [_tile(page, path, "") for path in (one["copy_of"], one["path"])] for one in some
            ]
            yield {"title": title, "pairs": pairs, "num": len(of_kind[kind])}


def _side(page: AuditPage, title: str, name: str, without: str) -> dict[str, Any]:
    paths = [path for path in page.typical.get(name, ()) if path != without]
    pictures = [_tile(page, path, "") for path in paths[:EACH_SIDE]]
    return {"title": title, "name": name, "size": len(paths), "pictures": pictures}


def _tile(page: AuditPage, path: str, identity: str) -> dict[str, str]:
    """A picture with its captions; `uri` is "" if it cannot be read."""
    try:
        uri = thumbnail_uri(page.opened(path), SIDE)
    except PictureError:
        uri = ""
    return {"uri": uri, "name": path, "identity": identity}
