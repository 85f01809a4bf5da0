"""The validation metric, which chooses the weights of a run."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twinlens.config import Settings
from twinlens.errors import DataError
from twinlens.learn.embed_batch import LabelledPixels
from twinlens.learn.features import FrozenPart, can_precompute
from twinlens.learn.ranks import ALONE, Ranks
from twinlens.measure.error_rates import det_curve, eer
from twinlens.measure.pairs import PairSet, draw_pairs, pair_distances, sample_pictures
from twinlens.measure.retrieval import retrieval
from twinlens.model.comparators import Comparator, TorchComparison
from twinlens.model.compute import Compute
from twinlens.model.encoder import Encoder, embed_features, embed_pixels

__all__ = ["MAX_PICTURES", "Validator"]

MAX_PAIRS = 20_000
MAX_PICTURES = 5_000


class Validator:
    """1 - EER, or recall at 1, on the same pairs and pictures each time: higher is better.

    With the metric "eer_forged" the EER is the mean of two: of all pairs, and of genuine pairs
    against forgeries of the claimed identity, if there are any. At most 5,000 pictures and 20,000
    pairs of each kind are compared, since a run validates often. Ranks embed a part of the pictures
    each, and all return the metric of rank 0.

    Attributes:
        num_mated: pictures of identities with a genuine pair.
    """

    def __init__(
        self,
        val: LabelledPixels,
        settings: Settings,
        compute: Compute,
        encoder: Encoder,
        ranks: Ranks = ALONE,
    ) -> None:
        rng = np.random.default_rng([settings.seed, 1])
        rows = sample_pictures(val.label, MAX_PICTURES, rng)
        self.label, self.forged = val.label[rows], val.forged[rows]
        self.metric, self.compute, self.seed = settings.train.metric, compute, settings.seed
        self.pairs: PairSet = draw_pairs(self.label, self.forged, num_pairs=MAX_PAIRS, rng=rng)
        a, b = self.pairs.a, self.pairs.b
        self.own_forgery = self.forged[b] & (self.label[a] == self.label[b])
        identity, num_genuine = np.unique(self.label[~self.forged], return_counts=True)
        self.num_mated = int(np.isin(self.label, identity[num_genuine > 1]).sum())
        self.ranks = ranks
        self.embedding = ranks if len(rows) >= ranks.size else ALONE
        own = rows[self.embedding.own(len(rows))]
        self.stored: Tensor | None = None
        self.pixels: NDArray[np.uint8] | None = None
        if can_precompute(settings):
            self.frozen = FrozenPart(encoder, compute)
            self.stored = self.frozen.compute_all(val.pixels, val.row[own])
        if self.stored is None:
            self.pixels = val.take(own)

    @classmethod
    def make(
        cls,
        val: LabelledPixels,
        settings: Settings,
        compute: Compute,
        encoder: Encoder,
        ranks: Ranks = ALONE,
    ) -> Validator | None:
        """A validator; None if the pictures give no genuine or no impostor pair."""
        try:
            validator = cls(val, settings, compute, encoder, ranks)
        except DataError:
            return None
        same = validator.pairs.same
        return validator if same.any() and not same.all() else None

    def __call__(self, encoder: Encoder, comparator: Comparator) -> float:
        """The metric of the present weights; NaN if embeddings are not finite."""
        if self.stored is not None:
            emb_ND = embed_features(encoder, self.frozen.features(self.stored))
        else:
            assert self.pixels is not None
            emb_ND = embed_pixels(encoder, self.pixels, bfloat16=self.compute.bfloat16)
        if self.embedding.size > 1:
            emb_ND = self.embedding.gather(torch.from_numpy(emb_ND), len(self.label)).numpy()
        return self.ranks.from_first(self._metric(emb_ND, comparator))[0]

    def _metric(self, emb_ND: NDArray[np.float32], comparator: Comparator) -> float:
        if not np.isfinite(emb_ND).all():
            return math.nan
        comparison = TorchComparison(comparator)
        if self.metric == "recall_at_1":
            result = retrieval(emb_ND, self.label, self.forged, comparison, replicates=0)
            assert result is not None  # There are genuine pairs.
            return result.recall_at[1].value or 0.0
        distance, same = pair_distances(emb_ND, self.pairs, comparison), self.pairs.same
        errors = [eer(det_curve(distance[same], distance[~same]))]
        if self.metric == "eer_forged" and self.own_forgery.any():
            errors.append(eer(det_curve(distance[same], distance[self.own_forgery])))
        return 1 - sum(errors) / len(errors)
