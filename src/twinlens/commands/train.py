"""`twinlens train`: from a folder of pictures to a calibrated, evaluated model."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from twinlens.commands.calibrate import calibrate_held_out
from twinlens.commands.fit_model import FittedModel, fit_model
from twinlens.commands.follow import follow, lead
from twinlens.commands.initial_model import read_initial_model
from twinlens.commands.prepare import PreparedRun, prepare
from twinlens.commands.protocols import evaluate_standard
from twinlens.commands.resume import resume_command
from twinlens.commands.run_lines import next_line, pair_of, result_lines
from twinlens.commands.selection import learned_table, selection_of_split
from twinlens.config import without_effect
from twinlens.data.adapters import Data, path_or_table
from twinlens.data.splits import is_closed_set
from twinlens.data.table import SPLITS, ImageTable
from twinlens.errors import ConfigError, DataError, ModelError
from twinlens.face.marks import settings_of_table
from twinlens.learn.callbacks import (
    Callback,
    RunEnd,
    RunStart,
    check_callbacks,
    informed,
    notify,
)
from twinlens.learn.losses import check_loss
from twinlens.learn.run_folder import RunFolder, lock_run_folder, new_run_folder
from twinlens.learn.trackers import TensorBoard
from twinlens.match.matcher import Matcher, Model
from twinlens.measure.domain import describe_pictures
from twinlens.measure.error_rates import matches
from twinlens.measure.evaluation_result import EvaluationResult
from twinlens.measure.held_out import HeldOutPairs
from twinlens.measure.pairs import draw_pairs, pair_distances, sample_pictures
from twinlens.model.device import keep_freed_memory, pick_device
from twinlens.model.networks import check_parity, save_model
from twinlens.model.plugged_in import Augmentation, Loss, named, plugged_in
from twinlens.model.stored import Origin, store_calibration
from twinlens.model.training_record import RECORD_FILE, TrainingRecord, read_record
from twinlens.progress import COMMAND_START, console_log
from twinlens.recipes import Recipe, load_recipe
from twinlens.report.build import ReportFacts, write_model_report
from twinlens.scale.launch import team_of

__all__ = ["train"]

log = logging.getLogger("twinlens")

# Tried in turn if there are too few impostor pairs for the target FAR.
THREE_SPLITS = 6  # least number of identities for three splits by identity


def train(
    data: Data,
    *,
    out: str | Path | None = None,
    recipe: str = "auto",
    settings: Mapping[str, Any] | None = None,
    root: str | Path | None = None,
    init: Model | None = None,
    resume: bool = False,
    devices: int | None = None,
    quiet: bool = False,
    backbone: nn.Module | None = None,
    loss: Loss | None = None,
    augmentation: Augmentation | None = None,
    callbacks: Sequence[Callback] = (),
) -> Matcher:
    """Train a siamese model on pictures, calibrate it, evaluate it, and write its report.

    Args:
        data: a folder, a manifest, the name of a set, or other data (see docs/data.md).
        out: run folder; `runs/NAME` by default, NAME after the data.
        recipe: name of a recipe, or path of a .toml file.
        settings: overrides of the recipe, "section.key" -> value.
        root: folder of a named set's local copy.
        init: one's own model, its folder, or its run; its network learns on from its weights, and
            keeps its architecture and the size of its pictures.
        resume: whether to resume the run in `out`, on the same data. It reaches the same weights
            as an uninterrupted run, unless a time budget sets its length. Length and device may
            change, also of a finished run; any other change is an error.
        devices: processes that train together on this machine, each on a GPU of its own or on a
            share of the cores; by default the one that calls, or those of torchrun. A script needs
            `if __name__ == "__main__":`.
        quiet: log warnings only.
        backbone: module from normalised float pictures (B, C, H, W) to features (B, F), or maps
            that are flattened; torch must be able to export it to ONNX.
        loss: function of embeddings (B, D) and labels (B,) to a scalar; a module's weights are
            trained as well.
        augmentation: function of a picture (C, H, W), uint8, to a view of it, such as a transform
            of torchvision v2; takes the place of the settings `augment`.
        callbacks: objects with methods of `twinlens.Callback`.
    Returns:
        The trained model; its report is beside it, `report.html`.
    Raises:
        ConfigError: wrong settings, all of them at once, or others than those of a resumed run.
        DataError: pictures that cannot be trained on.
        TrainingError: a run that cannot start or be resumed, or a process of it that failed.
        SystemExit: in processes of torchrun other than the first, when the training ends.

    Example:
        >>> model = twinlens.train("photos/", settings={"train.epochs": 20})  # doctest: +SKIP
        >>> model = twinlens.train((pictures, labels))  # doctest: +SKIP
        >>> model.verify("a.jpg", "b.jpg").match  # doctest: +SKIP
        True
    """
    arguments = {**locals(), "callbacks": (), "devices": None}
    start = COMMAND_START.get()
    started = time.monotonic() if start is None else start
    parts = {"backbone": backbone, "loss": loss, "augmentation": augmentation}
    check_callbacks(callbacks)
    callbacks = (TensorBoard(), *callbacks)
    with (
        console_log(quiet),
        team_of(train, arguments, devices) as team,
        plugged_in(parts) as names,
    ):
        if not team.ranks.is_first:
            follow(data, root, team)
        if out is None and resume:
            raise ConfigError("--resume needs --out: the folder of the run to resume")
        loaded, initial = load_recipe(recipe, named(settings, names)), None
        if init is not None:
            init = init.path if isinstance(init, Matcher) else init
            initial = read_initial_model(init)
            loaded = initial.applied(loaded)
        check_loss(loaded.settings().loss)
        pick_device(loaded.settings().train.device)
        for warning in without_effect(loaded.settings(), loaded.overrides):
            log.warning("%s", warning)
        keep_freed_memory()
        data = path_or_table(data, root)
        run = RunFolder(Path(out) if out is not None else new_run_folder(_run_name(data)))
        with (
            lock_run_folder(run.path),
            _interrupt_explained(data, root, loaded, run, init, devices),
        ):
            run.start(resume)
            prepared = prepare(data, root, loaded, run, resume, initial)
            lead(prepared, team)
            if prepared is None:
                log.info("%s is finished already; more --steps or --epochs train on", run.path)
                return Matcher.load(run.path)
            record = _record(prepared, run)
            source = prepared.decoded.table.source
            begun = RunStart(run.path, source, prepared.settings, run.steps_done())
            with informed(callbacks, begun):
                fitted = fit_model(prepared, run, started, callbacks, team.ranks)
                if not fitted.fit.interrupted:
                    team.release()
                prepared = fitted.prepared  # A race may have changed its settings.
                matcher = _save(fitted, prepared, record, run)
                result, notes = _evaluate(matcher, prepared, record, fitted.most)
                _write_results(run, matcher, prepared, fitted, result, notes, started)
                own = prepared.settings.model.init == "given"
                lines = result_lines(result, matcher.calibration, notes, begun_with_own=own)
                for line in lines:
                    log.info("%s", line)
                if fitted.fit.interrupted:
                    again = resume_command(data, root, loaded, run, init, devices)
                    log.warning("the run was interrupted; resume it with: %s", again)
                else:
                    run.finish()
                    is_calibrated = matcher.calibration is not None
                    pair = pair_of(prepared.decoded.table)
                    log.info("%s", next_line(run.path, data, pair, calibrated=is_calibrated))
                fit = fitted.fit
                end = RunEnd(
                    run.model, run.path / "report.html", result,
                    fit.steps, fit.best_step, fit.interrupted,
                )  # fmt: skip
                notify(callbacks, "on_end", end)
            return matcher


@contextmanager
def _interrupt_explained(
    data: str | Path | ImageTable,
    root: str | Path | None,
    recipe: Recipe,
    run: RunFolder,
    init: str | Path | None,
    devices: int | None,
) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        again = resume_command(data, root, recipe, run, init, devices)
        raise KeyboardInterrupt(f"resume the run with: {again}") from None


def _run_name(data: str | Path | ImageTable) -> str:
    """Name of a run, after its data."""
    source = data.source if isinstance(data, ImageTable) else str(data)
    path = Path(source).resolve() if Path(source).exists() else Path(source)
    name = path.stem if path.is_file() else path.name
    return name or "run"


def _record(prepared: PreparedRun, run: RunFolder) -> TrainingRecord:
    """Record the pictures of the run before the first step, so that no model lacks its record."""
    path = run.path / RECORD_FILE
    try:
        stored = read_record(path)
    except ModelError:
        stored = None
    # A resumed run may have a model already, which names the record by its key.
    key = None if stored is None else stored.key
    table = learned_table(prepared.decoded.table, prepared.settings.train.refit)
    record = TrainingRecord.of_table(table, prepared.decoded.pixels, key)
    record.save(path)
    return record


def _save(
    fitted: FittedModel, prepared: PreparedRun, record: TrainingRecord, run: RunFolder
) -> Matcher:
    """Save the model, compare its graph with torch on the validation pictures, and calibrate it.

    If it was fitted to these pictures, it is calibrated by the distances of the model before.

    Raises:
        ModelError: torch and the graph disagree.
    """
    settings, decoded = prepared.settings, prepared.decoded
    origin = Origin(
        decoded.table.source, prepared.fingerprint, settings.seed, settings.data, record.id,
        refitted=settings.train.refit,
    )  # fmt: skip
    run_record = run.read_record()
    start = None if run_record is None else run_record.start
    face = settings_of_table(decoded.table, max_pixels=settings.data.max_pixels)
    matcher = Matcher(save_model(run.model, fitted.networks, origin, start, face), "cpu")
    if face is not None:
        log.info("trained on cropped faces: in whole photographs the model finds the faces itself")
    rows = np.flatnonzero(decoded.table.split == "val")
    if not len(rows):
        log.warning("the model is not calibrated: there are no validation pictures")
        return matcher
    if fitted.most is not None:
        labels = decoded.table.select(rows).labels()
        rows = rows[sample_pictures(labels, fitted.most, np.random.default_rng(settings.seed))]
    table = decoded.table.select(rows)
    encoder = fitted.networks.encoder
    emb_ND, torch_ND = check_parity(matcher.stored, encoder, decoded.rows(rows))
    pairs = draw_pairs(table.labels(), table.forged, rng=np.random.default_rng(settings.seed))
    distance, torch_distance = (
        pair_distances(emb, pairs, matcher.comparison) for emb in (emb_ND, torch_ND)
    )
    if fitted.pairs is None:
        names = table.identity.astype(str)
        held_out = HeldOutPairs(distance.astype(np.float64), pairs.same, pairs.a, pairs.b)
    else:
        is_used = np.isin(decoded.table.split.astype(str), ("train", "val"))
        names, held_out = decoded.table.identity[is_used].astype(str), fitted.pairs
    closed = is_closed_set(decoded.table)
    calibration = calibrate_held_out(
        held_out, names, settings.train.target_far, seed=settings.seed, new_identities=not closed
    )
    if calibration is not None:
        # Statistics of pictures need no held-out ones, unlike embeddings.
        used = np.flatnonzero(np.isin(decoded.table.split.astype(str), ("train", "val")))
        others = decoded.table.select(used)
        domain = describe_pictures(
            emb_ND, table, decoded.rows(used), others,
            closed=closed, seed=settings.seed,
        )  # fmt: skip
        matcher = Matcher(store_calibration(matcher.stored, calibration.as_json(), domain))
        differ = matches(distance, calibration.threshold) != matches(
            torch_distance, calibration.threshold
        )
        log.info(
            "model.onnx agrees with torch on %d pictures: embeddings to %.0e, %d of %d verdicts "
            "differ", len(rows), np.abs(emb_ND - torch_ND).max(), np.count_nonzero(differ),
            len(pairs),
        )  # fmt: skip
    return matcher


def _evaluate(
    matcher: Matcher, prepared: PreparedRun, record: TrainingRecord, most: int | None
) -> tuple[EvaluationResult | None, list[str]]:
    """Evaluate on the test pictures, or on the validation pictures if that fails.

    Returns:
        The result, if any, and notes for its reader.
    """
    table, pixels = prepared.decoded.table, prepared.decoded.rows
    notes, result = list[str](), None
    for split in ("test",) if prepared.settings.train.refit else ("test", "val"):
        rows = np.flatnonzero(table.split == split)
        if not len(rows):
            notes.append(_missing_split(split, prepared))
            continue
        if most is not None and len(rows) > most:
            notes.append(
                f"The time budget has room for {most:,} of the {len(rows):,} {split} pictures: "
                "`twinlens evaluate` measures on all of them."
            )
            rng = np.random.default_rng(prepared.settings.seed)
            rows = rows[sample_pictures(table.select(rows).labels(), most, rng)]
        selection = selection_of_split(matcher, record, table.select(rows), pixels(rows), split)
        broken = tuple(one for one in prepared.decoded.broken if one.split == split)
        selection = replace(selection, broken=broken)
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
    fitted: FittedModel,
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
        history=fitted.fit.history,
        candidates=fitted.candidates,
        curve=fitted.curve,
        seconds=time.monotonic() - started,
        steps=fitted.fit.steps,
        best_step=fitted.fit.best_step,
        fingerprint=prepared.fingerprint,
        broken=[(broken.path, broken.reason) for broken in prepared.decoded.broken],
        findings=notes,
        command=record.command,
    )
    if fitted.candidates:
        run.write_json(
            "candidates.json",
            {
                "candidates": [asdict(row) for row in fitted.candidates],
                "curve": [asdict(point) for point in fitted.curve],
            },
        )
    if result is not None:
        run.write_json("results.json", result.as_json())
    write_model_report(run.path / "report.html", matcher, result, facts)
    log.info("model: %s", run.model)
    log.info("report: %s", run.path / "report.html")
