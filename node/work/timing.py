"""When a step may begin: not before its delay, and not for the first time after its expiry.

Both are stored as durations from the submit, so that a step which changes its owner keeps its place in time, and so
that no node has to trust another one's date: each counts on its own physical clock. A stamp may run ahead of that, by
as much as another clock is wrong, so it tells when the submit was only if that is past. The newest stamp that a replica
knows (`stamp_ms`) tells how long the step has waited at least, whoever's clock is wrong: so neither a new owner nor a
parent that ends late begins to count anew.
"""

from __future__ import annotations

from mesh.rows import Row
from node.work.status import step_status
from node.work.tables import Status


def has_begun(step: Row) -> bool:
    """Whether a run of this generation ever began: then its expiry has no say any more."""
    return bool(step.integer("claim_life"))


def due_ms(step: Row, now_ms: int, stamp_ms: int) -> int:
    """When the waiting step may run, in milliseconds of the clock that says `now_ms`; 0 for at once."""
    delay_ms = step.integer("delay_ms")
    due = submitted_ms(step, now_ms, stamp_ms) + delay_ms if delay_ms else 0
    if step_status(step) is Status.RETRYING:
        due = max(due, min(step.hlc >> 16, now_ms) + step.integer("retry_delay_ms"))
    return due


def retry_left_ms(step: Row, now_ms: int) -> int:
    """What is left of the wait for the next attempt, for whoever writes the row anew: the wait counts from its stamp.

    A snooze may last for days: begun again by each new owner, it might never end.
    """
    if step_status(step) is not Status.RETRYING:
        return 0
    return max(0, min(step.hlc >> 16, now_ms) + step.integer("retry_delay_ms") - now_ms)


def expires_at_ms(step: Row, now_ms: int, stamp_ms: int) -> int:
    """When the waiting step has waited for too long, likewise; 0 for never."""
    expires_ms = step.integer("expires_ms")
    return submitted_ms(step, now_ms, stamp_ms) + expires_ms if expires_ms and not has_begun(step) else 0


def submitted_ms(step: Row, now_ms: int, stamp_ms: int) -> int:
    """When the step was submitted, as far as this clock can tell."""
    created_ms = step.integer("created_hlc") >> 16
    return min(created_ms, now_ms - max(0, stamp_ms - created_ms))


def tell_waiting(step: Row, now_ms: int) -> str:
    """For how long the step has waited, and when it is given up, as sentences that follow another one."""
    stamp_ms = step.hlc >> 16
    submitted = submitted_ms(step, now_ms, stamp_ms)
    waited_s = max(0, now_ms - max(submitted, due_ms(step, now_ms, stamp_ms))) / 1000
    text = f" It was submitted {(now_ms - submitted) / 1000:.1f} s ago"
    text += f" and has waited for {waited_s:.1f} s since it was due." if step.integer("delay_ms") else "."
    expires = expires_at_ms(step, now_ms, stamp_ms)
    if expires:
        text += f" If it has not begun in {max(0, expires - now_ms) / 1000:.1f} s, it expires."
    return text
