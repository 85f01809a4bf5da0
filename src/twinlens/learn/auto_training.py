"""Rules of `auto` for training: loss, batches, views, optimiser, length and metric."""

from __future__ import annotations

from twinlens.config import LENGTHS
from twinlens.learn.auto_facts import (
    DEEP,
    FROZEN,
    LARGE,
    MANY,
    PLENTY,
    TRANSFORMED,
    Facts,
    Reasoned,
    Rule,
)

PATIENCE = 5  # validations, of ten

__all__ = [
    "candidates",
    "extend",
    "flip",
    "forged_per_label",
    "forged_weight",
    "images_per_label",
    "labels_per_batch",
    "loss",
    "metric",
    "optimizer",
    "patience",
    "rate",
    "refit",
    "rotations",
    "steps",
    "temperature",
    "view",
    "weight_decay",
]


def loss(f: Facts) -> Reasoned:
    """`loss.name`."""
    if f.settings.model.classes:
        return "classes", "embeddings are probabilities of identities"
    return "supcon", "learns from all pairs of a batch"


def temperature(f: Facts) -> Reasoned:
    """`loss.temperature`."""
    if f.strokes:
        return 0.02, "forgeries are near: most weight on the nearest impostors"
    if f.settings.sampler.rotations and f.data.num_identities * f.turns >= MANY:
        return 0.05, "many similar identities: more weight on the nearest impostors"
    return 0.1, "the usual value"


def forged_weight(f: Facts) -> Reasoned:
    """`loss.forged_weight`."""
    if f.strokes and f.data.num_forged and f.settings.loss.name == "supcon":
        return 8.0, "forgeries are few among the impostors of a batch, and the hardest"
    return 1.0, "all impostors weigh the same"


def rotations(f: Facts) -> Reasoned:
    """`sampler.rotations`."""
    height, width = f.settings.picture.size
    if f.settings.model.classes:
        return False, "a rotated picture belongs to the same class"
    if height != width:
        return False, "turned pictures would have another shape"
    if f.frozen or f.partly_frozen:
        return False, FROZEN
    if f.drawing and not f.closed and not f.data.num_forged:
        return True, "drawings: quarter turns make further identities to learn from (Santoro 2016)"
    return False, "a rotated picture shows the same identity here"


def labels_per_batch(f: Facts) -> Reasoned:
    """`sampler.labels_per_batch`."""
    identities = f.data.num_identities * f.turns
    height, width = f.settings.picture.size
    limit = 32 if height * width <= LARGE else 16
    return min(limit, identities), f"{identities} identities to learn from, at most {limit} a batch"


def images_per_label(f: Facts) -> Reasoned:
    """`sampler.images_per_label`."""
    if f.strokes:
        images = int(max(2, min(8, f.data.median_pictures)))
        return images, "features are computed once, so large batches cost little"
    # With few pictures, smaller batches generalised better on faces and digits.
    batch = 128 if f.data.num_pictures >= PLENTY or f.data.num_identities >= MANY else 64
    if f.settings.model.classes and f.settings.model.convolutions > 1:
        batch = 256  # A fifth more pictures in the same time.
    images = max(3, round(batch / f.settings.sampler.labels_per_batch))
    images = int(max(2, min(images, f.data.median_pictures)))
    return images, f"about {batch} pictures a batch; median identity: {f.data.median_pictures:g}"


def forged_per_label(f: Facts) -> Reasoned:
    """`sampler.forged_per_label`."""
    if f.strokes:
        return f.settings.sampler.images_per_label, "as many forgeries as genuine pictures"
    return 2, "two forgeries of each identity that has any"


def view(drawing: float, photo: float, often: float = 0.0) -> Rule:
    """The rule for a setting of `augment`, by its values for drawings and for photographs.

    Classes have enough pictures without views, until each was seen many times: then `often`.
    """

    def rule(f: Facts) -> Reasoned:
        if f.transformed:
            return 0.0, TRANSFORMED
        if f.frozen or f.partly_frozen:
            return 0.0, FROZEN
        if f.settings.model.classes:
            if often and f.seconds_each >= DEEP:
                return often, "there is time to see each picture many times"
            return 0.0, f"{f.data.median_pictures:g} pictures of each identity vary enough"
        if f.drawing:
            return drawing, "drawings on an even ground"
        return photo, "photographs"

    return rule


def flip(f: Facts) -> Reasoned:
    """`augment.flip`."""
    if f.transformed:
        return False, TRANSFORMED
    if f.drawing:
        return False, "mirrored drawings and handwriting are others"
    if f.frozen and f.settings.model.stage is None:
        return False, FROZEN
    if f.frozen:
        return True, "photographs may show either side; frozen stages embed each picture twice"
    return True, "photographs may show either side"


def optimizer(f: Facts) -> Reasoned:
    """`optimizer.name`."""
    large = f.data.num_identities * f.turns >= MANY or f.settings.model.classes
    if f.built_in and not f.frozen and large:
        return "muon", "much to learn from: as accurate in two thirds of the steps"
    return "adamw", "reliable with few pictures and with pretrained networks"


def rate(f: Facts) -> Reasoned:
    """`optimizer.rate`."""
    if f.given_weights:
        rate = 1e-3 if f.built_in else 3e-4
        return rate, "the network of --init learns on"
    if f.strokes:
        return 3e-2, "a linear head on standardised measures"
    if f.settings.model.init == "whitened":
        return 3e-4, "the whitened head is nearly right from the start"
    if f.built_in and f.start is not None:
        return 1e-3, "a small network learns on from a start"
    if f.built_in or f.frozen or not f.useful_features:
        return 3e-3, "random initial weights"
    return 3e-4, "fine-tuning of a pretrained network"


def weight_decay(f: Facts) -> Reasoned:
    """`optimizer.weight_decay`."""
    if f.strokes:
        return 0.5, "many correlated measures of few writers"
    return 0.05, "the usual value"


def steps(f: Facts) -> Reasoned:
    """`train.steps`."""
    if f.strokes:
        return 300, "a linear head on measures of strokes learns fast"
    if f.settings.model.init == "whitened":
        return 100, "the whitened head is nearly right from the start"
    if f.given_weights and not f.built_in:
        return 150, "a pretrained network learns on fast"
    pictures = (f.data.num_pictures - f.data.num_forged) * f.turns
    batch = f.settings.sampler.labels_per_batch * f.settings.sampler.images_per_label
    most = 3000 if f.settings.model.classes else 1500
    steps = int(min(most, max(300, round(15 * pictures / batch, -1))))
    return steps, f"15 times each of {pictures} pictures, between 300 and {most} steps"


def candidates(f: Facts) -> Reasoned:
    """`train.candidates`."""
    if f.given_weights:
        return False, "the network of --init is the only candidate"
    sections = ("model.", "loss.", "sampler.", "optimizer.", "augment.")
    given = sorted(key for key in f.given if key.startswith(sections))
    if given:
        return False, f"the network was chosen by {given[0]}"
    if f.strokes or f.data.num_forged:
        return False, "forgeries: measures of strokes"
    if f.settings.model.classes:
        return False, "a closed set learned as classes"
    return True, "features that need no training may be better, or help"


def refit(f: Facts) -> Reasoned:
    """`train.refit`."""
    if not f.has_test:
        return False, "without test pictures, the validation pictures measure the model"
    return True, "the more identities a model learns from, the better"


def extend(f: Facts) -> Reasoned:
    """`train.extend`."""
    given = sorted({f"train.{length}" for length in LENGTHS} & f.given)
    if given:
        return False, f"{given[0]} sets the length"
    if f.strokes or (f.settings.model.init == "whitened" and not f.settings.train.candidates):
        return False, "the head learns fast"
    return True, "no length is set: training ends when more no longer helps"


def patience(f: Facts) -> Reasoned:
    """`train.patience`."""
    given = sorted({f"train.{length}" for length in LENGTHS} & f.given)
    if given:
        return 0, f"{given[0]} sets the length"
    return PATIENCE, "half of the run without a gain: training ends early"


def metric(f: Facts) -> Reasoned:
    """`train.metric`."""
    if f.data.num_identities >= MANY and not f.data.num_forged:
        return "recall_at_1", "many identities: the nearest picture must be the right one"
    if f.data.num_forged:
        return "eer_forged", "forgeries: they count as much as all impostors"
    return "eer", "few identities: verification of pairs"
