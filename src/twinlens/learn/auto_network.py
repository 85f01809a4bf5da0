"""Rules of `auto` for the network and its input: picture size, backbone, stage, head, embedding."""

from __future__ import annotations

import math

from twinlens.learn.auto_facts import DEEP, LARGE, LONGEST, MANY, PLENTY, WIDE, Facts, Reasoned
from twinlens.learn.features import can_precompute
from twinlens.model.device import pick_device
from twinlens.model.plugged_in import is_plugged_in
from twinlens.model.timm_backbones import (
    has_pretrained,
    last_blocks,
    pretrained_picture,
    stage_strides,
)

__all__ = [
    "backbone",
    "channels",
    "classes",
    "clip",
    "color",
    "convolutions",
    "embedding",
    "fill",
    "fit",
    "freeze",
    "grid",
    "init",
    "mirrored",
    "pool",
    "pretrained",
    "shifts",
    "size",
    "stage",
    "weights",
]

TINY = 24  # pixels of the longer side: below, rotations and shifts are too coarse
FULL = 512  # pixels of the longer side: beyond, strokes show no more detail
FEW_CLASSES, EACH = 100, 100  # most identities, and fewest pictures of each, to learn as classes


def color(f: Facts) -> Reasoned:
    """`picture.color`."""
    if not f.built_in:
        return "rgb", f"{f.settings.model.backbone} takes colour pictures"
    if f.data.grey:
        return "grey", "no picture has colour"
    return "rgb", "the pictures have colour"


def size(f: Facts) -> Reasoned:
    """`picture.size`."""
    native = pretrained_picture(f.settings.model)
    if native is not None:
        return _size_for_pretrained(f, native["size"])
    height, width = f.data.median_height, f.data.median_width
    why = f"the median picture is {height} x {width}"
    if f.strokes:
        return _size_for_strokes(height, width), f"{why}; pen pressure shows in single pixels"
    longest = 32 if f.data.num_identities >= MANY else LONGEST
    if f.data.num_forged:
        longest = 128  # Genuine and forged signatures differ in details.
    if max(height, width) < TINY:
        longest, scale = 32, 32 / max(height, width)
    else:
        scale = min(1.0, longest / max(height, width))
    sides = [max(16, 4 * round(side * scale / 4)) for side in (height, width)]
    if abs(height - width) <= 0.1 * max(height, width) or f.settings.sampler.rotations:
        sides = [max(sides)] * 2
    if scale > 1:
        why = f"{why}; enlarged, so that rotations and shifts are fine enough"
    elif scale < 1:
        why = f"{why}; {longest} on the longer side is enough, and fast without a GPU"
    return tuple(sides), why


def _size_for_strokes(height: int, width: int) -> tuple[int, int]:
    """The median picture's longer side, with room for pictures of other proportions."""
    longest = 4 * math.ceil(min(FULL, max(height, width)) / 4)
    shorter = 4 * math.ceil(0.75 * longest / 4)
    return (shorter, longest) if width >= height else (longest, shorter)


def _size_for_pretrained(f: Facts, native: int) -> Reasoned:
    longest = max(f.data.median_height, f.data.median_width)
    strides = stage_strides(f.settings.model.backbone) if f.frozen else ()
    if strides:
        side = max(2, math.ceil(2 * longest / strides[-1])) * strides[-1]
        if side < native:
            why = f"twice the median picture's {longest} on the longer side keeps all detail"
            return (side, side), f"{why}; {native} takes longer and adds none"
    if f.start is not None and f.start.size is not None and f.start.size < native:
        return (f.start.size, f.start.size), f"{native} takes several times as long"
    return (native, native), f"the size that {f.settings.model.backbone} was trained with"


def fit(f: Facts) -> Reasoned:
    """`picture.fit`."""
    if not f.built_in:
        return "stretch", f"as {f.settings.model.backbone} was trained"
    if f.handwriting:
        return "pad", "the proportions of handwriting tell writers apart"
    return "stretch", "nothing is cut off"


def fill(f: Facts) -> Reasoned:
    """`picture.fill`."""
    return f.data.border_level, "the median grey level at the pictures' borders"


def backbone(f: Facts) -> Reasoned:
    """`model.backbone`."""
    if f.settings.model.classes:
        return "conv", "closed set: a plain convolutional network learns most in a given time"
    if f.handwriting and f.settings.picture.color == "grey":
        return "strokes", "handwriting with forgeries: measures of strokes separate them best"
    if f.settings.picture.color == "grey":
        return "conv", "small grey pictures: a plain convolutional network learns fastest"
    return "residual", "colour pictures: a small residual network"


def pretrained(f: Facts) -> Reasoned:
    """`model.pretrained`."""
    if f.built_in:
        return False, "built-in networks start with random weights"
    if f.settings.model.weights is not None:
        return False, f"the weights come from {f.settings.model.weights}"
    if not has_pretrained(f.settings.model.backbone):
        return False, "timm has no weights for it"
    return True, "timm has weights for it"


def weights(f: Facts) -> Reasoned:
    """`model.weights`."""
    return None, "no start for these pictures is at hand"


def freeze(f: Facts) -> Reasoned:
    """`model.freeze`."""
    if f.strokes:
        return "all", "strokes has no weights; the head learns"
    if f.built_in and (f.start is not None or f.given_weights):
        return "none", "all layers learn on"
    if f.given_weights and not pick_device(f.settings.train.device).startswith("cuda"):
        if f.settings.model.stage is not None:
            return "all", "without a GPU, the map to the embedding learns on"
        name = f.settings.model.backbone
        layer = "none" if is_plugged_in(name) else last_blocks(name)
        return layer, "without a GPU, the last third learns on"
    if f.useful_features and not pick_device(f.settings.train.device).startswith("cuda"):
        return "all", "without a GPU, a pretrained backbone embeds each picture once"
    return "none", "all layers learn"


def stage(f: Facts) -> Reasoned:
    """`model.stage`: its map is about as fine as the last map was in pretraining."""
    native = pretrained_picture(f.settings.model)
    if native is None or not f.frozen:
        return None, "the whole network"
    strides, side = stage_strides(f.settings.model.backbone), max(f.settings.picture.size)
    if not strides or side >= native["size"]:
        return None, "the whole network, at the size that it was trained with"
    stride = strides[-1] * side / native["size"]
    index = min(range(len(strides)), key=lambda i: abs(math.log2(strides[i] / stride)))
    if index == len(strides) - 1:
        return None, "the whole network: pictures are nearly as large as in its training"
    why = f"at a size of {side}, not {native['size']}, this stage's map is about as fine as"
    return index, f"{why} the last one was in training; later maps are too coarse"


def grid(f: Facts) -> Reasoned:
    """`model.grid`."""
    stage = f.settings.model.stage
    strides = () if stage is None else stage_strides(f.settings.model.backbone)
    if stage is None or stage >= len(strides):
        return 1, "the network's own pooling"
    cells = min(f.settings.picture.size) // strides[stage]
    side = max(1, min(4, cells // 2))
    return side, f"a coarse grid keeps positions in the map of {cells} x {cells}"


def init(f: Facts) -> Reasoned:
    """`model.init`."""
    # Whitening helped early stages and strokes, not the features of whole networks.
    local = f.strokes or f.settings.model.stage is not None
    linear = not (f.settings.model.head or f.settings.model.classes)
    known = f.useful_features and can_precompute(f.settings)
    if local and linear and known and f.data.num_pictures < PLENTY:
        return "whitened", "few pictures: a head that whitens features overfits less"
    return "own", "random weights"


def clip(f: Facts) -> Reasoned:
    """`model.clip`."""
    if f.strokes and f.settings.model.init == "whitened":
        return 3.0, "a single odd measure must not outweigh all others"
    return 0.0, "features as they are"


def channels(f: Facts) -> Reasoned:
    """`model.channels`."""
    if f.settings.model.backbone == "mlp":
        return (512, 256), "two layers"
    if f.settings.model.backbone == "residual":
        return (32, 64, 128), "three stages"
    if f.settings.model.classes and f.seconds_each >= WIDE:
        return (64, 256, 256), "closed set with many pictures, and time for three wide blocks"
    if f.data.num_identities >= MANY:
        return (64, 128, 128, 256), "many identities: four wide blocks"
    if f.data.num_pictures >= PLENTY:
        return (32, 64, 128), "many pictures of few identities: three blocks"
    if max(f.settings.picture.size) <= 40:
        return (32, 64, 64), "few, small pictures: three narrow blocks keep positions"
    return (32, 64, 128, 128), "few pictures: four blocks"


def convolutions(f: Facts) -> Reasoned:
    """`model.convolutions`."""
    if f.settings.model.classes and f.seconds_each >= DEEP:
        return 2, "closed set with many pictures: a second convolution on the small, pooled maps"
    return 1, "one in a block"


def pool(f: Facts) -> Reasoned:
    """`model.pool`."""
    if f.settings.model.backbone == "conv" and f.settings.model.convolutions > 1:
        return "average", "deep enough that positions in the last map matter no more"
    return "own", "as the network was published"


def classes(f: Facts) -> Reasoned:
    """`model.classes`."""
    if not f.closed:
        return False, "open set: other identities are expected in use"
    if f.data.num_forged:
        return False, "forgeries belong to no class"
    if f.start is not None and not f.drawing:
        return False, "photographs: classes by pretrained features are a candidate"
    if f.settings.sampler.rotations:
        return False, "rotated pictures count as other identities"
    if f.settings.model.embedding < f.data.num_identities:
        numbers = f"{f.data.num_identities} identities, {f.settings.model.embedding} dimensions"
        return False, f"the embedding is too small for one class each: {numbers}"
    if f.data.num_identities <= FEW_CLASSES and f.data.median_pictures >= EACH:
        return True, f"closed set with {f.data.median_pictures:g} pictures each (median)"
    return False, "few pictures of each identity, or many identities"


def embedding(f: Facts) -> Reasoned:
    """`model.embedding`."""
    if f.settings.model.classes:
        return f.data.num_identities, "one probability for each identity"
    return 128, "enough for any number of identities"


def shifts(f: Facts) -> Reasoned:
    """`model.shifts`."""
    height, width = f.settings.picture.size
    learns_long = f.settings.sampler.rotations or (
        f.settings.model.classes and f.seconds_each >= WIDE
    )
    if f.built_in and f.drawing and learns_long and height * width <= LARGE:
        return True, "small drawings: averaging over shifts by one pixel is slightly more accurate"
    return False, "five times the work, worthwhile for small drawings only"


def mirrored(f: Facts) -> Reasoned:
    """`model.mirrored`."""
    if f.settings.augment.flip and not f.strokes:
        return True, "photographs may show either side: the mean over both is more accurate"
    return False, "a mirror image shows something else, or was not learned"
