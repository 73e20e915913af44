"""What a handler may ask for its own step besides success and failure: to keep a checkpoint, and to wait again.

`work.transitions` calls these with the step's current row, after it has seen that the lease still stands.
"""

from __future__ import annotations

from collections.abc import Mapping

from mesh.rows import Row
from mesh.tables import Value
from node.agents.api import SNOOZE_MS_MAX, SNOOZE_MS_MIN
from node.env import Outcome
from node.storage.transaction import Transaction
from node.work import history
from node.work.history import Action
from node.work.payloads import store_payload
from node.work.tables import Status

KINDS = ("snoozed", "cancelled")
"""Of `node.env.Outcome`: the handler chose it, and it is no failed attempt."""

NO_CHECKPOINT: Mapping[str, Value] = {"checkpoint": None, "checkpoint_ref": None}

SNOOZED = "snoozed: "
"""How `last_error` of a step begins that waits because its handler asked for it."""

EVENTS_KEPT = 32
"""Rows of the history that tell of snoozes, and logs beside them, for each step. One may snooze for years."""


def keep_checkpoint(tx: Transaction, step: Row, content: bytes) -> None:
    """Store `content` in a step that runs; the same content again is no write."""
    inline, reference = store_payload(tx, step.namespace, step.text("task_id"), content)
    if (step.blob("checkpoint"), step.text("checkpoint_ref")) != (inline, reference or ""):
        values: dict[str, Value] = {"checkpoint": inline, "checkpoint_ref": reference}
        tx.put("steps", step.namespace, step.key, values)


def snooze(tx: Transaction, step: Row, outcome: Outcome, reason: str, *, me: str) -> Row:
    """Let a step that runs wait as long as its handler asked for, under the same lease, as if it had not been tried."""
    delay_ms = min(max(outcome.snooze_ms, SNOOZE_MS_MIN), SNOOZE_MS_MAX)
    _make_room(tx, step)
    history.record(tx, step, Action.SNOOZED, node=me, reason=reason[:256], delayMs=delay_ms)
    return tx.put(
        "steps",
        step.namespace,
        step.key,
        {
            "status": Status.RETRYING.value,
            "attempt": max(0, step.integer("attempt") - 1),
            "retry_delay_ms": delay_ms,
            "last_error": SNOOZED + reason,
        },
    )


def _make_room(tx: Transaction, step: Row) -> None:
    """Delete the oldest of what earlier snoozes of the step left. No decision reads it, so anybody may."""
    told = tx.select(
        "history",
        "namespace = ? AND task_id = ? AND step_id = ? AND action IN (?, ?) AND deleted = 0",
        (step.namespace, step.text("task_id"), step.key, Action.SNOOZED.value, Action.LOGGED.value),
        order="hlc",
    )
    for row in told[: max(0, len(told) + 1 - EVENTS_KEPT)]:
        tx.put("history", row.namespace, row.key, {}, deleted=True)
