"""Open-set identification: enrolled identities, strangers, and what thresholds do to both."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import reference
from made_up_people import Euclid, people

from twinlens.errors import ConfigError, DataError
from twinlens.measure.open_set import SIZES, TARGET_FPIRS, OpenSetResult, open_set
from twinlens.measure.open_set_split import OpenSetSplit


@pytest.fixture(scope="module")
def found() -> OpenSetResult:
    emb, label = people(26, 12, spread=0.3, seed=1)
    measured = open_set(
        emb, label, Euclid(), shot=2, pair_threshold=0.6, sizes=(3, 6, 999), draws=4, replicates=40
    )
    assert measured is not None
    return measured


def division(label, num_enrolled, shot, seed):
    _, code, count = np.unique(label, return_inverse=True, return_counts=True)
    return OpenSetSplit.draw(code, count, num_enrolled, shot, np.random.default_rng(seed))


@pytest.mark.parametrize("rule", ["nearest", "mean", "vote"])
def test_its_figures_are_those_of_the_loop(rule):
    """One picture against one template at a time, in the same splits."""
    emb, label = people(10, 6, spread=0.8, seed=3)
    found = open_set(emb, label, Euclid(), shot=2, rule=rule, pair_threshold=0.5, sizes=(),
                     draws=2, seed=9, replicates=0)  # fmt: skip
    ranks, dirs, at_pairs, away, held, held_away = [], [], [], [], [], []
    for number in range(2):
        drawn = division(label, 5, 2, [9, number])
        gallery = [
            (emb[row].astype(float).tolist(), int(code))
            for row, code in zip(drawn.template, drawn.template_code, strict=True)
        ]

        def best(rows, gallery=gallery):
            lists = [
                reference.rank_in_gallery_loop(emb[row].astype(float).tolist(), gallery, rule)
                for row in rows
            ]
            return [places[0] for places in lists]

        answers, strangers = best(drawn.mated), [near for _, near in best(drawn.nonmated)]
        right = [code == own for (code, _), own in zip(answers, drawn.mated_code, strict=True)]
        near = [distance for _, distance in answers]
        ranks.append(np.mean(right))
        dirs.append(reference.open_set_loop(right, near, strangers, 0.1))
        at_pairs.append(np.mean([r and d <= 0.5 for r, d in zip(right, near, strict=True)]))
        away.append(np.mean([d > 0.5 for d in strangers]))
        judged = []
        for odd in (True, False):
            chosen = [d for d, o in zip(strangers, drawn.odd, strict=True) if o == odd]
            others = [d for d, o in zip(strangers, drawn.odd, strict=True) if o != odd]
            held.append(reference.open_set_loop(right, near, chosen, 0.1))
            threshold = reference.strictest_threshold(chosen, 0.1)
            judged += [d > threshold for d in others]
        held_away.append(np.mean(judged))
    assert found.whole.rank_1.value == pytest.approx(np.mean(ranks))
    assert found.whole.dir_at_fpir["0.1"].value == pytest.approx(np.mean(dirs))
    assert found.whole.dir_at_fpir["0.01"].value is None, "30 strangers cannot tell 1 %"
    assert found.whole.pair_threshold.dir.value == pytest.approx(np.mean(at_pairs))
    assert found.whole.pair_threshold.turned_away.value == pytest.approx(np.mean(away))
    assert found.held_out["0.1"].dir.value == pytest.approx(np.mean(held))
    assert found.held_out["0.1"].turned_away.value == pytest.approx(np.mean(held_away))
    assert found.held_out["0.01"].dir.value is None
    assert (found.num_mated, found.num_nonmated) == (2 * 20, 2 * 30)


def test_identities_that_are_far_apart_are_all_named_and_strangers_turned_away():
    emb, label = people(12, 12, spread=0.001)
    found = open_set(emb, label, Euclid(), pair_threshold=0.05, sizes=(2,), draws=3, replicates=20)
    for part in found.by_size:
        assert (part.rank_1.value, part.pair_threshold.turned_away.value) == (1, 1)
        assert part.pair_threshold.dir.value == 1
        assert part.dir_at_fpir["0.1"].value == part.dir_at_fpir["0.1"].low == 1
    assert found.held_out["0.1"].dir.value == 1
    assert [point[1] for point in found.curve] == [1] * len(found.curve)


def test_collapsed_embeddings_identify_nobody():
    emb, label = people(10, 12)
    found = open_set(emb * 0, label, Euclid(), pair_threshold=0.5, draws=3, replicates=20)
    assert found.whole.rank_1.value == pytest.approx(1 / 5)
    assert found.whole.dir_at_fpir["0.1"].value == 0
    assert found.whole.pair_threshold.turned_away.value == 0
    assert found.held_out["0.1"].turned_away.value == 1


def test_larger_galleries_turn_fewer_strangers_away(found):
    assert [part.num_enrolled for part in found.by_size] == [3, 6, 13]
    away = [part.pair_threshold.turned_away.value for part in found.by_size]
    assert away == sorted(away, reverse=True)
    assert away[0] > away[-1]
    rank = [part.rank_1.value for part in found.by_size]
    assert rank == sorted(rank, reverse=True)
    assert found.by_size[-1] == found.whole


def test_the_curve_rises_to_rank_1_and_goes_through_the_figures(found):
    fpir, named = np.array(found.curve).T
    assert fpir[0] == pytest.approx(1 / (13 * 12))
    assert fpir[-1] == 1
    assert (np.diff(fpir) > 0).all()
    assert (np.diff(named) >= 0).all()
    assert named[-1] <= found.whole.rank_1.value
    for target in TARGET_FPIRS:
        value = found.whole.dir_at_fpir[target].value
        assert named[fpir <= float(target)][-1] <= value <= named[fpir >= float(target)][0]


def test_intervals_hold_the_value_and_the_seed_repeats_them(found):
    figures = [
        found.whole.rank_1,
        found.whole.dir_at_fpir["0.1"],
        found.whole.pair_threshold.dir,
        found.whole.pair_threshold.turned_away,
    ]
    for figure in figures:
        assert figure.low < figure.value < figure.high
    emb, label = people(26, 12, spread=0.3, seed=1)
    same = {"shot": 2, "pair_threshold": 0.6, "sizes": (3, 6), "draws": 4, "replicates": 40}
    assert open_set(emb, label, Euclid(), **same) == found
    assert open_set(emb, label, Euclid(), seed=1, **same) != found


def test_new_names_change_nothing(found):
    emb, label = people(26, 12, spread=0.3, seed=1)
    other = open_set(
        emb, label * 7 + 100, Euclid(), shot=2, pair_threshold=0.6, sizes=(3, 6), draws=4,
        replicates=40,
    )  # fmt: skip
    assert other == found


def test_too_few_identities():
    emb, label = people(9, 3)
    assert open_set(emb[:9], label[:9], Euclid()) is None, "3 identities"
    assert open_set(emb, label, Euclid(), shot=3) is None, "no identity has a picture left"
    few = np.concatenate([np.arange(6), np.arange(6, 27, 3)])
    found = open_set(emb[few], label[few], Euclid(), draws=2, replicates=5)
    assert (found.whole.num_enrolled, found.num_strangers) == (2, 7)
    assert found.by_size == (found.whole,)


def test_its_json_is_plain(found):
    text = json.dumps(found.as_json(), allow_nan=False)
    values = json.loads(text)
    assert values["num_enrolled"] == 13
    assert values["pair_threshold"]["threshold"] == 0.6
    assert values["by_size"][-1]["rank_1"] == values["rank_1"] == found.whole.rank_1.as_json()
    assert list(values["held_out"]) == list(values["dir_at_fpir"]) == list(TARGET_FPIRS)
    assert not math.isnan(values["curve"][0]["dir"])
    emb, label = people(6, 3)
    bare = open_set(emb, label, Euclid(), draws=1, replicates=5).as_json()
    assert "pair_threshold" not in bare
    assert "pair_threshold" not in bare["by_size"][0]


def test_progress_and_sizes_by_default():
    emb, label = people(24, 2, seed=5)
    seen = []
    found = open_set(emb, label, Euclid(), draws=2, replicates=2,
                     progress=lambda *at: seen.append(at))  # fmt: skip
    assert [part.num_enrolled for part in found.by_size] == [5, 10, 12]
    assert SIZES[:3] == (5, 10, 20)
    assert seen == [(number, 6) for number in range(1, 7)]


def test_what_cannot_be_is_refused():
    emb, label = people(8, 3)
    with pytest.raises(ConfigError, match="unknown rule"):
        open_set(emb, label, Euclid(), rule="median")
    for wrong in ({"shot": 0}, {"draws": 0}, {"sizes": (0,)}):
        with pytest.raises(DataError, match="must each be at least 1"):
            open_set(emb, label, Euclid(), **wrong)
