"""What a training says on the terminal: its choices, its results, and the next command."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import TinyRun

from twinlens.commands.run_lines import choice_lines, next_line, pair_of, result_lines
from twinlens.config import Settings, value_text
from twinlens.data.folders import read_table
from twinlens.data.splits import assign_splits
from twinlens.learn.records import Choice
from twinlens.learn.run_folder import RunFolder
from twinlens.measure.bootstrap import Estimate
from twinlens.recipes import load_recipe, recipe_names

RUN = RunFolder(Path("runs/my run"))


@pytest.mark.parametrize("name", recipe_names())
def test_choices_take_five_lines_at_most(name: str) -> None:
    lines = list(choice_lines(load_recipe(name).settings(), [], RUN))
    assert 3 <= len(lines) <= 5
    assert not any("None" in line or "\n" in line for line in lines)


def test_choices_by_hand() -> None:
    settings = Settings.model_validate(
        {
            "picture": {"size": (64, 48), "color": "grey"},
            "augment": {"rotate": 8.0, "flip": True},
            "train": {"steps": 300, "extend": True, "candidates": True, "patience": 5},
        }
    )
    choices = [Choice("model.backbone", "conv", "small grey pictures"), Choice("x", 1, "")]
    assert list(choice_lines(settings, choices, RUN)) == [
        "network: conv, from random weights, on 64 x 48 grey pictures (small grey pictures)",
        "training: loss supcon, adamw, batches of 32 identities x 4 pictures; 300 steps, more "
        "while they help, fewer after 5 validations without a gain",
        "views: rotate 8, flip",
        "then: compared with features that need no training, and joined where that helps",
        "2 settings chosen; reasons in runs/my run/report.html",
    ]


def result(**calibrated: Estimate) -> Any:
    rates = SimpleNamespace(**calibrated) if calibrated else None
    pairs = SimpleNamespace(eer=Estimate(0.042, 0.0213, 0.068), num_identities=6, calibrated=rates)
    return SimpleNamespace(
        verification=pairs, split="test", identity_disjoint=True, table=range(54)
    )


def test_results_by_hand() -> None:
    rates = {"far": Estimate(0.008, 0.002, 0.019), "frr": Estimate(0.071)}
    calibration: Any = SimpleNamespace(threshold=0.4123, target_far=0.01)
    assert list(result_lines(result(**rates), calibration, [])) == [
        "error rate: EER 4.2 % (95 % interval 2.1 to 6.8 %) on 54 test pictures of 6 identities, "
        "none of them trained on",
        "threshold: 0.412, for a FAR of 1 %; on these test pictures it accepts 0.8 % (95 % "
        "interval 0.2 to 1.9 %) of impostor pairs and rejects 7.1 % of genuine pairs",
    ]
    (_, strict) = result_lines(result(**rates | {"frr": Estimate(0.96)}), calibration, [])
    assert strict.endswith("a higher FAR: `twinlens calibrate MODEL DATA --far 0.1`")


def test_without_results_the_lines_say_so() -> None:
    (first, _) = result_lines(result(), None, [], begun_with_own=True)
    assert first.endswith("none of them trained on in this run")
    lines = list(result_lines(None, None, ["There are no test pictures.", "Nor others."]))
    assert lines == [
        "error rate: not measured. There are no test pictures.",
        "threshold: none, so that distances are shown without verdicts",
    ]


def test_the_next_command(tiny_run: TinyRun) -> None:
    """Two pictures of one identity that was not trained on; without a threshold, its command."""
    table = assign_splits(
        read_table(tiny_run.data), mode="identities", fractions=(0.7, 0.15, 0.15), seed=0
    )
    words = next_line(RUN.path, tiny_run.data, pair_of(table), calibrated=True)
    name = sorted(set(table.of_split("test").identity))[0]
    a, b = (tiny_run.data / name / f"{number}.png" for number in (0, 1))
    assert words == f"next: twinlens verify 'runs/my run' '{a}' '{b}'"
    words = next_line(RUN.path, "photos", None, calibrated=False)
    assert words == "next: twinlens calibrate 'runs/my run' photos --on all"


def test_a_training_says_all_of_it(tiny_run: TinyRun) -> None:
    lines = tiny_run.said.splitlines()
    assert lines[0].startswith("network: mlp, from random weights, on 16 x 16 grey pictures")
    assert sum(line.startswith(("network", "training:", "views")) for line in lines) == 3
    wide = r"EER [\d.]+ % \(too few identities for an interval\)"
    assert re.match(rf"error rate: {wide} on 12 test pictures of 2 identities, none", lines[-3])
    assert lines[-2].startswith("threshold: 0.")
    assert lines[-1].startswith(f"next: twinlens verify {tiny_run.run} ")


def test_a_value_that_is_not_set_is_shown_as_what_it_means() -> None:
    assert value_text("model.weights", None) == "no file"
    assert value_text("model.stage", None) == "the whole network"
    assert value_text("train.chunk", None) == "not set"
    assert value_text("loss.args.alpha", None) == "not set"
    assert value_text("augment.flip", False) == "no"
