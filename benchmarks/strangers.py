"""`python -m benchmarks.strangers MODEL DATA [--root DIR]`: does a gallery's threshold hold?

Half of the unseen test identities are enrolled by 1 or 5 pictures each and the gallery is
calibrated as `twinlens gallery calibrate` does it, by leaving out its own templates in turn; then
everything else is asked about: the other pictures of the enrolled, and all pictures of the other
half, who are strangers. The mean of ten divisions, with the least and the most strangers taken,
beside the model's threshold for pairs.

Prediction: the share of strangers taken for somebody is near the target, a little above it for
small galleries, whose few templates leave the threshold to chance; several times as many by the
threshold for pairs.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np

import twinlens
from twinlens.commands.selection import select_pictures
from twinlens.errors import CalibrationError
from twinlens.measure.error_rates import matches
from twinlens.measure.fusion import rank_identities
from twinlens.measure.open_set_threshold import calibrate_open_set

DIVISIONS = 10
TARGETS = (0.01, 0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Does a gallery's threshold hold?")
    parser.add_argument("model", type=Path)
    parser.add_argument("data")
    parser.add_argument("--root", type=Path)
    args = parser.parse_args()
    logging.getLogger("twinlens").setLevel(logging.WARNING)
    model = twinlens.load(args.model)
    chosen = select_pictures(model, args.data, split="test", prefer="test", root=args.root)
    emb, label = model.embed_pixels(chosen.pixels), chosen.table.labels()
    print(f"{label.max() + 1} unseen identities, {len(label)} pictures of {args.data}")
    print(f"{'':38}{'strangers taken':>16}{'rightly named':>15}")
    for shot in (1, 5):
        for target in TARGETS:
            show(model, emb, label, shot, target)


def show(model: twinlens.Matcher, emb: np.ndarray, label: np.ndarray, shot: int, target: float):
    own, pairs = [], []
    for division in range(DIVISIONS):
        rng = np.random.default_rng(division)
        enrolled = rng.permutation(label.max() + 1)[: (label.max() + 1) // 2]
        template = np.concatenate(
            [rng.permutation(np.flatnonzero(label == one))[:shot] for one in enrolled]
        )
        rest = np.setdiff1d(np.arange(len(label)), template)
        is_mated = np.isin(label[rest], enrolled)
        try:
            result = calibrate_open_set(
                emb[template], label[template], model.comparison, target_fpir=target,
                rule="nearest", replicates=2,
            )  # fmt: skip
        except CalibrationError as error:
            print(f"{shot} each, FPIR {target:g}: {str(error).partition(':')[0]}")
            return
        distance = model.comparison.matrix(emb[rest], emb[template])
        best = rank_identities(distance, label[template], "nearest", 1)
        right = best.code[:, 0] == label[rest]
        for threshold, into in (
            (result.threshold, own),
            (model.require_calibration().threshold, pairs),
        ):
            accepted = matches(best.distance[:, 0], threshold)
            into.append((accepted[~is_mated].mean(), (accepted & right)[is_mated].mean()))
    print_line(f"{shot} each, calibrated for FPIR {target:g}", own)
    print_line(f"{shot} each, threshold for pairs", pairs)


def print_line(what: str, shares: list[tuple[float, float]]) -> None:
    values = np.array(shares)
    low, high = values[:, 0].min(), values[:, 0].max()
    mean = values.mean(axis=0)
    print(f"{what:38}{mean[0]:8.3f} ({low:.2f}-{high:.2f}){mean[1]:9.3f}")


if __name__ == "__main__":
    main()
