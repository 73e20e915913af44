"""Rotations of keys and of the CA: a mesh moves on only when everybody whom it counts as a member can follow."""

from __future__ import annotations

from collections.abc import Iterator

from chaos.invariants.mirror import Mirror
from chaos.invariants.promise import Promise
from chaos.observations import (
    CaListAccepted,
    CaListInstalled,
    FaultBegan,
    HostEnded,
    RingAccepted,
    RingInstalled,
    Seen,
)

_FORGETS = ("clone", "lying-sync", "stale-image", "wipe")
"""Faults after which a node may not have what it said it had, or another one spoke in its name."""


class NobodyCutOff(Promise):
    """A ring that takes something away, or seals with another key, comes after all members installed the one before.

    So does a list of CAs in which another one signs, or one is trusted no more.

    Members are those that the accepting node holds for ALIVE or SUSPECT. Those that have no process, or whose disk
    forgot what they had acknowledged, cannot be asked of anybody; they come back by their certificates, or the mesh
    does not come to rest.
    """

    name = "nobody-cut-off"
    hears = (RingInstalled, RingAccepted, CaListInstalled, CaListAccepted, HostEnded, FaultBegan)

    def __init__(self, mirror: Mirror) -> None:
        super().__init__(mirror)
        self._rings: dict[str, int] = {}
        """The number of the ring in use, by host that runs."""
        self._ca_lists: dict[str, int] = {}
        """The number of the list of CAs that is followed, likewise."""
        self._forgetful: dict[str, None] = {}

    def see(self, seen: Seen) -> Iterator[str]:
        """Compare what was accepted with what all members had."""
        match seen:
            case RingInstalled():
                self._rings[seen.host] = seen.number
            case CaListInstalled():
                self._ca_lists[seen.host] = seen.number
            case HostEnded():
                self._rings.pop(seen.host, None)
                self._ca_lists.pop(seen.host, None)
            case FaultBegan() if seen.fault.kind in _FORGETS:
                self._forgetful |= dict.fromkeys(seen.fault.nodes)
            case RingAccepted() if not seen.grown:
                for name, ring in self._behind(self._rings, seen):
                    yield (
                        f"{seen.host} accepted ring {seen.number}, which seals with {seen.primary}, while {name} "
                        f"was a member and had ring {ring}"
                    )
            case CaListAccepted() if not seen.added:
                for name, number in self._behind(self._ca_lists, seen):
                    yield (
                        f"{seen.host} accepted CA list {seen.number}, by which {seen.signing} signs, while {name} "
                        f"was a member and followed list {number}"
                    )

    def _behind(self, installed: dict[str, int], seen: RingAccepted | CaListAccepted) -> Iterator[tuple[str, int]]:
        for name in seen.active:
            number = installed.get(name)
            if number is not None and number < seen.number - 1 and name not in self._forgetful:
                yield name, number
