"""Rumors: what is passed on, how often, and what was seen already.

Promises: a queue holds at most one rumor per (subject, variant), the newest; each rumor is sent a budgeted number of
times, least-sent first and newest among equals, then forgotten. A rumor seen once within the dedup window is not news
again. Both structures are bounded: the fullest case forgets what was sent most, or seen longest ago.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

RUMORS_MAX = 2_048  # per queue; members_max records fit
PACKETS_PER_TICK_MAX = 3  # to one receiver: 3.6 KB per tick, 36 KB/s in the `local` profile while there is news

MISSES_MAX = 16  # rumors in a row that find no room, after which a smaller one is not looked for: queues can be long

RumorName = tuple[bytes, int, int]  # origin tag, origin life, rumor number


class RumorDedup:
    """Remembers the names of rumors for a while."""

    def __init__(self, entries_max: int, window_s: float) -> None:
        self._entries_max = entries_max
        self._window_s = window_s
        self._seen: dict[RumorName, float] = {}  # insertion order is age order

    def __len__(self) -> int:
        return len(self._seen)

    def is_new(self, name: RumorName, now: float) -> bool:
        """True the first time within the window; marks it seen."""
        self._expire(now)
        if name in self._seen:
            return False
        if len(self._seen) >= self._entries_max:
            del self._seen[next(iter(self._seen))]
        self._seen[name] = now
        return True

    def _expire(self, now: float) -> None:
        while self._seen:
            oldest = next(iter(self._seen))
            if now - self._seen[oldest] < self._window_s:
                return
            del self._seen[oldest]


@dataclass(slots=True, eq=False)
class QueuedRumor:
    """An encoded rumor item and how often it was sent."""

    subject: bytes
    variant: bytes
    item: bytes
    queued_at: float
    sends: int = 0


class RumorQueue:
    """Rumors waiting to be sent, grouped by how often they were."""

    def __init__(self, rumors_max: int = RUMORS_MAX) -> None:
        self._rumors_max = rumors_max
        self._by_subject: dict[bytes, dict[bytes, QueuedRumor]] = {}
        # One dict per number of sends, each in order of arrival (a dict keeps order, and deletes in O(1)).
        self._by_sends: dict[int, dict[QueuedRumor, None]] = {}
        self._by_age: dict[QueuedRumor, None] = {}
        self.dropped = 0
        self.expired = 0

    def __len__(self) -> int:
        return len(self._by_age)

    def push(self, item: bytes, subject: bytes, variant: bytes = b"", *, now: float, clears: bool = False) -> None:
        """Queue news about a subject in place of older news of the same variant; `clears` drops all variants."""
        for older in list(self._by_subject.get(subject, {}).values()):
            if clears or older.variant == variant:
                self._remove(older)
        if len(self._by_age) >= self._rumors_max:
            self._remove(self._most_sent())
            self.dropped += 1
        rumor = QueuedRumor(subject, variant, item, now)
        self._by_subject.setdefault(subject, {})[variant] = rumor
        self._by_sends.setdefault(0, {})[rumor] = None
        self._by_age[rumor] = None

    def in_order(self) -> Iterator[QueuedRumor]:
        """Least sent first, newest among equals. Do not modify the queue while iterating."""
        for sends in sorted(self._by_sends):
            yield from reversed(self._by_sends[sends])

    def sent(self, rumors: Sequence[QueuedRumor], receivers: int, budget: int) -> None:
        """Account for one tick; what has used up its budget is forgotten."""
        for rumor in rumors:
            sends = rumor.sends + receivers
            if sends >= budget:
                self._remove(rumor)
                continue
            self._unbucket(rumor)
            rumor.sends = sends
            self._by_sends.setdefault(sends, {})[rumor] = None

    def expire(self, before: float) -> None:
        """Forget what was queued before this time. Newer news always goes first, so in a flood old news would wait on,
        and be told when it is over: to receivers that have long forgotten that they heard it, as news."""
        while self._by_age:
            oldest = next(iter(self._by_age))
            if oldest.queued_at >= before:
                return
            self._remove(oldest)
            self.expired += 1

    def has(self, subject: bytes) -> bool:
        """True while news about this subject still has budget."""
        return subject in self._by_subject

    def drop(self, subject: bytes) -> None:
        """Forget all news about a subject, such as a pruned member."""
        for rumor in list(self._by_subject.get(subject, {}).values()):
            self._remove(rumor)

    def drop_variants(self) -> None:
        """Forget all news that has a variant, keeping what was said of each subject as a whole."""
        variants = [r for rumors in self._by_subject.values() for r in rumors.values() if r.variant]
        for rumor in variants:
            self._remove(rumor)

    def _most_sent(self) -> QueuedRumor:
        return next(iter(self._by_sends[max(self._by_sends)]))

    def _remove(self, rumor: QueuedRumor) -> None:
        self._unbucket(rumor)
        variants = self._by_subject[rumor.subject]
        del variants[rumor.variant]
        if not variants:
            del self._by_subject[rumor.subject]
        del self._by_age[rumor]

    def _unbucket(self, rumor: QueuedRumor) -> None:
        bucket = self._by_sends[rumor.sends]
        del bucket[rumor]
        if not bucket:
            del self._by_sends[rumor.sends]


@dataclass(slots=True)
class TickPlan:
    """What one gossip tick says to each of its receivers."""

    packets: list[list[bytes]]
    membership: list[QueuedRumor]
    topics: list[QueuedRumor]


def plan_tick(
    first: Sequence[bytes], membership: RumorQueue, topics: RumorQueue, *, space: int, items_max: int
) -> TickPlan:
    """Fill up to `PACKETS_PER_TICK_MAX` packets of `space` bytes, first fit, beginning with the items of `first`.

    Membership goes first, but leaves the last packet to topics when there are any: neither can starve the other.
    """
    packets = _Bins(space, items_max)
    for item in first:
        packets.add(item, PACKETS_PER_TICK_MAX)
    reserved = 1 if len(topics) else 0
    said = packets.fill(membership.in_order(), PACKETS_PER_TICK_MAX - reserved)
    told = packets.fill(topics.in_order(), PACKETS_PER_TICK_MAX)
    return TickPlan(packets.bins, said, told)


class _Bins:
    def __init__(self, space: int, items_max: int) -> None:
        self._space = space
        self._items_max = items_max
        self._left: list[int] = []
        self.bins: list[list[bytes]] = []

    def fill(self, rumors: Iterable[QueuedRumor], bins_max: int) -> list[QueuedRumor]:
        """Those of the rumors that found room."""
        added: list[QueuedRumor] = []
        misses = 0
        for rumor in rumors:
            if self.add(rumor.item, bins_max):
                added.append(rumor)
                misses = 0
            elif (misses := misses + 1) >= MISSES_MAX:
                break
        return added

    def add(self, item: bytes, bins_max: int) -> bool:
        assert len(item) <= self._space, len(item)
        for index, left in enumerate(self._left[:bins_max]):
            if len(item) <= left and len(self.bins[index]) < self._items_max:
                self.bins[index].append(item)
                self._left[index] -= len(item)
                return True
        if len(self.bins) >= bins_max:
            return False
        self.bins.append([item])
        self._left.append(self._space - len(item))
        return True
