"""`twinlens train`: from a folder of pictures to a calibrated, measured model."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from twinlens.commands.calibrate import calibrate_on
from twinlens.commands.choose_pictures import never_seen
from twinlens.commands.measure import measure
from twinlens.commands.prepare import Prepared, prepare
from twinlens.config import without_effect
from twinlens.data.pixel_cache import Decoded
from twinlens.data.table import SPLITS, ImageTable
from twinlens.errors import CalibrationError, ConfigError, DataError, TrainingError
from twinlens.learn.loop import FitResult, LabelledPixels, StepReport, fit
from twinlens.learn.losses import check_loss
from twinlens.learn.run_folder import RunFolder, lock_run_folder, new_run_folder
from twinlens.learn.validation import MAX_PICTURES
from twinlens.match.matcher import Matcher
from twinlens.measure.calibration import Calibration
from twinlens.measure.evaluation_result import Measured
from twinlens.model.bundle import Bundle, save_bundle, store_calibration
from twinlens.model.comparators import make_comparator
from twinlens.model.compute import Compute, choose_compute
from twinlens.model.device import keep_freed_memory, pick_device
from twinlens.model.encoder import Encoder
from twinlens.model.layers import glorot
from twinlens.model.stored import Origin, hash_identities
from twinlens.progress import Progress, console_log, duration
from twinlens.recipes import load_recipe
from twinlens.report.build import RunFacts, write_page

__all__ = ["train"]

log = logging.getLogger("twinlens")

# Where the target FAR needs more impostor pairs than there are, the next of these is taken.
EASIER_FARS = (0.1,)
THREE_SPLITS = 6  # identities, which three splits by identity need at least


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
    """Train a siamese model on pictures, calibrate it, measure it, and write its report.

    Args:
        data: a folder, a manifest, the name of a set, or a table (see docs/data.md).
        out: the run folder; `runs/NAME` by default, NAME after the data.
        recipe: the name of a recipe, or a path to a .toml file.
        settings: what overrides the recipe, "section.key" -> value.
        root: where the copy of a named set lies.
        resume: go on with the run in `out`; on the same data it comes to the same weights as a
            run that was never interrupted (unless a time budget sets its length).
        quiet: say only warnings.
    Returns:
        The trained model; its report is beside it, `report.html`.
    Raises:
        ConfigError: wrong settings, all of them at once.
        DataError: pictures that cannot be trained on.
        TrainingError: a run that cannot start or go on.
    """
    started = time.monotonic()
    with console_log(quiet):
        if out is None and resume:
            raise ConfigError("--resume needs --out: the run folder to go on with")
        loaded = load_recipe(recipe, settings)
        check_loss(loaded.settings().loss)
        pick_device(loaded.settings().train.device)
        for sentence in without_effect(loaded.settings(), loaded.overrides):
            log.warning("%s", sentence)
        keep_freed_memory()
        run = RunFolder(Path(out) if out is not None else new_run_folder(_name_of(data)))
        with lock_run_folder(run.path):
            run.start(resume)
            if resume and run.finished:
                log.info("%s is finished already", run.path)
                return Matcher.load(run.path)
            prepared = prepare(data, root, loaded, run, resume)
            bundle, fitted = _fit(prepared, run, started)
            calibration = _calibrate(bundle, prepared)
            if calibration is not None:
                bundle = store_calibration(bundle, calibration.as_json())
            measured, findings = _measure(bundle, calibration, prepared)
            _write_results(run, bundle, prepared, fitted, measured, findings, started)
            return Matcher(bundle)


def _name_of(data: str | Path | ImageTable) -> str:
    """What a run on some data is called."""
    source = data.source if isinstance(data, ImageTable) else str(data)
    path = Path(source).resolve() if Path(source).exists() else Path(source)
    name = path.stem if path.is_file() else path.name
    return name or "run"


def pool_of(decoded: Decoded, split: str) -> LabelledPixels:
    """The pictures of one split, with labels of their own."""
    rows = np.flatnonzero(decoded.table.split == split)
    part = decoded.table.select(rows)
    return LabelledPixels(decoded.pixels, rows, part.labels(), part.forged)


def _fit(prepared: Prepared, run: RunFolder, started: float) -> tuple[Bundle, FitResult]:
    settings, decoded = prepared.settings, prepared.decoded
    torch.manual_seed(settings.seed)
    # A checkpoint has all weights; those to start from may be gone by now.
    encoder = Encoder(settings.model, settings.picture, load=not run.has_checkpoint)
    comparator = make_comparator(settings.model.comparator, settings.model.embedding)
    if settings.model.init == "glorot":
        comparator.apply(glorot)
    training, validation = pool_of(decoded, "train"), pool_of(decoded, "val")
    sampler = settings.sampler
    batch = sampler.labels_per_batch * sampler.images_per_label
    at_once = min(batch, len(training.label), settings.train.chunk or batch)
    with _memory_explained():
        compute = _compute(run, encoder, prepared, at_once)
    log.info(
        "training on %d pictures of %d identities (%s)",
        len(training.label), int(training.label.max()) + 1, compute,
    )  # fmt: skip
    progress = Progress("training", "steps")

    def show(moment: StepReport) -> None:
        progress.note = f"loss {moment.loss:.3f}"
        total = max(moment.step, round(moment.step / max(moment.progress, 1e-9)))
        progress(moment.step, total)
        if moment.metric is not None:
            log.info(
                "step %d (%s): loss %.4f, validation %s %.4f", moment.step,
                duration(moment.seconds), moment.loss, settings.train.metric,
                moment.metric if settings.train.metric == "recall_at_1" else 1 - moment.metric,
            )  # fmt: skip

    with _memory_explained():
        fitted = fit(
            encoder, comparator, training, validation if len(validation.label) else None, settings,
            compute=compute, run=run, spent=time.monotonic() - started, on_step=show,
            on_features=Progress("looking once at"),
            reserve=_reserve(decoded, len(validation.label)),
        )  # fmt: skip
    progress.close()
    log.info(
        "trained %d steps in %s; the weights of step %d are kept",
        fitted.steps, duration(fitted.seconds), fitted.best_step,
    )  # fmt: skip
    table = decoded.table
    origin = Origin(
        table.source, prepared.fingerprint, settings.seed, settings.data,
        hash_identities(table.of_split("train").identities()),
    )  # fmt: skip
    encoder.to(memory_format=torch.contiguous_format)
    return save_bundle(run.model, encoder, comparator, origin=origin), fitted


@contextmanager
def _memory_explained() -> Iterator[None]:
    """A GPU that is too small is the user's to know, and not a traceback."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            "the GPU's memory does not hold a step of this training: set train.chunk=32 or another "
            "number of pictures at once, a smaller picture.size, or train.device=cpu"
        ) from error


def _reserve(decoded: Decoded, validated: int) -> Callable[[float], float]:
    """How long calibrating, measuring and the report will take, from what a validation takes."""
    later = int(np.isin(decoded.table.split.astype(str), ("val", "test")).sum())
    looked_at = max(1, min(validated, MAX_PICTURES))
    # Drawing and bootstrapping grow with the pairs, up to the most that are drawn; looking at all
    # of them, without an end. About twice of what two idle cores take.
    pairs = 4 + 10 * min(1.0, later / 2000) + 8e-9 * later**2
    return lambda seconds: seconds * later / looked_at + pairs


def _compute(run: RunFolder, encoder: Encoder, prepared: Prepared, batch: int) -> Compute:
    """How to do the arithmetic: as the run began, for a resumed one must come to the same bits."""
    facts = run.read_json("run.json") or {}
    if "compute" in facts:
        pick_device(facts["compute"]["device"])  # It may be another machine by now.
        return Compute(**facts["compute"])
    compute = choose_compute(encoder, prepared.settings.train, batch)
    how = {name: getattr(compute, name) for name in ("device", "bfloat16", "channels_last")}
    run.write_json("run.json", facts | {"compute": how})
    return compute


def _calibrate(bundle: Bundle, prepared: Prepared) -> Calibration | None:
    """Calibrate on the validation pictures, as near to the target FAR as they allow."""
    decoded = prepared.decoded
    rows = np.flatnonzero(decoded.table.split == "val")
    target = prepared.settings.train.target_far
    problem = "there are no validation pictures"
    for far in (target, *(far for far in EASIER_FARS if far > target)):
        if not len(rows):
            break
        try:
            found = calibrate_on(
                bundle, decoded.table.select(rows), decoded.rows(rows), far,
                seed=prepared.settings.seed,
            )  # fmt: skip
        except CalibrationError as error:
            problem = str(error)
            continue
        if far != target:
            log.warning("calibrated for a FAR of %g, not %g, since %s", far, target, problem)
        return found
    log.warning("the model is not calibrated, since %s", problem)
    return None


def _measure(
    bundle: Bundle, calibration: Calibration | None, prepared: Prepared
) -> tuple[Measured | None, list[str]]:
    """Measure on the test pictures, or on the validation pictures where that cannot be.

    Returns:
        What was measured, and what its reader must know.
    """
    table, findings, measured = prepared.decoded.table, list[str](), None
    for split in ("test", "val"):
        rows = np.flatnonzero(table.split == split)
        if not len(rows):
            findings.append(_nothing_in(split, prepared))
            continue
        part = table.select(rows)
        try:
            measured = measure(
                bundle, calibration, part, prepared.decoded.rows(rows), split=split,
                identity_disjoint=never_seen(bundle, part), seed=prepared.settings.seed,
            )  # fmt: skip
        except DataError as error:
            findings.append(f"The {split} pictures cannot be measured on: {error}.")
            continue
        if split == "val":
            findings.append(
                "The figures are of the validation pictures, which chose the weights and set the "
                "threshold: expect worse ones on new pictures."
            )
        break
    for finding in findings:
        log.warning("%s", finding)
    return measured, findings


def _nothing_in(split: str, prepared: Prepared) -> str:
    found = len(prepared.decoded.table.identities())
    few = prepared.settings.data.split == "identities" and found < THREE_SPLITS
    why = f": {found} identities are too few for three splits, which need {THREE_SPLITS}"
    return f"There are no {split} pictures{why if few and split == 'test' else ''}."


def _write_results(
    run: RunFolder,
    bundle: Bundle,
    prepared: Prepared,
    fitted: FitResult,
    measured: Measured | None,
    findings: list[str],
    started: float,
) -> None:
    table = prepared.decoded.table
    counts = [
        (split, len(table.of_split(split)), len(table.of_split(split).identities()))
        for split in SPLITS
    ]
    facts = RunFacts(
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
        broken=[(b.path, b.reason) for b in prepared.decoded.broken],
        findings=findings,
        command=(run.read_json("run.json") or {})["command"],
    )
    if measured is not None:
        run.write_json("results.json", measured.as_json())
    write_page(run.path / "report.html", bundle, measured, facts)
    log.info("model: %s", run.model)
    log.info("report: %s", run.path / "report.html")
    if fitted.interrupted:
        log.warning("the run was cut short: --resume --out %s goes on with it", run.path)
        return
    run.finish()
