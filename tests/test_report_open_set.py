"""Open-set identification on the report's page."""

from __future__ import annotations

import re

import pytest
from made_up_people import Euclid, people

from twinlens.measure.open_set import open_set
from twinlens.report.content import OperatingPoint, ReportContent, SplitCount
from twinlens.report.open_set import (
    open_set_plots,
    open_set_sentences,
    open_set_sizes,
    pair_threshold_caution,
)
from twinlens.report.page import render_report
from twinlens.report.result_rows import result_rows


@pytest.fixture(scope="module")
def results():
    emb, label = people(26, 12, spread=0.3, seed=1)
    entry = open_set(emb, label, Euclid(), pair_threshold=0.6, draws=3, replicates=30)
    return {"split": "test", "identity_disjoint": True, "open_set": entry.as_json()}


def plain(words):
    return words.replace("\N{NO-BREAK SPACE}", " ").replace("\N{EN DASH}", "-")


def test_rows_of_the_table_are_the_figures(results):
    rows = {plain(row.name): row for row in result_rows(results)}
    entry = results["open_set"]
    for name, figure in (
        ("Rank-1 identification", entry["rank_1"]),
        ("DIR at 1 % FPIR", entry["dir_at_fpir"]["0.01"]),
        ("DIR at 10 % FPIR, held out", entry["held_out"]["0.1"]["dir"]),
        ("Rejected at 10 % FPIR, held out", entry["held_out"]["0.1"]["turned_away"]),
        ("DIR, threshold for pairs", entry["pair_threshold"]["dir"]),
        ("Strangers rejected, threshold for pairs", entry["pair_threshold"]["turned_away"]),
    ):
        assert float(plain(rows[name].value).removesuffix(" %")) == pytest.approx(
            100 * figure["value"], abs=0.06
        )
        low = plain(rows[name].interval).split("-")[0]
        assert float(low) == pytest.approx(100 * figure["low"], abs=0.06)
    assert [plain(row.name) for row in rows.values() if row.key] == [
        "Rank-1 identification", "DIR at 1 % FPIR", "Strangers rejected, threshold for pairs",
    ]  # fmt: skip


def test_undefined_figures_are_left_out(results):
    nothing = {"value": None, "low": None, "high": None}
    entry = results["open_set"]
    bare = {
        **{key: value for key, value in entry.items() if key != "pair_threshold"},
        "dir_at_fpir": {**entry["dir_at_fpir"], "0.01": nothing},
        "by_size": [
            {"num_enrolled": 13, "rank_1": entry["rank_1"],
             "dir_at_fpir": {"0.01": nothing, "0.1": {"value": 0.5, "low": None, "high": None}}}
        ],
    }  # fmt: skip
    results = {"open_set": bare}
    names = [plain(row.name) for row in result_rows(results)]
    assert "DIR at 1 % FPIR" not in names
    assert not any("pairs" in name for name in names)
    assert [plain(row.name) for row in result_rows(results) if row.key] == [
        "Rank-1 identification", "DIR at 10 % FPIR",
    ]  # fmt: skip
    assert "At an FPIR of 10 %" in plain(list(open_set_sentences(results))[-1])
    assert list(pair_threshold_caution(results)) == []
    ((size, cells),) = open_set_sizes(results)
    assert (size, [plain(value) for value, _ in cells[1:]]) == ("13", ["-", "50.0 %", "-"])
    curve, sizes = open_set_plots(results)
    assert "threshold for pairs" not in curve + sizes
    assert "DIR at 1 %" not in sizes


def test_no_sentences_without_the_protocol():
    for results in ({}, {"open_set": None}):
        assert open_set_plots(results) == ("", "")
        assert open_set_sizes(results) == []
        assert [*open_set_sentences(results), *pair_threshold_caution(results)] == []
        assert list(result_rows(results)) == []


def test_the_caution_has_the_share_of_false_identifications(results):
    (words,) = pair_threshold_caution(results)
    away = results["open_set"]["pair_threshold"]["turned_away"]
    taken, low, high = (100 * (1 - away[name]) for name in ("value", "high", "low"))
    assert f"falsely identified {taken:.1f} % (interval {low:.1f}-{high:.1f} %)" in plain(words)
    assert "13 enrolled identities" in words


def test_plots_show_the_results(results):
    curve, sizes = open_set_plots(results)
    for svg in (curve, sizes):
        assert svg.startswith("<svg")
        assert "NaN" not in svg
    assert "threshold for pairs" in curve
    assert "strangers rejected" in sizes
    labels = re.findall(r">(\d+)</text>", sizes)
    assert labels[:2] == ["5", "13"], "10 is too near to 13"


def test_the_page(results):
    content = ReportContent(
        title="gallery", data="people", results=results, splits=[SplitCount("test", 312, 26)],
        operating=OperatingPoint(0.6, 0.01),
    )  # fmt: skip
    page = plain(render_report(content))
    for words in ("13 enrolled identities against 13 strangers, drawn 3 times", "FPIR, DIR",
                  '<a href="#galleries">', "twinlens gallery calibrate GALLERY"):  # fmt: skip
        assert words in page, words
    assert page.count('<th scope="row" class="n">') == 3
    assert "galleries" not in render_report(ReportContent(title="x", data="y", results={}))
