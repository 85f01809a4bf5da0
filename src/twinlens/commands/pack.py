"""`twinlens pack`: a model without training, of pretrained features or of an ONNX network."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from twinlens._version import __version__
from twinlens.commands.calibrate import calibrate, calibrate_held_out
from twinlens.commands.run_lines import next_line, threshold_line
from twinlens.config import DataSettings, FaceSettings, ModelSettings, Settings
from twinlens.data.adapters import Data, path_or_table
from twinlens.data.folders import is_folder, read_table
from twinlens.data.pixel_cache import decode_table
from twinlens.data.table import ImageTable
from twinlens.data.walk import walk_pictures
from twinlens.errors import CalibrationError, ConfigError, naming_extras
from twinlens.face.marks import settings_of_files
from twinlens.files import check_output_folder, creating_folder, expand_user
from twinlens.match.matcher import Matcher
from twinlens.measure.bootstrap import check_seed
from twinlens.measure.domain import describe_pictures
from twinlens.measure.pairs import sample_pictures
from twinlens.model.stored import (
    GRAPH,
    MODEL_KEY,
    PICTURE_KEY,
    ModelDescription,
    Origin,
    StartRecord,
    file_sha256,
    fingerprint_of,
    store_calibration,
    write_description,
)
from twinlens.model.training_record import RECORD_FILE, TrainingRecord
from twinlens.progress import Progress, console_log
from twinlens.recipes import load_recipe

if TYPE_CHECKING:
    from twinlens.model.encoder import Encoder

__all__ = ["pack"]

log = logging.getLogger("twinlens")

MOST_SCALE = 65535

Levels = float | Sequence[float]


def pack(
    backbone: str | Path,
    data: Data | None = None,
    *,
    out: str | Path,
    weights: str | Path | None = None,
    licence: str | None = None,
    accept_licence: bool = False,
    size: int | None = None,
    scale: float | None = None,
    mean: Levels | None = None,
    std: Levels | None = None,
    bgr: bool = False,
    face: bool = False,
    far: float = 0.01,
    unlabelled: float | None = None,
    root: str | Path | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> Matcher:
    """Make a model without training: pretrained features, or an ONNX network that embeds pictures.

    With labelled pictures, features of a network of timm get the maps in closed form that are best
    on held-out identities, as `train` tries them, and the model is calibrated. An ONNX network
    stays as it is, and is calibrated.

    Args:
        backbone: name of a network of timm, "auto" for the best one whose weights are at hand, or
            an ONNX file whose output is one embedding (N, D) of each picture.
        data: pictures, labelled unless `unlabelled` is set; None leaves the model without a
            threshold, so that it ranks only.
        out: new folder of the model.
        weights: file of the network's weights, .safetensors or .pth; by default those of timm.
        licence: licence of the given weights or of the ONNX file, stored with the model.
        accept_licence: whether weights with a non-free licence are taken.
        size: side of the network's pictures, in pixels; by default that of its weights or graph.
        scale: of an ONNX network: value of the brightest pixel before `mean` and `std`, 1 or 255.
        mean: of an ONNX network: subtracted after that, one number or one for each channel; 0.
        std: of an ONNX network: divisor after that; 1.
        bgr: whether an ONNX network takes blue, green, red.
        face: whether the network compares aligned faces, which the model then finds in whole
            photographs. Set by itself if the pictures are crops of `faces`, whose crop is kept.
        far: target false accept rate, in (0, 1).
        unlabelled: as in `calibrate`: the threshold is set without labels.
        root: folder of a named set's copy, or of a manifest's paths.
        seed: random seed of folds, pairs and bootstrap.
        quiet: log warnings only.
    Returns:
        The model.
    Raises:
        CalibrationError: too few pictures for a threshold; no model is written.
        ConfigError: an unknown network, weights or a licence that are missing, or wrong values.
        DataError: pictures that cannot be read, or `out` in use.
        ModelError: an ONNX file that cannot be used.

    Example:
        >>> model = twinlens.pack("auto", "photos/", out="packed")  # doctest: +SKIP
        >>> model.verify("a.jpg", "b.jpg").match  # doctest: +SKIP
        True
    """
    if not 0 < far < 1:
        raise ConfigError(f"far must be in (0, 1), such as 0.01; found {far}")
    check_seed(seed)
    out = check_output_folder(expand_user(out), "the model")
    with console_log(quiet), naming_extras("pack"):
        data = None if data is None else path_or_table(data, root)
        files = _files(data)
        crop = settings_of_files(files, max_pixels=DataSettings().max_pixels)
        crop = FaceSettings(align=True) if crop is None and face else crop
        is_fitted = False
        with creating_folder(out, str(out.parent), "name another folder") as part:
            if str(backbone).lower().endswith(".onnx"):
                if weights is not None:
                    raise ConfigError("an ONNX file holds its weights: leave out --weights")
                picture = _Picture(size, scale, mean, std, bgr)
                _write_foreign(expand_user(backbone), picture, part, licence, crop)
            elif expand_user(backbone).is_file():
                raise ConfigError(
                    f"{backbone} is no ONNX file: needed is one (.onnx), or the name of a network "
                    "of timm, such as resnet18"
                )
            elif bgr or not scale is mean is std is None:
                raise ConfigError(
                    "--scale, --mean, --std and --bgr describe ONNX files; the values of "
                    f"{backbone} are known"
                )
            else:
                settings = _settings(
                    str(backbone), weights, size, seed, accept_licence=accept_licence
                )
                if data is not None and unlabelled is None:
                    is_fitted = _write_fitted(settings, data, root, part, far, licence, crop)
                if not is_fitted:
                    _write_plain(settings, part, licence, crop)
            if data is not None and not is_fitted:
                try:
                    calibrate(
                        part, data, far=far, split="all", unlabelled=unlabelled, root=root,
                        seed=seed, quiet=quiet,
                    )  # fmt: skip
                except CalibrationError as error:
                    # The advice of `calibrate` names a model, and there is none.
                    cause = (
                        error.__cause__ if isinstance(error.__cause__, CalibrationError) else error
                    )
                    more = "" if unlabelled is not None else "; --unlabelled needs no labels"
                    raise CalibrationError(
                        f"{cause}. Without these pictures the model ranks only{more}"
                    ) from error
        matcher = Matcher.load(out)
        if matcher.calibration is None:
            log.info(
                "the model ranks pictures, and has no threshold for verdicts yet: %s",
                matcher.calibration_advice,
            )
        else:
            log.info("%s", threshold_line(matcher.calibration))
            # Files of a folder are likely to show the same.
            near = ((a, b) for a, b in pairwise(files) if Path(a).parent == Path(b).parent)
            log.info("%s", next_line(out, data, next(near, None), calibrated=True))
        return matcher


def _files(data: str | Path | ImageTable | None) -> list[str]:
    """Paths of the pictures of a table or of a folder; none of other data."""
    if isinstance(data, ImageTable):
        return data.path.tolist() if data.pixels is None else []
    if data is None or not is_folder(data):
        return []
    folder = expand_user(data)
    return [str(folder / name) for name in walk_pictures(folder).pictures]


class _Picture(NamedTuple):
    """The pictures of an ONNX network, as the user describes them."""

    size: int | None
    scale: float | None
    mean: Levels | None
    std: Levels | None
    bgr: bool


def _settings(
    name: str, weights: str | Path | None, size: int | None, seed: int, *, accept_licence: bool
) -> Settings:
    """Settings of a network of timm with pretrained weights.

    Raises:
        ConfigError: no such network, or weights that are missing or whose licence is not accepted.
    """
    from twinlens.model.backbones import check_backbone
    from twinlens.model.device import pick_device
    from twinlens.model.hub import timm_record
    from twinlens.model.own_backbones import is_own
    from twinlens.model.pretrained import FREE, STARTS, best_start
    from twinlens.model.timm_backbones import has_pretrained

    if name == "auto":
        start = None
        if weights is None:
            start = best_start(pick_device("auto"), accept_licence=accept_licence)
        if start is None:
            raise ConfigError(
                f"no pretrained weights are at hand: put {STARTS[0].name}.safetensors (timm's) "
                "into a folder that TWINLENS_WEIGHTS names, or give a network of timm and --weights"
            )
        name = start.name
    check_backbone(name)
    if is_own(name) or (weights is None and not has_pretrained(name)):
        raise ConfigError(
            f"there are no pretrained weights for '{name}': name a network of timm, such as "
            f"{STARTS[0].name}, or train a model"
        )
    record = timm_record(name)
    kept = record.license or "unknown"
    if weights is None and kept not in FREE and not accept_licence:
        raise ConfigError(
            f"the weights of {name} have the licence '{kept}': --accept-licence takes them"
        )
    side = {start.name: start.size for start in STARTS}.get(name, record.input_size[-1])
    overrides = {
        "seed": seed,
        "picture.size": (side if size is None else size,) * 2,
        "picture.color": "rgb",
        "picture.mean": record.mean,
        "picture.std": record.std,
        "model.backbone": name,
        "model.pretrained": weights is None,
        "model.weights": None if weights is None else str(expand_user(weights)),
        "model.freeze": "all",
        "model.mirrored": False,
        "augment.flip": False,
    }
    return load_recipe("auto", overrides).settings()


def _write_plain(
    settings: Settings, out: Path, licence: str | None, crop: FaceSettings | None
) -> None:
    """Write the model of a network's features as they are, compared by their angles."""
    import torch

    from twinlens.model.encoder import Encoder

    encoder = Encoder(settings.model, settings.picture)
    dim = encoder.num_features
    encoder.model_settings = settings.model.model_copy(update={"embedding": dim})
    linear = torch.nn.Linear(dim, dim)
    with torch.no_grad():
        linear.weight.copy_(torch.eye(dim))
        linear.bias.zero_()
    encoder.head = torch.nn.Sequential(linear)
    _save(encoder.eval(), out, None, licence, crop)


def _save(
    encoder: Encoder,
    out: Path,
    origin: Origin | None,
    licence: str | None,
    crop: FaceSettings | None,
) -> Matcher:
    """Write the model of an encoder; its weights' licence is that of timm's record, or as given."""
    from twinlens.model.comparators import make_comparator
    from twinlens.model.networks import Networks, save_model
    from twinlens.model.pretrained import describe_start

    comparator = make_comparator("cosine", encoder.model_settings.embedding)
    models = [encoder.model_settings, *(member.model for member in encoder.members)]
    start = next(filter(None, map(describe_start, models)))
    start = start if licence is None else replace(start, licence=licence)
    save_model(out, Networks(encoder, comparator), origin, start, crop)
    return _loaded(out)


def _loaded(out: Path) -> Matcher:
    matcher = Matcher.load(out)
    start = matcher.stored.description.start
    assert start is not None
    log.info("weights: %s; licence: %s; source: %s", start.name, start.licence, start.source)
    if start.licence == "unknown":
        log.warning("the licence of the weights is unknown; --licence TEXT stores it")
    return matcher


def _write_fitted(
    settings: Settings,
    data: str | Path | ImageTable,
    root: str | Path | None,
    out: Path,
    far: float,
    licence: str | None,
    crop: FaceSettings | None,
) -> bool:
    """Write the model whose maps are fitted to labelled pictures, with its calibration.

    Returns:
        False if the identities are too few to hold some of them out; nothing is written then.
    """
    from twinlens.learn.candidates import network_candidates
    from twinlens.learn.embed_batch import LabelledPixels
    from twinlens.learn.model_selection import MOST_PICTURES, ModelSelection
    from twinlens.model.compute import choose_compute, deterministic

    table = read_table(data, root=None if root is None else Path(root))
    decoded = decode_table(
        table, settings.picture, max_pixels=settings.data.max_pixels,
        max_broken=settings.data.max_broken, progress=Progress("reading"),
    )  # fmt: skip
    for broken in decoded.broken:
        log.warning("skipped %s: %s", broken.path, broken.reason)
    labels, rng = decoded.table.labels(), np.random.default_rng(settings.seed)
    rows = sample_pictures(labels, MOST_PICTURES, rng)
    split = np.full(len(labels), "", dtype=object)
    split[rows] = "train"
    every = decoded.table.with_split(split)
    table, pixels = every.select(rows), decoded.rows(rows)
    images = LabelledPixels(decoded.pixels, rows, table.labels(), table.forged)
    with deterministic():
        selection = ModelSelection(
            settings, images, np.zeros(len(table), np.bool_), closed=False,
            frozen=(settings.model, settings.picture), seconds=None,
            compute=choose_compute(settings.model, settings.train),
            progress=lambda title: Progress(f"computing {title}"),
        )  # fmt: skip
        if not selection.folds:
            return False
        selection.add_features(network_candidates(settings.model, settings.picture))
        weights, (joined, *_), pairs = selection.choose()
        log.info(
            "chosen, with an EER of %.1f %% on held-out identities: %s", 100 * joined.eer,
            ", ".join(f"{w:.0%} {name}" for name, w in weights.items()),
        )  # fmt: skip
        encoder = selection.refit(weights, np.arange(len(table)))
    record = TrainingRecord.of_table(every, decoded.pixels)
    origin = Origin(
        table.source, table.fingerprint(), settings.seed, settings.data, record.id, refitted=True
    )
    matcher = _save(encoder, out, origin, licence, crop)
    record.save(out / RECORD_FILE)
    names = table.identity.astype(str)
    calibration = calibrate_held_out(pairs, names, far, seed=settings.seed, new_identities=True)
    if calibration is None:
        return True
    emb_ND = matcher.embed_pixels(pixels, Progress("embedding"))
    domain = describe_pictures(emb_ND, table, pixels, table, closed=False, seed=settings.seed)
    store_calibration(matcher.stored, calibration.as_json(), domain)
    return True


def _write_foreign(
    file: Path, given: _Picture, out: Path, licence: str | None, crop: FaceSettings | None
) -> None:
    """Write the model of an ONNX network.

    Raises:
        ConfigError: the scale of its pixels, or the size of its pictures, is not known.
        ModelError: it cannot be used.
    """
    from twinlens.exports.foreign_graph import (
        embedding_graph,
        embedding_size,
        input_layout,
        read_foreign,
    )
    from twinlens.exports.graph_file import write_graph

    if given.scale is given.mean is given.std is None:
        raise ConfigError(
            "an ONNX file does not say how its pixels are scaled: give --scale 255 for pixels as "
            "they are (as of SFace), or --mean and --std for pixels in [0, 1] (see the network's "
            "description)"
        )
    network = read_foreign(file)
    layout = input_layout(network)
    size = layout.size
    if given.size is not None:
        if size not in (None, (given.size, given.size)):
            raise ConfigError(f"{file} takes pictures of {size[0]} x {size[1]}: leave out --size")
        size = (given.size, given.size)
    if size is None:
        raise ConfigError(f"{file} takes pictures of any size: give --size, such as 112")
    if given.bgr and layout.channels == 1:
        raise ConfigError(f"{file} takes grey pictures: leave out --bgr")
    scale = 1.0 if given.scale is None else given.scale
    if not 0 < scale <= MOST_SCALE:
        raise ConfigError(f"scale must be in (0, {MOST_SCALE}], such as 1 or 255; found {scale:g}")
    mean, std = ([level / scale for level in _as_tuple(value, default)]
                 for value, default in ((given.mean, 0.0), (given.std, 1.0)))  # fmt: skip
    picture = load_recipe(
        "auto",
        {
            "picture.size": size,
            "picture.color": "rgb" if layout.channels == 3 else "grey",
            "picture.mean": mean,
            "picture.std": std,
        },
    ).settings().picture  # fmt: skip
    model = ModelSettings(backbone="onnx", embedding=embedding_size(network, layout, size))
    metadata = {
        "twinlens.version": __version__,
        PICTURE_KEY: picture.model_dump_json(),
        MODEL_KEY: model.model_dump_json(exclude={"weights", "pretrained"}),
    }
    start = StartRecord(file.name, licence or "unknown", file.name, "unknown")
    graph = embedding_graph(network, layout, picture, bgr=given.bgr)
    write_graph(graph, out / GRAPH, metadata)
    description = ModelDescription(
        picture=picture, model=model, weights=None, fingerprint="0" * 16, start=start,
        face=crop,
        graphs={GRAPH: file_sha256(out / GRAPH)},
    )  # fmt: skip
    values = description.model_dump(mode="json")
    write_description(out, values | {"fingerprint": fingerprint_of(values)})
    _loaded(out)


def _as_tuple(value: Levels | None, default: float) -> tuple[float, ...]:
    if value is None:
        return (default,)
    return (float(value),) if isinstance(value, int | float) else tuple(map(float, value))
