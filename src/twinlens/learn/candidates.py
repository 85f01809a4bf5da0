"""The portfolio that `auto` chooses from: features with a map in closed form, and networks.

Which candidates a data set gets depends on what it shows and on the weights at hand; which of them
is used is decided on held-out identities (`learn.cross_validation`).
"""

from __future__ import annotations

from collections.abc import Mapping

from twinlens.config import AugmentSettings, Member, ModelSettings, PictureSettings, Settings
from twinlens.model.timm_backbones import last_blocks, stage_precedes, stage_widths

__all__ = ["feature_candidates", "network_candidates", "tapped_before", "tuned"]

DIM = 128  # of a candidate's embedding
MAX_FEATURES = 2048  # of a tap; more take long to whiten
FINEST = 4  # cells of each side of a tap
MIN_CELLS = 2
STAGES = 4  # the last ones of a network
MOST_CLASSES = 500  # an embedding has as many dimensions

DESCRIPTORS = {
    "pixels": "pixels, 16 x 16", "histogram": "colour histogram", "gradients": "oriented gradients",
}  # fmt: skip


def feature_candidates(
    picture: PictureSettings,
    network: ModelSettings | None,
    network_picture: PictureSettings,
    num_classes: int = 0,
) -> dict[str, Member]:
    """Features that need no training, by name; their weight is 1.

    Args:
        picture: pictures of the model.
        network: a network with weights from elsewhere; None without.
        network_picture: the pictures that it takes.
        num_classes: identities of a closed set, to be told apart as classes; 0 for an open set.
    """
    plain = picture.model_copy(update={"mean": (0.0,), "std": (1.0,)})
    members = {}
    for backbone, name in DESCRIPTORS.items():
        if backbone == "histogram" and plain.color == "grey":
            continue
        members[name] = _member(plain, backbone=backbone, init="own")
        members[f"{name}, whitened"] = _member(plain, backbone=backbone)
    if network is None:
        return members
    return members | network_candidates(network, network_picture, num_classes)


def network_candidates(
    network: ModelSettings, picture: PictureSettings, num_classes: int = 0
) -> dict[str, Member]:
    """Features of a network with weights from elsewhere, by name; their weight is 1.

    Args:
        network: the network.
        picture: the pictures that it takes.
        num_classes: as in `feature_candidates`.
    """
    members = {}
    start = {name: getattr(network, name) for name in ("backbone", "pretrained", "weights")}
    short = network.backbone.partition(".")[0]
    stages = stage_widths(network.backbone)
    for stage, (stride, channels) in list(enumerate(stages))[-STAGES:]:
        cells = min(picture.size) // stride
        grid = min(FINEST, cells, int((MAX_FEATURES / channels) ** 0.5))
        if cells >= MIN_CELLS and grid >= 1:
            name = f"{short}, stage {stage}, {grid} x {grid}, whitened"
            members[name] = _member(picture, **start, stage=stage, grid=grid)
    members[short] = _member(picture, **start, init="own")
    members[f"{short}, whitened"] = _member(picture, **start)
    if 1 < num_classes <= MOST_CLASSES:
        members[f"{short}, classes"] = _member(
            picture, **start, init="own", classes=True, embedding=num_classes
        )
    return members


def _member(picture: PictureSettings, **model: object) -> Member:
    values = {"embedding": DIM, "init": "whitened", "freeze": "all", **model}
    settings = ModelSettings.model_validate(values)
    return Member(model=settings, picture=picture, weight=1.0)


def tapped_before(member: Member, network: Member | None) -> bool:
    """Whether a member's features come before the layers that a trained network tunes.

    Descriptors, and features of other networks, are of no layer of it.
    """
    if network is None or member.model.backbone != network.model.backbone:
        return True
    stage, layer = member.model.stage, network.model.freeze
    return (
        stage is not None
        and layer != "none"
        and stage_precedes(network.model.backbone, stage, layer)
    )


def tuned(settings: Settings, steps: int, *, on_gpu: bool) -> Settings:
    """Training of a network with weights from elsewhere, from a whitened head on.

    Without a GPU its last third learns: the rest then runs once a picture, and on held-out
    identities it is no worse (benchmarks/NOTES.md).
    """
    layer = "none" if on_gpu else last_blocks(settings.model.backbone)
    model = settings.model.model_copy(
        update={
            "freeze": layer, "stage": None, "grid": 1, "init": "whitened", "norms": "frozen",
            "embedding": DIM, "head": (), "shifts": False,
        }
    )  # fmt: skip
    views = settings.augment if on_gpu else AugmentSettings(flip=settings.augment.flip)
    updates: Mapping[str, object] = {
        "model": model,
        "augment": views,
        "sampler": settings.sampler.model_copy(update={"rotations": False}),
        "loss": settings.loss.model_copy(update={"name": "supcon", "temperature": 0.1}),
        "optimizer": settings.optimizer.model_copy(update={"name": "adamw", "rate": 3e-4}),
        "train": settings.train.model_copy(
            update={"steps": steps, "epochs": None, "time_budget": None}
        ),
    }
    return settings.model_copy(update=updates)
