"""What was acknowledged is there: durably as the answer comes, on as many hosts as it says, at the end everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from chaos.invariants.mirror import Mirror
from chaos.invariants.oracle import RowName
from chaos.invariants.promise import Promise
from chaos.observations import ClientAnswered, ClientAsked, Rest, Seen

SUBMITS = ("submit", "submit-workflow")


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A submit that was answered with a task."""

    task_id: str
    host: str
    at_ms: float


def task_name(task_id: str) -> RowName:
    """The row of a task in the namespace that all clients use."""
    return "tasks", "default", task_id


class AcknowledgedKept(Promise):
    """An accepted task is committed before its answer, on as many more hosts as that says, and at rest on all of them.

    It may be lost only with every disk that ever held it; where the disk of its host was lost, a part may remain.
    """

    name = "acknowledged-kept"
    hears = (ClientAnswered,)

    def __init__(self, mirror: Mirror) -> None:
        super().__init__(mirror)
        self._told: dict[str, Acknowledged] = {}

    def see(self, seen: Seen) -> Iterator[str]:
        """Look where the task is as the client hears that it is kept."""
        assert isinstance(seen, ClientAnswered)
        if seen.command not in SUBMITS or seen.answer is None:
            return
        task_id = str(seen.answer["taskId"])
        self._told.setdefault(task_id, Acknowledged(task_id, seen.host, seen.at_ms))
        host = self.mirror.host(seen.host)
        if not self._is_at(seen.host, task_id) and not host.is_unsure and not host.has_lost:
            yield f"{seen.host} acknowledged {task_id} before it had committed it"
        # A clone confirms what it has, too, although nobody should count on it.
        others = [name for name in self.mirror.hosts if name != seen.host]
        holders = [name for name in others if self._is_at(name, task_id)]
        promised = int(seen.answer.get("replicated", 0))
        if len(holders) < promised and not any(self.mirror.host(name).has_lost for name in others):
            yield f"{seen.host} said that {promised} other hosts have {task_id}; only {holders} do"

    def _is_at(self, name: str, task_id: str) -> bool:
        return task_name(task_id) in self.mirror.host(name).rows

    def judge(self, rest: Rest) -> Iterator[str]:
        """Find every acknowledged task on every replica, with all its steps."""
        steps: dict[tuple[str, str], int] = {}
        for node, replica in rest.replicas.items():
            for row in replica.rows.values():
                if row.table == "steps" and not row.deleted:
                    place = node, row.text("task_id")
                    steps[place] = steps.get(place, 0) + 1
        for told in self._told.values():
            if told.task_id in self.mirror.deleted_ms:
                continue
            survivors = [host.name for host in self.mirror.promised() if task_name(told.task_id) in host.rows]
            for node, replica in rest.replicas.items():
                task = replica.rows.get(task_name(told.task_id))
                if task is None or task.deleted:
                    if survivors:
                        yield f"{told.task_id}, acknowledged by {told.host}, is not at {node}, but at {survivors}"
                elif steps.get((node, told.task_id), 0) != task.integer("step_count") and not self._lost_whole(told):
                    yield f"{told.task_id}, acknowledged by {told.host}, lacks steps at {node}"

    def _lost_whole(self, told: Acknowledged) -> bool:
        """Whether the one disk with all of it is lost; a pull that was cut off leaves a part elsewhere."""
        return self.mirror.host(told.host).lost_ms >= told.at_ms


class NodeKnowsItsWord(Promise):
    """A node that acknowledged a task knows it whenever it is asked later, unless its disk was lost in between."""

    name = "node-knows-its-word"
    hears = (ClientAsked, ClientAnswered)

    def __init__(self, mirror: Mirror) -> None:
        super().__init__(mirror)
        self._told_ms: dict[tuple[str, str], float] = {}
        self._asked_ms: dict[int, float] = {}

    def see(self, seen: Seen) -> Iterator[str]:
        """Note acknowledgements, and judge answers that know nothing of them."""
        if isinstance(seen, ClientAsked):
            self._asked_ms[seen.call] = seen.at_ms
            return
        assert isinstance(seen, ClientAnswered)
        asked_ms = self._asked_ms.pop(seen.call, seen.at_ms)
        if seen.answer is not None and seen.command in SUBMITS:
            self._told_ms.setdefault((seen.host, str(seen.answer["taskId"])), seen.at_ms)
        elif seen.error == "NotFoundError":
            task_id = str(seen.args.get("taskId"))
            told_ms = self._told_ms.get((seen.host, task_id))
            if task_id in self.mirror.deleted_ms:
                return
            if told_ms is not None and told_ms < asked_ms and self.mirror.host(seen.host).lost_ms < told_ms:
                yield f"{seen.host} acknowledged {task_id} at {told_ms:.0f} ms, and then: {seen.text}"
