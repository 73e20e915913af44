"""Who is able to do a piece of work, and in which order able nodes stand.

The order is rendezvous hashing: every node computes the same one without talking, losing a node moves only the work
that stood first on it, and different work stands in different orders, so load spreads by itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """What work asks of a node: an ability by name, perhaps one certain node, and labels that must all match."""

    ability: str
    node: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a node brings: its abilities and labels, as it announced them."""

    node: str
    abilities: frozenset[str]
    labels: Mapping[str, str] = field(default_factory=dict)

    def misses(self, requirement: Requirement) -> str | None:
        """Why this node may not do the work, in words for an operator; None when it may."""
        if requirement.node is not None and requirement.node != self.node:
            return f"is not node {requirement.node}"
        if requirement.ability not in self.abilities:
            return f"has no agent {requirement.ability}"
        for name, wanted in sorted(requirement.labels.items()):
            if self.labels.get(name) != wanted:
                return f"has not the label {name}={wanted}"
        return None


def able(offers: Iterable[Offer], requirement: Requirement) -> list[str]:
    """The node ids whose offer meets the requirement, in the order given."""
    return [offer.node for offer in offers if offer.misses(requirement) is None]


def rendezvous(work: str, nodes: Iterable[str]) -> list[str]:
    """The nodes in the order in which they should take `work`: highest hash of (work, node) first.

    Every node that knows the same candidates computes the same order. Ties cannot happen in practice; they would fall
    to the lower name, so that the order stays total.
    """
    weight = {node: _weight(work, node) for node in nodes}
    return sorted(sorted(weight), key=lambda node: weight[node], reverse=True)


def first_of(work: str, nodes: Iterable[str]) -> str | None:
    """Who stands first in that order; None when there is nobody."""
    return max(sorted(nodes), key=lambda node: _weight(work, node), default=None)


def _weight(work: str, node: str) -> bytes:
    # Highest random weight (Thaler and Ravishankar, 1996). A keyed hash would do no more: the names are ours.
    return hashlib.blake2b(f"{work}\0{node}".encode(), digest_size=8).digest()
