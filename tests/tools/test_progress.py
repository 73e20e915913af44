"""On a terminal the line renews itself and goes; elsewhere it is rare and stays."""

from __future__ import annotations

import io

from tools.progress import PLAIN_EVERY_S, RENEW_S, Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_on_a_terminal_one_line_renews_itself_and_is_gone_at_the_end():
    stream, clock = Terminal(), Clock()
    with Progress(stream, now=clock) as progress:
        progress.show("one")
        progress.show("too soon")
        clock.now += 2 * RENEW_S
        progress.show("two")
        progress.say("stays")

    drawn = stream.getvalue()
    assert "\n" not in drawn.split("stays")[0]
    assert "one" in drawn
    assert "two" in drawn
    assert "too soon" not in drawn
    assert drawn.endswith("\x1b[Kstays\n")


def test_a_line_that_is_still_drawn_is_wiped_at_the_end():
    stream = Terminal()
    with Progress(stream) as progress:
        progress.show("one")

    assert stream.getvalue().endswith("\r\x1b[K")


def test_a_line_is_never_longer_than_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    stream = Terminal()
    with Progress(stream) as progress:
        progress.show("x" * 100)

    assert stream.getvalue().count("x") == 19


def test_elsewhere_a_line_comes_now_and_then_and_stays():
    stream, clock = io.StringIO(), Clock()
    with Progress(stream, now=clock) as progress:
        progress.show("at once")
        clock.now += PLAIN_EVERY_S
        progress.show("one")
        progress.show("too soon")

    assert stream.getvalue() == "one\n"
