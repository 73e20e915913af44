"""What lies between hosts: for every ordered pair, how packets are lost, delayed, copied and changed.

A fault lays an `Overlay` over some pairs and takes it away later. Overlays compose, so faults may overlap in any order:
a line is blocked while any of them blocks it. Each packet's fate is drawn from the seed, the pair and its number on
that pair, so one fault less changes nothing on other lines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from chaos.simulation.seeds import Fates

Pair = tuple[str, str]
"""Sender and receiver."""

RETRANSMIT_S = 0.2
"""A reliable stream sends a lost segment again after this, and twice as long each further time (RFC 6298's minimum)."""
RETRANSMIT_MAX_S = 3.0
_REORDER_FACTOR = 4.0  # a reordered packet is held back by this many mean delays, behind those sent after it


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """How one direction of one line treats packets. Shares are chances from 0 to 1 for each packet."""

    blocked: bool = False
    clogged: bool = False
    """Packets are held, and come when the clog ends."""
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    mutate: float = 0.0
    """One random bit of the copy that arrives is flipped."""
    delay_min_s: float = 0.0002
    delay_mean_s: float = 0.001
    """Above the minimum, delays are exponential: many short, few long."""
    bandwidth_bytes_s: float = float("inf")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Overlay:
    """A change of conditions for some pairs; None in a field leaves it alone."""

    pairs: frozenset[Pair] | None
    """None: all of them. Only membership is asked, never iterated."""
    blocked: bool = False
    clogged: bool = False
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    mutate: float = 0.0
    delay_s: float = 0.0
    """Added to minimum and mean."""
    jitter_s: float = 0.0
    """Added to the mean alone."""
    bandwidth_bytes_s: float = float("inf")

    def over(self, below: Conditions) -> Conditions:
        """Conditions with this laid over them: of two shares the worse, of two delays the sum."""
        return Conditions(
            blocked=below.blocked or self.blocked,
            clogged=below.clogged or self.clogged,
            loss=max(below.loss, self.loss),
            duplicate=max(below.duplicate, self.duplicate),
            reorder=max(below.reorder, self.reorder),
            mutate=max(below.mutate, self.mutate),
            delay_min_s=below.delay_min_s + self.delay_s,
            delay_mean_s=below.delay_mean_s + self.delay_s + self.jitter_s,
            bandwidth_bytes_s=min(below.bandwidth_bytes_s, self.bandwidth_bytes_s),
        )


@dataclass(frozen=True, slots=True)
class Arrival:
    """One copy of a packet that reaches the other end."""

    at: float
    mutated: float | None
    """Where in the packet a bit is flipped, from 0 to 1; None when it arrives as it was sent."""


class Links:
    """All lines of one world."""

    def __init__(self, seed: int, base: Conditions) -> None:
        self._seed = seed
        self._base = base
        self._overlays: list[Overlay] = []
        self._conditions: dict[Pair, Conditions] = {}
        self._fates: dict[Pair, Fates] = {}
        self._free_at: dict[Pair, float] = {}
        self._clogged: list[tuple[Pair, Callable[[], None]]] = []
        self._opened: list[Callable[[], None]] = []

    def lay(self, overlay: Overlay) -> None:
        """Begin a change."""
        self._overlays.append(overlay)
        self._conditions.clear()

    def lift(self, overlay: Overlay) -> None:
        """End a change; a no-op when it ended already."""
        if overlay in self._overlays:
            self._overlays.remove(overlay)
            self._changed()

    def heal(self) -> None:
        """End every change: only the base conditions are left."""
        self._overlays.clear()
        self._changed()

    def _changed(self) -> None:
        self._conditions.clear()
        held, self._clogged = self._clogged, []
        for pair, release in held:
            if self.conditions(pair).clogged:
                self._clogged.append((pair, release))
            else:
                release()
        for callback in list(self._opened):
            callback()

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call this whenever a change ended: what waited for a line may go on."""
        self._opened.append(callback)

    def conditions(self, pair: Pair) -> Conditions:
        """How this direction is now."""
        found = self._conditions.get(pair)
        if found is None:
            found = self._base
            for overlay in self._overlays:
                if overlay.pairs is None or pair in overlay.pairs:
                    found = overlay.over(found)
            self._conditions[pair] = found
        return found

    def is_open(self, pair: Pair) -> bool:
        """Whether anything passes in this direction."""
        now = self.conditions(pair)
        return not (now.blocked or now.clogged)

    def arrivals(self, pair: Pair, size: int, now: float) -> list[Arrival]:
        """When copies of a datagram sent now arrive; empty when it is lost. Clogs are asked for by `held`."""
        conditions = self.conditions(pair)
        lost, copied, mutated, bit, delayed, delayed_copy, reordered, _ = self._fate(pair).draw()
        if conditions.blocked or lost < conditions.loss:
            return []
        delay_s = _delay(conditions, delayed)
        if reordered < conditions.reorder:
            delay_s += _REORDER_FACTOR * conditions.delay_mean_s
        sent_at = self._serialized(pair, conditions, size, now)
        flipped = bit if mutated < conditions.mutate else None
        found = [Arrival(sent_at + delay_s, flipped)]
        if copied < conditions.duplicate:
            found.append(Arrival(sent_at + _delay(conditions, delayed_copy), None))
        return found

    def held(self, pair: Pair, release: Callable[[], None]) -> bool:
        """Whether a clog holds a packet that would arrive now; `release` is then called when the clog ends."""
        if not self.conditions(pair).clogged:
            return False
        self._clogged.append((pair, release))
        return True

    def segment_delay_s(self, pair: Pair, size: int, now: float) -> float:
        """How long a segment of a reliable stream takes on an open line, retransmissions of lost copies included."""
        conditions = self.conditions(pair)
        lost, _, _, _, delayed, _, _, _ = self._fate(pair).draw()
        waited_s, retransmit_s = 0.0, RETRANSMIT_S
        # One draw decides all tries: below loss^k, the first k were lost.
        share = conditions.loss
        while lost < share and waited_s < RETRANSMIT_MAX_S * 4:
            waited_s += retransmit_s
            retransmit_s = min(RETRANSMIT_MAX_S, retransmit_s * 2)
            share *= conditions.loss
        return self._serialized(pair, conditions, size, now) - now + waited_s + _delay(conditions, delayed)

    def _fate(self, pair: Pair) -> Fates:
        found = self._fates.get(pair)
        if found is None:
            found = self._fates[pair] = Fates(self._seed, f"link {pair[0]} {pair[1]}")
        return found

    def _serialized(self, pair: Pair, conditions: Conditions, size: int, now: float) -> float:
        """When the last byte has left: a narrow line sends one packet after the other."""
        if conditions.bandwidth_bytes_s == float("inf"):
            return now
        left_at = max(now, self._free_at.get(pair, 0.0)) + size / conditions.bandwidth_bytes_s
        self._free_at[pair] = left_at
        return left_at


def _delay(conditions: Conditions, drawn: float) -> float:
    return conditions.delay_min_s - math.log(1.0 - drawn) * (conditions.delay_mean_s - conditions.delay_min_s)


def between(one: Iterable[str], other: Iterable[str]) -> frozenset[Pair]:
    """Both directions of every line between two sides."""
    there = list(other)
    return frozenset(pair for a in one for b in there for pair in ((a, b), (b, a)))


def towards(senders: Iterable[str], receivers: Iterable[str]) -> frozenset[Pair]:
    """Only the direction from the senders to the receivers."""
    there = list(receivers)
    return frozenset((a, b) for a in senders for b in there if a != b)
