"""The command line: each command is one public function.

Results go to standard output, progress and warnings to standard error. The exit code is 0, except:
`verify` exits with 1 for "different", `identify` with 1 unless every picture was identified, and
every error with 2 and one message, without a traceback. SIGINT (Ctrl-C), SIGTERM and SIGHUP end a
command alike: it cleans up, says what is kept, and exits with 128 and the signal's number. A second
signal ends it at once. Nothing heavy is imported before a command runs, and nothing of twinlens
before signals are handled.
"""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    import argparse
    from types import FrameType

__all__ = ["main", "make_parser"]

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP")
           if hasattr(signal, name)]  # fmt: skip

KEPT: Mapping[str, str] = {
    "embed": "the same command embeds the rest",
    "gallery enrol": "what is enrolled so far is kept; the same command enrols the rest",
    "gallery import": "what is enrolled so far is kept; the same command enrols the rest",
    "serve": "nothing was served yet; the same command starts again",
    "gallery": "the gallery is intact; run the same command again to complete it",
}
"""What an interrupted command keeps, if not only its complete files. `train` has its own text."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    started = time.monotonic()
    words = list(sys.argv[1:] if argv is None else argv)
    _open_closed_streams()
    with _signals_raised() as received:
        try:
            code = _run(words, started)
        except BaseException as error:
            from twinlens.cli.terminal import escaped_streams

            with escaped_streams():
                known = _explain(error, words, interrupted=bool(received))
            if known is None:
                raise  # SystemExit of --help; a fault of twinlens.
            code = known
    for stream in (sys.stdout, sys.stderr):
        _flush(stream)
    if argv is None:
        gc.freeze()  # The process ends: a search of half a million objects would take a second.
    return 128 + received[0] if received else code


def _run(words: Sequence[str], started: float) -> int:
    from twinlens.cli.commands import COMMANDS
    from twinlens.cli.gallery import GALLERY_COMMANDS
    from twinlens.cli.keys import KEY_COMMANDS
    from twinlens.cli.terminal import escaped_streams
    from twinlens.errors import naming_extras
    from twinlens.progress import COMMAND_START

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # File names need not be UTF-8.
    _check_name("command", words, COMMANDS)
    for name, subcommands in (("gallery", GALLERY_COMMANDS), ("keys", KEY_COMMANDS)):
        if words[:1] == [name]:
            _check_name(f"subcommand of {name}", words[1:], subcommands)
    with escaped_streams():
        token = COMMAND_START.set(started)
        try:
            args = make_parser().parse_args(words)
            with naming_extras():
                code: int = args.run(args)
        finally:
            COMMAND_START.reset(token)
            sys.stdout.flush()  # After --help too, which raises SystemExit.
    return code


def _explain(error: BaseException, words: Sequence[str], *, interrupted: bool) -> int | None:
    """Report an error that is no fault of twinlens; returns its exit code."""
    from twinlens.errors import TwinlensError
    from twinlens.files import is_full

    if isinstance(error, TwinlensError):
        return _report(f"error: {error}", 2)
    if isinstance(error, BrokenPipeError):  # `twinlens ... | head`
        return 141
    if interrupted or isinstance(error, KeyboardInterrupt):  # An interrupted import raises others.
        return _report(f"interrupted: {_kept(error, words)}", 128 + signal.SIGINT)
    if isinstance(error, OSError):
        # All files but standard output name themselves.
        is_output = error.filename is None and is_full(error)
        text = f"cannot write to standard output: {error.strerror}" if is_output else str(error)
        return _report(f"error: {text}", 2)
    return None


@contextmanager
def _signals_raised() -> Iterator[list[int]]:
    """Raise the first signal as `KeyboardInterrupt`; a second one ends the process at once.

    Signals that are ignored, as by nohup, stay so. Python handles signals in its main thread only.

    Yields:
        The number of the signal, once it is received.
    """
    received: list[int] = []
    handled = SIGNALS if threading.current_thread() is threading.main_thread() else []
    before = {number: signal.getsignal(number) for number in handled}
    before = {n: old for n, old in before.items() if old not in (signal.SIG_IGN, None)}

    def receive(number: int, _: FrameType | None) -> None:
        received.append(number)
        for other in before:
            signal.signal(other, signal.SIG_DFL)
        raise KeyboardInterrupt

    try:
        for number in before:
            signal.signal(number, receive)
        yield received
    finally:
        if not received:
            for number, old in before.items():
                signal.signal(number, old)


def _kept(error: BaseException, words: Sequence[str]) -> str:
    if isinstance(error, KeyboardInterrupt) and str(error):
        return str(error)
    names = (" ".join(words[:2]), *words[:1])
    return next(
        (KEPT[name] for name in names if name in KEPT), "only files that were complete are written"
    )


def _report(message: str, code: int) -> int:
    """Write a message to standard error, if anyone still reads it; returns the code."""
    from twinlens.errors import message_lines

    with suppress(OSError, ValueError):
        print(f"twinlens: {message_lines(message)}", file=sys.stderr)
    return code


def _open_closed_streams() -> None:
    """Replace streams that the caller closed, so that no file takes their numbers."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115


def _flush(stream: TextIO) -> None:
    """Flush a stream; one that fails is dropped, since Python flushes it again at its end."""
    try:
        stream.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    from twinlens._version import __version__
    from twinlens.cli.arguments import Parser
    from twinlens.cli.commands import COMMANDS

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
    from twinlens.errors import ConfigError, unknown_name

    if words and not words[0].startswith("-") and words[0] not in names:
        raise ConfigError(unknown_name(kind, words[0], names))
