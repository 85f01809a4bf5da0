from __future__ import annotations

import pytest

from twinlens.report.formatting import (
    bounds,
    count_of,
    dig,
    number,
    one_in,
    percent,
    span,
)

NBSP = "\N{NO-BREAK SPACE}"
DASH = "\N{EN DASH}"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0321, "3.2"), (0.5, "50.0"), (1.0, "100"), (0.0, "0"), (0.00314, "0.31"),
        (0.999, "99.90"), (0.9999, "99.990"), (0.00001, "0.0010"), (0.01, "1.0"),
    ],
)  # fmt: skip
def test_percent(value: float, expected: str) -> None:
    assert percent(value) == f"{expected}{NBSP}%"


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.41234, "0.412"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1,234"), (0.0948, "0.0948"),
     (0.0, "0"), (-0.5, "-0.500"), (float("-inf"), "-inf"), (1e-9, "0.000000")],
)  # fmt: skip
def test_number(value: float, expected: str) -> None:
    assert number(value) == expected


@pytest.mark.parametrize(
    ("far", "expected"),
    [(0.01, "1 in 100"), (0.1, "1 in 10"), (0.001, "1 in 1,000"), (0.03, "3 in 100"),
     (0.025, "1 in 40"), (0.0015, "15 in 10,000"), (0.5, "1 in 2"), (1 / 3, "1 in 3")],
)  # fmt: skip
def test_one_in(far: float, expected: str) -> None:
    assert one_in(far) == expected


def test_counts_intervals_and_paths() -> None:
    assert count_of(1, "identity") == "1 identity"
    assert count_of(3000, "identity") == "3,000 identities"
    assert count_of(0, "picture") == "0 pictures"
    assert span(0.021, 0.045) == f"2.1{DASH}4.5{NBSP}%"
    assert span(None, 0.045) == ""
    assert dig({"a": {"b": 0}}, "a", "b") == 0
    assert dig({"a": None}, "a", "b") is None
    assert bounds({"value": 0.2, "low": None, "high": None}) == (0.2, None, None)
    assert bounds(0.3) == (0.3, None, None)
    assert bounds(None) == (None, None, None)
