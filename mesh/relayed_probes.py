"""The helper's side of an indirect probe: ping for another member, pass its answer on, or say in time there is none.

Promises: each request is answered by at most one NACK, at 80 % of the probe timeout so that it arrives before the
requester's own verdict, and by at most one ACK, even after the NACK. Requests beyond the limit are refused at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from mesh.profiles import Profile

RELAYS_MAX = 64  # probes run for others at a time: a whole mesh of 64 suspecting one member
NACK_AT_SHARE = 0.8  # of the probe timeout, as Lifeguard does


@dataclass(slots=True)
class RelayedProbe:
    """One ping on behalf of `requester`, who knows it as `their_nonce`."""

    requester: str
    their_nonce: int
    nack_at: float
    ends: float
    nacked: bool = False


class RelayedProbes:
    """Probes that run for others, by the nonce of our own ping."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._running: dict[int, RelayedProbe] = {}

    def __len__(self) -> int:
        return len(self._running)

    def begin(self, requester: str, their_nonce: int, our_nonce: int, now: float) -> bool:
        """Note a probe; False when too many run already, so that the caller refuses at once."""
        if len(self._running) >= RELAYS_MAX:
            return False
        timeout = self._profile.probe_timeout_s
        self._running[our_nonce] = RelayedProbe(
            requester, their_nonce, now + timeout * NACK_AT_SHARE, now + max(timeout, self._profile.probe_interval_s)
        )
        return True

    def on_ack(self, nonce: int) -> RelayedProbe | None:
        """The probe that this answer belongs to, which ends with it."""
        return self._running.pop(nonce, None)

    def due(self, now: float) -> list[RelayedProbe]:
        """Probes to refuse now, each once; those that ended are forgotten."""
        refused = [probe for probe in self._running.values() if not probe.nacked and now >= probe.nack_at]
        for probe in refused:
            probe.nacked = True
        self._running = {nonce: probe for nonce, probe in self._running.items() if now < probe.ends}
        return refused

    def next_deadline(self) -> float:
        """When `due` has something to do."""
        if not self._running:
            return float("inf")
        return min(p.ends if p.nacked else p.nack_at for p in self._running.values())
