"""Answers: a client is refused, or hears nothing, only for a reason; and one key is one task to all clients."""

from __future__ import annotations

import re
from collections.abc import Iterator

from chaos.invariants.mirror import HostMirror, Mirror
from chaos.invariants.promise import Promise
from chaos.observations import ClientAnswered, ClientAsked, Seen

RECOVERY_MS = 15_000.0
"""So long after a fault on a host its effects may be felt there: a store works again, a start is over."""


class RefusalsExplained(Promise):
    """A host refuses when it is down, its disk fails, it is over its budget, or it has not heard of a task.

    A replay may find nothing that ended.

    It leaves a client without any answer only while something is wrong with that host.
    """

    name = "refusals-explained"
    hears = (ClientAsked, ClientAnswered)

    def __init__(self, mirror: Mirror) -> None:
        super().__init__(mirror)
        self._asked_ms: dict[int, float] = {}

    def see(self, seen: Seen) -> Iterator[str]:
        """Ask for the reason."""
        if isinstance(seen, ClientAsked):
            self._asked_ms[seen.call] = seen.at_ms
            return
        assert isinstance(seen, ClientAnswered)
        asked_ms = self._asked_ms.pop(seen.call, seen.at_ms)
        if seen.answer is None and not self._is_explained(seen, asked_ms):
            said = f"{seen.error}: {seen.text}" if seen.error else "nothing"
            yield f"{seen.host} answered {seen.command} with {said}"

    def _is_explained(self, seen: ClientAnswered, asked_ms: float) -> bool:
        host = self.mirror.host(seen.host)
        match seen.error:
            case "NotFoundError":
                return seen.command not in ("submit", "submit-workflow")  # `node-knows-its-word` knows who must know
            case "ConflictError":
                return seen.command == "replay"
            case "ConfigError":
                return "onPartition=wait" in seen.text and self._knows_few(host, seen.text)
            case "StoreError":
                return host.is_unsure
            case "UnavailableError" if seen.text.startswith("disk_budget: "):
                return bool(self.mirror.scenario.settings.get("diskBudgetBytes"))
            case "UnavailableError" | "":
                return _is_in_trouble(host, asked_ms, seen.at_ms)
            case _:
                return False

    def _knows_few(self, host: HostMirror, text: str) -> bool:
        """Whether it knows fewer members than the roster of a waiting step needs; one that leaves is none itself."""
        gone = {"LEFT"}
        if any(fault.kind == "long-absence" for fault in self.mirror.scenario.faults):
            gone.add("DEAD")  # its peers may have pruned it
        others = [name for name, thought in host.view.items() if thought.status not in gone and name != host.node_id]
        named = re.search(r"member\(s\) \(([^)]*)\)", text)
        counts_itself = named is not None and host.node_id in named[1].split(", ")
        return len(others) < (2 if counts_itself else 3)


def _is_in_trouble(host: HostMirror, asked_ms: float, now_ms: float) -> bool:
    is_hit = bool(host.active) or host.hit_until_ms >= asked_ms - RECOVERY_MS
    has_restarted = max(host.ended_ms, host.began_ms) >= asked_ms - RECOVERY_MS / 3
    return not host.is_up or is_hit or has_restarted


class OneTaskPerKey(Promise):
    """All acknowledgements of one key name one task, and a host accepts a key as new only once."""

    name = "one-task-per-key"
    hears = (ClientAnswered,)

    def __init__(self, mirror: Mirror) -> None:
        super().__init__(mirror)
        self._tasks: dict[str, str] = {}
        self._new: dict[tuple[str, str], float] = {}

    def see(self, seen: Seen) -> Iterator[str]:
        """Compare with what others heard."""
        assert isinstance(seen, ClientAnswered)
        if seen.answer is None or seen.command not in ("submit", "submit-workflow"):
            return
        key, task_id = str(seen.answer["idempotencyKey"]), str(seen.answer["taskId"])
        if self._tasks.setdefault(key, task_id) != task_id:
            yield f"{seen.host} answered key {key!r} with {task_id}, which is {self._tasks[key]} elsewhere"
        if not seen.answer["deduplicated"]:
            first_ms = self._new.get((seen.host, key))
            if (
                first_ms is not None
                and task_id not in self.mirror.deleted_ms
                and self.mirror.host(seen.host).lost_ms < first_ms
            ):
                yield f"{seen.host} accepted key {key!r} as new at {first_ms:.0f} ms, and again"
            self._new[seen.host, key] = seen.at_ms
