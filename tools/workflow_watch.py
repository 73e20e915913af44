"""Shows a workflow: once, or live until it has ended."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live

from tools.output import escape
from tools.session import Session
from tools.workflow_drawing import draw_workflow

LOOK_MS = 1_000
"""How long one question waits for the end of the task before the picture is renewed."""
LINES_MAX = 60
"""A picture that is printed once may be longer than the screen, but not by much."""
FINAL_STATUSES = ("SUCCESS", "DEAD_LETTER", "CANCELLED")


def print_workflow(view: dict[str, Any]) -> None:
    """The workflow as it is now."""
    console = Console(highlight=False, soft_wrap=True)
    now_ms = time.time() * 1000
    lines = draw_workflow(view["task"], view["steps"], now_ms=now_ms, width=console.width, height=LINES_MAX)
    for line in lines:
        console.print(line)


def watch_workflow(session: Session, task_id: str) -> dict[str, Any]:
    """Show the workflow until it has ended, and return the task. On a terminal as a picture, elsewhere as lines."""
    console = Console(highlight=False)
    if session.json or not console.is_terminal or console.is_dumb_terminal:
        return _tell_changes(session, task_id)
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        wait_ms = 0  # the first question waits for nothing: a picture is there at once
        while True:
            task = session.ask("wait", taskId=task_id, timeoutMs=wait_ms)
            wait_ms = LOOK_MS
            size = console.size
            lines = draw_workflow(
                task, task["steps"], now_ms=time.time() * 1000, width=size.width, height=max(4, size.height - 1)
            )
            live.update(Group(*lines), refresh=True)
            if task["status"] in FINAL_STATUSES:
                return dict(task)


def _tell_changes(session: Session, task_id: str) -> dict[str, Any]:
    """A line for each change, on standard error with --json, whose answer comes at the end."""
    out = sys.stderr if session.json else sys.stdout
    seen: dict[str, tuple[Any, ...]] = {}
    wait_ms = 0
    while True:
        task = session.ask("wait", taskId=task_id, timeoutMs=wait_ms)
        wait_ms = LOOK_MS
        for line in changes(seen, task["steps"]):
            print(line, file=out, flush=True)
        if task["status"] in FINAL_STATUSES:
            return dict(task)


def changes(seen: dict[str, tuple[Any, ...]], steps: Sequence[dict[str, Any]]) -> list[str]:
    """What is new of these steps, as lines; `seen` is kept up to date."""
    lines = []
    for step in steps:
        now = (step["status"], step["owner"], step["attempt"])
        if seen.get(step["name"]) != now and not (step["name"] not in seen and step["status"] == "PENDING"):
            attempt = f", attempt {step['attempt']}" if step["attempt"] else ""
            lines.append(escape(f"{step['name']}: {step['status']} on {step['owner']}{attempt}"))
        seen[step["name"]] = now
    return lines
