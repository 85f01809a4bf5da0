"""Typed settings: everything that, with the data, makes a run repeatable.

Each setting is declared once, here: type, limits, default, description, and marks that say when it
has an effect and whether a recipe may leave it open. `recipes`, `learn.auto` and `docs/settings.md`
derive from these declarations. Unknown and ill-typed keys are errors (see `recipes`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from twinlens.errors import short_repr

__all__ = ["LENGTHS", "SHIFTS", "AugmentSettings", "DataSettings", "FaceSettings", "LossSettings",
           "Member", "ModelSettings", "OptimizerSettings", "PictureSettings", "SamplerSettings",
           "Section", "Settings", "TrainSettings", "auto_keys", "marks_of", "setting_fields",
           "value_text", "without_effect"]  # fmt: skip

T = TypeVar("T")

# Every number has limits: settings and models are read from files that may be damaged or hostile.
# They are far beyond sensible values, and keep memory and arithmetic within bounds.
Share = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, le=1e6)]
NonNegative = Annotated[float, Field(ge=0, le=1e6)]
Side = Annotated[int, Field(ge=1, le=4096)]
Width = Annotated[int, Field(ge=1, le=65_536)]
Small = Annotated[int, Field(ge=1, le=64)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Level = Annotated[float, Field(ge=-1000, le=1000)]
Deviation = Annotated[float, Field(ge=1e-6, le=1000)]
Name = Annotated[str, Field(max_length=200)]
PathText = Annotated[str, Field(max_length=4096)]

MAX_AREA = 2048 * 2048  # pixels of a network's input
MAX_ARGUMENT = 10_000  # characters of an argument of a loss, as JSON


def setting(
    default: T,
    description: str,
    *,
    auto: Literal["data", "settings"] | None = None,
    read_by: tuple[str, ...] | None = None,
    unread_by: tuple[str, ...] | None = None,
    needs: str | None = None,
    unset: str | None = None,
    **limits: Any,
) -> T:
    """Declare a setting: a pydantic `Field` with a description and marks.

    Args:
        default: value if neither recipe nor user sets it.
        description: one or two sentences for docs/settings.md.
        auto: source of the value if a recipe sets "auto": the training data (`learn.auto`) or other
            settings (`recipes`). None: "auto" is no value of this setting.
        read_by: values of the section's `selector` with which this setting has an effect.
        unread_by: values of the section's `selector` with which it has none.
        needs: another setting of the section, without which it has none.
        unset: meaning of None, in words.
        limits: constraints of `Field`, such as `ge` and `lt`.
    """
    marks = {"auto": auto, "read_by": read_by, "unread_by": unread_by, "needs": needs,
             "unset": unset}  # fmt: skip
    present = {name: mark for name, mark in marks.items() if mark is not None}
    if isinstance(default, tuple):
        limits["strict"] = False  # Lists are allowed; their items are strict all the same.
    field = Field(default, description=description, json_schema_extra=cast(Any, present), **limits)
    return cast(T, field)


class Section(BaseModel):
    """Frozen settings that refuse unknown keys, wrong types, infinity and NaN.

    Types are strict: "3" is no number, and true is not 1. Lists stand for tuples, as in JSON and
    TOML.

    `selector` names the setting whose value decides which others of the section have an effect.
    """

    selector: ClassVar[str] = ""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class DataSettings(Section):
    """Reading the pictures and dividing them into training, validation and test."""

    split: Literal["identities", "images"] = setting(
        "identities",
        "Unit of the split: whole identities (open set), or pictures of every identity (closed "
        "set). Splits that the data gives are kept.",
    )
    fractions: tuple[NonNegative, NonNegative, NonNegative] = setting(
        (0.7, 0.15, 0.15), "Shares of training, validation and test; they are divided by their sum."
    )
    forged_suffix: Name = setting(
        "_forg", "A folder named `ID` and this suffix holds forgeries of the identity `ID`."
    )
    identity_depth: int = setting(
        0,
        "Folders of a picture's path below DATA that name its identity: 0 takes all, 1 the first, "
        "2 the first two, -1 the last. Only for class folders.",
        ge=-100,
        le=100,
    )
    max_pixels: int = setting(
        100_000_000,
        "Pictures with more pixels (height times width, by their header) are not decoded and count "
        "as unreadable.",
        ge=1,
        le=10**12,
    )
    max_broken: Share = setting(
        0.2, "Largest share of unreadable pictures that is skipped; with more, the run stops."
    )


class PictureSettings(Section):
    """Input of the network: size, colour and range. It travels with the weights."""

    size: tuple[Side, Side] = setting(
        (64, 64),
        "Height and width of the network's input, in pixels; at most 4194304 (2048 x 2048) in all.",
        auto="data",
    )
    color: Literal["grey", "rgb"] = setting(
        "rgb", "Channels of the network's input: one or three.", auto="data"
    )
    fit: Literal["stretch", "pad", "crop"] = setting(
        "stretch",
        "Resizing to `size`: `stretch` ignores proportions, `pad` keeps them on a ground of grey "
        "level `fill`, `crop` keeps them and takes the middle.",
        auto="data",
    )
    fill: int = setting(
        255,
        "Grey level around padded, rotated and shifted pictures, and of the paper under `strokes`: "
        "0 is black, 255 white.",
        auto="data",
        ge=0,
        le=255,
    )
    depth: int | None = setting(
        None,
        "Bits that are used of 16-bit values; the upper 8 of them are taken. Unset, training takes "
        "as many as its 16-bit pictures use, and a model of 8-bit pictures as many as each picture "
        "uses.",
        unset="as many as each picture uses",
        ge=8,
        le=16,
    )
    mean: tuple[Level, ...] = setting(
        (0.5,),
        "Subtracted from pixels in [0, 1]: one number, or one for each channel.",
        auto="data",
    )
    std: tuple[Deviation, ...] = setting(
        (0.5,),
        "Divisor of the pixels after `mean` is subtracted: one number, or one for each channel.",
        auto="data",
    )

    @property
    def channels(self) -> int:
        """1 for grey pictures, 3 for colour."""
        return 1 if self.color == "grey" else 3

    @field_validator("size")
    @classmethod
    def _fits_memory(cls, size: tuple[int, int]) -> tuple[int, int]:
        if size[0] * size[1] > MAX_AREA:
            raise ValueError(f"at most {MAX_AREA:,} pixels in all, found {size[0]} x {size[1]}")
        return size

    @model_validator(mode="after")
    def _levels_fit_channels(self) -> PictureSettings:
        allowed = "1 number" if self.channels == 1 else f"1 or {self.channels} numbers"
        for name in ("mean", "std"):
            given = len(getattr(self, name))
            if given not in (1, self.channels):
                raise ValueError(f"{name} needs {allowed} for color '{self.color}', found {given}")
        return self


class FaceSettings(Section):
    """Crop of a face, as `twinlens faces` makes it; a model of cropped faces stores it.

    Attributes:
        detector: detector that the faces were cropped with.
        score: least confidence of a face; unused by the Haar cascade.
        margin: margin on each side, as a share of the face's box.
        size: side of the square crop in pixels; None for the size of the face.
        align: whether faces are rotated until the eyes are level.
        pad: border around the photograph for detection, as a share of its longer side.
    """

    detector: Literal["yunet", "haar"] = "yunet"
    score: Share = 0.5
    margin: Annotated[float, Field(ge=0, le=4)] = 0.0
    size: Annotated[int, Field(ge=8, le=4096)] | None = None
    align: bool = False
    pad: Annotated[float, Field(ge=0, le=4)] = 0.0


class ModelSettings(Section):
    """The network (backbone, then head) and the distance between its embeddings."""

    selector = "backbone"

    backbone: Name = setting(
        "conv",
        "Built-in network (`conv`, `mlp`, `residual`, `signet`, or `strokes`: measures of "
        "handwriting, without weights), or the name of a timm model; `python:NAME` in a run with a "
        "module of one's own.",
        auto="data",
    )
    channels: tuple[Width, ...] = setting(
        (64, 128, 128, 256),
        "Widths of the blocks, layers or stages of a built-in backbone.",
        auto="data",
        read_by=("conv", "mlp", "residual"),
        min_length=1,
        max_length=64,
    )
    convolutions: Small = setting(
        1,
        "Convolutions in a block; the first one is pooled, the others work on the pooled map.",
        auto="data",
        read_by=("conv",),
    )
    kernel: Small = setting(3, "Side of the convolution kernels, in pixels.", read_by=("conv",))
    batch_norm: bool = setting(True, "Batch norm after each convolution.", read_by=("conv",))
    max_pool: bool = setting(True, "2x2 max pooling after each convolution.", read_by=("conv",))
    block_dropout: BelowOne = setting(
        0.0, "Dropout probability after each block of the backbone.", read_by=("conv",)
    )
    leak: BelowOne = setting(
        0.0, "Slope of the backbone's ReLUs below 0.", read_by=("conv", "mlp", "residual")
    )
    attention: Literal["none", "eca"] = setting(
        "none",
        "Channel attention after each stage; `eca` is that of Wang 2020 (arXiv 1910.03151).",
        read_by=("residual",),
    )
    stride: Small = setting(1, "Stride of the first convolution.", read_by=("residual", "signet"))
    pressure: bool = setting(
        True,
        "Measure how dark ink is, which separates hands that one scanner saw. Set to false if pens "
        "or scanners differ: ink is then as even as in a fax.",
        read_by=("strokes",),
    )
    init: Literal["own", "glorot", "whitened", "given"] = setting(
        "own",
        "Initial weights: torch's (`own`), Keras's (`glorot`, Glorot 2010), those of `--init` "
        "(`given`), or a linear head that whitens a frozen backbone's features within identities "
        "(`whitened`).",
        auto="data",
    )
    stage: int | None = setting(
        None,
        "Last stage of a timm network that is used, counted from 0 as in its `feature_info`; the "
        "whole network if unset.",
        auto="data",
        unset="the whole network",
        ge=0,
        le=1000,
    )
    grid: Small = setting(
        1, "The last feature map is averaged to `grid` x `grid` cells.", auto="data", needs="stage"
    )
    pool: Literal["own", "average", "flatten"] = setting(
        "own",
        "Last feature map to features: global `average`, `flatten`, or the network's `own` way.",
        auto="data",
        unread_by=("mlp",),
    )
    pretrained: bool = setting(
        False, "Start with timm's pretrained weights, unless `weights` is set.", auto="data"
    )
    weights: PathText | None = setting(
        None,
        "Local file (.safetensors or .pth) with the backbone's initial weights.",
        auto="data",
        unset="no file",
    )
    freeze: Name = setting(
        "none",
        "Frozen part of the backbone, batch statistics included: `none`, `all`, or everything "
        "before the layer of this name.",
        auto="data",
    )
    clip: float = setting(
        0.0,
        "Features are standardised by the training pictures and clipped to so many standard "
        "deviations, before a `whitened` head; 0 leaves them as they are.",
        auto="data",
        ge=0,
        le=1000,
    )
    norms: Literal["batch", "frozen"] = setting(
        "batch",
        "Batch norms of trained layers, in training: statistics of the batch, or `frozen` ones of "
        "the initial weights.",
        unread_by=("mlp", "signet", "strokes"),
    )
    head: tuple[Width, ...] = setting(
        (),
        "Widths of the hidden layers, with ReLU, between features and embedding.",
        max_length=64,
    )
    head_norm: Literal["none", "between", "all"] = setting(
        "between",
        "Hidden layers of the head that batch norm follows: none, all but the last, or all.",
        needs="head",
    )
    dropout: BelowOne = setting(
        0.0,
        "Dropout probability after each hidden layer of the head, or before the embedding if there "
        "are no hidden layers.",
    )
    embedding: Width = setting(128, "Dimensions of the embedding.", auto="data")
    normalize: bool = setting(True, "Scale embeddings to length 1.")
    classes: bool = setting(
        False,
        "Embeddings are the square roots of the probabilities of `embedding` identities, so their "
        "length is 1. Needed by the loss `classes`.",
        auto="data",
    )
    shifts: bool = setting(
        False,
        "Test-time augmentation: an embedding is the mean over the picture and its shifts by one "
        "pixel to each side. Takes five times as long; training uses the picture alone.",
        auto="data",
    )
    mirrored: bool = setting(
        False,
        "Test-time augmentation: an embedding is the mean over the picture and its mirror image, "
        "with `shifts` over those of both. Takes twice as long; training uses the picture alone.",
        auto="data",
        unread_by=("strokes",),
    )
    comparator: Literal["euclidean", "squared-euclidean", "cosine", "sigmoid", "network"] = setting(
        "cosine",
        "Distance between two embeddings; `sigmoid` and `network` are learned, with the loss "
        "`bce`.",
        auto="settings",
    )


class Member(Section):
    """A member of a fused model: a network or descriptor, the pictures that it takes, its weight.

    Attributes:
        model: settings of the network and of its map to an embedding.
        picture: the member's own pictures, made of those of the fused model.
        weight: of its distance; only the ratio to the weights of other members counts.
    """

    model: ModelSettings
    picture: PictureSettings
    weight: Annotated[float, Field(ge=1e-6, le=1e6)]


SHIFTS = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))
"""Views that `model.shifts` averages: (pixels down, pixels to the right)."""


class LossSettings(Section):
    """The loss, and the triplets that it takes from a batch."""

    selector = "name"

    name: Name = setting(
        "supcon",
        "`contrastive`, `triplet`, `bce`, `supcon`, `classes`, or `pml:ClassName` for a loss of "
        "pytorch-metric-learning; `python:NAME` in a run with a loss of one's own.",
        auto="data",
    )
    margin: Positive = setting(
        0.5, "Margin, in units of distance.", read_by=("contrastive", "triplet")
    )
    soft: bool = setting(
        False, "Soft margin (Hermans 2017): softplus in place of the hinge.", read_by=("triplet",)
    )
    mining: Literal["all", "semi-hard", "hardest", "given"] = setting(
        "semi-hard",
        "Triplets of a batch that count: `all`, `semi-hard` (Schroff 2015), `hardest` (batch hard, "
        "Hermans 2017), or those `given` by the sampler `triplets`.",
        auto="settings",
        read_by=("triplet",),
    )
    temperature: Positive = setting(
        0.1,
        "Divisor of the distances (Khosla 2020); the lower, the more the nearest impostors count.",
        auto="data",
        read_by=("supcon",),
    )
    forged_weight: Positive = setting(
        1.0,
        "Weight of forgeries of the anchor's identity among its impostors; all others weigh 1.",
        auto="data",
        read_by=("supcon",),
    )
    smoothing: BelowOne = setting(
        0.0,
        "Label smoothing (Szegedy 2016, arXiv 1512.00567): the share of the target that is spread "
        "over all classes; those of `bce` are genuine and impostor.",
        read_by=("bce", "classes"),
    )
    args: dict[Name, Any] = Field(
        default_factory=dict, description="Arguments of a `pml:` loss, by name.", max_length=100
    )

    @field_validator("args")
    @classmethod
    def _plain(cls, args: dict[str, Any]) -> dict[str, Any]:
        for name, value in args.items():
            try:
                text = json.dumps(value, allow_nan=False)
            except (TypeError, ValueError, RecursionError) as error:
                raise ValueError(
                    f"{name} needs finite numbers, text, true, false, lists or tables of them, "
                    f"found {short_repr(value)}"
                ) from error
            if len(text) > MAX_ARGUMENT:
                raise ValueError(f"{name} has {len(text):,} characters, at most {MAX_ARGUMENT:,}")
        return args


class SamplerSettings(Section):
    """Training batches: P identities x K pictures, or random pairs or triplets."""

    selector = "kind"

    kind: Literal["pk", "pairs", "triplets"] = setting(
        "pk",
        "`pk`: P identities x K pictures, of which all pairs count. `pairs` and `triplets`: random "
        "ones, as in many published systems.",
        auto="settings",
    )
    labels_per_batch: Count = setting(
        32, "Identities in a batch (P).", auto="data", read_by=("pk",)
    )
    images_per_label: int = setting(
        4,
        "Genuine pictures of each identity in a batch (K), at most.",
        auto="data",
        read_by=("pk",),
        ge=2,
        le=1_000_000,
    )
    forged_per_label: int = setting(
        2,
        "Forgeries of each identity in a batch, at most.",
        auto="data",
        read_by=("pk",),
        ge=0,
        le=1_000_000,
    )
    batch: Count = setting(64, "Pairs or triplets in a batch.", read_by=("pairs", "triplets"))
    fresh: bool = setting(
        True,
        "Draw partners anew in each epoch, rather than once for the whole run.",
        read_by=("pairs", "triplets"),
    )
    forged_share: Share = setting(
        0.5,
        "Share of forgeries among the negatives of an identity that has any.",
        read_by=("pairs", "triplets"),
    )
    mirror: bool = setting(
        False,
        "Mirror half of the pairs or triplets left to right, all pictures of one alike.",
        read_by=("pairs", "triplets"),
    )
    rotations: bool = setting(
        False,
        "Pictures turned by 90, 180 and 270 degrees count as further identities (Santoro 2016). "
        "Needs a square `picture.size`.",
        auto="data",
    )


class AugmentSettings(Section):
    """Random views of training pictures, drawn anew at each step; 0 and false switch one off."""

    selector = "transform"

    transform: Name = setting(
        "own",
        "The views below (`own`), or `python:NAME` in a run with an augmentation of one's own, in "
        "their place.",
        pattern="^(own|python:.*)$",
    )
    rotate: float = setting(
        0.0,
        "Largest rotation to either side, in degrees.",
        auto="data",
        read_by=("own",),
        ge=0,
        le=180,
    )
    translate: Share = setting(
        0.0,
        "Largest shift to each side, as a share of height and width.",
        auto="data",
        read_by=("own",),
    )
    scale: BelowOne = setting(
        0.0,
        "Scale by a factor between 1 / (1 + scale) and 1 + scale.",
        auto="data",
        read_by=("own",),
    )
    shear: float = setting(
        0.0, "Largest slant to either side, in degrees.", auto="data", read_by=("own",), ge=0, lt=90
    )
    crop: BelowOne = setting(
        0.0,
        "Share of height and width that a random window leaves out; the window is enlarged to the "
        "full size.",
        read_by=("own",),
    )
    flip: bool = setting(
        False, "Mirror half of the pictures left to right.", auto="data", read_by=("own",)
    )
    brightness: Share = setting(
        0.0,
        "Largest change of brightness, as a share of the range of grey.",
        auto="data",
        read_by=("own",),
    )
    contrast: BelowOne = setting(
        0.0,
        "Contrast by a factor between 1 - contrast and 1 + contrast.",
        auto="data",
        read_by=("own",),
    )


class OptimizerSettings(Section):
    """The optimiser and its learning rate."""

    selector = "name"

    name: Literal["adamw", "muon", "adam", "rmsprop", "sgd"] = setting(
        "adamw",
        "Optimiser; `muon` (Jordan 2024) takes orthogonal steps for matrices and those of `adamw` "
        "for the rest.",
        auto="data",
    )
    rate: Positive = setting(3e-3, "Highest learning rate of the schedule.", auto="data")
    weight_decay: NonNegative = setting(
        0.01, "Weight decay; biases and norms are exempt (He 2019).", auto="data"
    )
    rho: BelowOne = setting(
        0.99,
        "Decay of the mean of squared gradients: 0.99 in torch, 0.9 in Keras.",
        read_by=("rmsprop",),
    )
    momentum: BelowOne = setting(0.9, "Momentum.", read_by=("sgd",))
    schedule: Literal["one-cycle", "cosine", "constant"] = setting(
        "one-cycle",
        "Learning rate over the run: `one-cycle` (Smith 2018) rises for a fifth and falls by a "
        "cosine, `cosine` (Loshchilov 2017) only falls.",
    )
    clip: NonNegative = setting(
        0.0, "Largest norm of the gradient; longer ones are clipped. 0 for any norm."
    )


LENGTHS = ("steps", "epochs", "time_budget")


class TrainSettings(Section):
    """Length of the run, choice of weights, and use of the machine.

    At most one of `steps`, `epochs` and `time_budget` gives the length; without, it is 10 epochs.
    """

    steps: int | None = setting(
        None,
        "Length of the run, in batches.",
        auto="data",
        unset="no number",
        ge=1,
        le=1_000_000_000,
    )
    epochs: Positive | None = setting(None, "Length of the run, in epochs; 10 if no length is set.")
    time_budget: float | None = setting(
        None,
        "Length of the run, in seconds: reading, validation and report included.",
        gt=0,
        le=1e9,
    )
    validations: Count = setting(
        10, "Validations at equal distances along the run; a time budget may have room for fewer."
    )
    metric: Literal["eer", "eer_forged", "recall_at_1"] = setting(
        "eer",
        "Validation metric by which the weights are chosen: EER of all pairs, the mean of it and "
        "the EER against forgeries of the claimed identity (`eer_forged`), or recall at 1.",
        auto="data",
    )
    candidates: bool = setting(
        False,
        "Compare the network with features that need no training, on held-out identities, and join "
        "those that help.",
        auto="data",
    )
    refit: bool = setting(
        False,
        "Fit the model to the training and validation pictures together, in the end; its threshold "
        "is then that of the model before.",
        auto="data",
    )
    patience: int = setting(
        0,
        "Validations in a row, without a gain of a hundredth of the error, after which training "
        "skips to the last fifth of its schedule; 0 keeps the length, as a time budget does.",
        auto="data",
        ge=0,
        le=1_000_000,
    )
    extend: bool = setting(
        False,
        "Learn on after `steps`, in rounds of half as many, as long as the validation error falls "
        "by a hundredth; 8 rounds at most.",
        auto="data",
    )
    precision: Literal["auto", "float32", "bfloat16"] = setting(
        "auto",
        "Arithmetic of the forward pass, which the weights depend on; `auto` is bfloat16 for "
        "convolutions on hardware made for it (CUDA from capability 8.0, CPUs with AMX), else "
        "float32.",
    )
    channels_last: Literal["auto", "yes", "no"] = setting(
        "auto",
        "Channels last in memory; `auto` is `yes` for networks with convolutions, except on GPUs "
        "that do not multiply bfloat16. Another order gives weights that differ by rounding.",
    )
    compile: bool = setting(
        False,
        "Compile the network by torch.compile: the first steps take a minute or more, the others "
        "less time on a GPU. On a CPU it needs a C++ compiler.",
    )
    device: Name = setting(
        "auto", "`cpu`, `cuda`, `cuda:1` and so on; `auto` is the GPU, or the CPU without one."
    )
    target_far: float = setting(
        0.01,
        "False accept rate for which the model is calibrated, a fraction. With too few validation "
        "pairs it is 0.1, or there is no calibration, with a warning.",
        gt=0,
        lt=1,
    )
    accept_licence: bool = setting(
        False,
        "Let `auto` take pretrained weights under a licence with conditions (no commercial use).",
    )
    chunk: int | None = setting(
        None,
        "Pictures whose graph is in memory at once. Larger batches are embedded in chunks, twice "
        "(Gao 2021, arXiv 2101.06983); batch norm then uses a chunk's statistics.",
        ge=3,
        le=1_000_000,
    )
    sync_batch_norm: bool = setting(
        False,
        "Batch norm by the statistics of the whole batch where several GPUs train; otherwise each "
        "process normalises its part of the batch by itself.",
    )

    @model_validator(mode="after")
    def _whole_batch(self) -> TrainSettings:
        if self.sync_batch_norm and self.chunk is not None:
            raise ValueError("sync_batch_norm needs whole batches, found chunk: set one of them")
        return self

    @model_validator(mode="after")
    def _one_length(self) -> TrainSettings:
        lengths = [name for name in LENGTHS if getattr(self, name) is not None]
        if len(lengths) > 1:
            raise ValueError(f"set one of {', '.join(LENGTHS)}, found {' and '.join(lengths)}")
        return self


class Settings(Section):
    """Everything that, with the data, makes a run repeatable."""

    seed: int = setting(
        0, "Random seed for splits, initial weights, batches and views.", ge=0, lt=2**63
    )
    data: DataSettings = DataSettings()
    picture: PictureSettings = PictureSettings()
    model: ModelSettings = ModelSettings()
    loss: LossSettings = LossSettings()
    sampler: SamplerSettings = SamplerSettings()
    augment: AugmentSettings = AugmentSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    train: TrainSettings = TrainSettings()

    @model_validator(mode="after")
    def _sections_agree(self) -> Settings:
        learned = self.model.comparator in ("sigmoid", "network")
        if (self.loss.name == "bce") != learned:
            raise ValueError(
                "loss.name 'bce' and model.comparator 'sigmoid' or 'network' go together, found "
                f"'{self.loss.name}' with '{self.model.comparator}'"
            )
        if self.loss.name == "classes" and not self.model.classes:
            raise ValueError("loss.name 'classes' needs model.classes true, found false")
        if (self.loss.mining == "given") != (self.sampler.kind == "triplets"):
            raise ValueError(
                "loss.mining 'given' and sampler.kind 'triplets' go together, found "
                f"'{self.loss.mining}' with '{self.sampler.kind}'"
            )
        if self.model.init == "whitened" and (self.model.freeze != "all" or self.model.head):
            raise ValueError(
                "model.init 'whitened' needs model.freeze 'all' and no model.head, found "
                f"'{self.model.freeze}' and {list(self.model.head)}"
            )
        if self.model.clip and self.model.init not in ("whitened", "given"):
            raise ValueError(
                "model.clip needs model.init 'whitened', which measures the features before "
                f"training, found '{self.model.init}'"
            )
        if self.model.shifts and (self.model.freeze == "all" or self.model.backbone == "strokes"):
            still = "model.freeze 'all'" if self.model.freeze == "all" else "'strokes'"
            raise ValueError(f"model.shifts needs a backbone that learns, found {still}")
        size = self.picture.size
        if self.sampler.rotations and size[0] != size[1]:
            raise ValueError(f"sampler.rotations needs a square picture.size, found {list(size)}")
        return self


def setting_fields() -> Iterator[tuple[str, FieldInfo]]:
    """Each setting's key ("seed" or "section.key") with its declaration, in order."""
    for name, field in Settings.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Section):
            for key, inner in section.model_fields.items():
                yield f"{name}.{key}", inner
        else:
            yield name, field


def marks_of(field: FieldInfo) -> Mapping[str, Any]:
    """The marks of `setting` that a declaration carries, by name."""
    return cast(Mapping[str, Any], field.json_schema_extra or {})


def value_text(key: str, value: Any) -> str:
    """The value of a setting in words.

    >>> value_text("model.stage", None), value_text("picture.size", (64, 48))
    ('the whole network', '64 x 48')
    """
    if value is None:
        field = dict(setting_fields()).get(key)
        return str((marks_of(field) if field is not None else {}).get("unset", "not set"))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple | list):
        return " x ".join(value_text(key, item) for item in value)
    return str(value)


def auto_keys(chooser: Literal["data", "settings"]) -> frozenset[str]:
    """Keys that a recipe may set to "auto", by the source of their value."""
    return frozenset(k for k, field in setting_fields() if marks_of(field).get("auto") == chooser)


def without_effect(settings: Settings, keys: Iterable[str]) -> list[str]:
    """A sentence for each of the keys that these settings do not read.

    >>> without_effect(Settings(), ["loss.margin", "loss.temperature"])
    ["loss.margin has no effect with loss.name 'supcon'"]
    """
    fields = dict(setting_fields())
    sentences = []
    for key in keys:
        if key not in fields:  # An argument such as loss.args.alpha.
            continue
        name, marks = key.partition(".")[0], marks_of(fields[key])
        section = getattr(settings, name)
        if not isinstance(section, Section):
            continue
        value = getattr(section, section.selector, None)
        if value not in marks.get("read_by", (value,)) or value in marks.get("unread_by", ()):
            sentences.append(f"{key} has no effect with {name}.{section.selector} '{value}'")
        needed = marks.get("needs")
        if needed is not None and getattr(section, needed) in (None, ()):
            sentences.append(f"{key} has no effect without {name}.{needed}")
    return sentences
