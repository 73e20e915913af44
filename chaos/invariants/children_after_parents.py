"""Workflows: a step runs only after those that it depends on, and remembers whose outputs it used."""

from __future__ import annotations

from collections.abc import Iterator

from chaos.invariants.mirror import Mirror
from chaos.invariants.oracle import is_claim, may_run, parents_of, parents_used, told
from chaos.invariants.promise import Promise
from chaos.observations import Committed, HostEnded, Seen
from mesh.rows import Row

Siblings = dict[tuple[str, str], Row]
"""Steps by task and name."""


class ChildrenAfterParents(Promise):
    """A step is claimed only where all its parents show SUCCESS, and stores generation and epoch of what it used.

    One that continues after failures is claimed only where none of its parents can still come to anything.
    """

    name = "children-after-parents"
    hears = (Committed, HostEnded)

    def __init__(self, mirror: Mirror) -> None:
        super().__init__(mirror)
        self._steps: dict[str, Siblings] = {}

    def see(self, seen: Seen) -> Iterator[str]:
        """Look at the parents of each claim, where and when it is made."""
        if isinstance(seen, HostEnded):
            if seen.durable_lost:
                self._steps.pop(seen.host, None)
            return
        assert isinstance(seen, Committed)
        steps = self._steps.setdefault(seen.host, {})
        for change in seen.changes:
            if change.after.table == "steps":
                steps[change.after.text("task_id"), change.after.text("name")] = change.after
                if is_claim(change):
                    yield from self._claim(seen.host, steps, change.after)

    def _claim(self, host: str, steps: Siblings, child: Row) -> Iterator[str]:
        mirrored = self.mirror.host(host)
        if mirrored.has_lost or mirrored.is_unsure or self.mirror.node_was_doubled(mirrored.node_id):
            return  # what it has was not all seen
        used, task_id = parents_used(child), child.text("task_id")
        by_name = {name: step for (task, name), step in steps.items() if task == task_id} if parents_of(child) else {}
        if not may_run(child, by_name):
            parents = [by_name.get(name) for name in parents_of(child)]
            yield f"{host} claimed {told(child)} before its parents: {', '.join(map(_told, parents))}"
            return
        for name in parents_of(child):
            parent = by_name[name]
            if used.get(name) != (parent.generation, parent.lease_epoch):
                yield f"{host} claimed {told(child)} on {name} {used.get(name)}, and has {told(parent)}"


def _told(parent: Row | None) -> str:
    return "none" if parent is None else told(parent)
