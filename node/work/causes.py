"""Why a step became a dead letter, as one word: derived from its row and its history, stored nowhere.

What is missing here on purpose: a step whose payload has not arrived waits, and is no dead letter.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Sequence

from mesh.fences import Fence
from mesh.rows import Row
from node.storage.reader import Reader
from node.work.history import Action
from node.work.tables import Status

POISON_PREFIX = "poison: "


class Cause(enum.StrEnum):
    """What ended the last attempt of a dead letter, where that is known."""

    REJECTED = "rejected"
    """The handler, or the node, said that trying again is of no use."""
    TIMEOUT = "timeout"
    """The last of its attempts ran for too long."""
    CRASHED = "crashed"
    """The process of the last of its attempts died."""
    ATTEMPTS_EXHAUSTED = "attempts-exhausted"
    """The handler failed in the last of its attempts."""
    LOST_LEASES = "lost-leases"
    """Poison: the nodes that ran it ended, one after the other."""
    UNKNOWN = "unknown"
    """The history that would tell has gone before its task (attemptRetentionMs), or has not arrived here yet."""


_BY_KIND = {
    "rejected": Cause.REJECTED,
    "timeout": Cause.TIMEOUT,
    "crashed": Cause.CRASHED,
    "failed": Cause.ATTEMPTS_EXHAUSTED,
}


def cause_of(step: Row, history: Sequence[Row]) -> Cause:
    """The class of a dead letter; `history` may hold rows of other steps and of earlier generations."""
    # A handler may say "poison: " as well; only a take-over that ends a step keeps as many lost leases with it.
    if step.text("last_error").startswith(POISON_PREFIX) and step.text("lost_leases"):
        return Cause.LOST_LEASES
    lease = Fence.of(step, step.text("owner"))
    failures = [
        row
        for row in history
        if row.text("step_id") == step.key
        and row.text("action") == Action.FAILED
        and Fence.decode(row.text("fence")).generation == lease.generation
    ]
    if not failures:
        return Cause.UNKNOWN
    # Across a cut two nodes may have failed it: the one whose lease the row shows tells of this end.
    last = max(failures, key=lambda row: (row.text("fence") == lease.encode(), row.hlc))
    return _BY_KIND.get(str(json.loads(last.text("detail") or "{}").get("kind")), Cause.UNKNOWN)


def dead_letter_causes(reader: Reader, namespace: str, limit: int) -> dict[str, int]:
    """How many of the latest `limit` dead letters of a namespace are of each class, the most frequent first."""
    counts: dict[str, int] = {}
    for step in latest_ended(reader, namespace, Status.DEAD_LETTER, limit=limit):
        cause = cause_of(step, failures_of(reader, step))
        counts[cause] = counts.get(cause, 0) + 1
    return dict(sorted(counts.items(), key=lambda each: (-each[1], each[0])))


def latest_ended(
    reader: Reader, namespace: str, status: Status, *, limit: int, before: tuple[int, str] | None = None
) -> list[Row]:
    """Steps that ended as `status`, the latest end first; `before` is the stamp and key of the last of a page."""
    # The rank is written out, and not a parameter: SQLite must see that the partial index of it will do.
    where = f"namespace = ? AND rank = {status.rank} AND deleted = 0"
    params: list[str | int] = [namespace]
    if before is not None:
        where += " AND (hlc, key) < (?, ?)"
        params += before
    return reader.select("steps", where, params, order="hlc DESC, key DESC", limit=limit)


def failures_of(reader: Reader, step: Row) -> list[Row]:
    """The rows of the history that tell of failed attempts of this step."""
    return reader.select(
        "history",
        "namespace = ? AND task_id = ? AND step_id = ? AND action = ? AND deleted = 0",
        (step.namespace, step.text("task_id"), step.key, Action.FAILED.value),
    )
