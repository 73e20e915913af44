"""`benchmark-run`: tasks through a running mesh, as an operator measures what it does with everything else going on."""

from __future__ import annotations

import collections
import math
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from tools.export_file import check_free, write_document
from tools.session import EXIT_NEGATIVE, EXIT_OK, Command, Session, command

CLIENTS = 8
WAIT_SLICE_MS = 5_000
FINAL_STATUSES = ("SUCCESS", "DEAD_LETTER", "CANCELLED")

T = TypeVar("T")
U = TypeVar("U")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for name, body in _COMMANDS.items():
        command(app, name, panel="Mesh")(body)


def _benchmark_run(
    session: Session,
    tasks: Annotated[int, typer.Option("--tasks", min=1, max=100_000, help="How many tasks.")] = 1_000,
    agent: Annotated[str, typer.Option("--agent", metavar="NAME", help="Agent that does them.")] = "echo",
    priority: Annotated[
        Literal["high", "normal", "low"], typer.Option("--priority", help="Of all of them.")
    ] = "normal",
    input_size: Annotated[int, typer.Option("--input-size", min=0, max=1_048_576, help="Bytes of each input.")] = 64,
    max_seconds: Annotated[int, typer.Option("--max-seconds", min=5, max=86_400, help="Give up after so long.")] = 300,
    report_out: Annotated[
        Path | None, typer.Option("--report-out", metavar="FILE", help="Write the answer there, too; must not exist.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it is there.")] = False,
) -> int:
    """Measure how fast a running mesh does tasks.

    Submits them over 8 connections, each submit durable, and waits for their ends. Latencies are from a task's submit
    to its end by the stamps of the nodes; the rate is of all that ended, from the first submit on. The tasks are real
    and stay until retention takes them. Exit 1 when some had not ended in time: those go on. `relaymesh bench tasks`
    measures a node of its own instead.

    \b
    Example: relaymesh --root data benchmark-run --tasks 2000 --report-out bench.json
    """
    if report_out is not None:
        check_free(report_out, force=force)
    deadline = time.monotonic() + max_seconds
    submit_started = _now_ms()
    payload = b"x" * input_size

    def submit(client: Session, _number: int) -> str | None:
        if time.monotonic() >= deadline:
            return None
        args = {"agent": agent, "input": payload, "priority": priority, "idempotencyKey": secrets.token_hex(16)}
        return str(client.ask("submit", **args)["taskId"])

    def wait(client: Session, task_id: str) -> dict[str, Any]:
        while True:
            left_ms = max(0, round((deadline - time.monotonic()) * 1000))
            view: dict[str, Any] = client.ask("wait", taskId=task_id, timeoutMs=min(WAIT_SLICE_MS, left_ms))
            if view["status"] in FINAL_STATUSES or not left_ms:
                return view

    submitted = [task_id for task_id in _by_clients(session, submit, range(tasks)) if task_id is not None]
    submit_finished = _now_ms()
    ended = [view for view in _by_clients(session, wait, submitted) if view["status"] in FINAL_STATUSES]
    answer = _answer(session, len(submitted), ended)
    timed_out = len(ended) < tasks
    answer |= {"timedOut": timed_out, "submitStartedAtMs": submit_started, "submitFinishedAtMs": submit_finished}
    if report_out is not None:
        write_document(report_out, answer, {}, force=force)
        answer["reportOut"] = str(report_out)
    session.show(answer)
    return EXIT_NEGATIVE if timed_out else EXIT_OK


_COMMANDS: dict[str, Command] = {"benchmark-run": _benchmark_run}


def _answer(session: Session, submitted: int, ended: Sequence[dict[str, Any]]) -> dict[str, Any]:
    started = min((view["createdAtMs"] for view in ended), default=0)
    finished = max((view["updatedAtMs"] for view in ended), default=0)
    latencies = sorted(view["updatedAtMs"] - view["createdAtMs"] for view in ended)
    run_ms = max(1, finished - started)
    return {
        "submittedTasks": submitted,
        "completedTasks": len(ended),
        "pendingTasks": submitted - len(ended),
        "runStartedAtMs": started,
        "runFinishedAtMs": finished,
        "runDurationMs": run_ms,
        "throughputTasksPerSec": round(len(ended) * 1000 / run_ms, 1),
        **{f"latencyP{share}Ms": _percentile(latencies, share) for share in (50, 95, 99)},
        "statusCounts": dict(collections.Counter(view["status"] for view in ended)),
        "stats": session.ask("stats"),
    }


def _percentile(ordered: Sequence[int], share: int) -> int:
    """Nearest rank: a value that was measured."""
    return ordered[math.ceil(len(ordered) * share / 100) - 1] if ordered else 0


def _by_clients(session: Session, ask: Callable[[Session, T], U], items: Sequence[T]) -> list[U]:
    """What `ask` answers to each item, over CLIENTS connections, each of which takes every CLIENTS-th of them."""

    def part(first: int) -> list[tuple[int, U]]:
        client = replace(session)
        try:
            return [(index, ask(client, items[index])) for index in range(first, len(items), CLIENTS)]
        finally:
            client.close()

    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = [answer for found in pool.map(part, range(min(CLIENTS, len(items)))) for answer in found]
    return [answer for _, answer in sorted(answers, key=lambda each: each[0])]


def _now_ms() -> int:
    return int(time.time() * 1000)
