"""The text of docs/settings.md, from the declarations in `twinlens.config`.

Write it anew with `python -m twinlens.recipes.reference > docs/settings.md`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from twinlens.config import Section, Settings

__all__ = ["settings_reference"]

INTRODUCTION = """\
# Settings

<!-- Generated from src/twinlens/config.py: python -m twinlens.recipes.reference > docs/settings.md
-->

Each setting of a training run, by section. A recipe is a TOML file of these settings
(`twinlens recipes` lists the built-in ones); `--set section.key=value` overrides it, and so does
`train(..., settings={"section.key": value})` in Python. A run keeps its settings in
`settings.json`, a model its `picture` and `model` sections in `model.json`.

"auto" is the source of a value that a recipe sets to the word "auto": the training data, or other
settings. The log and the report of a run give each choice from the data with its reason. Overriding
a setting that has no effect gives a warning.
"""

HEADER = "| Setting | Values | Default | auto | Description |\n| --- | --- | --- | --- | --- |\n"

Schema = Mapping[str, Any]


def settings_reference() -> str:
    """Markdown with a table of settings for each section."""
    schema = Settings.model_json_schema()
    sections = {
        name: field.annotation
        for name, field in Settings.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    }
    top = {key: value for key, value in schema["properties"].items() if key not in sections}
    parts = [INTRODUCTION, HEADER + "".join(_row(key, value) for key, value in top.items())]
    for name, section in sections.items():
        part = schema["$defs"][section.__name__]
        rows = [
            _row(f"{name}.{key}", value, section.selector)
            for key, value in part["properties"].items()
        ]
        parts.append(f"## {name}\n\n{part['description']}\n\n{HEADER}{''.join(rows)}")
    return "\n".join(parts)


def _row(key: str, field: Schema, selector: str = "") -> str:
    default = field.get("default", {})  # Only `loss.args` has a factory in place of a default.
    shown = "unset" if default is None else f"`{json.dumps(default)}`"
    cells = (f"`{key}`", _values(field), shown, field.get("auto", ""), _text(key, field, selector))
    return f"| {' | '.join(cells)} |\n"


def _text(key: str, field: Schema, selector: str) -> str:
    """The description, and when the setting has an effect."""
    section = key.partition(".")[0]
    sentences = [field["description"]]
    if values := field.get("read_by"):
        sentences.append(f"Only with `{section}.{selector}` {_choice(values)}.")
    if values := field.get("unread_by"):
        sentences.append(f"No effect with `{section}.{selector}` {_choice(values)}.")
    if needed := field.get("needs"):
        sentences.append(f"Only with `{section}.{needed}`.")
    return " ".join(sentences)


def _values(field: Schema) -> str:
    """The type and limits of a setting in words."""
    if "anyOf" in field:  # Optional.
        return f"{_values(field['anyOf'][0])}, or unset"
    if "enum" in field:
        return _choice(field["enum"])
    kind = field["type"]
    if "prefixItems" in field:
        return f"[{', '.join(_values(item) for item in field['prefixItems'])}]"
    if kind == "array":
        return f"list of {_values(field['items'])}{', not empty' if 'minItems' in field else ''}"
    if kind in ("integer", "number"):
        return f"{kind}{_range(field)}"
    return {"boolean": "`true` or `false`", "string": "text", "object": "table"}[str(kind)]


def _range(field: Schema) -> str:
    low, above = field.get("minimum"), field.get("exclusiveMinimum")
    high, below = field.get("maximum"), field.get("exclusiveMaximum")
    start = f"({_number(above)}" if low is None else f"[{_number(low)}"
    return f" in {start}, {_number(below)})" if high is None else f" in {start}, {_number(high)}]"


def _number(value: Any) -> str:
    return str(int(value)) if value == int(value) else f"{value:g}"


def _choice(values: list[str]) -> str:
    *others, last = [f"`{value}`" for value in values]
    return f"{', '.join(others)} or {last}" if others else last


if __name__ == "__main__":
    print(settings_reference(), end="")
