"""Support: how work that must not run in two places at once finds one holder, without a leader and across any cut.

Such work names a *roster*, fixed when it is made and the same at every node. A holder runs it, or commits what a run
came to, only while a majority of the roster *supports* it. A member that supports a holder supports nobody else for
this work until `hold_s` of its own clock have passed; a holder counts a support for `self_fence_s` of its own clock,
from when it *sent* the request. Hence the argument:

1. Suppose two holders had a majority each at one moment. Two majorities of one roster share a member.
2. Each holder sent its request to that member at most one self-fence time before that moment, so the member answered
   both within one self-fence time, and it answered after the request was sent, however late the answer came.
3. But it refuses the second for `hold_s` after the first. That is longer by `MARGIN` than the self-fence time, which
   is more than what clocks that differ by a few per cent, and a run that takes a moment to stop, can make of it.
4. It might have forgotten the first only by starting anew, and for one hold time after its start it supports nobody.

So at most one holder has support at any time. That takes the clock to go on while the host is suspended, and it is
counted per work and process: support for a node as such would let a node that was handed the work in one part of a
cut run it while another one, elected in the other part, does.

A *vote* is support for a holder-to-be: a node that wants to take work from an owner that is gone. It must be granted
by a majority of the roster, too, so a taker has votes only when the owner cannot have support any more. A vote names
an epoch, and is durable before it is sent: of two takers at most one is ever elected at one epoch, even when voters
start anew in between. A taker that lost tries again at a higher epoch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

MARGIN = 1.25
"""How much longer a supporter holds than a holder counts."""
ROSTER_MIN, ROSTER_MAX = 3, 100
"""Of two members neither may go on without the other: a roster of fewer than three would only add a way to fail."""
SELF_FENCE_MAX_S = 600.0
"""A holder that asks to be supported for longer than this is not believed."""


class Holder(NamedTuple):
    """One process of one node. What an earlier process of it was granted is not for the next one."""

    node: str
    process: bytes


class Ballot(NamedTuple):
    """The turn that a taker wants: of two turns at one piece of work the greater one is the later."""

    generation: int
    epoch: int


class Vote(NamedTuple):
    """Whom a voter chose for a turn."""

    ballot: Ballot
    taker: str


def majority(roster: Sequence[str]) -> int:
    """How many members of the roster are more than half of it."""
    return len(roster) // 2 + 1


def may_vote(earlier: Vote | None, wanted: Vote) -> bool:
    """Whether a voter that voted like this before may vote so now: never for two takers at one turn, nor for a turn
    that is over. The same vote may be repeated, since its answer may have been lost.
    """
    return earlier is None or earlier == wanted or earlier.ballot < wanted.ballot


@dataclass(frozen=True, slots=True)
class _Grant:
    holder: Holder
    until: float


class Supporter:
    """One member's side: whom it supports. Kept in memory only, so a new process must begin with a time of silence."""

    def __init__(self, *, self_fence_s: float, now: float) -> None:
        """`self_fence_s`: the longest that any holder of this mesh counts a support."""
        self._silent_until = now + MARGIN * self_fence_s
        self._grants: dict[str, _Grant] = {}

    def support(self, work: str, holder: Holder, *, self_fence_s: float, now: float) -> bool:
        """Whether this member supports the holder from now on, for as long as the holder counts it and a margin."""
        if now < self._silent_until or not 0 < self_fence_s <= SELF_FENCE_MAX_S:
            return False
        grant = self._grants.get(work)
        if grant is not None and grant.holder != holder and now < grant.until:
            return False
        # Never shorter than before: an answer to an earlier request may still be on its way.
        until = max(now + MARGIN * self_fence_s, grant.until if grant is not None else now)
        self._grants[work] = _Grant(holder, until)
        return True

    def holder_of(self, work: str, now: float) -> str | None:
        """The node that is supported for this work now, if any is."""
        grant = self._grants.get(work)
        return grant.holder.node if grant is not None and now < grant.until else None

    def forget_old(self, now: float) -> None:
        """Drop what no longer binds."""
        self._grants = {work: grant for work, grant in self._grants.items() if now < grant.until}

    @property
    def size(self) -> int:
        """Pieces of work for which somebody was supported."""
        return len(self._grants)


class Support:
    """A holder's side: who supports it for which work, and until when that may be relied upon."""

    def __init__(self, *, self_fence_s: float) -> None:
        self.self_fence_s = self_fence_s
        self._sent: dict[str, dict[str, float]] = {}
        """By work and member, when the latest request was sent that it answered with yes."""

    def heard(self, work: str, member: str, *, sent_at: float) -> None:
        """The member answered yes to a request that was sent then."""
        members = self._sent.setdefault(work, {})
        members[member] = max(sent_at, members.get(member, sent_at))

    def lapses_at(self, work: str, roster: Sequence[str]) -> float:
        """Until when this work may run here; a time that is past when it may not. Callable from any thread."""
        members = self._sent.get(work, {})
        sent = sorted((members[member] for member in roster if member in members), reverse=True)
        needed = majority(roster)
        return sent[needed - 1] + self.self_fence_s if len(sent) >= needed else float("-inf")

    def supporters(self, work: str, roster: Sequence[str], now: float) -> list[str]:
        """The members of the roster whose support is fresh."""
        members = self._sent.get(work, {})
        return [member for member in roster if now - members.get(member, float("-inf")) < self.self_fence_s]

    def keep_only(self, works: Iterable[str]) -> None:
        """Forget all other work."""
        self._sent = {work: self._sent[work] for work in works if work in self._sent}
