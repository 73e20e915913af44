"""The lines between real nodes, as faults see them: overlays are laid over pairs of nodes, and lifted again.

Two things keep this promise: firewall rules between addresses of one host, here, and `tun_switch`, which carries every
packet itself and can therefore do more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from chaos.real.firewall import Cut, Firewall
from chaos.simulation.links import Overlay, Pair


class Lines(Protocol):
    """The lines between all nodes of a cluster."""

    def lay(self, overlay: Overlay) -> None:
        """Begin a change; it holds when this returns."""
        ...

    def lift(self, overlay: Overlay) -> None:
        """End a change; a no-op when it ended already."""
        ...

    def figures(self) -> Mapping[str, int]:
        """Packets so far, by what became of them: the proof that something was broken, and really broken."""
        ...


class NoLines:
    """Lines that nobody can touch: for scenarios without trouble on them."""

    def lay(self, overlay: Overlay) -> None:
        """Nothing can be laid."""
        raise AssertionError(f"{overlay} is laid over lines that cannot be changed")

    def lift(self, overlay: Overlay) -> None:
        """Nothing was laid."""

    def figures(self) -> Mapping[str, int]:
        """Nothing is counted."""
        return {}


class FirewallLines:
    """Lines between addresses of this host. They can be cut and lose packets, nothing else."""

    def __init__(self, firewall: Firewall, addresses: Mapping[str, str]) -> None:
        """`addresses` by node."""
        self._firewall = firewall
        self._addresses = addresses
        self._cuts: dict[Overlay, Cut] = {}
        self._healed: list[tuple[Overlay, Cut]] = []

    def lay(self, overlay: Overlay) -> None:
        """Begin a change with rules of its own: of two shares of loss both apply, one after the other."""
        share = 1.0 if overlay.blocked else overlay.loss
        assert share > 0, f"a firewall can do nothing of {overlay}"
        self._cuts[overlay] = self._firewall.drop(self._flows(overlay.pairs), share=share)

    def lift(self, overlay: Overlay) -> None:
        """Take the rules of a change away."""
        cut = self._cuts.pop(overlay, None)
        if cut is not None:
            cut.heal()
            self._healed.append((overlay, cut))

    def figures(self) -> Mapping[str, int]:
        """What cuts stopped and what leaked through them, and what loss took."""
        every = [*self._healed, *self._cuts.items()]
        cuts = [cut for overlay, cut in every if overlay.blocked]
        return {
            "packetsBlocked": sum(cut.blocked().packets for cut in cuts),
            "packetsLeaked": sum(cut.crossed().packets for cut in cuts),
            "packetsLost": sum(cut.blocked().packets for overlay, cut in every if not overlay.blocked),
        }

    def _flows(self, pairs: frozenset[Pair] | None) -> Iterable[tuple[str, str]]:
        nodes = self._addresses
        chosen = [(a, b) for a in nodes for b in nodes if a != b and (pairs is None or (a, b) in pairs)]
        return [(nodes[a], nodes[b]) for a, b in chosen]
