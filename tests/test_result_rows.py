from __future__ import annotations

from typing import Any

from twinlens.report.result_rows import result_rows

NBSP = "\N{NO-BREAK SPACE}"
DASH = "\N{EN DASH}"


def test_rows_of_all_results_in_order() -> None:
    figure = {"value": 0.25, "low": 0.2, "high": 0.3}
    results: dict[str, Any] = {
        "verification": {
            "eer": figure, "auc": figure, "accuracy": figure, "threshold": 0.4,
            "tar_at_far": {"0.1": figure, "0.01": figure, "0.001": None},
            "calibrated": {"threshold": 0.4, "far": figure, "frr": figure, "accuracy": None},
            "skilled": {"eer": figure, "tar_at_far": {"0.01": figure}, "far": figure},
        },
        "retrieval": {
            "recall_at_1": figure, "recall_at_5": figure, "map_at_r": {"value": None},
            "num_probes": 7,
        },
        "one_shot": {"20-way-1-shot": figure, "5-way-5-shot": figure, "odd": 1.0},
        "trials": {"accuracy": figure, "eer": figure, "num_genuine": 3},
    }  # fmt: skip
    rows = list(result_rows(results))
    assert [row.name.replace(NBSP, " ") for row in rows] == [
        "Equal error rate",
        "Area under the ROC curve",
        "Accuracy, best threshold",
        "TAR at 10 % FAR",
        "TAR at 1 % FAR",
        "False accepts, calibrated",
        "False rejects, calibrated",
        "Equal error rate, forgeries",
        "TAR at 1 % FAR, forgeries",
        "False accepts, forgeries",
        "Recall at 1",
        "Recall at 5",
        "20-way one-shot accuracy",
        "5-way 5-shot accuracy",
        "odd",
        "Given trials, accuracy",
        "Given trials, equal error rate",
    ]
    assert [row.name.replace(NBSP, " ") for row in rows if row.key] == [
        "Equal error rate",
        "TAR at 1 % FAR",
        "Recall at 1",
        "20-way one-shot accuracy",
        "Given trials, accuracy",
    ]
    assert rows[0].value == f"25.0{NBSP}%"
    assert rows[0].interval == f"20.0{DASH}30.0{NBSP}%"


def test_no_results_no_rows() -> None:
    assert list(result_rows({})) == []
    assert list(result_rows({"verification": None, "retrieval": {}, "one_shot": None})) == []
