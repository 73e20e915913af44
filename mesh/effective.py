"""Damped status: what a returned node is held to be when *new* work is placed. Protocol status is never delayed by it.

Promises: a member that comes back from SUSPECT (DEAD) keeps that effective status for at least `suspect_recover_min_s`
(`dead_recover_min_s`), counted from the first fresh evidence of life. Whoever flaps waits twice as long each time, at
most `DWELL_MAX_S`; that penalty halves every `PENALTY_HALF_LIFE_S`. Falling is immediate; only rising is delayed.
"""

from __future__ import annotations

from dataclasses import dataclass

from mesh.membership import RANK, Status

SUSPECT_RECOVER_MIN_S = 5.0
DEAD_RECOVER_MIN_S = 30.0
DWELL_MAX_S = 600.0
PENALTY_HALF_LIFE_S = 300.0


@dataclass(slots=True)
class _Record:
    status: Status
    worst: Status  # the worst status since it was last effectively ALIVE
    recovers_at: float | None = None
    doublings: float = 0.0
    doublings_at: float = 0.0


class EffectiveState:
    """Follows protocol changes and answers what the placement should believe."""

    def __init__(
        self,
        suspect_recover_min_s: float = SUSPECT_RECOVER_MIN_S,
        dead_recover_min_s: float = DEAD_RECOVER_MIN_S,
    ) -> None:
        self.suspect_recover_min_s = suspect_recover_min_s
        self.dead_recover_min_s = dead_recover_min_s
        self._records: dict[str, _Record] = {}

    def on_change(self, node_id: str, after: Status, now: float) -> None:
        """The protocol's status of a member is now `after`; repeating one is harmless."""
        record = self._records.get(node_id)
        if record is None:
            if after is not Status.ALIVE:
                self._records[node_id] = _Record(after, after)
        elif after is Status.ALIVE:
            self._recovering(record, now)
        else:
            recovered = record.recovers_at is not None and now >= record.recovers_at
            worst = after if recovered else max(record.worst, after, key=RANK.__getitem__)
            record.status, record.worst, record.recovers_at = after, worst, None

    def status(self, node_id: str, now: float) -> Status:
        """The damped status. A member that never failed is ALIVE."""
        record = self._records.get(node_id)
        if record is None:
            return Status.ALIVE
        return record.worst if self.recovers_at(node_id, now) is not None else record.status

    def recovers_at(self, node_id: str, now: float) -> float | None:
        """When a returned member will be effectively ALIVE; None when it is, or when it has not returned."""
        record = self._records.get(node_id)
        if record is None or record.recovers_at is None or now >= record.recovers_at:
            return None
        return record.recovers_at

    def forget(self, node_id: str) -> None:
        """The member is gone from the table."""
        self._records.pop(node_id, None)

    def _recovering(self, record: _Record, now: float) -> None:
        if record.status is Status.ALIVE:
            return
        record.status = Status.ALIVE
        if record.worst is Status.LEFT:
            return  # a goodbye is no failure: who comes back from it is trusted at once
        base = self.dead_recover_min_s if record.worst is Status.DEAD else self.suspect_recover_min_s
        doublings = max(0.0, record.doublings - (now - record.doublings_at) / PENALTY_HALF_LIFE_S)
        record.recovers_at = now + max(base, min(DWELL_MAX_S, base * 2**doublings))
        record.doublings, record.doublings_at = doublings + 1, now
