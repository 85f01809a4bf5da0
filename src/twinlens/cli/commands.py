"""The commands of the command line: arguments, public function, and printing of each."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import twinlens
from twinlens.cli.arguments import (
    MODEL_HELP,
    Command,
    as_is_argument,
    data_argument,
    device_argument,
    json_argument,
    model_argument,
    print_json,
    quality_argument,
    quiet_argument,
    root_argument,
    show_argument,
    values_of,
)
from twinlens.cli.gallery import add_gallery, add_identify, add_search, show_identifications
from twinlens.cli.keys import add_keys, key_function
from twinlens.errors import ConfigError

__all__ = ["COMMANDS"]

SETTINGS = (
    "model.backbone", "model.weights", "loss.name", "train.epochs", "train.steps",
    "train.time_budget", "train.accept_licence", "data.split", "seed",
)  # fmt: skip
"""Settings with an option of their own; its `dest` is the key of the setting."""


# --- train, inspect -----------------------------------------------------------------------------


def _add_train(parser: argparse.ArgumentParser) -> None:
    data_argument(parser)
    parser.add_argument("--out", type=Path, help="run folder (default: runs/NAME)")
    parser.add_argument("--init", type=Path, metavar="RUN",
                        help="begin with the network of one's own model")  # fmt: skip
    parser.add_argument("--resume", action="store_true",
                        help="resume the run in --out; --steps, --epochs, --time-budget and "
                        "train.device may change")  # fmt: skip
    parser.add_argument("--devices", type=int, metavar="N",
                        help="train by N processes of this machine, each on a GPU of its own"
                        )  # fmt: skip
    _add_settings(parser)
    quiet_argument(parser)


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    data_argument(parser)
    _add_settings(parser)
    json_argument(parser)
    quiet_argument(parser)
    parser.add_argument(
        "--montage", type=Path, metavar="FILE.png", help="draw sample pairs and triplets"
    )


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipe", default="auto", help="a name (see `twinlens recipes`) or .toml")
    parser.add_argument("--backbone", dest="model.backbone", metavar="BACKBONE",
                        help="conv, mlp, residual, signet, strokes, or one of timm's")  # fmt: skip
    parser.add_argument("--weights", dest="model.weights", metavar="WEIGHTS",
                        help="a .safetensors or .pth file for the backbone")  # fmt: skip
    parser.add_argument("--accept-licence", dest="train.accept_licence", action="store_const",
                        const=True, help="take pretrained weights with a non-free licence too",
                        )  # fmt: skip
    parser.add_argument("--loss", dest="loss.name", metavar="LOSS",
                        help="contrastive, triplet, bce, supcon, classes, or pml:ClassName",
                        )  # fmt: skip
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", dest="train.epochs", metavar="EPOCHS", type=float,
                        help="passes over the training pictures")  # fmt: skip
    length.add_argument("--steps", dest="train.steps", metavar="STEPS", type=int,
                        help="number of batches")  # fmt: skip
    length.add_argument("--time-budget", dest="train.time_budget", metavar="TIME", type=_seconds,
                        help="total time: 90s, 5m, 1h")  # fmt: skip
    parser.add_argument("--split", dest="data.split", choices=("identities", "images"),
                        help="unit of the splits: whole identities, or images of each",
                        )  # fmt: skip
    parser.add_argument("--seed", dest="seed", metavar="SEED", type=int, help="random seed (0)")
    parser.add_argument("--set", dest="settings", metavar="KEY=VALUE", action="append", default=[],
                        help="override any setting; may be repeated")  # fmt: skip


def _add_fetch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("address", metavar="ADDRESS",
                        help="s3://bucket/folder, or a .zip, .tar or manifest at s3:// or https://",
                        )  # fmt: skip
    parser.add_argument("out", type=Path, metavar="FOLDER", help="new or empty folder")
    quiet_argument(parser)


def _add_pretrain(parser: argparse.ArgumentParser) -> None:
    data_argument(parser)
    parser.add_argument("--out", type=Path, help="run folder (default: runs/NAME)")
    parser.add_argument("--time-budget", dest="train.time_budget", metavar="TIME", type=_seconds,
                        help="total time: 90s, 5m, 1h")  # fmt: skip
    parser.add_argument("--set", dest="settings", metavar="KEY=VALUE", action="append", default=[],
                        help="override any setting; may be repeated")  # fmt: skip
    quiet_argument(parser)


def _add_pack(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("backbone", metavar="BACKBONE", help="one of timm's, auto: the best whose "
                        "weights are at hand, or an ONNX file that embeds pictures")  # fmt: skip
    data_argument(parser, nargs="?")
    parser.add_argument("--out", type=Path, required=True, metavar="MODEL", help="new folder")
    parser.add_argument("--weights", type=Path, metavar="FILE",
                        help="a .safetensors or .pth file for the backbone")  # fmt: skip
    parser.add_argument("--licence", metavar="TEXT",
                        help="licence of the given weights, stored with the model")  # fmt: skip
    parser.add_argument("--accept-licence", action="store_true",
                        help="take weights with a non-free licence too")  # fmt: skip
    parser.add_argument("--size", type=int, metavar="N", help="side of the network's pictures")
    parser.add_argument("--scale", type=float, metavar="N", help="of an ONNX file: value of the "
                        "brightest pixel before --mean and --std, 1 or 255 (1)")  # fmt: skip
    parser.add_argument("--mean", type=_numbers, metavar="N[,N,N]",
                        help="of an ONNX file: subtracted (0)")  # fmt: skip
    parser.add_argument("--std", type=_numbers, metavar="N[,N,N]",
                        help="of an ONNX file: divisor after --mean (1)")  # fmt: skip
    parser.add_argument("--bgr", action="store_true",
                        help="the ONNX file takes blue, green, red")  # fmt: skip
    parser.add_argument("--face", action="store_true", help="the network compares aligned faces, "
                        "which the model then finds in photographs")  # fmt: skip
    parser.add_argument("--far", type=float, default=0.01, help="target false accept rate (0.01)")
    _add_unlabelled(parser)
    parser.add_argument("--seed", type=int, default=0, help="random seed (0)")
    quiet_argument(parser)


def _numbers(text: str) -> tuple[float, ...]:
    """ "0.5" or "0.485,0.456,0.406"."""
    try:
        return tuple(map(float, text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"one number, or one for each channel such as 0.5,0.5,0.5, found '{text}'"
        ) from None


def _show_model(model: Any, args: argparse.Namespace) -> int:
    print(model.path)
    return 0


def _with_settings(args: argparse.Namespace) -> dict[str, Any]:
    from twinlens.recipes import parse_overrides

    values = values_of(args)
    options = {key: values.pop(key, None) for key in SETTINGS}
    overrides = {key: value for key, value in options.items() if value is not None}
    return values | {"settings": overrides | parse_overrides(args.settings)}


def _seconds(text: str) -> float:
    """ "90s", "5m", "1h", or plain seconds."""
    units = {"s": 1, "m": 60, "h": 3600}
    number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "s")
    try:
        seconds = float(number) * units[unit]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"a time is a number and s, m or h (such as 5m), found '{text}'"
        ) from None
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"a time budget must be above 0 seconds, found '{text}'")
    return seconds


def _show_run(model: Any, args: argparse.Namespace) -> int:
    print(model.path.parent)
    return 0


# --- models -------------------------------------------------------------------------------------


def _add_calibrate(parser: argparse.ArgumentParser) -> None:
    model_argument(parser)
    data_argument(parser, nargs="?")  # Optional here, so that a gallery's error comes first.
    parser.add_argument("--far", type=float, default=0.01, help="target false accept rate (0.01)")
    _add_split(parser)
    _add_unlabelled(parser)
    device_argument(parser)
    json_argument(parser)
    quiet_argument(parser)


def _add_unlabelled(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--unlabelled", type=float, nargs="?", const=0.05, metavar="SHARE",
                        help="use no labels; at most this share of random pairs is genuine (0.05, "
                        "as for 20 identities): less certain")  # fmt: skip


def _with_data(args: argparse.Namespace) -> dict[str, Any]:
    from twinlens.model.stored import model_folder

    if args.data is None:
        model_folder(args.model)
        raise ConfigError("calibrate needs DATA: labelled pictures that were not trained on")
    return values_of(args)


def _show_calibration(model: Any, args: argparse.Namespace) -> int:
    from twinlens.commands.calibrate import explain

    calibration = model.require_calibration()
    if args.json:
        print_json(calibration.as_json())
    else:
        print(explain(calibration))
    return 0


def _add_split(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--on", "--split", dest="split", default="auto", metavar="SPLIT",
                        help="train, val, test, all, or auto: unseen pictures")  # fmt: skip


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    model_argument(parser)
    data_argument(parser, nargs="?")
    _add_split(parser)
    parser.add_argument(
        "--protocol", default="standard", metavar="NAME",
        help="standard: verification, retrieval and one-shot accuracy; nearest: each test picture "
             "(or --on) gets the identity of its nearest training picture, validation pictures "
             "that training cut out of DATA included; open-set: half of the identities are "
             "enrolled, and strangers must be rejected",
    )  # fmt: skip
    parser.add_argument("--answers", type=Path, metavar="FILE.csv",
                        help="with nearest: write each picture's nearest identity")  # fmt: skip
    parser.add_argument("--trials", type=Path, metavar="FILE.csv",
                        help="evaluate given pairs or one-shot trials")  # fmt: skip
    parser.add_argument("--pairs", type=int, metavar="N", help="N genuine and N impostor pairs")
    parser.add_argument("--way", type=int, help="identities in an episode (20)")
    parser.add_argument("--shot", type=int, help="pictures of each of these identities, or "
                        "templates of each enrolled identity (1)")  # fmt: skip
    parser.add_argument("--rule", metavar="NAME", help="with open-set: fusion of an identity's "
                        "templates: nearest (default), mean or vote")  # fmt: skip
    parser.add_argument("--episodes", type=int, help="number of episodes (1000)")
    parser.add_argument("--prior", type=float, metavar="P", help="prior probability of a genuine "
                        "pair, for the calibration error (0.5)")  # fmt: skip
    parser.add_argument("--by", action="append", metavar="COLUMN", help="error rates by a column "
                        "of the manifest, of the trials, or by folder; may be repeated",
                        )  # fmt: skip
    parser.add_argument("--group-thresholds", action="store_true",
                        help="with --by: show a threshold for each group")  # fmt: skip
    parser.add_argument("--report", type=Path, metavar="FILE.html", help="write a report")
    parser.add_argument("--seed", type=int, default=0,
                        help="random seed for pairs, episodes and bootstrap (0)")  # fmt: skip
    device_argument(parser)
    json_argument(parser)
    quiet_argument(parser)


def _add_prior(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prior", type=float, default=0.5, metavar="P",
                        help="prior probability of a genuine pair, for probabilities (0.5)",
                        )  # fmt: skip


def _add_verify(parser: argparse.ArgumentParser) -> None:
    model_argument(parser)
    parser.add_argument("a", metavar="A", type=Path, help="a picture")
    parser.add_argument("b", metavar="B", type=Path, help="another picture")
    _add_prior(parser)
    quality_argument(parser)
    as_is_argument(parser)
    device_argument(parser)
    json_argument(parser)
    show_argument(parser, "draw both pictures and the verdict")
    parser.add_argument("--explain", type=Path, metavar="FILE.png",
                        help="draw the parts that make them alike or unlike")  # fmt: skip


def _show_verdict(answer: Any, args: argparse.Namespace) -> int:
    if args.json:
        print_json(answer.as_json())
    else:
        print(answer.explain())
    return 0 if answer.match else 1


def _add_embed(parser: argparse.ArgumentParser) -> None:
    model_argument(parser)
    data_argument(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE",
                        help="file to write or replace: .parquet, .lance, .csv, or .npy with its "
                        "rows beside it")  # fmt: skip
    as_is_argument(parser)
    device_argument(parser)
    parser.add_argument("--workers", type=int, metavar="N",
                        help="number of processes (1; with ray, one for each GPU or core)",
                        )  # fmt: skip
    parser.add_argument("--engine", default="processes", metavar="NAME",
                        help="processes (default) of this machine, or ray: a Ray cluster"
                        )  # fmt: skip
    parser.add_argument("--ray-address", metavar="ADDRESS",
                        help="address of the cluster (default: that of RAY_ADDRESS, else Ray is "
                        "started here)")  # fmt: skip
    quiet_argument(parser)


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, metavar="MODEL", help=MODEL_HELP)
    # No Path, which would make `s3:/bucket` of `s3://bucket`.
    parser.add_argument("--gallery", dest="galleries", action="append", default=[],
                        metavar="GALLERY", help="folder of a gallery, or s3://...; may be repeated",
                        )  # fmt: skip
    parser.add_argument("--data", type=Path, metavar="FOLDER",
                        help="folder for what is made by HTTP or the page: picture sets, runs, "
                        "galleries, jobs")  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS",
                        help="address to listen at (127.0.0.1); another needs --keys")  # fmt: skip
    parser.add_argument("--port", type=int, default=8000, help="port to listen at (8000)")
    parser.add_argument("--keys", type=Path, metavar="FILE", help="file of `twinlens keys`")
    parser.add_argument("--certificate", type=Path, metavar="FILE.pem",
                        help="TLS certificate chain")  # fmt: skip
    parser.add_argument("--private-key", type=Path, metavar="FILE.pem",
                        help="private key of the certificate")  # fmt: skip
    parser.add_argument("--workers", type=int, default=1, metavar="N",
                        help="number of processes (1)")  # fmt: skip
    device_argument(parser)
    parser.add_argument("--requests-a-minute", type=int, default=0, metavar="N",
                        help="limit for each key, or each address without keys (0: none)",
                        )  # fmt: skip


def _show_nothing(nothing: None, args: argparse.Namespace) -> int:
    return 0


def _add_export(parser: argparse.ArgumentParser) -> None:
    model_argument(parser)
    parser.add_argument("out", metavar="OUT", type=Path, help="new folder")
    parser.add_argument("--format", default="onnx", metavar="NAME",
                        help="onnx (default), onnx-int8: smaller and faster, openvino, hub: for a "
                        "model hub, or web: a page that compares pictures")  # fmt: skip
    parser.add_argument("--resize", default="outside", metavar="WHERE",
                        help="outside (default), or inside: an ONNX graph takes pictures of any "
                        "size")  # fmt: skip
    parser.add_argument("--data", metavar="DATA", help="labelled pictures to measure and calibrate "
                        "the export on (default: those of the training)")  # fmt: skip
    root_argument(parser)
    parser.add_argument("--onnxruntime-web", type=Path, metavar="FOLDER",
                        help="with web: the npm package (default: npm fetches it)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="random seed for pairs and bootstrap")
    json_argument(parser)
    quiet_argument(parser)


def _add_push(parser: argparse.ArgumentParser) -> None:
    model_argument(parser)
    parser.add_argument("repo", metavar="NAME/MODEL", help="repository at the hub, made if missing")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    quiet_argument(parser)


def _show_address(address: str, args: argparse.Namespace) -> int:
    print(address)
    return 0


def _show_count(num_rows: int, args: argparse.Namespace) -> int:
    print(f"{num_rows} embeddings in {args.out}")
    return 0


# --- pictures without a trained model, or without labels ----------------------------------------


def _add_faces(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="PHOTOS",
                        help="folder of photographs, unsorted or in class folders, or a manifest",
                        )  # fmt: skip
    parser.add_argument("out", metavar="OUT", type=Path, help="new folder for the faces")
    parser.add_argument("--root", type=Path, help="folder that a manifest's paths start from")
    parser.add_argument("--detector", default="auto", metavar="NAME",
                        help="yunet, haar, or auto: YuNet if its model is available",
                        )  # fmt: skip
    parser.add_argument("--model", type=Path, metavar="FILE.onnx", help="YuNet's model file")
    parser.add_argument("--score", type=float, default=0.5, help="least confidence (0.5)")
    parser.add_argument("--keep", help="faces to keep of several: best, largest or all (default: "
                        "all of unsorted photographs, else the best)")  # fmt: skip
    parser.add_argument("--size", type=int, metavar="N", help="write N x N (default: as they are)")
    parser.add_argument("--margin", type=float, default=0.0, metavar="SHARE",
                        help="margin on each side, as a share of the box")  # fmt: skip
    parser.add_argument("--pad", type=float, default=0.0, metavar="SHARE",
                        help="border around each picture before detection, as a share of its "
                        "longer side")  # fmt: skip
    parser.add_argument("--align", action="store_true", help="rotate so that the eyes are level")
    parser.add_argument("--workers", type=int, metavar="N", help="number of processes")
    json_argument(parser)
    quiet_argument(parser)


def _add_cluster(parser: argparse.ArgumentParser) -> None:
    # No Path, which would make `s3:/bucket` of `s3://bucket`.
    parser.add_argument("model", metavar="MODEL", help=f"{MODEL_HELP}; or a gallery, without DATA")
    data_argument(parser, nargs="?")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="new folder")
    cut = parser.add_mutually_exclusive_group()
    cut.add_argument("--far", type=float, help="merge at the threshold of this FAR, for which "
                     "the model is calibrated")  # fmt: skip
    cut.add_argument("--threshold", type=float, metavar="D", help="merge up to this mean distance")
    parser.add_argument("--method", metavar="NAME",
                        help="linkage, or hdbscan (default: the better on --validation, else "
                        "linkage up to 20,000 pictures)")  # fmt: skip
    parser.add_argument("--validation", metavar="LABELLED",
                        help="labelled pictures on which the method is chosen")  # fmt: skip
    parser.add_argument("--onto", type=Path, metavar="FOLDER",
                        help="an earlier clustering, whose clusters new pictures join")  # fmt: skip
    parser.add_argument("--constraints", type=Path, metavar="FILE.csv",
                        help="must_link and cannot_link pairs: a,b,link")  # fmt: skip
    parser.add_argument("--min-size", type=int, metavar="N",
                        help="least size of a cluster (2, with hdbscan 5)")  # fmt: skip
    parser.add_argument("--neighbours", type=int, metavar="K",
                        help="neighbours of each picture in the k-NN graph (32)")  # fmt: skip
    parser.add_argument("--copy", action="store_true", help="copy the pictures instead of linking")
    parser.add_argument("--labelled", action=argparse.BooleanOptionalAction,
                        help="score the clusters by the labels of DATA "
                        "(default: not for a folder, which is taken as unlabelled)",
                        )  # fmt: skip
    device_argument(parser)
    json_argument(parser)
    quiet_argument(parser)


def _add_audit(parser: argparse.ArgumentParser) -> None:
    data_argument(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="new folder")
    parser.add_argument("--model", type=Path, metavar="MODEL",
                        help="compare by this model (default: without training a network)",
                        )  # fmt: skip
    parser.add_argument("--apply", type=Path, metavar="FILE.csv",
                        help="write the manifest that the edited audit.csv corrects")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="random seed of the folds (0)")
    device_argument(parser)
    json_argument(parser)
    quiet_argument(parser)


# --- recipes, doctor, demo ----------------------------------------------------------------------


def _add_recipes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", help="print this recipe")
    json_argument(parser)


def _recipes(name: str | None = None) -> dict[str, Any]:
    """The values of a recipe, or the descriptions of all recipes."""
    from twinlens.recipes import recipe_names, recipe_values

    if name is not None:
        return {"name": name, "recipe": recipe_values(name)}
    return {"recipes": {key: recipe_values(key)["about"].strip() for key in recipe_names()}}


def _show_recipes(result: Mapping[str, Any], args: argparse.Namespace) -> int:
    from twinlens.recipes import recipe_text

    if args.json:
        print_json(result)
    elif args.name is not None:
        print(recipe_text(args.name), end="")
    else:
        for name, about in result["recipes"].items():
            print(f"{name:20} {about.splitlines()[0]}")
    return 0


def _show_machine(facts: Mapping[str, Any], args: argparse.Namespace) -> int:
    from twinlens.commands.doctor import as_text

    if args.json:
        print_json(facts)
    else:
        print(as_text(facts))
    return 0


def _add_glossary(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("word", metavar="WORD", nargs="*", default=(),
                        help="a term, or a part of one")  # fmt: skip


def _glossary(word: Sequence[str] = ()) -> str:
    """Terms of the field as text."""
    from twinlens.commands.glossary import as_text, glossary

    return as_text(glossary(" ".join(word) or None))


def _show_text(text: Any, args: argparse.Namespace) -> int:
    print(text)
    return 0


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    json_argument(parser)
    quiet_argument(parser)


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, help="run folder (default: runs/demo)")
    quiet_argument(parser)


def _show_lines(lines: Iterator[str], args: argparse.Namespace) -> int:
    for line in lines:
        print(line)
    return 0


COMMANDS: dict[str, Command] = {
    "train": Command(
        "train, calibrate and evaluate a model on pictures", _add_train, lambda: twinlens.train,
        show=_show_run, values=_with_settings,
    ),
    "fetch": Command(
        "download pictures from s3:// or https://", _add_fetch, lambda: twinlens.fetch,
        show=_show_text,
    ),
    "pretrain": Command(
        "train a start for drawings, which later trainings begin with", _add_pretrain,
        lambda: twinlens.pretrain, show=_show_text, values=_with_settings,
    ),
    "pack": Command(
        "make a model without training, of pretrained features or an ONNX file", _add_pack,
        lambda: twinlens.pack, show=_show_model,
    ),
    "inspect": Command(
        "report on a data set before training", _add_inspect, lambda: twinlens.inspect,
        values=_with_settings,
    ),
    "audit": Command(
        "find labels that are probably wrong, and correct them", _add_audit, lambda: twinlens.audit
    ),
    "calibrate": Command(
        "set a model's threshold on labelled pictures", _add_calibrate, lambda: twinlens.calibrate,
        show=_show_calibration, values=_with_data,
    ),
    "evaluate": Command(
        "evaluate a model on unseen pictures", _add_evaluate, lambda: twinlens.evaluate
    ),
    "verify": Command(
        "verify whether two pictures show the same thing", _add_verify, lambda: twinlens.verify,
        show=_show_verdict,
    ),
    "gallery": Command(
        "create and maintain a gallery of enrolled identities", add_gallery,
        lambda: twinlens.Gallery,
    ),
    "identify": Command(
        "identify pictures in a gallery, or answer nobody", add_identify,
        lambda: twinlens.identify, show=show_identifications,
    ),
    "search": Command(
        "find the pictures of a gallery nearest to a picture", add_search, lambda: twinlens.search
    ),
    "embed": Command(
        "write the embeddings of pictures to a file", _add_embed, lambda: twinlens.embed,
        show=_show_count,
    ),
    "export": Command(
        "write a model for other runtimes, and measure what it changes", _add_export,
        lambda: twinlens.export,
    ),
    "push": Command(
        "publish a model at the Hugging Face Hub, with a model card", _add_push,
        lambda: twinlens.push_to_hub, show=_show_address,
    ),
    "serve": Command(
        "serve models and galleries by HTTP, with a page", _add_serve, lambda: twinlens.serve,
        show=_show_nothing,
    ),
    "keys": Command(
        "manage the keys of a service's callers", add_keys, lambda: key_function("add_key")
    ),
    "faces": Command("crop the faces out of photographs", _add_faces, lambda: twinlens.faces),
    "cluster": Command(
        "group pictures of the same thing, without labels", _add_cluster, lambda: twinlens.cluster
    ),
    "recipes": Command(
        "list the recipes, or print one", _add_recipes, lambda: _recipes, show=_show_recipes
    ),
    "glossary": Command(
        "explain the terms of the field, or one of them", _add_glossary, lambda: _glossary,
        show=_show_text,
    ),
    "doctor": Command(
        "describe this machine and time its training steps", _add_doctor,
        lambda: twinlens.doctor, show=_show_machine,
    ),
    "demo": Command(
        "learn letters, then identify those of another script", _add_demo, lambda: twinlens.demo,
        show=_show_lines,
    ),
}  # fmt: skip
