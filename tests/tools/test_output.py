"""Goal: answers are readable, complete, and harmless to a terminal. Method: print small answers and compare lines."""

from __future__ import annotations

import io
import re
import sys
import time

import pytest

from tools.output import CELL_CHARS_MAX, escape, format_cell, print_answer, print_json


class Terminal(io.StringIO):
    def isatty(self):
        return True


def printed(capsys, value, columns=()):
    print_answer(value, columns=columns)
    return capsys.readouterr().out.splitlines()


def test_an_object_is_shown_as_aligned_pairs_and_its_lists_as_tables(capsys):
    answer = {
        "taskId": "tsk_1",
        "status": "SUCCESS",
        "lastError": None,
        "steps": [{"name": "a", "attempt": 1, "hidden": 5}, {"name": "long-name", "attempt": 12}],
    }

    assert printed(capsys, answer, ["attempt", "name"]) == [
        "taskId     tsk_1",
        "status     SUCCESS",
        "lastError  -",
        "",
        "steps:",
        "ATTEMPT  NAME",
        "1        a",
        "12       long-name",
    ]


def test_a_table_without_any_chosen_column_shows_all_that_say_something(capsys):
    rows = [{"agent": "echo", "nodes": ["a", "b"], "timeoutMs": None}]

    assert printed(capsys, rows, ["taskId"]) == ["AGENT  NODES", "echo   a, b"]


def test_an_empty_list_says_so(capsys):
    assert printed(capsys, []) == ["(none)"]


def test_sentences_are_shown_one_a_line(capsys):
    assert printed(capsys, {"why": ["node b owned it", "it died"]}) == ["", "why:", "node b owned it", "it died"]


def test_times_are_shown_as_ages_and_durations():
    assert format_cell("createdAtMs", 1_000, now_ms=61_000) == "1m ago"
    assert format_cell("lastHeartbeatMs", 1_000, now_ms=61_000) == "1m ago"
    assert format_cell("queueLagMs", 1_500, now_ms=0) == "1s"
    assert format_cell("deadAtMs", 0, now_ms=0) == "-"
    assert format_cell("ok", True, now_ms=0) == "yes"
    assert format_cell("load", 0.5, now_ms=0) == "0.5"


def test_ages_are_counted_from_the_wall_clock(capsys):
    assert printed(capsys, {"atMs": 1, "seenAtMs": time.time() * 1000 - 5_500}) == ["at    1ms", "seen  5s ago"]


def test_control_characters_of_a_peer_cannot_reach_the_terminal(capsys):
    hostile = "ok\x1b[2J\nnext\u202e"

    (line,) = printed(capsys, {"lastError": hostile})

    assert line == r"lastError  ok\x1b[2J\nnext\u202e"
    assert escape("straße ✓") == "straße ✓"


def test_a_cell_at_the_limit_stays_whole_and_a_longer_one_is_cut(capsys):
    lines = printed(capsys, [{"a": "x" * CELL_CHARS_MAX}, {"a": "x" * (CELL_CHARS_MAX + 1)}])

    assert lines[1:] == ["x" * CELL_CHARS_MAX, "x" * (CELL_CHARS_MAX - 1) + "…"]


def test_a_terminal_gets_a_table_and_markup_of_agents_stays_text(monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")

    print_answer([{"status": "ALIVE", "error": "[red]no[/red]"}])

    assert "[red]no[/red]" in terminal.getvalue()
    assert "\x1b[" in terminal.getvalue()


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_a_terminal_that_wants_no_colours_gets_none(monkeypatch, name, value):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv(name, value)

    print_answer([{"status": "ALIVE", "nodeId": "a"}])

    assert terminal.getvalue() == "STATUS  NODE_ID\nALIVE   a\n"


def on_a_terminal(monkeypatch, columns: int, rows) -> list[str]:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    print_answer(rows)
    return re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue()).splitlines()


def test_a_narrow_terminal_cuts_the_last_column_only(monkeypatch):
    lines = on_a_terminal(monkeypatch, 64, [{"taskId": "t" * 36, "lastError": "e" * 90}])

    assert lines == ["TASK_ID" + " " * 31 + "LAST_ERROR", "t" * 36 + "  " + "e" * 25 + "…"]


@pytest.mark.parametrize(("columns", "lines"), [(48, 2), (47, 5)])
def test_where_a_table_does_not_fit_each_row_stands_apart_with_its_ids_whole(monkeypatch, columns, lines):
    rows = [{"taskId": "t" * 36, "lastError": "e" * 90}] * (1 if lines == 2 else 2)

    shown = on_a_terminal(monkeypatch, columns, rows)

    assert len(shown) == lines
    assert any("t" * 36 in line for line in shown)
    if lines == 5:
        assert shown[:3] == ["TASK_ID     " + "t" * 36, "LAST_ERROR  " + "e" * 90, ""]


def test_json_keeps_letters_as_they_are(capsys):
    print_json({"a": "ü", "atMs": 5})

    assert capsys.readouterr().out == '{\n  "a": "ü",\n  "atMs": 5\n}\n'


@pytest.mark.parametrize("value", [None, 3, "text", [1, 2], {"a": {"b": {"c": 1}}}, [[1, [2]]], [{"a": {"b": 1}}]])
def test_any_json_value_can_be_shown(capsys, value):
    assert printed(capsys, value)
