"""Progress: lines in a log, a bar on a terminal, and nothing on standard output."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from twinlens import progress
from twinlens.progress import Progress, console_log, format_duration

Capture = pytest.CaptureFixture[str]
log = logging.getLogger("twinlens")


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_line_every_ten_seconds(clock: Clock, capsys: Capture) -> None:
    with console_log():
        show = Progress("reading")
        for second in range(1, 26):
            clock.now += 1
            show(second * 4, 200)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "reading: 40 of 200 pictures, 4/s, 40 s left",
        "reading: 80 of 200 pictures, 4/s, 30 s left",
    ]


def test_short_work_logs_nothing(clock: Clock, capsys: Capture) -> None:
    with console_log():
        show = Progress("reading")
        clock.now += 9
        show(200, 200)
    assert capsys.readouterr() == ("", "")


def test_units_and_notes(clock: Clock, capsys: Capture) -> None:
    with console_log():
        show = Progress("training", "steps")
        show.note = "loss 0.123"
        clock.now += 20
        show(10, 100)
        show(0, 100)  # Nothing done has no rate.
    assert capsys.readouterr().err == (
        "training: 10 of 100 steps, 0.5/s, 3 min 0 s left, loss 0.123\n"
    )


def test_nothing_without_console_log_or_when_quiet(clock: Clock, capsys: Capture) -> None:
    show = Progress("reading")
    clock.now += 100
    show(1, 2)
    with console_log(quiet=True):
        clock.now += 100
        show(2, 2)
    assert capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with console_log():
        show = Progress("reading")
        show.note = "so far so good"
        show(1, 4)
        log.info("a line above it")
        show(4, 4)
        assert show._bar is None
        show.close()
    drawn = terminal.getvalue()
    assert "reading" in drawn
    assert "25%" in drawn
    assert "1/4" in drawn
    assert "a line above it\n" in drawn
    assert capsys.readouterr().out == ""


def test_close_removes_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with console_log():
        show = Progress("reading")
        show(1, 4)
        assert show._bar is not None
        show.close()
        assert show._bar is None


def test_console_log_restores_handlers_and_level(capsys: Capture) -> None:
    before = list(log.handlers), log.level
    with console_log():
        log.info("shown")
        log.warning("first")
        log.debug("not shown")
    assert (log.handlers, log.level) == before
    with console_log(quiet=True):
        log.info("not shown")
        log.warning("second")
    with pytest.raises(RuntimeError), console_log():
        raise RuntimeError
    assert (log.handlers, log.level) == before
    assert capsys.readouterr() == ("", "shown\nwarning: first\nwarning: second\n")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (3599.7, "1 h 0 min"),
     (7500, "2 h 5 min")],
)  # fmt: skip
def test_durations(seconds: float, words: str) -> None:
    assert format_duration(seconds) == words
