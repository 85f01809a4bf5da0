"""The commands of a service's keys: `twinlens keys add|list|remove FILE`.

A subcommand is a function of `service.keys`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from twinlens.cli.arguments import Parser, json_argument, print_result, values_of

__all__ = ["KEY_COMMANDS", "add_keys", "key_function"]


def add_keys(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands of `twinlens keys`."""
    commands = parser.add_subparsers(metavar="SUBCOMMAND", required=True, parser_class=Parser)
    for name, (summary, add_arguments, function) in KEY_COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        command.add_argument("file", metavar="FILE", type=Path, help="file of hashed keys")
        add_arguments(command)
        json_argument(command)
        command.set_defaults(run=partial(_run, function))


def key_function(name: str) -> Callable[..., Any]:
    """A function of `service.keys`, which is loaded now."""
    from twinlens.service import keys

    function: Callable[..., Any] = getattr(keys, name)
    return function


def _run(function: str, args: argparse.Namespace) -> int:
    return print_result(key_function(function)(**values_of(args)), args)


def _add_add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", required=True, metavar="NAME", help="for logs, and to remove it")
    parser.add_argument("--role", default="read", metavar="ROLE",
                        help="read (default): verify and identify; enrol: add and correct "
                        "templates too; admin: everything")  # fmt: skip


def _add_list(parser: argparse.ArgumentParser) -> None:
    """FILE is the only argument."""


def _add_remove(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", required=True, metavar="NAME", help="name of the key")


KEY_COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], Any], str]] = {
    "add": ("add a new key, and print it this once", _add_add, "add_key"),
    "list": ("list names and roles", _add_list, "list_keys"),
    "remove": ("remove a key, which running services refuse at once", _add_remove, "remove_key"),
}
"""Summary, arguments, and name of the function."""
