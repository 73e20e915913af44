"""Observations made by hand: a small mesh told move by move, so that one promise at a time can be broken in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from chaos.invariants import Judge
from chaos.observations import (
    ClientAnswered,
    ClientAsked,
    Committed,
    FaultBegan,
    HostStarted,
    MemberSeen,
    Replica,
    Rest,
    RunStarted,
    Seen,
)
from chaos.scenario import Fault, Scenario
from mesh.effects import MemberChanged
from mesh.fences import Fence
from mesh.ids import Origin
from mesh.rows import Row
from mesh.version_vector import VersionVector
from node.env import Job
from node.storage.transaction import Change

RANKS = {"DEAD_LETTER": 1, "CANCELLED": 2, "SUCCESS": 3}
METADATA = frozenset(Row.__struct_fields__)


@dataclass
class Feed:
    """Tells of commits, runs and answers of hosts n0, n1, … in order. Each host has its rows, as a store would."""

    nodes: int = 4
    settings: dict[str, Any] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    at_ms: float = 0.0
    rows: dict[str, dict[tuple[str, str, str], Row]] = field(default_factory=dict)
    heads: dict[str, int] = field(default_factory=dict)
    stamp: int = 1_000
    calls: int = 0

    def tell(self, kind: type[Seen], host: str = "", *, after_ms: float = 10.0, **fields: Any) -> None:
        self.at_ms += after_ms
        self.seen.append(kind(at_ms=self.at_ms, host=host, **fields))

    # --- rows ---

    def write(
        self,
        host: str,
        key: str = "k",
        *,
        table: str = "steps",
        opens: bool = False,
        pulls: int = 1,
        after_ms: float = 10.0,
        **fields: Any,
    ) -> Row:
        """A host's own write over its current version: metadata by name, anything else is a column."""
        namespace = fields.pop("namespace", "default")
        before = self.rows.setdefault(host, {}).get((table, namespace, key))
        metadata = {name: value for name, value in fields.items() if name in METADATA}
        columns = {name: value for name, value in fields.items() if name not in METADATA}
        values = {} if before is None else dict(before.values)
        if table == "steps":
            values = {"status": "PENDING", "owner": host, "name": key, "task_id": "t", "agent": "work"} | values
            status = str(columns.get("status", values["status"]))
            metadata = {
                "rank": RANKS.get(status, 0),
                "cluster_epoch": before.cluster_epoch if before else 1,
            } | metadata
        self.stamp += 10
        self.heads[host] = self.heads.get(host, 0) + 1
        if opens:
            epoch = before.lease_epoch + 1 if before else 1
            metadata = {"lease_hlc": self.stamp, "lease_epoch": epoch} | metadata
        origin = Origin(host, 7)
        base = before or Row(
            table=table, namespace=namespace, key=key, hlc=1, node=host, origin=origin, seq=1, values={}
        )
        stamped = {"hlc": self.stamp, "node": host, "origin": origin, "seq": self.heads[host]}
        row = msgspec.structs.replace(base, **(stamped | metadata | {"values": values | columns}))
        self.commit(host, row, before, local=True, pulls=pulls, after_ms=after_ms)
        return row

    def copy(self, row: Row, *hosts: str) -> None:
        """Hosts merge a version of somebody else."""
        for host in hosts:
            before = self.rows.setdefault(host, {}).get((row.table, row.namespace, row.key))
            self.commit(host, row, before, local=False)

    def commit(
        self, host: str, row: Row, before: Row | None, *, local: bool, pulls: int = 1, after_ms: float = 10.0
    ) -> None:
        self.rows.setdefault(host, {})[row.table, row.namespace, row.key] = row
        changes, written = (Change(before, row, local),), ((row,),) if local else ()
        self.tell(Committed, host, changes=changes, written=written, synced=True, pulls=pulls, after_ms=after_ms)

    def claim(self, host: str, key: str = "k", **fields: Any) -> Row:
        return self.write(host, key, opens=True, status="RUNNING", **fields)

    def history(self, host: str, step: Row, action: str) -> Row:
        told = {"task_id": step.text("task_id"), "step_id": step.key, "action": action, "fence": fence(step)}
        return self.write(host, f"{action}-{step.key}", table="history", detail="{}", **told)

    # --- runs, clients, members ---

    def run(self, host: str, step: Row, *, fence_text: str = "", after_ms: float = 10.0, parents: Any = None) -> None:
        job = Job(
            task_id=step.text("task_id"),
            step_id=step.key,
            step_name=step.text("name"),
            namespace="default",
            agent="work",
            attempt=1,
            fence=fence_text or fence(step),
            traceparent="",
            timeout_s=60.0,
            payload=b"{}",
            parents=parents or {},
        )
        self.tell(RunStarted, host, job=job, after_ms=after_ms)

    def ask(self, host: str, command: str, args: Mapping[str, Any], **answered: Any) -> None:
        self.calls += 1
        self.tell(ClientAsked, host, call=self.calls, command=command, args=args)
        self.tell(ClientAnswered, host, call=self.calls, command=command, args=args, **answered)

    def submit(self, host: str, task_id: str = "t", **answer: Any) -> None:
        told = {"taskId": task_id, "deduplicated": False, "idempotencyKey": "key", "replicated": 0, "replicasWanted": 0}
        self.ask(host, "submit-workflow", {}, answer=told | answer)

    def look(self, host: str, step: Row) -> None:
        status, owner = step.text("status"), step.text("owner")
        view = {"stepId": step.key, "status": status, "generation": step.generation, "owner": owner}
        answer = {"taskId": "t", "steps": [view | {"fence": fence(step)}]}
        self.ask(host, "task", {"taskId": "t"}, answer=answer)

    def start(self, host: str, *, life: int = 1, incarnation: int = 7, members: Any = None) -> None:
        self.tell(HostStarted, host, life=life, origin=Origin(host, incarnation), members=members or {})

    def sees(self, host: str, member: str, status: str, *, before: str = "ALIVE", after_ms: float = 10.0) -> None:
        self.tell(MemberSeen, host, change=MemberChanged(member, before, status, "told"), after_ms=after_ms)

    def fault(self, kind: str, *nodes: str) -> None:
        self.tell(FaultBegan, fault=Fault(kind=kind, at_s=self.at_ms / 1000, nodes=nodes))

    # --- the verdict ---

    def rest(self, **changes: Any) -> Rest:
        """The replicas as they were told of; `changes` are fields of the Rest."""
        replicas = {
            host: Replica(
                rows=dict(rows),
                vector=VersionVector({Origin(each, 7): [(1, head)] for each, head in self.heads.items()}),
                sums={},
                quarantine=(),
                queued={},
                members={f"n{number}": "ALIVE" for number in range(self.nodes)},
            )
            for host, rows in self.rows.items()
        }
        fields = {"replicas": replicas, "healed_ms": 1.0, "settled_ms": 2.0, "settle_s": 60.0}
        return Rest(**(fields | changes))

    def broken(self, rest: Rest | None = None) -> set[str]:
        """Names of the promises that this story breaks."""
        judge = Judge(Scenario(name="x", nodes=self.nodes, settings=self.settings))
        for seen in self.seen:
            judge.see(seen)
        if rest is not None:
            judge.judge(rest)
        return {violation.invariant for violation in judge.violations}


def fence(step: Row) -> str:
    """By the product's own hand: what the oracle thinks of it is under test."""
    return Fence.of(step, step.text("owner")).encode()


def result(step: Row) -> bytes:
    """What an agent returns under the lease of this version."""
    return json.dumps({"step": step.key, "fence": fence(step)}).encode()
