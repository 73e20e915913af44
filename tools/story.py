"""Tells the answers of `explain` and `logs` to people. Programs read the JSON, which has more."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from tools.durations import format_age, format_duration
from tools.output import escape

STEPS_IN_FULL_MAX = 8
"""More do not fit on a screen; of a larger task those that need attention are told."""
TIMELINE_LINES_MAX = 40

_URGENCY = ("DEAD_LETTER", "RETRYING", "RUNNING", "PENDING", "CANCELLED", "SUCCESS")


def print_explanation(answer: Mapping[str, Any]) -> None:
    """Print what became of a task and of each of its steps, in sentences and with times since its submission."""
    steps: Sequence[Mapping[str, Any]] = answer.get("steps") or []
    times = [item["atMs"] for step in steps for item in step.get("timeline") or []]
    begun_ms = min(times, default=0)
    submitted = f", submitted {format_age(begun_ms, now_ms=time.time() * 1000)}" if times else ""
    print(
        escape(f"{answer['taskId']} is {answer['status']} as {answer.get('seenFrom', 'this node')} sees it{submitted}")
    )
    if answer.get("summary"):
        print(escape(answer["summary"]))
    for rival in answer.get("keyConflicts") or []:
        print(escape(f"same key: {rival['taskId']}{' (holds the key)' if rival.get('holdsKey') else ''}"))
    for step in choose_steps(steps):
        _print_step(step, begun_ms)
    if len(steps) > STEPS_IN_FULL_MAX:
        print(
            f"\n{len(steps) - STEPS_IN_FULL_MAX} more steps: `relaymesh workflow {escape(answer['taskId'])}` "
            "shows all, `relaymesh explain STEP-ID` tells of one"
        )


def choose_steps(steps: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The steps that are told in full: all, or those that need attention most."""
    if len(steps) <= STEPS_IN_FULL_MAX:
        return list(steps)

    def urgency(step: Mapping[str, Any]) -> tuple[int, bool]:
        status = step.get("status")
        blocked = any(reason.get("code") == "parents" for reason in step.get("reasons") or [])
        return _URGENCY.index(status) if status in _URGENCY else 0, blocked

    return sorted(steps, key=urgency)[:STEPS_IN_FULL_MAX]


def _print_step(step: Mapping[str, Any], begun_ms: int) -> None:
    print()
    print(escape(f"step {step['name']}: {step['status']}, owner {step.get('owner') or 'nobody'} ({step['stepId']})"))
    if step.get("summary"):
        print(escape(f"  {step['summary']}"))
    # The summary gives the weightiest reason.
    for reason in (step.get("reasons") or [])[1:]:
        print(escape(f"  also: {reason['text']}"))
    runs = step.get("runs") or []
    for run in runs if len(runs) > 1 else []:
        print(escape(f"  run under epoch {run['epoch']} on {run['node']}: {run['text']}"))
    for tie in step.get("ties") or []:
        print(escape(f"  {tie['winner']} won over {tie['loser']}: {tie['text']}"))
    timeline = step.get("timeline") or []
    for item in timeline[-TIMELINE_LINES_MAX:]:
        print(escape(f"  {_since(item['atMs'] - begun_ms):>10}  {item['text']}"))
    if len(timeline) > TIMELINE_LINES_MAX:
        print(f"  ({len(timeline) - TIMELINE_LINES_MAX} earlier events: --json has them)")


def _since(span_ms: float) -> str:
    """Time since the submission: to the millisecond for a minute, where the order of events is what one looks for."""
    span_ms = max(0, span_ms)
    return f"+{span_ms / 1_000:.3f} s" if span_ms < 60_000 else f"+{format_duration(span_ms)}"


def print_logs(entries: Sequence[Mapping[str, Any]]) -> None:
    """Print what agents wrote, each attempt under a heading that says whose it is."""
    now_ms = time.time() * 1000
    for entry in entries:
        where = f"step {entry.get('step')}, attempt {entry.get('attempt')} on {entry.get('nodeId')}"
        print(
            escape(f"{where}, {format_age(entry.get('occurredAtMs') or now_ms, now_ms=now_ms)}: {entry.get('action')}")
        )
        details = entry.get("details") or {}
        for line in str(details.get("log") or details.get("error") or "").splitlines():
            print(f"  {escape(line)}")
    if not entries:
        print("(nothing was written)")
