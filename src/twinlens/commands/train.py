"""`twinlens train`: from a folder of pictures to a calibrated, evaluated model."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from twinlens.commands.calibrate import calibrate_on
from twinlens.commands.prepare import PreparedRun, prepare, resume_command, warn_unused
from twinlens.commands.protocols import evaluate_standard
from twinlens.commands.selection import selection_of_split
from twinlens.config import Settings, without_effect
from twinlens.data.pixels import DecodedTable
from twinlens.data.table import SPLITS, ImageTable
from twinlens.errors import CalibrationError, ConfigError, DataError, ModelError, TrainingError
from twinlens.learn.loop import FitResult, LabelledPixels, StepReport, fit
from twinlens.learn.losses import check_loss
from twinlens.learn.run_folder import RunFolder, lock_run_folder, new_run_folder
from twinlens.learn.validation import MAX_PICTURES
from twinlens.match.matcher import Matcher
from twinlens.measure.calibration import Calibration
from twinlens.measure.error_rates import matches
from twinlens.measure.evaluation_result import EvaluationResult
from twinlens.measure.pairs import Comparison, draw_pairs, pair_distances
from twinlens.model.comparators import make_comparator
from twinlens.model.compute import Compute, choose_compute, deterministic
from twinlens.model.device import keep_freed_memory, pick_device
from twinlens.model.encoder import Encoder
from twinlens.model.layers import glorot
from twinlens.model.networks import Networks, check_parity, save_model
from twinlens.model.stored import Origin, store_calibration
from twinlens.model.training_record import RECORD_FILE, TrainingRecord, read_record
from twinlens.progress import Progress, console_log, format_duration
from twinlens.recipes import Recipe, load_recipe
from twinlens.report.build import ReportFacts, write_model_report

__all__ = ["train"]

log = logging.getLogger("twinlens")

# Tried in turn if there are too few impostor pairs for the target FAR.
EASIER_FARS = (0.1,)
THREE_SPLITS = 6  # least number of identities for three splits by identity


def train(
    data: str | Path | ImageTable,
    *,
    out: str | Path | None = None,
    recipe: str = "auto",
    settings: Mapping[str, Any] | None = None,
    root: str | Path | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> Matcher:
    """Train a siamese model on pictures, calibrate it, evaluate it, and write its report.

    Args:
        data: a folder, a manifest, the name of a set, or a table (see docs/data.md).
        out: run folder; `runs/NAME` by default, NAME after the data.
        recipe: name of a recipe, or path of a .toml file.
        settings: overrides of the recipe, "section.key" -> value.
        root: folder of a named set's local copy.
        resume: whether to resume the run in `out`. On the same data it reaches the same weights as
            an uninterrupted run, unless a time budget sets its length.
        quiet: log warnings only.
    Returns:
        The trained model; its report is beside it, `report.html`.
    Raises:
        ConfigError: wrong settings, all of them at once.
        DataError: pictures that cannot be trained on.
        TrainingError: a run that cannot start or be resumed.

    Example:
        >>> model = twinlens.train("photos/", settings={"train.epochs": 20})  # doctest: +SKIP
        >>> model.verify("a.jpg", "b.jpg").match  # doctest: +SKIP
        True
    """
    started = time.monotonic()
    with console_log(quiet):
        if out is None and resume:
            raise ConfigError("--resume needs --out: the folder of the run to resume")
        loaded = load_recipe(recipe, settings)
        check_loss(loaded.settings().loss)
        pick_device(loaded.settings().train.device)
        for warning in without_effect(loaded.settings(), loaded.overrides):
            log.warning("%s", warning)
        keep_freed_memory()
        run = RunFolder(Path(out) if out is not None else new_run_folder(_run_name(data)))
        with lock_run_folder(run.path), _interrupt_explained(data, root, loaded, run):
            run.start(resume)
            if resume:
                warn_unused(loaded, run)
            if resume and run.finished:
                log.info("%s is finished already", run.path)
                return Matcher.load(run.path)
            prepared = prepare(data, root, loaded, run, resume)
            record = _record(prepared, run)
            networks, fitted = _fit(prepared, run, started)
            matcher = _save(networks, prepared, record, run)
            result, notes = _evaluate(matcher, prepared, record)
            _write_results(run, matcher, prepared, fitted, result, notes, started)
            if fitted.interrupted:
                again = resume_command(data, root, loaded, run)
                log.warning("the run was interrupted; resume it with: %s", again)
            else:
                run.finish()
            return matcher


@contextmanager
def _interrupt_explained(
    data: str | Path | ImageTable, root: str | Path | None, recipe: Recipe, run: RunFolder
) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        again = resume_command(data, root, recipe, run)
        raise KeyboardInterrupt(f"resume the run with: {again}") from None


def _run_name(data: str | Path | ImageTable) -> str:
    """Name of a run, after its data."""
    source = data.source if isinstance(data, ImageTable) else str(data)
    path = Path(source).resolve() if Path(source).exists() else Path(source)
    name = path.stem if path.is_file() else path.name
    return name or "run"


def _labelled_pixels(decoded: DecodedTable, split: str) -> LabelledPixels:
    """The pictures of one split, labelled from 0."""
    rows = np.flatnonzero(decoded.table.split == split)
    part = decoded.table.select(rows)
    return LabelledPixels(decoded.pixels, rows, part.labels(), part.forged)


def _record(prepared: PreparedRun, run: RunFolder) -> TrainingRecord:
    """Record the pictures of the run before the first step, so that no model lacks its record."""
    path = run.path / RECORD_FILE
    try:
        stored = read_record(path)
    except ModelError:
        stored = None
    # A resumed run may have a model already, which names the record by its key.
    key = None if stored is None else stored.key
    record = TrainingRecord.of_table(prepared.decoded.table, prepared.decoded.pixels, key)
    record.save(path)
    return record


def _fit(prepared: PreparedRun, run: RunFolder, started: float) -> tuple[Networks, FitResult]:
    settings, decoded = prepared.settings, prepared.decoded
    torch.manual_seed(settings.seed)
    # A checkpoint holds all weights; the file of initial weights may be gone by now.
    encoder = Encoder(settings.model, settings.picture, load=not run.has_checkpoint)
    comparator = make_comparator(settings.model.comparator, settings.model.embedding)
    if settings.model.init == "glorot":
        comparator.apply(glorot)
    training, validation = _labelled_pixels(decoded, "train"), _labelled_pixels(decoded, "val")
    compute = _compute(run, prepared)
    log.info(
        "training on %d pictures of %d identities (%s)",
        len(training.label), int(training.label.max()) + 1, compute,
    )  # fmt: skip
    progress = Progress("training", "steps")
    with _memory_explained(), deterministic():
        fitted = fit(
            encoder, comparator, training, validation if len(validation.label) else None, settings,
            compute=compute, run=run, spent=time.monotonic() - started,
            on_step=partial(_show_step, progress, settings.train.metric),
            on_features=Progress("computing features"),
            reserve=_reserve(decoded, len(validation.label)),
        )  # fmt: skip
    progress.close()
    log.info(
        "trained %d steps in %s; the weights of step %d are kept",
        fitted.steps, format_duration(fitted.seconds), fitted.best_step,
    )  # fmt: skip
    encoder.to(memory_format=torch.contiguous_format)
    return Networks(encoder, comparator), fitted


def _save(
    networks: Networks, prepared: PreparedRun, record: TrainingRecord, run: RunFolder
) -> Matcher:
    """Save the model, compare its graph with torch on the validation pictures, and calibrate it.

    Raises:
        ModelError: torch and the graph disagree.
    """
    settings, decoded = prepared.settings, prepared.decoded
    origin = Origin(
        decoded.table.source, prepared.fingerprint, settings.seed, settings.data, record.id
    )
    matcher = Matcher(save_model(run.model, networks, origin), "cpu")
    rows = np.flatnonzero(decoded.table.split == "val")
    if not len(rows):
        log.warning("the model is not calibrated: there are no validation pictures")
        return matcher
    table = decoded.table.select(rows)
    emb_ND, torch_ND = check_parity(matcher.stored, networks.encoder, decoded.rows(rows))
    calibration = _calibrate(emb_ND, table, matcher.comparison, settings)
    if calibration is not None:
        matcher = Matcher(store_calibration(matcher.stored, calibration.as_json()))
        rng = np.random.default_rng(settings.seed)
        pairs = draw_pairs(table.labels(), table.forged, rng=rng)
        verdict, torch_verdict = (
            matches(pair_distances(emb, pairs, matcher.comparison), calibration.threshold)
            for emb in (emb_ND, torch_ND)
        )
        log.info(
            "model.onnx agrees with torch on %d pictures: embeddings to %.0e, %d of %d verdicts "
            "differ", len(rows), np.abs(emb_ND - torch_ND).max(),
            np.count_nonzero(verdict != torch_verdict), len(pairs),
        )  # fmt: skip
    return matcher


def _show_step(progress: Progress, metric: str, report: StepReport) -> None:
    progress.note = f"loss {report.loss:.3f}"
    progress(report.step, max(report.step, round(report.step / max(report.progress, 1e-9))))
    if report.metric is not None:
        log.info(
            "step %d (%s): loss %.4f, validation %s %.4f", report.step,
            format_duration(report.seconds), report.loss, metric,
            report.metric if metric == "recall_at_1" else 1 - report.metric,
        )  # fmt: skip


@contextmanager
def _memory_explained() -> Iterator[None]:
    """Name the settings that help a GPU with too little memory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            "the GPU's memory does not hold a step of this training: set a smaller train.chunk "
            "(such as train.chunk=32) or picture.size, or train.device=cpu"
        ) from error


def _reserve(decoded: DecodedTable, validated: int) -> Callable[[float], float]:
    """Seconds for calibration, evaluation and report, from the seconds of one validation."""
    later = int(np.isin(decoded.table.split.astype(str), ("val", "test")).sum())
    pictures = max(1, min(validated, MAX_PICTURES))
    # Drawn pairs and their bootstrap are bounded; the EER on all pairs is not. About twice the
    # time of two idle cores.
    pairs = 4 + 10 * min(1.0, later / 2000) + 8e-9 * later**2
    return lambda seconds: seconds * later / pictures + pairs


def _compute(run: RunFolder, prepared: PreparedRun) -> Compute:
    """Device and number format; those of the start for a resumed run, which must agree bitwise."""
    record = run.read_record()
    if record is not None and record.compute is not None:
        pick_device(record.compute.device)  # The run may have moved to another machine.
        return record.compute
    compute = choose_compute(prepared.settings.model, prepared.settings.train)
    run.update_record(compute=compute)
    return compute


def _calibrate(
    emb_ND: NDArray[np.float32], table: ImageTable, comparison: Comparison, settings: Settings
) -> Calibration | None:
    """Calibrate on the validation pictures, for the target FAR or the next one that they allow."""
    target = settings.train.target_far
    problem = ""
    for far in (target, *(far for far in EASIER_FARS if far > target)):
        try:
            calibration = calibrate_on(emb_ND, table, comparison, far, seed=settings.seed)
        except CalibrationError as error:
            problem = str(error)
            continue
        if far != target:
            log.warning("calibrated for a FAR of %g, not %g: %s", far, target, problem)
        return calibration
    log.warning("the model is not calibrated: %s", problem)
    return None


def _evaluate(
    matcher: Matcher, prepared: PreparedRun, record: TrainingRecord
) -> tuple[EvaluationResult | None, list[str]]:
    """Evaluate on the test pictures, or on the validation pictures if that fails.

    Returns:
        The result, if any, and notes for its reader.
    """
    table, pixels = prepared.decoded.table, prepared.decoded.rows
    notes, result = list[str](), None
    for split in ("test", "val"):
        rows = np.flatnonzero(table.split == split)
        if not len(rows):
            notes.append(_missing_split(split, prepared))
            continue
        selection = selection_of_split(matcher, record, table.select(rows), pixels(rows), split)
        try:
            result = evaluate_standard(matcher, selection, seed=prepared.settings.seed)
        except DataError as error:
            notes.append(f"The {split} pictures cannot be used for evaluation: {error}.")
            continue
        notes.extend(selection.notes)
        if split == "val":
            notes.append(
                "The figures are those of the validation pictures, which also chose the weights "
                "and set the threshold: expect worse figures for new pictures."
            )
        break
    for note in notes:
        log.warning("%s", note)
    return result, notes


def _missing_split(split: str, prepared: PreparedRun) -> str:
    num = len(prepared.decoded.table.identities())
    few = split == "test" and prepared.settings.data.split == "identities" and num < THREE_SPLITS
    reason = f": three splits by identity need {THREE_SPLITS} identities, found {num}"
    return f"There are no {split} pictures{reason if few else ''}."


def _write_results(
    run: RunFolder,
    matcher: Matcher,
    prepared: PreparedRun,
    fitted: FitResult,
    result: EvaluationResult | None,
    notes: list[str],
    started: float,
) -> None:
    table, record = prepared.decoded.table, run.read_record()
    assert record is not None
    counts = [
        (split, len(table.of_split(split)), len(table.of_split(split).identities()))
        for split in SPLITS
    ]
    facts = ReportFacts(
        title=run.path.name,
        data=table.source,
        splits=counts,
        settings=prepared.settings,
        recipe=prepared.recipe,
        choices=prepared.choices,
        history=fitted.history,
        seconds=time.monotonic() - started,
        steps=fitted.steps,
        best_step=fitted.best_step,
        fingerprint=prepared.fingerprint,
        broken=[(broken.path, broken.reason) for broken in prepared.decoded.broken],
        findings=notes,
        command=record.command,
    )
    if result is not None:
        run.write_json("results.json", result.as_json())
    write_model_report(run.path / "report.html", matcher, result, facts)
    log.info("model: %s", run.model)
    log.info("report: %s", run.path / "report.html")
