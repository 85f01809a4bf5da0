"""Whether thresholds keep their FAR on new identities, and what their caution costs.

`python -m benchmarks.honesty [--only NAME ...] [--divisions N] [--auto]` prints the table and
writes it to `benchmarks/HONESTY.md`. In each division some identities fit a whitening of frozen
features, some calibrate, and all others are the test: the FAR that they meet at the threshold is
compared with the target. Beside twinlens's threshold are the plain quantile of the impostor
distances (twinlens's own until version 0.1) and the bootstrap over identities alone. The oracle is
the quantile of the test itself. `--auto` trains on 12 people of the ORL faces, and tests 28.

Shapes: N pictures, D dimensions.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import twinlens
from benchmarks.regret_baselines import Pictures, unit, whitening
from benchmarks.regret_data import DATA, characters, in_memory
from benchmarks.table import KEPT, heading
from twinlens.data.folders import read_table
from twinlens.data.table import ImageTable
from twinlens.errors import CalibrationError
from twinlens.files import writing_file
from twinlens.measure.error_rates import far_at, frr_at, threshold_at_far
from twinlens.measure.new_identity_threshold import ImpostorPairs
from twinlens.measure.open_set_threshold import calibrate_open_set
from twinlens.measure.pairs import draw_pairs, sample_pictures
from twinlens.measure.rank_probes import rank_probes

PAGE = Path(__file__).with_name("HONESTY.md")
EACH = 10  # pictures of an identity, and forgeries of it
SIZES, FARS = (5, 8, 12, 20), {0.01: 5, 0.001: 10}  # FAR -> fewest identities
FEWEST_TESTED = 10
GALLERIES = (10, 100, 1000, 10_000)

Floats = NDArray[np.float32]


class Cosine:
    """Cosine distances of unit embeddings."""

    def matrix(self, a_ND: Floats, b_MD: Floats) -> Floats:
        """Distances of each to each, (N, M)."""
        return 1 - a_ND @ b_MD.T

    def pairwise(self, a_ND: Floats, b_ND: Floats) -> Floats:
        """Distances of each to its own, (N,)."""
        return np.asarray(1 - np.einsum("nd,nd->n", a_ND, b_ND), dtype=np.float32)


def orl() -> ImageTable:
    return read_table(str(DATA / "orl_faces"))


def groceries() -> ImageTable:
    return read_table(str(DATA / "groceries"))


def signatures() -> ImageTable:
    return read_table(str(DATA / "signatures"))


def omniglot() -> ImageTable:
    return in_memory("omniglot", *characters())


SETS = {"omniglot": (omniglot, 60), "orl": (orl, 10), "groceries": (groceries, 10),
        "signatures": (signatures, 16)}  # fmt: skip
"""Table, and the number of identities that fit the whitening."""


def features(name: str) -> tuple[Floats, NDArray[np.int64], NDArray[np.bool_]]:
    """Features (N, D) of some pictures of each identity, their labels, whether they are forged."""
    if name == "simulated":
        return simulated(300, np.random.default_rng(0))
    table = SETS[name][0]()
    rng, label = np.random.default_rng(0), table.labels()
    kinds = [np.flatnonzero(kind) for kind in (~table.forged, table.forged)]
    most = EACH * len(table.identities())
    rows = [kind[sample_pictures(label[kind], most, rng)] for kind in kinds if len(kind)]
    table = table.select(np.sort(np.concatenate(rows)))
    table = table.with_split(["test"] * len(table))
    file = KEPT / "honesty" / f"{name}.npy"
    if not file.exists():
        emb_ND, _ = Pictures(table, "open").feature("lite0")
        with writing_file(file) as part, part.open("wb") as stream:
            np.save(stream, emb_ND)
    return np.load(file), table.labels(), table.forged


def simulated(num: int, rng: np.random.Generator) -> tuple[Floats, Any, Any]:
    """Identities in 24 dimensions, one of six close to the one before it; 6 pictures each."""
    center = rng.standard_normal((num, 24))
    close = np.arange(1, num, 6)
    center[close] = 0.8 * center[close - 1] + 0.6 * center[close]
    center = rng.permutation(center)
    label = np.repeat(np.arange(num), 6)
    emb = center[label] + 0.8 * rng.standard_normal((len(label), 24))
    return unit(emb.astype(np.float32)), label, np.zeros(len(label), dtype=np.bool_)


def divisions(name: str, num: int) -> Iterator[tuple[Floats, Any, Any, NDArray[np.int64]]]:
    """Embeddings, labels, forgeries, and the identities that fitted nothing, in random order."""
    emb_ND, label, forged = features(name)
    for seed in range(num):
        names = np.random.default_rng([seed, 16]).permutation(label.max() + 1)
        learned, rest = np.array([], dtype=np.int64), names
        emb = emb_ND
        if name in SETS:
            learned, rest = np.split(names, [SETS[name][1]])
            rows = np.isin(label, learned) & ~forged
            fit = whitening("within", 0.1)(emb_ND[rows], label[rows])
            emb = unit(fit(unit(emb_ND)))
        yield emb, label, forged, rest


def distances(
    emb_ND: Floats, label: Any, forged: Any, names: NDArray[np.int64]
) -> tuple[Any, Any, Any, Any]:
    """Distances of the pairs of some identities, whether genuine, and codes of both."""
    rows = np.flatnonzero(np.isin(label, names))
    pairs = draw_pairs(label[rows], forged[rows], rng=np.random.default_rng(0))
    a, b = rows[pairs.a], rows[pairs.b]
    dist = Cosine().pairwise(emb_ND[a], emb_ND[b]).astype(np.float64)
    _, code = np.unique(label, return_inverse=True)
    place = np.searchsorted(np.sort(names), code)
    return dist, pairs.same, place[a], place[b]


def thresholds(dist: Any, same: Any, a: Any, b: Any, num: int, far: float) -> dict[str, float]:
    """Threshold by each way; -inf where it has none."""
    pairs = ImpostorPairs(dist[same], dist[~same], a[~same], b[~same], num, seed=0, replicates=200)
    result = {"quantile": threshold_at_far(dist[~same], far), "twinlens": -np.inf}
    limit_R = pairs._bootstrap(far)[1]
    low = np.quantile(limit_R[~np.isnan(limit_R)], 0.05, method="lower")
    result["bootstrap"] = float(min(low, result["quantile"]))
    try:
        result["twinlens"] = pairs.fit(far).threshold
    except CalibrationError as error:
        print(f"  {num} identities, {far:g}: {error}")
    return result


def pair_rows(name: str, num_divisions: int) -> Iterator[str]:
    """A row for each target, number of identities and way."""
    met = dict[tuple[float, int, str], list[tuple[float, float, float]]]()
    for emb, label, forged, rest in divisions(name, num_divisions):
        for num in SIZES:
            if len(rest) - num < FEWEST_TESTED:
                continue
            test, same, _, _ = distances(emb, label, forged, rest[num:])
            given = distances(emb, label, forged, rest[:num])
            for far, fewest in FARS.items():
                if num < fewest or (~given[1]).sum() < 1 / far:
                    continue
                oracle = frr_at(test[same], threshold_at_far(test[~same], far))
                for way, threshold in thresholds(*given, num, far).items():
                    far_met = far_at(test[~same], threshold)
                    frr = frr_at(test[same], threshold)
                    met.setdefault((far, num, way), []).append((far_met / far, frr, oracle))
    for (far, num, way), values in sorted(met.items(), reverse=True):
        ratio, frr, oracle = np.array(values).T
        yield (
            f"| {name} | {far:.1%} | {num} | {way} | {(ratio > 2).mean():.0%} | {ratio.mean():.2f} "
            f"| {frr.mean():.1%} | {oracle.mean():.1%} | {frr.mean() / oracle.mean():.2f} |"
        )


def gallery_rows(num_divisions: int) -> Iterator[str]:
    """Met FPIR of simulated galleries, calibrated on themselves, by their size."""
    for size in GALLERIES:
        met, rank = [], []
        for seed in range(max(3, num_divisions // (1 + size // 100))):
            emb, label, _ = simulated(size + 600, np.random.default_rng([seed, size]))
            strangers = label >= size
            kept = np.flatnonzero(~strangers)[np.arange((~strangers).sum()) % 6 < 3]
            mated = np.flatnonzero(~strangers)[np.arange((~strangers).sum()) % 6 == 5][:600]
            comparison = Cosine()
            try:
                known = calibrate_open_set(
                    emb[kept], label[kept], comparison, target_fpir=FPIRS[size], seed=seed,
                    rule="nearest",
                )  # fmt: skip
            except CalibrationError as error:
                print(f"  gallery of {size}: {error}")
                continue
            probes = np.concatenate([np.flatnonzero(strangers), mated])
            best = rank_probes(emb[probes], emb[kept], label[kept], comparison, ("nearest",))
            distance, code = best["nearest"].distance, best["nearest"].code
            within, num = distance <= known.threshold, int(strangers.sum())
            met.append(within[:num].mean() / FPIRS[size])
            rank.append((within & (code == label[probes]))[num:].mean())
        ratio = np.array(met)
        yield (
            f"| {size:,} | {FPIRS[size]:.0%} | {len(met)} | {(ratio > 2).mean():.0%} | "
            f"{ratio.mean():.2f} | {1 - np.mean(rank):.1%} |"
        )


FPIRS = {10: 0.1, 100: 0.01, 1000: 0.01, 10_000: 0.01}


def auto_rows() -> Iterator[str]:
    """The ORL faces at full size: 12 people to learn from, 28 as test."""
    table = orl()
    for seed in range(3):
        names = np.random.default_rng(seed).permutation(table.identities())
        split = dict.fromkeys(names, "test") | dict.fromkeys(names[:12], "train")
        split |= dict.fromkeys(names[9:12], "val")
        divided = table.with_split([split[name] for name in table.identity])
        with tempfile.TemporaryDirectory() as folder:
            model = twinlens.train(
                divided, out=f"{folder}/run",
                settings={"train.time_budget": 60.0, "seed": seed}, quiet=True,
            )  # fmt: skip
            result = twinlens.evaluate(model.path, divided, split="test", quiet=True)
        calibrated = result.verification.calibrated
        tar = result.verification.tar_at_far["0.01"]
        assert calibrated is not None
        assert model.calibration is not None
        yield (
            f"| {seed} | {model.calibration.num_identities} | {model.calibration.target_far:.1%} | "
            f"{calibrated.far.value:.2%} | {calibrated.frr.value:.1%} | "
            f"{1 - tar.value:.1%} | {result.verification.eer.value:.1%} |"
        )


PAIRS = """| data | target FAR | identities | threshold | above twice it | mean FAR / target \
| FRR | oracle's | ratio |
|---|---|---|---|---|---|---|---|---|"""
OPEN = """| identities | target FPIR | galleries | above twice the target | mean FPIR / target | \
mated probes missed |
|---|---|---|---|---|---|"""
AUTO = """| seed | identities | target FAR | FAR of 28 new people | FRR | oracle's | EER |
|---|---|---|---|---|---|---|"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.honesty", description=__doc__)
    names = (*SETS, "simulated", "galleries")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--divisions", type=int, default=20)
    parser.add_argument("--auto", action="store_true", help="train on ORL faces as well")
    args = parser.parse_args()
    page = ["# Honesty", "", (__doc__ or "").strip(), "", heading(), "", PAIRS]
    print(PAIRS)
    for name in args.only:
        if name != "galleries":
            for row in pair_rows(name, args.divisions):
                print(row, flush=True)
                page.append(row)
    parts = []
    if "galleries" in args.only:
        parts.append((OPEN, gallery_rows(args.divisions)))
    if args.auto:
        parts.append((AUTO, auto_rows()))
    for head, rows in parts:
        print(head)
        page += ["", head]
        for row in rows:
            print(row, flush=True)
            page.append(row)
    with writing_file(PAGE) as part:
        part.write_text("\n".join([*page, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
