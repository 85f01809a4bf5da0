"""One's own model as the start of a training on other pictures (`--init`).

The network, its map to an embedding and its pictures are those of the model. Of a fused model the
member with the largest weight that is a network learns on; descriptors have nothing to learn. A
model of classes passes on its backbone, since its map belongs to its own identities.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from twinlens.config import ModelSettings, PictureSettings
from twinlens.errors import ConfigError
from twinlens.model.comparators import Comparator
from twinlens.model.descriptors import DESCRIPTORS
from twinlens.model.encoder import Encoder
from twinlens.model.fused import FusedEncoder
from twinlens.model.networks import load_networks
from twinlens.model.own_backbones import is_own
from twinlens.model.stored import (
    LEARNED_COMPARATORS,
    StartRecord,
    StoredModel,
    read_stored_model,
)
from twinlens.recipes import Recipe, or_unset

__all__ = ["InitialModel", "read_initial_model"]

log = logging.getLogger("twinlens")

# Settings of the network that its weights do not depend on.
FREE = {"freeze", "norms", "shifts", "mirrored"}
OF_CLASSES = {"classes", "embedding", "head", "head_norm"}


@dataclass(frozen=True, eq=False)
class InitialModel:
    """A network to begin with.

    Attributes:
        path: model or run folder, as the user named it.
        model: settings of the network.
        picture: settings of its pictures.
        backbone: weights of the backbone, by name.
        head: weights of the map to an embedding; None for one of classes.
        comparator: weights of the comparator.
        stored: the whole model.
    """

    path: str
    model: ModelSettings
    picture: PictureSettings
    backbone: dict[str, Tensor]
    head: dict[str, Tensor] | None
    comparator: dict[str, Tensor]
    stored: StoredModel

    def applied(self, recipe: Recipe) -> Recipe:
        """A recipe with the network and the pictures of this model.

        Raises:
            ConfigError: the recipe or the user sets another network, or other pictures.
        """
        own = self._settings()
        self._check(recipe, own)
        values = {name: dict(cast(Any, part)) for name, part in recipe.values.items()
                  if isinstance(part, dict)}  # fmt: skip
        values = {**recipe.values, **values}
        for key, value in own.items():
            section, _, name = key.partition(".")
            if key not in recipe.overrides:
                values.setdefault(section, {})[name] = value
        if self.model.comparator in LEARNED_COMPARATORS and "loss.name" in recipe.auto:
            values["loss"]["name"] = "bce"
            own["loss.name"] = "bce"
        changed = replace(recipe, values=values, auto=recipe.auto - own.keys())
        changed.settings()
        return changed

    def _settings(self) -> dict[str, Any]:
        """Settings ("section.key" -> value) that belong to the weights."""
        # `whitened` would replace the weights; `clip` has been measured.
        start = {"init": "given", "weights": None, "pretrained": False}
        model = self.model.model_copy(update=start)
        left_out = {"freeze"} | (OF_CLASSES if self.head is None else set())
        settings = {f"model.{k}": v for k, v in model.model_dump(exclude=left_out).items()}
        if not is_own(self.model.backbone):
            settings["model.norms"] = "frozen"
        return settings | {f"picture.{k}": v for k, v in self.picture.model_dump().items()}

    def _check(self, recipe: Recipe, own: dict[str, Any]) -> None:
        given = recipe.settings().model_dump()
        # The default recipe is for any network.
        keys = recipe.overrides if recipe.name == "auto" else recipe.fixed()
        problems = []
        for key in keys:
            section, _, name = key.partition(".")
            if key not in own or name in FREE or key in recipe.auto:
                continue
            if (value := given[section][name]) != own[key]:
                problems.append(f"{key}: is {or_unset(own[key])}, given {or_unset(value)}")
        if recipe.settings().train.candidates:
            problems.append("train.candidates: the network of --init is the only candidate")
        if problems:
            raise ConfigError(
                f"--init {self.path} brings its network and its pictures, which do not fit "
                + ("the settings given" if recipe.name == "auto" else f"the recipe {recipe.name}")
                + ":\n  " + "\n  ".join(problems)
                + "\n  Leave these out, or train without --init"
            )  # fmt: skip

    def load(self, encoder: Encoder, comparator: Comparator) -> None:
        """Load the weights into networks of `applied` settings."""
        backbone: nn.Module = encoder.backbone
        own = backbone.state_dict()
        # A network that ends after a stage lacks the later layers.
        prefix = "network." if self.model.stage is not None else ""
        backbone.load_state_dict({name: self.backbone[name.removeprefix(prefix)] for name in own})
        if self.head is not None:
            encoder.head.load_state_dict(self.head)
        comparator.load_state_dict(self.comparator)

    def start_record(self) -> StartRecord:
        """The description of this start, for the description of a new model."""
        before, origin = self.stored.description.start, self.stored.description.origin
        source = "unknown pictures" if origin is None else Path(origin.source).name
        return StartRecord(
            name=f"the model {self.stored.description.fingerprint} ({self.model.backbone})",
            licence="that of its pictures" if before is None else before.licence,
            source=Path(self.path).name if before is None else before.source,
            trained_on=source if before is None else f"{before.trained_on}, then {source}",
            fingerprint=None if origin is None else origin.fingerprint,
        )


def read_initial_model(path: str | Path) -> InitialModel:
    """Read the network that a model begins another training with.

    Raises:
        ModelError: no model, or a damaged one.
        ConfigError: a model without a network that learns.
    """
    stored = read_stored_model(path)
    description = stored.description
    networks = load_networks(stored)
    encoder, comparator = networks.encoder, networks.comparator.state_dict()
    if not isinstance(encoder, FusedEncoder):
        head = None if description.model.classes else encoder.head.state_dict()
        backbone: nn.Module = encoder.backbone
        if description.model.stage is not None:
            backbone = cast(nn.Module, backbone.network)
        return InitialModel(
            str(path), description.model, description.picture, backbone.state_dict(), head,
            comparator, stored,
        )  # fmt: skip
    members = encoder.members
    numbers = [n for n, one in enumerate(members) if one.model.backbone not in DESCRIPTORS]
    if not numbers:
        raise ConfigError(
            f"{path} has no network that could learn on: its features need no training. Train "
            "without --init"
        )
    number = max(numbers, key=lambda n: members[n].weight)
    member, total = members[number], sum(one.weight for one in members)
    log.info(
        "%s is fused of %d members: %s, with %.0f %% of the weight, learns on, and the others are "
        "left out", path, len(members), member.model.backbone, 100 * member.weight / total,
    )  # fmt: skip
    model = member.model.model_copy(update={"mirrored": description.model.mirrored})
    return InitialModel(
        str(path), model, member.picture, encoder.network_of(number).state_dict(),
        encoder.heads[number].state_dict(), comparator, stored,
    )  # fmt: skip
