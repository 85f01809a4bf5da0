"""`twinlens train`: from a folder of pictures to a calibrated, measured model."""

from __future__ import annotations

import json
import logging
import shlex
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from twinlens.config import Recipe, Settings, load_recipe
from twinlens.data.cache import Decoded, decode_table
from twinlens.data.inspection import survey
from twinlens.data.sources import read_table
from twinlens.data.splits import assign_splits, is_identity_disjoint
from twinlens.data.table import SPLITS, ImageTable, require_identities
from twinlens.errors import CalibrationError, ConfigError, TrainingError
from twinlens.jobs.calibrate import calibrate_on
from twinlens.jobs.doctor import machine, versions
from twinlens.jobs.measured import Measured, measure
from twinlens.jobs.pages import RunFacts, write_page
from twinlens.learn.auto import Choice, choose_levels, choose_settings
from twinlens.learn.run import RunFolder
from twinlens.learn.training import Fitted, Moment, Pool, fit
from twinlens.match.matcher import Matcher
from twinlens.measure.calibration import Calibration
from twinlens.model.bundle import Bundle, Origin, hash_identities, save_bundle, with_calibration
from twinlens.model.comparators import make_comparator
from twinlens.model.compute import choose_compute
from twinlens.model.encoder import Encoder
from twinlens.progress import Progress, console_log, duration

__all__ = ["train"]

log = logging.getLogger("twinlens")

# Where the target FAR needs more impostor pairs than there are, the next of these is taken.
EASIER_FARS = (0.1,)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A run before its first step."""

    recipe: Recipe
    settings: Settings
    choices: list[Choice]
    decoded: Decoded
    fingerprint: str


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
        run = RunFolder(Path(out) if out is not None else _default_out(data, resume))
        loaded = load_recipe(recipe, settings)
        run.start(resume)
        if resume and run.finished:
            log.info("%s is finished already", run.path)
            return Matcher.load(run.path)
        prepared = _prepare(data, root, loaded, run, resume)
        encoder = Encoder(prepared.settings.model, prepared.settings.picture)
        bundle, fitted = _fit(encoder, prepared, run, started)
        calibration = _calibrate(bundle, prepared)
        if calibration is not None:
            bundle = with_calibration(bundle, calibration.as_json())
        measured = _measure(bundle, calibration, prepared)
        _write_results(run, bundle, prepared, fitted, measured, started)
        return Matcher(bundle)


def _default_out(data: str | Path | ImageTable, resume: bool) -> Path:
    if resume:
        raise ConfigError("--resume needs --out: the run folder to go on with")
    source = data.source if isinstance(data, ImageTable) else str(data)
    name = Path(source).resolve().name if Path(source).exists() else Path(source).name
    folder, number = Path("runs") / (name or "run"), 2
    while folder.exists():
        folder, number = Path("runs") / f"{name or 'run'}-{number}", number + 1
    return folder


def _prepare(
    data: str | Path | ImageTable,
    root: str | Path | None,
    recipe: Recipe,
    run: RunFolder,
    resume: bool,
) -> Prepared:
    """Read, split, choose, decode; a resumed run takes its settings from the run folder."""
    plain = recipe.settings()
    table = read_table(
        data, root=None if root is None else Path(root), forged_suffix=plain.data.forged_suffix
    )
    require_identities(table, least=2, what="training")
    fingerprint = table.fingerprint()
    stored = _stored(run, fingerprint) if resume else None
    settings, choices = stored if stored is not None else (None, [])
    split = (settings or plain).data
    table = assign_splits(
        table, mode=split.split, fractions=split.fractions, seed=(settings or plain).seed
    )
    require_identities(table.of_split("train"), least=2, what="training")
    if settings is None:
        settings, choices = choose_settings(recipe, survey(table.of_split("train")))
    decoded = decode_table(
        table,
        settings.picture,
        max_pixels=split.max_pixels,
        max_broken=split.max_broken,
        progress=Progress("reading"),
    )
    _say_broken(decoded)
    if stored is None:
        training = decoded.pixels[decoded.table.split == "train"]
        settings, levels = choose_levels(recipe, settings, training)
        choices = choices + levels
        _start_run(run, decoded.table, recipe, settings, choices, fingerprint, root)
    for choice in choices:
        log.info("  %s = %s: %s", choice.key, _plain(choice.value), choice.why)
    return Prepared(recipe, settings, choices, decoded, fingerprint)


def _stored(run: RunFolder, fingerprint: str) -> tuple[Settings, list[Choice]] | None:
    """The settings of a run that was started; None where it was killed before that."""
    settings, facts = run.read_json("settings.json"), run.read_json("run.json")
    if settings is None or facts is None:
        return None
    if facts["fingerprint"] != fingerprint:
        raise TrainingError(
            f"the data is not what {run.path} was started on (fingerprint {fingerprint[:12]}, "
            f"then {facts['fingerprint'][:12]}): resume with the same pictures, or start anew"
        )
    return Settings.model_validate(settings), [Choice(**c) for c in facts["choices"]]


def _start_run(
    run: RunFolder,
    table: ImageTable,
    recipe: Recipe,
    settings: Settings,
    choices: list[Choice],
    fingerprint: str,
    root: str | Path | None,
) -> None:
    """Write down what the run is, before its first step."""
    rows = [
        (table.relative(row), table.identity[row],
         "forged" if table.forged[row] else "genuine", table.split[row])
        for row in range(len(table))
    ]  # fmt: skip
    run.write_table("split.csv", ("path", "identity", "role", "split"), rows)
    facts = {
        "source": table.source,
        "root": None if root is None else str(root),
        "recipe": recipe.name,
        "command": _command(table.source, recipe, root),
        "fingerprint": fingerprint,
        "seed": settings.seed,
        "versions": versions(),
        "machine": machine(),
        "choices": [asdict(choice) for choice in choices],
    }
    run.write_json("run.json", facts)
    run.write_json("settings.json", settings.model_dump(mode="json"))


def _say_broken(decoded: Decoded) -> None:
    if decoded.broken:
        total = len(decoded.table) + len(decoded.broken)
        log.warning("%d of %d pictures cannot be read and are skipped:", len(decoded.broken), total)
    for broken in decoded.broken[:20]:
        log.warning("  %s: %s", broken.path, broken.reason)
    if len(decoded.broken) > 20:
        log.warning("  and %d more; all of them are in the report", len(decoded.broken) - 20)


def pool_of(decoded: Decoded, split: str) -> Pool:
    """The pictures of one split, with labels of their own."""
    rows = np.flatnonzero(decoded.table.split == split)
    part = decoded.table.select(rows)
    return Pool(decoded.pixels[rows], part.labels(), part.forged)


def _fit(
    encoder: Encoder, prepared: Prepared, run: RunFolder, started: float
) -> tuple[Bundle, Fitted]:
    settings, decoded = prepared.settings, prepared.decoded
    torch.manual_seed(settings.seed)
    comparator = make_comparator(settings.model.comparator, settings.model.embedding)
    training, validation = pool_of(decoded, "train"), pool_of(decoded, "val")
    sampler = settings.sampler
    batch = sampler.labels_per_batch * sampler.images_per_label
    compute = choose_compute(encoder, settings.train, min(batch, len(training.label)))
    log.info(
        "training on %d pictures of %d identities (%s)",
        len(training.label), int(training.label.max()) + 1, compute,
    )  # fmt: skip
    progress = Progress("training", "steps")

    def show(moment: Moment) -> None:
        progress.note = f"loss {moment.loss:.3f}"
        total = max(moment.step, round(moment.step / max(moment.progress, 1e-9)))
        progress(moment.step, total)
        if moment.metric is not None:
            log.info(
                "step %d (%s): loss %.4f, validation %s %.4f", moment.step,
                duration(moment.seconds), moment.loss, settings.train.metric,
                1 - moment.metric if settings.train.metric == "eer" else moment.metric,
            )  # fmt: skip

    fitted = fit(
        encoder, comparator, training, validation if len(validation.label) else None, settings,
        compute=compute, run=run, spent=time.monotonic() - started, on_moment=show,
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
    encoder.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return save_bundle(run.model, encoder.cpu(), comparator.cpu(), origin=origin), fitted


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
                bundle, decoded.table.select(rows), decoded.pixels[rows], far,
                seed=prepared.settings.seed,
            )  # fmt: skip
        except CalibrationError as error:
            problem = str(error)
            continue
        if far != target:
            log.warning(
                "too few validation pictures for a FAR of %g: calibrated for %g instead",
                target,
                far,
            )
        return found
    log.warning("the model is not calibrated, since %s", problem)
    return None


def _measure(
    bundle: Bundle, calibration: Calibration | None, prepared: Prepared
) -> Measured | None:
    """Measure on the test pictures, or on the validation pictures where there are none."""
    table = prepared.decoded.table
    for split in ("test", "val"):
        rows = np.flatnonzero(table.split == split)
        if len(rows):
            return measure(
                bundle, calibration, table.select(rows), prepared.decoded.pixels[rows],
                split=split, identity_disjoint=is_identity_disjoint(table),
                seed=prepared.settings.seed,
            )  # fmt: skip
    return None


def _write_results(
    run: RunFolder,
    bundle: Bundle,
    prepared: Prepared,
    fitted: Fitted,
    measured: Measured | None,
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
        recipe=prepared.recipe.name,
        choices=prepared.choices,
        history=fitted.history,
        seconds=time.monotonic() - started,
        steps=fitted.steps,
        best_step=fitted.best_step,
        fingerprint=prepared.fingerprint,
        broken=[(b.path, b.reason) for b in prepared.decoded.broken],
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


def _command(source: str, recipe: Recipe, root: str | Path | None) -> str:
    """What to type to repeat the run on the same data."""
    words = ["twinlens", "train", source]
    if root is not None:
        words += ["--root", str(root)]
    if recipe.name != "auto":
        words += ["--recipe", recipe.name]
    for key, value in recipe.overrides.items():
        words += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    return shlex.join(words)


def _plain(value: Any) -> str:
    return " x ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
