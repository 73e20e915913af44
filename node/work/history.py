"""What happened to steps: an append-only, replicated record from which `explain` tells the story.

A clean first run leaves no row here; the step's own row says it all. A row is written when ownership moves, an attempt
fails, a lease is lost, or a result loses a merge. Its key is derived from what it tells, so the same event recorded
twice is one row.
"""

from __future__ import annotations

import enum
import json
from typing import Any

from mesh.fences import Fence
from mesh.ids import content_id
from mesh.rows import Row
from node.storage.transaction import Transaction


class Action(enum.StrEnum):
    """What a history row tells."""

    FAILED = "failed"
    """An attempt ended without success; the step was retried or became a dead letter."""
    LOST = "lost"
    """The owner's process ended during a run; the owner itself found out when it came back."""
    TAKEN_OVER = "taken_over"
    """Another node opened a new lease, since the owner was gone."""
    HANDED_OVER = "handed_over"
    """The owner gave the step to a peer that accepted it."""
    RELEASED = "released"
    """The owner stopped gracefully and ended the run without counting it."""
    ABORTED = "aborted"
    """A run was stopped because its lease had moved."""
    SUPERSEDED = "superseded"
    """A result was refused or lost a merge: it is not the step's result."""
    REQUEUED = "requeued"
    """A higher cluster epoch made the owner start the step again."""
    REPLAYED = "replayed"
    """An operator asked for a new generation."""
    CANCELLED = "cancelled"
    """The owner obeyed a cancel."""
    SNOOZED = "snoozed"
    """The handler asked to be run again later; it was no attempt."""
    EXPIRED = "expired"
    """The owner gave up a step that had not begun in the time that it was given."""
    LOGGED = "logged"
    """The tail of what a handler wrote for people."""


CONFLICTS = (Action.SUPERSEDED, Action.ABORTED)
"""What `lease-conflicts` shows."""

OWNERSHIP = (
    Action.LOST,
    Action.TAKEN_OVER,
    Action.HANDED_OVER,
    Action.RELEASED,
    Action.ABORTED,
    Action.SUPERSEDED,
    Action.REQUEUED,
    Action.REPLAYED,
)
"""What `ownership-events` shows."""

DETAIL_CHARS_MAX = 8192
"""Of the JSON. Escapes make a text up to twelve times longer, so callers cannot know beforehand what fits."""


def record(
    tx: Transaction, step: Row, action: Action, *, node: str, from_node: str | None = None, **detail: Any
) -> None:
    """Tell that `action` happened to the lease which `step` records, as seen by `node`."""
    fence = Fence.of(step, step.text("owner") or node).encode()
    text = _told(detail)
    key = content_id("evt", step.key.encode(), action.encode(), fence.encode(), node.encode())
    if tx.get("history", step.namespace, key) is not None:
        return
    task = tx.get("tasks", step.namespace, step.text("task_id"))
    if task is not None and task.deleted:
        return  # what belongs to a deleted task goes with it: nothing new may come after every member has seen that
    tx.put(
        "history",
        step.namespace,
        key,
        {
            "task_id": step.text("task_id"),
            "step_id": step.key,
            "action": action.value,
            "from_node": from_node,
            "attempt": step.integer("attempt"),
            "fence": fence,
            "detail": text,
        },
    )


def _told(detail: dict[str, Any]) -> str:
    """The detail as JSON within its limit. What is too long is cut: a log at its front, all else at its end."""
    # Halves of surrogate pairs, which Python's texts may hold, are no JSON that every reader takes.
    detail = {
        name: value.encode(errors="replace").decode() if isinstance(value, str) else value
        for name, value in detail.items()
    }
    while len(text := json.dumps(detail, separators=(",", ":"), default=str)) > DETAIL_CHARS_MAX:
        name = max(detail, key=lambda each: len(json.dumps(detail[each], default=str)))
        value = str(detail[name])
        half = len(value) // 2
        detail = {**detail, name: value[-half:] if name == "log" else value[:half]}
    return text
