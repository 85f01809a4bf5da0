"""Facts that the rules of `auto` read: statistics of the data, and settings so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from twinlens.config import Settings
from twinlens.data.inspection import TableStatistics
from twinlens.model.device import has_bfloat16, pick_device
from twinlens.model.own_backbones import is_own
from twinlens.model.plugged_in import is_plugged_in
from twinlens.model.pretrained import Start

__all__ = ["DEEP", "FROZEN", "LARGE", "LONGEST", "MANY", "PLENTY", "TRANSFORMED", "WIDE", "Facts",
           "Reasoned", "Rule"]  # fmt: skip

MANY = 50  # identities: enough to learn one-shot comparison
PLENTY = 5000  # pictures: enough for a wide network, which overfits fewer
LONGEST = 64  # pixels of the longer side that a network from nothing sees, fast without a GPU
LARGE = 4096  # pixels of a picture: with more, a batch takes twice as long

# Seconds for each training picture, in units of a machine that multiplies bfloat16: a network as
# deep or wide then sees each picture at least about five times.
DEEP, WIDE = 1e-3, 4e-3
UNLIMITED = 600.0  # seconds that a network may learn if there is no time budget

TRANSFORMED = "the augmentation that was passed takes its place"
FROZEN = "a frozen backbone then embeds each picture once"


@dataclass(frozen=True)
class Facts:
    """The data, and the settings that the user or an earlier rule has set.

    Attributes:
        data: statistics of the training pictures.
        settings: defaults stand in for settings that are not chosen yet.
        closed: the model will be used on the identities that it is trained on.
        start: pretrained weights at hand that `auto` may begin with.
        given: keys of the settings that the user gave.
        has_test: whether there are test pictures.
    """

    data: TableStatistics
    settings: Settings
    closed: bool
    start: Start | None = None
    given: frozenset[str] = frozenset()
    has_test: bool = True

    @property
    def drawing(self) -> bool:
        """Strokes or shapes on an even ground, rather than photographs."""
        return self.data.grey and self.data.border_share > 0.5

    @property
    def handwriting(self) -> bool:
        """Drawings with forgeries: the strokes tell them apart, more than the shape."""
        return self.drawing and self.data.num_forged > 0

    @property
    def strokes(self) -> bool:
        """The backbone computes measures of handwriting and has no weights."""
        return self.settings.model.backbone == "strokes"

    @property
    def built_in(self) -> bool:
        """The backbone is one of twinlens, not of timm."""
        return is_own(self.settings.model.backbone)

    @property
    def given_weights(self) -> bool:
        """The network is one of `--init`."""
        return self.settings.model.init == "given"

    @property
    def frozen(self) -> bool:
        """The whole backbone is frozen; only the head learns."""
        return self.settings.model.freeze == "all"

    @property
    def partly_frozen(self) -> bool:
        """The first layers of a network of `--init` are frozen, and run once a picture."""
        return self.given_weights and self.settings.model.freeze not in ("none", "all")

    @property
    def useful_features(self) -> bool:
        """The backbone's features are useful before training."""
        model = self.settings.model
        return model.pretrained or model.weights is not None or self.strokes

    @property
    def seconds_each(self) -> float:
        """Seconds to learn from each training picture; worth a fifth without bfloat16."""
        budget = self.settings.train.time_budget
        seconds = (UNLIMITED if budget is None else budget) / max(1, self.data.num_pictures)
        return seconds if has_bfloat16(pick_device(self.settings.train.device)) else seconds / 5

    @property
    def transformed(self) -> bool:
        """Views come from an augmentation that a program passed."""
        return is_plugged_in(self.settings.augment.transform)

    @property
    def turns(self) -> int:
        """Identities that one identity counts as: with rotations, one for each quarter turn."""
        return 4 if self.settings.sampler.rotations else 1


Reasoned: TypeAlias = tuple[Any, str]
"""A value, and the reason for it in a few words."""

Rule: TypeAlias = Callable[[Facts], Reasoned]
