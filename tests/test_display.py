"""Results as a short text, a notebook's cell, and tables of other libraries."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest
from conftest import TinyRun

import twinlens
from twinlens.display import Result, figure_rows
from twinlens.errors import MissingExtraError
from twinlens.measure.estimate import Estimate
from twinlens.measure.evaluation_result import EvaluationResult


@pytest.fixture(scope="module")
def result(tiny_run: TinyRun) -> EvaluationResult:
    found = twinlens.evaluate(tiny_run.run, tiny_run.data, split="all", quiet=True)
    assert isinstance(found, EvaluationResult)
    return found


def test_a_row_for_each_figure(result: EvaluationResult) -> None:
    frame = result.to_frame().set_index("figure")
    assert list(frame) == ["value", "low", "high"]
    assert frame.index.is_unique
    for name, estimate in (
        ("verification.eer", result.verification.eer),
        ("verification.calibrated.far", result.verification.calibrated.far),
        ("retrieval.recall_at_1", result.retrieval.recall_at[1]),
    ):
        assert frame.loc[name].tolist() == [estimate.value, estimate.low, estimate.high]
    assert not frame.index.str.contains("curve").any()
    table = pl.from_arrow(result.to_arrow())
    assert table["figure"].to_list() == frame.index.tolist()
    assert result.verification.to_frame()["figure"].tolist()[1] == "eer"


def test_figures_of_groups_are_named_by_their_groups() -> None:
    figure = {"value": 0.5, "low": None, "high": None}
    values = {"groups": {"camera": {"groups": [{"name": "north", "far": figure}], "num": 1}}}
    (row,) = figure_rows(values)
    assert row == {"figure": "groups.camera.groups.north.far", **figure}


def test_text_and_repr_are_short_and_in_percent(result: EvaluationResult) -> None:
    assert repr(result) == (
        f"<EvaluationResult: EER {result.verification.eer}, "
        f"recall at 1 {result.retrieval.recall_at[1]}>"
    )
    line = next(line for line in result.as_text().splitlines() if line.startswith("eer"))
    assert line.split(maxsplit=1) == ["eer", str(result.verification.eer)]
    assert len(repr(result.verification)) < 600
    assert "eer=" in repr(result.verification)


def test_a_notebook_shows_a_table(result: EvaluationResult) -> None:
    table = ET.fromstring(result._repr_html_())
    cells = [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")]
    assert ["eer", str(result.verification.eer)] in cells


@dataclass(frozen=True, eq=False, repr=False)
class Sample(Result):
    name: str
    rate: Estimate
    num: int
    share: float
    array: np.ndarray
    rest: tuple[str, ...] = ()
    missing: str | None = None

    def as_text(self) -> str:
        return "\n".join([self.name] * 60)


def test_any_result() -> None:
    sample = Sample("<b>&", Estimate(0.25), 3, 1 / 3, np.zeros(9))
    assert repr(sample) == "Sample(name='<b>&', rate=25.0 %, num=3, share=0.3333)"
    cell = sample._repr_html_()
    assert re.findall("<[^>]*>", cell) == ["<pre style='white-space:pre-wrap'>", "</pre>"]
    assert cell.count("&lt;b&gt;&amp;") == 40
    assert "20 more lines" in cell


def test_without_pandas(result: EvaluationResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match=r"to_frame needs pandas: pip install 'twinlens\["):
        result.to_frame()
    assert result.to_arrow().num_rows > 10
