"""Commands about the mesh and this node: members, health, ownership, epochs, maintenance."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any

from mesh.errors import StoreError
from mesh.ids import split_life
from mesh.membership import Member, Status
from mesh.placement import Offer
from mesh.protocol import refusal
from node.admin.arguments import Arguments
from node.admin.work_figures import work_figures
from node.config import NodeConfig
from node.node import Node
from node.storage.reader import Reader
from node.work import transitions
from node.work.disk_budget import database_bytes
from node.work.history import CONFLICTS, OWNERSHIP, Action
from node.work.tables import CLUSTER_EPOCH_KEY, MESH_NAMESPACE, PRIORITIES
from node.work.views import event_view

EVENTS_MAX = 5000


class MeshCommands:
    """The commands, on one node."""

    def __init__(self, node: Node, config: NodeConfig) -> None:
        self._node = node
        self._config = config

    def commands(self) -> dict[str, Callable[[Arguments], Awaitable[Any]]]:
        """Every command by its name."""
        return {
            "agents": self._agents,
            "members": self._members,
            "mesh-summary": self._mesh_summary,
            "health": self._health,
            "stats": self._stats,
            "metrics": self._metrics,
            "ownership-events": self._ownership_events,
            "lease-conflicts": self._lease_conflicts,
            "cluster-state": self._cluster_state,
            "cluster-epoch-bump": self._cluster_epoch_bump,
            "mesh-recover": self._mesh_recover,
            "maintenance": self._maintenance,
            "version": self._version,
        }

    def _now_ms(self) -> int:
        return int(self._node.env.clock.wall() * 1000)

    # --- members ---

    async def _agents(self, args: Arguments) -> list[dict[str, Any]]:
        """Every agent of the mesh, and the nodes that have it."""
        offers = self._node.ownership.all_offers()
        local = self._node.env.executor.agents()
        placeable = set(self._node.loop.placeable())
        names = sorted({name for offer in offers.values() for name in offer.abilities})
        return [
            {
                "agentId": name,
                "kind": local[name].kind if name in local else None,
                "here": name in local,
                "nodes": _nodes_with(offers.values(), name),
                "availableOn": [node for node in _nodes_with(offers.values(), name) if node in placeable],
            }
            for name in names
        ]

    async def _members(self, args: Arguments) -> list[dict[str, Any]]:
        return [self._member_view(member) for member in self._node.gossip.members.all()]

    def _member_view(self, member: Member) -> dict[str, Any]:
        node, now = self._node, self._node.env.clock.monotonic()
        is_me = member.node_id == node.spec.node_id
        offer = node.ownership.all_offers().get(member.node_id)
        enrolment, boot = split_life(member.life)
        effective = member.status if is_me else node.gossip.effective.status(member.node_id, now)
        recovers_at = None if is_me else node.gossip.effective.recovers_at(member.node_id, now)
        return {
            "nodeId": member.node_id,
            "status": member.status.value,
            "effectiveStatus": effective.value,
            "recoversAtMs": None if recovers_at is None else self._to_wall_ms(recovers_at),
            "isThisNode": is_me,
            "address": str(member.address),
            "rpcAddress": str(member.rpc_address),
            "enrolment": enrolment,
            "boot": boot,
            "incarnation": member.incarnation,
            "storeFailed": member.store_failed,
            "release": member.speaks.release or node.ownership.release_of(member.node_id),
            "protocol": member.speaks.versions,
            "schemaVersion": member.speaks.schema,
            "protocolProblem": self._protocol_problem(member),
            "accusers": [{"nodeId": name, "reason": reason} for name, reason in sorted(member.accusers.items())],
            "lastHeartbeatMs": None if member.last_heard is None else self._to_wall_ms(member.last_heard),
            "updatedAtMs": self._to_wall_ms(member.status_since),
            "agents": sorted(offer.abilities) if offer is not None else [],
            "labels": dict(offer.labels) if offer is not None else {},
        }

    def _protocol_problem(self, member: Member) -> str | None:
        members = self._node.gossip.members
        if members.protocol_with(member) is not None:
            return None
        return refusal(members.own.speaks, member.speaks, member.node_id)

    def _to_wall_ms(self, monotonic: float) -> int:
        clock = self._node.env.clock
        return int((clock.wall() - clock.monotonic() + monotonic) * 1000)

    async def _mesh_summary(self, args: Arguments) -> dict[str, Any]:
        members = self._node.gossip.members.all()
        running = dict(await self._node.store.read(_running_by_owner))
        by_status = {status: [m for m in members if m.status is status] for status in Status}
        dead = by_status[Status.DEAD]
        known = {member.node_id for member in members}

        def owned_by(status: Status) -> int:
            return sum(running.get(member.node_id, 0) for member in by_status[status])

        return {
            "totalNodes": len(members),
            "aliveNodes": len(by_status[Status.ALIVE]),
            "suspectNodes": len(by_status[Status.SUSPECT]),
            "deadNodes": len(dead),
            "leftNodes": len(by_status[Status.LEFT]),
            "runningByAliveOwners": owned_by(Status.ALIVE),
            "runningBySuspectOwners": owned_by(Status.SUSPECT),
            "runningByDeadOwners": owned_by(Status.DEAD) + owned_by(Status.LEFT),
            "runningByUnknownOwners": sum(count for owner, count in running.items() if owner not in known),
            "oldestDeadNodeAgeMs": max(
                (int((self._node.env.clock.monotonic() - member.status_since) * 1000) for member in dead), default=0
            ),
            "reclaimFrozen": not self._node.loop.may_reclaim(),
            "protocolOfAll": self._node.gossip.members.protocol_of_all(),
            "seenFrom": self._node.spec.node_id,
            "generatedAtMs": self._now_ms(),
        }

    # --- this node ---

    async def _health(self, args: Arguments) -> dict[str, Any]:
        node = self._node
        free, floor = node.env.disk.free_bytes(), node.spec.settings.min_free_disk_bytes
        pressure = bool(floor) and free < floor
        conflict = node.identity_conflict
        peers = [member for member in node.gossip.members.all() if member.node_id != node.spec.node_id]
        problems = []
        if node.store.failed:
            problems.append("the local store fails: look at the disk, then at the log")
        if conflict:
            problems.append(f"identity conflict: {conflict}")
        if pressure:
            problems.append("less disk is free than minFreeDiskBytes")
        used: int | None = None
        try:
            used = await node.store.read(database_bytes)
        except StoreError as error:
            problems.append(str(error))
        budget = None if used is None else node.disk_budget.refusal(used)
        if budget is not None:
            problems.append(f"no new task is taken: {budget}")
        return {
            "ok": not problems,
            "problems": problems,
            "nodeId": node.spec.node_id,
            "dbOk": not node.store.failed,
            "gateOpen": node.runtime.gate_is_open(),
            "startsNothing": node.runtime.why_nothing_starts(),
            "holds": [str(hold) for hold in node.runtime.holds.all()],
            "reachablePeers": sum(member.status is Status.ALIVE for member in peers),
            "knownPeers": len(peers),
            "diskFreeBytes": free,
            "minFreeDiskBytes": floor,
            "diskPressure": pressure,
            "databaseBytes": used,
            "diskBudgetBytes": node.disk_budget.bytes_max,
            "bootstrap": node.bootstrap.progress(),
            "checkedAtMs": self._now_ms(),
        }

    async def _stats(self, args: Arguments) -> dict[str, Any]:
        node = self._node
        steps = await node.store.read(lambda reader: _steps_by_status(reader, args.namespace))
        queue = await node.store.read(_queue_by_priority)
        return {
            "nodeId": node.spec.node_id,
            "namespace": args.namespace,
            "steps": steps,
            "queue": queue,
            **await node.store.read(partial(work_figures, namespace=args.namespace, now_ms=node.store.physical_ms())),
            "workerPaused": node.runtime.paused,
            "runningHere": len(node.runtime.running()),
            "slots": node.spec.slots,
            "idleSlots": node.runtime.idle_slots,
            "attempts": dict(sorted(node.runtime.finished.items())),
            "startedTotal": node.runtime.started_total,
            "takenOverTotal": node.ownership.taken_total,
            "handedOverTotal": node.ownership.handed_over_total,
            "clusterEpoch": await node.store.read(transitions.cluster_epoch),
            "gatePauses": node.gate.pauses,
            "gossip": {
                "datagramsSent": node.loop.sent_total,
                "bytesSent": node.loop.sent_bytes_total,
                "datagramsReceived": node.loop.received_total,
                "refused": dict(sorted(node.loop.refused.items())),
            },
            "replication": {
                "bundlesSent": node.push.bundles_total,
                "hintsSent": node.push.hints_total,
                "bundlesDropped": node.bundles_dropped,
                "pulls": node.puller.pulls_total,
                "pulledRows": node.puller.rows_total,
                "pullFailures": node.puller.failures_total,
                "vectorDigest": node.store.vector.digest().hex(),
                "origins": node.store.vector.origin_count,
                "snapshotsAdopted": node.bootstrap.adopted_total,
                "snapshotsMade": node.donor.made_total,
                "snapshotBytesServed": node.donor.bytes_total,
            },
            "bootstrap": node.bootstrap.progress(),
            "store": dict(node.store.counters()),
            "generatedAtMs": self._now_ms(),
        }

    async def _metrics(self, args: Arguments) -> dict[str, Any]:
        """Prometheus' text format; a scrape endpoint serves the same."""
        from node import metrics

        return {"text": await metrics.render(self._node)}

    async def _version(self, args: Arguments) -> dict[str, Any]:
        node = self._node
        return {
            "version": node.spec.version,
            "protocol": node.speaks.versions,
            "protocolOldest": node.speaks.oldest,
            "protocolNewest": node.speaks.newest,
            "protocolOfAll": node.gossip.members.protocol_of_all(),
            "schemaVersion": node.store.schema,
            "nodeId": node.spec.node_id,
            "cluster": node.spec.identity.certificate.cluster.hex(),
            "life": node.gossip.members.own.life,
            "profile": node.spec.profile.name,
            "root": str(self._config.root),
        }

    # --- ownership ---

    async def _ownership_events(self, args: Arguments) -> list[dict[str, Any]]:
        return await self._events(args, OWNERSHIP)

    async def _lease_conflicts(self, args: Arguments) -> list[dict[str, Any]]:
        return await self._events(args, CONFLICTS)

    async def _events(self, args: Arguments, actions: tuple[Action, ...]) -> list[dict[str, Any]]:
        limit = args.whole("limit", 100, smallest=1, largest=EVENTS_MAX)
        hours = args.whole("sinceHours", 24, smallest=1, largest=24 * 365)
        task_id = args.optional_text("taskId")
        since_hlc = (self._now_ms() - hours * 3_600_000) << 16
        names = [action.value for action in actions]
        where = f"namespace = ? AND hlc >= ? AND action IN ({','.join('?' * len(names))})"
        params: list[str | int] = [args.namespace, since_hlc, *names]
        if task_id is not None:
            where += " AND task_id = ?"
            params.append(task_id)
        rows = await self._node.store.read(
            lambda reader: reader.select("history", where, params, order="hlc DESC", limit=limit)
        )
        return [event_view(row) for row in rows]

    async def _cluster_state(self, args: Arguments) -> dict[str, Any]:
        row = await self._node.store.read(lambda reader: reader.get("cluster", MESH_NAMESPACE, CLUSTER_EPOCH_KEY))
        return {
            "key": CLUSTER_EPOCH_KEY,
            "epoch": 1 if row is None else row.rank,
            "rawValue": str(1 if row is None else row.rank),
            "version": 1 if row is None else row.rank,
            "reason": None if row is None else row.text("reason"),
            "actor": None if row is None else row.text("actor"),
            "updatedAtMs": 0 if row is None else row.hlc >> 16,
        }

    async def _cluster_epoch_bump(self, args: Arguments) -> dict[str, Any]:
        reason = args.text("reason", "manual", chars_max=1024)
        actor = args.text("actor", args.peer.name or "cli", chars_max=128)
        previous, current = await self._node.store.write(
            lambda tx: transitions.bump_cluster_epoch(tx, reason=reason, actor=actor)
        )
        return {
            "previousEpoch": previous,
            "currentEpoch": current,
            "version": current,
            "updatedAtMs": self._now_ms(),
            "reason": reason,
        }

    async def _mesh_recover(self, args: Arguments) -> dict[str, Any]:
        """Look for steps of gone owners right now, instead of when the next event would make this node look."""
        args.whole("limit", 128, smallest=1, largest=100_000)
        dead = [
            member.node_id for member in self._node.gossip.members.all() if member.status in (Status.DEAD, Status.LEFT)
        ]
        before = self._node.ownership.taken_total
        await self._node.ownership.take_now()
        return {
            "deadNodeCount": len(dead),
            "deadNodes": dead,
            "reclaimed": self._node.ownership.taken_total - before,
            "reclaimFrozen": not self._node.loop.may_reclaim(),
        }

    async def _maintenance(self, args: Arguments) -> dict[str, Any]:
        """Compare replicas with every reachable peer, take over what is due, and prune by the settings."""
        node, settings = self._node, self._node.spec.settings
        before = node.ownership.taken_total
        await node.ownership.take_now()
        taken = node.ownership.taken_total - before
        pruned: list[str] = []
        if settings.mesh_prune_interval_ms:
            older_than_s = settings.mesh_prune_older_than_ms / 1000
            pruned = await node.roster.prune(older_than_s=older_than_s, limit=settings.mesh_prune_limit)
        verified = []
        for peer in node.loop.alive_peers():
            result = await node.verify_with(peer)
            verified.append(
                {
                    "nodeId": peer,
                    "compared": result is not None and result.compared,
                    "differingRanges": result.differing_ranges if result is not None else None,
                    "repairedRows": result.repaired_rows if result is not None else None,
                }
            )
        members = node.gossip.members.all()
        return {
            "nodeId": node.spec.node_id,
            "suspectedNodesMarked": sum(member.status is Status.SUSPECT for member in members),
            "deadNodesMarked": sum(member.status is Status.DEAD for member in members),
            "reclaimed": taken,
            "deadOwnerReclaimed": taken,
            "deadNodesPruned": len(pruned),
            "verified": verified,
            "generatedAtMs": self._now_ms(),
        }


def _nodes_with(offers: Iterable[Offer], name: str) -> list[str]:
    return sorted(offer.node for offer in offers if name in offer.abilities)


def _running_by_owner(reader: Reader) -> list[tuple[str, int]]:
    found = reader.sql("SELECT owner, count(*) FROM steps WHERE rank = 0 AND status = 'RUNNING' GROUP BY owner")
    return [(str(owner), int(count)) for owner, count in found]


def _steps_by_status(reader: Reader, namespace: str) -> dict[str, int]:
    found = reader.sql(
        "SELECT status, count(*) FROM steps WHERE namespace = ? AND deleted = 0 GROUP BY status", (namespace,)
    )
    return {str(status): int(count) for status, count in found}


def _queue_by_priority(reader: Reader) -> dict[str, int]:
    found = reader.sql("SELECT priority, count(*) FROM queue GROUP BY priority")
    return {PRIORITIES[int(priority)]: int(count) for priority, count in found}
