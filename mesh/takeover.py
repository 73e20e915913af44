"""When work may be taken from its owner, by whom, and when work is too dangerous to be taken again.

Two nodes may both decide to take: that is safe, because a take-over opens a new lease epoch and the merge order picks
one. The waiting below only makes it rare. What must never happen is a take-over from an owner that could be told apart
from a dead one, so every rule here errs towards waiting.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mesh.ids import split_life

LOST_LEASES_MAX = 5
"""So many leases whose owner's process ended during the run mark the work as poison.

Fewer may be bad luck; many more would let one piece of work empty the mesh.
"""

TICKS_PER_PLACE = 3
"""Candidate number k waits 3k gossip ticks for an earlier one's row: a rumor reaches everyone in about three."""


class OwnerState(enum.Enum):
    """What the mesh believes of an owner. The protocol status alone decides; dwell windows never delay a take-over."""

    PRESENT = "present"
    DEAD = "dead"
    LEFT = "left"
    STORE_FAILED = "store-failed"
    """It lives, but says in its own signed record that it cannot commit."""
    UNKNOWN = "unknown"
    """No signed record of it was ever seen here, or it was pruned."""


def is_takeable(state: OwnerState, *, unknown_for_s: float, dead_time_s: float) -> bool:
    """Whether work may be taken from an owner in this state.

    An unknown owner may just be one whose record is still on its way, so it gets one dead time to show up.
    """
    if state is OwnerState.UNKNOWN:
        return unknown_for_s >= dead_time_s
    return state is not OwnerState.PRESENT


def wait_s(place: int, *, tick_s: float) -> float:
    """How long the candidate at this place (0 stands first) waits for the row to move before it takes the work."""
    assert place >= 0, place
    return TICKS_PER_PLACE * place * tick_s


class LostLease(NamedTuple):
    """A lease that ended without a result: who held it, in which life of that node."""

    node: str
    life: int


def ended_processes(lost: Sequence[LostLease], current_life: Callable[[str], int | None]) -> int:
    """How many of these leases ended with their owner's process, as far as is known.

    A node that shows a later start has proven that the old process ended. A node that is merely away has not, nor one
    that goes on under a later enrolment: neither a partition nor a certificate may turn good work into poison.
    """
    count = 0
    for lease in lost:
        life = current_life(lease.node)
        if life is not None and life > lease.life and split_life(life)[1] != split_life(lease.life)[1]:
            count += 1
    return count


def is_poison(lost: Sequence[LostLease], current_life: Callable[[str], int | None]) -> bool:
    """Whether this work ended so many of its owners' processes that no further node should risk it."""
    return ended_processes(lost, current_life) >= LOST_LEASES_MAX


@dataclass(frozen=True, slots=True)
class Take:
    """A decision: this node takes that work once `at` has come, unless the row moved before."""

    work: str
    at: float


def plan(work: str, *, me: str, order: Sequence[str], now: float, tick_s: float) -> Take | None:
    """When this node should take the work, given the rendezvous order of able nodes; None when it is not among them."""
    for place, node in enumerate(order):
        if node == me:
            return Take(work, now + wait_s(place, tick_s=tick_s))
    return None
