"""Conditions of a search: what each finds, what is refused and where, and agreement with Lance."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_matcher import make_matcher

from twinlens.errors import GalleryError
from twinlens.gallery.conditions import MAX_COMPARISONS, MAX_DEPTH, filter_of
from twinlens.gallery.gallery import Gallery

METADATA = [
    {"room": "north", "year": 2020, "ok": True},
    {"room": "south", "year": "2021", "ok": False},
    {"room": "3", "year": 2022, "weight": 3.5},
    {"weight": 4, "my key": "x", 'say "hi"': "y"},
    {"room": "it's", "year": 9007199254740993},
    {},
]
NAMES = ["anna", "ben", "d'Arc", "a\\b", "Zoë%", "carl"]


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    folder = tmp_path_factory.mktemp("conditions")
    gallery = Gallery.create(folder / "g", make_matcher(folder / "m", "grey", normalize=False))
    emb = np.random.default_rng(0).normal(size=(len(NAMES), 8)).astype(np.float32)
    gallery.enrol_embeddings(
        emb, NAMES, fingerprint=gallery.fingerprint, metadata=METADATA,
        path=[f"team/{n}.png" for n in range(len(NAMES))],
    )  # fmt: skip
    return gallery


def matching(gallery: Gallery, filter: str) -> list[int]:
    rows = gallery.store.find(filter, columns=["path"])
    return sorted(int(re.sub(r"\D", "", path)) for path in rows["path"].to_pylist())


def as_lance(where: str) -> str:
    """A valid condition as Lance's own SQL, the way it was passed on before it was parsed."""
    key = re.compile(r"""\b(?i:metadata)\.(?:(\w+)|"([^"']+)")""")
    parts = re.split(r"('(?:[^']|'')*')", where)
    parts[::2] = [key.sub(r"json_get_string(metadata, '\1\2')", part) for part in parts[::2]]
    return "".join(parts)


@pytest.mark.parametrize(
    "where",
    [
        "identity = 'anna'",
        "IDENTITY = 'anna' or Path = 'team/1.png'",
        "identity <> 'd''Arc' AND identity != 'ben'",
        "identity == \"ben\"",
        "'ben' < identity",
        "identity in ('anna', 'ben', 'nobody')",
        "identity NOT IN ('anna')",
        "identity LIKE 'a%' and path not like '%3.png'",
        r"identity LIKE 'Zo_\%' or identity like 'a\\b'",
        "identity ILIKE 'ANN_'",
        "identity between 'b' and 'd'",
        "identity not between 'b' and 'd'",
        "identity = path",
        "metadata.room = 'it''s'",
        "METADATA.room > 'm'",
        "metadata.room <> 'north'",
        "not metadata.room = 'north'",
        "metadata.room is null",
        "metadata.room IS NOT NULL",
        "metadata.ok = 'true'",
        "metadata.year > 2020",
        "metadata.year <= 2021 AND NOT metadata.year = 2021",
        "metadata.year = 9007199254740993",
        "metadata.year in (2020, 2022)",
        "metadata.year not in (2020, 2022)",
        "metadata.year between 2020 and 2021",
        "metadata.weight > 3.5",
        "NOT metadata.weight > 3.5e0",
        "metadata.weight > -1.5",
        "metadata.\"my key\" = 'x'",
        "metadata.\"no such\" IS NULL",
        "time > date '2020-01-01' and time < timestamp '2100-01-01 00:00:00'",
        "time = timestamp '2020-01-01T00:00:00Z'",
        "not (identity = 'anna' or not (metadata.room = 'south' or metadata.year = 2022))",
        "identity = 'anna' or identity = 'ben' and metadata.room = 'north'",
        "((identity = 'anna'))",
    ],
)  # fmt: skip
def test_a_valid_condition_means_what_it_means_to_lance(gallery: Gallery, where: str) -> None:
    assert matching(gallery, filter_of(where)) == matching(gallery, as_lance(where))


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ("metadata.ok = true", [0]),
        ("metadata.ok <> TRUE", [1]),
        ("metadata.room = 3", [2]),
        ("metadata.room <> 3", [0, 1, 4]),
        ("not metadata.room = 3", [0, 1, 4]),
        ("metadata.room > 2", [2]),
        ("metadata.room in ('north', 3)", [0, 2]),
        ("metadata.room not in ('north', 3)", [1, 4]),
        ("metadata.weight > 3", [2, 3]),
        ("metadata.weight = 4.0", [3]),
        ("metadata.year > 9007199254740992", [4]),
        ("metadata.year < 99999999999999999999", [0, 1, 2, 4]),
        ("metadata.\"say \"\"hi\"\"\" = 'y'", [3]),
        ("time > '2020-01-01'", [0, 1, 2, 3, 4, 5]),
        ("time < '2020-01-01T00:00+02:00'", []),
        (f"identity IN ({', '.join(repr(str(n)) for n in range(50_000))}, 'anna')", [0]),
        (" OR ".join(["identity LIKE 'a%'"] * MAX_COMPARISONS), [0, 3]),
        ("(" * MAX_DEPTH + "identity = 'anna'" + ")" * MAX_DEPTH, [0]),
        ("NOT (identity = 'x' AND " * 19 + "identity = 'anna'" + ")" * 19, [0, 1, 2, 3, 4, 5]),
        ("(path LIKE '%' AND NOT (identity = 'x' OR " * 10 + "identity = 'anna'" + "))" * 10,
         [0]),
        ("NOT " * 5000 + "identity = 'anna'", [0]),
    ],
)  # fmt: skip
def test_conditions_that_lance_alone_does_not_take(
    gallery: Gallery, where: str, rows: list[int]
) -> None:
    assert matching(gallery, filter_of(where)) == rows


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("identity = 'a' metadata.room = 'south'", r"at character 16, .*needs AND, OR or the end"),
        ("identity = 'a' garbage", "at character 16, 'garbage'"),
        ("identity = 'a'; DELETE", "at character 15, '; DELETE'"),
        ("identity = 'a', identity = 'b'", "at character 15"),
        ("identity = 'a' LIMIT 1", "at character 16, 'LIMIT 1'"),
        ("identity = 'a') OR (identity = 'b'", "at character 15"),
        ("identity = 'a' -- and more", "at character 16"),
        ("identity = 'a' /* x */", "at character 16"),
        ("identity = 'a' && metadata.room = 'b'", "at character 16"),
        ("identity ==== 'x'", "at character 12"),
        ("1=1; DROP TABLE x", "at character 1, .*needs a field: identity, path, time or metadata"),
        ("true", "at its end: it needs a comparison"),
        ("identity", "at its end: it needs a comparison"),
        ("", "at its end: it needs a field"),
        ("identity = 'a' AND", "at its end: it needs a field"),
        ("repeat('a',1000000000) = 'x'", "at character 1"),
        ("identity = repeat('a', 9)", "at character 12"),
        ("color = 1", r"identity, path, time or metadata.KEY.*metadata\.color"),
        ("vector IS NULL", r"metadata\.vector"),
        ("metadata = 'x'", "needs a key, such as metadata.room"),
        ("metadata.x = = 2", "at character 14"),
        ("identity = anna", "text in quotes: 'anna'"),
        ("identity = 'anna", "at character 12, .*which never closes"),
        ("'", "at character 1, .*which never closes"),
        ("identity = 3", "since identity is text"),
        ("identity = true", "since identity is text"),
        ("identity = NULL", "found by IS NULL"),
        ("identity IN ()", "at character 14, .*needs a value"),
        ("identity IN ('a', NULL)", "found by IS NULL"),
        ("identity IS 'a'", "needs NULL"),
        ("identity NOT = 'a'", "needs IN, LIKE or BETWEEN"),
        ("identity LIKE 3", "needs a field of text and a pattern"),
        ("identity LIKE '" + "%" * 5000 + "'", "a pattern of at most 1000"),
        ("time LIKE '2020%'", "needs a field of text"),
        ("time > 2020", "needs a time, such as"),
        ("time > '2020-13-01'", "needs a time, such as"),
        ("time > identity", "needs a time"),
        ("metadata.n BETWEEN 1 AND 'b'", "two numbers or two texts"),
        ("metadata.n > 1e999", "at character 14, .*needs a number below"),
        ("metadata.n > nan", "at character 14"),
        ("metadata.n = 0x10", "at character 14"),
        ("(" * 10_000 + "identity = 'a'" + ")" * 10_000, "at most 20 nested parentheses"),
        (" OR ".join(["identity = 'a'"] * 1001), "at most 200 comparisons"),
        ("identity = '" + "a" * 2_000_000 + "'", "2,000,013 characters"),
        ("identity = 'a'\0", "at character 15"),
        ("identity = \u2018a\u2019", "at character 12"),
        (5, "must be text"),
    ],
)
def test_anything_else_is_refused_with_its_place(where: str, message: str) -> None:
    with pytest.raises(GalleryError, match=message) as caught:
        filter_of(where)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["a\0b", "a\nb", "\u202ea", "a\\'b", "😀", "x\udce9", "}{0}{", "'"]
)
def test_odd_names_are_values_and_no_syntax(gallery: Gallery, name: str) -> None:
    quoted = name.replace("'", "''")
    assert matching(gallery, filter_of(f"identity = '{quoted}' OR identity = 'anna'")) == [0]
    assert matching(gallery, filter_of(f"metadata.\"{name}\" = '{quoted}'")) == []


words = st.sampled_from([
    "identity", "path", "time", "metadata.room", "metadata.year", "metadata", '"', "'", "'north'",
    "'2020-01-01'", "2020", "-1.5", "true", "null", "(", ")", ",", "=", "<>", "<", ">=", "and",
    "or", "not", "in", "like", "between", "is", "date", ";", "--", "repeat", "select", "1e400",
])  # fmt: skip


@given(st.lists(words, max_size=12).map(" ".join) | st.text(max_size=40))
def test_what_is_accepted_runs(gallery: Gallery, where: str) -> None:
    try:
        filter = filter_of(where)
    except GalleryError:
        return
    gallery.store.find(filter, columns=["hash"])
