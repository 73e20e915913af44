"""Generations: each counts one more beginning of a task or a step, so that two nodes who begin it anew agree on it."""

from __future__ import annotations

from collections.abc import Iterator

from chaos.invariants.oracle import told
from chaos.invariants.promise import Promise
from chaos.observations import Committed, Seen


class GenerationsCount(Promise):
    """A write keeps the generation that it finds, or adds one; the first is 0.

    Were it anything else, the same replay issued on both sides of a cut would be two, and the step would run again.
    """

    name = "generations-count"
    hears = (Committed,)

    def see(self, seen: Seen) -> Iterator[str]:
        """Compare each own write with what it replaced."""
        assert isinstance(seen, Committed)
        for change in seen.changes:
            if change.local and change.after.table in ("tasks", "steps"):
                base = -1 if change.before is None else change.before.generation
                allowed = (0,) if change.before is None else (base, base + 1)
                if change.after.generation not in allowed:
                    yield f"{seen.host} wrote {told(change.after)} over generation {base}"
