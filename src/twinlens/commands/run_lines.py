"""Lines of a training on the terminal: its choices at the start, its results at the end."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from twinlens.config import Settings
from twinlens.data.table import ImageTable
from twinlens.learn.records import Choice
from twinlens.learn.run_folder import RunFolder
from twinlens.measure.bootstrap import Estimate
from twinlens.measure.calibration import Calibration
from twinlens.measure.evaluation_result import EvaluationResult
from twinlens.model.own_backbones import is_own
from twinlens.model.plugged_in import is_plugged_in
from twinlens.report.formatting import count_of, number

__all__ = ["choice_lines", "next_line", "pair_of", "result_lines", "threshold_line"]


# --- choices ------------------------------------------------------------------------------------


def choice_lines(settings: Settings, choices: Sequence[Choice], run: RunFolder) -> Iterator[str]:
    """What a run will do, in five lines at most; its report has all settings and reasons.

    Args:
        settings: settings of the run.
        choices: those of them that the data or the machine chose.
        run: folder of the run.
    """
    why = {choice.key: choice.why for choice in choices}
    height, width = settings.picture.size
    reason = f" ({why['model.backbone']})" if "model.backbone" in why else ""
    yield (
        f"network: {settings.model.backbone}, {_start(settings)}, on {height} x {width} "
        f"{settings.picture.color} pictures{reason}"
    )
    if settings.train.candidates and not is_own(settings.model.backbone):
        yield (
            "training: features of the network without training, and the network with its last "
            "layers tuned, are compared on held-out pictures; those that help are joined"
        )
    else:
        yield f"training: {_training(settings)}"
        yield f"views: {_views(settings)}"
        if settings.train.candidates:
            yield "then: compared with features that need no training, and joined where that helps"
    yield f"{count_of(len(choices), 'setting')} chosen; reasons in {run.path / 'report.html'}"


def _start(settings: Settings) -> str:
    model = settings.model
    if model.init == "given":
        return "learning on from --init"
    if model.weights is not None:
        return f"from the weights {Path(model.weights).name}"
    if model.pretrained:
        return "from pretrained weights"
    return "without weights" if model.backbone == "strokes" else "from random weights"


def _training(settings: Settings) -> str:
    sampler, train = settings.sampler, settings.train
    batch = f"{sampler.batch} {sampler.kind}"
    if sampler.kind == "pk":
        batch = f"{sampler.labels_per_batch} identities x {sampler.images_per_label} pictures"
    length = "10 epochs"
    if train.time_budget is not None:
        length = f"{train.time_budget:g} s in all"
    elif train.steps is not None:
        length = count_of(train.steps, "step")
    elif train.epochs is not None:
        length = f"{train.epochs:g} epochs"
    if train.extend:
        length += ", more while they help"
    if train.patience:
        length += f", fewer after {train.patience} validations without a gain"
    return f"loss {settings.loss.name}, {settings.optimizer.name}, batches of {batch}; {length}"


def _views(settings: Settings) -> str:
    views = settings.augment.model_dump(exclude={"transform"}, exclude_defaults=True)
    words = [name if value is True else f"{name} {value:g}" for name, value in views.items()]
    if settings.sampler.rotations:
        words.append("quarter turns as further identities")
    if is_plugged_in(settings.augment.transform):
        words.append("the augmentation that was passed")
    return ", ".join(words) if words else "pictures as they are"


# --- results ------------------------------------------------------------------------------------


def result_lines(
    result: EvaluationResult | None,
    calibration: Calibration | None,
    notes: Sequence[str],
    *,
    begun_with_own: bool = False,
) -> Iterator[str]:
    """The error rate, and the threshold with what it is worth: two lines.

    Args:
        result: the evaluation; None if there was none.
        calibration: that of the model; None without a threshold.
        notes: reasons for a missing evaluation.
        begun_with_own: whether the run began with another model, which may know the pictures.
    """
    if result is None:
        reason = notes[0] if notes else "no pictures were held out."
        yield f"error rate: not measured. {reason}"
    else:
        pairs, split = result.verification, _split_name(result)
        seen = "" if result.identity_disjoint is None else ", none of them trained on"
        if result.identity_disjoint is False:
            seen = ", other pictures of which were trained on"
        seen += " in this run" if seen and begun_with_own else ""
        wide = "" if pairs.eer.low is not None else " (too few identities for an interval)"
        yield (
            f"error rate: EER {_percent(pairs.eer)}{wide} on {len(result.table):,} {split} "
            f"pictures of {count_of(pairs.num_identities, 'identity')}{seen}"
        )
    yield threshold_line(calibration, result)


def threshold_line(calibration: Calibration | None, result: EvaluationResult | None = None) -> str:
    """The threshold, its target, and the error rates that the evaluation, if any, found there."""
    if calibration is None:
        return "threshold: none, so that distances are shown without verdicts"
    line = f"threshold: {number(calibration.threshold)}, for a FAR of "
    line += f"{100 * calibration.target_far:g} %"
    measured = None if result is None else result.verification.calibrated
    if measured is not None and result is not None:
        line += (
            f"; on these {_split_name(result)} pictures it accepts {_percent(measured.far)} of "
            f"impostor pairs and rejects {_percent(measured.frr)} of genuine pairs"
        )
        if measured.frr.value is not None and measured.frr.value >= 0.5:
            line += "; for fewer rejections add identities, or calibrate for a higher FAR: "
            line += "`twinlens calibrate MODEL DATA --far 0.1`"
    return line


def _split_name(result: EvaluationResult) -> str:
    return "validation" if result.split == "val" else result.split


def _percent(figure: Estimate) -> str:
    """A rate with its interval."""
    if figure.value is None:
        return "an unknown share"
    text = f"{100 * figure.value:.2g} %" if figure.value < 0.995 else f"{100 * figure.value:.3g} %"
    if figure.low is None or figure.high is None:
        return text
    return f"{text} (95 % interval {100 * figure.low:.2g} to {100 * figure.high:.3g} %)"


def next_line(model: Path, data: object, pair: Sequence[str] | None, *, calibrated: bool) -> str:
    """The next command to type.

    Args:
        model: folder of the model or of its run.
        data: the pictures as the user named them.
        pair: paths of two pictures; None if there are none.
        calibrated: whether the model has a threshold.
    """
    folder, named = shlex.quote(str(model)), isinstance(data, str | Path)
    source = shlex.quote(str(data)) if named else "DATA"
    if not calibrated:
        return f"next: twinlens calibrate {folder} {source} --on all"
    if pair is None:
        return f"next: twinlens evaluate {folder} {source}"
    a, b = map(shlex.quote, pair)
    return f"next: twinlens verify {folder} {a} {b}"


def pair_of(table: ImageTable) -> tuple[str, str] | None:
    """Paths of two pictures of an identity, not trained on if possible; None without files."""
    if table.pixels is not None:
        return None
    for split in ("test", "val", "train"):
        rows = np.flatnonzero((table.split == split) & ~table.forged)
        for name in dict.fromkeys(table.identity[rows].tolist()):
            same = rows[table.identity[rows] == name]
            if len(same) > 1:
                return str(table.path[same[0]]), str(table.path[same[1]])
    return None
