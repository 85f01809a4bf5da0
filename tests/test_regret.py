"""`python -m benchmarks regret`: errors, baselines and the table, on pictures made here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from benchmarks import regret
from benchmarks.regret_baselines import COLUMNS, Pictures, embed_baseline
from benchmarks.regret_data import DATA_SETS, DataSet, badge, divide, made_up, texture
from benchmarks.regret_errors import COSINE, Errors, measure_errors

from twinlens.data.table import ImageTable


@pytest.fixture(scope="module")
def badges() -> ImageTable:
    return made_up("badges", badge)(0)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(regret, "KEPT", tmp_path)
    return tmp_path


def small_table(identity: str, split: str, forged: str = "") -> ImageTable:
    num = len(identity)
    return ImageTable(
        np.array([f"{row:02d}" for row in range(num)]), np.array(list(identity)),
        np.array([row in map(int, forged) for row in range(num)]),
        np.array([{"t": "train", "v": "val", "x": "test"}[one] for one in split]),
        "made up", None, pixels=np.zeros((num, 4, 4), dtype=np.uint8),
    )  # fmt: skip


def turned(*degrees: float) -> np.ndarray:
    angle = np.radians(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def test_open_errors_by_hand() -> None:
    table = small_table("aabb", "xxxx")
    errors = measure_errors("open", table, turned(0, 10, 12, 60)).value
    # Nearest of 10 is 12, of another identity, and of 12 is 10; those of 0 and 60: 10 and 12.
    assert errors["recall@1 missed"] == 0.5
    # Genuine: 10, 48; impostor: 12, 60, 2, 50. FAR = FRR = 1/2 where 10 and two impostors pass.
    assert errors["EER"] == pytest.approx(0.5)
    assert measure_errors("open", table, turned(0, 1, 80, 81)).value == {
        "EER": 0, "recall@1 missed": 0, "one-shot missed": 0
    }  # fmt: skip


def test_skilled_errors_compare_with_forgeries_of_the_same_identity_alone() -> None:
    table = small_table("aaabbb", "xxxxxx", forged="25")
    emb = turned(0, 5, 30, 1, 6, 31)  # Identities lie on each other; forgeries lie apart.
    assert measure_errors("skilled", table, emb).value == {"EER, skilled": 0}
    assert measure_errors("skilled", table, turned(0, 30, 5, 0, 30, 5)).value["EER, skilled"] == 1


def test_closed_errors_use_the_threshold_of_validation() -> None:
    table = small_table("aabb" * 2, "vvvvxxxx")
    emb = turned(0, 5, 50, 55, 0, 5, 50, 55)
    assert measure_errors("closed", table, emb).value == {"pairs wrong": 0}
    # The threshold is between 5 and 45 degrees, so that all genuine test pairs are refused.
    wide = turned(0, 5, 50, 55, 0, 42, 100, 142)
    assert measure_errors("closed", table, wide).value == {"pairs wrong": 0.5}


def test_nearest_errors_search_training_and_validation_pictures() -> None:
    table = small_table("abcabc", "ttvxxx")
    assert measure_errors("nearest", table, turned(0, 40, 80, 1, 41, 2)).value == {
        "nearest wrong": pytest.approx(1 / 3)
    }


def test_replicates_are_paired_and_reproducible() -> None:
    table = small_table("aabbcc", "xxxxxx")
    emb = turned(0, 10, 12, 60, 30, 45)
    first, second = (measure_errors("open", table, emb, COSINE) for _ in range(2))
    for name, drawn in first.replicates.items():
        assert len(drawn) == 200
        np.testing.assert_array_equal(drawn, second.replicates[name])


@pytest.mark.parametrize("draw", [badge, texture])
def test_made_up_identities_are_disjoint_and_reproducible(draw) -> None:
    table, again = made_up("made up", draw)(3), made_up("made up", draw)(3)
    np.testing.assert_array_equal(table.pixels, again.pixels)
    parts = [set(table.of_split(split).identity) for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [10, 4, 10]
    assert len(set.union(*parts)) == 24


def test_divide_depends_on_the_division() -> None:
    table = small_table("aabbccddeeff", "x" * 12)
    splits = [tuple(divide(table, number, train=2, val=1).split) for number in range(8)]
    assert len(set(splits)) > 4
    assert all(one.count("train") == 4 and one.count("val") == 2 for one in splits)


def test_a_histogram_tells_badges_apart_and_forgets_where_patches_are(badges: ImageTable) -> None:
    pictures = Pictures(badges, "open")
    errors = {}
    for column in ("pixels", "histogram", "HOG"):
        embedded = embed_baseline(pictures, column)
        assert embedded.variant in COLUMNS[column][0]
        errors[column] = measure_errors("open", badges, embedded.emb, replicates=0).value["EER"]
    assert errors["histogram"] < min(errors["pixels"], errors["HOG"]) - 0.1


def test_whitening_is_chosen_without_the_test_pictures(badges: ImageTable) -> None:
    pictures = Pictures(badges, "open")
    first = embed_baseline(pictures, "HOG whitened")
    scrambled = badges.identity.copy()
    test = np.flatnonzero(badges.split == "test")
    scrambled[test] = np.random.default_rng(0).permutation(scrambled[test])
    other = Pictures(ImageTable(
        badges.path, scrambled, badges.forged, badges.split, "x", None, pixels=badges.pixels,
    ), "open")  # fmt: skip
    second = embed_baseline(other, "HOG whitened")
    assert first.variant == second.variant
    np.testing.assert_allclose(first.emb, second.emb, atol=1e-5)


@pytest.mark.slow
def test_pml_loop_learns_by_the_clock(badges: ImageTable) -> None:
    from benchmarks.regret_pml import LOSSES, embed_by_pml

    pictures = Pictures(badges, "open")
    embedded = embed_by_pml(pictures, budget=0.2)
    assert embedded.variant in LOSSES
    assert 0.2 <= embedded.seconds < 5
    np.testing.assert_allclose(np.linalg.norm(embedded.emb, axis=1), 1, atol=1e-5)


def keep(column: str, low: float, high: float) -> None:
    drawn = np.random.default_rng(len(column)).uniform(low, high, 200)
    errors = Errors({"EER": (low + high) / 2}, {"EER": drawn})
    regret.keep_cell("badges", 0, column, 60, errors, 3.0, "x")


def test_the_table_marks_what_beats_auto_by_more_than_its_interval(kept: Path) -> None:
    keep("auto", 0.2, 0.3)
    keep("pixels", 0.1, 0.14)
    keep("HOG", 0.19, 0.30)
    keep("histogram", 0.4, 0.5)
    row = next(line for line in regret.table().splitlines() if "badges: EER" in line)
    cells = dict(zip(regret.COLUMNS, [one.strip() for one in row.split("|")[2:-1]], strict=True))
    assert cells["pixels"] == "**12.0 < auto**"
    assert cells["HOG"] == "24.5"
    assert cells["histogram"] == "45.0"
    assert cells["auto"] == "25.0"
    assert cells["lite0"] == ""


def test_cells_of_an_earlier_page_stay(kept: Path) -> None:
    keep("auto", 0.2, 0.3)
    keep("pixels", 0.4, 0.5)
    earlier = regret.table()
    for file in (kept / "regret").iterdir():
        file.unlink()
    assert regret.table(earlier) == earlier
    keep("pixels", 0.6, 0.7)
    assert regret.table(earlier) == earlier.replace("45.0", "65.0")


def test_kept_cells_are_not_measured_again(
    kept: Path, monkeypatch: pytest.MonkeyPatch, badges: ImageTable
) -> None:
    made = []

    def make(division: int) -> ImageTable:
        made.append(division)
        return badges

    monkeypatch.setitem(DATA_SETS, "badges", DataSet(make, "open", 60))
    for _ in range(2):
        regret.measure("badges", 0, ["histogram", "recipe"], 60)
    assert made == [0]
    regret.measure("badges", 0, ["histogram"], 60, anew=True)
    assert made == [0, 0]


def test_columns_are_compared_on_the_divisions_that_all_have(kept: Path) -> None:
    keep("auto", 0.2, 0.3)
    keep("pixels", 0.1, 0.14)
    errors = Errors({"EER": 0.9}, {"EER": np.full(200, 0.9)})
    regret.keep_cell("badges", 1, "pixels", 60, errors, 3.0, "x")
    assert "**12.0 < auto**" in regret.table()
    regret.keep_cell("badges", 1, "auto", 60, errors, 3.0, "x")
    assert "| **51.0 < auto** |" in regret.table()


def test_a_budget_matters_to_what_is_trained_alone(kept: Path) -> None:
    keep("auto", 0, 1)
    keep("pixels", 0, 1)
    assert regret.is_kept("badges", 0, "auto", 60)
    assert not regret.is_kept("badges", 0, "auto", 30)
    assert regret.is_kept("badges", 0, "pixels", 30)


def test_every_data_set_with_a_recipe_names_one_that_exists() -> None:
    from twinlens.recipes import load_recipe

    for data in DATA_SETS.values():
        if data.recipe:
            load_recipe(data.recipe, data.settings)
