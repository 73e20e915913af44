"""Counts the rare situations that a run got into: what was never met was never tested.

A batch of a hundred seeds in which a required point was not met even once has proved less than its green colour says,
so it fails.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from chaos.observations import (
    CaListInstalled,
    CheckpointKept,
    ClientAnswered,
    Committed,
    DatabaseReplaced,
    HostEnded,
    HostStarted,
    Logged,
    MemberSeen,
    RingInstalled,
    RunEnded,
    RunStarted,
    Sampled,
    Seen,
    SettingsReloaded,
    SinkWrite,
)
from mesh.ids import Origin
from mesh.rows import Row
from mesh.version_vector import VersionVector
from node.storage.transaction import Change

POINTS: Mapping[str, str] = {
    # --- membership ---
    "rows-forgotten": "a node dropped rows that every member knows to be deleted",
    "origins-collapsed": "the dots of a former process left the vectors, since no row of it is left",
    "copied-whole": "a node that was away for too long copied all rows of a peer",
    "suspect-refuted": "a member that was suspected proved that it lives",
    "dead-returned": "a member that was held DEAD was ALIVE again",
    "left-in-order": "a member said goodbye",
    "most-others-failing": "a host saw more than half of at least three others fail within a few seconds",
    "identity-conflict": "a node found that another process, or a later life, has its name",
    # --- leases ---
    "taken-over": "a node took a step from an owner that was gone",
    "handed-over": "an owner gave a waiting step to a peer",
    "released": "a node that stopped in order gave its runs back",
    "lost-with-process": "a node found that its former process had died during a run",
    "aborted": "a run was stopped because its lease had moved",
    "superseded": "a result lost against another one, and stayed visible",
    "finished-too-late": "a run ended in success, and its lease had moved before that could be committed",
    "epoch-opened-twice": "two nodes opened the same epoch of one step",
    "sink-refused": "a write to the outside came under a fence that was not the highest any more",
    "ran-twice": "a step ran on two hosts at the same time",
    "cluster-epoch-raised": "a higher cluster epoch was learned",
    "requeued": "a run was begun anew under a higher cluster epoch",
    # --- work ---
    "retried": "an attempt failed, and the step waited for the next one",
    "snoozed": "a handler let its step wait, which is no attempt",
    "checkpoint-used": "a run began with what an earlier one had kept",
    "checkpoint-used-elsewhere": "a run began with what a run on another host had kept",
    "dead-letter": "a step became a dead letter",
    "poison": "a step became a dead letter because it ended one process after the other",
    "child-ran": "a step ran on the outputs of its parents",
    "cancelled-waiting": "a step was cancelled before it ran",
    "cancelled-running": "a step was cancelled while it ran",
    "cancel-requested": "a cancel was answered before its owners had obeyed",
    "cancel-too-late": "a cancel found that the task had ended",
    "replayed": "an operator began a new generation of a step",
    "replayed-twice": "two nodes began the same generation of a step",
    "large-row-copied": "a payload in a row of its own came to another host",
    "slot-submitted": "a member submitted the slot of a schedule",
    "slot-on-two-sides": "two members submitted the same slot",
    # --- clients ---
    "submit-unknown": "a client never heard what became of its submit",
    "submit-deduplicated": "a submit found that its task was there already",
    "same-key-on-two-sides": "two hosts accepted the same submit as new",
    "replicated-answer": "a submit was acknowledged with replicas",
    "too-few-replicas": "a submit was acknowledged with fewer replicas than wanted",
    # --- processes and disks ---
    "killed-while-running": "a process was killed in the middle of a run",
    "power-cut-recovered": "a node started again after a power cut",
    "image-lost": "a node started again on a disk that had lost what was synced",
    "origin-minted": "a node began a new origin, since its database might have forgotten something",
    "snapshot-adopted": "a node went on with a snapshot of a peer's database",
    "database-set-aside": "a node found its database damaged, kept it under another name, and began empty",
    "start-refused": "a node refused to start, with a word for its operator",
    "store-failed": "a store failed for so long that peers could take over",
    "store-worked-again": "a store that had failed worked again",
    "disk-error-answered": "a client heard that the disk had failed its request",
    "vector-gap": "a replica had seen a later version of an origin before an earlier one",
    "key-promoted": "a node began to seal with another key",
    "returned-by-certificate": "a node that no member could have opened a packet of fetched the keys of the mesh",
    "ca-promoted": "a node began to follow another signing CA",
    "returned-to-another-ca": "a node that had missed a whole rotation of the CA followed it",
    "settings-reloaded": "a node refused a bad settings file and took a good one into use, without a restart",
    "old-work-after-restart": "a node went on, after a restart, with what it had owned before",
}
"""Name and meaning of every point."""

RARE = frozenset(
    {
        "released",
        "replayed-twice",
        "returned-by-certificate",
        "ca-promoted",
        "returned-to-another-ca",
        "start-refused",
        "copied-whole",
        "origins-collapsed",
        "snapshot-adopted",
        "database-set-aside",
        "settings-reloaded",
        "slot-submitted",
        "slot-on-two-sides",
    }
)
"""Points that a hundred seeds may well miss: they are for scenarios that are about them."""
REQUIRED = frozenset(POINTS) - RARE
"""Points that every batch of at least a hundred seeds must meet."""

_OF_HISTORY = {
    "taken_over": "taken-over",
    "handed_over": "handed-over",
    "released": "released",
    "lost": "lost-with-process",
    "aborted": "aborted",
    "superseded": "superseded",
    "requeued": "requeued",
    "replayed": "replayed",
}
_FAILING_WITHIN_MS = 3_000.0
_ROTATION_LISTS = 3  # one adds, one promotes, one retires


class Coverage:
    """Hears every observation of one run. `counts` has the points that were met."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self._running: dict[str, dict[str, str]] = {}
        """Step ids by fence, of the runs of each host."""
        self._cut_short_ms: dict[str, float] = {}
        """When a run of each host was last ended from outside."""
        self._origins: dict[str, Origin] = {}
        self._ended: dict[str, HostEnded] = {}
        self._owned_before: dict[str, dict[str, int]] = {}
        """By host, stamps of open steps that it owned as its process ended."""
        self._owned: dict[str, dict[str, int]] = {}
        self._openers: dict[tuple[str, int, int, int], str] = {}
        self._generations: dict[tuple[str, int], str] = {}
        self._keys: dict[str, str] = {}
        self._savers: dict[tuple[str, bytes], str] = {}
        self._slots: dict[str, str] = {}
        """Who first submitted a slot, by its task."""
        self._failing: dict[str, dict[str, float]] = {}
        self._members: dict[str, dict[str, None]] = {}
        self._rings: dict[str, RingInstalled] = {}
        self._ca_lists: dict[str, CaListInstalled] = {}
        self._hearers: Mapping[type[Seen], Callable[[Any], Iterator[str]]] = {
            MemberSeen: self._member,
            RingInstalled: self._ring,
            CaListInstalled: self._ca_list,
            HostStarted: self._started,
            HostEnded: self._host_ended,
            DatabaseReplaced: self._replaced,
            RunStarted: self._run_started,
            RunEnded: self._run_ended,
            CheckpointKept: self._checkpoint,
            SinkWrite: self._sink,
            Committed: self._committed,
            ClientAnswered: self._answered,
            Logged: self._logged,
            Sampled: self._sampled,
            SettingsReloaded: lambda _seen: iter(("settings-reloaded",)),
        }

    def see(self, seen: Seen) -> None:
        """Hear what happened."""
        hear = self._hearers.get(type(seen))
        if hear is not None:
            for point in hear(seen):
                assert point in POINTS, point
                self.counts[point] = self.counts.get(point, 0) + 1

    # --- membership ---

    def _member(self, seen: MemberSeen) -> Iterator[str]:
        change = seen.change
        self._members.setdefault(seen.host, {})[change.node_id] = None
        failing = self._failing.setdefault(seen.host, {})
        if change.after == "ALIVE":
            failing.pop(change.node_id, None)
            if change.before == "SUSPECT":
                yield "suspect-refuted"
            elif change.before == "DEAD":
                yield "dead-returned"
        elif change.after == "LEFT":
            yield "left-in-order"
        elif change.after == "SUSPECT":
            failing[change.node_id] = seen.at_ms
            fresh = [at_ms for at_ms in failing.values() if seen.at_ms - at_ms < _FAILING_WITHIN_MS]
            others = len(self._members[seen.host])
            if others >= 3 and 2 * (len(fresh) - 1) <= others < 2 * len(fresh):
                yield "most-others-failing"

    def _ring(self, seen: RingInstalled) -> Iterator[str]:
        before = self._rings.get(seen.host)
        self._rings[seen.host] = seen
        if before is not None and before.primary != seen.primary and before.number < seen.number:
            yield "key-promoted"
            if before.primary not in seen.keys and seen.primary not in before.keys:
                yield "returned-by-certificate"

    def _ca_list(self, seen: CaListInstalled) -> Iterator[str]:
        before = self._ca_lists.get(seen.host)
        self._ca_lists[seen.host] = seen
        if before is not None and before.signing != seen.signing and before.number < seen.number:
            yield "ca-promoted"
            if seen.number - before.number >= _ROTATION_LISTS:
                yield "returned-to-another-ca"

    # --- processes ---

    def _started(self, seen: HostStarted) -> Iterator[str]:
        ended = self._ended.pop(seen.host, None)
        if ended is not None and ended.how == "power-cut":
            yield "power-cut-recovered"
        if ended is not None and ended.durable_lost:
            yield "image-lost"
        if seen.host in self._origins and self._origins[seen.host] != seen.origin:
            yield "origin-minted"
        self._origins[seen.host] = seen.origin

    def _replaced(self, seen: DatabaseReplaced) -> Iterator[str]:
        self._origins[seen.host] = seen.origin
        yield "snapshot-adopted"

    def _host_ended(self, seen: HostEnded) -> Iterator[str]:
        self._ended[seen.host] = seen
        self._members.pop(seen.host, None)
        self._failing.pop(seen.host, None)
        # Its runs end in the same instant, some before it and some after.
        had_run = bool(self._running.pop(seen.host, {})) or self._cut_short_ms.get(seen.host) == seen.at_ms
        if had_run and seen.how in ("kill", "power-cut"):
            yield "killed-while-running"
        if seen.how == "refused":
            yield "start-refused"
        owned = self._owned.pop(seen.host, {})
        self._owned_before[seen.host] = {} if seen.durable_lost else self._owned_before.get(seen.host, {}) | owned

    # --- runs ---

    def _run_started(self, seen: RunStarted) -> Iterator[str]:
        if any(seen.job.step_id in runs.values() for host, runs in self._running.items() if host != seen.host):
            yield "ran-twice"
        if seen.job.parents:
            yield "child-ran"
        if seen.job.saved:
            yield "checkpoint-used"
            if self._savers.get((seen.job.step_id, seen.job.saved), seen.host) != seen.host:
                yield "checkpoint-used-elsewhere"
        self._running.setdefault(seen.host, {})[seen.job.fence] = seen.job.step_id

    def _run_ended(self, seen: RunEnded) -> Iterator[str]:
        self._running.get(seen.host, {}).pop(seen.job.fence, None)
        if seen.outcome == "snoozed":
            yield "snoozed"
        if seen.outcome == "killed":
            self._cut_short_ms[seen.host] = seen.at_ms

    def _checkpoint(self, seen: CheckpointKept) -> Iterator[str]:
        self._savers[seen.job.step_id, seen.content] = seen.host
        yield from ()

    def _sink(self, seen: SinkWrite) -> Iterator[str]:
        if not seen.accepted:
            yield "sink-refused"

    # --- rows ---

    def _committed(self, seen: Committed) -> Iterator[str]:
        for change in seen.changes:
            match change.after.table:
                case "steps" if change.local:
                    yield from self._step(seen.host, change)
                case "tasks" if change.local and change.before is None:
                    yield from self._task(change.after)
                case "history" if change.local:
                    yield from self._history(change.after)
                case "payloads" if not change.local:
                    yield "large-row-copied"
                case "cluster" if change.after.rank > 1:
                    yield "cluster-epoch-raised"
                case _:
                    pass

    def _task(self, row: Row) -> Iterator[str]:
        if row.text("idempotency_key").startswith("schedule "):
            first = self._slots.setdefault(row.key, row.node)
            yield "slot-submitted" if first == row.node else "slot-on-two-sides"

    def _history(self, row: Row) -> Iterator[str]:
        action = row.text("action")
        if action in _OF_HISTORY:
            yield _OF_HISTORY[action]
        if action == "superseded" and json.loads(row.text("detail")).get("why", "").startswith("its lease had moved"):
            yield "finished-too-late"

    def _step(self, host: str, change: Change) -> Iterator[str]:
        before, after = change.before, change.after
        status = after.text("status")
        if status == "RETRYING":
            yield "retried"
        elif status == "DEAD_LETTER":
            yield "poison" if after.text("last_error").startswith("poison") else "dead-letter"
        elif status == "CANCELLED" and before is not None:
            yield "cancelled-running" if before.text("status") == "RUNNING" else "cancelled-waiting"
        if before is not None and after.lease_epoch > before.lease_epoch:
            epoch = after.key, after.generation, after.cluster_epoch, after.lease_epoch
            if self._openers.setdefault(epoch, after.node) != after.node:
                yield "epoch-opened-twice"
        replayed = before is not None and after.generation > before.generation
        if replayed and self._generations.setdefault((after.key, after.generation), after.node) != after.node:
            yield "replayed-twice"
        yield from self._own(host, after, status)

    def _own(self, host: str, step: Row, status: str) -> Iterator[str]:
        owned = self._owned.setdefault(host, {})
        if step.rank or step.text("owner") != step.node:
            owned.pop(step.key, None)
        else:
            owned[step.key] = step.hlc
        if self._owned_before.get(host, {}).pop(step.key, None) is not None and status == "RUNNING":
            yield "old-work-after-restart"

    def _sampled(self, seen: Sampled) -> Iterator[str]:
        if _has_gap(seen.memory_vector):
            yield "vector-gap"
        if seen.forgotten:
            yield "rows-forgotten"
        if seen.collapsed:
            yield "origins-collapsed"

    # --- clients and logs ---

    def _answered(self, seen: ClientAnswered) -> Iterator[str]:
        if seen.error == "StoreError":
            yield "disk-error-answered"
        if seen.command == "submit-workflow":
            yield from self._submitted(seen)
        elif seen.command == "cancel" and seen.answer is not None:
            if seen.answer["state"] == "requested":
                yield "cancel-requested"
            elif seen.answer["state"] == "too_late":
                yield "cancel-too-late"

    def _submitted(self, seen: ClientAnswered) -> Iterator[str]:
        if seen.answer is None:
            if not seen.error:
                yield "submit-unknown"
            return
        if seen.answer["deduplicated"]:
            yield "submit-deduplicated"
        elif self._keys.setdefault(seen.answer["taskId"], seen.host) != seen.host:
            yield "same-key-on-two-sides"
        wanted, replicated = seen.answer["replicasWanted"], seen.answer["replicated"]
        if wanted:
            yield "replicated-answer" if replicated >= wanted else "too-few-replicas"

    def _logged(self, seen: Logged) -> Iterator[str]:
        if seen.text.startswith("identity conflict"):
            yield "identity-conflict"
        elif "this node is filled by its peers" in seen.text:
            yield "database-set-aside"
        elif seen.text.startswith("the local store fails"):
            yield "store-failed"
        elif seen.text.startswith("the local store works again"):
            yield "store-worked-again"
        elif seen.text.startswith("this node was away for too long"):
            yield "copied-whole"


def _has_gap(vector: VersionVector) -> bool:
    return any(len(vector.ranges(origin)) > 1 or vector.ranges(origin)[0][0] > 1 for origin in vector.origins())
