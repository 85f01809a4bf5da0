"""Shared parts of the command line: the parser, shared arguments, and printing.

An argument has the name of the function's parameter as its `dest`. A test compares both, with
their defaults. This module is independent of the commands and imports nothing heavy.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from twinlens.errors import ConfigError

__all__ = ["DATA_HELP", "MODEL_HELP", "Command", "Parser", "as_is_argument",
           "data_argument", "device_argument", "json_argument", "model_argument",
           "print_json", "print_result", "quality_argument", "quiet_argument",
           "root_argument", "show_argument", "values_of"]  # fmt: skip

DATA_HELP = "a folder, manifest (.csv, .tsv, .parquet), list of pairs, .tar, or set such as digits"
MODEL_HELP = "folder of a model or of a run, or hf://name/model"
NO_PARAMETERS = ("json", "run")  # of the namespace, used by the command line alone


class Parser(argparse.ArgumentParser):
    """A parser that raises its errors, and takes options in any position."""

    _is_intermixing = False

    def error(self, message: str) -> NoReturn:
        """Raise the message that argparse would print.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{message} (see `{self.prog} --help`)")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Write the help or the version; argparse overlooks a full disk."""
        (sys.stderr if file is None else file).write(message)

    # argparse takes an optional positional (`[DATA]`) for missing if an option precedes it.
    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse options first and positionals second, unless there are subcommands.

        Raises:
            ConfigError: unknown arguments, here, where the command is known.
        """
        if self._is_intermixing or self._subparsers is not None:
            return super().parse_known_args(args, namespace)
        self._is_intermixing = True
        try:
            values, unknown = self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_intermixing = False
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return values, unknown


def values_of(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments for the function of a command."""
    return {name: value for name, value in vars(args).items() if name not in NO_PARAMETERS}


def print_json(values: Any) -> None:
    """Print one JSON object on one line."""
    print(json.dumps(values, ensure_ascii=False, allow_nan=False))


def print_result(result: Any, args: argparse.Namespace) -> int:
    """Print a result as JSON or as text; returns exit code 0."""
    if args.json:
        print_json(result.as_json())
    else:
        print(result.as_text())
    return 0


@dataclass(frozen=True)
class Command:
    """A command of the command line.

    Attributes:
        summary: one line of help.
        add_arguments: adds the arguments to the command's parser.
        function: loads the public function.
        show: prints its result; returns the exit code.
        values: arguments of the function.
    """

    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    function: Callable[[], Callable[..., Any]]
    show: Callable[[Any, argparse.Namespace], int] = print_result
    values: Callable[[argparse.Namespace], dict[str, Any]] = values_of

    def run(self, args: argparse.Namespace) -> int:
        """Call the function and print its result; returns the exit code."""
        return self.show(self.function()(**self.values(args)), args)


def data_argument(parser: argparse.ArgumentParser, **more: Any) -> None:
    """DATA and `--root`."""
    parser.add_argument("data", metavar="DATA", help=DATA_HELP, **more)
    root_argument(parser)


def root_argument(parser: argparse.ArgumentParser) -> None:
    """`--root`."""
    parser.add_argument(
        "--root", type=Path, help="folder of a named set's copy, or of a manifest's paths"
    )


def model_argument(parser: argparse.ArgumentParser) -> None:
    """MODEL."""
    parser.add_argument("model", metavar="MODEL", type=Path, help=MODEL_HELP)


def show_argument(parser: argparse.ArgumentParser, text: str) -> None:
    """`--show`."""
    parser.add_argument("--show", type=Path, metavar="FILE.png", help=text)


def quality_argument(parser: argparse.ArgumentParser) -> None:
    """`--min-quality`."""
    parser.add_argument("--min-quality", type=float, metavar="SCORE",
                        help="refuse pictures of a lower quality, in [0, 1] (default: refuse none)",
                        )  # fmt: skip


def json_argument(parser: argparse.ArgumentParser) -> None:
    """`--json`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def device_argument(parser: argparse.ArgumentParser) -> None:
    """`--device`."""
    parser.add_argument("--device", default="auto", metavar="NAME",
                        help="computes embeddings: cpu, cuda, cuda:1, coreml, openvino, directml, "
                        "or auto: CUDA if ONNX Runtime has it")  # fmt: skip


def as_is_argument(parser: argparse.ArgumentParser) -> None:
    """`--as-is`."""
    parser.add_argument("--as-is", action="store_true", help="take pictures as they are; otherwise "
                        "a model of cropped faces finds the faces in them")  # fmt: skip


def quiet_argument(parser: argparse.ArgumentParser) -> None:
    """`--quiet`."""
    parser.add_argument("--quiet", action="store_true", help="log warnings only")
