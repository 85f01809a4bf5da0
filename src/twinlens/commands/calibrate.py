"""`twinlens calibrate`: the threshold and the probability of a model's distances."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinlens.commands.calibrate_pairs import calibrate_pairs
from twinlens.commands.calibrate_unlabelled import calibrate_unlabelled
from twinlens.commands.selection import Selection, select_pictures
from twinlens.data.adapters import Data, path_or_table
from twinlens.data.pair_list import pairs_in
from twinlens.data.table import ImageTable
from twinlens.errors import CalibrationError, ConfigError
from twinlens.match.matcher import Matcher, Model
from twinlens.measure.bootstrap import check_seed
from twinlens.measure.calibration import Calibration, fit_calibration
from twinlens.measure.domain import describe_pictures
from twinlens.measure.held_out import HeldOutPairs
from twinlens.measure.new_identity_threshold import CONFIDENCE, FEWEST_IDENTITIES
from twinlens.measure.pairs import Comparison, draw_pairs, pair_distances
from twinlens.measure.unlabelled import FEWEST_PICTURES
from twinlens.model.stored import GRAPH, THRESHOLD_KEY, graph_metadata, store_calibration
from twinlens.progress import Progress, console_log

__all__ = ["calibrate", "calibrate_held_out", "calibrate_on", "caution", "explain"]

log = logging.getLogger("twinlens")


def calibrate(
    model: Model,
    data: Data,
    *,
    far: float = 0.01,
    split: str = "auto",
    unlabelled: float | None = None,
    root: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    quiet: bool = False,
) -> Matcher:
    """Find the threshold for a target false accept rate, fit a probability, and store both.

    Args:
        model: folder of a model or of a run, or a loaded model; its `model.json` is rewritten.
        data: labelled pictures that the model was not trained on, or pairs (`a,b,same`).
        far: target false accept rate, in (0, 1).
        split: "train", "val", "test", "all", or "auto": the validation pictures if the model was
            trained on this data or the data names its splits, else all but the identities that the
            model was trained on.
        unlabelled: largest share of genuine pairs among random pairs of pictures, such as 0.05 for
            20 identities or more: the threshold is set without labels, and the probability is
            moved with it. A second best; None uses the labels.
        root: folder of a named set's local copy.
        seed: random seed for pairs and bootstrap.
        device: device of the embeddings, as in `twinlens.load`.
        quiet: log warnings only.
    Returns:
        The calibrated model.
    Raises:
        CalibrationError: too few pairs for that rate and for any easier one.
        ConfigError: `far` outside (0, 1), a negative seed, or an unknown split.

    Example:
        >>> model = twinlens.calibrate("runs/photos", "photos/", far=0.001)  # doctest: +SKIP
        >>> model.calibration.threshold  # doctest: +SKIP
        0.3871
    """
    if not 0 < far < 1:
        raise ConfigError(f"far must be in (0, 1), such as 0.01; found {far}")
    check_seed(seed)
    with console_log(quiet):
        matcher = Matcher.of(model, device)
        if unlabelled is None and (pairs := pairs_in(data, root)) is not None:
            if split != "auto":
                raise ConfigError(f"pairs have no splits: leave out --on {split}")
            calibration, domain = calibrate_pairs(matcher, pairs, far, seed)
            if (note := caution(calibration)) is not None:
                log.warning("%s", note)
            return _stored(matcher, calibration, domain)
        data = path_or_table(data, root)
        if unlabelled is not None:
            calibration, domain = calibrate_unlabelled(matcher, data, root, far, unlabelled, seed)
            return _stored(matcher, calibration, domain)
        selection = select_pictures(matcher, data, split=split, prefer="val", root=root)
        emb_ND = matcher.embed_pixels(selection.pixels, Progress("embedding"))
        try:
            calibration = calibrate_on(
                emb_ND, selection.table, matcher.comparison, far,
                seed=seed, new_identities=not selection.is_closed,
            )  # fmt: skip
        except CalibrationError as error:
            raise CalibrationError(f"{error}. {_next_step(matcher, data, selection)}") from error
        if (note := caution(calibration)) is not None:
            log.warning("%s", note)
        table, pixels = selection.table, selection.pixels
        domain = describe_pictures(
            emb_ND, table, pixels, table, closed=selection.is_closed, seed=seed
        )
        return _stored(matcher, calibration, domain)


def _next_step(matcher: Matcher, data: str | Path | ImageTable, selection: Selection) -> str:
    """The command to run where these pictures give no threshold, and what it costs."""
    source = data.source if isinstance(data, ImageTable) else str(data)
    command = f"twinlens calibrate {matcher.path} {source}"
    if selection.split != "all":
        return (
            f"`{command} --on all` uses all pictures, those of the training too, and then accepts "
            "more impostors than it states"
        )
    if len(selection.table) >= FEWEST_PICTURES:
        return f"`{command} --unlabelled` sets a threshold without the labels; it is less certain"
    return (
        "Until there are more pictures, `twinlens verify` shows distances, and `twinlens search` "
        "the nearest pictures of a gallery"
    )


def _stored(matcher: Matcher, calibration: Calibration, domain: dict[str, Any] | None) -> Matcher:
    """The model with a calibration and a domain, which are written into its folder."""
    stored = store_calibration(matcher.stored, calibration.as_json(), domain)
    if THRESHOLD_KEY in graph_metadata(stored):
        log.warning(
            "the metadata of %s keeps the threshold of the export, which programs without "
            "twinlens read: export the model again for them", stored.path / GRAPH,
        )  # fmt: skip
    return Matcher(stored)


def calibrate_on(
    emb_ND: NDArray[np.float32],
    table: ImageTable,
    comparison: Comparison,
    far: float,
    *,
    seed: int,
    new_identities: bool = True,
) -> Calibration:
    """The calibration of a model on embeddings (N, D) of the pictures of a table."""
    rng = np.random.default_rng(seed)
    pairs = draw_pairs(table.labels(), table.forged, rng=rng)
    distance = pair_distances(emb_ND, pairs, comparison)
    identity = table.identity.astype(str)
    return fit_calibration(
        distance, pairs.same, identity[pairs.a], identity[pairs.b], target_far=far, seed=seed,
        new_identities=new_identities,
    )  # fmt: skip


def calibrate_held_out(
    pairs: HeldOutPairs, names_N: NDArray[Any], far: float, *, seed: int, new_identities: bool
) -> Calibration | None:
    """The calibration of a model by held-out pairs, as `fit_calibration`.

    Args:
        pairs: the pairs, by rows of `names_N`.
        names_N: (N,) names of the identities.
        far: target false accept rate, in (0, 1).
        seed: random seed of bootstrap and folds.
        new_identities: whether the model is to answer for other identities than these.
    Returns:
        None, after a warning, if the pairs are too few.
    """
    try:
        calibration = fit_calibration(
            pairs.distance, pairs.same, names_N[pairs.a], names_N[pairs.b],
            target_far=far, seed=seed, new_identities=new_identities,
        )  # fmt: skip
    except CalibrationError as error:
        log.warning("the model is not calibrated: %s", error)
        return None
    if (note := caution(calibration)) is not None:
        log.warning("%s", note)
    return calibration


def caution(calibration: Calibration) -> str | None:
    """A sentence on a target that is not the requested one, or on too few identities."""
    requested, num = calibration.requested_far, calibration.num_identities
    if requested is not None and calibration.target_far > requested:
        return (
            f"calibrated for a FAR of {100 * calibration.target_far:g} %, not "
            f"{100 * requested:g} %: "
            f"{calibration.num_impostor} impostor pairs of {num} identities allow no less; "
            "calibrate with more identities"
        )
    if num < FEWEST_IDENTITIES and calibration.far_limit is None:
        return (
            f"found {num} identities; the FAR among new ones is unknown: calibrate with "
            f"{FEWEST_IDENTITIES} at least, and better 20"
        )
    return None


def explain(calibration: Calibration) -> str:
    """A calibration as text."""
    if calibration.assumed_share is not None:
        probability = "the probability is that of the earlier calibration, moved"
        if calibration.curve is None:
            probability = "there is no probability"
        return (
            f"threshold {calibration.threshold:.4f} without labels: pairs at or below it match; "
            f"FAR about {100 * calibration.target_far:.3g} %\n"
            f"from {calibration.num_impostor} random pairs, of which at most "
            f"{100 * calibration.assumed_share:.3g} % are genuine; {probability}: labelled "
            "pictures are better"
        )
    interval = ""
    if calibration.low is not None and calibration.high is not None:
        interval = f" (95 % interval {calibration.low:.4f} to {calibration.high:.4f})"
    limit = ""
    if calibration.far_limit is not None:
        limit = (
            f", and at most {100 * calibration.far_limit:.3g} % among new identities "
            f"({100 * CONFIDENCE:.0f} % confidence)"
        )
    difference = ""
    if calibration.unadjusted is not None and calibration.threshold < calibration.unadjusted:
        difference = (
            f"; {calibration.unadjusted:.4f} keeps to it on these alone: the difference is caution "
            "for new identities, and falls with their number"
        )
    return (
        f"threshold {calibration.threshold:.4f}{interval}: pairs at or below it match; FAR "
        f"{100 * calibration.target_far:.3g} %{limit}\n"
        f"from {calibration.num_genuine} genuine and {calibration.num_impostor} impostor pairs of "
        f"{calibration.num_identities} identities{difference}"
    )
