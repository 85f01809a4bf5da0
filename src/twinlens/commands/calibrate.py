"""`twinlens calibrate`: the threshold and the probability of a model's distances."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twinlens.commands.selection import select_pictures
from twinlens.data.table import ImageTable
from twinlens.errors import ConfigError
from twinlens.match.matcher import Matcher
from twinlens.measure.bootstrap import check_seed
from twinlens.measure.calibration import Calibration, fit_calibration
from twinlens.measure.domain import describe_pictures
from twinlens.measure.pairs import Comparison, draw_pairs, pair_distances
from twinlens.model.stored import GRAPH, THRESHOLD_KEY, graph_metadata, store_calibration
from twinlens.progress import Progress, console_log

__all__ = ["calibrate", "calibrate_on", "explain"]

log = logging.getLogger("twinlens")


def calibrate(
    model: str | Path,
    data: str | Path | ImageTable,
    *,
    far: float = 0.01,
    split: str = "auto",
    root: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    quiet: bool = False,
) -> Matcher:
    """Find the threshold for a target false accept rate, fit a probability, and store both.

    Args:
        model: folder of a model or of a run; its `model.json` is rewritten.
        data: labelled pictures that the model was not trained on.
        far: target false accept rate, in (0, 1).
        split: "train", "val", "test", "all", or "auto": the validation pictures if the model was
            trained on this data or the data names its splits, else all but the identities that the
            model was trained on.
        root: folder of a named set's local copy.
        seed: random seed for pairs and bootstrap.
        device: device of the embeddings, as in `twinlens.load`.
        quiet: log warnings only.
    Returns:
        The calibrated model.
    Raises:
        CalibrationError: too few pairs for that rate.
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
        matcher = Matcher.load(model, device)
        selection = select_pictures(matcher, data, split=split, prefer="val", root=root)
        emb_ND = matcher.embed_pixels(selection.pixels, Progress("embedding"))
        calibration = calibrate_on(emb_ND, selection.table, matcher.comparison, far, seed=seed)
        table, pixels = selection.table, selection.pixels
        domain = describe_pictures(emb_ND, table, pixels, table, seed)
        stored = store_calibration(matcher.stored, calibration.as_json(), domain)
        if THRESHOLD_KEY in graph_metadata(stored):
            log.warning(
                "the metadata of %s keeps the threshold of the export, which programs without "
                "twinlens read: export the model again for them", stored.path / GRAPH,
            )  # fmt: skip
        return Matcher(stored)


def calibrate_on(
    emb_ND: NDArray[np.float32], table: ImageTable, comparison: Comparison, far: float, *, seed: int
) -> Calibration:
    """The calibration of a model on embeddings (N, D) of the pictures of a table."""
    rng = np.random.default_rng(seed)
    pairs = draw_pairs(table.labels(), table.forged, rng=rng)
    distance = pair_distances(emb_ND, pairs, comparison)
    identity = table.identity.astype(str)
    return fit_calibration(
        distance, pairs.same, identity[pairs.a], identity[pairs.b], target_far=far, seed=seed
    )


def explain(calibration: Calibration) -> str:
    """A calibration as text."""
    interval = ""
    if calibration.low is not None and calibration.high is not None:
        interval = f" (95 % interval {calibration.low:.4f} to {calibration.high:.4f})"
    return (
        f"threshold {calibration.threshold:.4f}{interval}: pairs at or below it match; FAR "
        f"{100 * calibration.target_far:.3g} %\n"
        f"from {calibration.num_genuine} genuine and {calibration.num_impostor} impostor pairs of "
        f"{calibration.num_identities} identities"
    )
