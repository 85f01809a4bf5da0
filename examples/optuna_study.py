"""A study of settings with Optuna: each trial trains, and poor ones end early.

    pip install optuna
    python examples/optuna_study.py photos/ runs/study --trials 20

Validation pictures choose the settings, as they choose the weights of each trial. The error rates
of the last run are those of test pictures, which take no part in the study.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import optuna

import twinlens
from twinlens.learn.records import HistoryRow


class Pruning(twinlens.Callback):
    """Ends a trial whose validation metric is below the median of earlier trials at that step."""

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial
        self.best = 0.0

    def on_validation(self, record: HistoryRow) -> None:
        if record.metric is None or record.step == 0:
            return
        self.best = max(self.best, record.metric)
        self.trial.report(record.metric, record.step)
        if self.trial.should_prune():
            raise optuna.TrialPruned


def suggest(trial: optuna.Trial) -> dict[str, Any]:
    """The settings of a trial; docs/settings.md lists all that could vary."""
    return {
        "optimizer.rate": trial.suggest_float("optimizer.rate", 1e-4, 1e-2, log=True),
        "loss.temperature": trial.suggest_float("loss.temperature", 0.03, 0.3, log=True),
        "augment.rotate": trial.suggest_float("augment.rotate", 0.0, 20.0),
        "model.embedding": trial.suggest_categorical("model.embedding", [64, 128, 256]),
    }


def study_settings(
    data: str, out: Path, trials: int, fixed: dict[str, Any] | None = None
) -> tuple[dict[str, Any], twinlens.Matcher]:
    """The best settings of so many trials, and a model that is trained with them.

    Args:
        data: as in `twinlens.train`.
        out: new folder for the runs.
        trials: number of trials.
        fixed: settings of all trials.
    """
    # Every trial has the same split, since the seed is the same.
    fixed = {"train.steps": 400, "train.refit": False, **(fixed or {})}

    def objective(trial: optuna.Trial) -> float:
        pruning = Pruning(trial)
        twinlens.train(
            data, out=out / f"trial-{trial.number}", settings=fixed | suggest(trial),
            callbacks=[pruning], quiet=True,
        )  # fmt: skip
        return pruning.best

    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=0),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3),
    )
    study.optimize(objective, n_trials=trials)
    model = twinlens.train(data, out=out / "best", settings=fixed | study.best_params)
    return study.best_params, model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    parser.add_argument("--trials", type=int, default=20)
    args = parser.parse_args()
    best, model = study_settings(args.data, args.out, args.trials)
    for key, value in best.items():
        print(f"--set {key}={value:g}")
    print(f"model: {model.path}")


if __name__ == "__main__":
    main()
