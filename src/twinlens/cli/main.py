"""The command line: one command = one public function.

Answers go to standard output, progress and warnings to standard error. Exit code 0, except that
`verify` gives 1 for "different", and `identify` where somebody was not identified; 2 for every
error, with one message and no traceback. Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from twinlens._version import __version__
from twinlens.cli.arguments import (
    MODEL_HELP,
    Parser,
    data_argument,
    json_argument,
    model_argument,
    print_found,
    print_json,
    quiet_argument,
)
from twinlens.cli.gallery import (
    add_gallery,
    add_identify,
    add_search,
    check_gallery_word,
    run_gallery,
    run_identify,
    run_search,
)
from twinlens.errors import ConfigError, TwinlensError, unknown_name

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # File names need not be UTF-8.
    try:
        if words and not words[0].startswith("-") and words[0] not in COMMANDS:
            raise ConfigError(unknown_name("command", words[0], COMMANDS))
        if words and words[0] == "gallery":
            check_gallery_word(words[1:])
        args = make_parser().parse_args(words)
        code: int = args.run(args)
        sys.stdout.flush()
    except TwinlensError as error:
        print(f"twinlens: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"twinlens: interrupted{interrupt}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `twinlens ... | head`: there is nobody to tell, at exit neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # A full disk, a folder without permission.
        print(f"twinlens: error: {error}", file=sys.stderr)
        return 2
    return code


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = Parser(
        prog="twinlens",
        description="Teach a computer which pictures show the same thing.",
        epilog="start with: twinlens demo",
    )
    parser.add_argument("--version", action="version", version=f"twinlens {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    for name, (summary, add_arguments, run) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        add_arguments(command)
        command.set_defaults(run=run)
    return parser


def _settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipe", default="auto", help="a name (see `twinlens recipes`) or .toml")
    parser.add_argument("--backbone", help="conv, mlp, residual, signet, strokes, or one of timm's")
    parser.add_argument("--weights", help="a local .safetensors or .pth file for the backbone")
    losses = "contrastive, triplet, bce, supcon, classes, or pml:ClassName"
    parser.add_argument("--loss", help=losses)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=float, help="how many times each picture")
    length.add_argument("--steps", type=int, help="how many batches")
    length.add_argument("--time-budget", metavar="TIME", help="how long in all: 90s, 5m, 1h")
    parser.add_argument("--split", choices=("identities", "images"), help="what is divided")
    parser.add_argument("--seed", type=int, help="0 by default")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override any setting"
    )


def _overrides(args: argparse.Namespace) -> dict[str, Any]:
    from twinlens.recipes import parse_overrides

    given = {
        "model.backbone": args.backbone,
        "model.weights": args.weights,
        "loss.name": args.loss,
        "train.epochs": args.epochs,
        "train.steps": args.steps,
        "train.time_budget": None if args.time_budget is None else _seconds(args.time_budget),
        "data.split": args.split,
        "seed": args.seed,
    }
    return {k: v for k, v in given.items() if v is not None} | parse_overrides(args.set)


def _seconds(text: str) -> float:
    """ "90s", "5m", "1h", or plain seconds."""
    units = {"s": 1, "m": 60, "h": 3600}
    number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "s")
    try:
        seconds = float(number) * units[unit]
    except ValueError:
        raise ConfigError(
            f"a time is a number and s, m or h (such as 5m), found '{text}'"
        ) from None
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"a time budget is longer than nothing, found '{text}'")
    return seconds


def _add_train(parser: argparse.ArgumentParser) -> None:
    data_argument(parser)
    parser.add_argument("--out", type=Path, help="the run folder (default: runs/NAME)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    _settings(parser)
    quiet_argument(parser)


def _run_train(args: argparse.Namespace) -> int:
    from twinlens.commands.train import train

    try:
        model = train(
            args.data, out=args.out, recipe=args.recipe, settings=_overrides(args),
            root=args.root, resume=args.resume, quiet=args.quiet,
        )  # fmt: skip
    except KeyboardInterrupt:
        run = "RUN (its folder in runs/)" if args.out is None else args.out
        raise KeyboardInterrupt(f": --resume --out {run} goes on with the run") from None
    print(model.path.parent)
    return 0


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    data_argument(parser)
    _settings(parser)
    json_argument(parser)
    quiet_argument(parser)
    parser.add_argument("--montage", type=Path, metavar="FILE.png", help="draw pairs and triplets")


def _run_inspect(args: argparse.Namespace) -> int:
    from twinlens.commands.inspect import inspect

    found = inspect(
        args.data, recipe=args.recipe, settings=_overrides(args), root=args.root,
        montage=args.montage, quiet=args.quiet,
    )  # fmt: skip
    print_found(found, args.json)
    return 0


def _add_calibrate(parser: argparse.ArgumentParser) -> None:
    model_argument(parser)
    data_argument(parser, nargs="?")  # Who names a gallery has none, and is told what to do.
    parser.add_argument("--far", type=float, default=0.01, help="target false accept rate (0.01)")
    _on(parser)
    json_argument(parser)
    quiet_argument(parser)


def _on(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--on", "--split", default="auto", metavar="SPLIT",
        help="train, val, test, all, or auto: the unseen",
    )  # fmt: skip


def _run_calibrate(args: argparse.Namespace) -> int:
    from twinlens.commands.calibrate import calibrate, explain
    from twinlens.model.stored import model_folder

    if args.data is None:
        model_folder(args.model)
        raise ConfigError("calibrate needs DATA: labelled pictures that the model has not seen")
    model = calibrate(
        args.model, args.data, far=args.far, split=args.on, root=args.root, quiet=args.quiet
    )
    found = model.require_calibration()
    if args.json:
        print_json(found.as_json())
    else:
        print(explain(found))
    return 0


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    model_argument(parser)
    data_argument(parser, nargs="?")
    _on(parser)
    parser.add_argument(
        "--protocol", default="standard", metavar="NAME",
        help="standard: verification, retrieval and one-shot episodes; nearest: each test picture "
             "(or --on) gets the identity of its nearest training picture, among what DATA gave "
             "as training, validation pictures that a run cut out of it included; open-set: "
             "half of the identities are enrolled, and strangers must be turned away",
    )  # fmt: skip
    parser.add_argument("--answers", type=Path, metavar="FILE.csv",
                        help="with nearest: write what each picture was taken for")  # fmt: skip
    parser.add_argument("--trials", type=Path, metavar="FILE.csv", help="measure these too")
    parser.add_argument("--pairs", type=int, metavar="N", help="N genuine and N impostor pairs")
    parser.add_argument("--way", type=int, help="identities in an episode (20)")
    parser.add_argument("--shot", type=int,
                        help="pictures of each of them, or of each enrolled one (1)")  # fmt: skip
    parser.add_argument("--rule", metavar="NAME",
                        help="with open-set, how an identity's pictures are fused: nearest "
                             "(default), mean or vote")  # fmt: skip
    parser.add_argument("--episodes", type=int, help="how many episodes (1000)")
    parser.add_argument("--report", type=Path, metavar="FILE.html", help="write a page to look at")
    parser.add_argument("--seed", type=int, default=0, help="draws pairs and replicates")
    json_argument(parser)
    quiet_argument(parser)


def _run_evaluate(args: argparse.Namespace) -> int:
    from twinlens.commands.evaluate import evaluate

    found = evaluate(
        args.model, args.data, protocol=args.protocol, split=args.on, trials=args.trials,
        pairs=args.pairs, way=args.way, shot=args.shot, episodes=args.episodes, rule=args.rule,
        report=args.report, answers=args.answers, root=args.root, seed=args.seed, quiet=args.quiet,
    )  # fmt: skip
    print_found(found, args.json)
    return 0


def _add_verify(parser: argparse.ArgumentParser) -> None:
    model_argument(parser)
    parser.add_argument("a", metavar="A", type=Path, help="a picture")
    parser.add_argument("b", metavar="B", type=Path, help="another picture")
    json_argument(parser)
    parser.add_argument("--show", type=Path, metavar="FILE.png", help="draw them and the verdict")


def _run_verify(args: argparse.Namespace) -> int:
    from twinlens.commands.verify import verify

    answer = verify(args.model, args.a, args.b, show=args.show)
    if args.json:
        print_json(answer.as_json())
    else:
        print(answer.explain())
    return 0 if answer.match else 1


def _add_embed(parser: argparse.ArgumentParser) -> None:
    model_argument(parser)
    data_argument(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.parquet")
    quiet_argument(parser)


def _run_embed(args: argparse.Namespace) -> int:
    from twinlens.commands.embed import embed

    rows = embed(args.model, args.data, out=args.out, root=args.root, quiet=args.quiet)
    print(f"{rows} embeddings in {args.out}")
    return 0


def _add_faces(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="IN", help="class folders of photographs, or a manifest")
    parser.add_argument("out", metavar="OUT", type=Path, help="a new folder for the faces")
    parser.add_argument("--root", type=Path, help="what a manifest's paths start from")
    parser.add_argument(
        "--detector", default="auto", metavar="NAME",
        help="yunet, haar, or auto: YuNet if its model can be had",
    )  # fmt: skip
    parser.add_argument("--model", type=Path, metavar="FILE.onnx", help="YuNet's model file")
    parser.add_argument("--score", type=float, default=0.5, help="least confidence (0.5)")
    parser.add_argument("--keep", default="best", help="of several faces the best, or largest")
    parser.add_argument("--size", type=int, metavar="N", help="write N x N (default: as they are)")
    parser.add_argument("--margin", type=float, default=0.0, metavar="SHARE", help="on each side")
    parser.add_argument(
        "--pad", type=float, default=0.0, metavar="SHARE",
        help="look with a border around each picture, a share of its longer side",
    )  # fmt: skip
    parser.add_argument("--align", action="store_true", help="level the eyes")
    parser.add_argument("--workers", type=int, metavar="N", help="processes")
    json_argument(parser)
    quiet_argument(parser)


def _run_faces(args: argparse.Namespace) -> int:
    from twinlens.commands.faces import faces

    found = faces(
        args.data, args.out, detector=args.detector, model=args.model, score=args.score,
        keep=args.keep, size=args.size, margin=args.margin, align=args.align, pad=args.pad,
        workers=args.workers, root=args.root, quiet=args.quiet,
    )  # fmt: skip
    print_found(found, args.json)
    return 0


def _add_cluster(parser: argparse.ArgumentParser) -> None:
    # No Path, which would make `s3:/bucket` of `s3://bucket`.
    parser.add_argument("model", metavar="MODEL", help=f"{MODEL_HELP}; or a gallery, alone")
    data_argument(parser, nargs="?")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a new folder")
    cut = parser.add_mutually_exclusive_group()
    cut.add_argument("--far", type=float, help="the FAR that the model must be calibrated for")
    cut.add_argument("--threshold", type=float, metavar="D", help="merge up to this mean distance")
    parser.add_argument(
        "--constraints", type=Path, metavar="FILE.csv", help="a,b,link: pairs that must or cannot"
    )
    parser.add_argument("--min-size", type=int, default=2, metavar="N", help="of a cluster (2)")
    parser.add_argument("--neighbours", type=int, metavar="K", help="that pictures merge by (32)")
    parser.add_argument("--copy", action="store_true", help="copy the pictures, do not link")
    parser.add_argument(
        "--labelled", action=argparse.BooleanOptionalAction,
        help="DATA says what the pictures show, so score the clusters by it "
             "(default: a folder does not, a manifest or a named set does)",
    )  # fmt: skip
    json_argument(parser)
    quiet_argument(parser)


def _run_cluster(args: argparse.Namespace) -> int:
    from twinlens.commands.cluster import cluster

    found = cluster(
        args.model, args.data, out=args.out, far=args.far, threshold=args.threshold,
        constraints=args.constraints, min_size=args.min_size, copy=args.copy,
        labelled=args.labelled, neighbours=args.neighbours, root=args.root, quiet=args.quiet,
    )  # fmt: skip
    print_found(found, args.json)
    return 0


def _add_recipes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", help="print this one")
    json_argument(parser)


def _run_recipes(args: argparse.Namespace) -> int:
    from twinlens import recipes

    if args.name is not None:
        text = recipes.recipe_text(args.name)
        if args.json:
            print_json({"name": args.name, "recipe": recipes.recipe_values(args.name)})
        else:
            print(text, end="")
        return 0
    found = {name: recipes.recipe_values(name) for name in recipes.recipe_names()}
    about = {name: values["about"].strip() for name, values in found.items()}
    if args.json:
        print_json({"recipes": about})
    else:
        for name, text in about.items():
            print(f"{name:20} {text.splitlines()[0]}")
    return 0


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    json_argument(parser)


def _run_doctor(args: argparse.Namespace) -> int:
    from twinlens.commands.doctor import as_text, doctor

    found = doctor()
    if args.json:
        print_json(found)
    else:
        print(as_text(found))
    return 0


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, help="the run folder (default: runs/demo)")
    quiet_argument(parser)


def _run_demo(args: argparse.Namespace) -> int:
    from twinlens.commands.demo import demo

    for line in demo(out=args.out, quiet=args.quiet):
        print(line)
    return 0


Command = tuple[
    str,
    Callable[[argparse.ArgumentParser], None],
    Callable[[argparse.Namespace], int],
]

COMMANDS: dict[str, Command] = {
    "train": ("train, calibrate and measure a model on pictures", _add_train, _run_train),
    "inspect": ("look at a data set before training on it", _add_inspect, _run_inspect),
    "calibrate": ("find a model's threshold on your pictures", _add_calibrate, _run_calibrate),
    "evaluate": ("measure a model on unseen pictures", _add_evaluate, _run_evaluate),
    "verify": ("are these two pictures of the same thing?", _add_verify, _run_verify),
    "gallery": ("make and keep a gallery of known identities", add_gallery, run_gallery),
    "identify": ("who of a gallery is this, or nobody?", add_identify, run_identify),
    "search": ("what in a gallery is most like this picture?", add_search, run_search),
    "embed": ("write the embeddings of pictures to a file", _add_embed, _run_embed),
    "faces": ("cut the faces out of photographs", _add_faces, _run_faces),
    "cluster": ("put pictures of the same thing together", _add_cluster, _run_cluster),
    "recipes": ("list the recipes, or print one", _add_recipes, _run_recipes),
    "doctor": ("what this machine is and how fast it learns", _add_doctor, _run_doctor),
    "demo": ("learn digits 0-6, then tell 7, 8 and 9 apart", _add_demo, _run_demo),
}
