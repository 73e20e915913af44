"""Tells the answers of `explain` and `logs` to people. Programs read the JSON, which has more."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from tools.durations import format_age, format_duration
from tools.output import escape


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
    for step in steps:
        _print_step(step, begun_ms)


def _print_step(step: Mapping[str, Any], begun_ms: int) -> None:
    print()
    print(escape(f"step {step['name']}: {step['status']}, owner {step.get('owner') or 'nobody'} ({step['stepId']})"))
    if step.get("summary"):
        print(escape(f"  {step['summary']}"))
    for item in step.get("timeline") or []:
        print(escape(f"  {_since(item['atMs'] - begun_ms):>10}  {item['text']}"))


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
