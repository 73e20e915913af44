"""Which packets were seen already: a sliding window of sequence numbers per process of a sender, without clocks.

Promises: one sequence of one (sender, life, process) is accepted at most once, as long as that process is remembered.
Packets may arrive up to `WINDOW_BITS` sequences late. Nothing here trusts a life that only a packet claims: the floor
below which lives are refused comes from signed records, so a stolen ring key cannot lock a member out by naming a
huge life. For the same reason no number of processes is refused: only a holder of the ring key can invent them, and
forgetting the longest silent one costs less than refusing the true one.
"""

from __future__ import annotations

from dataclasses import dataclass

WINDOW_BITS = 1_024  # one counter serves all destinations, so others' packets open gaps; late ones are still welcome
SENDERS_MAX = 4_096  # (sender, life, process) triples remembered: twice the member table, so restarts fit too

_MASK = (1 << WINDOW_BITS) - 1


@dataclass(slots=True)
class _Window:
    highest: int
    seen: int  # bit i: sequence `highest - i` was seen


class ReplayWindow:
    """Remembers accepted sequences of a bounded number of sending processes."""

    def __init__(self, senders_max: int = SENDERS_MAX) -> None:
        self._senders_max = senders_max
        self._windows: dict[tuple[bytes, int, int], _Window] = {}

    def __len__(self) -> int:
        return len(self._windows)

    def accept(self, sender: bytes, life: int, process: int, sequence: int) -> bool:
        """Mark the sequence as seen; False when it was seen before or is too old to know."""
        key = (sender, life, process)
        window = self._windows.pop(key, None)
        if window is None:
            if len(self._windows) >= self._senders_max:
                del self._windows[next(iter(self._windows))]
            self._windows[key] = _Window(sequence, 1)
            return True
        self._windows[key] = window  # most recently heard last, so that eviction takes the longest silent
        return _slide(window, sequence)


def _slide(window: _Window, sequence: int) -> bool:
    ahead = sequence - window.highest
    if ahead > 0:
        # A jump beyond the window empties it; shifting by the whole jump would build a huge integer.
        kept = (window.seen << ahead) & _MASK if ahead < WINDOW_BITS else 0
        window.highest, window.seen = sequence, kept | 1
        return True
    if ahead <= -WINDOW_BITS or window.seen >> -ahead & 1:
        return False
    window.seen |= 1 << -ahead
    return True
