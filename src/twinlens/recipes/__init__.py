"""Recipes: TOML files of partial settings, one for each published system, and the default, `auto`.

The value of some settings may be the word "auto": it is then chosen from the training data
(`AUTO_KEYS`, by `learn.auto`) or from other settings (here). `--set section.key=value` overrides a
recipe. Unknown and ill-typed keys are errors, all reported at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from twinlens.config import LENGTHS, Settings, auto_keys, setting_fields
from twinlens.errors import (
    MAX_PROBLEMS,
    ConfigError,
    first_line,
    one_line,
    short_repr,
    unknown_name,
)
from twinlens.parsing import MAX_TOML_BYTES, parse_toml, read_text

__all__ = ["AUTO_KEYS", "Recipe", "as_typed", "load_recipe", "or_unset", "parse_overrides",
           "recipe_names", "recipe_text", "recipe_values"]  # fmt: skip

AUTO = "auto"

# Sampler of the published form of a loss; all others use every pair of a batch.
SAMPLERS = {"contrastive": "pairs", "bce": "pairs", "triplet": "triplets"}

AUTO_KEYS = auto_keys("data")
"""Keys that a recipe may set to "auto", so that `learn.auto` chooses them from the data."""


@dataclass(frozen=True)
class Recipe:
    """A checked recipe with its overrides, before values are chosen from the data.

    Attributes:
        name: name or path of the recipe.
        values: nested as in the file, overrides included, keys in `auto` left out.
        auto: keys ("section.key") that are left to the data.
        overrides: "section.key" -> value, as the user gave them.
    """

    name: str
    values: Mapping[str, Any]
    auto: frozenset[str]
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def settings(self, chosen: Mapping[str, Any] | None = None) -> Settings:
        """The full settings, with defaults for the keys in `auto` that `chosen` lacks.

        Args:
            chosen: "section.key" -> value, chosen from the data.
        Raises:
            ConfigError: values that do not fit each other.
        """
        values = _nested(self.values)
        for key, value in (chosen or {}).items():
            _put(values, key, value)
        return _validate(values, f"recipe '{self.name}'")

    def fixed(self) -> list[str]:
        """Keys that have a value, in the recipe or by the user."""
        return [key for key, _ in _flat(self.values)]


def recipe_names() -> list[str]:
    """Names of the built-in recipes, sorted.

    >>> recipe_names()[:3]
    ['auto', 'cifar', 'digits-bce']
    """
    files = resources.files("twinlens.recipes").iterdir()
    return sorted(file.name[:-5] for file in files if file.name.endswith(".toml"))


def recipe_text(name: str) -> str:
    """The TOML text of a recipe.

    Args:
        name: name of a built-in recipe, or path to a .toml file.
    Raises:
        ConfigError: no such recipe (the message lists similar names), or an unreadable file.
    """
    if name.endswith(".toml"):
        try:
            return read_text(Path(name), MAX_TOML_BYTES)
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot read the recipe {name}: {first_line(error)}") from error
    if name not in recipe_names():
        if Path(name).suffix:
            raise ConfigError(
                f"the recipe {one_line(name)} is no TOML file: give the name of a recipe (see "
                "`twinlens recipes`) or a .toml file"
            )
        raise ConfigError(unknown_name("recipe", name, recipe_names()))
    return (resources.files("twinlens.recipes") / f"{name}.toml").read_text(encoding="utf-8")


def recipe_values(name: str) -> dict[str, Any]:
    """A recipe as nested values, its `about` included.

    Raises:
        ConfigError: no such recipe, or the file is not TOML.
    """
    text = recipe_text(name)
    try:
        return parse_toml(text)
    except ValueError as error:
        raise ConfigError(f"the recipe {name} is not TOML: {first_line(error)}") from error


def parse_overrides(items: Iterable[str]) -> dict[str, Any]:
    """Overrides of the command line by key; values are TOML, and bare words are strings.

    >>> parse_overrides(["loss.margin=0.5", "model.backbone=resnet50"])
    {'loss.margin': 0.5, 'model.backbone': 'resnet50'}

    Raises:
        ConfigError: an item without "=".
    """
    overrides: dict[str, Any] = {}
    for item in items:
        key, sign, text = item.partition("=")
        if not sign or not key.strip():
            raise ConfigError(f"--set needs section.key=value, found '{one_line(item)}'")
        try:
            overrides[key.strip()] = parse_toml(f"value = {text}")["value"]
        except ValueError:
            overrides[key.strip()] = text.strip()
    return overrides


def as_typed(value: Any) -> str:
    """A value for `--set`: TOML, or the plain word if TOML does not understand it.

    >>> as_typed("adamw"), as_typed((64, 64)), as_typed("3")
    ('adamw', '[64, 64]', '"3"')
    """
    if isinstance(value, str) and parse_overrides([f"x={value}"])["x"] == value:
        return value
    return _toml(value)


def or_unset(value: Any) -> str:
    """`as_typed`, or "unset" for None, which `--set` cannot give."""
    return "unset" if value is None else as_typed(value)


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        pairs = [f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items() if v is not None]
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def load_recipe(name: str = AUTO, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe, apply overrides, and check every key.

    >>> load_recipe("cifar", {"train.epochs": 5.0}).settings().train.epochs
    5.0

    Args:
        name: name of a built-in recipe, or path to a .toml file.
        overrides: "section.key" -> value, as from `parse_overrides`.
    Raises:
        ConfigError: all unknown and ill-typed keys in one message, with similar names.
    """
    overrides = {} if overrides is None else overrides
    if not isinstance(overrides, Mapping) or not all(isinstance(key, str) for key in overrides):
        raise ConfigError(
            f"settings need a value for each 'section.key', found {short_repr(overrides)}"
        )
    values = recipe_values(name)
    values.pop("about", None)
    train = values.get("train", {})
    if any(f"train.{length}" in overrides for length in LENGTHS) and isinstance(train, dict):
        for length in LENGTHS:  # An overriding length replaces the recipe's.
            train.pop(length, None)
    _check_frozen_layer(values, overrides)
    for key, value in overrides.items():
        _put(values, key, value)
    _fill_from_settings(values)
    auto = {key for key, value in _flat(values) if _is_auto(value) and key in AUTO_KEYS}
    for key in auto:
        section, _, field = key.partition(".")
        del values[section][field]
    recipe = Recipe(name, values, frozenset(auto), dict(overrides))
    # With defaults in place of values from the data: mistakes show before any work is done.
    recipe.settings()
    return recipe


def _is_auto(value: Any) -> bool:
    return isinstance(value, str) and value == AUTO  # Arrays compare item by item.


def _check_frozen_layer(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    """Refuse another backbone if the recipe's `model.freeze` names a layer of its own."""
    model = _section(values, "model")
    if "backbone" not in model:
        return
    layer, own = model.get("freeze", "none"), model["backbone"]
    backbone = overrides.get("model.backbone", own)
    is_layer = layer not in ("none", "all", AUTO) and "model.freeze" not in overrides
    if is_layer and backbone != own:
        raise ConfigError(
            f"the recipe trains {own} from the layer '{layer}' on, and {backbone} may have no such "
            "layer: add --set model.freeze=LAYER (one of its layers, none or all)"
        )


def _fill_from_settings(values: dict[str, Any]) -> None:
    """Replace "auto" by the value that follows from other settings, if one does."""
    model, loss, sampler = (_section(values, name) for name in ("model", "loss", "sampler"))
    name = loss.get("name")
    if sampler.get("kind") == AUTO:
        sampler["kind"] = SAMPLERS.get(str(name), "pk")
    if model.get("comparator") == AUTO:
        model["comparator"] = "sigmoid" if name == "bce" else "cosine"
    if model.get("classes") == AUTO and name != AUTO:
        model["classes"] = name == "classes"
    if loss.get("mining") == AUTO:
        loss["mining"] = "given" if sampler.get("kind") == "triplets" else "semi-hard"


def _section(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The values of a section; nothing if it is missing or, by mistake, no table."""
    section = values.get(name)
    return section if isinstance(section, dict) else {}


def _validate(values: dict[str, Any], source: str) -> Settings:
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        entries = error.errors()
        lines = [_explain(entry) for entry in entries[:MAX_PROBLEMS]]
        if len(entries) > MAX_PROBLEMS:
            lines.append(f"and {len(entries) - MAX_PROBLEMS} more")
        start = " " if len(lines) == 1 else "\n  "
        raise ConfigError(f"wrong settings in {source}:{start}" + "\n  ".join(lines)) from None


def _explain(entry: Any) -> str:
    path = [str(part) for part in entry["loc"] if not str(part).startswith("function-")]
    key = one_line(".".join(path))
    if entry["type"] == "extra_forbidden":
        return _unknown_key(key)
    message = one_line(str(entry["msg"]), 300)
    if entry["type"] == "value_error":  # From a validator in config.py, with what it found.
        message = message.removeprefix("Value error, ")
        return f"{key}: {message}" if key else message
    return f"{key}: {message[0].lower()}{message[1:]}, found {short_repr(entry['input'])}"


def _unknown_key(key: str) -> str:
    """Suggest the same name in other sections, or else keys with a similar spelling."""
    known = [name for name, _ in setting_fields()]
    word = key.rpartition(".")[2]
    same_name = [name for name in known if name.rpartition(".")[2] == word]
    if same_name:
        return f"unknown key '{key}': did you mean {' or '.join(same_name)}?"
    sections = [name for name in Settings.model_fields if name not in known]
    message = unknown_name("key", key, known if "." in key else known + sections)
    suggestion, choices, _ = message.partition(": choose from ")
    # A list of a hundred keys helps nobody.
    return f"{suggestion} (`twinlens recipes auto` lists the keys)" if choices else message


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
