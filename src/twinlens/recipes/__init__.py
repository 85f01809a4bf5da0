"""Recipes: TOML files of partial settings, one for each known system, and the default, `auto`.

A value may be the word "auto" where twinlens knows how to choose it from the data (`AUTO_KEYS`; the
choosing is in `learn/auto.py`) or from other settings. Overrides by `--set section.key=value` come
on top. Unknown and ill-typed keys are errors, all reported at once.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from twinlens.config import LENGTHS, Section, Settings
from twinlens.errors import ConfigError, unknown_name

__all__ = [
    "AUTO_KEYS",
    "Recipe",
    "load_recipe",
    "parse_overrides",
    "recipe_names",
    "recipe_text",
    "recipe_values",
]

AUTO = "auto"

# The literal batches that a loss is published with; what others learn from is a pool of pairs.
LITERAL = {"contrastive": "pairs", "bce": "pairs", "triplet": "triplets"}

# The keys for which a recipe may say "auto"; learn/auto.py chooses each from the data.
AUTO_KEYS = frozenset(
    {
        "picture.size", "picture.color", "picture.fit", "picture.fill",
        "picture.mean", "picture.std",
        "loss.name", "loss.temperature", "loss.forged_weight", "model.classes",
        "model.backbone", "model.channels", "model.pretrained", "model.freeze", "model.embedding",
        "model.stage", "model.grid", "model.init", "model.shifts",
        "sampler.labels_per_batch", "sampler.images_per_label", "sampler.forged_per_label",
        "sampler.rotations",
        "augment.rotate", "augment.translate", "augment.scale", "augment.shear", "augment.flip",
        "augment.brightness", "augment.contrast",
        "optimizer.name", "optimizer.rate", "train.steps",
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
    folder = resources.files("twinlens.recipes")
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
    return (resources.files("twinlens.recipes") / f"{name}.toml").read_text(encoding="utf-8")


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
    _refuse_foreign_layer(values, overrides)
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


def _refuse_foreign_layer(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    """A layer to thaw from belongs to the recipe's own network, not to another one."""
    model = values.get("model", {})
    if not isinstance(model, Mapping) or "backbone" not in model:
        return
    layer, wanted = model.get("freeze", "none"), overrides.get("model.backbone", model["backbone"])
    named = layer not in ("none", "all", AUTO) and "model.freeze" not in overrides
    if named and wanted != model["backbone"]:
        raise ConfigError(
            f"the recipe learns from the layer '{layer}' of {model['backbone']} on, which {wanted} "
            "need not have: say where it is to begin with --set model.freeze=LAYER (one of its "
            "own), none or all"
        )


def _follow(values: dict[str, Any]) -> None:
    """Decide what is "auto" and follows from other settings, whatever the data."""
    model, loss = values.get("model", {}), values.get("loss", {})
    sampler = values.get("sampler", {})
    if isinstance(sampler, dict) and sampler.get("kind") == AUTO:
        name = loss.get("name") if isinstance(loss, dict) else None
        sampler["kind"] = LITERAL.get(str(name), "pk")
    if isinstance(model, dict) and model.get("comparator") == AUTO:
        learned = isinstance(loss, dict) and loss.get("name") == "bce"
        model["comparator"] = "sigmoid" if learned else "cosine"
    if isinstance(model, dict) and model.get("classes") == AUTO:
        name = loss.get("name") if isinstance(loss, dict) else None
        if name != AUTO:
            model["classes"] = name == "classes"
    if isinstance(loss, dict) and loss.get("mining") == AUTO:
        literal = isinstance(sampler, dict) and sampler.get("kind") == "triplets"
        loss["mining"] = "given" if literal else "semi-hard"


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
