"""A node, assembled from its parts on one `Env`: what the daemon runs on real hosts, a simulator on simulated ones."""

from __future__ import annotations

import dataclasses
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

import msgspec
import trio

from mesh.bundles import Bundle, open_bundle
from mesh.effective import EffectiveState
from mesh.effects import MemberChanged, RumorReceived, SelfConflict
from mesh.errors import RecordError, RelayMeshError
from mesh.gate import Gate
from mesh.gossip import Gossip
from mesh.identity import Authority, Identity
from mesh.ids import Address, make_life
from mesh.membership import Status
from mesh.placement import Offer
from mesh.profiles import Profile
from mesh.sealing import KeyRing
from node.env import DatagramSocket, Env, PeerIdentity
from node.gossip_loop import GossipLoop
from node.replication import verify as verification
from node.replication.calls import decode
from node.replication.pull import Puller, serve_pull
from node.replication.push import Push
from node.settings import Settings
from node.storage.store import Commit, Store
from node.storage.transaction import Transaction
from node.streams.rpc import RpcPool, RpcServer, Verb
from node.work.ownership import Ownership, OwnershipTiming
from node.work.retries import RetryPolicy
from node.work.roster_support import RosterSupport
from node.work.runtime import RunLimits, Runtime
from node.work.tables import WORK_TABLES
from node.work.work_queue import WorkQueue

log = logging.getLogger(__name__)

TOPIC_BUNDLE = 1
BUNDLES_WAITING_MAX = 1024
"""Received bundles that wait for the store. Beyond that they are dropped: the next pull brings their rows."""
VERIFY_EVERY_S = 600.0
HAND_BACK_S = 3.0
GATE_LOOKS = 4
"""The gate is looked at this often in a dead time: only a process that was stopped can miss all of them."""
STOP_GRACE_S = 5.0
LEAVE_S = 2.0

Handler = Callable[[PeerIdentity, bytes, Callable[[bytes], Awaitable[None]]], Awaitable[bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSpec:
    """What makes this node this node. Addresses are those that peers use."""

    node_id: str
    identity: Identity
    ring: KeyRing
    profile: Profile
    address: Address
    rpc_address: Address
    seeds: Sequence[Address]
    labels: dict[str, str]
    slots: int
    version: str
    settings: Settings


class Node:
    """One member of a mesh: its replica, its part of the gossip, and the work it owns.

    `open`, then `run`; cancel `run` for a crash, or `stop` first for a graceful end.
    """

    def __init__(self, env: Env, spec: NodeSpec) -> None:
        self.env = env
        self.spec = spec
        self.store = Store(env, WORK_TABLES, node_id=spec.node_id, path=env.disk.root / "relaymesh.db")
        self.calls = RpcPool(env.net, spec.identity.certificate.cluster)
        # Pulls have a pool of their own: a peer's `sync` makes us pull from it while it waits for our answer. So have
        # probes: whether a node lives must not wait behind slow calls.
        self.data_calls = RpcPool(env.net, spec.identity.certificate.cluster)
        self.probe_calls = RpcPool(env.net, spec.identity.certificate.cluster)
        self._authority = Authority(spec.identity.ca_public_key)
        self.identity_conflict: str | None = None
        self.bundles_dropped = 0
        self.verified: dict[str, verification.VerifyResult] = {}
        self._stopping = False

    async def open(self) -> None:
        """Open the replica and begin a new life. ConfigError or StoreError when the database cannot be used."""
        await self.store.open()

    async def run(
        self,
        socket: DatagramSocket,
        admin: Handler,
        *,
        serve: Callable[[RpcServer], Awaitable[None]],
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Be a member until cancelled. `serve(server)` must return once peers can reach the server's verbs.

        `task_status.started()` is called when the node can take work.
        """
        async with trio.open_nursery() as committing:
            await committing.start(self.store.run)
            await self._assemble(socket)
            async with trio.open_nursery() as nursery:
                self.server = RpcServer(self._verbs(admin), cluster=self.spec.identity.certificate.cluster)
                await serve(self.server)
                for service in (
                    self.calls.run,
                    self.data_calls.run,
                    self.probe_calls.run,
                    self._apply_bundles,
                    self._keep_members,
                    self._keep_boot,
                ):
                    nursery.start_soon(service)
                # The queue is made anew before the first claim: an agent of the last start may be gone.
                await self.ownership.announce(self.spec.labels, self.spec.slots, self.spec.version)
                await nursery.start(self.runtime.run)
                await nursery.start(self.support.run)
                await nursery.start(self.ownership.run)
                await nursery.start(self.puller.run)
                await nursery.start(self.loop.run)
                nursery.start_soon(self.runtime.recover_strays, self.loop.current_life)
                nursery.start_soon(self._verify_now_and_then)
                task_status.started()

    async def _assemble(self, socket: DatagramSocket) -> None:
        spec, env = self.spec, self.env
        boot = await self.store.write(_next_boot)
        known = await self.store.read(lambda reader: [row[0] for row in reader.sql("SELECT record FROM members")])
        self.life = make_life(spec.identity.certificate.enrolment, boot)
        now = env.clock.monotonic()
        profile = _tuned(spec.profile, spec.settings)
        dead_time_s = profile.dead_after_s(len(known) + 1)
        others_seeds = [seed for seed in spec.seeds if seed != spec.address]
        self.gate = Gate(dead_time_s=dead_time_s, has_peers=bool(known or others_seeds), now=now)
        self.gossip = Gossip(
            identity=spec.identity,
            ring=spec.ring,
            profile=profile,
            rng=random.Random(env.rng.getrandbits(64)),
            entropy=env.entropy,
            boot=boot,
            address=spec.address,
            rpc_address=spec.rpc_address,
            seeds=spec.seeds,
            known=known,
            encrypt=spec.settings.gossip_encryption,
            effective=EffectiveState(
                suspect_recover_min_s=spec.settings.suspect_recover_min_ms / 1000,
                dead_recover_min_s=spec.settings.dead_recover_min_ms / 1000,
            ),
        )
        self.gossip.set_vector_digest(self.store.vector.digest())
        self.loop = GossipLoop(
            env, self.gossip, socket, self.probe_calls, me=spec.node_id, turn_max_s=dead_time_s / GATE_LOOKS
        )
        queue = WorkQueue(spec.node_id, self.offer)
        limits = RunLimits(
            slots=spec.slots,
            timeout_s=spec.settings.agent_timeout_ms / 1000,
            retry=RetryPolicy(
                max_attempts=spec.settings.max_attempts,
                base_backoff_ms=spec.settings.base_backoff_ms,
                max_backoff_ms=spec.settings.max_backoff_ms,
            ),
        )
        self.support = RosterSupport(
            env,
            self.store,
            self.loop,
            self.calls,
            me=spec.node_id,
            self_fence_s=profile.dead_after_s(1),  # not of this mesh's size, on which members need not agree
            queued_max=2 * spec.slots,
            may_support=lambda: self.identity_conflict is None,
        )
        self.runtime = Runtime(
            env, self.store, self.gate, queue, self.support, me=spec.node_id, life=self.life, limits=limits
        )
        if not self.gate.is_open:
            self.runtime.on_gate_shut_at_start()
        timing = OwnershipTiming(tick_s=profile.gossip_interval_s, dead_time_s=dead_time_s)
        self.ownership = Ownership(
            env,
            self.store,
            self.runtime,
            queue,
            self.support,
            self.loop,
            self.calls,
            me=spec.node_id,
            offer=self.offer,
            timing=timing,
        )
        self.puller = Puller(
            env,
            self.store,
            self.data_calls,
            address_of=self.loop.rpc_address,
            is_there=self.loop.is_there,
            on_started=self.gate.on_pull_started,
            on_answered=lambda: self.gate.on_peer_answered(env.clock.monotonic()),
            on_finished=self._on_pull_finished,
        )
        self.push = Push(
            spec.identity,
            publish=lambda payload, subject: self.loop.publish(TOPIC_BUNDLE, payload, subject),
            hint=self.loop.hint,
            has_peers=self.loop.has_peers,
            now=env.clock.monotonic,
        )
        self._bundles_in, self._bundles_out = trio.open_memory_channel[Bundle](BUNDLES_WAITING_MAX)
        self._members_changed = trio.Event()
        self._boot_heard = boot
        self._boot_news = trio.Event()
        self._wire()

    def _wire(self) -> None:
        """Connect the parts: who hears of what. Every call here returns at once."""
        self.store.on_commit(self._on_commit)
        self.store.on_failed(self._on_store_failed)
        self.runtime.on_idle = self.ownership.on_idle
        self.loop.on_turn = self.runtime.gate_is_open
        self.loop.on_vector_differs = self.puller.want
        self.loop.on_rumor = self._on_rumor
        self.loop.on_self_conflict = self._on_self_conflict
        self.loop.on_member_changed.append(self._on_member_changed)

    def offer(self) -> Offer:
        """What this node can run."""
        return Offer(node=self.spec.node_id, abilities=frozenset(self.env.executor.agents()), labels=self.spec.labels)

    # --- events ---

    def _on_commit(self, commit: Commit) -> None:
        if commit.vector_changed and self.loop.has_peers():
            self.gossip.set_vector_digest(self.store.vector.digest())
        self.push.on_commit(commit)

    def _on_store_failed(self, failed: bool) -> None:
        if not failed:
            # Peers were told to take over, and what they did could not be stored here.
            self.runtime.shut_gate()
            for peer in self.loop.alive_peers():
                self.puller.want_at_once(peer)
        self._update_paused()
        log.error("the local store %s", "fails: this node starts no work" if failed else "works again")
        self.loop.perform(self.gossip.set_store_failed(failed, self.env.clock.monotonic()))

    def _on_self_conflict(self, conflict: SelfConflict) -> None:
        self.identity_conflict = conflict.detail
        self._update_paused()
        if conflict.boot > self._boot_heard:
            self._boot_heard = conflict.boot
            self._boot_news.set()

    def _update_paused(self) -> None:
        if not self.spec.settings.pause_worker_when_local_not_alive:
            return
        if self.store.failed:
            self.runtime.paused = "its store fails"
        else:
            self.runtime.paused = f"identity conflict: {self.identity_conflict}" if self.identity_conflict else None
        if self.runtime.paused is None:
            self.runtime.wake(self.spec.slots)

    def _on_member_changed(self, change: MemberChanged) -> None:
        self.gossip.set_vector_digest(self.store.vector.digest())  # kept up to date only while somebody may hear it
        self.ownership.on_member_changed()
        self.support.on_member_changed()
        self._members_changed.set()
        if change.after == Status.ALIVE and change.node_id != self.spec.node_id:
            self.puller.want_at_once(change.node_id)

    def _on_pull_finished(self, token: int) -> None:
        if self.gate.on_pull_finished(token, self.env.clock.monotonic()):
            log.info("heard from a peer: work owned before is touched again")
            self.runtime.on_gate_opened()

    def _on_rumor(self, rumor: RumorReceived) -> None:
        if rumor.topic != TOPIC_BUNDLE:
            return
        try:
            self._bundles_in.send_nowait(open_bundle(self._authority, rumor.payload))
        except RecordError as error:
            log.warning("refused a row bundle that came via %s: %s", rumor.via, error)
            self.bundles_dropped += 1
        except trio.WouldBlock:
            self.bundles_dropped += 1

    # --- services ---

    async def _apply_bundles(self) -> None:
        async for bundle in self._bundles_out:
            batch = [bundle]
            while len(batch) < BUNDLES_WAITING_MAX:
                try:
                    batch.append(self._bundles_out.receive_nowait())
                except trio.WouldBlock:
                    break
            try:
                await self.store.write(
                    partial(_merge_bundles, bundles=batch), remote=True, rows=sum(len(each.rows) for each in batch)
                )
            except RelayMeshError as error:
                log.warning("cannot apply %d row bundles: %s", len(batch), error)

    async def _keep_members(self) -> None:
        """Remember signed member records, so that a restart knows whom to call. Written only when one changed."""
        kept: dict[str, bytes] = {}
        while True:
            await self._members_changed.wait()
            self._members_changed = trio.Event()
            await self.env.clock.sleep(1.0)  # joins and failures come in bursts; one write serves them all
            current = {
                member.node_id: (member.record, member.status.value)
                for member in self.gossip.members.all()
                if member.node_id != self.spec.node_id
            }
            changed = {node: each for node, each in current.items() if kept.get(node) != each[0]}
            if not changed:
                continue
            try:
                await self.store.write(partial(_keep_records, records=changed))
                kept.update({node: record for node, (record, _) in changed.items()})
            except RelayMeshError as error:
                log.warning("cannot remember member records: %s", error)

    async def _keep_boot(self) -> None:
        """Count starts on from the latest that the mesh knows: after a restore, the next start is a later one again."""
        while True:
            await self._boot_news.wait()
            self._boot_news = trio.Event()
            try:
                await self.store.write(partial(_raise_boot, boot=self._boot_heard))
            except RelayMeshError as error:
                log.warning("cannot note the latest start of this node: %s", error)

    async def _verify_now_and_then(self) -> None:
        while True:
            await self.env.clock.sleep(VERIFY_EVERY_S * (0.5 + self.env.rng.random()))
            for peer in self.loop.alive_peers():
                await self.verify_with(peer)

    async def verify_with(self, peer: str) -> verification.VerifyResult | None:
        """Compare replicas with one peer and repair; None when it could not be asked."""
        address = self.loop.rpc_address(peer)
        if address is None:
            return None
        try:
            result = await verification.verify(self.store, self.data_calls, peer, address)
        except RelayMeshError as error:
            log.info("cannot compare replicas with %s: %s", peer, error)
            return None
        self.verified[peer] = result
        return result

    # --- verbs of peers ---

    def _verbs(self, admin: Handler) -> dict[str, Verb]:
        everyone = ("node", "operator", "local")
        return {
            "probe": Verb(self.loop.handle_probe),
            "pull": Verb(self._handle_pull, concurrent_max=8),
            "sync": Verb(self._handle_sync, concurrent_max=32),
            "verify": Verb(lambda _peer, body, _send: verification.serve_verify(self.store, body), concurrent_max=2),
            "ranges": Verb(lambda _peer, body, _send: verification.serve_ranges(self.store, body), concurrent_max=8),
            "rows": Verb(lambda _peer, body, _send: verification.serve_rows(self.store, body), concurrent_max=8),
            "offer": Verb(lambda peer, body, _send: self.ownership.handle_offer(peer, body)),
            "ask": Verb(lambda peer, body, _send: self.ownership.handle_ask(peer, body)),
            "support": Verb(lambda peer, body, _send: self.support.handle_support(peer, body)),
            "vote": Verb(lambda peer, body, _send: self.support.handle_vote(peer, body)),
            "admin": Verb(admin, roles=everyone, concurrent_max=512),
        }

    async def _handle_pull(self, peer: PeerIdentity, body: bytes, send: Callable[[bytes], Awaitable[None]]) -> bytes:
        return await serve_pull(self.store, body, send)

    async def _handle_sync(self, peer: PeerIdentity, body: bytes, send: object) -> bytes:
        """A peer asks us to pull from it now. The answer says up to where we durably have what it wrote."""
        await self.puller.pull(peer.name)
        ranges = [
            (origin.incarnation, self.store.vector.head(origin))
            for origin in self.store.vector.origins()
            if origin.node == peer.name
        ]
        return msgspec.msgpack.encode(ranges)

    async def replicate(self, wanted: int, timeout_s: float) -> list[str]:
        """Have peers fetch everything that is committed here now; returns those that have it durably.

        Stops at `wanted` replicas or after `timeout_s`. Peers are asked side by side, in rendezvous-free id order.
        """
        origin, head = self.store.origin, self.store.vector.head(self.store.origin)
        done: list[str] = []

        async def ask(peer: str, scope: trio.CancelScope) -> None:
            address = self.loop.rpc_address(peer)
            if address is None:
                return
            try:
                answer = await self.calls.call(address, "sync", b"", expect=peer)
                covered = dict(decode(answer, list[tuple[int, int]]))
            except RelayMeshError as error:
                log.info("peer %s did not confirm a replica: %s", peer, error)
                return
            if covered.get(origin.incarnation, 0) >= head:
                done.append(peer)
                if len(done) >= wanted:
                    scope.cancel()

        with trio.move_on_after(timeout_s):
            async with trio.open_nursery() as nursery:
                for peer in self.loop.alive_peers():
                    nursery.start_soon(ask, peer, nursery.cancel_scope)
        return done

    # --- the graceful end ---

    async def stop(self) -> None:
        """Give back what runs, make sure that a peer has it all, and say goodbye. Bounded: about ten seconds."""
        if self._stopping:
            return
        self._stopping = True
        self.ownership.leave()
        await self.runtime.stop(STOP_GRACE_S)
        peers = self.loop.alive_peers()
        if peers:
            await self.replicate(1, HAND_BACK_S)
        now = self.env.clock.monotonic()
        self.loop.perform(self.gossip.leave(now))
        deadline = now + LEAVE_S
        while peers and self.env.clock.monotonic() < deadline:
            if self.gossip.left_done(self.env.clock.monotonic()):
                break
            await self.env.clock.sleep(0.05)

    async def close(self) -> None:
        """Close the database cleanly."""
        await self.store.close()


def _tuned(profile: Profile, settings: Settings) -> Profile:
    """The profile with the operator's overrides."""
    changes: dict[str, object] = {
        "fanout": settings.gossip_fanout,
        "dedup_entries": settings.gossip_dedup_max_entries,
        "dedup_window_s": settings.gossip_dedup_window_ms / 1000,
    }
    if settings.suspect_after_ms is not None:
        changes["suspect_after_s"] = settings.suspect_after_ms / 1000
    if settings.gossip_packet_ttl is not None:
        changes["hop_ttl_override"] = settings.gossip_packet_ttl
    if settings.dead_after_ms is not None:
        changes["dead_after_s_override"] = settings.dead_after_ms / 1000
    return dataclasses.replace(profile, **changes)  # type: ignore[arg-type]  # names and kinds are the fields above


def _next_boot(tx: Transaction) -> int:
    """Count this start, durably, before anybody hears of it: records of lives are ordered by this number."""
    boot = _last_boot(tx) + 1
    tx.meta_set("boot", boot.to_bytes(8, "big"))
    return boot


def _raise_boot(tx: Transaction, *, boot: int) -> None:
    tx.meta_set("boot", max(boot, _last_boot(tx)).to_bytes(8, "big"))


def _last_boot(tx: Transaction) -> int:
    return int.from_bytes(tx.meta_get("boot") or b"\0", "big")


def _merge_bundles(tx: Transaction, *, bundles: Sequence[Bundle]) -> None:
    for bundle in bundles:
        for row in bundle.rows:
            tx.merge(row)
        tx.mark(bundle.origin, bundle.lo, bundle.hi)


def _keep_records(tx: Transaction, *, records: dict[str, tuple[bytes, str]]) -> None:
    for node_id, (record, status) in records.items():
        tx.execute(
            "INSERT OR REPLACE INTO members (node_id, record, status, changed_at_ms) VALUES (?, ?, ?, ?)",
            (node_id, record, status, tx.hlc >> 16),
        )
