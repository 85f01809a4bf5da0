"""Display of results: a short `repr`, a notebook's cell, and tables of pandas and Arrow."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from twinlens.errors import naming_extras, short_repr

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

__all__ = ["Result", "figure_rows", "html_table"]

MOST_LINES = 40  # of a text in a notebook
Row = dict[str, Any]


class Result:
    """Base of results, which are dataclasses with `as_json`.

    Arrays and tables of pictures are left out of the `repr`, the display and the tables.

    Attributes:
        ROWS: key of the list in JSON whose items are the rows of `to_frame`; "" for figures.
    """

    ROWS: ClassVar[str] = ""

    def as_json(self) -> dict[str, Any]:
        """Plain data; see docs/json.md."""
        raise NotImplementedError

    def as_text(self) -> str:
        """Lines for people."""
        return repr(self)

    def rows(self) -> list[Row]:
        """The rows of `to_frame`: listed ones; or a figure each, with `value`, `low` and `high` as
        fractions; or all values in one.
        """
        values = self.as_json()
        if self.ROWS:
            return [_flat(item) for item in values[self.ROWS]]
        return list(figure_rows(values)) or [_flat(values)]

    def to_arrow(self) -> pa.Table:
        """The rows as a table of Arrow, which Polars and DuckDB read: `polars.from_arrow(...)`."""
        import pyarrow as pa

        rows = self.rows()
        names = dict.fromkeys(name for row in rows for name in row)
        return pa.table({name: [row.get(name) for row in rows] for name in names})

    def to_frame(self) -> pd.DataFrame:
        """The rows as a frame of pandas.

        Raises:
            MissingExtraError: pandas is not installed.

        >>> result.to_frame().set_index("figure").loc["verification.eer"]  # doctest: +SKIP
        value    0.041
        low      0.030
        high     0.052
        """
        with naming_extras("to_frame"):
            import pandas as pd

        return pd.DataFrame(self.rows())

    def __repr__(self) -> str:
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        parts = {field.name: _short(getattr(self, field.name)) for field in fields if field.repr}
        shown = [f"{name}={text}" for name, text in parts.items() if text is not None]
        return f"{type(self).__name__}({', '.join(shown)})"

    def _repr_html_(self) -> str:
        lines = self.as_text().splitlines()
        if len(lines) > MOST_LINES:
            lines[MOST_LINES:] = [f"... {len(lines) - MOST_LINES} more lines: print(….as_text())"]
        text = html.escape("\n".join(lines))
        return f"<pre style='white-space:pre-wrap'>{text}</pre>"


def figure_rows(values: Mapping[str, Any], above: str = "") -> Iterator[Row]:
    """A row for each figure in the JSON of a result, named by the keys that lead to it.

    Curves are left out.

    >>> list(figure_rows({"all": {"eer": {"value": 0.1, "low": 0.0, "high": 0.2}, "num": 3}}))
    [{'figure': 'all.eer', 'value': 0.1, 'low': 0.0, 'high': 0.2}]
    """
    for key, part in values.items():
        name = f"{above}.{key}" if above else key
        if key == "curve":
            continue  # Points of a drawing.
        if isinstance(part, Mapping) and {"value", "low", "high"} <= part.keys():
            yield {"figure": name, **{end: part[end] for end in ("value", "low", "high")}}
        elif isinstance(part, Mapping):
            yield from figure_rows(part, name)
        elif isinstance(part, list) and all(isinstance(item, Mapping) for item in part):
            # Its first value names an item, such as a group or a size.
            items = {str(next(iter(item.values()))): item for item in part if item}
            yield from figure_rows(items, name)


def _flat(values: Mapping[str, Any]) -> Row:
    """Values by the keys that lead to them; lists are left out."""
    row: Row = {}
    for key, part in values.items():
        if isinstance(part, Mapping):
            row |= {f"{key}.{inner}": value for inner, value in _flat(part).items()}
        elif not isinstance(part, list):
            row[key] = part
    return row


def html_table(caption: str, rows: Sequence[Sequence[str]]) -> str:
    """A small table of a notebook, escaped; the first cell of a row is its heading."""
    body = "".join(
        f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
        + "".join(f"<td style='text-align:left'>{html.escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for name, *cells in rows
    )
    return (
        "<table><caption style='text-align:left;white-space:nowrap'>"
        f"{html.escape(caption)}</caption><tbody>{body}</tbody></table>"
    )


def _short(value: Any) -> str | None:
    """A value in a `repr`; None for what is left out: nothing, arrays, tables."""
    if value is None or (isinstance(value, Sequence | Mapping) and not len(value)):
        return None
    if isinstance(value, float):
        return f"{value:.4g}" if type(value) is float else str(value)
    if isinstance(value, Mapping):
        parts = {key: _short(part) for key, part in value.items()}
        shown = [f"{key}: {text}" for key, text in parts.items() if text is not None]
        return f"{{{', '.join(shown)}}}" if shown else None
    if isinstance(value, str | int | Path):
        return short_repr(value)
    if isinstance(value, tuple | list):
        return f"{len(value)} rows" if dataclasses.is_dataclass(value[0]) else short_repr(value)
    return repr(value) if isinstance(value, Result) else None
