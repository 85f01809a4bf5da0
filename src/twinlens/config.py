"""Typed settings, and the recipes that fill them.

A recipe is a TOML file of partial settings. A value may be the word "auto" where twinlens knows
how to choose it from the data (`AUTO_KEYS`; the choosing is in `learn/auto.py`). Overrides by
`--set section.key=value` come on top. Unknown and ill-typed keys are errors, all reported at once.
This module knows nothing of pictures or networks.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from twinlens.errors import ConfigError, unknown_name

__all__ = [
    "AUTO_KEYS",
    "AugmentSettings",
    "DataSettings",
    "LossSettings",
    "ModelSettings",
    "OptimizerSettings",
    "PictureSettings",
    "Recipe",
    "SamplerSettings",
    "Settings",
    "TrainSettings",
    "load_recipe",
    "parse_overrides",
    "recipe_names",
    "recipe_text",
    "recipe_values",
    "without_effect",
]

AUTO = "auto"


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


# The keys for which a recipe may say "auto"; learn/auto.py chooses each from the data.
AUTO_KEYS = frozenset(
    {
        "picture.size", "picture.color", "picture.fit", "picture.fill",
        "picture.mean", "picture.std",
        "model.backbone", "model.channels", "model.pretrained", "model.freeze", "model.embedding",
        "sampler.labels_per_batch", "sampler.images_per_label", "sampler.rotations",
        "augment.rotate", "augment.translate", "augment.scale", "augment.shear", "augment.flip",
        "augment.brightness", "augment.contrast",
        "optimizer.rate", "train.steps",
        "train.metric",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """A recipe with its overrides, checked, before the data has filled in what is "auto".

    `values` is nested as in the file, without the keys in `auto` ("section.key"); `overrides` are
    those that were laid over it.
    """

    name: str
    values: Mapping[str, Any]
    auto: frozenset[str]
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def settings(self, chosen: Mapping[str, Any] | None = None) -> Settings:
        """The full settings once `chosen` ("section.key" -> value) has filled in what is auto."""
        values = _nested(self.values)
        for key, value in (chosen or {}).items():
            _put(values, key, value)
        return _validate(values, f"recipe '{self.name}'")


def recipe_names() -> list[str]:
    """The names of the recipes that twinlens carries, sorted."""
    folder = resources.files("twinlens") / "recipes"
    return sorted(item.name[:-5] for item in folder.iterdir() if item.name.endswith(".toml"))


def recipe_text(name: str) -> str:
    """The TOML text of a recipe: a name that twinlens carries, or a path to a .toml file.

    Raises:
        ConfigError: no such recipe; the near names are given.
    """
    if name.endswith(".toml"):
        try:
            return Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the recipe {name}: {error}") from error
    if name not in recipe_names():
        raise ConfigError(unknown_name("recipe", name, recipe_names()))
    return (resources.files("twinlens") / "recipes" / f"{name}.toml").read_text(encoding="utf-8")


def recipe_values(name: str) -> dict[str, Any]:
    """A recipe as nested values, with its `about`.

    Raises:
        ConfigError: no such recipe, or it is not TOML.
    """
    try:
        return tomllib.loads(recipe_text(name))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the recipe {name} is not TOML: {error}") from error


def parse_overrides(items: Iterable[str]) -> dict[str, Any]:
    """`["loss.margin=0.5", ...]` as `{"loss.margin": 0.5}`; values are TOML, bare words strings.

    Raises:
        ConfigError: an item without "=".
    """
    overrides: dict[str, Any] = {}
    for item in items:
        key, sign, text = item.partition("=")
        if not sign or not key.strip():
            raise ConfigError(f"--set needs section.key=value, found '{item}'")
        try:
            overrides[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            overrides[key.strip()] = text.strip()
    return overrides


def load_recipe(name: str = AUTO, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe, lay the overrides over it, and check every key.

    Args:
        name: a carried recipe or a path to a .toml file.
        overrides: "section.key" -> value, as `parse_overrides` gives.
    Raises:
        ConfigError: every unknown and ill-typed key at once, with the near names.
    """
    overrides = dict(overrides or {})
    values = recipe_values(name)
    values.pop("about", None)
    train = values.get("train", {})
    if any(f"train.{length}" in overrides for length in LENGTHS) and isinstance(train, dict):
        for length in LENGTHS:  # A length that is asked for replaces the recipe's own.
            train.pop(length, None)
    for key, value in overrides.items():
        _put(values, key, value)
    _follow(values)
    auto = {key for key, value in _flat(values) if value == AUTO and key in AUTO_KEYS}
    for key in auto:
        section, _, field = key.partition(".")
        del values[section][field]
    recipe = Recipe(name, values, frozenset(auto), overrides)
    # The defaults stand in for what the data will fill in, so that mistakes show before work.
    recipe.settings()
    return recipe


def _follow(values: dict[str, Any]) -> None:
    """Decide what is "auto" and follows from other settings, whatever the data."""
    model, loss = values.get("model", {}), values.get("loss", {})
    if isinstance(model, dict) and model.get("comparator") == AUTO:
        learned = isinstance(loss, dict) and loss.get("name") == "bce"
        model["comparator"] = "sigmoid" if learned else "cosine"
    if isinstance(loss, dict) and loss.get("mining") == AUTO:
        sampler = values.get("sampler", {})
        literal = isinstance(sampler, dict) and sampler.get("kind") == "triplets"
        loss["mining"] = "given" if literal else "semi-hard"


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


def _validate(values: dict[str, Any], what: str) -> Settings:
    try:
        # Strict, since "3" is no number and true is not 1; TOML knows lists but no tuples.
        return Settings.model_validate(_with_tuples(values), strict=True)
    except ValidationError as error:
        lines = [f"  {_explain(entry)}" for entry in error.errors()]
        raise ConfigError(f"the settings of {what} are wrong:\n" + "\n".join(lines)) from None


def _with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        section: {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        if isinstance(fields, Mapping)
        else fields
        for section, fields in values.items()
    }


def _explain(entry: Any) -> str:
    path = [str(part) for part in entry["loc"] if not str(part).startswith("function-")]
    key = ".".join(path)
    if entry["type"] == "extra_forbidden":
        return _unknown_key(key)
    message = str(entry["msg"])
    if entry["type"] == "value_error":  # One of our own rules: it says what it found.
        message = message.removeprefix("Value error, ")
        return f"{key}: {message}" if key else message
    return f"{key}: {message[0].lower()}{message[1:]}, found {entry['input']!r}"


def _unknown_key(key: str) -> str:
    """Near names by the whole key, or else the keys of any section that end like it."""
    known = _known_keys()
    word = key.rpartition(".")[2]
    same = [name for name in known if name.rpartition(".")[2] == word]
    if same:
        return f"unknown key '{key}': did you mean {' or '.join(same)}?"
    sections = [name for name in Settings.model_fields if name not in known]
    return unknown_name("key", key, known if "." in key else known + sections)


def _known_keys() -> list[str]:
    keys = []
    for name, entry in Settings.model_fields.items():
        section = entry.annotation
        if isinstance(section, type) and issubclass(section, Section):
            keys += [f"{name}.{key}" for key in section.model_fields]
        else:
            keys.append(name)
    return keys


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: dict(v) if isinstance(v, Mapping) else v for k, v in values.items()}


def _flat(values: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    for section, fields in values.items():
        if isinstance(fields, Mapping):
            for key, value in fields.items():
                yield f"{section}.{key}", value


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    section, dot, rest = key.partition(".")
    if not dot:
        values[section] = value
        return
    inner = values.setdefault(section, {})
    if not isinstance(inner, dict):
        raise ConfigError(f"'{section}' is a value, not a section, so '{key}' cannot be set")
    field, dot, arg = rest.partition(".")
    if dot:  # loss.args.alpha
        table = inner.setdefault(field, {})
        if not isinstance(table, dict):
            raise ConfigError(f"'{section}.{field}' is a value, so '{key}' cannot be set")
        table[arg] = value
    else:
        inner[field] = value
