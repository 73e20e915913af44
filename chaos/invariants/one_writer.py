"""Ownership: a step's row is written by its owner alone, by a taker when the owner is gone, or by a replayer."""

from __future__ import annotations

from collections.abc import Iterator

from chaos.invariants.mirror import Mirror
from chaos.invariants.oracle import is_open, owner_of, told, turn_of
from chaos.invariants.promise import Promise
from chaos.observations import Committed, Seen
from mesh.rows import Row
from node.storage.transaction import Change


def takes_over(change: Change) -> bool:
    """Whether this local write makes its writer the owner of an open step of somebody else, in the same generation."""
    before, after = change.before, change.after
    return (
        before is not None
        and is_open(before)
        and not before.deleted
        and before.generation == after.generation
        and owner_of(before) != after.node == owner_of(after)
        and after.lease_epoch > before.lease_epoch
    )


class OneWriter(Promise):
    """Every version of a step is written by the holder of its lease, and a lease is opened by whoever may open one.

    That is the owner (to run it, to give it away), a taker, whose reasons `takeover-justified` judges, or a replayer of
    a step that has ended.
    """

    name = "one-writer"
    hears = (Committed,)

    def __init__(self, mirror: Mirror) -> None:
        super().__init__(mirror)
        self._holders: dict[tuple[str, tuple[int, int, int]], dict[str, None]] = {}
        """Of every turn at every step. Two nodes may have opened one epoch in the same millisecond."""

    def see(self, seen: Seen) -> Iterator[str]:
        """Ask of each version who may have written it."""
        assert isinstance(seen, Committed)
        for change in seen.changes:
            if change.after.table != "steps":
                continue
            if change.before is not None:
                self._note(change.before)
            if change.local and not change.after.deleted and (wrong := self._wrong(change)):
                yield f"{seen.host} wrote {told(change.after)} {wrong}"
            self._note(change.after)

    def _note(self, step: Row) -> None:
        self._holders.setdefault((step.key, turn_of(step)), {})[owner_of(step)] = None

    def _wrong(self, change: Change) -> str:
        before, after = change.before, change.after
        writer = after.node
        if before is None:
            return "" if owner_of(after) == writer else "as a new step of somebody else"
        if writer in self._holders.get((after.key, turn_of(after)), {}):
            return ""
        if turn_of(after) == turn_of(before):
            return f"without being its owner, over {told(before)}"
        if owner_of(before) == writer:
            return ""
        if after.generation > before.generation and owner_of(after) == writer:
            return (
                f"as a replay of what had not ended: {told(before)}" if is_open(before) and not before.deleted else ""
            )
        return "" if takes_over(change) else f"over {told(before)}, and is neither its owner, a taker nor a replayer"
