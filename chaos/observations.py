"""What is seen of a world while it runs: the sealed set of things that invariants, coverage and reports hear.

The world tells each in the moment it happens, in one order. Rows are versions as they were committed, never looked up
later.
Times are milliseconds from the moment when the mesh was whole; negative ones lie before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chaos.scenario import Fault
from mesh.effects import MemberChanged
from mesh.ids import Origin
from mesh.rows import Row
from mesh.version_vector import VersionVector
from node.env import Job
from node.storage.transaction import Change


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Base of everything that is seen."""

    at_ms: float
    host: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostStarted(Seen):
    """A node's process took up work. `life` orders the starts of one node id (see mesh.ids.make_life)."""

    life: int
    origin: Origin
    integrity: str = "ok"
    """What SQLite's integrity_check said of the database that it found."""
    members: Mapping[str, str] = field(default_factory=dict)
    """Status of every member that it knows at once; later changes are seen one by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostEnded(Seen):
    """A node's process is gone. `durable_lost`: its disk may have lost synced data (lied, was wiped or rolled back)."""

    how: str
    """`kill`, `stop`, `power-cut`; `refused` when it ended at its start with a word for the operator, who starts it
    again soon; `failed` when it ended by itself in any other way, which is a violation in itself."""
    durable_lost: bool = False
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed(Seen):
    """A commit returned. `changes` are the row versions that became current here, in order; `written` those that this
    node stamped itself (its own writes), per request."""

    changes: tuple[Change, ...]
    written: tuple[tuple[Row, ...], ...]
    synced: bool
    """Whether the disk really has it: False when anything was still unsynced as the commit returned."""
    pulls: int = 0
    """Pulls from peers that this process had finished before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseReplaced(Seen):
    """A node goes on with a snapshot of a peer. What is new in it is told as a `Committed` right after."""

    origin: Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(Seen):
    """An agent began an attempt under `job.fence`."""

    job: Job


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded(Seen):
    """It ended: `outcome` is a kind of `node.env.Outcome`, or `killed` with its node or by a cancel."""

    job: Job
    outcome: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointAsked(Seen):
    """A run asked its node to keep a checkpoint."""

    job: Job
    content: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointKept(Seen):
    """The node answered that it is durable."""

    job: Job
    content: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkWrite(Seen):
    """A run wrote to the outside service that checks fences; refused when it had seen a higher one of that step."""

    step_id: str
    fence: str
    accepted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientAsked(Seen):
    """A client sent a request to `host`. `call` numbers requests."""

    call: int
    command: str
    args: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientAnswered(Seen):
    """What the client heard: an answer, or the name and text of an error. Both empty: nothing in time, so unknown."""

    call: int
    command: str
    args: Mapping[str, Any]
    answer: Any = None
    error: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberSeen(Seen):
    """`host` changed its mind about a member."""

    change: MemberChanged


@dataclass(frozen=True, slots=True, kw_only=True)
class RingInstalled(Seen):
    """A node uses this key ring from now on; also told at each start of one."""

    number: int
    primary: str
    keys: tuple[str, ...]
    """Names of all its keys, the primary one among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RingAccepted(Seen):
    """A node took the operator's next key ring in. `active`: whom it held for ALIVE or SUSPECT when it decided."""

    number: int
    primary: str
    active: tuple[str, ...]
    grown: bool
    """It has one key more than the ring before, and is like it otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaListInstalled(Seen):
    """A node follows this list of the mesh's CAs from now on; also told at each start of one."""

    number: int
    signing: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CaListAccepted(Seen):
    """A node took the operator's next list of CAs in. `active`: whom it held for ALIVE or SUSPECT when it decided."""

    number: int
    signing: str
    active: tuple[str, ...]
    added: bool
    """It has one CA more than the list before, and is like it otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsReloaded(Seen):
    """A node was given a bad settings file and then a good one, and answered both in one life."""

    bad_refused: bool
    wanted: Mapping[str, Any]
    """What the good one says."""
    in_force: Mapping[str, Any]
    """What the node goes by afterwards."""
    spread: tuple[int, int | None]
    """Fanout and hop cap of its gossip then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RumorRepeated(Seen):
    """What is above the membership of `host` was handed a rumor that this process had been handed before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultBegan(Seen):
    """A fault began."""

    fault: Fault


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultEnded(Seen):
    """A fault ended."""

    fault: Fault


@dataclass(frozen=True, slots=True, kw_only=True)
class Healed(Seen):
    """All faults are over, every host was started again, clients ask nothing new: the liveness phase begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled(Seen):
    """All work has ended and all replicas agree: from here on a mesh must be idle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled(Seen):
    """A look at one running node between two of its transactions."""

    memory_vector: VersionVector
    stored_vector: VersionVector
    sums: Mapping[Origin, Any]
    """Count and digest sum per origin, as `verify` compares them."""
    parked: Mapping[str, int]
    """Rows from the future, by table: seen, and not part of the replica until their time comes."""
    levels: Mapping[str, int]
    """Sizes of queues and caches, by name."""
    stable: bytes = b""
    """A digest of what it knows to be stable: what it may have forgotten."""
    has_garbage: bool = False
    """Whether it is about to forget more."""
    forgotten: int = 0
    """Rows that this process dropped because every member knows of their deletion."""
    collapsed: int = 0
    """Origins that it knows to be of the past, and lists in no vector."""
    disk_writes: int = 0
    """How many times anything was written to the host's disk so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged(Seen):
    """A node logged a warning or worse."""

    level: int
    text: str


@dataclass(frozen=True, slots=True)
class Replica:
    """All of one node at the end."""

    rows: Mapping[tuple[str, str, str], Row]
    """Current version by (table, namespace, key)."""
    vector: VersionVector
    sums: Mapping[Origin, Any]
    quarantine: Sequence[tuple[Any, ...]]
    queued: Mapping[str, str]
    """Steps in the local queue: step id to namespace."""
    members: Mapping[str, str]
    """Status of every member it knows, itself included."""


@dataclass(frozen=True, slots=True)
class Rest:
    """The world after the liveness phase. `settled_ms` is None when it did not settle within the bound."""

    replicas: Mapping[str, Replica]
    healed_ms: float
    settled_ms: float | None
    settle_s: float
    unsettled: str = ""
    """What was still open then, in words."""
