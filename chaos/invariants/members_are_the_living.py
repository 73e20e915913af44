"""Membership: when nothing is wrong any more, every node holds exactly the living for ALIVE."""

from __future__ import annotations

from collections.abc import Iterator

from chaos.invariants.promise import Promise
from chaos.observations import Rest


class MembersAreTheLiving(Promise):
    """At rest all nodes of the mesh run, and each holds all of them, and nobody else, for ALIVE."""

    name = "members-are-the-living"

    def judge(self, rest: Rest) -> Iterator[str]:
        """Compare every opinion with the truth."""
        names = self.mirror.scenario.node_names()
        for name in names:
            if name not in rest.replicas:
                yield f"{name} does not run"
        for node, replica in rest.replicas.items():
            for name in dict.fromkeys([*names, *replica.members]):
                status = replica.members.get(name, "unknown")
                if (status == "ALIVE") != (name in names):
                    yield f"{node} holds {name} for {status}"
