"""The domain of a calibration: whether pictures are like those that set the threshold.

Two densities describe the calibration pictures, one of their embeddings and one of plain statistics
of their pixels. Each is a normal distribution with a shrunk covariance (Ledoit 2004), with the
directions of the largest variances and one variance for all others (Tipping 1999, probabilistic
principal components). The Mahalanobis distance is its score. Means and covariances are stored, and
no embedding of a picture, so a model gives no template away.

A picture is outside if its distance exceeds a limit, which is set for pictures of a **new
identity**: from scores of identities that the density was not fitted to, with the variance between
identities and the uncertainty of few of them.

Shapes: N pictures, D dimensions of an embedding, S statistics, F features of a density (D or S),
K directions, I identities.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, PlainSerializer, model_validator
from pydantic.dataclasses import dataclass

from twinlens.data.pixels import Pixels, select_rows
from twinlens.data.table import ImageTable
from twinlens.measure.picture_statistics import STATISTICS, picture_statistics
from twinlens.measure.stored import STRICT, Count, as_plain, read_calibration

__all__ = ["Domain", "DomainCheck", "DomainSummary", "describe_pictures", "fit_domain"]

SHARE = 0.01  # of the pictures of new identities that may be outside, half by each density
MOST_OUTSIDE = 0.1  # of the pictures of a data set that is inside
FEWEST_IDENTITIES = 3
MOST_PICTURES = 1000
FOLDS = 10
MOST_DIRECTIONS, MOST_NUMBERS = 48, 3 * 2**14  # of a density: 96 KiB
EMBEDDING_FLOOR = 0.05  # least deviation of a dimension, relative to the root mean square of all
QUANTILES = 101
RARE = 0.01  # share of calibration pictures beyond a statistic that is worth a word
SHOWN = 2  # reasons
ADVICE = "run `twinlens calibrate MODEL DATA` with at least 10 identities of 3 pictures like these"

Floats = NDArray[np.float64]


def _decode(value: Any, kind: str) -> Floats:
    if isinstance(value, np.ndarray):
        return value.astype(kind).astype(np.float64)
    try:
        array = np.frombuffer(base64.b64decode(value, validate=True), kind)
    except (TypeError, ValueError, binascii.Error):
        raise ValueError(f"numbers must be {kind} in base64") from None
    if not np.isfinite(array).all():
        raise ValueError("numbers must be finite")
    return array.astype(np.float64)


def _encode(array: Floats, kind: str) -> str:
    return base64.b64encode(array.astype(kind).tobytes()).decode("ascii")


Single = Annotated[
    Any,
    BeforeValidator(lambda value: _decode(value, "<f4")),
    PlainSerializer(lambda array: _encode(array, "<f4"), return_type=str),
]
Half = Annotated[
    Any,
    BeforeValidator(lambda value: _decode(value, "<f2")),
    PlainSerializer(lambda array: _encode(array, "<f2"), return_type=str),
]


@dataclass(frozen=True, config=STRICT, eq=False)
class Density:
    """A normal distribution of F features, of full rank by K directions and one variance.

    Attributes:
        mean: (F,).
        scale: standard deviation of each feature, (F,).
        directions: principal directions of the scaled features, (F x K,), row by row.
        variance: of each direction, (K,).
        rest: variance of every direction perpendicular to these.
        limit: largest distance inside.
    """

    mean: Single
    scale: Single
    directions: Half
    variance: Single
    rest: Annotated[float, Field(gt=0)]
    limit: Annotated[float, Field(gt=0)] = 1.0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        """Check that the arrays belong together."""
        sizes = (len(self.scale), len(self.directions))
        if sizes != (len(self.mean), len(self.mean) * len(self.variance)):
            raise ValueError("arrays of a density must have the same number of features")
        if not ((self.scale > 0).all() and (self.variance > 0).all()):
            raise ValueError("deviations and variances must be above 0")
        return self

    def deviations(self, x_NF: NDArray[Any]) -> Floats:
        """Features in standard deviations from the mean, (N, F)."""
        scaled: Floats = (x_NF.astype(np.float64) - self.mean) / self.scale
        return scaled

    def distance(self, x_NF: NDArray[Any]) -> Floats:
        """Root mean square of the Mahalanobis distance over features, (N,); about 1 inside."""
        z_NF = self.deviations(x_NF)
        along_NK = z_NF @ self.directions.reshape(len(self.mean), -1)
        rest_N = np.maximum((z_NF**2).sum(1) - (along_NK**2).sum(1), 0)
        square_N = (along_NK**2 / self.variance).sum(1) + rest_N / self.rest
        root: Floats = np.sqrt(square_N / len(self.mean))
        return root


@plain_dataclass(frozen=True)
class DomainCheck:
    """Whether a picture is like the calibration pictures of a model.

    Attributes:
        in_domain: `score <= 1`.
        score: distance from the calibration pictures, relative to the largest distance inside.
        reason: how the picture differs, in words; None inside.
    """

    in_domain: bool
    score: float
    reason: str | None

    @staticmethod
    def as_json(checks: Sequence[DomainCheck] | None) -> dict[str, Any]:
        """Keys of the answer about one picture or more; null if unknown.

        >>> DomainCheck.as_json([DomainCheck(True, 0.5, None)])
        {'in_domain': True, 'domain_score': 0.5, 'domain_reason': None}
        """
        if not checks:
            return {"in_domain": None, "domain_score": None, "domain_reason": None}
        worst = max(checks, key=lambda check: check.score)
        return {
            "in_domain": worst.in_domain,
            "domain_score": worst.score,
            "domain_reason": worst.reason,
        }

    def as_text(self, name: str) -> str:
        """What is unlike in a picture outside, and what to do.

        Args:
            name: the picture, such as "the first picture".
        """
        return (
            f"{name} is unlike the model's calibration pictures (score {self.score:.1f}, at most "
            f"1: {self.reason}), so the threshold may not hold for it: {ADVICE}"
        )


@plain_dataclass(frozen=True)
class DomainSummary:
    """Whether a data set is like the calibration pictures of a model.

    Attributes:
        in_domain: whether at most a tenth of the pictures are outside.
        outside: share of the pictures that are outside; about 0.01 for new identities.
        score: median score of the pictures; above 1 is outside.
        num_pictures: pictures that were compared.
        reason: how most of those outside differ; None if the data set is inside.
    """

    in_domain: bool
    outside: float
    score: float
    num_pictures: int
    reason: str | None

    def as_json(self) -> dict[str, Any]:
        """`{"in_domain", "outside", "score", "num_pictures", "reason"}`."""
        return asdict(self)

    def as_text(self) -> str:
        """The share outside; for a data set outside also how it differs, and what to do."""
        line = (
            f"{100 * self.outside:.1f} % of {self.num_pictures:,} pictures are unlike the model's "
            "calibration pictures"
        )
        if self.in_domain:
            return line
        return f"{line} ({self.reason}), so its threshold may not hold for them: {ADVICE}"


@dataclass(frozen=True, config=STRICT, eq=False)
class Domain:
    """A description of the pictures that a model was calibrated on.

    Attributes:
        embeddings: density of their embeddings; None if too few.
        pictures: density of their statistics (`measure.picture_statistics`).
        statistics: names of the statistics.
        quantiles: levels of each statistic that divide the pictures evenly, (S x 101,).
        num_pictures: calibration pictures.
        num_identities: their identities.
    """

    embeddings: Density | None
    pictures: Density
    statistics: tuple[str, ...]
    quantiles: Half
    num_pictures: Count
    num_identities: Count

    @model_validator(mode="after")
    def _fits(self) -> Self:
        """Check that the arrays are of the statistics."""
        num = len(self.statistics)
        if len(self.pictures.mean) != num or len(self.quantiles) != num * QUANTILES:
            raise ValueError(f"pictures and quantiles must have {num} statistics")
        return self

    def scores(self, emb_ND: NDArray[Any], stats_NS: NDArray[Any]) -> Floats:
        """Distance of each picture relative to the largest one inside, (N,).

        Args:
            emb_ND: embeddings.
            stats_NS: `picture_statistics` of the same pictures.
        """
        score_N: Floats = self._parts(emb_ND, stats_NS).max(0)
        return score_N

    def _parts(self, emb_ND: NDArray[Any], stats_NS: NDArray[Any]) -> Floats:
        """Relative distances by embeddings and by statistics, (2, N)."""
        by_pixels_N = self.pictures.distance(stats_NS) / self.pictures.limit
        if self.embeddings is None:
            return np.stack([np.zeros_like(by_pixels_N), by_pixels_N])
        return np.stack([self.embeddings.distance(emb_ND) / self.embeddings.limit, by_pixels_N])

    def check(self, emb_ND: NDArray[Any], stats_NS: NDArray[Any]) -> list[DomainCheck]:
        """The check of each picture, with its reasons."""
        parts_2N = self._parts(emb_ND, stats_NS)
        checks = []
        for (by_features, by_pixels), stats_S in zip(parts_2N.T, stats_NS, strict=True):
            score = float(max(by_features, by_pixels))
            reasons = [] if score <= 1 else self._reasons(stats_S, by_features > 1, by_pixels > 1)
            checks.append(DomainCheck(score <= 1, score, ", ".join(reasons) or None))
        return checks

    def summary(self, emb_ND: NDArray[Any], stats_NS: NDArray[Any]) -> DomainSummary:
        """The check of a data set of at least one picture."""
        parts_2N = self._parts(emb_ND, stats_NS)
        score_N = parts_2N.max(0)
        outside_N = score_N > 1
        share = float(outside_N.mean())
        reason = None
        if share > MOST_OUTSIDE:
            counts: Counter[str] = Counter()
            for row in np.flatnonzero(outside_N):
                by_features, by_pixels = parts_2N[:, row] > 1
                words = self._unusual(stats_NS[row]) if by_pixels else []
                counts.update([*words, "unlike in features"] if by_features else words)
            reason = ", ".join(word for word, _ in counts.most_common(SHOWN + 1))
        median = float(np.median(score_N))
        return DomainSummary(share <= MOST_OUTSIDE, share, median, len(score_N), reason)

    def _reasons(self, stats_S: NDArray[Any], by_features: bool, by_pixels: bool) -> list[str]:
        words = self._unusual(stats_S) if by_pixels else []
        reasons = []
        if words:
            reasons.append(f"{' and '.join(words)} than {100 * (1 - RARE):.3g} % of them")
        if by_features:
            reasons.append("unlike them in its features")
        return reasons or ["an unusual combination of levels and edges"]

    def _unusual(self, stats_S: NDArray[Any]) -> list[str]:
        """Words for the statistics farthest out, beyond almost all calibration pictures."""
        z_S = self.pictures.deviations(stats_S[None])[0]
        level_SQ = self.quantiles.reshape(len(z_S), -1)
        unusual: dict[str, None] = {}
        for index in np.argsort(-np.abs(z_S)):
            name, value = list(STATISTICS)[index], stats_S[index]
            low, high, _ = STATISTICS[name]
            is_high = z_S[index] > 0
            less = level_SQ[index] < value if is_high else level_SQ[index] > value
            if less.mean() >= 1 - RARE:
                unusual[high if is_high else low] = None
            if len(unusual) == SHOWN:
                break
        return list(unusual)

    def as_json(self) -> dict[str, Any]:
        """Plain numbers, strings and lists; `from_json` gives back an equal domain."""
        return as_plain(self)

    @classmethod
    def from_json(cls, values: Any) -> Domain | None:
        """Read what `as_json` gave, after json has parsed it.

        Returns:
            None if another version of twinlens, with other statistics, wrote it.
        Raises:
            ModelError: damaged; names every problem.
        """
        names = values.get("statistics") if isinstance(values, dict) else None
        if isinstance(names, list) and names != list(STATISTICS)[: len(names)]:
            return None
        remedy = "Calibrate it again: twinlens calibrate MODEL DATA"
        return read_calibration(cls, values, "the model's domain", remedy)


def fit_domain(
    emb_ND: NDArray[Any],
    identity_N: NDArray[Any],
    stats_MS: NDArray[Any],
    identity_M: NDArray[Any],
    *,
    seed: int = 0,
) -> Domain | None:
    """Describe calibration pictures; embeddings and statistics need not be of the same ones.

    Args:
        emb_ND: embeddings of N pictures.
        identity_N: their identities, numbers or strings.
        stats_MS: `picture_statistics` of M pictures.
        identity_M: their identities.
        seed: random seed for the folds.
    Returns:
        None for statistics of fewer than 3 identities or 6 pictures: how much identities differ is
        unknown then. Without as many embeddings there is no density of embeddings.
    """
    rng = np.random.default_rng(seed)
    num_identities = len(np.unique(identity_M))
    if num_identities < FEWEST_IDENTITIES or len(identity_M) < 2 * FEWEST_IDENTITIES:
        return None
    embeddings = None
    if len(np.unique(identity_N)) >= FEWEST_IDENTITIES and len(identity_N) > FEWEST_IDENTITIES:
        deviation = math.sqrt(float(emb_ND.astype(np.float64).var(0).mean()))
        floor_D = np.full(emb_ND.shape[1], max(EMBEDDING_FLOOR * deviation, 1e-9))
        embeddings = _fit(emb_ND, floor_D, identity_N, rng)
    floor_S = np.array([floor for *_, floor in STATISTICS.values()])[: stats_MS.shape[1]]
    levels = np.quantile(stats_MS, np.linspace(0, 1, QUANTILES), axis=0).T
    return Domain(
        embeddings,
        _fit(stats_MS, floor_S, identity_M, rng),
        tuple(STATISTICS)[: stats_MS.shape[1]],
        levels.ravel(),
        len(identity_M),
        num_identities,
    )


def describe_pictures(
    emb_ND: NDArray[Any],
    table: ImageTable,
    pixels: Pixels,
    others: ImageTable,
    seed: int,
    *,
    closed: bool = False,
) -> dict[str, Any] | None:
    """The domain of calibration pictures as plain data, for `model.json`; forgeries are left out.

    Args:
        emb_ND: embeddings of the pictures of `table`.
        table: N pictures.
        pixels: decoded pictures of `others`.
        others: M pictures; the same as `table`, or more of their kind.
        seed: random seed for folds, and for a sample of many pictures.
        closed: whether later pictures show the same identities; each picture counts as one then.
    """
    rng = np.random.default_rng(seed)
    rows_N, rows_M = (
        np.sort(rng.permutation(np.flatnonzero(~part.forged))[:MOST_PICTURES])
        for part in (table, others)
    )
    if not len(rows_M):
        return None
    stats_MS = picture_statistics(select_rows(pixels, rows_M))
    names_N, names_M = (
        (part.path if closed else part.identity)[rows].astype(str)
        for part, rows in ((table, rows_N), (others, rows_M))
    )
    domain = fit_domain(emb_ND[rows_N], names_N, stats_MS, names_M, seed=seed)
    return None if domain is None else domain.as_json()


def _fit(
    x_NF: NDArray[Any], floor_F: Floats, identity_N: NDArray[Any], rng: np.random.Generator
) -> Density:
    """A density of all pictures; its limit is from pictures of identities that are left out."""
    names, code_N = np.unique(identity_N, return_inverse=True)
    fold_N = rng.permutation(np.arange(len(names)) % min(FOLDS, len(names)))[code_N]
    held_out_N = np.empty(len(x_NF))
    for fold in range(fold_N.max() + 1):
        is_out = fold_N == fold
        held_out_N[is_out] = _density(x_NF[~is_out], floor_F).distance(x_NF[is_out])
    return _density(x_NF, floor_F, _limit(held_out_N, code_N, SHARE / 2))


def _density(x_NF: NDArray[Any], floor_F: Floats, limit: float = 1.0) -> Density:
    """The normal distribution of features, its covariance shrunk by Ledoit 2004.

    Args:
        x_NF: features.
        floor_F: a deviation that is none; added to that of each feature.
        limit: largest distance inside.
    """
    x_NF = x_NF.astype(np.float64)
    num, size = x_NF.shape
    mean_F = x_NF.mean(0)
    scale_F = np.hypot(x_NF.std(0), floor_F)
    z_NF = (x_NF - mean_F) / scale_F
    if num > size:
        variance_R, column_FR = np.linalg.eigh(z_NF.T @ z_NF / num)
        variance_R, right_RF = np.maximum(variance_R[::-1], 0), column_FR[:, ::-1].T
    else:
        _, singular_R, right_RF = np.linalg.svd(z_NF, full_matrices=False)
        variance_R = singular_R**2 / num
    mean_variance = variance_R.sum() / size
    square = (variance_R**2).sum()  # of the covariance's entries
    spread = square - size * mean_variance**2
    error = ((z_NF**2).sum(1) ** 2).sum() / num**2 - square / num
    shrinkage = min(1.0, max(0.0, error / spread)) if spread > 0 else 1.0
    # A covariance of nothing has the floor alone.
    shrunk_R = (1 - shrinkage) * variance_R + shrinkage * mean_variance + 1e-6
    kept = min(MOST_DIRECTIONS, max(1, MOST_NUMBERS // size), len(shrunk_R), size - 1)
    total = (1 - shrinkage) * variance_R[kept:].sum() / (size - kept)
    rest = float(total + shrinkage * mean_variance + 1e-6)
    return Density(mean_F, scale_F, right_RF[:kept].T.ravel(), shrunk_R[:kept], rest, limit)


def _limit(distance_N: Floats, code_N: NDArray[np.int64], share: float) -> float:
    """The distance that a share of the pictures of new identities exceeds, by prediction.

    Logarithms of distances are normal around the mean of their identity, and these means are normal
    too (a one-way random effects model). The bound is that of a prediction interval: Student's t
    with I - 1 degrees of freedom, and the variance of the mean of I identities added.
    """
    from scipy import stats

    log_N = np.log(np.maximum(distance_N, 1e-9))
    count_I = np.bincount(code_N)
    mean_I = np.bincount(code_N, log_N) / count_I
    num = len(count_I)
    within = ((log_N - mean_I[code_N]) ** 2).sum() / max(1, len(log_N) - num)
    between = max(0.0, float(mean_I.var(ddof=1) - within * (1 / count_I).mean()))
    deviation = math.sqrt(between * (1 + 1 / num) + within * (1 + 1 / len(log_N)))
    quantile = float(stats.t.ppf(1 - share, num - 1))
    return float(np.exp(mean_I.mean() + quantile * deviation))
