"""The report of a model: choice of its pictures, and its facts as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from twinlens.config import Settings, value_text
from twinlens.learn.records import CandidateRow, Choice, HistoryRow, LearningPoint
from twinlens.machine import machine, versions
from twinlens.match.matcher import Matcher
from twinlens.measure.calibration import Calibration
from twinlens.measure.evaluation_result import (
    EvaluationResult,
    NearestNeighbourEvaluation,
    OpenSetEvaluation,
)
from twinlens.progress import format_duration
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
from twinlens.report.embedding_map import map_rows
from twinlens.report.page import write_report

__all__ = ["ReportFacts", "write_model_report"]

MOST_MISTAKES = 24
CURVES = {"isotonic": "isotonic regression", "platt": "Platt scaling"}

METRICS = {
    "eer": "1 - EER",
    "eer_forged": "1 - mean of two EERs: all pairs, forgeries alone",
    "recall_at_1": "recall at 1",
}


@dataclass(frozen=True)
class ReportFacts:
    """Facts of a report besides the results; those of the run are missing for a loaded model."""

    title: str
    data: str
    splits: Sequence[tuple[str, int, int]]
    settings: Settings | None = None
    recipe: str = ""
    choices: Sequence[Choice] = ()
    history: Sequence[HistoryRow] = ()
    candidates: Sequence[CandidateRow] = ()
    curve: Sequence[LearningPoint] = ()
    seconds: float | None = None
    steps: int | None = None
    best_step: int | None = None
    fingerprint: str | None = None
    broken: Sequence[tuple[str, str]] = ()
    findings: Sequence[str] = ()
    command: str = ""


def write_model_report(
    path: Path,
    matcher: Matcher,
    result: EvaluationResult | NearestNeighbourEvaluation | OpenSetEvaluation | None,
    facts: ReportFacts,
) -> None:
    """Write `report.html`; parts without results are left out."""
    seed = 0 if facts.settings is None else facts.settings.seed
    parts: dict[str, Any] = {}
    if isinstance(result, NearestNeighbourEvaluation):
        parts = _nearest_parts(result)
    elif isinstance(result, EvaluationResult):
        parts = _verification_parts(result, seed)
    elif result is not None:
        parts = {"map": _map_pictures(result, seed)}
    metric = "eer" if facts.settings is None else facts.settings.train.metric
    content = ReportContent(
        title=facts.title,
        data=facts.data,
        results={} if result is None else result.as_json(),
        splits=[SplitCount(*counts) for counts in facts.splits],
        operating=_operating(matcher.calibration),
        history=[_history_row(row) for row in facts.history],
        metric=METRICS[metric],
        candidates=facts.candidates,
        curve=facts.curve,
        broken=facts.broken,
        findings=facts.findings,
        settings=_setting_rows(facts),
        facts=_fact_rows(matcher, facts),
        command=facts.command,
        **parts,
    )
    write_report(path, content)


def _verification_parts(result: EvaluationResult, seed: int) -> dict[str, Any]:
    pairs, distance = result.verification.pairs, result.verification.distance
    label = result.table.labels()
    skilled = ~pairs.same & (label[pairs.a] == label[pairs.b])
    scored = ScoredPairs(
        distance.astype(np.float64), pairs.same, skilled if skilled.any() else None
    )
    return {
        "pairs": scored,
        "map": _map_pictures(result, seed),
        "nearest_impostors": _worst_pairs(result, scored, genuine=False),
        "farthest_genuine": _worst_pairs(result, scored, genuine=True),
    }


def _map_pictures(result: EvaluationResult | OpenSetEvaluation, seed: int) -> MapPictures:
    table = result.table
    # Chosen here, since the pixels of all may be more than memory holds.
    rows = map_rows(table.identity.tolist(), np.random.default_rng(seed))
    return MapPictures(
        result.embeddings[rows], table.identity[rows].tolist(), result.pixels[rows],
        table.forged[rows], seed,
    )  # fmt: skip


def _nearest_parts(result: NearestNeighbourEvaluation) -> dict[str, Any]:
    """The map of the probes, and the wrong answers at the smallest distances."""
    table, probe, pixels = result.table, result.probe, result.pixels
    nearest = result.gallery[result.nearest.row[:, 0]]
    distance = result.nearest.distance[:, 0]
    identity, answer = table.identity[probe].tolist(), table.identity[nearest].tolist()
    wrong = worst_rows(
        ScoredPairs(distance.astype(np.float64), result.nearest.right), identity, answer,
        genuine=False, max_pairs=MOST_MISTAKES,
    )  # fmt: skip
    # Chosen here, since the pixels of all may be more than memory holds.
    shown = map_rows(identity, np.random.default_rng(0))
    rows = probe[shown]
    return {
        "map": MapPictures(
            result.embeddings[rows], [identity[row] for row in shown], pixels[rows]
        ),
        "nearest_wrong": [
            PicturePair(
                pixels[probe[row]], pixels[nearest[row]], identity[row], answer[row],
                table.relative(probe[row]), table.relative(nearest[row]), float(distance[row]),
            )
            for row in wrong
        ],
    }  # fmt: skip


def _worst_pairs(
    result: EvaluationResult, scored: ScoredPairs, *, genuine: bool
) -> list[PicturePair]:
    """The genuine pairs at the largest distances, or the impostor pairs at the smallest."""
    table, pixels, pairs = result.table, result.pixels, result.verification.pairs
    rows = worst_rows(
        scored, table.identity[pairs.a].tolist(), table.identity[pairs.b].tolist(), genuine=genuine
    )
    return [
        PicturePair(
            pixels[a], pixels[b], table.identity[a], table.identity[b],
            table.relative(a), table.relative(b), float(result.verification.distance[row]),
            "a forgery" if table.forged[b] else "",
        )
        for row, a, b in zip(rows, pairs.a[rows], pairs.b[rows], strict=True)
    ]  # fmt: skip


def _operating(calibration: Calibration | None) -> OperatingPoint | None:
    if calibration is None:
        return None
    return OperatingPoint(
        calibration.threshold,
        calibration.target_far,
        calibration.low,
        calibration.high,
        calibration.num_impostor,
        "" if calibration.curve is None else CURVES[calibration.curve.kind],
        calibration.unadjusted,
    )


def _history_row(row: HistoryRow) -> dict[str, Any]:
    values = asdict(row)
    return values | {"val": values.pop("metric")}


def _setting_rows(facts: ReportFacts) -> list[SettingRow]:
    """Settings chosen from the data, with reasons, then all others that are not empty."""
    if facts.settings is None:
        return []
    chosen = {choice.key for choice in facts.choices}
    rows = [SettingRow(c.key, value_text(c.key, c.value), c.why) for c in facts.choices]
    for section, fields in facts.settings.model_dump(mode="json").items():
        for name, value in fields.items() if isinstance(fields, dict) else []:
            if f"{section}.{name}" not in chosen and value not in (None, {}, []):
                key = f"{section}.{name}"
                rows.append(SettingRow(key, value_text(key, value)))
    return rows


def _fact_rows(matcher: Matcher, facts: ReportFacts) -> list[tuple[str, str]]:
    rows = [("Model fingerprint", matcher.fingerprint)]
    if facts.fingerprint is not None:
        rows.append(("Data fingerprint", facts.fingerprint))
    if facts.settings is not None:
        rows += [("Recipe", facts.recipe), ("Seed", str(facts.settings.seed))]
    if facts.seconds is not None:
        rows.append(("Time", f"{format_duration(facts.seconds)}, {facts.steps} steps"))
        rows.append(("Weights", f"of step {facts.best_step}"))
    here = machine()
    rows.append(("Machine", f"{here['processor']}, {here['cores']} cores, {here['system']}"))
    rows.append(("Versions", ", ".join(f"{name} {text}" for name, text in versions().items())))
    return rows
