"""Mutations of a JSON text: every value is replaced by hostile ones, deleted and doubled.

The mutants are texts, since Python's json cannot write 1e999, a deep list or a key twice.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

DEEP = 10_000
TOKENS = {
    "null": "null",
    "true": "true",
    "false": "false",
    "zero": "0",
    "minus one": "-1",
    "one": "1",
    "two": "2",
    "half": "1.5",
    "tiny": "1e-320",
    "minus zero": "-0.0",
    "large": "1e308",
    "infinity": "1e999",
    "minus infinity": "-1e999",
    "NaN": "NaN",
    "Infinity": "Infinity",
    "billion": "1000000000",
    "2^63": str(2**63),
    "30 digits": "1" * 30,
    "5000 digits": "1" * 5000,
    "no text": '""',
    "number as text": '"3"',
    "path": '"../../../outside"',
    "NUL": '"a\\u0000b"',
    "half a surrogate": '"\\ud800"',
    "line break": '"a\\nTraceback (most recent call last):"',
    "long text": '"' + "x" * 100_000 + '"',
    "a giant network": '"vit_giant_patch14_clip_224"',
    "another network": '"test_resnet"',
    "no device": '"cuda:99"',
    "no list": "[]",
    "no object": "{}",
    "lists": "[[1], [2, [3]]]",
    "object": '{"a": {"b": 1}}',
    "long list": "[" + "1, " * 20_000 + "1]",
    "deep list": "[" * DEEP + "]" * DEEP,
    "deep object": '{"a":' * DEEP + "1" + "}" * DEEP,
    "no JSON": "{",
}
HOLE = "\N{WHITE SQUARE} hole"


class Mutant(NamedTuple):
    """A changed text, and what was changed."""

    name: str
    text: str


def mutants(value: Any) -> Iterator[Mutant]:
    """Every mutant of a JSON value, in a fixed order."""
    for path in paths(value):
        where = ".".join(map(str, path)) or "all"
        text = json.dumps(replaced(value, path, HOLE))
        hole = json.dumps(HOLE)
        for name, token in TOKENS.items():
            yield Mutant(f"{where} is {name}", text.replace(hole, token, 1))
        if path and isinstance(path[-1], str):
            yield Mutant(f"{where} is missing", json.dumps(deleted(value, path)))
            old, key = json.dumps(at(value, path)), json.dumps(path[-1])
            for name, second in (("twice", old), ("twice, differently", "1")):
                twice = text.replace(hole, f"{old}, {key}: {second}", 1)
                yield Mutant(f"{where} is there {name}", twice)


def chosen(value: Any, num: int, seed: int = 0) -> list[Mutant]:
    """A random choice of mutants by a fixed seed."""
    every = list(mutants(value))
    return random.Random(seed).sample(every, min(num, len(every)))


def paths(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Keys and indices to every value, outer ones first; of a list, to its first and last item."""
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from paths(inner, (*path, key))
    elif isinstance(value, list):
        for index in sorted({0, len(value) - 1} if value else ()):
            yield from paths(value[index], (*path, index))


def at(value: Any, path: tuple[str | int, ...]) -> Any:
    """The value at a path."""
    for key in path:
        value = value[key]
    return value


def replaced(value: Any, path: tuple[str | int, ...], new: Any) -> Any:
    """A copy in which the value at a path is another."""
    if not path:
        return new
    copy = json.loads(json.dumps(value))
    at(copy, path[:-1])[path[-1]] = new
    return copy


def deleted(value: Any, path: tuple[str | int, ...]) -> Any:
    """A copy without the value at a path."""
    copy = json.loads(json.dumps(value))
    del at(copy, path[:-1])[path[-1]]
    return copy
