"""Hybrid logical clock: stamps that respect cause and effect, and stay close to real time.

A stamp is one integer, `ms << 16 | counter`, so that a later write by anyone who saw mine has a larger stamp. The
counter carries into the milliseconds when it overflows, which needs no case of its own. Stamps stay below 2**63 until
the year 6429. The clock knows no time itself: callers give physical milliseconds, from `PhysicalClock` or a test.
"""

from __future__ import annotations

COUNTER_BITS = 16
DRIFT_MAX_MS = 60_000
"""How far ahead of our own time a stamp may be and still move our clock.

Hosts under NTP differ by less than a second; a minute forgives a host that just booted, and bounds what a wrong clock
elsewhere can do to every conflict here.
"""


def stamp_ms(stamp: int) -> int:
    """The milliseconds since 1970 in a stamp: what users see as `updatedAtMs`."""
    return stamp >> COUNTER_BITS


class HybridClock:
    """Issues stamps, each larger than every stamp it issued or accepted before."""

    __slots__ = ("_last",)

    def __init__(self, last: int = 0) -> None:
        assert last >= 0, last
        self._last = last

    @property
    def last(self) -> int:
        """The largest stamp issued or accepted so far. Keep it over restarts: a host's clock may start in 1970."""
        return self._last

    def tick(self, physical_ms: int) -> int:
        """A new stamp, larger than `last`, at or after the given physical time."""
        # Physical time that went back, or stands still within one millisecond, only advances the counter.
        self._last = max(self._last + 1, physical_ms << COUNTER_BITS)
        return self._last

    def observe(self, stamp: int, physical_ms: int) -> bool:
        """Note a stamp that a peer issued, so that ours come after it.

        False, and no change, when it is more than DRIFT_MAX_MS ahead of the given physical time: one node with a wrong
        clock must not drag the whole mesh into the future.
        """
        # Measured against physical time, not against `last`: else a chain of small lies could walk us anywhere.
        if stamp_ms(stamp) > physical_ms + DRIFT_MAX_MS:
            return False
        self._last = max(self._last, stamp)
        return True


class PhysicalClock:
    """Milliseconds since 1970 that follow a monotonic clock from an anchor: stepping the host's date moves nothing.

    Monotonic seconds are any clock that never goes back, the same one in every call.
    """

    __slots__ = ("_monotonic_s", "_wall_ms")

    def __init__(self, wall_ms: int, monotonic_s: float) -> None:
        self._wall_ms = wall_ms
        self._monotonic_s = monotonic_s

    def now_ms(self, monotonic_s: float) -> int:
        """Physical time at this monotonic time."""
        return self._wall_ms + int((monotonic_s - self._monotonic_s) * 1000)

    def reanchor(self, wall_ms: int, monotonic_s: float, peer_median_ms: int | None) -> bool:
        """Follow the host's date again (a long uptime drifts, a late NTP corrects), if peers do not contradict it.

        `peer_median_ms` is the median of the peers' times now, None when no peer is known. False, and no change, when
        the date is more than DRIFT_MAX_MS from it: better a drifting clock that agrees with the mesh.
        """
        if peer_median_ms is not None and abs(wall_ms - peer_median_ms) > DRIFT_MAX_MS:
            return False
        # Going back is allowed here: HybridClock keeps stamps rising, and its counter bridges the difference.
        self._wall_ms = wall_ms
        self._monotonic_s = monotonic_s
        return True
