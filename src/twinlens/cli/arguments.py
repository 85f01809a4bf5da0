"""Arguments that many commands share, and how a command prints what it found.

This module knows no command. Nothing heavy is imported.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol

from twinlens.errors import ConfigError

__all__ = [
    "DATA_HELP",
    "Found",
    "Parser",
    "data_argument",
    "json_argument",
    "model_argument",
    "print_found",
    "print_json",
    "quiet_argument",
]

DATA_HELP = "a folder, a manifest (.csv, .parquet), or a named set such as digits"
MODEL_HELP = "a run folder or its model folder"


class Parser(argparse.ArgumentParser):
    """Reports a wrong argument as every other error: one message, exit code 2.

    Options may stand anywhere, before, among and after the other words.
    """

    _is_intermixing = False

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{message} (see `{self.prog} --help`)")

    # argparse takes an optional word (`[DATA]`) for left out as soon as an option comes first.
    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse's, twice where there are no subcommands: options first, then the others."""
        if self._is_intermixing or self._subparsers is not None:
            return super().parse_known_args(args, namespace)
        self._is_intermixing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_intermixing = False


class Found(Protocol):
    """What a command found."""

    def as_json(self) -> dict[str, Any]:
        """As plain data."""

    def as_text(self) -> str:
        """In words."""


def data_argument(parser: argparse.ArgumentParser, **more: Any) -> None:
    """DATA, and `--root` of a named set."""
    parser.add_argument("data", metavar="DATA", help=DATA_HELP, **more)
    parser.add_argument("--root", type=Path, help="where the copy of a named set lies")


def model_argument(parser: argparse.ArgumentParser) -> None:
    """MODEL."""
    parser.add_argument("model", metavar="MODEL", type=Path, help=MODEL_HELP)


def json_argument(parser: argparse.ArgumentParser) -> None:
    """`--json`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def quiet_argument(parser: argparse.ArgumentParser) -> None:
    """`--quiet`."""
    parser.add_argument("--quiet", action="store_true", help="say only warnings")


def print_json(values: Any) -> None:
    """Print one JSON object on one line."""
    print(json.dumps(values, ensure_ascii=False, allow_nan=False))


def print_found(found: Found, as_json: bool) -> None:
    """Print what was found, as JSON or in words."""
    if as_json:
        print_json(found.as_json())
    else:
        print(found.as_text())
