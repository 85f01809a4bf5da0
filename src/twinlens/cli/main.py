"""The command line: each command is one public function.

Results go to standard output, progress and warnings to standard error. The exit code is 0, except:
`verify` exits with 1 for "different", `identify` with 1 unless every picture was identified, and
every error with 2 and one message, without a traceback. Nothing heavy is imported before a command
runs.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Iterable, Sequence

from twinlens._version import __version__
from twinlens.cli.arguments import Parser
from twinlens.cli.commands import COMMANDS
from twinlens.cli.gallery import GALLERY_COMMANDS
from twinlens.errors import ConfigError, TwinlensError, unknown_name

__all__ = ["main", "make_parser"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # File names need not be UTF-8.
    try:
        _check_name("command", words, COMMANDS)
        if words[:1] == ["gallery"]:
            _check_name("subcommand of gallery", words[1:], GALLERY_COMMANDS)
        args = make_parser().parse_args(words)
        code: int = args.run(args)
        sys.stdout.flush()
    except TwinlensError as error:
        print(f"twinlens: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        advice = f": {interrupt}" if str(interrupt) else ""
        print(f"twinlens: interrupted{advice}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `twinlens ... | head`: the flush at exit must not fail either.
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
    for name, command in COMMANDS.items():
        part = commands.add_parser(name, help=command.summary, description=command.summary)
        part.set_defaults(run=command.run)  # The subcommands of `gallery` have their own.
        command.add_arguments(part)
    return parser


def _check_name(kind: str, words: Sequence[str], names: Iterable[str]) -> None:
    """Refuse an unknown name; the message lists similar names.

    Raises:
        ConfigError: the first word is no option and no known name.
    """
    if words and not words[0].startswith("-") and words[0] not in names:
        raise ConfigError(unknown_name(kind, words[0], names))
