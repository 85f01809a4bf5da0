"""Adaptation of a gallery to its corrections: the metric, the threshold, and the gain.

The gain is measured on held-out answers: each template is identified without itself, and by a
metric that was fitted without its identity. The metric is applied only if it helps there.

Fusion rule and threshold are calibrated again, on the templates with the corrected ones among them,
at the FPIR of the gallery's calibration. The threshold moves by at most `MAX_SHIFT` of its value.

Shapes: M templates, D dimensions, P probes, L linked pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinlens.errors import CalibrationError, ModelError
from twinlens.gallery.core import GalleryCore
from twinlens.gallery.corrections import (
    Adaptation,
    ErrorChange,
    Feedback,
    unpacked,
    with_feedback,
    without,
)
from twinlens.gallery.metric import Metric, fit_metric
from twinlens.gallery.search import Lookup
from twinlens.gallery.settings import GalleryState, in_format
from twinlens.gallery.snapshot import vectors
from twinlens.measure.bootstrap import mean_estimates
from twinlens.measure.error_rates import matches, threshold_at_far
from twinlens.measure.open_set_calibration import OpenSetCalibration
from twinlens.measure.open_set_threshold import calibrate_open_set
from twinlens.measure.rank_probes import balanced_sample, rank_left_out

__all__ = ["MAX_SHIFT", "adapt"]

MAX_SHIFT = 0.25
"""Largest change of the threshold by corrections, as a share of it."""

FOLDS = 5
MOST_PROBES, MOST_FITTED = 2000, 5000
REPLICATES = 1000
FEWEST = 10
"""Identities with two templates from which an interval over identities means something."""

NOT_CALIBRATED = (
    "the gallery has no threshold of its own, so nothing was adapted: run `twinlens gallery "
    "calibrate`, which takes the corrections into account"
)
ON_PICTURES = (
    "the threshold was calibrated on pictures that the gallery does not keep, so threshold and "
    "metric stay: run `twinlens gallery calibrate` without DATA to adapt both"
)
TOO_FEW = "not measured: ten identities with two templates each are needed"
HELPS_CORRECTED_ONLY = "it helps the corrected pictures, and an error rate of the others rises"

EVERY = slice(None)

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def adapt(core: GalleryCore) -> None:
    """Fit metric and threshold to the present templates and corrections, and store them.

    Corrections of identities that are not enrolled any more are deleted.
    """
    stored, state = core.store.settings(), core.state()
    feedback = state.settings.feedback
    if feedback is None:
        return
    templates = _Templates.read(core)
    for name in {one.identity for one in feedback.corrections} - {None, *templates.names}:
        feedback = without(feedback, identity=name)
    adapted = _fitted(core, state, feedback, templates)

    def store(old: dict[str, Any]) -> dict[str, Any]:
        core.check_model(old["fingerprint"])
        if any(old.get(key) != stored.get(key) for key in ("feedback", "deletions", "open_set")):
            return old  # Another process adapts to what it changed.
        return in_format(with_feedback(old, adapted))

    if "feedback" in stored:  # Otherwise it was erased between the two reads.
        core.store.change_settings(store)


@dataclass(frozen=True, eq=False)
class _Templates:
    """All templates, ordered by hash, so that a fit does not depend on the order of enrolment."""

    names: list[str]
    code: Ints
    vector: Floats
    hash: NDArray[np.object_]

    @classmethod
    def read(cls, core: GalleryCore) -> _Templates:
        rows = core.store.find(columns=["identity", "hash", "vector"]).sort_by("hash")
        column = rows["identity"].to_numpy(zero_copy_only=False)
        names, code_M = np.unique(column, return_inverse=True)
        hashes = rows["hash"].to_numpy(zero_copy_only=False)
        return cls(names.tolist(), code_M.astype(np.int64), vectors(rows["vector"]), hashes)


@dataclass(frozen=True, eq=False)
class _Links:
    """Pairs of pictures that show the same: vectors (L, 2, D), identity codes or -1 (L, 2)."""

    vector: Floats
    code: Ints

    @classmethod
    def of(cls, feedback: Feedback, templates: _Templates) -> _Links:
        row_of = {name: row for row, name in enumerate(templates.hash.tolist())}
        pairs = [one.pictures for one in feedback.corrections if one.kind == "same"]
        vector = [
            templates.vector[row_of[name]]
            if name in row_of
            else unpacked(feedback.pictures[name].vector)
            for pair in pairs
            for name in pair
        ]
        code = [
            int(templates.code[row_of[name]]) if name in row_of else -1
            for pair in pairs
            for name in pair
        ]
        dim = templates.vector.shape[1]
        return cls(
            np.array(vector, np.float32).reshape(-1, 2, dim),
            np.array(code, np.int64).reshape(-1, 2),
        )


def _fitted(
    core: GalleryCore, state: GalleryState, feedback: Feedback, templates: _Templates
) -> Feedback:
    """The corrections with the metric, the calibration and the gain that belong to them."""
    try:
        base = state.calibrated
    except ModelError:  # Damaged; it can be calibrated again all the same.
        base = None
    if base is None or state.settings.calibrated_on == "pictures":
        adaptation = _unmeasured(base, NOT_CALIBRATED if base is None else ON_PICTURES)
        return _with_fit(feedback, None, None, adaptation)
    corrected = [one.pictures[0] for one in feedback.corrections if one.kind == "is"]
    # A gallery whose rule was given compared no other.
    rule = base.rule if len(base.by_rule) == 1 else "auto"
    work = _Work(
        core.lookup, base, rule, templates, _Links.of(feedback, templates),
        np.isin(templates.hash, corrected),
    )  # fmt: skip
    try:
        calibration = work.calibrated(None)
        work = replace(work, rule=calibration.rule)
        adaptation = _held_out(work)
        metric = work.fit(np.array([], np.int64)) if adaptation.metric_applied else None
        if metric is not None:
            calibration = work.calibrated(metric)
        threshold = _bounded(work, calibration.threshold)
    except CalibrationError as error:
        reason = f"the threshold cannot be calibrated again, so nothing was adapted: {error}"
        return _with_fit(feedback, None, None, _unmeasured(base, reason))
    update = {
        "rule_after": work.rule,
        "threshold_after": threshold,
        "bounded": threshold != calibration.threshold,
        "fpir": calibration.fpir_of(threshold),
    }
    return _with_fit(
        feedback, metric, replace(calibration, threshold=threshold),
        adaptation.model_copy(update=update),
    )  # fmt: skip


def _with_fit(
    feedback: Feedback,
    metric: Metric | None,
    calibration: OpenSetCalibration | None,
    adaptation: Adaptation,
) -> Feedback:
    return feedback.model_copy(
        update={
            "stale": False,
            "metric": None if metric is None else metric.stored(),
            "open_set": None if calibration is None else calibration.as_json(),
            "adaptation": adaptation,
        }
    )


@dataclass(frozen=True, eq=False)
class _Answers:
    """First identities of left-out templates, their distances, and strangers' distances (P,)."""

    code: Ints
    distance: Floats
    stranger: Floats

    def take(self, which_P: Bools) -> _Answers:
        """The answers to some of the probes."""
        return _Answers(self.code[which_P], self.distance[which_P], self.stranger[which_P])

    def errors(self, code_P: Ints, target_fpir: float) -> NDArray[np.float64]:
        """Whether the first identity is wrong, and whether the right one is missed, (2, P).

        The threshold is the one at the target FPIR; with few strangers, that of one in all.
        """
        right_P = self.code == code_P
        threshold = threshold_at_far(self.stranger, max(target_fpir, 1 / len(self.stranger)))
        return 1.0 - np.stack([right_P, right_P & matches(self.distance, threshold)])


@dataclass(frozen=True, eq=False)
class _Work:
    """What a fit and its measurement need."""

    lookup: Lookup
    base: OpenSetCalibration
    rule: str
    templates: _Templates
    links: _Links
    corrected: Bools

    def fit(self, left_out: Ints) -> Metric | None:
        """The metric of the templates, and linked pairs, that are of no left-out identity."""
        code_M = self.templates.code
        rows = np.flatnonzero(~np.isin(code_M, left_out))
        rows = rows[balanced_sample(code_M[rows], MOST_FITTED, np.random.default_rng(0))]
        kept_L = ~np.isin(self.links.code, left_out).any(axis=1)
        linked = self.links.vector[kept_L].reshape(-1, self.templates.vector.shape[1])
        pair_N = len(self.templates.names) + np.repeat(np.arange(len(linked) // 2), 2)
        return fit_metric(
            np.concatenate([self.templates.vector[rows], linked]),
            np.concatenate([code_M[rows], pair_N]),
        )

    def calibrated(
        self, metric: Metric | None, kept_M: Bools | slice = EVERY
    ) -> OpenSetCalibration:
        """A calibration on all templates or some.

        Raises:
            CalibrationError: too few strangers, or too many equally close.
        """
        return calibrate_open_set(
            self.lookup.mapped(metric, self.templates.vector[kept_M]), self.templates.code[kept_M],
            self.lookup.comparison, target_fpir=self.base.target_fpir, rule=self.rule,
        )  # fmt: skip

    def answers(self, row_P: Ints, metric: Metric | None) -> _Answers:
        """Answers to left-out templates."""
        return self._answers(
            row_P, self.lookup.mapped(metric, self.templates.vector), self.templates.code, self.rule
        )

    def answers_before(self, row_P: Ints) -> _Answers:
        """Answers to left-out templates in the gallery without the corrected pictures."""
        kept_M = ~self.corrected
        row_P = np.searchsorted(np.flatnonzero(kept_M), row_P)
        vector, code_M = self.templates.vector[kept_M], self.templates.code[kept_M]
        return self._answers(row_P, vector, code_M, self.base.rule)

    def _answers(self, row_P: Ints, vector: Floats, code_M: Ints, rule: str) -> _Answers:
        mated, stranger = rank_left_out(row_P, vector, code_M, self.lookup.comparison, (rule,))
        return _Answers(mated[rule].code, mated[rule].distance, stranger[rule].distance)

    def answers_by_folds(self, row_P: Ints) -> _Answers:
        """As `answers`, each by a metric that was fitted without the identities of its fold."""
        names = np.arange(len(self.templates.names))
        fold_I = np.random.default_rng(0).permutation(names) % FOLDS
        fold_P = fold_I[self.templates.code[row_P]]
        parts = [
            self.answers(row_P[fold_P == fold], self.fit(names[fold_I == fold]))
            for fold in range(FOLDS)
        ]
        order = np.argsort(np.argsort(fold_P, kind="stable"), kind="stable")
        return _Answers(
            *(np.concatenate([getattr(part, name) for part in parts])[order]
              for name in ("code", "distance", "stranger"))
        )  # fmt: skip

    def changes(self, before: _Answers, after: _Answers, code_P: Ints) -> list[ErrorChange]:
        """Changes of both error rates, with intervals from a bootstrap over identities."""
        errors = [one.errors(code_P, self.base.target_fpir) for one in (before, after)]
        _, own_P = np.unique(code_P, return_inverse=True)
        gains = mean_estimates(
            errors[0] - errors[1], own_P, int(own_P.max()) + 1, seed=0, replicates=REPLICATES
        )
        return [
            ErrorChange(before=float(old.mean()), after=float(new.mean()), low=gain.low,
                        high=gain.high)
            for old, new, gain in zip(*errors, gains, strict=True)
        ]  # fmt: skip


def _held_out(work: _Work) -> Adaptation:
    """The effect of corrections and metric on left-out templates."""
    code_M, plain_M = work.templates.code, ~work.corrected
    probe_M = _has_another(code_M)
    if len(np.unique(code_M[probe_M])) < FEWEST:
        return _unmeasured(work.base, TOO_FEW)
    # Corrected pictures were chosen for being wrong, so they would show a gain by that alone.
    plain_M[plain_M] = _has_another(code_M[plain_M])
    row_P = np.flatnonzero(probe_M)
    row_P = row_P[balanced_sample(code_M[row_P], MOST_PROBES, np.random.default_rng(0))]
    code_P, plain_P = code_M[row_P], plain_M[row_P]
    without_metric, with_metric = work.answers(row_P, None), work.answers_by_folds(row_P)
    on_all = work.changes(without_metric, with_metric, code_P)
    rank_1 = missed = None
    is_applied, reason = _verdict(on_all)
    if plain_P.any():
        code_P, with_metric = code_P[plain_P], with_metric.take(plain_P)
        without_metric = without_metric.take(plain_P)
        on_plain = work.changes(without_metric, with_metric, code_P)
        if is_applied and min(change.gain for change in on_plain) < 0:
            is_applied, reason = False, HELPS_CORRECTED_ONLY
        before = work.answers_before(row_P[plain_P])
        after = with_metric if is_applied else without_metric
        rank_1, missed = work.changes(before, after, code_P)
    return _unmeasured(work.base, reason).model_copy(
        update={
            "num_answers": int(plain_P.sum()), "rank_1": rank_1, "missed": missed,
            "metric_rank_1": on_all[0], "metric_missed": on_all[1], "metric_applied": is_applied,
        }
    )  # fmt: skip


def _has_another(code_M: Ints) -> Bools:
    """Whether each template's identity has another template."""
    _, own_M, count_I = np.unique(code_M, return_inverse=True, return_counts=True)
    return np.asarray(count_I[own_M] > 1)


def _verdict(changes: list[ErrorChange]) -> tuple[bool, str]:
    """Whether the metric helps: one error rate falls clearly, and the other does not rise."""
    if min(change.gain for change in changes) < 0:
        return False, "an error rate of held-out answers rises"
    if not any(change.is_clear for change in changes):
        return False, "no error rate of held-out answers falls by more than its standard error"
    return True, "an error rate of held-out answers falls by more than its standard error"


def _bounded(work: _Work, threshold: float) -> float:
    """The threshold within `MAX_SHIFT` of the one without corrections.

    Raises:
        CalibrationError: another rule, for which the templates alone give no threshold.
    """
    before = work.base.threshold
    if work.rule != work.base.rule:  # Its distances are others.
        before = work.calibrated(None, ~work.corrected).threshold
    return float(np.clip(threshold, before * (1 - MAX_SHIFT), before * (1 + MAX_SHIFT)))


def _unmeasured(base: OpenSetCalibration | None, reason: str) -> Adaptation:
    """The result without a measurement, and with the threshold as it was."""
    threshold = None if base is None else base.threshold
    return Adaptation(
        num_answers=0, rank_1=None, missed=None, metric_rank_1=None, metric_missed=None,
        metric_applied=False, reason=reason, rule_before=None if base is None else base.rule,
        rule_after=None if base is None else base.rule,
        threshold_before=threshold, threshold_after=threshold,
        bounded=False, target_fpir=None if base is None else base.target_fpir, fpir=None,
    )  # fmt: skip
