"""Groups of pictures and pairs: columns, bins, and the error rates of each group."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from made_up_people import Euclid, people_with_forgeries

from twinlens.data.columns import Groups, as_groups, column_names, read_column
from twinlens.data.table import ImageTable
from twinlens.errors import DataError
from twinlens.measure.calibration import Calibration
from twinlens.measure.groups import group_rates, trial_group_rates
from twinlens.measure.probability import Platt
from twinlens.measure.trials import pair_trials
from twinlens.measure.verification import verification

CALIBRATION = Calibration(1.5, 1.25, 1.75, 0.01, 100, 1000, 10, Platt(2.0, -3.0), None, None)


def table_of(paths: list[str], split: str = "") -> ImageTable:
    rows = [(f"/data/{path}", path.rpartition("/")[0], False, split) for path in paths]
    return ImageTable.of_rows(rows, "data", Path("/data"))


def test_the_folder_above_the_identity_is_a_column() -> None:
    letters = ["Greek/a/0.png", "Greek/b/0.png", "Latin/a/0.png"]
    table = table_of(letters)
    assert column_names(table) == ["folder"]
    assert read_column(table, "folder") == ["Greek", "Greek", "Latin"]
    split = table_of([f"test/{path}" for path in letters], "test")
    assert read_column(split, "folder") == ["Greek", "Greek", "Latin"]
    with pytest.raises(DataError, match="has no column 'age' to group by; its columns are folder"):
        read_column(table, "age")
    with pytest.raises(DataError, match="it has none: they come from further columns"):
        read_column(table_of(["a/0.png", "b/0.png"]), "folder")


def test_metadata_are_columns() -> None:
    table = table_of(["A/a/0.png", "A/b/0.png", "B/c/0.png"])
    table = table.with_metadata([{"camera": "x"}, {"folder": "mine"}, {"age": 7}])
    assert column_names(table) == ["age", "camera", "folder"]
    assert read_column(table, "camera") == ["x", None, None]
    assert read_column(table, "folder") == [None, "mine", None]


def test_values_become_groups() -> None:
    groups = as_groups(["b", "", " a ", None, True], "camera")
    assert (groups.names, groups.code.tolist()) == (("True", "a", "b"), [2, -1, 1, -1, 0])
    few = as_groups(["10", "9", 9.0, ""], "floor")
    assert (few.names, few.code.tolist()) == (("9", "10"), [1, 0, 0, -1])
    ages = as_groups([*range(16), 90.5], "age")
    assert ages.names == ("0 to 4", "5 to 8", "9 to 12", "13 to 90.5")
    tied = as_groups([0] * 50 + [*range(1, 10)], "zeros")
    assert tied.names == ("0", "1 to 9")
    with pytest.raises(DataError, match="'x' is empty"):
        as_groups(["", None], "x")
    with pytest.raises(DataError, match="'serial' has 51 different values, and at most 50 groups"):
        as_groups([f"n{number}" for number in range(51)], "serial")


def test_rates_of_a_group_are_those_of_its_pictures_alone() -> None:
    emb, label, forged = people_with_forgeries(24, 4, spread=0.9)
    emb[label >= 16] *= 0.5  # A group whose identities lie closer.
    group = np.where(label < 8, 0, np.where(label < 16, 1, 2))
    group[label == 23] = -1
    result = group_rates(
        emb, label, forged, Groups("kind", ("a", "b", "c"), group), Euclid(),
        calibrated=CALIBRATION, replicates=20,
    )  # fmt: skip
    assert result.num_missing == 4
    for place, part in enumerate(result.groups):
        rows = group == place
        alone = verification(
            emb[rows], label[rows], forged[rows], Euclid(), calibrated=CALIBRATION, replicates=20
        )
        assert alone.calibrated is not None
        assert (part.eer, part.far, part.frr) == (
            alone.eer, alone.calibrated.far, alone.calibrated.frr,
        )  # fmt: skip
        assert (part.num_genuine, part.num_impostor) == (alone.num_genuine, alone.num_impostor)
        assert (part.num_identities, part.num_pictures) == (alone.num_identities, rows.sum())
    assert result.worst["far"] == "c"
    # No identity is in two groups: pairs of two groups are impostors alone.
    across = result.across
    assert across is not None
    assert across.num_impostor == 4 * 4 * (8 * 8 + 8 * 7 * 2)
    assert (across.num_genuine, across.frr, across.eer) == (0, None, None)
    assert across.far is not None
    parsed = json.loads(json.dumps(result.as_json(), allow_nan=False))
    assert list(parsed) == ["groups", "across", "worst", "too_small", "num_missing"]
    assert "own" not in parsed["groups"][0]


def test_pictures_of_an_identity_in_two_groups_make_genuine_pairs_across() -> None:
    emb, label, forged = people_with_forgeries(12, 4)
    order = np.argsort(label, kind="stable")
    camera = Groups("camera", ("a", "b"), np.argsort(order) % 2)
    result = group_rates(emb, label, forged, camera, Euclid(), calibrated=None, replicates=5)
    assert result.across is not None
    assert result.across.num_genuine == 12 * 2 * 2
    assert result.across.eer is not None
    assert result.across.far is result.groups[0].far is None
    assert set(result.worst) <= {"eer"}


def test_a_small_group_has_counts_only() -> None:
    emb, label, forged = people_with_forgeries(12, 3)
    groups = Groups("kind", ("large", "small"), np.where(label < 8, 0, 1))
    result = group_rates(emb, label, forged, groups, Euclid(), calibrated=None, replicates=2)
    assert result.too_small == ("small",)
    assert result.groups[1].as_json() == {
        "name": "small", "num_genuine": 12, "num_impostor": 54, "num_identities": 4,
        "num_pictures": 12,
    }  # fmt: skip
    assert result.worst == {}


def test_a_threshold_of_each_group() -> None:
    emb, label, forged = people_with_forgeries(16, 4, spread=0.9)
    emb[label >= 8] *= 0.5
    groups = Groups("kind", ("a", "b"), np.where(label < 8, 0, 1))
    result = group_rates(
        emb, label, forged, groups, Euclid(), calibrated=CALIBRATION, target_far=0.1, replicates=5
    )
    wide, close = (part.own for part in result.groups)
    assert wide is not None
    assert close is not None
    assert close.threshold.value < wide.threshold.value
    assert result.across is not None
    assert result.across.own is None
    assert close.as_json()["target_far"] == 0.1


def test_groups_of_given_pairs() -> None:
    rng = np.random.default_rng(0)
    same = np.arange(90) % 2 == 0
    distance = rng.normal(np.where(same, 1.0, 2.0), 0.5)
    values = ["x"] * 40 + ["y"] * 40 + ["z"] * 9 + [""]
    result = trial_group_rates(
        distance, same, as_groups(values, "camera"), calibrated=CALIBRATION, replicates=20
    )
    alone = pair_trials(distance[:40], same[:40], calibrated=CALIBRATION, replicates=20)
    first = result.groups[0]
    assert (first.far, first.frr, first.eer) == (alone.far, alone.frr, alone.eer)
    assert (first.num_pictures, first.num_identities, result.across) == (None, None, None)
    assert (result.too_small, result.num_missing) == (("z",), 1)
