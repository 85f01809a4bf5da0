from __future__ import annotations

import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pytest
from scipy.stats import norm

from twinlens.report import plots, svg
from twinlens.report.content import ScoredPairs
from twinlens.report.plots import (
    distance_histogram,
    learning_curves,
    roc_and_det,
)

SVG = "{http://www.w3.org/2000/svg}"


def some_pairs(seed: int = 0, skilled: bool = False) -> ScoredPairs:
    rng = np.random.default_rng(seed)
    distance = np.concatenate([rng.normal(0.4, 0.1, 60), rng.normal(0.8, 0.15, 300)])
    same = np.arange(360) < 60
    forged = (np.arange(360) >= 60) & (np.arange(360) < 120)
    return ScoredPairs(distance, same, forged if skilled else None)


def texts(picture: str) -> list[str]:
    return ["".join(node.itertext()) for node in ET.fromstring(picture).iter(f"{SVG}text")]


def ids(picture: str) -> list[str]:
    return re.findall(r' id="([^"]+)"', picture)


def lines(picture: str, color: str) -> list[np.ndarray]:
    """The points of each stroked, unfilled path in a colour of ours."""
    series = []
    for node in ET.fromstring(picture).iter(f"{SVG}path"):
        style = node.get("style", "")
        if "fill: none" in style and f"stroke: var(--{color}," in style:
            numbers = re.findall(r"[ML] (-?[\d.]+) (-?[\d.]+)", node.get("d", ""))
            series.append(np.array(numbers, dtype=float))
    return series


def test_parts_and_accepted_shares_worked_by_hand() -> None:
    pairs = ScoredPairs(
        distance=np.array([0.1, 0.5, 0.2, 0.6, 0.9, np.nan]),
        same=np.array([True, True, False, False, False, True]),
        skilled=np.array([False, False, True, False, False, False]),
    )
    assert pairs.part("genuine").tolist() == [0.1, 0.5]
    assert pairs.part("impostor").tolist() == [0.2, 0.6, 0.9]
    assert pairs.part("skilled").tolist() == [0.2]
    assert pairs.part("others").tolist() == [0.6, 0.9]
    assert pairs.accepted("genuine", 0.1) == pytest.approx(1 / 2)
    assert pairs.accepted("impostor", 0.6) == pytest.approx(2 / 3)
    assert pairs.accepted("skilled", 0.19) == 0
    nothing = ScoredPairs(np.array([0.3]), np.array([True]))
    assert math.isnan(nothing.accepted("impostor", 1.0))


@pytest.mark.parametrize("skilled", [False, True])
def test_histogram_names_what_it_shows_and_how_many(skilled: bool) -> None:
    words = texts(
        distance_histogram(some_pairs(skilled=skilled), threshold=0.55, low=0.5, high=0.6)
    )
    assert "genuine pairs (60)" in words
    assert ("impostor pairs (240)" if skilled else "impostor pairs (300)") in words
    assert ("skilled forgeries (60)" in words) == skilled
    assert {"← same", "different →"} <= set(words)


def test_histogram_bars_are_shares_of_their_kind() -> None:
    # Two distances only, so all of a kind lies in one bar, whatever the number of pairs.
    pairs = ScoredPairs(np.array([0.0] * 4 + [1.0] * 40), np.array([True] * 4 + [False] * 40))
    picture = distance_histogram(pairs)
    (genuine,), (impostor,) = lines(picture, "genuine")[:1], lines(picture, "impostor")[:1]
    assert genuine[:, 1].min() == pytest.approx(impostor[:, 1].min())
    assert "100 %" in texts(picture)


def test_the_alternative_text_gives_the_rates_at_the_threshold() -> None:
    pairs = ScoredPairs(
        np.array([0.1, 0.3, 0.2, 0.5, 0.6, 0.7]), np.array([True, True, False, False, False, False])
    )
    label = ET.fromstring(distance_histogram(pairs, threshold=0.25)).get("aria-label")
    assert label is not None
    assert "accepts 25.0 % of the impostor pairs" in label
    assert "rejects 50.0 % of the genuine pairs" in label


@pytest.mark.parametrize(
    "pairs",
    [
        ScoredPairs(np.array([0.5, 0.5, 0.5]), np.array([True, False, False])),
        ScoredPairs(np.array([0.0, 0.0]), np.array([True, False])),
        ScoredPairs(np.array([0.5]), np.array([True])),
        ScoredPairs(np.array([-3.0, np.inf, 2.0]), np.array([True, True, False])),
        ScoredPairs(np.zeros(0), np.zeros(0, dtype=bool)),
    ],
    ids=["one value", "zero", "one pair", "infinite", "nothing"],
)
def test_odd_distances_still_draw(pairs: ScoredPairs) -> None:
    ET.fromstring(distance_histogram(pairs, threshold=0.4))
    for picture in roc_and_det(pairs, threshold=0.4):
        assert picture == "" or ET.fromstring(picture).tag == f"{SVG}svg"


def test_roc_passes_through_the_operating_point_and_stays_in_its_axes() -> None:
    pairs = ScoredPairs(
        np.array([0.1, 0.3, 0.2, 0.5, 0.6, 0.7]), np.array([True, True, False, False, False, False])
    )
    roc, _ = roc_and_det(pairs, threshold=0.25)
    (line,) = lines(roc, "genuine")[:1]
    low, high = line.min(axis=0), line.max(axis=0)
    share = (line - low) / (high - low)
    # FAR 1/4 with TAR 1/2; y grows downwards in SVG.
    assert np.abs(share - [0.25, 0.5]).max(axis=1).min() < 1e-3


def test_det_is_drawn_on_normal_deviates() -> None:
    rates = np.array([0.0001, 0.01, 0.5, 0.7])
    assert plots._deviate(rates) == pytest.approx(norm.ppf(rates), abs=1e-9)
    # Two normal distributions of one width make a straight line of slope -1 on these axes.
    at = norm.ppf((np.arange(4000) + 0.5) / 4000)
    pairs = ScoredPairs(np.concatenate([at, at + 2]), np.arange(8000) < 4000)
    _, det = roc_and_det(pairs)
    (line,) = [line for line in lines(det, "genuine") if len(line) > 50]
    middle = line[len(line) // 4 : 3 * len(line) // 4]
    fit = np.polynomial.Polynomial.fit(middle[:, 0], middle[:, 1], 1)
    assert np.abs(fit(middle[:, 0]) - middle[:, 1]).max() < 1.0


def test_det_without_errors_is_labelled_empty() -> None:
    perfect = ScoredPairs(np.array([0.1, 0.2, 0.8, 0.9]), np.array([True, True, False, False]))
    assert any("outside these axes" in words for words in texts(roc_and_det(perfect)[1]))
    assert not any("outside these axes" in words for words in texts(roc_and_det(some_pairs())[1]))


def test_roc_and_det_need_both_kinds() -> None:
    assert roc_and_det(ScoredPairs(np.array([0.1, 0.2]), np.array([True, True]))) == ("", "")


def test_learning_curves_mark_the_best_and_the_events() -> None:
    history = [{"step": s, "loss": 1 / s, "rate": 0.1, "val": None} for s in range(1, 51)]
    history[9]["val"], history[19]["val"], history[29]["val"] = 0.7, 0.9, float("nan")
    history[24]["event"] = "collapsed"
    loss, validation = learning_curves(history, metric="recall <at> 1 & $x_1$")
    assert "best 90.0 %" in texts(validation)
    assert "recall <at> 1 & $x_1$" in texts(validation)
    assert "at step 20" in ET.fromstring(validation).get("aria-label", "")
    assert "1" in texts(loss)


def test_learning_curves_of_missing_columns_are_empty() -> None:
    assert learning_curves([]) == ("", "")
    assert learning_curves([{"step": 1, "loss": float("nan")}]) == ("", "")
    loss, validation = learning_curves([{"step": 1, "loss": 0.5}])
    assert all(learning_curves([{"step": 0, "loss": 0.5, "val": 0.5}]))  # Without a warning.
    assert loss
    assert validation == ""


def test_smoothing_matches_a_loop() -> None:
    value = np.random.default_rng(0).normal(size=200)
    half = len(value) // 40
    for at, mean in enumerate(plots._smooth(value)):
        reach = min(half, at, len(value) - 1 - at)
        assert mean == pytest.approx(value[at - reach : at + reach + 1].mean())


def test_thinning_keeps_the_line() -> None:
    x = np.linspace(0, 1, 200_000)
    y = np.where(x < 0.3, 0.0, np.sin(20 * x))
    thin_x, thin_y = svg.thin(x, y)
    assert len(thin_x) < 20_000
    assert (thin_x[0], thin_x[-1]) == (x[0], x[-1])
    assert np.abs(np.interp(x, thin_x, thin_y) - y).max() < 0.01


def test_plots_share_no_ids_and_are_reproducible() -> None:
    history = [{"step": s, "loss": 0.5, "rate": 0.1, "val": 0.5} for s in range(5)]
    pairs = some_pairs(skilled=True)

    def draw() -> list[str]:
        wide, narrow = (distance_histogram(pairs, threshold=0.5, width=w) for w in (860, 400))
        return [wide, narrow, *roc_and_det(pairs, threshold=0.5), *learning_curves(history)]

    drawn = draw()
    assert drawn == draw()
    every = [key for picture in drawn for key in ids(picture)]
    assert len(every) == len(set(every)) > 0
    for picture in drawn:
        used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', picture))
        assert used <= set(ids(picture))


def test_plots_follow_the_page_and_have_no_prologue() -> None:
    picture = distance_histogram(some_pairs())
    assert picture.startswith("<svg")
    assert "metadata" not in picture
    colors = set(re.findall(r"#[0-9a-f]{6}", re.sub(r"var\([^)]*\)", "", picture)))
    assert colors == set()
    assert "var(--genuine, #1f66b0)" in picture


def test_the_users_matplotlib_is_left_alone() -> None:
    with matplotlib.rc_context({"svg.fonttype": "path", "axes.grid": False}):
        before = dict(matplotlib.rcParams)
        distance_histogram(some_pairs())
        assert dict(matplotlib.rcParams) == before


def test_importing_loads_no_matplotlib_and_drawing_no_pyplot() -> None:
    code = (
        "import sys, numpy as np\n"
        "from twinlens.report import content, embedding_map, page, plots\n"
        "assert not {'matplotlib', 'sklearn', 'torch'} & set(sys.modules)\n"
        "plots.distance_histogram(content.ScoredPairs(np.ones(2), np.array([True, False])))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
