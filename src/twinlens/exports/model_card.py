"""The model card of a hub: data, error rates, threshold, limits and licences of a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from twinlens.exports.comparison import ExportComparison
from twinlens.exports.readme import comparison_table, use_alone
from twinlens.measure.calibration import Calibration
from twinlens.measure.domain import Domain
from twinlens.model.stored import HUB, ModelDescription, StartRecord
from twinlens.report.formatting import cell, count_of, dig, number, percent

__all__ = ["CardFacts", "model_card"]

TAGS = ("twinlens", "onnx", "image-similarity", "verification", "metric-learning")

FIGURES = {
    "EER": ("verification", "eer"),
    "FAR at the threshold": ("verification", "calibrated", "far"),
    "FRR at the threshold": ("verification", "calibrated", "frr"),
    "recall at 1": ("retrieval", "recall_at_1"),
}
"""Rows of the table, and where each is in the JSON of `evaluate`."""

SHOWN = ("brightness", "contrast", "sharpness 0", "noise 0", "saturation")
"""Statistics of pictures whose ranges are shown."""

LIMITS = """\
- Error rates hold for pictures like those of the calibration. An answer says where a picture is
  unlike them. Calibrate with your own pictures: `twinlens calibrate`.
- The model detects no forgery by a photograph of a photograph, and no picture made to deceive it.
- Embeddings of people are biometric data: a picture that looks like the original can be computed
  from them.
- Whoever has the model may find out, with effort, whether it learned from a certain picture.
"""


@dataclass(frozen=True)
class CardFacts:
    """Facts of a model that its description lacks.

    Attributes:
        address: repository at the hub, "name/model"; None if not known yet.
        source: name of the data set; None for pictures of one's own.
        learned: numbers of training pictures and of their identities; None if unknown.
        results: contents of the run's `results.json`; None if missing.
    """

    address: str | None = None
    source: str | None = None
    learned: tuple[int, int] | None = None
    results: Mapping[str, Any] | None = None


def model_card(
    description: ModelDescription, facts: CardFacts, comparison: ExportComparison | None = None
) -> str:
    """The text of the README.md of a repository, its YAML included.

    Args:
        description: description of the published model.
        facts: facts of its run.
        comparison: figures of the published files beside the model's; None if they are equal.
    """
    title = "A model of twinlens" if facts.address is None else facts.address.partition("/")[2]
    address = "FOLDER" if facts.address is None else f"hf://{facts.address}"
    size, model = description.picture.size, description.model
    sections = {
        f"# {title}": _summary(description),
        "## Use": [
            "`pip install 'twinlens[hub]'`", "",
            "```python", "import twinlens", "",
            f'model = twinlens.load("{address}")', 'print(model.verify("a.jpg", "b.jpg"))', "```",
            "", f"On the command line: `twinlens verify {address} a.jpg b.jpg`.",
        ],
        "## Error rates": _figures(facts.results),
        "## Data": _data(description, facts),
        "## Network": [
            f"`{model.backbone}`; {count_of(model.embedding, 'dimension')} of an embedding, "
            f"comparator `{model.comparator}`, pictures {size[0]} x {size[1]}, "
            f"{description.picture.color}.",
        ],
        "## Limits": [LIMITS.rstrip()],
        "## Licence": _licence(description.start),
    }  # fmt: skip
    if comparison is not None:
        sections["## These files beside the model"] = comparison_table(comparison)
    lines = ["---", *_front(description.start), "---", ""]
    for heading, text in sections.items():
        lines += [heading, "", *text, ""]
    return "\n".join([*lines, use_alone(description)])


def _front(start: StartRecord | None) -> list[str]:
    """The YAML; each JSON value is one of YAML too."""
    values: dict[str, Any] = {
        "library_name": "twinlens", "pipeline_tag": "image-feature-extraction", "tags": TAGS,
    }  # fmt: skip
    if start is not None and start.source.startswith(HUB):
        values["base_model"] = start.source.removeprefix(HUB)
        if start.licence != "unknown":
            values["license"] = start.licence
    return [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in values.items()]


def _summary(description: ModelDescription) -> list[str]:
    text = "Tells whether two pictures show the same thing, by the distance of their embeddings."
    if description.calibration is None:
        return [f"{text} It has no threshold yet: `twinlens calibrate` sets one."]
    calibration = Calibration.from_json(description.calibration)
    return [
        f"{text} A pair matches at a distance of at most {number(calibration.threshold)}, set for "
        f"a false accept rate (FAR) of {percent(calibration.target_far)}."
    ]


def _figures(results: Mapping[str, Any] | None) -> list[str]:
    if results is None:
        return ["The run holds no error rates."]
    rows = ["| figure | value | 95 % interval |", "|---|---|---|"]
    for name, keys in FIGURES.items():
        figure = dig(results, *keys)
        if figure is not None:
            rows.append(f"| {name} | {' | '.join(cell(figure))} |")
    num, split = dig(results, "verification", "num_identities"), results.get("split")
    seen = {
        True: "none of these identities was trained on",
        False: "the model was trained on these identities",
    }.get(dig(results, "identity_disjoint"), "whether they were trained on is unknown")
    text = f"Measured on {split} pictures of {count_of(num, 'identity')}: {seen}."
    if split == "val":
        text += " These pictures also set the threshold, so expect worse figures for new ones."
    return [*rows, "", f"{text} Intervals are over identities."]


def _data(description: ModelDescription, facts: CardFacts) -> list[str]:
    lines = []
    if facts.learned is not None:
        num, identities = facts.learned
        lines.append(
            f"Learned from {count_of(num, 'picture')} of {count_of(identities, 'identity')}"
            + (f" of the data set {facts.source}." if facts.source else ".")
        )
    start = description.start
    if start is not None:
        lines.append(f"Training began with {start.name}, pretrained on {start.trained_on}.")
    if description.calibration is not None:
        calibration = Calibration.from_json(description.calibration)
        pairs = "pairs without labels"
        if calibration.assumed_share is None:
            pairs = (
                f"{count_of(calibration.num_genuine, 'genuine pair')} and "
                f"{count_of(calibration.num_impostor, 'impostor pair')}"
            )
        interval = "."
        if calibration.low is not None and calibration.high is not None:
            interval = (
                f"; its 95 % interval is {number(calibration.low)} to {number(calibration.high)}."
            )
        lines.append(f"The threshold comes from {pairs}{interval}")
    if description.domain is not None:
        domain = Domain.from_json(description.domain)
        lines += [] if domain is None else ["", *_domain(domain)]
    return lines or ["Unknown."]


def _domain(domain: Domain) -> list[str]:
    """The ranges of some statistics of the calibration pictures."""
    levels = domain.quantiles.reshape(len(domain.statistics), -1)
    low, high = (round(share * (levels.shape[1] - 1)) for share in (0.05, 0.95))
    rows = [
        f"| {name} | {number(float(levels[row, low]))} to {number(float(levels[row, high]))} |"
        for row, name in enumerate(domain.statistics)
        if name in SHOWN
    ]
    return [
        f"Nine of ten of the {count_of(domain.num_pictures, 'calibration picture')} lie in these "
        "ranges (grey levels of 0 to 255):",
        "", "| statistic | range |", "|---|---|", *rows,
    ]  # fmt: skip


def _licence(start: StartRecord | None) -> list[str]:
    if start is None:
        return ["The network learned from nothing. The licence of the training pictures is not "
                "known to twinlens: state it here."]  # fmt: skip
    return [
        f"The initial weights {start.name} have the licence {start.licence} (source: "
        f"{start.source}). The licence of the training pictures is not known to twinlens: state it "
        "here."
    ]
