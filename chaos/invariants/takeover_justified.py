"""Take-over: only from an owner that is gone in the taker's own eyes, and never while most others seem to be gone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from chaos.invariants.mirror import HostMirror, Mirror
from chaos.invariants.one_writer import takes_over
from chaos.invariants.oracle import CANCELLED, owner_of, told
from chaos.invariants.promise import Promise
from chaos.observations import Committed, HostEnded, HostStarted, MemberSeen, Seen

DECIDED_MS = 300.0
"""From the decision to take until its commit returned, at the most: it waits for the disk."""
SLOW_KINDS = frozenset({"slow-disk", "pause", "starve", "io-error", "disk-full", "read-only", "sync-error"})


class TakeoverJustified(Promise):
    """Whoever takes a step holds its owner DEAD or LEFT, heard that its store fails, or never heard of it at all."""

    name = "takeover-justified"
    hears = (Committed,)

    def see(self, seen: Seen) -> Iterator[str]:
        """Ask of each take-over what its taker thought of the owner."""
        assert isinstance(seen, Committed)
        host = self.mirror.host(seen.host)
        for change in seen.changes:
            # One commit shows the last version only: what is cancelled now may have been handed over in between.
            if change.local and change.after.table == "steps" and takes_over(change) and change.after.rank != CANCELLED:
                assert change.before is not None, "there is an owner"
                owner = owner_of(change.before)
                if not self._is_gone(host, owner, seen.at_ms):
                    thought = host.view.get(owner)
                    status = f"{thought.status} since {thought.since_ms:.0f} ms" if thought else "a stranger"
                    yield f"{seen.host} took {told(change.before)}, and its owner was {status} to it"

    def _is_gone(self, host: HostMirror, owner: str, now_ms: float) -> bool:
        if any(each.store_failed_ms > float("-inf") for each in self.mirror.of_node(owner)):
            return True  # when the news that it works again came is not seen
        thought = host.view.get(owner)
        if thought is None:
            return now_ms - host.began_ms >= 0.8 * self.mirror.dead_time_s * 1000
        return thought.is_gone or now_ms - thought.left_gone_ms <= DECIDED_MS


@dataclass(slots=True)
class _Fears:
    """How one process sees the others fail."""

    failing: dict[str, float | None] = field(default_factory=dict)
    """Since when a member is DEAD; None while it is suspected."""
    spent: dict[str, None] = field(default_factory=dict)
    """Failures that belong to an earlier freeze."""
    began_ms: float = float("-inf")
    until_ms: float = float("-inf")
    heard_ms: float = float("-inf")
    """When it last certainly heard anybody, or nobody was failing."""
    unsure_until_ms: float = float("-inf")
    """Until then it may be in a freeze of its own, or have had one for failures that look fresh; for ever while some of
    those that failed then still do."""


class NothingTakenInFreeze(Promise):
    """When more than half of at least three others fail within one dead time, nothing is taken for two dead times.

    A node that hears nobody for a dead time freezes too. That cannot be seen, so after such a silence nothing is judged
    until nobody fails any more, and two dead times longer.
    """

    name = "nothing-taken-in-freeze"
    hears = (HostStarted, HostEnded, MemberSeen, Committed)

    def __init__(self, mirror: Mirror) -> None:
        super().__init__(mirror)
        self._fears: dict[str, _Fears] = {}
        self._dead_ms = mirror.dead_time_s * 1000

    def see(self, seen: Seen) -> Iterator[str]:
        """Count who fails, and look for take-overs while most do."""
        match seen:
            case HostStarted() | HostEnded():
                self._fears.pop(seen.host, None)
            case MemberSeen():
                fears = self._fears.setdefault(seen.host, _Fears())
                self._listen(fears, seen.at_ms, heard=seen.change.after == "ALIVE")
                self._member(fears, seen)
            case Committed() if (known := self._fears.get(seen.host)) is not None:
                # What was decided before the freeze began is on its way to the disk. And a node that hears nobody
                # freezes earlier than can be seen from here, so only the first half is certain.
                if known.began_ms + self._dead_ms / 2 < seen.at_ms < known.began_ms + self._dead_ms:
                    yield from self._taken(seen)
                self._listen(known, seen.at_ms, heard=any(not change.local for change in seen.changes))
            case _:
                pass

    def _listen(self, fears: _Fears, now_ms: float, *, heard: bool) -> None:
        if fears.failing and now_ms - fears.heard_ms >= self._dead_ms:
            fears.unsure_until_ms = float("inf")
        if heard or not fears.failing:
            fears.heard_ms = now_ms

    def _member(self, fears: _Fears, seen: MemberSeen) -> None:
        node_id = seen.change.node_id
        match seen.change.after:
            case "SUSPECT":
                fears.failing[node_id] = None
            case "DEAD":
                fears.failing[node_id] = seen.at_ms
            case _:
                fears.failing.pop(node_id, None)
                fears.spent.pop(node_id, None)
        if not fears.failing and fears.unsure_until_ms == float("inf"):
            fears.unsure_until_ms = seen.at_ms + 2 * self._dead_ms
        if seen.change.after in ("SUSPECT", "DEAD"):  # whoever hears a goodbye is not the one that is cut off
            self._count(fears, seen)

    def _count(self, fears: _Fears, seen: MemberSeen) -> None:
        host = self.mirror.host(seen.host)
        view = {name: each.status for name, each in host.view.items()} | {seen.change.node_id: seen.change.after}
        recent = {n: at for n, at in fears.failing.items() if at is None or seen.at_ms - at < self._dead_ms}
        active = [n for n, status in view.items() if status in ("ALIVE", "SUSPECT") and n != host.node_id]
        others = [n for n in dict.fromkeys([*active, *recent]) if n not in fears.spent]
        fresh = [n for n in recent if n not in fears.spent]
        if seen.at_ms < fears.until_ms:
            fears.spent |= dict.fromkeys(fresh)
        elif len(others) >= 3 and 2 * len(fresh) > len(others):
            fears.spent |= dict.fromkeys(fresh)
            fears.until_ms = seen.at_ms + 2 * self._dead_ms
            if seen.at_ms >= fears.unsure_until_ms:
                fears.began_ms = seen.at_ms

    def _taken(self, seen: Committed) -> Iterator[str]:
        host = self.mirror.host(seen.host)
        if not SLOW_KINDS.isdisjoint(host.active):
            return
        for change in seen.changes:
            if change.local and change.after.table == "steps" and takes_over(change):
                fears = self._fears[seen.host]
                yield (
                    f"{seen.host} took {told(change.after)} {seen.at_ms - fears.began_ms:.0f} ms after most others "
                    f"began to fail: {list(fears.failing)}"
                )
