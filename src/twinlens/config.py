"""Typed settings: everything that, with the data, makes a run repeatable.

Unknown and ill-typed keys are errors (`recipes` reads, overlays and explains them). This module
knows nothing of pictures or networks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

__all__ = [
    "LENGTHS",
    "SHIFTS",
    "AugmentSettings",
    "DataSettings",
    "LossSettings",
    "ModelSettings",
    "OptimizerSettings",
    "PictureSettings",
    "SamplerSettings",
    "Section",
    "Settings",
    "TrainSettings",
    "without_effect",
]


class Section(BaseModel):
    """Frozen settings that refuse unknown keys, infinity and NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataSettings(Section):
    """What is read, what is skipped, and how it is split."""

    split: Literal["identities", "images"] = "identities"
    fractions: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] = (0.7, 0.15, 0.15)
    forged_suffix: str = "_forg"
    max_pixels: PositiveInt = 100_000_000
    max_broken: float = Field(0.2, ge=0, le=1)


class PictureSettings(Section):
    """How a picture is brought to the network's size and range; travels with the weights.

    `size` is (height, width). `fit`: "stretch" to the size, "pad" keeping the proportions on a
    ground of grey level `fill`, or "crop" the middle. `mean` and `std` are of pixels in [0, 1],
    one number or one for each channel.
    """

    size: tuple[PositiveInt, PositiveInt] = (64, 64)
    color: Literal["grey", "rgb"] = "rgb"
    fit: Literal["stretch", "pad", "crop"] = "stretch"
    fill: int = Field(255, ge=0, le=255)
    mean: tuple[float, ...] = (0.5,)
    std: tuple[PositiveFloat, ...] = (0.5,)

    @property
    def channels(self) -> int:
        """1 for grey pictures, 3 for colour."""
        return 1 if self.color == "grey" else 3

    @model_validator(mode="after")
    def _one_or_each(self) -> PictureSettings:
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, self.channels):
                raise ValueError(f"{name} needs 1 or {self.channels} numbers")
        return self


class ModelSettings(Section):
    """The network: `backbone` is one of ours, or of timm's by name.

    Ours are `conv`, `mlp`, `residual`, `signet`, and `strokes`: measures of handwriting, with
    nothing to learn (`model.strokes`).
    Our own networks are built from `channels` (the widths), `kernel`, `batch_norm` and
    `block_dropout` (of `conv`'s blocks), `leak` (the slope of the ReLUs below 0), `attention`
    (after each stage of `residual`), `stride` (of the first convolution of `residual` and `signet`)
    and `init` ("glorot", Glorot 2010, as in Keras, in place of torch's). With `init` "whitened" the
    linear head of a frozen backbone begins with what whitens its features within identities.

    `stage` cuts one of timm's convolutional networks off after a stage, counted from 0 as in its
    `feature_info`; the map that it ends in is averaged to `grid` x `grid` cells.

    `pool` is what becomes of the last map of features: "own" leaves it to the network, "average"
    and "flatten" say it. `freeze` is "none", "all", or the name of a layer of the backbone:
    everything before it keeps its weights and its batch statistics. `pretrained` asks timm for its
    own weights; `weights` names a local file instead, and goes before it.

    `head` are the widths of hidden layers between features and embedding, with `dropout`, and batch
    norm after each of them ("all"), after each but the last ("between") or none ("none").

    With `shifts` an embedding is the mean of five (test-time augmentation): of the picture as it is
    and shifted by a pixel to each side, in five times the time. Training looks at one.

    With `classes` the numbers of an embedding are the square roots of the probabilities of
    `embedding` identities, so that its length is 1; it is for the loss `classes`.
    """

    backbone: str = "conv"
    channels: tuple[PositiveInt, ...] = Field((64, 128, 128, 256), min_length=1)
    kernel: PositiveInt = 3
    batch_norm: bool = True
    block_dropout: float = Field(0.0, ge=0, lt=1)
    leak: float = Field(0.0, ge=0, lt=1)
    attention: Literal["none", "eca"] = "none"
    stride: PositiveInt = 1
    init: Literal["own", "glorot", "whitened"] = "own"
    stage: int | None = Field(None, ge=0)
    grid: PositiveInt = 1
    pool: Literal["own", "average", "flatten"] = "own"
    pretrained: bool = False
    weights: str | None = None
    freeze: str = "none"
    head: tuple[PositiveInt, ...] = ()
    head_norm: Literal["none", "between", "all"] = "between"
    dropout: float = Field(0.0, ge=0, lt=1)
    embedding: PositiveInt = 128
    normalize: bool = True
    classes: bool = False
    shifts: bool = False
    comparator: Literal["euclidean", "squared-euclidean", "cosine", "sigmoid", "network"] = "cosine"


SHIFTS = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))
"""Views that `model.shifts` averages: (pixels down, pixels to the right)."""


class LossSettings(Section):
    """The loss: `contrastive`, `triplet`, `bce`, `supcon`, `classes`, or one of the library's.

    Those are `pml:ClassName`, with `args`.
    A forgery of its own identity counts `forged_weight` times among a picture's impostors.
    `smoothing` is that of the labels of `bce`: 1 becomes 1 - smoothing / 2, and 0 smoothing / 2.
    """

    name: str = "supcon"
    margin: PositiveFloat = 0.5
    soft: bool = False
    mining: Literal["all", "semi-hard", "hardest", "given"] = "semi-hard"
    temperature: PositiveFloat = 0.1
    forged_weight: PositiveFloat = 1.0
    smoothing: float = Field(0.0, ge=0, lt=1)
    args: dict[str, Any] = Field(default_factory=dict)


class SamplerSettings(Section):
    """Batches: P identities x K pictures (`pk`), or literal random `pairs` or `triplets`.

    `batch` is the number of pairs or triplets. Their partners are drawn anew each epoch, or with
    `fresh` false once for all; `forged_share` of the negatives are forgeries, where an identity has
    any; with `mirror` half of the pairs or triplets are mirrored, all their pictures alike.
    `rotations` makes quarter turns new identities.
    """

    kind: Literal["pk", "pairs", "triplets"] = "pk"
    labels_per_batch: PositiveInt = 32
    images_per_label: int = Field(4, ge=2)
    forged_per_label: int = Field(2, ge=0)
    batch: PositiveInt = 64
    fresh: bool = True
    forged_share: float = Field(0.5, ge=0, le=1)
    mirror: bool = False
    rotations: bool = False


class AugmentSettings(Section):
    """Random views of training pictures. Degrees, and shares of the picture's size or range.

    `crop` is the share of each side that a window at a random place leaves out.
    """

    rotate: NonNegativeFloat = 0.0
    translate: NonNegativeFloat = 0.0
    scale: float = Field(0.0, ge=0, lt=1)
    shear: NonNegativeFloat = 0.0
    crop: float = Field(0.0, ge=0, lt=1)
    flip: bool = False
    brightness: NonNegativeFloat = 0.0
    contrast: float = Field(0.0, ge=0, lt=1)


class OptimizerSettings(Section):
    """The optimiser and the course of its learning rate.

    `muon` takes orthogonal steps for matrices and those of `adamw` for the rest (`learn.muon`).
    `rho` is how much `rmsprop` keeps of its mean of squares (0.99 in torch, 0.9 in Keras), and
    `momentum` is that of `sgd`.
    """

    name: Literal["adamw", "muon", "adam", "rmsprop", "sgd"] = "adamw"
    rate: PositiveFloat = 3e-3
    weight_decay: NonNegativeFloat = 0.01
    rho: float = Field(0.99, ge=0, lt=1)
    momentum: float = Field(0.9, ge=0, lt=1)
    schedule: Literal["one-cycle", "cosine", "constant"] = "one-cycle"
    clip: NonNegativeFloat = 0.0


LENGTHS = ("steps", "epochs", "time_budget")


class TrainSettings(Section):
    """How long and how: one of `steps`, `epochs`, `time_budget` (seconds) gives the length.

    `metric` chooses the weights: the EER of all pairs, the mean of it and of the EER against
    forgeries of the claimed identity alone (`eer_forged`), or recall at 1.
    `chunk` is how many pictures' graph is in memory at once: a larger batch is embedded in chunks,
    twice, for the gradient of the whole (`learn.grad_cache` says what batch norm makes of it).
    """

    steps: PositiveInt | None = None
    epochs: PositiveFloat | None = None
    time_budget: PositiveFloat | None = None
    validations: PositiveInt = 10
    metric: Literal["eer", "eer_forged", "recall_at_1"] = "eer"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    channels_last: Literal["auto", "yes", "no"] = "auto"
    device: str = "auto"
    target_far: float = Field(0.01, gt=0, lt=1)
    chunk: int | None = Field(None, ge=3)

    @model_validator(mode="after")
    def _one_length(self) -> TrainSettings:
        given = [name for name in LENGTHS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"give one of {', '.join(LENGTHS)}, not {' and '.join(given)}")
        return self


class Settings(Section):
    """Everything that, with the data, makes a run repeatable."""

    seed: int = Field(0, ge=0, lt=2**63)
    data: DataSettings = DataSettings()
    picture: PictureSettings = PictureSettings()
    model: ModelSettings = ModelSettings()
    loss: LossSettings = LossSettings()
    sampler: SamplerSettings = SamplerSettings()
    augment: AugmentSettings = AugmentSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    train: TrainSettings = TrainSettings()

    @model_validator(mode="after")
    def _parts_fit(self) -> Settings:
        learned = self.model.comparator in ("sigmoid", "network")
        if (self.loss.name == "bce") != learned:
            raise ValueError(
                "loss.name 'bce' and model.comparator 'sigmoid' or 'network' go together, found "
                f"'{self.loss.name}' with '{self.model.comparator}'"
            )
        if self.loss.name == "classes" and not self.model.classes:
            raise ValueError("loss.name 'classes' needs model.classes true, found false")
        if (self.loss.mining == "given") != (self.sampler.kind == "triplets"):
            raise ValueError("loss.mining 'given' and sampler.kind 'triplets' go together")
        if self.model.init == "whitened" and (self.model.freeze != "all" or self.model.head):
            raise ValueError("model.init 'whitened' needs model.freeze 'all' and no model.head")
        if self.model.shifts and (self.model.freeze == "all" or self.model.backbone == "strokes"):
            found = "model.freeze 'all'" if self.model.freeze == "all" else "'strokes'"
            raise ValueError(f"model.shifts needs a network that learns, found {found}")
        size = self.picture.size
        if self.sampler.rotations and size[0] != size[1]:
            raise ValueError(f"sampler.rotations needs a square picture.size, found {list(size)}")
        return self


# Which networks, losses, batches and optimisers read a setting; elsewhere it has no effect.
READERS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "model.backbone": {
        "model.channels": ("conv", "mlp", "residual"),
        "model.kernel": ("conv",),
        "model.batch_norm": ("conv",),
        "model.block_dropout": ("conv",),
        "model.leak": ("conv", "mlp", "residual"),
        "model.attention": ("residual",),
        "model.stride": ("residual", "signet"),
    },
    "loss.name": {
        "loss.margin": ("contrastive", "triplet"),
        "loss.soft": ("triplet",),
        "loss.mining": ("triplet",),
        "loss.temperature": ("supcon",),
        "loss.forged_weight": ("supcon",),
        "loss.smoothing": ("bce",),
    },
    "sampler.kind": {
        "sampler.labels_per_batch": ("pk",),
        "sampler.images_per_label": ("pk",),
        "sampler.forged_per_label": ("pk",),
        "sampler.batch": ("pairs", "triplets"),
        "sampler.fresh": ("pairs", "triplets"),
        "sampler.forged_share": ("pairs", "triplets"),
        "sampler.mirror": ("pairs", "triplets"),
    },
    "optimizer.name": {
        "optimizer.rho": ("rmsprop",),
        "optimizer.momentum": ("sgd",),
    },
}


def without_effect(settings: Settings, keys: Iterable[str]) -> list[str]:
    """A sentence for each of the keys that these settings do not read."""
    sentences = []
    for key in keys:
        for decides, readers in READERS.items():
            section, _, field = decides.partition(".")
            name = getattr(getattr(settings, section), field)
            if name not in readers.get(key, (name,)):
                sentences.append(f"{key} has no effect with '{name}'")
        if key == "model.pool" and settings.model.backbone == "mlp":
            sentences.append("model.pool has no effect with 'mlp'")
        if key == "model.grid" and settings.model.stage is None:
            sentences.append("model.grid has no effect without model.stage")
        if key == "model.head_norm" and not settings.model.head:
            sentences.append("model.head_norm has no effect without hidden layers (model.head)")
    return sentences
