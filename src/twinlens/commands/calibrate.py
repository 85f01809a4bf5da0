"""`twinlens calibrate`: what a model's distances mean on a user's own pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from twinlens.commands.selection import select_pictures
from twinlens.data.pixel_cache import Pixels
from twinlens.data.table import ImageTable
from twinlens.errors import ConfigError
from twinlens.match.matcher import Matcher
from twinlens.measure.bootstrap import check_seed
from twinlens.measure.calibration import Calibration
from twinlens.measure.calibration import calibrate as fit_calibration
from twinlens.measure.pairs import draw_pairs, pair_distances
from twinlens.model.bundle import Bundle, load_bundle, store_calibration
from twinlens.model.comparators import TorchComparison
from twinlens.model.encoder import embed_pixels
from twinlens.progress import Progress, console_log

__all__ = ["calibrate", "calibrate_on", "explain"]


def calibrate(
    model: str | Path,
    data: str | Path | ImageTable,
    *,
    far: float = 0.01,
    split: str = "auto",
    root: str | Path | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> Matcher:
    """Find the threshold for a target false accept rate, fit a probability, and store both.

    Args:
        model: a model's folder or a run's; its `model.json` is rewritten.
        data: labelled pictures of things that the model was not trained on.
        far: the target false accept rate, a fraction in (0, 1).
        split: which pictures of the data: "train", "val", "test", "all", or "auto": the
            validation pictures where the model was trained on this data or the data says which
            they are, else all but the identities that the model was trained on.
        root: where the copy of a named set lies.
        seed: draws pairs and replicates.
        quiet: say only warnings.
    Returns:
        The calibrated model.
    Raises:
        CalibrationError: too few pairs for that rate.
        ConfigError: a rate or a seed that is none, or an unknown split.
    """
    if not 0 < far < 1:
        raise ConfigError(f"a target FAR lies between 0 and 1, such as 0.01; found {far}")
    check_seed(seed)
    with console_log(quiet):
        bundle = load_bundle(model)
        chosen = select_pictures(bundle, data, split=split, prefer="val", root=root)
        found = calibrate_on(bundle, chosen.table, chosen.pixels, far, seed=seed)
        return Matcher(store_calibration(bundle, found.as_json()))


def calibrate_on(
    bundle: Bundle, table: ImageTable, pixels_NCHW: Pixels, far: float, *, seed: int
) -> Calibration:
    """The calibration of a model on decoded pictures; nothing is stored."""
    emb_ND = embed_pixels(bundle.encoder, pixels_NCHW, progress=Progress("embedding"))
    rng = np.random.default_rng(seed)
    pairs = draw_pairs(table.labels(), table.forged, rng=rng)
    distance = pair_distances(emb_ND, pairs, TorchComparison(bundle.comparator))
    identity = table.identity.astype(str)
    return fit_calibration(
        distance, pairs.same, identity[pairs.a], identity[pairs.b], target_far=far, seed=seed
    )


def explain(found: Calibration) -> str:
    """A calibration in words."""
    interval = ""
    if found.low is not None and found.high is not None:
        interval = f" (95 % interval {found.low:.4f} to {found.high:.4f})"
    return (
        f"threshold {found.threshold:.4f}{interval}: two pictures match at this distance or "
        f"closer, and {100 * found.target_far:.3g} % of the different pairs do so wrongly\n"
        f"from {found.num_genuine} genuine and {found.num_impostor} impostor pairs of "
        f"{found.num_identities} identities"
    )
