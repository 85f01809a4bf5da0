"""The README.md of an export: its figures, and how to use it without twinlens."""

from __future__ import annotations

from twinlens.config import FaceSettings
from twinlens.exports.comparison import ExportComparison
from twinlens.measure.bootstrap import Estimate
from twinlens.model.stored import OPENVINO_FILES, ModelDescription, StartRecord
from twinlens.report.formatting import count_of, number, percent, span

__all__ = ["PYTHON", "comparison_notes", "comparison_rows", "comparison_table", "export_readme",
           "use_alone"]  # fmt: skip

PYTHON = """\
import json, sys
import numpy as np, onnxruntime as ort
from PIL import Image, ImageOps

folder, *pictures = sys.argv[1:]
model = ort.InferenceSession(f"{folder}/model.onnx")
facts = model.get_modelmeta().custom_metadata_map
spec, embeddings = json.loads(facts["twinlens.picture"]), []
for path in pictures:
    picture = ImageOps.exif_transpose(Image.open(path))
    if picture.mode.startswith(("I", "F")):
        sys.exit(f"{path}: convert it to 8 bits")
    if picture.has_transparency_data:
        ground = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(ground, picture.convert("RGBA"))
    picture = picture.convert("L" if spec["color"] == "grey" else "RGB")
    if facts["twinlens.resize"] == "outside":
        picture = picture.resize(spec["size"][::-1], Image.Resampling.BILINEAR)
    embeddings += [model.run(None, {"pixels": np.atleast_3d(picture)[None]})[0]]
if (name := facts["twinlens.comparator"]) == "cosine":
    embeddings = [vector / np.linalg.norm(vector) for vector in embeddings]
a, b = embeddings
if name in ("sigmoid", "network"):
    distance = ort.InferenceSession(f"{folder}/comparator.onnx").run(None, {"a": a, "b": b})[0][0]
else:
    square = np.square(a - b).sum()
    distance = {"cosine": square / 2, "euclidean": square**0.5}.get(name, square)
threshold, verdict = facts.get("twinlens.threshold"), None  # None: not calibrated.
if threshold is not None:
    verdict = "same" if distance <= float(threshold) else "different"
print(json.dumps({"distance": float(distance), "verdict": verdict}))
"""
"""A script that needs onnxruntime, numpy and Pillow; a test runs it as docs/export.md shows it."""

ALONE = f"""\
## Without twinlens

`python compare.py FOLDER a.png b.png` with this file, `pip install onnxruntime numpy pillow`:

```python
{PYTHON}```

It stretches pictures to the network's size. Models with `"fit": "pad"` or `"crop"` need these steps
as well, unless the export resizes pictures itself (`--resize inside`).
"""

FEATURES = """\
The input of the graph is features of handwriting, which twinlens computes: `twinlens verify`.
"""

OPENVINO = """\
## Without twinlens

```python
import openvino

config = {"INFERENCE_PRECISION_HINT": "f32"}  # Else bfloat16 where the processor has it.
model = openvino.Core().compile_model("model.xml", "CPU", config)
embedding = model({"pixels": pixels})[0]  # uint8 (N, H, W, C) as in model.json -> (N, D)
```

`model.json` holds the picture settings, the comparator and the threshold.
"""


def comparison_rows(comparison: ExportComparison) -> list[tuple[str, str, str]]:
    """The figures of an export beside its model's: name, model, export."""
    rows, pairs = list[tuple[str, str, str]](), comparison.pairs
    if pairs is not None:
        rows.append(("EER (95 % interval)", _rate(pairs.model_eer), _rate(pairs.export_eer)))
    before, after = (
        "none" if threshold is None else number(threshold)
        for threshold in (comparison.model_threshold, comparison.export_threshold)
    )
    rows.append(("threshold", before, after))
    before, after = (
        f"{time:.2f}" for time in (comparison.model_milliseconds, comparison.export_milliseconds)
    )
    rows.append(("milliseconds a picture, one thread", before, after))
    before, after = (
        f"{size / 1e6:.2f}" for size in (comparison.model_bytes, comparison.export_bytes)
    )
    rows.append(("megabytes", before, after))
    return rows


def comparison_notes(comparison: ExportComparison) -> list[str]:
    """Sentences about the distances, verdicts and pixels that an export changes."""
    notes, pairs = [], comparison.pairs
    if pairs is not None:
        num = pairs.num_genuine + pairs.num_impostor
        notes.append(
            f"measured on {count_of(pairs.num_pictures, 'picture')} of "
            f"{count_of(pairs.num_identities, 'identity')}: {num:,} pairs"
        )
        notes.append(
            f"distances move by {pairs.mean_moved:.2g} on average, by {pairs.max_moved:.2g} at most"
        )
        changes = {"each with its own threshold": comparison.num_changed,
                   "both with the model's threshold": comparison.num_changed_at_model}  # fmt: skip
        for which, changed in changes.items():
            if changed is not None:
                share = percent(changed / num)
                notes.append(f"verdicts that change, {which}: {changed:,} ({share})")
    if comparison.levels is not None:
        notes.append(
            f"resized pixels differ from Pillow's by {comparison.levels.mean:.2g} grey levels on "
            f"average, by {comparison.levels.largest} at most"
        )
    return notes


def export_readme(description: ModelDescription, comparison: ExportComparison) -> str:
    """The README.md of a folder that `twinlens export` writes."""
    return "\n".join([
        "# A model of twinlens", "",
        f"Embeddings of {count_of(description.model.embedding, 'dimension')} of pictures "
        f"{description.picture.size[0]} x {description.picture.size[1]}, "
        f"{description.picture.color}; network `{description.model.backbone}`, "
        f"{description.precision}, comparator `{description.model.comparator}`. A pair matches at "
        "a distance of at most the threshold.", "",
        *_start(description.start),
        *_face(description.face),
        "```", "twinlens verify FOLDER a.jpg b.jpg", "```", "",
        *comparison_table(comparison), "", use_alone(description),
    ])  # fmt: skip


def use_alone(description: ModelDescription) -> str:
    """How to use the files without twinlens."""
    if description.model.backbone == "strokes":
        return FEATURES
    return OPENVINO if OPENVINO_FILES[0] in description.graphs else ALONE


def _start(start: StartRecord | None) -> list[str]:
    if start is None:
        return []
    return [
        f"Training began with the weights {start.name} (licence: {start.licence}; source: "
        f"{start.source}), pretrained on {start.trained_on}.", "",
    ]  # fmt: skip


def _face(face: FaceSettings | None) -> list[str]:
    if face is None:
        return []
    aligned = ", rotated until the eyes are level" if face.align else ""
    return [
        f"Its pictures are cropped faces: the box of {face.detector}, with a margin of "
        f"{percent(face.margin)} on each side{aligned}. twinlens crops whole photographs itself; "
        "without twinlens, crop first.", "",
    ]  # fmt: skip


def comparison_table(comparison: ExportComparison) -> list[str]:
    """The figures of an export beside its model's, as lines of Markdown."""
    rows = ["| | model | this export |", "|---|---|---|"]
    rows += [f"| {' | '.join(row)} |" for row in comparison_rows(comparison)]
    return [*rows, "", *(f"- {note}" for note in comparison_notes(comparison))]


def _rate(estimate: Estimate) -> str:
    if estimate.value is None:
        return "none"
    interval = span(estimate.low, estimate.high)
    return f"{percent(estimate.value)} ({interval})" if interval else percent(estimate.value)
