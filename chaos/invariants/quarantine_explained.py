"""Quarantine: what no release could have written is put aside and never acted on, and nothing else is put aside."""

from __future__ import annotations

from collections.abc import Iterator

from chaos.invariants.promise import Promise
from chaos.observations import Committed, Rest, Sampled, Seen
from mesh.replica import REASON_CONFLICT, REASON_UNKNOWN_TABLE

LIFECYCLE_TABLES = ("tasks", "steps")
POISON_PREFIX = "poison-"
"""Keys of the rows that the fault `poison-row` makes up."""


class QuarantineExplained(Promise):
    """Poisoned rows become current nowhere; at rest, quarantine holds them and nothing that a node of ours wrote.

    A step or a task applies at once, whatever the date of its writer. Only a node that forgot what it had told, or was
    there twice, may have told an event of the history in two ways. What the next release wrote into a table of its own
    waits for the upgrade.
    """

    name = "quarantine-explained"
    hears = (Committed, Sampled)

    def see(self, seen: Seen) -> Iterator[str]:
        """Look for poison among what became current, and for work among what waits for its time."""
        if isinstance(seen, Sampled):
            for table in LIFECYCLE_TABLES:
                if table in seen.parked:
                    yield f"{seen.host} put aside {seen.parked[table]} rows of {table} for their stamps"
            return
        assert isinstance(seen, Committed)
        for change in seen.changes:
            if change.after.key.startswith(POISON_PREFIX):
                yield f"{seen.host} made a poisoned row current: {change.after}"

    def judge(self, rest: Rest) -> Iterator[str]:
        """Look at what was put aside."""
        has_forgotten = any(host.has_lost or host.was_doubled for host in self.mirror.hosts.values())
        for node, replica in rest.replicas.items():
            for table, _, key, reason, detail in replica.quarantine:
                is_poison = str(key).startswith(POISON_PREFIX) and self.mirror.has_met(frozenset({"poison-row"}))
                told_twice = table == "history" and reason == REASON_CONFLICT and has_forgotten
                of_next_release = reason == REASON_UNKNOWN_TABLE and self.mirror.has_met(frozenset({"upgrade"}))
                if not is_poison and not told_twice and not of_next_release:
                    yield f"{node} put aside {table} {key}: {reason} ({detail})"
