"""What the recipe leaves to the data: sizes, network, batches, views, length. With reasons.

A rule reads the statistics of the training pictures and says a value and why. What the user has
set is never touched: only keys that the recipe marks "auto" are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinlens.config import Settings
from twinlens.data.inspection import Statistics
from twinlens.learn.features import can_precompute
from twinlens.model.backbones import (
    check_backbone,
    has_pretrained,
    is_own,
    pretrained_picture,
    stage_strides,
)
from twinlens.model.device import pick_device
from twinlens.recipes import Recipe

__all__ = ["Choice", "choose_levels", "choose_settings"]


@dataclass(frozen=True)
class Choice:
    """A setting that was chosen from the data, and why."""

    key: str
    value: Any
    why: str


@dataclass(frozen=True)
class Facts:
    """What the rules look at: the data, and what the user or an earlier rule has set."""

    data: Statistics
    settings: Settings
    closed: bool

    @property
    def drawing(self) -> bool:
        """Strokes or things on an even ground, rather than photographs."""
        return self.data.grey and self.data.border_share > 0.5

    @property
    def handwriting(self) -> bool:
        """Drawings that others imitate: the hand tells them apart, and not the shape alone."""
        return self.drawing and self.data.num_forged > 0

    @property
    def measured(self) -> bool:
        """Features that are measured once a picture, by a backbone with nothing to learn."""
        return self.settings.model.backbone == "strokes"

    @property
    def own(self) -> bool:
        return is_own(self.settings.model.backbone)

    @property
    def still(self) -> bool:
        return self.settings.model.freeze == "all"

    @property
    def starts_well(self) -> bool:
        model = self.settings.model
        return model.pretrained or model.weights is not None or self.measured


def choose_settings(
    recipe: Recipe, data: Statistics, *, closed: bool
) -> tuple[Settings, list[Choice]]:
    """Fill in what the recipe leaves to the data, in the order of the rules.

    Args:
        recipe: with the user's overrides laid over it.
        data: the statistics of the training pictures.
        closed: whether what the model will be used on are the identities that it is trained on.
    Returns:
        The full settings, and each choice with its reason.
    Raises:
        ConfigError: an unknown backbone, or a choice that does not fit what the user has set.
    """
    if "model.backbone" not in recipe.auto:
        check_backbone(recipe.settings().model.backbone)
    chosen: dict[str, Any] = {}
    choices = []
    for key, rule in RULES.items():
        if key not in recipe.auto:
            continue
        value, why = rule(Facts(data, recipe.settings(chosen), closed))
        chosen[key] = value
        choices.append(Choice(key, value, why))
    return recipe.settings(chosen), choices


def choose_levels(
    recipe: Recipe, settings: Settings, pixels_NCHW: NDArray[np.uint8]
) -> tuple[Settings, list[Choice]]:
    """Fill in `picture.mean` and `picture.std`, which need the pictures at their final size.

    Args:
        recipe: says whether they are left to the data.
        settings: with everything else chosen.
        pixels_NCHW: some of the training pictures, uint8; a thousand are enough.
    """
    pretrained = pretrained_picture(settings.model)
    if pretrained is not None:
        levels = {key: np.array(pretrained[key]) for key in ("mean", "std")}
        if settings.picture.channels == 1:  # As timm does with the weights of the first layer.
            levels = {key: value.mean(keepdims=True) for key, value in levels.items()}
    else:
        levels = _measured(pixels_NCHW)
    chosen = {
        key: tuple(round(float(level), 4) for level in levels[key])
        for key in ("mean", "std")
        if f"picture.{key}" in recipe.auto
    }
    source = "the pretrained weights" if pretrained is not None else "the training pictures"
    choices = [Choice(f"picture.{k}", v, f"the {k} of {source}") for k, v in chosen.items()]
    picture = settings.picture.model_copy(update=chosen)
    return settings.model_copy(update={"picture": picture}), choices


def _measured(pixels_NCHW: NDArray[np.uint8]) -> dict[str, NDArray[np.float64]]:
    """Mean and standard deviation of each channel, in [0, 1], by counting grey levels."""
    count_CL = np.zeros((pixels_NCHW.shape[1], 256))
    for picture in pixels_NCHW:
        count_CL += [np.bincount(channel.ravel(), minlength=256) for channel in picture]
    share_CL, level_L = count_CL / count_CL.sum(1, keepdims=True), np.arange(256) / 255
    mean_C = share_CL @ level_L
    std_C = np.sqrt((share_CL * (level_L - mean_C[:, None]) ** 2).sum(1))
    return {"mean": mean_C, "std": np.maximum(std_C, 1e-3)}  # Blank pictures have no spread.


Rule = Callable[[Facts], tuple[Any, str]]


def _color(f: Facts) -> tuple[Any, str]:
    if not f.own:
        return "rgb", f"{f.settings.model.backbone} was made for colour"
    if f.data.grey:
        return "grey", "no picture has colour"
    return "rgb", "the pictures have colour"


def _backbone(f: Facts) -> tuple[Any, str]:
    if f.handwriting and f.settings.picture.color == "grey":
        return "strokes", "handwriting and forgeries of it: strokes are measured, not learned"
    if f.settings.picture.color == "grey":
        return "conv", "small grey pictures: blocks of convolutions learn fastest"
    return "residual", "colour pictures: a small residual network"


def _pretrained(f: Facts) -> tuple[Any, str]:
    if f.own:
        return False, "our own networks learn from nothing"
    if f.settings.model.weights is not None:
        return False, f"the weights come from {f.settings.model.weights}"
    if not has_pretrained(f.settings.model.backbone):
        return False, "timm has no weights for it"
    return True, "timm has weights for it"


def _freeze(f: Facts) -> tuple[Any, str]:
    if f.measured:
        return "all", "strokes are measured once a picture and the head learns"
    if f.starts_well and not pick_device(f.settings.train.device).startswith("cuda"):
        return "all", "without a GPU, a pretrained network runs once a picture and its head learns"
    return "none", "everything learns"


def _size(f: Facts) -> tuple[Any, str]:
    pretrained = pretrained_picture(f.settings.model)
    if pretrained is not None:
        return _pretrained_size(f, pretrained["size"])
    height, width = f.data.median_height, f.data.median_width
    found = f"the median picture is {height} x {width}"
    if f.measured:
        return _full_size(height, width), f"{found}; pressure shows in single pixels"
    longest = 32 if f.data.num_identities >= MANY else 64
    if f.data.num_forged:
        longest = 128  # The difference between a hand and its forger is in the details.
    if max(height, width) < TINY:
        longest, scale = 32, 32 / max(height, width)
    else:
        scale = min(1.0, longest / max(height, width))
    sides = [max(16, 4 * round(side * scale / 4)) for side in (height, width)]
    if abs(height - width) <= 0.1 * max(height, width) or f.settings.sampler.rotations:
        sides = [max(sides)] * 2
    if scale > 1:
        return tuple(sides), f"{found}; enlarged, so that shifts and turns of it are fine enough"
    why = f"{found}; {longest} on the longer side is enough to learn from on a small machine"
    return tuple(sides), why if scale < 1 else found


def _full_size(height: int, width: int) -> tuple[int, int]:
    """The median picture's longer side; room for higher ones than the median at their own size."""
    longest = 4 * math.ceil(min(FULL, max(height, width)) / 4)
    higher = 4 * math.ceil(0.75 * longest / 4)
    return (higher, longest) if width >= height else (longest, higher)


def _pretrained_size(f: Facts, side: int) -> tuple[Any, str]:
    longest = max(f.data.median_height, f.data.median_width)
    strides = stage_strides(f.settings.model.backbone) if f.still else ()
    if strides:
        enough = max(2, math.ceil(2 * longest / strides[-1])) * strides[-1]
        if enough < side:
            why = f"the median picture is {longest} on the longer side: twice that shows all of it"
            return (enough, enough), f"{why}, {side} only takes longer"
    return (side, side), f"what {f.settings.model.backbone} was trained on"


def _stage(f: Facts) -> tuple[Any, str]:
    pretrained = pretrained_picture(f.settings.model)
    if pretrained is None or not f.still:
        return None, "the whole network"
    strides, side = stage_strides(f.settings.model.backbone), max(f.settings.picture.size)
    if not strides or side >= pretrained["size"]:
        return None, "the whole network, at the size that it was trained on"
    fitting = strides[-1] * side / pretrained["size"]
    stage = min(range(len(strides)), key=lambda i: abs(math.log2(strides[i] / fitting)))
    if stage == len(strides) - 1:
        return (
            None,
            "the whole network: the pictures are nearly as large as those it was trained on",
        )
    why = f"pictures of {side}, not {pretrained['size']}: its map is about as fine as the last one"
    return stage, f"{why} was in training, later ones are too coarse"


def _grid(f: Facts) -> tuple[Any, str]:
    stage = f.settings.model.stage
    strides = () if stage is None else stage_strides(f.settings.model.backbone)
    if stage is None or stage >= len(strides):
        return 1, "the network's own average"
    places = min(f.settings.picture.size) // strides[stage]
    grid = max(1, min(4, places // 2))
    return (
        grid,
        f"a map of {places} x {places} places: averaged to cells, it keeps where things are",
    )


def _init(f: Facts) -> tuple[Any, str]:
    # Tried on early stages and on measures; features of a whole network were no better for it.
    local = f.measured or f.settings.model.stage is not None
    plain = not (f.settings.model.head or f.settings.model.classes)
    known = f.starts_well and can_precompute(f.settings)
    if local and plain and known and f.data.num_pictures < PLENTY:
        return "whitened", "few pictures: how their features vary is computed, not learned by heart"
    return "own", "learned from random weights"


def _fit(f: Facts) -> tuple[Any, str]:
    if not f.own:
        return "stretch", "as the network was trained"
    if f.handwriting:
        return "pad", "the proportions of a hand belong to it"
    return "stretch", "nothing is cut off"


def _fill(f: Facts) -> tuple[Any, str]:
    return f.data.border_level, "the grey level of the pictures' borders"


LARGE = 4096  # pixels of a picture, above which half a batch takes as long
TINY = 24  # pixels, below which the views of a picture would be coarse
MANY = 50  # identities, from which on there are enough to learn one-shot comparison
FULL = 512  # pixels of the longer side, beyond which a pen's strokes show no more
PLENTY = 5000  # pictures, from which on a wider network does not learn them by heart


def _channels(f: Facts) -> tuple[Any, str]:
    if f.settings.model.backbone == "mlp":
        return (512, 256), "two layers"
    if f.settings.model.backbone == "residual":
        return (32, 64, 128), "three stages"
    if f.data.num_identities >= MANY:
        return (64, 128, 128, 256), "many identities: four wide blocks"
    if f.data.num_pictures >= PLENTY:
        return (32, 64, 128), "many pictures of few identities: three blocks"
    if max(f.settings.picture.size) <= 40:
        return (32, 64, 64), "few and small pictures: three narrow blocks keep where things are"
    return (32, 64, 128, 128), "few pictures: four blocks"


FEW_CLASSES, EACH = 100, 100  # identities at most, and pictures of each, to learn as classes


def _classes(f: Facts) -> tuple[Any, str]:
    if not f.closed:
        return False, "identities that come later are not among those that are learned"
    if f.data.num_forged:
        return False, "a forgery is of no class"
    if f.settings.sampler.rotations:
        return False, "turned pictures are to count as other identities"
    if f.settings.model.embedding < f.data.num_identities:
        return False, f"embeddings of {f.settings.model.embedding} hold no class for each identity"
    if f.data.num_identities <= FEW_CLASSES and f.data.median_pictures >= EACH:
        found = f"{f.data.median_pictures:g} pictures each of the identities that it will meet"
        return True, f"{found}: how probable each of these is"
    return False, "few pictures of each identity, or many identities"


def _loss(f: Facts) -> tuple[Any, str]:
    if f.settings.model.classes:
        return "classes", "embeddings are probabilities of identities"
    return "supcon", "a batch is a pool of pairs"


def _embedding(f: Facts) -> tuple[Any, str]:
    if f.settings.model.classes:
        return f.data.num_identities, "one for each identity"
    return 128, "enough for any number of identities that fits a small machine"


def _rotations(f: Facts) -> tuple[Any, str]:
    height, width = f.settings.picture.size
    if f.settings.model.classes:
        return False, "a turned picture is of the same class"
    if f.still:
        return False, "a frozen backbone then runs once a picture"
    if f.drawing and not f.closed and height == width and not f.data.num_forged:
        return True, "a drawing turned by 90 degrees is another thing to learn from (Santoro 2016)"
    return False, "a turned picture is not another thing here"


def _shifts(f: Facts) -> tuple[Any, str]:
    height, width = f.settings.picture.size
    if f.own and f.drawing and f.settings.sampler.rotations and height * width <= LARGE:
        return True, "drawings are small: the mean over shifts of a pixel finds one or two more"
    return False, "worth its time for small drawings only"


def _labels_per_batch(f: Facts) -> tuple[Any, str]:
    identities = f.data.num_identities * (4 if f.settings.sampler.rotations else 1)
    height, width = f.settings.picture.size
    most = 32 if height * width <= LARGE else 16
    return min(most, identities), f"{identities} identities to learn from, {most} a batch at most"


def _images_per_label(f: Facts) -> tuple[Any, str]:
    if f.measured:
        images = int(max(2, min(8, f.data.median_pictures)))
        return images, "measures are computed once, so that large batches cost little"
    # Few pictures are learned by heart: smaller batches did better on unseen faces and digits.
    batch = 128 if f.data.num_pictures >= PLENTY or f.data.num_identities >= MANY else 64
    wanted = max(3, round(batch / f.settings.sampler.labels_per_batch))
    images = int(max(2, min(wanted, f.data.median_pictures)))
    return images, f"about {batch} pictures a batch, {f.data.median_pictures:g} a median identity"


def _forged_per_label(f: Facts) -> tuple[Any, str]:
    if f.measured:
        return f.settings.sampler.images_per_label, "as many forgeries as genuine pictures"
    return 2, "some forgeries of each, where there are any"


def _zero(value: float | bool, drawing: float | bool, photo: float | bool) -> Rule:
    def rule(f: Facts) -> tuple[Any, str]:
        if f.still:
            return value, "a frozen backbone then runs once a picture"
        if f.settings.model.classes:
            return value, f"{f.data.median_pictures:g} pictures of each vary enough by themselves"
        if f.drawing:
            return drawing, "drawn on an even ground"
        return photo, "photographs"

    return rule


def _flip(f: Facts) -> tuple[Any, str]:
    if f.drawing:
        return False, "drawings and handwriting have a left and a right"
    if f.still and f.settings.model.stage is None:
        return False, "a frozen backbone then runs once a picture"
    if f.still:
        return True, "photographed things may face either way: a frozen stage runs twice"
    return True, "photographed things may face either way"


def _optimizer(f: Facts) -> tuple[Any, str]:
    if f.own and not f.still and (f.data.num_identities >= MANY or f.settings.model.classes):
        return "muon", "many pictures to learn from: it comes as far in two thirds of the steps"
    return "adamw", "well tried"


def _temperature(f: Facts) -> tuple[Any, str]:
    if f.measured:
        return 0.05, "forgeries are near: the nearest impostors count most"
    if f.settings.sampler.rotations and f.data.num_identities >= MANY:
        return 0.05, "characters are many and alike: the nearest impostors count most"
    return 0.1, "the usual one"


def _forged_weight(f: Facts) -> tuple[Any, str]:
    if f.measured and f.data.num_forged and f.settings.loss.name == "supcon":
        return 8.0, "its own forgeries are few beside all other hands, and hardest to tell"
    return 1.0, "all impostors weigh the same"


def _rate(f: Facts) -> tuple[Any, str]:
    if f.measured:
        return 3e-2, "a linear head on measures of like range"
    if f.settings.model.init == "whitened":
        return 3e-4, "the head begins near its end"
    if f.own or f.still or not f.starts_well:
        return 3e-3, "a network from random weights"
    return 3e-4, "a pretrained network is only tuned"


def _steps(f: Facts) -> tuple[Any, str]:
    if f.measured:
        return 150, "a linear head on measures is soon learned"
    if f.settings.model.init == "whitened":
        return 100, "the head begins near its end"
    pictures = (f.data.num_pictures - f.data.num_forged) * (
        4 if f.settings.sampler.rotations else 1
    )
    batch = f.settings.sampler.labels_per_batch * f.settings.sampler.images_per_label
    wanted = 15 * pictures / batch
    steps = int(min(1500, max(300, round(wanted, -1))))
    return steps, f"15 times each of {pictures} pictures, within 300 to 1500"


def _metric(f: Facts) -> tuple[Any, str]:
    if f.data.num_identities >= MANY and not f.data.num_forged:
        return "recall_at_1", "many identities: the nearest picture must be the right one"
    if f.data.num_forged:
        return "eer_forged", "forgeries alone, and all impostors, must be told apart"
    return "eer", "few identities: pairs must be told apart"


RULES: Mapping[str, Rule] = {
    "model.classes": _classes,
    "loss.name": _loss,
    "picture.color": _color,
    "model.backbone": _backbone,
    "model.pretrained": _pretrained,
    "model.freeze": _freeze,
    "picture.size": _size,
    "model.stage": _stage,
    "model.grid": _grid,
    "model.init": _init,
    "picture.fit": _fit,
    "picture.fill": _fill,
    "model.channels": _channels,
    "model.embedding": _embedding,
    "sampler.rotations": _rotations,
    "model.shifts": _shifts,
    "sampler.labels_per_batch": _labels_per_batch,
    "sampler.images_per_label": _images_per_label,
    "sampler.forged_per_label": _forged_per_label,
    "augment.rotate": _zero(0.0, 10.0, 8.0),
    "augment.translate": _zero(0.0, 0.08, 0.05),
    "augment.scale": _zero(0.0, 0.15, 0.1),
    "augment.shear": _zero(0.0, 8.0, 4.0),
    "augment.flip": _flip,
    "augment.brightness": _zero(0.0, 0.0, 0.1),
    "augment.contrast": _zero(0.0, 0.0, 0.2),
    "optimizer.name": _optimizer,
    "loss.temperature": _temperature,
    "loss.forged_weight": _forged_weight,
    "optimizer.rate": _rate,
    "train.steps": _steps,
    "train.metric": _metric,
}
