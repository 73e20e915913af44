"""What the observations say of every host so far: the memory that all promises share.

The judge lets it hear each observation after the promises have: they see the world as it was before.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from chaos.invariants.oracle import RowName, name_of
from chaos.observations import (
    Committed,
    FaultBegan,
    FaultEnded,
    Healed,
    HostEnded,
    HostStarted,
    Logged,
    MemberSeen,
    Seen,
    Settled,
)
from chaos.scenario import Fault, Scenario
from mesh.profiles import PROFILES
from mesh.rows import Row

DISK_KINDS = frozenset(
    {
        "power-cut-at-write",
        "lying-sync",
        "sync-error",
        "io-error",
        "disk-full",
        "read-only",
        "bit-flip",
    }
)
"""Faults under which a commit may fail and have happened all the same, unseen by anybody."""
IMAGE_KINDS = frozenset({"stale-image", "wipe", "clone", "lying-sync", "bit-flip"})
"""Faults after which a host may know less than it knew, or be there twice."""
STORE_FAILS = "the local store fails"


@dataclass(slots=True)
class Opinion:
    """What a process last thought of a member."""

    status: str
    since_ms: float
    left_gone_ms: float = float("-inf")
    """When it last stopped to hold the member DEAD or LEFT."""

    @property
    def is_gone(self) -> bool:
        """Whether it holds the member DEAD or LEFT."""
        return self.status in ("DEAD", "LEFT")


@dataclass(slots=True)
class HostMirror:
    """One machine."""

    name: str
    node_id: str
    is_up: bool = False
    life: int = 0
    began_ms: float = float("-inf")
    """The first sign of the process that runs, or of the last one that did."""
    ended_ms: float = float("-inf")
    """The last end of a process."""
    lost_ms: float = float("-inf")
    """When its disk last lost what it had synced."""
    rows: dict[RowName, Row] = field(default_factory=dict)
    """Its current versions, as far as they were seen to be committed since its disk last lost any."""
    view: dict[str, Opinion] = field(default_factory=dict)
    """What its process thinks of others. Members of whom nothing was heard since the process started are missing."""
    store_failed_ms: float = float("-inf")
    """When it last found its store failed."""
    met: dict[str, float] = field(default_factory=dict)
    """Kinds of faults that ever hit it, and when each last began."""
    active: dict[str, int] = field(default_factory=dict)
    """Kinds of faults on it right now, and how many of each."""
    hit_until_ms: float = float("-inf")
    """When the last fault on it ended."""

    @property
    def has_lost(self) -> bool:
        """Whether its disk ever lost anything: then it may hold more than was seen since."""
        return self.lost_ms > float("-inf")

    @property
    def is_unsure(self) -> bool:
        """Whether it may have committed what nobody saw."""
        return not DISK_KINDS.isdisjoint(self.met)

    @property
    def was_doubled(self) -> bool:
        """Whether it was rolled back, emptied or copied."""
        return not IMAGE_KINDS.isdisjoint(self.met)


class Mirror:
    """All hosts, and the course of the run."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.hosts: dict[str, HostMirror] = {name: HostMirror(name, name) for name in scenario.node_names()}
        self.faults: list[Fault] = []
        """Faults that have begun, in order."""
        self.active: list[Fault] = []
        self.healed_ms: float | None = None
        self.settled_ms: float | None = None
        self.deleted_ms: dict[str, float] = {}
        """Tasks that were ever deleted, and when that was first seen. Their rows go once every member knows."""
        self.deleted_events: dict[RowName, Row] = {}
        """Rows of the history that were deleted before their task, as they were: what they told, they told."""
        self._lifted: dict[RowName, None] = {}
        """Holds that were ever ended: their rows go, too, once every member knows."""
        self._task_of: dict[str, str] = {}
        """The task of a step, a payload or an event."""
        self.dead_time_s = PROFILES[scenario.profile].dead_after_s(scenario.nodes)

    def host(self, name: str) -> HostMirror:
        """This machine; one that nobody named so far is new."""
        found = self.hosts.get(name)
        if found is None:
            found = self.hosts[name] = HostMirror(name, name)
        return found

    def of_node(self, node_id: str) -> list[HostMirror]:
        """The machines that run, or ran, this node: one, and its clones."""
        return [host for host in self.hosts.values() if host.node_id == node_id]

    def promised(self) -> list[HostMirror]:
        """The machines of the scenario. A clone's disk goes away with it, and nothing was promised of that."""
        return [self.hosts[name] for name in self.scenario.node_names()]

    def node_is_unsure(self, node_id: str) -> bool:
        """Whether a host of this node may have committed what nobody saw."""
        return any(host.is_unsure for host in self.of_node(node_id))

    def node_was_doubled(self, node_id: str) -> bool:
        """Whether a host of this node was rolled back, emptied or copied."""
        return any(host.was_doubled for host in self.of_node(node_id))

    def has_met(self, kinds: frozenset[str]) -> bool:
        """Whether a fault of these kinds has begun anywhere."""
        return any(fault.kind in kinds for fault in self.faults)

    def was_deleted(self, row: Row) -> bool:
        """Whether this was ever deleted, or its task was."""
        task_id = row.key if row.table == "tasks" else row.text("task_id")
        name = name_of(row)
        return task_id in self.deleted_ms or name in self.deleted_events or name in self._lifted

    def step_was_deleted(self, step_id: str) -> bool:
        """Whether the step's task was ever deleted."""
        return self._task_of.get(step_id, "") in self.deleted_ms

    def hear(self, seen: Seen) -> None:
        """Take in what happened."""
        match seen:
            case Committed():
                self._committed(seen)
            case MemberSeen():
                self._member(seen)
            case HostStarted():
                host = self._living(seen)
                host.life = seen.life
                host.node_id = seen.origin.node
                for node_id, status in seen.members.items():
                    host.view.setdefault(node_id, Opinion(status, seen.at_ms))
            case HostEnded():
                self._ended(seen)
            case FaultBegan():
                self._fault_began(seen)
            case FaultEnded():
                self._fault_ended(seen)
            case Logged():
                self._logged(seen)
            case Healed():
                self.healed_ms = seen.at_ms
            case Settled():
                self.settled_ms = seen.at_ms
            case _:
                pass

    def _living(self, seen: Seen) -> HostMirror:
        host = self.host(seen.host)
        if not host.is_up:
            host.is_up = True
            host.began_ms = seen.at_ms
        return host

    def _committed(self, seen: Committed) -> None:
        host = self._living(seen)
        for change in seen.changes:
            row = change.after
            host.rows[name_of(row)] = row
            if row.table == "history" and row.deleted and change.before is not None and not change.before.deleted:
                self.deleted_events.setdefault(name_of(row), change.before)
            if row.table == "holds" and row.deleted:
                self._lifted[name_of(row)] = None
            if row.table != "tasks":
                self._task_of.setdefault(row.key, row.text("task_id"))
            elif row.deleted:
                self.deleted_ms.setdefault(row.key, seen.at_ms)

    def _member(self, seen: MemberSeen) -> None:
        host, change = self._living(seen), seen.change
        opinion = host.view.get(change.node_id)
        if opinion is None:
            host.view[change.node_id] = Opinion(change.after, seen.at_ms)
        elif opinion.status != change.after:
            if opinion.is_gone:
                opinion.left_gone_ms = seen.at_ms
            opinion.status, opinion.since_ms = change.after, seen.at_ms

    def _ended(self, seen: HostEnded) -> None:
        host = self.host(seen.host)
        host.is_up = False
        host.ended_ms = seen.at_ms
        host.view.clear()
        if seen.durable_lost:
            host.lost_ms = seen.at_ms
            host.rows.clear()

    def _fault_began(self, seen: FaultBegan) -> None:
        self.faults.append(seen.fault)
        self.active.append(seen.fault)
        for name in seen.fault.nodes:
            host = self.host(name)
            host.met[seen.fault.kind] = seen.at_ms
            host.active[seen.fault.kind] = host.active.get(seen.fault.kind, 0) + 1

    def _fault_ended(self, seen: FaultEnded) -> None:
        self.active = [fault for fault in self.active if fault is not seen.fault]
        for name in seen.fault.nodes:
            host = self.host(name)
            host.hit_until_ms = seen.at_ms
            host.active[seen.fault.kind] = host.active.get(seen.fault.kind, 1) - 1
            if host.active[seen.fault.kind] <= 0:
                del host.active[seen.fault.kind]

    def _logged(self, seen: Logged) -> None:
        if STORE_FAILS in seen.text:
            self.host(seen.host).store_failed_ms = seen.at_ms
