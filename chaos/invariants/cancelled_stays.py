"""Cancel: the answer `cancelled` holds from then on, where it was given at once and everywhere in the end."""

from __future__ import annotations

from collections.abc import Iterator

from chaos.invariants.mirror import Mirror
from chaos.invariants.oracle import CANCELLED, is_open, told
from chaos.invariants.promise import Promise
from chaos.observations import ClientAnswered, ClientAsked, Committed, Rest, RunStarted, Seen

START_MS = 500.0
"""From a claim to the start of its run, at the most."""


class CancelledStays(Promise):
    """A node that answered `cancelled` starts no run of that task later, and at rest none of its steps is open or dead.

    A step may turn out to have succeeded beyond a cut. Tasks of which a client ever asked a replay are not judged.
    """

    name = "cancelled-stays"
    hears = (ClientAsked, ClientAnswered, Committed, RunStarted)

    def __init__(self, mirror: Mirror) -> None:
        super().__init__(mirror)
        self._cancelled: dict[str, dict[str, float]] = {}
        """By task and host: when it was answered."""
        self._replayed: dict[str, None] = {}

    def see(self, seen: Seen) -> Iterator[str]:
        """Note answers, and runs after them."""
        match seen:
            case ClientAsked(command="replay"):
                self._replayed[str(seen.args["taskId"])] = None
            case Committed():
                for change in seen.changes:
                    # Whoever asked for many at once need not have heard which they were.
                    if change.local and change.after.table == "history" and change.after.text("action") == "replayed":
                        self._replayed[change.after.text("task_id")] = None
            case ClientAnswered(command="cancel", answer={"state": "cancelled", "taskId": str(task_id)}):
                self._cancelled.setdefault(task_id, {}).setdefault(seen.host, seen.at_ms)
            case RunStarted(job=job) if job.task_id not in self._replayed and job.task_id not in self.mirror.deleted_ms:
                answered_ms = self._cancelled.get(job.task_id, {}).get(seen.host)
                if (
                    answered_ms is not None
                    and self.mirror.host(seen.host).lost_ms < answered_ms < seen.at_ms - START_MS
                ):
                    yield f"{seen.host} said at {answered_ms:.0f} ms: {job.task_id} is cancelled; it runs {job.step_id}"
            case _:
                pass

    def judge(self, rest: Rest) -> Iterator[str]:
        """Look how those tasks ended."""
        cancelled = {task: hosts for task, hosts in self._cancelled.items() if task not in self._replayed}
        for replica in list(rest.replicas.values())[:1]:  # `replicas-equal` speaks for the others
            for step in replica.rows.values():
                if step.table != "steps" or step.text("task_id") not in cancelled or step.rank >= CANCELLED:
                    continue
                hosts = [self.mirror.host(name) for name in cancelled[step.text("task_id")]]
                if any(not host.has_lost for host in hosts) and not self.mirror.node_was_doubled(step.node):
                    what = "is still open" if is_open(step) else "is a dead letter"
                    yield f"{step.text('task_id')} was answered as cancelled, and {what}: {told(step)}"
