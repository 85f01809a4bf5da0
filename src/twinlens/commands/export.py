"""`twinlens export`: a model for other runtimes, measured against itself."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from twinlens.commands.calibrate import calibrate_on
from twinlens.commands.push import card_facts
from twinlens.commands.selection import (
    Selection,
    read_data,
    select_pictures,
    split_as_trained,
)
from twinlens.data.adapters import Data, path_or_table
from twinlens.data.decode import read_array, to_array
from twinlens.data.pixel_cache import decode_table
from twinlens.data.table import ImageTable
from twinlens.display import Result
from twinlens.errors import CalibrationError, ConfigError, DataError, TwinlensError
from twinlens.exports.comparison import (
    ExportComparison,
    LevelDifference,
    PairMeasures,
    compare_embeddings,
    count_changes,
    median_milliseconds,
)
from twinlens.exports.formats import add_calibration, check_export, write_model
from twinlens.exports.model_card import model_card
from twinlens.exports.readme import comparison_notes, comparison_rows, export_readme
from twinlens.exports.resize import resizing_graph
from twinlens.files import check_output_folder, creating_folder, expand_user, write_text
from twinlens.match.matcher import Matcher, Model, open_encoder
from twinlens.measure.bootstrap import check_seed
from twinlens.measure.calibration import Calibration
from twinlens.measure.verification import VerificationResult
from twinlens.model.stored import (
    GRAPH,
    OPENVINO_FILES,
    StoredModel,
    read_stored_model,
)
from twinlens.model.training_record import find_record
from twinlens.progress import Progress, console_log

__all__ = ["ExportResult", "export"]

log = logging.getLogger("twinlens")

DEFAULT_FAR = 0.01
AGREEMENT = 1e-4  # largest difference of distances with which a calibration stays valid
NUM_RANGE_PICTURES = 64  # that give the ranges of activations; 128 gave the same
NUM_NOISE = 16
MAX_CHANGED = 0.05  # share of verdicts
README, RESULT = "README.md", "export.json"


@dataclass(frozen=True, repr=False)
class ExportResult(Result):
    """An export and its comparison with the model.

    Attributes:
        path: the folder.
        format: as in `export`.
        resize: as in `export`.
        model: fingerprint of the model.
        fingerprint: that of the export; its embeddings are not comparable with the model's.
        calibration: source of the export's threshold, or the reason why it has none.
        comparison: figures of both.
    """

    path: Path
    format: str
    resize: str
    model: str
    fingerprint: str
    calibration: str
    comparison: ExportComparison

    def as_json(self) -> dict[str, Any]:
        """The result as plain data."""
        return {
            "path": str(self.path), "format": self.format, "resize": self.resize,
            "model": self.model, "fingerprint": self.fingerprint, "calibration": self.calibration,
            "comparison": self.comparison.as_json(),
        }  # fmt: skip

    def as_text(self) -> str:
        """A small table, and sentences below it."""
        rows = [("", "model", "export"), *comparison_rows(self.comparison)]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        notes = [*comparison_notes(self.comparison), f"calibration: {self.calibration}"]
        return "\n".join([*lines, *notes, f"written to {self.path}"])


def export(
    model: Model,
    out: str | Path,
    *,
    format: str = "onnx",
    resize: str = "outside",
    data: Data | None = None,
    root: str | Path | None = None,
    onnxruntime_web: str | Path | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> ExportResult:
    """Write a model for other runtimes, with its own threshold, and compare it with the model.

    Every format is a folder that `verify`, `evaluate` and the other commands take like a model. It
    cannot be trained further.

    Args:
        model: folder of a model or of a run, or a loaded model.
        out: new or empty folder.
        format: "onnx", with metadata to use the graph alone; "onnx-int8", quantised: smaller and
            faster, less exact; "openvino"; "hub", for a model hub, with the weights; "web", a page
            that compares pictures in a browser.
        resize: "outside", or with the formats "onnx" and "onnx-int8" "inside": the graph takes one
            picture of any size.
        data: labelled pictures to measure on, and for "onnx-int8" to find ranges with; by default
            those of the training: validation pictures to measure, training pictures for ranges.
        root: folder of a named set's local copy, or of a manifest's paths.
        onnxruntime_web: folder of the npm package onnxruntime-web, for "web"; fetched by npm if
            missing.
        seed: random seed for pairs and bootstrap.
        quiet: log warnings only.
    Returns:
        The folder and the comparison, which also lies in `out` as `export.json`.
    Raises:
        ConfigError: an unknown format, or one that this model does not have.
        DataError: `out` is not empty, or pictures are missing that were named or are needed.
        ModelError: no model, or one that was exported itself.
        MissingExtraError: a package is missing.

    Example:
        >>> twinlens.export("runs/photos", "photos-int8", format="onnx-int8")  # doctest: +SKIP
    """
    check_seed(seed)
    out = expand_user(out)
    with console_log(quiet):
        matcher = Matcher.of(model, "cpu")
        check_export(matcher.stored, format, resize)
        data = None if data is None else path_or_table(data, root)
        source = Path(data) if isinstance(data, str | Path) and Path(data).is_dir() else None
        check_output_folder(out, "the export", source)
        if out.resolve().is_relative_to(matcher.path.resolve()):
            raise DataError(f"{out} lies in the model {matcher.path}: name a folder elsewhere")
        selection = _labelled(matcher, data, root)
        ranges = _range_pictures(matcher, data, root) if format == "onnx-int8" else None
        with creating_folder(out, str(out.parent), "name another place") as part:
            exporter = _Exporter(matcher, selection, seed)
            if format == "web":
                result = exporter.write_web(part, onnxruntime_web)
            else:
                result = exporter.write(part, format, resize, ranges)
            finished, comparison, calibration = result
            _warn_of_changes(comparison)
            facts = ExportResult(
                out, format, resize, matcher.fingerprint, finished.description.fingerprint,
                calibration, comparison,
            )  # fmt: skip
            stored = {name: value for name, value in facts.as_json().items() if name != "path"}
            write_text(part / RESULT, json.dumps(stored, indent=1, allow_nan=False) + "\n")
            if format == "hub":
                readme = model_card(finished.description, card_facts(matcher), comparison)
            else:
                readme = export_readme(finished.description, comparison)
            if not (part / README).exists():
                write_text(part / README, readme)
    return facts


@dataclass(frozen=True, eq=False)
class _Exporter:
    """An export in the making: the model, and labelled pictures if there are any."""

    matcher: Matcher
    selection: Selection | None
    seed: int

    def write(
        self, folder: Path, form: str, resize: str, ranges: NDArray[np.uint8] | None
    ) -> tuple[StoredModel, ExportComparison, str]:
        """Write a calibrated export; returns it, its comparison and the calibration's source."""
        log.info("writing the graph")
        made = Matcher(write_model(self.matcher.stored, folder, form, resize, ranges), "cpu")
        measured, levels = self._measure(made)
        calibration, source = self._calibration(made, measured)
        own = (self.matcher.calibration, calibration)
        changes = (None, None) if measured is None else count_changes(measured.results, own)
        before_ms, after_ms = median_milliseconds(self._timed(made))
        comparison = ExportComparison(
            pairs=None if measured is None else measured.pairs,
            model_threshold=None if own[0] is None else own[0].threshold,
            export_threshold=None if own[1] is None else own[1].threshold,
            num_changed=changes[0],
            num_changed_at_model=changes[1],
            levels=levels,
            model_milliseconds=before_ms,
            export_milliseconds=after_ms,
            model_bytes=_graph_bytes(self.matcher.stored),
            export_bytes=_graph_bytes(made.stored),
        )
        return add_calibration(made.stored, calibration), comparison, source

    def write_web(
        self, folder: Path, runtime: str | Path | None
    ) -> tuple[StoredModel, ExportComparison, str]:
        """Write the page around an export of the format "onnx"."""
        from twinlens.exports.web import write_web

        with tempfile.TemporaryDirectory() as top:
            made, comparison, source = self.write(Path(top), "web", "outside", None)
            write_web(made, folder, None if runtime is None else Path(runtime))
        return read_stored_model(folder), comparison, source

    def _measure(self, made: Matcher) -> tuple[_Measured | None, LevelDifference | None]:
        if self.selection is None:
            return None, None
        levels, before_ND = None, self.matcher.embed_pixels(self.selection.pixels,
                                                            Progress("embedding"))  # fmt: skip
        if made.stored.description.resize == "inside":
            after_ND, levels = _embed_whole(made, self.selection)
        else:
            after_ND = made.embed_pixels(self.selection.pixels, Progress("embedding by the export"))
        comparisons = (self.matcher.comparison, made.comparison)
        table = self.selection.table
        found = compare_embeddings(table, (before_ND, after_ND), comparisons, seed=self.seed)
        return (None if found is None else _Measured(after_ND, *found)), levels

    def _calibration(
        self, made: Matcher, measured: _Measured | None
    ) -> tuple[Calibration | None, str]:
        """The calibration of the export, and its source in words."""
        before, description = self.matcher.calibration, made.stored.description
        if measured is not None:
            moved = measured.pairs.max_moved
        else:
            moved = np.inf if description.resize == "inside" else self._moved_by_noise(made)
        if before is not None and description.precision == "float32" and moved <= AGREEMENT:
            return before, f"that of the model, since distances agree to {AGREEMENT:.0e}"
        if measured is None or self.selection is None:
            again = (
                "export again with --data DATA"
                if description.resize == "inside"
                else ("twinlens calibrate OUT DATA")
            )
            return None, f"none, without labelled pictures: {again}"
        far = DEFAULT_FAR if before is None else before.target_far
        try:
            fitted = calibrate_on(
                measured.embeddings, self.selection.table, made.comparison, far, seed=self.seed,
                new_identities=not self.selection.is_closed,
            )  # fmt: skip
        except CalibrationError as error:
            return None, f"none: {error}"
        split = self.selection.split
        which = f"all {len(self.selection.table):,}" if split == "all" else f"the {split}"
        return fitted, f"fitted to the export's distances of {which} pictures"

    def _moved_by_noise(self, made: Matcher) -> float:
        noise_NCHW = self._noise(NUM_NOISE)
        distances = [
            each.comparison.matrix(emb_ND, emb_ND)
            for each in (self.matcher, made)
            for emb_ND in [each.embed_pixels(noise_NCHW)]
        ]
        return float(np.abs(distances[0] - distances[1]).max())

    def _noise(self, num: int) -> NDArray[np.uint8]:
        picture = self.matcher.picture
        shape = (num, picture.channels, *picture.size)
        return np.random.default_rng(self.seed).integers(0, 256, shape, dtype=np.uint8)

    def _timed(self, made: Matcher) -> list[Callable[[], object]]:
        """The embedding of one picture on one thread, by the model and by the export."""
        one, spec = self._noise(1), self.matcher.picture
        if self.selection is not None:
            one = np.asarray(self.selection.pixels[:1])
        before, after = (open_encoder(each.stored, "cpu", 1) for each in (self.matcher, made))
        if made.stored.description.resize == "outside":
            return [lambda: before.embed(one), lambda: after.embed(one)]
        if self.selection is not None:
            one = _whole(made, self.selection.table, 0)[None]
        whole_HWC = one[0].transpose(1, 2, 0)
        return [lambda: before.embed(to_array(whole_HWC, spec)[None]), lambda: after.embed(one)]


@dataclass(frozen=True, eq=False)
class _Measured:
    """Embeddings (N, D) of the export, and its pairs beside the model's."""

    embeddings: NDArray[np.float32]
    pairs: PairMeasures
    results: tuple[VerificationResult, VerificationResult]


def _warn_of_changes(comparison: ExportComparison) -> None:
    """Log a warning if so many verdicts change that the export is another model."""
    pairs, changed = comparison.pairs, comparison.num_changed
    if pairs is not None and changed is not None:
        share = changed / (pairs.num_genuine + pairs.num_impostor)
        if share > MAX_CHANGED:
            log.warning(
                "%.0f %% of the verdicts change: look at both EERs before you use this export",
                100 * share,
            )  # fmt: skip


def _labelled(
    matcher: Matcher, data: str | Path | ImageTable | None, root: str | Path | None
) -> Selection | None:
    """Labelled pictures to measure on; None, with a warning, if none are named or known."""
    if data is not None:
        return select_pictures(matcher, data, split="auto", prefer="val", root=root)
    try:
        source = _training_data(matcher)
        return select_pictures(matcher, source, split="auto", prefer="val", root=root)
    except TwinlensError as error:
        log.warning("the export is not measured on pictures: %s; or name others: --data", error)
        return None


def _training_data(matcher: Matcher) -> str:
    """Path or name of the training data.

    Raises:
        DataError: the model does not name it.
    """
    if matcher.origin is None or not matcher.origin.source:
        raise DataError(f"the model {matcher.path} does not name the data that it was trained on")
    return matcher.origin.source


def _range_pictures(
    matcher: Matcher, data: str | Path | ImageTable | None, root: str | Path | None
) -> NDArray[np.uint8]:
    """Pictures for the ranges of activations (N, H, W, C): training pictures, never test pictures.

    Raises:
        ConfigError: none are known.
    """
    try:
        source = _training_data(matcher) if data is None else data
        table = read_data(matcher, source, root)
    except TwinlensError as error:
        if data is not None:
            raise
        raise ConfigError(
            f"--format onnx-int8 finds the ranges of its numbers on pictures, and {error}: name "
            "pictures like those of the training with --data"
        ) from error
    table, _ = split_as_trained(matcher, find_record(matcher.path, matcher.origin), table)
    split = table.split.astype(str)
    rows = next((np.flatnonzero(split == name) for name in ("train", "val", "")
                 if name in split), np.empty(0, np.int64))  # fmt: skip
    if not len(rows):
        raise ConfigError(
            f"--format onnx-int8 takes no test pictures, and {table.source} has no others: name "
            "training or validation pictures with --data"
        )
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.choice(rows, min(NUM_RANGE_PICTURES, len(rows)), replace=False))
    decoded = decode_table(
        table.select(chosen), matcher.picture, max_pixels=matcher.max_pixels, max_broken=0.9
    )
    return np.ascontiguousarray(decoded.pixels.transpose(0, 2, 3, 1))


def _embed_whole(
    made: Matcher, selection: Selection
) -> tuple[NDArray[np.float32], LevelDifference]:
    """Embeddings (N, D) of pictures at their own size, and how their resizing differs."""
    graph = resizing_graph(made.picture).SerializeToString()
    options = ort.SessionOptions()
    options.log_severity_level = 3  # It warns of constants that this way of fitting does not need.
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    progress, num = Progress("embedding by the export"), len(selection.table)
    embeddings, means, largest = [], [], 0
    for row in range(num):
        whole_HWC = np.ascontiguousarray(_whole(made, selection.table, row).transpose(1, 2, 0))
        embeddings.append(made.embed([whole_HWC]))
        (resized,) = session.run(None, {"pixels": whole_HWC[None]})
        levels = resized[0].transpose(2, 0, 1).astype(np.int64) - selection.pixels[row]
        means.append(float(np.abs(levels).mean()))
        largest = max(largest, int(np.abs(levels).max()))
        progress(row + 1, num)
    return np.concatenate(embeddings), LevelDifference(float(np.mean(means)), largest)


def _whole(made: Matcher, table: ImageTable, row: int) -> NDArray[np.uint8]:
    """A picture of a table at its own size, uint8 (C, H, W)."""
    return read_array(table.picture(row), made.picture, max_pixels=made.max_pixels, resize=False)


def _graph_bytes(stored: StoredModel) -> int:
    """Size of the files that give embeddings."""
    names = {GRAPH, *OPENVINO_FILES} & stored.description.graphs.keys()
    return sum((stored.path / name).stat().st_size for name in names)
