"""Conditions of a search: a user's text to the filter of the store.

    condition  = all { OR all }
    all        = one { AND one }
    one        = NOT one | ( condition ) | comparison
    comparison = operand = | == | != | <> | < | <= | > | >= operand
               | field [NOT] IN ( literal { , literal } )
               | field [NOT] LIKE | ILIKE text
               | field [NOT] BETWEEN literal AND literal
               | field IS [NOT] NULL
    operand    = field | literal
    field      = identity | path | time | metadata.KEY | metadata."any key"
    literal    = 'text' | "text" | number | TRUE | FALSE | [DATE | TIMESTAMP] 'time'

The filter is written anew from what was understood, so no other part of the text reaches Lance.
Names and words are case-insensitive, keys are not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from twinlens.errors import GalleryError, one_line, short_repr
from twinlens.gallery.schema import quoted
from twinlens.gallery.sources import text as utf8

__all__ = ["explain_nested", "filter_of"]

MAX_LENGTH = 2_000_000  # characters of a condition
MAX_COMPARISONS = 200
MAX_DEPTH = 20  # Lance's own parser refuses some 25 nested parentheses.
MAX_PATTERN = 1000  # characters of a pattern of LIKE, which becomes a regular expression

TOKEN = re.compile(
    r"""
    (?P<text>'(?:[^']|'')*')
    |(?P<double>"(?:[^"]|"")*")
    |(?P<key>metadata\s*\.\s*(?:\w+|"(?:[^"]|"")*"))
    |(?P<number>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]+)?(?!\w))
    |(?P<word>[^\W\d]\w*)
    |(?P<sign><=|>=|<>|!=|==|[=<>(),])
    """,
    re.VERBOSE | re.IGNORECASE,
)
BLANK = re.compile(r"\s*")
FLIPPED = {"=": "=", "<>": "<>", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
SIGNS = {**{sign: sign for sign in FLIPPED}, "==": "=", "!=": "<>"}
INT64 = range(-(1 << 63), 1 << 63)
EXAMPLE = "identity = 'anna' AND metadata.year > 2020"
FIELDS = "identity, path, time or metadata.KEY"

Kind = Literal["text", "double", "key", "number", "word", "sign", "end"]


@dataclass(frozen=True)
class _Token:
    """A part of the condition; `start` is its place, from 0."""

    kind: Kind
    text: str
    start: int

    def is_word(self, *words: str) -> bool:
        return self.kind == "word" and self.text.upper() in words


@dataclass(frozen=True)
class _Field:
    """A column, or a key of the metadata, as Lance reads it."""

    name: str
    sql: str


@dataclass(frozen=True)
class _Value:
    """A literal: str, int, float, bool or datetime."""

    value: Any
    start: int


def filter_of(where: str) -> str:
    """The filter of the store for a condition.

    A missing key satisfies no comparison, negated or not. A number is compared with values that
    are numbers, written as text or not; any other value differs from every number.

    >>> filter_of("identity IN ('anna', 'ben') and not path like 'old/%'")
    "(identity IN ('anna', 'ben') AND NOT (path LIKE 'old/%'))"

    Raises:
        GalleryError: not a condition; names the place and what is needed there.
    """
    if not isinstance(where, str):
        raise GalleryError(f'a condition must be text, such as "{EXAMPLE}", found {where!r:.80}')
    if len(where) > MAX_LENGTH:
        raise GalleryError(
            f"the condition has {len(where):,} characters, and at most {MAX_LENGTH:,} are allowed: "
            "search several times with fewer values"
        )
    return _Parser(where).parse()


def explain_nested(where: str | None, error: GalleryError) -> GalleryError:
    """The error of a search; with advice if a list or object in the metadata was compared."""
    if where is None or "InvalidCast" not in str(error):
        return error
    return GalleryError(
        f"the condition {short_repr(where)} compares a key whose value is a list or an object in "
        "some templates: compare another key, or enrol them with text, numbers or booleans"
    )


class _Parser:
    """Recursive descent; each method returns the filter of its part, negated if `negate`."""

    def __init__(self, where: str) -> None:
        self._where, self._depth, self._num = where, 0, 0
        self._end = 0
        self._advance()

    def parse(self) -> str:
        text = self._any(negate=False)
        if self._token.kind != "end":
            raise self._fault("AND, OR or the end of the condition")
        return text

    # --- parts ---

    def _any(self, *, negate: bool) -> str:
        return self._joined("OR", self._all, negate=negate)

    def _all(self, *, negate: bool) -> str:
        return self._joined("AND", self._one, negate=negate)

    def _joined(self, word: str, part: Callable[..., str], *, negate: bool) -> str:
        parts = [part(negate=negate)]
        while self._take_word(word):
            parts.append(part(negate=negate))
        # A negation goes down to the comparisons: Lance takes long for nested ones.
        between = {"OR": "AND", "AND": "OR"}[word] if negate else word
        return parts[0] if len(parts) == 1 else f"({f' {between} '.join(parts)})"

    def _one(self, *, negate: bool) -> str:
        while self._take_word("NOT"):
            negate = not negate
        if not self._take_sign("("):
            text = self._comparison()
            return f"NOT ({text})" if negate else text
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._fault(f"at most {MAX_DEPTH} nested parentheses")
        text = self._any(negate=negate)
        self._need_sign(")", "AND, OR or )")
        self._depth -= 1
        return text

    def _comparison(self) -> str:
        self._num += 1
        if self._num > MAX_COMPARISONS:
            raise self._fault(
                f"at most {MAX_COMPARISONS} comparisons (a list is one: identity IN (...))"
            )
        left = self._operand()
        if isinstance(left, _Field):
            if self._take_word("IS"):
                no = "NOT " if self._take_word("NOT") else ""
                if not self._take_word("NULL"):
                    raise self._fault("NULL")
                return f"{left.sql} IS {no}NULL"
            negate = self._take_word("NOT")
            for word, rest in (("IN", self._in), ("BETWEEN", self._between),
                               ("LIKE", self._like), ("ILIKE", self._ilike)):  # fmt: skip
                if self._take_word(word):
                    text = rest(left)
                    return f"NOT ({text})" if negate else text
            if negate:
                raise self._fault("IN, LIKE or BETWEEN")
        return self._compared(left)

    def _compared(self, left: _Field | _Value) -> str:
        sign = SIGNS.get(self._token.text) if self._token.kind == "sign" else None
        if sign is None:
            raise self._fault("a comparison: =, <>, <, <=, >, >=, IN, LIKE, BETWEEN or IS NULL")
        self._advance()
        right = self._operand()
        if isinstance(left, _Field) and isinstance(right, _Field):
            if "time" in (left.name, right.name):
                raise self._fault("a time to compare with, such as '2026-11-01 12:00'", right)
            return f"{left.sql} {sign} {right.sql}"
        if isinstance(left, _Field) and isinstance(right, _Value):
            return self._test(left, f"{sign} {{}}", [right])
        if isinstance(left, _Value) and isinstance(right, _Field):
            return self._test(right, f"{FLIPPED[sign]} {{}}", [left])
        raise self._fault(f"a field: {FIELDS}", left)

    def _in(self, field: _Field) -> str:
        self._need_sign("(", "( and a list of values")
        values = [self._literal()]
        while self._take_sign(","):
            values.append(self._literal())
        self._need_sign(")", "a comma or )")
        kinds = (
            [[v for v in values if _is_number(v) == numbers] for numbers in (False, True)]
            if field.name == "metadata"
            else [values]
        )
        parts = [
            self._test(field, f"IN ({', '.join(['{}'] * len(part))})", part)
            for part in kinds
            if part
        ]
        return parts[0] if len(parts) == 1 else f"({' OR '.join(parts)})"

    def _between(self, field: _Field) -> str:
        low = self._literal()
        if not self._take_word("AND"):
            raise self._fault("AND and the upper limit")
        return self._test(field, "BETWEEN {} AND {}", [low, self._literal()])

    def _like(self, field: _Field, word: str = "LIKE") -> str:
        pattern = self._literal()
        if field.name == "time" or not isinstance(pattern.value, str):
            raise self._fault("a field of text and a pattern such as 'team/%'", pattern)
        if len(pattern.value) > MAX_PATTERN:
            raise self._fault(f"a pattern of at most {MAX_PATTERN} characters", pattern)
        return f"{field.sql} {word} {quoted(pattern.value)}"

    def _ilike(self, field: _Field) -> str:
        return self._like(field, "ILIKE")

    def _test(self, field: _Field, pattern: str, values: Sequence[_Value]) -> str:
        """The filter for a comparison of a field; `pattern` has a {} for each value."""
        if field.name == "time":
            moments = [_timestamp(self._moment(value)) for value in values]
            return f"time {pattern.format(*moments)}"
        if field.name == "metadata" and any(map(_is_number, values)):
            if not all(map(_is_number, values)):
                raise self._fault("two numbers or two texts", values[0])
            return _numeric(field.sql, pattern, [value.value for value in values])
        return f"{field.sql} {pattern.format(*(self._text(field, value) for value in values))}"

    def _text(self, field: _Field, value: _Value) -> str:
        if isinstance(value.value, str):
            return quoted(value.value)
        if isinstance(value.value, bool) and field.name == "metadata":
            return "'true'" if value.value else "'false'"
        raise self._fault(f"text, since {field.name} is text: write it in 'quotes'", value)

    def _moment(self, value: _Value) -> datetime:
        if isinstance(value.value, datetime):
            return value.value
        if isinstance(value.value, str):
            try:
                return _utc(value.value)
            except (ValueError, OverflowError):
                pass
        raise self._fault("a time, such as '2026-11-01' or '2026-11-01 12:00:00'", value)

    # --- operands ---

    def _operand(self) -> _Field | _Value:
        token = self._token
        if token.kind == "key":
            self._advance()
            key = token.text.partition(".")[2].strip()
            if key.startswith('"'):
                key = key[1:-1].replace('""', '"')
            return _Field("metadata", f"json_get_string(metadata, {quoted(utf8(key))})")
        if token.is_word("IDENTITY", "PATH", "TIME"):
            self._advance()
            return _Field(token.text.lower(), token.text.lower())
        if token.is_word("METADATA"):
            raise self._fault('a key, such as metadata.room or metadata."my key"')
        values = ("TRUE", "FALSE", "DATE", "TIMESTAMP", "NULL")
        if token.kind == "word" and not token.is_word(*values):
            raise self._fault(
                f"a field ({FIELDS}); a key of the metadata is written metadata.{token.text[:40]}, "
                f"and text in quotes: '{token.text[:40]}'"
            )
        return self._literal(f"a field ({FIELDS}) or a value")

    def _literal(self, needed: str = "a value: 'text', a number, TRUE or FALSE") -> _Value:
        token = self._token
        start = token.start
        value: Any
        if token.is_word("DATE", "TIMESTAMP"):
            self._advance()
            if self._token.kind != "text":
                raise self._fault("a time in quotes, such as '2026-11-01'")
            moment = self._moment(_Value(_unquoted(self._token), self._token.start))
            value = (
                moment.replace(hour=0, minute=0, second=0, microsecond=0)
                if token.is_word("DATE")
                else moment
            )
        elif token.kind in ("text", "double"):
            value = _unquoted(token)
        elif token.kind == "number":
            value = self._number(token)
        elif token.is_word("TRUE", "FALSE"):
            value = token.text.upper() == "TRUE"
        elif token.is_word("NULL"):
            raise self._fault("a value; a missing key is found by IS NULL")
        else:
            raise self._fault(needed)
        self._advance()
        return _Value(value, start)

    def _number(self, token: _Token) -> int | float:
        if token.text.lstrip("+-").isdigit() and len(token.text) <= 20:
            number = int(token.text)
            if number in INT64:
                return number
        value = float(token.text)
        if not math.isfinite(value):
            raise self._fault("a number below 1.8e308")
        return value

    # --- tokens ---

    def _advance(self) -> None:
        where = self._where
        start = BLANK.match(where, self._end).end()  # type: ignore[union-attr]
        match = TOKEN.match(where, start)
        if match is not None:
            self._end = match.end()
            self._token = _Token(match.lastgroup, match[0], start)  # type: ignore[arg-type]
            return
        self._token = _Token(
            "end" if start == len(where) else "sign", where[start : start + 1], start
        )
        if where[start : start + 1] in ("'", '"'):
            raise self._fault("a quote at the end of this text, which never closes")
        self._end = start + 1  # Some other character, which nothing accepts.

    def _take_word(self, word: str) -> bool:
        taken = self._token.is_word(word)
        if taken:
            self._advance()
        return taken

    def _take_sign(self, sign: str) -> bool:
        taken = self._token.kind == "sign" and self._token.text == sign
        if taken:
            self._advance()
        return taken

    def _need_sign(self, sign: str, needed: str) -> None:
        if not self._take_sign(sign):
            raise self._fault(needed)

    def _fault(self, needed: str, at: _Field | _Value | None = None) -> GalleryError:
        start = self._token.start if at is None or isinstance(at, _Field) else at.start
        rest = self._where[start : start + 40]
        place = f"at character {start + 1}, {one_line(rest, 30)!r}" if rest else "at its end"
        return GalleryError(
            f"the condition {short_repr(self._where)} is not understood {place}: it needs {needed}"
        )


def _unquoted(token: _Token) -> str:
    quote = token.text[0]
    return utf8(token.text[1:-1].replace(quote * 2, quote))


def _is_number(value: _Value) -> bool:
    return isinstance(value.value, int | float) and not isinstance(value.value, bool)


def _numeric(sql: str, pattern: str, numbers: Sequence[int | float]) -> str:
    """The filter for a comparison of the numbers among a key's values.

    Whole numbers are compared as such, since a double is exact up to 2**53 only. The last part is
    the answer for other text (only <> is true), and unknown for a missing key.
    """
    test = pattern.format(*map(repr, numbers))
    whole = all(isinstance(number, int) for number in numbers)
    kinds = ("bigint", "double") if whole else ("double",)
    casts = [f"try_cast({sql} AS {kind}) {test}" for kind in kinds]
    return f"coalesce({', '.join(casts)}, {sql} {'=' if pattern.startswith('<>') else '<>'} {sql})"


def _utc(text: str) -> datetime:
    moment = datetime.fromisoformat(text.strip())
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _timestamp(moment: datetime) -> str:
    return f"timestamp '{moment.replace(tzinfo=None).isoformat(sep=' ')}'"
