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

from twinlens.config import Member, PictureSettings, Settings
from twinlens.learn.embed_batch import LabelledPixels, StoredInputs
from twinlens.learn.features import BATCH, FrozenPart, inputs_of
from twinlens.learn.loop import fit
from twinlens.learn.ranks import ALONE, Ranks
from twinlens.learn.whitening import discriminant_head, project_head, whiten_head
from twinlens.measure.held_out import Fold
from twinlens.model.comparators import make_comparator
from twinlens.model.compute import Compute
from twinlens.model.encoder import Encoder, embed_features, embed_pixels, unit_length
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
        cls.of(members, picture, few, compute, mirrored=False)  # Slower: it starts libraries.
        compute.wait()
        started = time.monotonic()
        cls.of(members, picture, few, compute, mirrored=False)
        compute.wait()
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
        # Features as they are and whitened are the same.
        place_of = dict[str, int]()
        places = [place_of.setdefault(_features_key(m), len(place_of)) for m in members.values()]
        every = tuple(list(members.values())[places.index(n)] for n in range(len(place_of)))
        fused = FusedEncoder(fused_settings(every), picture, every, load=True)
        compute.place(fused)
        fused.eval()
        num, num_views = len(images.row), 2 if mirrored else 1
        first = torch.from_numpy(images.take(np.arange(min(BATCH, num))))
        layer = None if tuned is None else _stored_layer(fused, tuned, first, num, compute)
        features_VNF = torch.empty(num_views, num, fused.num_features, device=fused.device)
        inputs: list[Tensor] = []
        for view in range(num_views):
            stored = torch.empty(0)
            for start in range(0, num, BATCH):
                place = np.arange(start, min(start + BATCH, num))
                x_BCHW = torch.from_numpy(images.take(place)).to(fused.device)
                x_BCHW = x_BCHW.flip(3) if view else x_BCHW
                with torch.no_grad(), compute.autocast(), inputs_of(layer) as reached:
                    features_VNF[view, start : start + BATCH] = fused.features(x_BCHW)
                if layer is not None:
                    (part,) = reached
                    if start == 0:
                        stored = part.new_empty((num, *part.shape[1:]))
                    stored[start : start + BATCH] = part
                if progress is not None:
                    progress(view * num + int(place[-1]) + 1, num_views * num)
            inputs.append(stored)
        parts = torch.split(features_VNF, fused.widths, dim=2)
        stored_inputs = None if layer is None else StoredInputs(tuple(inputs), images.row)
        features = {name: parts[n] for name, n in zip(members, places, strict=True)}
        return cls(features, stored_inputs)


def _features_key(member: Member) -> str:
    """Members with the same key have the same features, and differ in their maps."""
    model = member.model.model_copy(update={"init": "own", "classes": False, "embedding": 1})
    return f"{model.model_dump_json()} {member.picture.model_dump_json()}"


def _stored_layer(
    fused: FusedEncoder, tuned: Settings, first: Tensor, num: int, compute: Compute
) -> nn.Module | None:
    """The first tuned layer, in the network that gives features; None if its inputs are not stored.

    Args:
        fused: encoder of all features.
        tuned: settings of the network to tune.
        first: some pictures, (B, C, H, W).
        num: number of all pictures.
        compute: device and number format.
    """
    name = tuned.model.freeze
    if name in ("none", "all"):
        return None
    encoder = Encoder(tuned.model, tuned.picture)
    compute.place(encoder)
    if not FrozenPart(encoder, compute).is_usable(first, num):
        return None
    same = (
        number
        for number, member in enumerate(fused.members)
        if (member.model.backbone, member.picture) == (tuned.model.backbone, tuned.picture)
    )
    return fused.network_of(next(same)).get_submodule(name)


def fit_map(
    member: Member, features_VNF: Tensor, label_N: NDArray[np.int64], rows: NDArray[np.int64]
) -> nn.Linear:
    """The linear map of a member's features, in closed form, from some rows.

    It whitens them within identities, or keeps their angles; for classes it gives logits.
    """
    num_views, _, num_features = features_VNF.shape
    head = nn.Linear(num_features, member.model.embedding, device=features_VNF.device)
    place = torch.from_numpy(rows).to(features_VNF.device)
    label = torch.from_numpy(label_N[rows]).to(features_VNF.device).repeat(num_views)
    features_NF = features_VNF[:, place].flatten(0, 1)
    if member.model.classes:
        discriminant_head(head, features_NF, label)
    elif member.model.init == "whitened":
        whiten_head(head, features_NF, label)
    else:
        project_head(head, features_NF)
    return head


@torch.no_grad()
def mapped_embeddings(
    member: Member,
    features_VNF: Tensor,
    label_N: NDArray[np.int64],
    rows: NDArray[np.int64],
    rest: NDArray[np.int64],
    *,
    mirrored: bool,
) -> NDArray[np.float32]:
    """Embeddings (n, D) of some pictures, by a map that was fitted to others.

    Args:
        member: whose features they are.
        features_VNF: features of all pictures, and of their mirror images.
        label_N: identities.
        rows: positions of the pictures to embed, (n,).
        rest: positions of the pictures to fit to.
        mirrored: whether an embedding is the mean over a picture and its mirror image.
    """
    head = fit_map(member, features_VNF, label_N, rest)
    place = torch.from_numpy(rows).to(features_VNF.device)
    views = features_VNF[: 2 if mirrored else 1, place]
    emb_VND = unit_length(head(views), classes=member.model.classes)
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
    ranks: Ranks = ALONE,
) -> Encoder:
    """Train a network, or go on with one, for `train.steps`; the last weights are kept."""
    torch.manual_seed(settings.seed)
    if encoder is None:
        encoder = Encoder(settings.model, settings.picture)
    comparator = make_comparator(settings.model.comparator, settings.model.embedding)
    part = images.select(train)
    result = fit(
        encoder, comparator, part, None, settings, compute=compute, stored=stored, ranks=ranks
    )
    if result.interrupted:
        raise KeyboardInterrupt
    return encoder.eval()


def cosine_distances(emb_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosine distances (n, n) of unit embeddings."""
    return np.asarray(1 - emb_ND @ emb_ND.T, dtype=np.float32)
