"""From what was measured to the report's page: picks the pictures and words the facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from twinlens.config import Settings
from twinlens.data.table import ImageTable
from twinlens.learn.auto import Choice
from twinlens.learn.run_folder import HistoryRow
from twinlens.measure.calibration import Calibration, Isotonic
from twinlens.measure.evaluation_result import Measured
from twinlens.measure.verification import Verification
from twinlens.model.bundle import Bundle
from twinlens.model.device import machine, versions
from twinlens.progress import duration
from twinlens.report import page as report
from twinlens.report.embedding_map import map_rows

__all__ = ["RunFacts", "write_page"]

MOST_MISTAKES = 24

METRICS = {
    "eer": "1 - EER",
    "eer_forged": "1 - mean of two EERs: all pairs, forgeries alone",
    "recall_at_1": "recall at 1",
}


@dataclass(frozen=True)
class RunFacts:
    """What a report says besides the measurements; a model that was only loaded has no run."""

    title: str
    data: str
    splits: Sequence[tuple[str, int, int]]
    settings: Settings | None = None
    recipe: str = ""
    choices: Sequence[Choice] = ()
    history: Sequence[HistoryRow] = ()
    seconds: float | None = None
    steps: int | None = None
    best_step: int | None = None
    fingerprint: str | None = None
    broken: Sequence[tuple[str, str]] = ()
    findings: Sequence[str] = ()
    command: str = ""


def write_page(path: Path, bundle: Bundle, measured: Measured | None, facts: RunFacts) -> None:
    """Write `report.html`; parts that were not measured are left out."""
    parts: dict[str, Any] = {}
    if measured is not None and measured.nearest is not None:
        parts = _nearest_parts(measured, facts)
    elif measured is not None and measured.verification is not None:
        parts = _measured_parts(measured, facts)
    elif measured is not None:
        parts = {"map": _whole_map(measured, facts)}
    metric = "eer" if facts.settings is None else facts.settings.train.metric
    content = report.ReportContent(
        title=facts.title,
        data=facts.data,
        results={} if measured is None else measured.as_json(),
        splits=[report.SplitCount(*counts) for counts in facts.splits],
        operating=_operating(bundle.calibration),
        history=[_history_row(row) for row in facts.history],
        metric=METRICS[metric],
        broken=facts.broken,
        findings=facts.findings,
        settings=_settings_in_words(facts),
        facts=_facts_in_words(bundle, facts),
        command=facts.command,
        **parts,
    )
    report.write_report(path, content)


def _measured_parts(measured: Measured, facts: RunFacts) -> dict[str, Any]:
    table, verified = measured.table, measured.verification
    assert table is not None
    assert verified is not None
    assert measured.pixels is not None
    assert measured.embeddings is not None
    pairs, distance = verified.pairs, verified.distance
    label = table.labels()
    skilled = ~pairs.same & (label[pairs.a] == label[pairs.b])
    scored = report.ScoredPairs(
        distance.astype(np.float64), pairs.same, skilled if skilled.any() else None
    )
    return {
        "pairs": scored,
        "map": _whole_map(measured, facts),
        "nearest_impostors": _worst(measured, verified, table, scored, genuine=False),
        "farthest_genuine": _worst(measured, verified, table, scored, genuine=True),
    }


def _whole_map(measured: Measured, facts: RunFacts) -> report.MapPictures:
    table = measured.table
    assert table is not None
    assert measured.pixels is not None
    assert measured.embeddings is not None
    seed = 0 if facts.settings is None else facts.settings.seed
    # Chosen here, since the pixels of all may be more than memory holds.
    rows = map_rows(table.identity.tolist(), np.random.default_rng(seed))
    return report.MapPictures(
        measured.embeddings[rows], table.identity[rows].tolist(), measured.pixels[rows],
        table.forged[rows], seed,
    )  # fmt: skip


def _nearest_parts(measured: Measured, facts: RunFacts) -> dict[str, Any]:
    """The map of the pictures that were looked up, and the wrong answers that were the closest."""
    table, found, probe = measured.table, measured.nearest, measured.probe
    assert table is not None
    assert found is not None
    assert probe is not None
    assert measured.gallery is not None
    assert measured.pixels is not None
    assert measured.embeddings is not None
    first, distance = measured.gallery[found.row[:, 0]], found.distance[:, 0]
    who, taken_for = table.identity[probe].tolist(), table.identity[first].tolist()
    rows = report.worst_rows(
        report.ScoredPairs(distance.astype(np.float64), found.right), who, taken_for,
        genuine=False, most=MOST_MISTAKES,
    )  # fmt: skip
    # Chosen here, since the pixels of all may be more than memory holds.
    seen = map_rows(who, np.random.default_rng(0))
    shown = probe[seen]
    return {
        "map": report.MapPictures(
            measured.embeddings[shown], [who[row] for row in seen], measured.pixels[shown]
        ),
        "nearest_wrong": [
            report.PicturePair(
                measured.pixels[probe[row]], measured.pixels[first[row]], who[row], taken_for[row],
                table.relative(probe[row]), table.relative(first[row]), float(distance[row]),
            )
            for row in rows
        ],
    }  # fmt: skip


def _worst(
    measured: Measured,
    verified: Verification,
    table: ImageTable,
    scored: report.ScoredPairs,
    *,
    genuine: bool,
) -> list[report.PicturePair]:
    """The pairs that the model gets most wrong, as pictures."""
    assert measured.pixels is not None
    pairs = verified.pairs
    rows = report.worst_rows(
        scored, table.identity[pairs.a].tolist(), table.identity[pairs.b].tolist(), genuine=genuine
    )
    return [
        report.PicturePair(
            measured.pixels[a], measured.pixels[b], table.identity[a], table.identity[b],
            table.relative(a), table.relative(b), float(verified.distance[row]),
            "a forgery" if table.forged[b] else "",
        )
        for row, a, b in zip(rows, pairs.a[rows], pairs.b[rows], strict=True)
    ]  # fmt: skip


def _operating(found: Mapping[str, Any] | None) -> report.OperatingPoint | None:
    if found is None:
        return None
    calibration = Calibration.from_json(found)
    return report.OperatingPoint(
        calibration.threshold,
        calibration.target_far,
        calibration.low,
        calibration.high,
        calibration.num_impostor,
        "isotonic" if isinstance(calibration.curve, Isotonic) else "Platt",
    )


def _history_row(row: HistoryRow) -> dict[str, Any]:
    values = asdict(row)
    return values | {"val": values.pop("metric")}


def _settings_in_words(facts: RunFacts) -> list[report.Choice]:
    """What was chosen from the data, with reasons, and then everything else that decides a run."""
    if facts.settings is None:
        return []
    chosen = {choice.key: choice for choice in facts.choices}
    words = [report.Choice(c.key, _text(c.value), c.why) for c in facts.choices]
    for section, fields in facts.settings.model_dump(mode="json").items():
        for name, value in fields.items() if isinstance(fields, dict) else []:
            if f"{section}.{name}" not in chosen and value not in (None, {}, []):
                words.append(report.Choice(f"{section}.{name}", _text(value)))
    return words


def _facts_in_words(bundle: Bundle, facts: RunFacts) -> list[tuple[str, str]]:
    words = [("Model fingerprint", bundle.fingerprint)]
    if facts.fingerprint is not None:
        words.append(("Data fingerprint", facts.fingerprint))
    if facts.settings is not None:
        words += [("Recipe", facts.recipe), ("Seed", str(facts.settings.seed))]
    if facts.seconds is not None:
        words.append(("Time", f"{duration(facts.seconds)} in all, {facts.steps} steps"))
        words.append(("Weights kept", f"of step {facts.best_step}"))
    here = machine()
    words.append(("Machine", f"{here['processor']}, {here['cores']} cores, {here['system']}"))
    words.append(("Versions", ", ".join(f"{name} {text}" for name, text in versions().items())))
    return words


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple | list):
        return " x ".join(map(_text, value))
    return str(value)
