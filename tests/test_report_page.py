from __future__ import annotations

import dataclasses
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twinlens.errors import DataError
from twinlens.measure.domain import DomainSummary
from twinlens.report import embedding_map as maps
from twinlens.report import page as report
from twinlens.report.content import (
    MapPictures,
    OperatingPoint,
    PicturePair,
    ReportContent,
    ScoredPairs,
    SettingRow,
    SplitCount,
    worst_rows,
)
from twinlens.report.formatting import percent
from twinlens.report.page import render_report, write_report
from twinlens.report.result_rows import result_rows
from twinlens.report.summary import cautions, summary
from twinlens.report.svg import COLORS

EVIL = '<script>alert("1")</script>\'"&'
VOID = {"meta", "img", "br", "wbr", "link", "input", "hr"}
NBSP = "\N{NO-BREAK SPACE}"


def figure(value: float) -> dict[str, float | None]:
    return {"value": value, "low": value - 0.01, "high": value + 0.01}


RESULTS: dict[str, Any] = {
    "split": "test",
    "identity_disjoint": True,
    "verification": {
        "eer": figure(0.05),
        "auc": figure(0.98),
        "tar_at_far": {"0.1": figure(0.97), "0.01": figure(0.8)},
        "calibrated": {"threshold": 0.5, "far": figure(0.012), "frr": figure(0.2)},
    },
    "retrieval": {"recall_at_1": figure(0.9)},
    "one_shot": {"20-way-1-shot": figure(0.85)},
}


def full(name: str = "Zoë 李") -> ReportContent:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (12, 1, 10, 8), dtype=np.uint8)
    distance = np.concatenate([rng.normal(0.3, 0.1, 20), rng.normal(0.8, 0.1, 60)])
    pair = PicturePair(pixels[0], pixels[1], name, "b", f"a/{name}.png", "b/2.png", 0.42, name)
    return ReportContent(
        title=name,
        data=name,
        results=RESULTS,
        splits=[SplitCount("train", 300, 30), SplitCount("test", 100, 25)],
        pairs=ScoredPairs(distance, np.arange(80) < 20, np.arange(80) > 70),
        operating=OperatingPoint(0.5, 0.01, 0.45, 0.55, 4500, "isotonic"),
        history=[
            {"step": s, "loss": 1 / s, "rate": 0.1, "val": s / 9, "event": name if s == 4 else ""}
            for s in range(1, 9)
        ],
        metric=name,
        map=MapPictures(rng.normal(size=(12, 4)), [name, "b"] * 6, pixels),
        nearest_impostors=[pair] * 3,
        farthest_genuine=[dataclasses.replace(pair, distance=0.9, note="")] * 2,
        broken=[(f"{name}/1.png", name)],
        findings=[f"a duplicate: {name}"],
        settings=[SettingRow("picture.size", name, name)],
        facts=[("Seed", name)],
        command=f"twinlens train '{name}'",
    )


@pytest.fixture(scope="module")
def page() -> str:
    return render_report(full())


class Outline(HTMLParser):
    """Checks that tags are closed in order, and gathers what the tests ask for."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.headings: list[tuple[str, str]] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, key, value if value is not None else "") for key, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("h1", "h2", "h3"):
            self.headings.append((tag, ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, key, value if value is not None else "") for key, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            tag, text = self.headings[-1]
            self.headings[-1] = (tag, text + data)

    def values(self, key: str, tag: str | None = None) -> list[str]:
        return [v for t, k, v in self.attributes if k == key and tag in (None, t)]


def test_the_outline_of_a_full_page(page: str) -> None:
    assert Outline(page).headings == [
        ("h1", "Zoë 李"),
        ("h2", "How to read this page"),
        ("h2", "Results on the test pictures"),
        ("h2", "Distances"),
        ("h2", "Errors at every threshold"),
        ("h2", "Learning"),
        ("h3", "Interventions, and early end"),
        ("h2", "A map of the pictures"),
        ("h2", "Worst pairs"),
        ("h3", "Nearest impostors"),
        ("h3", "Farthest genuine pairs"),
        ("h2", "Skipped"),
        ("h2", "Settings and command"),
        ("h3", "Data"),
        ("h3", "Settings"),
        ("h3", "Environment"),
    ]


def test_missing_parts_are_left_out() -> None:
    page = Outline(render_report(ReportContent(title="m", data="d", results={})))
    assert [text for tag, text in page.headings if tag == "h2"] == [
        "How to read this page",
        "Settings and command",
    ]
    assert page.tags["svg"] == 0


def test_user_text_is_escaped() -> None:
    plain, evil = Outline(render_report(full("name"))), Outline(render_report(full(EVIL)))
    assert evil.tags["script"] == 0
    # Longer paths break into lines at more places; nothing else may differ.
    plain.tags["wbr"] = evil.tags["wbr"] = 0
    assert evil.tags == plain.tags
    assert f"{EVIL}, a/{EVIL}.png" in evil.values("alt", "img")
    assert evil.headings[0] == ("h1", EVIL)


def test_the_page_loads_nothing(page: str) -> None:
    outline = Outline(page)
    for key in ("src", "href", "xlink:href"):
        for value in outline.values(key):
            assert value.startswith(("data:image/", "#")), value
    assert not re.search(r"url\((?!#)|@import|<link|<script", page)
    assert set(re.findall(r"https?://[^\s\"'<]+", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_ids_are_unique_and_links_lead_somewhere(page: str) -> None:
    outline = Outline(page)
    ids = outline.values("id")
    assert len(ids) == len(set(ids))
    links = [value[1:] for value in outline.values("href", "a")]
    assert len(links) == 9
    assert set(links) <= set(ids)


def test_pictures_have_alternative_texts(page: str) -> None:
    outline = Outline(page)
    assert outline.tags["img"] == len(outline.values("alt", "img")) == 10
    assert all(outline.values("alt", "img"))
    assert outline.tags["svg"] == len(outline.values("aria-label", "svg")) == 7
    assert outline.values("lang", "html") == ["en"]


def _luminance(color: str) -> float:
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_can_be_read_in_light_dark_and_print(page: str) -> None:
    """WCAG 2.1: a contrast of at least 4.5 for text."""
    schemes = [
        dict(re.findall(r"--(\w+): (#\w+)", block))
        for block in re.findall(r":root {(.*?)}", page, re.S)
    ]
    assert len(schemes) == 3
    assert {key: schemes[0][key] for key in COLORS} == COLORS
    for scheme in schemes:
        for name in ("ink", "muted", "genuine", "impostor", "skilled", "warn"):
            for ground in ("paper", "sheet"):
                pair = sorted(_luminance(scheme[key]) for key in (name, ground))
                assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5, (name, ground, scheme)


def test_summary() -> None:
    assert " ".join(summary(full())).replace(NBSP, " ") == (
        "The model was trained on 300 pictures of 30 identities. It was evaluated on 100 pictures "
        "of 25 identities, none of them seen in training. Its equal error rate is 5.0 % (95 % "
        "interval 4.0\N{EN DASH}6.0 %). Two pictures match if their distance is at most 0.500, a "
        "threshold set to accept 1 in 100 impostor pairs. On these pictures it accepted 1.2 % of "
        "the impostor pairs and rejected 20.0 % of the genuine pairs."
    )


def test_a_split_named_train_of_other_data_is_not_training_data() -> None:
    """Only a run's own report has settings."""
    results = {**RESULTS, "split": "train"}
    splits = [SplitCount("train", 100, 25)]
    sentences = " ".join(summary(ReportContent("m", "d", results, splits)))
    assert sentences.startswith(
        "The model was evaluated on 100 pictures of 25 identities, none of them seen in training."
    )
    assert "was trained on" not in sentences


def test_cautions() -> None:
    assert [text[:30] for text in cautions(full())] == [
        "1 picture could not be read: s",
        "a duplicate: Zoë 李",
    ]
    results = {
        **RESULTS,
        "identity_disjoint": False,
        "verification": {"calibrated": {"far": {"value": 0.05, "low": 0.02, "high": 0.09}}},
    }
    content = dataclasses.replace(
        full(), results=results, broken=(), findings=(), splits=[SplitCount("test", 9, 3)]
    )
    sentences = cautions(content)
    assert "was trained on these identities" in sentences[0]
    assert "holds 3 identities" in sentences[1]
    assert "more impostor pairs than its target FAR" in sentences[2]
    assert "not calibrated" in cautions(dataclasses.replace(content, operating=None))[-1]
    assert "none of which" not in " ".join(summary(content))


@pytest.mark.parametrize("outside", [0.04, 0.5])
def test_pictures_out_of_domain_are_counted_and_many_are_a_caution(outside: float) -> None:
    reason = "they are blurred" if outside > 0.1 else None
    domain = DomainSummary(reason is None, outside, 1.5, 100, reason).as_json()
    content = dataclasses.replace(full(), results={**RESULTS, "domain": domain})
    (row,) = [row for row in result_rows(content.results) if row.name == "Out of domain"]
    assert row.value == percent(outside)
    added = set(cautions(content)) - set(cautions(full()))
    if reason is None:
        assert not added
    else:
        (sentence,) = added
        assert reason in sentence
        assert "twinlens calibrate" in sentence


def test_verdicts_follow_the_threshold(page: str) -> None:
    assert page.count("falsely accepted") == 3  # Impostors at 0.42, threshold 0.5.
    assert page.count("falsely rejected") == 2  # Genuine pairs at 0.9.
    strict = dataclasses.replace(full(), operating=OperatingPoint(0.41, 0.01))
    assert render_report(strict).count("correctly rejected") == 3
    none = render_report(dataclasses.replace(full(), operating=None))
    assert "falsely accepted" not in none
    assert "correctly rejected" not in none


def test_a_page_of_nearest_neighbours() -> None:
    """The page of the nearest protocol has its own text, and no text about pairs."""
    pair = full().nearest_impostors[0]
    nearest = {"accuracy": figure(0.9), "top_5": {"value": 1.0, "low": 1.0, "high": 1.0},
             "chance": 0.125, "num_probes": 40, "num_gallery": 80, "num_identities": 8,
             "num_unknown": 3}  # fmt: skip
    content = ReportContent(
        title="landmarks", data="places",
        results={"split": "test", "identity_disjoint": False, "nearest": nearest},
        splits=[SplitCount("test", 40, 30), SplitCount("gallery", 80, 30)],
        operating=OperatingPoint(0.5, 0.01), nearest_wrong=[pair] * 2,
    )  # fmt: skip
    page = render_report(content).replace(NBSP, " ")
    Outline(page)
    assert page.count("falsely accepted") == 2
    for words in ("Most confident mistakes", "Nearest neighbours, top 5", "By chance",
                  "12.5 %", "The model was evaluated on 40 pictures of 30 identities. For 90.0 % "
                  "(95 % interval 89.0\N{EN DASH}91.0 %) of the pictures, the nearest training "
                  "picture shows the same identity",
                  "3 of 40 pictures show identities without training pictures"):  # fmt: skip
        assert words in page, words
    assert "Nearest impostors" not in page
    assert "It was evaluated" not in page  # Only after a sentence on training.
    assert "its nearest is itself" not in page
    on_train = {**content.results, "split": "train", "nearest": {**nearest, "num_unknown": 0}}
    sentences = cautions(dataclasses.replace(content, results=on_train))
    assert any("its nearest is itself" in words for words in sentences)
    assert not any("count as errors" in words for words in sentences)
    assert "Most confident mistakes" not in render_report(full())


def test_a_threshold_that_accepts_nothing() -> None:
    content = dataclasses.replace(full(), operating=OperatingPoint(float("-inf"), 0.001))
    assert "it accepts nothing" in summary(content)[-1]
    assert "correctly rejected" in render_report(content)


def test_a_long_list_of_broken_files_is_cut_and_counted() -> None:
    broken = [(f"{i}.png", "empty file") for i in range(1234)]
    page = render_report(dataclasses.replace(full(), broken=broken))
    assert page.count("empty file") == report.MOST_BROKEN
    assert "And 1,134 more." in page
    assert "1,234 pictures could not be read" in page


def test_worst_rows_match_a_loop() -> None:
    rng = np.random.default_rng(0)
    distance = rng.integers(0, 30, 300) / 10
    distance[7] = np.nan
    same = rng.random(300) < 0.4
    left, right = ([f"i{k}" for k in rng.integers(0, 6, 300)] for _ in range(2))
    for genuine in (True, False):
        rows = [i for i in range(300) if same[i] == genuine and np.isfinite(distance[i])]
        rows.sort(key=lambda i: -distance[i] if genuine else distance[i])
        expected: list[int] = []
        seen: list[frozenset[str]] = []
        for i in rows:
            who = frozenset((left[i], right[i]))
            if seen.count(who) < 2 and len(expected) < 12:
                expected.append(i)
                seen.append(who)
        assert worst_rows(ScoredPairs(distance, same), left, right, genuine=genuine) == expected


def test_writing_leaves_one_file(tmp_path: Path, page: str) -> None:
    path = tmp_path / "report.html"
    write_report(path, full())
    write_report(path, full())
    assert [item.name for item in tmp_path.iterdir()] == ["report.html"]
    assert path.read_text(encoding="utf-8") == page


def test_a_failure_keeps_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    content = ReportContent(title="m", data="d", results={})

    def fail(self: Path, target: Path) -> Path:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(DataError, match="disk full"):
        write_report(path, content)
    assert [item.name for item in tmp_path.iterdir()] == ["report.html"]
    assert path.read_text() == "old"


def test_a_page_with_many_pictures_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    # The layout takes the time here, and has no say in the size.
    monkeypatch.setattr(maps, "_layout", lambda emb_ND, seed: emb_ND)
    rng = np.random.default_rng(0)
    pixels = np.clip(rng.normal(128, 40, (1500, 3, 64, 64)), 0, 255).astype(np.uint8)
    pair = PicturePair(pixels[0], pixels[1], "a", "b", "a/1", "b/1", 0.3)
    content = dataclasses.replace(
        full(),
        map=MapPictures(rng.normal(size=(1500, 2)), [f"i{k // 15}" for k in range(1500)], pixels),
        nearest_impostors=[pair] * 12,
        farthest_genuine=[pair] * 12,
    )
    assert len(render_report(content).encode()) < 4_000_000
