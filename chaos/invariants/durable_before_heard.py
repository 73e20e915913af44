"""Durability: nothing is acknowledged or gossiped before its commit, and a commit returns when it is on disk."""

from __future__ import annotations

from collections.abc import Iterator

from chaos.invariants.mirror import Mirror
from chaos.invariants.oracle import Dot, dot_of, told
from chaos.invariants.promise import Promise
from chaos.observations import Committed, Seen


class DurableBeforeHeard(Promise):
    """A commit that returned is synced, and a version reaches no other host before its writer committed it.

    Where a disk failed in the middle of a commit, the row may have been there after all.
    """

    name = "durable-before-heard"
    hears = (Committed,)

    def __init__(self, mirror: Mirror) -> None:
        super().__init__(mirror)
        self._committed: dict[Dot, None] = {}

    def see(self, seen: Seen) -> Iterator[str]:
        """Ask the disk, and of rows of others whether they were committed at home."""
        assert isinstance(seen, Committed)
        if not seen.synced:
            rows = ", ".join(told(change.after) for change in seen.changes[:3])
            yield f"{seen.host} went on with {rows} before its disk had it"
        for request in seen.written:
            for row in request:
                self._committed[dot_of(row)] = None
        for change in seen.changes:
            dot = dot_of(change.after)
            if dot not in self._committed and not self.mirror.node_is_unsure(change.after.origin.node):
                yield f"{seen.host} has {told(change.after)}, which its writer was not seen to commit"
                self._committed[dot] = None
