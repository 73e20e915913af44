"""What the promises know of rows and leases, in words of their own: which version wins, what a lease is.

Written from the design and not from `mesh.registers` or `mesh.fences`, which it must be able to contradict.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from mesh.row_codec import content_digest
from mesh.rows import Row
from node.storage.transaction import Change

RowName = tuple[str, str, str]
"""Table, namespace, key."""
Dot = tuple[str, int, int]
"""Node, incarnation and sequence number: what names one version for ever."""

OPEN, CANCELLED, SUCCESS = 0, 2, 3
"""Ranks of a step, from the weakest; 1 is that of a dead letter."""

_NODE_CHARS = 32


class Lease(NamedTuple):
    """One holder's turn at one step. Compare with `<` only leases of one step: greater wins."""

    generation: int
    cluster_epoch: int
    lease_epoch: int
    lease_hlc: int
    node_reversed: tuple[int, ...]
    """Of two holders that are equal so far, the lexically lower one wins."""

    @property
    def node(self) -> str:
        """Who holds it."""
        return "".join(chr(255 - number) for number in self.node_reversed if number != 255)

    def __str__(self) -> str:
        return (
            f"generation {self.generation}, cluster epoch {self.cluster_epoch}, epoch {self.lease_epoch} of {self.node}"
        )


@functools.lru_cache(maxsize=1024)  # one entry per node id
def _reversed(node: str) -> tuple[int, ...]:
    return tuple(255 - byte for byte in node.encode().ljust(_NODE_CHARS, b"\0"))


def name_of(row: Row) -> RowName:
    """Which row this is a version of."""
    return row.table, row.namespace, row.key


def dot_of(row: Row) -> Dot:
    """What names this version."""
    return row.origin.node, row.origin.incarnation, row.seq


def owner_of(step: Row) -> str:
    """The node that alone may write this step."""
    return str(step.values.get("owner") or "")


def status_of(step: Row) -> str:
    """PENDING, RUNNING, RETRYING, SUCCESS, DEAD_LETTER or CANCELLED."""
    return str(step.values.get("status") or "")


def is_open(step: Row) -> bool:
    """Whether the step has not ended."""
    return step.rank == OPEN


def lease_of(step: Row) -> Lease:
    """The lease under which this version was written."""
    return Lease(step.generation, step.cluster_epoch, step.lease_epoch, step.lease_hlc, _reversed(owner_of(step)))


def turn_of(step: Row) -> tuple[int, int, int]:
    """What names a lease whoever speaks of it: generation, epoch, and the stamp that opened the epoch."""
    return step.generation, step.lease_epoch, step.lease_hlc


def fence_of(step: Row) -> str:
    """The text that a run under this version's lease must carry."""
    lease = lease_of(step)
    node = "".join(f"{number:02x}" for number in lease.node_reversed)
    return f"{lease.generation:08x}-{lease.cluster_epoch:08x}-{lease.lease_epoch:08x}-{lease.lease_hlc:016x}-{node}"


def parse_fence(text: str) -> Lease:
    """The lease that a fence names."""
    generation, cluster_epoch, lease_epoch, lease_hlc, node = text.split("-")
    return Lease(
        int(generation, 16),
        int(cluster_epoch, 16),
        int(lease_epoch, 16),
        int(lease_hlc, 16),
        tuple(bytes.fromhex(node)),
    )


def wins(a: Row, b: Row) -> bool:
    """Whether version `a` must replace version `b` of the same row. Never, when they are one version."""
    assert name_of(a) == name_of(b), (name_of(a), name_of(b))
    # The first part that differs decides.
    for ours, theirs in zip(_parts(a), _parts(b), strict=True):
        if ours != theirs:
            return bool(ours > theirs)
    return False


def _parts(row: Row) -> tuple[Any, ...]:
    epochs = (row.cluster_epoch, row.lease_epoch)
    last = (_reversed(row.node), row.origin.incarnation, row.seq)
    match row.table:
        case "tasks" | "steps":
            return (row.generation, row.deleted, row.rank, *epochs, row.lease_hlc, row.hlc, *last)
        case "history" | "payloads":
            # Lower content wins; of equal contents the oldest stamp stays.
            content = tuple(255 - byte for byte in content_digest(row.values))
            late = (-row.hlc, -row.cluster_epoch, -row.lease_epoch, _reversed(row.node), -row.origin.incarnation)
            return (row.deleted, content, *late, -row.seq)
        case "cluster":
            return (row.rank, row.hlc, *epochs, *last)
        case "profiles" | "holds" | "schedules" | "diary":
            return (row.hlc, *epochs, *last)
        case other:
            raise AssertionError(f"nothing is said here of the order of {other}")


def is_claim(change: Change) -> bool:
    """Whether a node claims a step with this write of its own. What a run says of itself opens no lease."""
    opened = change.before is None or change.before.lease_hlc != change.after.lease_hlc
    return change.local and change.after.table == "steps" and opened and status_of(change.after) == "RUNNING"


def parents_of(step: Row) -> list[str]:
    """Names of the steps that this one waits for."""
    text = step.values.get("depends_on")
    return [str(name) for name in json.loads(str(text))] if text else []


def may_run(step: Row, by_name: Mapping[str, Row]) -> bool:
    """Whether its siblings let a step run: all parents succeeded, or have ended if it continues after failures."""
    parents = parents_of(step)
    if step.values.get("on_failure") == "continue":
        over = _over(by_name)
        return all(name in over for name in parents)
    return all(name in by_name and not by_name[name].deleted and by_name[name].rank == SUCCESS for name in parents)


def _over(by_name: Mapping[str, Row]) -> set[str]:
    """Steps that have ended, or wait below one which did not succeed; by looking until nothing is found any more."""
    over = {name for name, step in by_name.items() if not step.deleted and step.rank}
    while True:
        blocked = {
            name
            for name, step in by_name.items()
            if name not in over
            and not step.deleted
            and status_of(step) in ("PENDING", "RETRYING")
            and step.values.get("on_failure") != "continue"
            and any(parent in over and by_name[parent].rank != SUCCESS for parent in parents_of(step))
        }
        if not blocked:
            return over
        over |= blocked


def parents_used(step: Row) -> Mapping[str, tuple[int, int]]:
    """By name, generation and epoch of each parent output that the last run used."""
    text = step.values.get("parents_used")
    used = json.loads(str(text)) if text else {}
    return {name: (int(generation), int(epoch)) for name, (generation, epoch) in used.items()}


def content_of(rows: Mapping[RowName, Row], step: Row, column: str) -> bytes:
    """A payload of a step, wherever it lies: in the step's row, or in one of its own. Empty when there is none."""
    reference = step.values.get(f"{column}_ref")
    holder = rows.get(("payloads", step.namespace, str(reference))) if reference else None
    content = holder.values.get("content") if holder is not None else step.values.get(column)
    return content if isinstance(content, bytes) else b""


def told(row: Row) -> str:
    """A version in one line, for people."""
    what = f"{row.table} {row.key}"
    if row.table == "steps":
        what += f" {status_of(row)} of {owner_of(row)}"
    epochs = f"generation {row.generation}, rank {row.rank}, epochs {row.cluster_epoch}/{row.lease_epoch}"
    return f"{what} ({epochs}, lease {row.lease_hlc}, stamp {row.hlc}, {row.origin.node}:{row.seq})"
