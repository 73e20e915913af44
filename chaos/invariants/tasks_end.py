"""Work: in the end every task has ended, each step in a way that its definition and its clients allow."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from chaos.invariants.mirror import Mirror
from chaos.invariants.oracle import content_of, is_open, may_run, owner_of, status_of
from chaos.invariants.promise import Promise
from chaos.observations import ClientAsked, Committed, HostEnded, Replica, Rest, Seen
from mesh.rows import Row
from mesh.takeover import LOST_LEASES_MAX

_AGENT, _POISON = "work", "poison"


class TasksEndAsDefined(Promise):
    """No step is stuck; one is a dead letter only if its agent fails for good or ended five processes that ran it.

    One is cancelled only if a client or its handler asked for it or it was to expire, and succeeds only after its
    parents (`oracle.may_run`). One whose input or checkpoint was lost with the only disk that had it waits for ever:
    what was told of it elsewhere is not enough to run it. Such a disk may take along that a parent succeeded, too;
    `children-after-parents` looks at what the step's own node knew.
    """

    name = "tasks-end-as-defined"
    hears = (ClientAsked, Committed, HostEnded)

    def __init__(self, mirror: Mirror) -> None:
        super().__init__(mirror)
        self._cancels: dict[str, None] = {}
        self._claimed: dict[str, dict[str, None]] = {}
        """By host, the steps that it holds as RUNNING."""
        self._lost: dict[str, int] = {}
        """How often a process ended that held this step as RUNNING."""

    def see(self, seen: Seen) -> Iterator[str]:
        """Note what may end a step otherwise than by success."""
        match seen:
            case ClientAsked(command="cancel"):
                self._cancels[str(seen.args["taskId"])] = None
            case Committed():
                claimed = self._claimed.setdefault(seen.host, {})
                for change in seen.changes:
                    step = change.after
                    if step.table == "steps" and status_of(step) == "RUNNING" and step.node == owner_of(step):
                        if change.local:
                            claimed[step.key] = None
                    elif step.table == "steps":
                        claimed.pop(step.key, None)
            case HostEnded():
                for step_id in self._claimed.pop(seen.host, {}):
                    self._lost[step_id] = self._lost.get(step_id, 0) + 1
            case _:
                pass
        yield from ()

    def judge(self, rest: Rest) -> Iterator[str]:
        """Look at every step of one replica."""
        for replica in list(rest.replicas.values())[:1]:  # `replicas-equal` speaks for the others
            tasks: dict[str, dict[str, Row]] = {}
            for row in replica.rows.values():
                if row.table == "steps" and not row.deleted:
                    tasks.setdefault(row.text("task_id"), {})[row.text("name")] = row
            for task_id, by_name in tasks.items():
                for step in by_name.values():
                    if wrong := self._wrong_end(replica, step, by_name):
                        yield f"step {step.key} ({step.text('name')} of {task_id}, of {owner_of(step)}) {wrong}"

    def _wrong_end(self, replica: Replica, step: Row, by_name: Mapping[str, Row]) -> str:
        is_ready = may_run(step, by_name)
        task = replica.rows.get(("tasks", step.namespace, step.text("task_id")))
        is_lost = any(host.has_lost for host in self.mirror.hosts.values())
        match status_of(step):
            case "PENDING" if task is not None and step.integer("task_generation") < task.integer("cancelled_below"):
                return "waits, though its task was cancelled"
            case "PENDING" if not _has_input(replica, step):
                return "" if is_lost else "waits for an input that nobody has, though no disk was lost"
            case "PENDING":
                return "waits, though it could run" if is_ready else ""
            case "SUCCESS" if self._fails_for_good(replica, step):
                return "succeeded, though its agent always fails"
            case "SUCCESS" if not is_ready and not is_lost and (task is None or not task.generation):
                return "succeeded before its parents"
            case "DEAD_LETTER" if step.text("last_error").startswith("poison"):
                # What a lost disk knew of a run's end, the mesh takes for a process that ended during the run.
                lost = self._lost.get(step.key, 0) + sum(host.has_lost for host in self.mirror.hosts.values())
                return "" if lost >= LOST_LEASES_MAX else f"is called poison after {lost} processes ended with it"
            case "DEAD_LETTER":
                return "" if self._fails_for_good(replica, step) else f"is a dead letter: {step.text('last_error')}"
            case "CANCELLED" if step.text("last_error").startswith("expired") and step.integer("expires_ms"):
                return ""
            case "CANCELLED":
                gives_up = self._work(replica, step).get("choices", {}).get("gives_up")
                asked = gives_up or step.text("task_id") in self._cancels
                return "" if asked else "is cancelled, though nobody asked for it"
            case "RETRYING" if not is_ready:
                return ""  # a replayed parent failed between two attempts
            case status:
                return f"is stuck as {status}" if is_open(step) else ""

    def _fails_for_good(self, replica: Replica, step: Row) -> bool:
        if step.text("agent") == _POISON:
            return True
        return bool(self._work(replica, step).get("doomed"))

    def _work(self, replica: Replica, step: Row) -> dict[str, Any]:
        if step.text("agent") != _AGENT:
            return {}
        work: dict[str, Any] = json.loads(content_of(replica.rows, step, "input") or b"{}")
        return work


def _has_input(replica: Replica, step: Row) -> bool:
    references = filter(None, (step.text("input_ref"), step.text("checkpoint_ref")))
    return all(("payloads", step.namespace, reference) in replica.rows for reference in references)
