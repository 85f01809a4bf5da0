"""Candidates on held-out pictures: features with a map in closed form, and trained networks.

Frozen networks run once a picture, whatever the number of folds and candidates: `FeatureBank` holds
the features of all taps and descriptors, and the inputs of the layers that are tuned.

Shapes: V views, N pictures, F features, D dimensions of an embedding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from twinlens.config import Member, ModelSettings, PictureSettings, Settings
from twinlens.learn.embed_batch import LabelledPixels, StoredInputs
from twinlens.learn.features import BATCH, FrozenPart
from twinlens.learn.loop import fit
from twinlens.learn.whitening import project_head, whiten_head
from twinlens.measure.held_out import Fold
from twinlens.model.comparators import make_comparator
from twinlens.model.compute import Compute
from twinlens.model.encoder import Encoder, embed_features, embed_pixels
from twinlens.model.fused import FusedEncoder, fused_settings

__all__ = [
    "FeatureBank",
    "cosine_distances",
    "fit_map",
    "held_out_network",
    "mapped_embeddings",
    "train_network",
]

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class FeatureBank:
    """Features of N pictures and of their mirror images, for each member.

    Attributes:
        features: (V, N, F) of each member, by name.
        tuned: inputs of the first tuned layer, if a network is to be tuned and they fit memory.
    """

    features: Mapping[str, Tensor]
    tuned: StoredInputs | None = None

    @classmethod
    def seconds_each(
        cls,
        members: Mapping[str, Member],
        picture: PictureSettings,
        images: LabelledPixels,
        compute: Compute,
    ) -> float:
        """Seconds that the features of a picture take, by a batch of them."""
        few = images.select(np.arange(min(BATCH, len(images.row))))
        started = time.monotonic()
        cls.of(members, picture, few, compute, mirrored=False)
        return (time.monotonic() - started) / len(few.row)

    @classmethod
    def of(
        cls,
        members: Mapping[str, Member],
        picture: PictureSettings,
        images: LabelledPixels,
        compute: Compute,
        *,
        mirrored: bool,
        tuned: Settings | None = None,
        progress: Progress | None = None,
    ) -> FeatureBank:
        """Compute the features of all pictures.

        Args:
            members: candidates, by name.
            picture: pictures of `images`.
            images: N pictures.
            compute: device and number format.
            mirrored: whether to add mirror images as a second view.
            tuned: settings of a network whose first layers are frozen.
            progress: called with (done, all).
        """
        every = tuple(members.values())
        fused = FusedEncoder(fused_settings(every, ModelSettings()), picture, every, load=True)
        compute.place(fused)
        fused.eval()
        part = None
        if tuned is not None and tuned.model.freeze not in ("none", "all"):
            encoder = Encoder(tuned.model, tuned.picture)
            compute.place(encoder)
            part = FrozenPart(encoder, compute)
        views: list[list[Tensor]] = []
        inputs: list[Tensor] | None = [] if part is not None else None
        num, total = len(images.row), len(images.row) * (2 if mirrored else 1)
        for view in range(2 if mirrored else 1):
            done = []
            for start in range(0, num, BATCH):
                place = np.arange(start, min(start + BATCH, num))
                x_BCHW = torch.from_numpy(images.take(place)).to(fused.device)
                x_BCHW = x_BCHW.flip(3) if view else x_BCHW
                with torch.no_grad(), compute.autocast():
                    done.append(fused.features(x_BCHW).float())
                if progress is not None:
                    progress(view * num + int(place[-1]) + 1, total)
            views.append(done)
            if part is not None and inputs is not None:
                stored = part.compute_all(images.pixels, images.row, mirrored=bool(view))
                inputs = None if stored is None else [*inputs, stored]
        features_VNF = torch.stack([torch.cat(view) for view in views])
        parts = torch.split(features_VNF, fused.widths, dim=2)
        stored_inputs = None if not inputs else StoredInputs(tuple(inputs), images.row)
        return cls(dict(zip(members, parts, strict=True)), stored_inputs)


def fit_map(
    member: Member, features_VNF: Tensor, label_N: NDArray[np.int64], rows: NDArray[np.int64]
) -> nn.Linear:
    """The linear map of a member's features, in closed form, from some rows.

    It whitens them within identities, or keeps their angles.
    """
    num_views, _, num_features = features_VNF.shape
    head = nn.Linear(num_features, member.model.embedding, device=features_VNF.device)
    place = torch.from_numpy(rows).to(features_VNF.device)
    label = torch.from_numpy(label_N[rows]).to(features_VNF.device).repeat(num_views)
    features_NF = features_VNF[:, place].flatten(0, 1)
    if member.model.init == "whitened":
        whiten_head(head, features_NF, label)
    else:
        project_head(head, features_NF)
    return head


@torch.no_grad()
def mapped_embeddings(
    member: Member,
    features_VNF: Tensor,
    label_N: NDArray[np.int64],
    fold: Fold,
    rest: NDArray[np.int64],
    *,
    mirrored: bool,
) -> NDArray[np.float32]:
    """Embeddings (n, D) of a fold, by a map that was fitted to the other pictures.

    Args:
        member: whose features they are.
        features_VNF: features of all pictures, and of their mirror images.
        label_N: identities.
        fold: pictures to embed.
        rest: positions of the pictures to fit to.
        mirrored: whether an embedding is the mean over a picture and its mirror image.
    """
    head = fit_map(member, features_VNF, label_N, rest)
    place = torch.from_numpy(fold.row).to(features_VNF.device)
    views = features_VNF[: 2 if mirrored else 1, place]
    emb_VND = F.normalize(head(views), dim=2)
    emb_ND: NDArray[np.float32] = F.normalize(emb_VND.mean(0), dim=1).cpu().numpy()
    return emb_ND


def held_out_network(
    settings: Settings,
    images: LabelledPixels,
    train: NDArray[np.int64],
    fold: Fold,
    compute: Compute,
    stored: StoredInputs | None,
) -> NDArray[np.float32]:
    """Embeddings (n, D) of a fold by a network that was trained on other pictures.

    Args:
        settings: of the network and its training.
        images: N pictures.
        train: positions of the pictures to train on.
        fold: pictures to embed.
        compute: device and number format.
        stored: inputs of the network's first tuned layer, for all N pictures.
    """
    encoder = train_network(settings, images, train, compute, stored)
    if stored is not None:
        part = FrozenPart(encoder, compute)
        views = range(len(stored.views) if settings.model.mirrored else 1)
        rows = images.row[fold.row]
        emb_VND = [embed_features(encoder, part.features(stored.rows(v, rows))) for v in views]
        emb_ND = np.asarray(np.mean(emb_VND, axis=0), dtype=np.float32)
        return np.asarray(emb_ND / np.linalg.norm(emb_ND, axis=1, keepdims=True))
    return embed_pixels(encoder, images.take(fold.row), bfloat16=compute.bfloat16)


def train_network(
    settings: Settings,
    images: LabelledPixels,
    train: NDArray[np.int64],
    compute: Compute,
    stored: StoredInputs | None,
    encoder: Encoder | None = None,
) -> Encoder:
    """Train a network, or go on with one, for `train.steps`; the last weights are kept."""
    torch.manual_seed(settings.seed)
    if encoder is None:
        encoder = Encoder(settings.model, settings.picture)
    comparator = make_comparator(settings.model.comparator, settings.model.embedding)
    part = images.select(train)
    result = fit(encoder, comparator, part, None, settings, compute=compute, stored=stored)
    if result.interrupted:
        raise KeyboardInterrupt
    return encoder.eval()


def cosine_distances(emb_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosine distances (n, n) of unit embeddings."""
    return np.asarray(1 - emb_ND @ emb_ND.T, dtype=np.float32)
