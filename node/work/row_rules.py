"""What a row of the task runtime must look like before any of our code acts on it.

Rows come from peers: of another release, damaged, or made to harm. The store checks types; everything else that the
code of this package takes for granted is checked here, in the transaction that would make the row current. A row that
breaks a rule goes to quarantine on every node alike and is handed on, but is never acted on: neither a take-over nor an
answer, a claim or a commit callback can meet a row that it cannot read.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from mesh.errors import ConfigError, RecordError
from mesh.fences import Fence
from mesh.ids import parse_namespace, parse_node_id
from mesh.rows import Row
from mesh.support import ROSTER_MAX
from node.storage.store import Store
from node.storage.transaction import Hook, Transaction
from node.work.cron import CRON_CHARS_MAX, ZONE_CHARS_MAX
from node.work.definition import DELAY_MS_MAX
from node.work.holds import Scope
from node.work.schedules import CATCH_UPS, DEFINITION_BYTES_MAX, parse_name
from node.work.tables import MESH_NAMESPACE, PRIORITIES, TASK_CANCEL_REQUESTED, TASK_OPEN, Status

T = TypeVar("T")

COUNTER_MAX = (1 << 31) - 1
"""Of epochs and generations. A fence has room for twice that, so whoever writes the next version never runs out."""
STAMP_MAX = 1 << 62
"""The year 4200. The version after this one must have a stamp, too, and 2**63 is where they end."""
COUNT_MAX = 1 << 53
"""Of any other whole number: what JSON keeps exactly."""

_COUNTS = ("position", "dependents", "timeout_ms", "max_attempts", "attempt", "retry_delay_ms", "task_generation")

_SPANS = ("delay_ms", "expires_ms")

_names = msgspec.json.Decoder(list[str])
_labels = msgspec.json.Decoder(dict[str, str])
_lost_leases = msgspec.json.Decoder(list[tuple[str, int]])
_parents_used = msgspec.json.Decoder(dict[str, list[int]])
_detail = msgspec.json.Decoder(dict[str, Any])


def watch(store: Store) -> None:
    """Check every row of these tables that is about to become current. Call it before any other hook is registered."""
    rules: Mapping[str, Hook] = {
        "tasks": _on_task,
        "steps": _on_step,
        "history": _on_history,
        "profiles": _on_profile,
        "schedules": _on_schedule,
        "holds": _on_hold,
        "cluster": _on_cluster,
    }
    for table, rule in rules.items():
        store.watch(table, rule)


def check_step(row: Row) -> None:
    """RecordError for a step that no release of ours could have written."""
    _check_metadata(row)
    if row.deleted:
        return
    status = row.text("status")
    if status not in Status.__members__ or row.rank != Status(status).rank:
        raise RecordError(f"status {status[:32]!r} with rank {row.rank}")
    _check_node(row.text("owner"))
    if not row.text("task_id") or not row.text("name") or not row.text("agent"):
        raise RecordError("a step without task, name or agent")
    if not 0 <= row.integer("priority") < len(PRIORITIES):
        raise RecordError(f"priority {row.integer('priority')}")
    for column in _COUNTS:
        if not 0 <= row.integer(column) <= COUNT_MAX:
            raise RecordError(f"{column} is {row.integer(column)}")
    for column in _SPANS:
        if not 0 <= row.integer(column) <= DELAY_MS_MAX:
            raise RecordError(f"{column} is {row.integer(column)}")
    _decoded(_names, row, "depends_on")
    _decoded(_labels, row, "labels")
    _decoded(_lost_leases, row, "lost_leases")
    _decoded(_parents_used, row, "parents_used")
    _check_roster(row.text("roster"))
    if row.text("on_failure") not in ("", "continue"):
        raise RecordError(f"onFailure {row.text('on_failure')[:32]!r}")


def _on_step(tx: Transaction, before: Row | None, after: Row) -> None:
    check_step(after)


def _on_task(tx: Transaction, before: Row | None, after: Row) -> None:
    _check_metadata(after)
    if after.rank not in (TASK_OPEN, TASK_CANCEL_REQUESTED):
        raise RecordError(f"a task of rank {after.rank}")
    if not 0 <= after.integer("cancelled_below") <= COUNTER_MAX:
        raise RecordError(f"cancelled_below is {after.integer('cancelled_below')}")


def _on_history(tx: Transaction, before: Row | None, after: Row) -> None:
    if after.deleted:
        return
    try:
        Fence.decode(after.text("fence"))
    except ValueError as error:
        raise RecordError(str(error)) from None
    _decoded(_detail, after, "detail")


def _on_profile(tx: Transaction, before: Row | None, after: Row) -> None:
    # Placement believes a profile, so only the node itself may write it.
    if after.namespace != MESH_NAMESPACE or after.key != after.node:
        raise RecordError(f"a profile of {after.key[:64]!r} written by {after.node}")
    _decoded(_names, after, "agents")
    _decoded(_labels, after, "labels")


def _on_schedule(tx: Transaction, before: Row | None, after: Row) -> None:
    _check_metadata(after)
    if after.deleted:
        return
    # Whether this host can read the expression and knows the zone is for the scheduler: a newer one may know more.
    try:
        parse_namespace(after.namespace)
        parse_name(after.key)
    except ConfigError as error:
        raise RecordError(str(error)) from None
    if after.text("catch_up") not in CATCH_UPS:
        raise RecordError(f"catch_up {after.text('catch_up')[:32]!r}")
    if len(after.text("cron")) > CRON_CHARS_MAX or len(after.text("time_zone")) > ZONE_CHARS_MAX:
        raise RecordError("a cron expression, or the name of a time zone, that is too long")
    if len(after.blob("definition") or b"") > DEFINITION_BYTES_MAX:
        raise RecordError("a definition that is too long")
    if not 0 <= after.integer("from_hlc") <= STAMP_MAX:
        raise RecordError(f"from_hlc is {after.integer('from_hlc')}")


def _on_hold(tx: Transaction, before: Row | None, after: Row) -> None:
    _check_metadata(after)
    if after.namespace != MESH_NAMESPACE:
        raise RecordError(f"a hold in namespace {after.namespace}")
    Scope.parse(after.key)


def _on_cluster(tx: Transaction, before: Row | None, after: Row) -> None:
    if after.rank > COUNTER_MAX:
        raise RecordError(f"a cluster epoch of {after.rank}")


def _check_metadata(row: Row) -> None:
    for name in ("generation", "cluster_epoch", "lease_epoch"):
        if getattr(row, name) > COUNTER_MAX:
            raise RecordError(f"{name} is {getattr(row, name)}")
    if row.hlc > STAMP_MAX or row.lease_hlc > row.hlc:
        raise RecordError(f"stamp {row.hlc}, lease stamp {row.lease_hlc}")


@functools.lru_cache(maxsize=1024)  # one entry per node id; a mesh has at most a few hundred
def _check_node(name: str) -> None:
    parse_node_id(name)


@functools.lru_cache(maxsize=256)
def _check_roster(text: str) -> None:
    if not text:
        return
    try:
        members = _names.decode(text)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise RecordError(f"roster cannot be read: {error}") from None
    # A name that stands there twice would be counted twice, and then two majorities need not share a member.
    if not 0 < len(members) <= ROSTER_MAX or len(set(members)) < len(members):
        raise RecordError(f"a roster of {len(members)} members, {len(set(members))} of them different")
    for member in members:
        _check_node(member)


def _decoded(decoder: msgspec.json.Decoder[T], row: Row, column: str) -> None:
    text = row.text(column)
    if not text:
        return
    try:
        decoder.decode(text)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise RecordError(f"{column} cannot be read: {error}") from None
