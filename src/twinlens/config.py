"""Typed settings: everything that, with the data, makes a run repeatable.

Unknown and ill-typed keys are errors (`recipes` reads, overlays and explains them). This module
knows nothing of pictures or networks.
"""

from __future__ import annotations

from collections.abc import Iterable
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
    """The network. `backbone` is one of ours (`conv`, `mlp`, `residual`) or any name timm knows.

    `channels` are the widths of our own networks. `freeze` is "none", "all", or the name of a
    layer of the backbone: everything before it keeps its weights and its batch statistics.
    `pretrained` asks timm for its own weights; `weights` names a local file instead.
    """

    backbone: str = "conv"
    channels: tuple[PositiveInt, ...] = Field((64, 128, 128, 256), min_length=1)
    pretrained: bool = False
    weights: str | None = None
    freeze: str = "none"
    head: tuple[PositiveInt, ...] = ()
    dropout: float = Field(0.0, ge=0, lt=1)
    embedding: PositiveInt = 128
    normalize: bool = True
    comparator: Literal["euclidean", "squared-euclidean", "cosine", "sigmoid", "network"] = "cosine"


class LossSettings(Section):
    """The loss: `contrastive`, `triplet`, `bce`, `supcon`, or `pml:ClassName` with `args`."""

    name: str = "supcon"
    margin: PositiveFloat = 0.5
    soft: bool = False
    mining: Literal["all", "semi-hard", "hardest", "given"] = "semi-hard"
    temperature: PositiveFloat = 0.1
    args: dict[str, Any] = Field(default_factory=dict)


class SamplerSettings(Section):
    """Batches: P identities x K pictures (`pk`), or literal random `pairs` or `triplets`.

    `batch` is the number of pairs or triplets; `rotations` makes quarter turns new identities.
    """

    kind: Literal["pk", "pairs", "triplets"] = "pk"
    labels_per_batch: PositiveInt = 32
    images_per_label: int = Field(4, ge=2)
    forged_per_label: int = Field(2, ge=0)
    batch: PositiveInt = 64
    rotations: bool = False


class AugmentSettings(Section):
    """Random views of training pictures. Degrees, and shares of the picture's size or range."""

    rotate: NonNegativeFloat = 0.0
    translate: NonNegativeFloat = 0.0
    scale: float = Field(0.0, ge=0, lt=1)
    shear: NonNegativeFloat = 0.0
    flip: bool = False
    brightness: NonNegativeFloat = 0.0
    contrast: float = Field(0.0, ge=0, lt=1)


class OptimizerSettings(Section):
    """The optimiser and the course of its learning rate."""

    name: Literal["adamw", "adam", "rmsprop", "sgd"] = "adamw"
    rate: PositiveFloat = 3e-3
    weight_decay: NonNegativeFloat = 0.01
    schedule: Literal["one-cycle", "cosine", "constant"] = "one-cycle"
    clip: NonNegativeFloat = 0.0


LENGTHS = ("steps", "epochs", "time_budget")


class TrainSettings(Section):
    """How long and how: one of `steps`, `epochs`, `time_budget` (seconds) gives the length."""

    steps: PositiveInt | None = None
    epochs: PositiveFloat | None = None
    time_budget: PositiveFloat | None = None
    validations: PositiveInt = 10
    metric: Literal["eer", "recall_at_1"] = "eer"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    channels_last: Literal["auto", "yes", "no"] = "auto"
    device: str = "auto"
    target_far: float = Field(0.01, gt=0, lt=1)

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
        if (self.loss.mining == "given") != (self.sampler.kind == "triplets"):
            raise ValueError("loss.mining 'given' and sampler.kind 'triplets' go together")
        size = self.picture.size
        if self.sampler.rotations and size[0] != size[1]:
            raise ValueError(f"sampler.rotations needs a square picture.size, found {list(size)}")
        return self


# Which losses read a setting, and which batches; elsewhere it has no effect.
READ_BY_LOSS = {
    "loss.margin": ("contrastive", "triplet"),
    "loss.soft": ("triplet",),
    "loss.mining": ("triplet",),
    "loss.temperature": ("supcon",),
}
READ_BY_SAMPLER = {
    "sampler.labels_per_batch": ("pk",),
    "sampler.images_per_label": ("pk",),
    "sampler.forged_per_label": ("pk",),
    "sampler.batch": ("pairs", "triplets"),
}


def without_effect(settings: Settings, keys: Iterable[str]) -> list[str]:
    """A sentence for each of the keys that these settings do not read."""
    sentences = []
    for key in keys:
        for readers, name in (
            (READ_BY_LOSS, settings.loss.name),
            (READ_BY_SAMPLER, settings.sampler.kind),
        ):
            if name not in readers.get(key, (name,)):
                sentences.append(f"{key} has no effect with '{name}'")
    return sentences
