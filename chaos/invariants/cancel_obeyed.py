"""Cancel: whoever owns a step when the cancel comes to it, or comes to own it later, runs it no more."""

from __future__ import annotations

from collections.abc import Iterator

from chaos.invariants.mirror import HostMirror
from chaos.invariants.oracle import is_claim, told
from chaos.invariants.promise import Promise
from chaos.observations import Committed, Seen
from mesh.rows import Row


class CancelObeyed(Promise):
    """A node that has stored a cancel claims no step that it concerns: one made before it, and not replayed since."""

    name = "cancel-obeyed"
    hears = (Committed,)

    def see(self, seen: Seen) -> Iterator[str]:
        """Hold claims against the cancels that were stored before them."""
        assert isinstance(seen, Committed)
        host = self.mirror.host(seen.host)
        for change in seen.changes:
            step = change.after
            if is_claim(change) and _is_cancelled(host, step):
                yield f"{seen.host} claimed {told(step)}, and knew that its task was cancelled"


def _is_cancelled(host: HostMirror, step: Row) -> bool:
    task = host.rows.get(("tasks", step.namespace, step.text("task_id")))
    return task is not None and step.integer("task_generation") < task.integer("cancelled_below")
