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
from mesh.ca_statements import NOTHING_SAID
from mesh.effective import EffectiveState
from mesh.effects import MemberChanged, RumorReceived, SelfConflict
from mesh.errors import ConfigError, RecordError, RelayMeshError, StoreError
from mesh.gate import Gate
from mesh.gossip import Gossip
from mesh.identity import Authority, Identity
from mesh.ids import Address, make_life
from mesh.membership import INSTALLED, Member, Status
from mesh.placement import Offer
from mesh.profiles import Profile
from mesh.protocol import this_release
from mesh.records import RecordVerifier
from mesh.sealing import KeyRing
from mesh.tables import Table
from node.env import DatagramSocket, Env, PeerIdentity
from node.gossip_loop import GossipLoop
from node.replication import verify as verification
from node.replication.bootstrap import Bootstrap
from node.replication.calls import decode
from node.replication.pull import Puller, serve_pull
from node.replication.push import Push
from node.replication.snapshot import SnapshotDonor
from node.replication.stability_rounds import StabilityRounds, serve_vector
from node.roster import Roster
from node.settings import Settings
from node.standing import Standing
from node.storage.backup import RESTORED_META
from node.storage.database import DamagedError
from node.storage.migrate import Migration
from node.storage.set_aside import set_aside
from node.storage.store import Commit, Store
from node.storage.transaction import Arrival, Transaction
from node.streams.guard import GuardedDialler, StreamGuard
from node.streams.rpc import RpcPool, RpcServer, Verb
from node.trust import Trust
from node.trust_fetch import VERB, TrustFetch
from node.work import transitions
from node.work.definition import Limits
from node.work.disk_budget import DiskBudget
from node.work.own_rows import rows_to_hear
from node.work.ownership import Ownership, OwnershipTiming
from node.work.retention import Purger, Retention
from node.work.retries import RetryPolicy
from node.work.roster_support import RosterSupport
from node.work.runtime import RunLimits, Runtime
from node.work.scheduler import Scheduler
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
    ring_statement: bytes = b""
    """The CA's word for `ring`; empty while the mesh has its first one."""
    authorities_statement: bytes = b""
    """The CA's word for which CAs are trusted; empty while the mesh has its first CA and no other."""
    ca_root: bytes = b""
    """The first CA as X.509 (DER); empty where streams are simulated."""
    tls_certificate: str = ""
    """What streams prove this node by, as PEM; empty where streams are simulated."""
    start_alone: bool = False
    """Whether to begin without hearing from a peer first, also with an empty database in the place of a damaged one."""


class Node:
    """One member of a mesh: its replica, its part of the gossip, and the work it owns.

    `open`, then `run`; cancel `run` for a crash, or `stop` first for a graceful end.
    """

    def __init__(
        self,
        env: Env,
        spec: NodeSpec,
        *,
        tables: Sequence[Table] = WORK_TABLES,
        migrations: Sequence[Migration] | None = None,
    ) -> None:
        """Other `tables` and `migrations` than this release's are a newer one's, which knows all of these and more."""
        self.env = env
        self.spec = spec
        path = env.disk.root / "relaymesh.db"
        self.store = Store(env, tables, node_id=spec.node_id, path=path, migrations=migrations)
        self.speaks = this_release(self.store.schema, spec.version)
        self.authority = Authority(spec.identity.ca_public_key)
        """Who is trusted: all that is signed is checked against it."""
        self.trust = Trust(
            env,
            self.authority,
            ring=spec.ring,
            ring_statement=spec.ring_statement,
            ca_root=spec.ca_root,
            authorities_statement=spec.authorities_statement,
        )
        self.on_authorities: list[Callable[[], None]] = []
        """Called when the CAs that are trusted have changed, and once before this node says anything."""
        self._authorities_in_use = NOTHING_SAID
        self._distrusted: str | None = None
        self.standing = Standing(self.trust, self.authority, lambda name: self.gossip.members.get(name))
        self.guard = StreamGuard(self.standing.stream_refusal)
        dialler = GuardedDialler(env.net, self.guard)
        cluster = spec.identity.certificate.cluster
        self.calls = RpcPool(dialler, cluster, speaks=self.speaks)
        # Pulls have a pool of their own: a peer's `sync` makes us pull from it while it waits for our answer. So have
        # probes: whether a node lives must not wait behind slow calls.
        self.data_calls = RpcPool(dialler, cluster, speaks=self.speaks)
        self.probe_calls = RpcPool(dialler, cluster, speaks=self.speaks)
        self.identity_conflict: str | None = None
        self.bundles_dropped = 0
        self.tls_loaded_at_ms = int(env.clock.wall() * 1000)
        self.verified: dict[str, verification.VerifyResult] = {}
        self.verified_at: dict[str, float] = {}
        self._stopping = False

    async def open(self) -> None:
        """Open the replica and begin a new life. ConfigError or StoreError when the database cannot be used.

        A damaged one is set aside, and this node filled by its peers, if it has seeds to hear from, or was told to
        start alone.
        """
        try:
            await self.store.open()
        except DamagedError as error:
            if not self._seeds_of_others() and not self.spec.start_alone:
                raise ConfigError(
                    f"{error}. This node has no seeds to be filled from: give it --seeds, or --start-alone to begin "
                    "empty with the file set aside"
                ) from None
            disk, path = self.env.disk, self.store.path
            name = await self.env.writer_thread.run(lambda: set_aside(disk, path))
            then = "is filled by its peers" if self._seeds_of_others() else "begins empty"
            log.warning("%s. It is kept as %s, and this node %s", str(error).partition(". ")[0], name, then)
            await self.store.open()

    def _seeds_of_others(self) -> list[Address]:
        return [seed for seed in self.spec.seeds if seed != self.spec.address]

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
                cluster = self.spec.identity.certificate.cluster
                self.server = RpcServer(self._verbs(admin), cluster=cluster, speaks=self.speaks, guard=self.guard)
                await serve(self.server)
                for service in (
                    self.calls.run,
                    self.data_calls.run,
                    self.probe_calls.run,
                    self._apply_bundles,
                    self._keep_members,
                    self._keep_boot,
                    self._enforce_standing,
                    self.trust_fetch.run,
                    self._renew_queue,
                    self.donor.run,
                    self.bootstrap.run,
                ):
                    nursery.start_soon(service)
                # The queue is made anew before the first claim: an agent of the last start may be gone.
                await self.ownership.announce(self.spec.labels, self.spec.slots, self.spec.version)
                await self.runtime.holds.load()
                await nursery.start(self.runtime.run)
                await nursery.start(self.support.run)
                await nursery.start(self.ownership.run)
                await nursery.start(self.puller.run)
                await nursery.start(self.loop.run)
                nursery.start_soon(self.runtime.recover_strays, self.loop.current_life)
                nursery.start_soon(self._verify_now_and_then)
                if not self.spec.settings.linked_sites:
                    nursery.start_soon(self.stability.run)
                nursery.start_soon(self.roster.prune_now_and_then, lambda: self.spec.settings)
                nursery.start_soon(self.purger.run)
                nursery.start_soon(self.disk_budget.run)
                await nursery.start(self.scheduler.run)
                task_status.started()

    async def _assemble(self, socket: DatagramSocket) -> None:
        spec, env = self.spec, self.env
        await self.trust.open()
        self._follow_authorities()
        distrusted = self.standing.complaint(self.spec.identity)
        if distrusted is not None:
            raise ConfigError(f"this node has no part in its mesh any more: {distrusted}. Enroll this host anew")
        spec = self.spec
        try:
            boot = await self.store.write(_next_boot)
        except StoreError as error:
            raise ConfigError(
                f"this start cannot be noted: {error}. Mend the disk, then start the node again"
            ) from None
        known = await self.store.read(lambda reader: [row[0] for row in reader.sql("SELECT record FROM members")])
        self.life = make_life(spec.identity.certificate.enrolment, boot)
        now = env.clock.monotonic()
        profile = _tuned(spec.profile, spec.settings)
        dead_time_s = profile.dead_after_s(len(known) + 1)
        has_peers = bool(known or self._seeds_of_others()) and not spec.start_alone
        self.gate = Gate(dead_time_s=dead_time_s, has_peers=has_peers, now=now, is_restored=self.store.is_restored)
        self.gossip = Gossip(
            identity=spec.identity,
            ring=self.trust.ring,
            verifier=RecordVerifier(self.authority),
            revocations=self.trust.revocations.number,
            authorities=self.trust.authorities.number,
            profile=profile,
            rng=random.Random(env.rng.getrandbits(64)),
            entropy=env.entropy,
            boot=boot,
            address=spec.address,
            rpc_address=spec.rpc_address,
            seeds=spec.seeds,
            known=known,
            encrypt=spec.settings.gossip_encryption,
            speaks=self.speaks,
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
            retry=retry_of(spec.settings),
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
            linked_sites=spec.settings.linked_sites,
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
            may_snapshot=lambda: self.bootstrap.is_possible,
            on_snapshot_needed=lambda peer, reason: self.bootstrap.required(peer, reason),
        )
        self.donor = SnapshotDonor(env, self.store)
        self.bootstrap = Bootstrap(
            env,
            self.store,
            self.data_calls,
            address_of=self.loop.rpc_address,
            on_answered=lambda: self.gate.on_peer_answered(env.clock.monotonic()),
            on_adopted=self.puller.want_at_once,
            heed=partial(rows_to_hear, me=spec.node_id),
        )
        self.roster = Roster(env, self.store, self.loop, me=spec.node_id)
        await self.roster.load()
        self.stability = StabilityRounds(
            env,
            self.store,
            self.data_calls,
            members=self.roster.members,
            pause_s=spec.settings.garbage_interval_ms / 1000,
        )
        self.purger = Purger(
            env,
            self.store,
            me=spec.node_id,
            alive=lambda: [spec.node_id, *self.loop.alive_peers()],
            may_write=self._may_delete,
            retention=retention_of(spec.settings),
            every_s=spec.settings.retention_interval_ms / 1000,
        )
        self.disk_budget = DiskBudget(
            env,
            self.store,
            bytes_max=spec.settings.disk_budget_bytes,
            may_write=self._may_delete,
            every_s=spec.settings.retention_interval_ms / 1000,
        )
        self.scheduler = Scheduler(
            env,
            self.store,
            self.loop,
            me=spec.node_id,
            tick_s=profile.gossip_interval_s,
            limits=limits_of(spec.settings),
            may_write=self._may_submit,
            roster=lambda: [member.node_id for member in self._belonging()],
            offsets_ms=lambda: self.puller.offsets_ms(member.node_id for member in self._belonging()),
        )
        self.trust_fetch = TrustFetch(
            env, self.trust, self.gossip, self.calls, seeds=self._seeds_of_others(), rpc_port=spec.rpc_address.port
        )
        self._standing_news = trio.Event()
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
        self._queue_stale = trio.Event()
        self._wire()

    def _may_delete(self) -> bool:
        """Whether old tasks may go by this node's word: not before it has heard what became of them."""
        return self.gate.is_open and not self.store.failed and self.identity_conflict is None

    def _may_submit(self) -> bool:
        """Whether this node may submit what is due by a schedule."""
        return not self._stopping and self.runtime.gate_is_open() and self.runtime.paused is None and self._may_delete()

    def _belonging(self) -> list[Member]:
        """All that belong to the mesh, also those that are away: whoever left does not."""
        return [member for member in self.gossip.members.all() if member.status is not Status.LEFT]

    def _wire(self) -> None:
        """Connect the parts: who hears of what. Every call here returns at once."""
        self.store.on_commit(self._on_commit)
        self.store.on_failed(self._on_store_failed)
        self.store.on_replaced(self._on_store_replaced)
        self.runtime.on_idle = self.ownership.on_idle
        self.loop.on_turn = self.runtime.gate_is_open
        self.loop.on_vector_differs = self.puller.want
        self.puller.on_copied = lambda: self._queue_stale.set()
        self.loop.on_rumor = self._on_rumor
        self.loop.on_self_conflict = self._on_self_conflict
        self.loop.on_member_changed.append(self._on_member_changed)
        self.loop.on_unknown_key = self.trust_fetch.on_unknown_key
        self.authority.on_stranger = self.trust_fetch.on_stranger
        self.trust.on_changed.append(self._on_trust_changed)

    def take_settings(self, settings: Settings) -> None:
        """Go by these from now on, as far as a running node can: `node.settings_reload` knows how far."""
        self.spec = dataclasses.replace(self.spec, settings=settings)
        self.runtime.set_retry(retry_of(settings))
        self.gossip.set_spread(fanout=settings.gossip_fanout, hop_ttl=settings.gossip_packet_ttl)
        every_s = settings.retention_interval_ms / 1000
        self.purger.retune(retention_of(settings), every_s)
        self.disk_budget.retune(settings.disk_budget_bytes, every_s)
        self.roster.pause.cut()
        self.scheduler.take_limits(limits_of(settings))

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

    async def _on_store_replaced(self) -> None:
        # Others may have taken what this node owned, and no commit has told of it: look again, as after a pause.
        self.runtime.shut_gate()
        self.gossip.set_vector_digest(self.store.vector.digest())
        self._queue_stale.set()

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

    def _on_trust_changed(self) -> None:
        renewed = self._follow_authorities()
        if renewed is not None:
            self.push.adopt(renewed)
        self._standing_news.set()
        before, self._distrusted = self._distrusted, self.standing.complaint(self.spec.identity)
        if self._distrusted is not None:
            log.error("nothing new is started here: %s", self._distrusted)
        if self._distrusted != before:
            self.identity_conflict = self._distrusted
            self._update_paused()
        self.loop.perform(
            self.gossip.install_trust(
                self.trust.ring,
                self.trust.revocations.number,
                self.env.clock.monotonic(),
                authorities=self.trust.authorities.number,
                renewed=renewed,
            )
        )

    def _follow_authorities(self) -> Identity | None:
        """Take the CA's newest list into use; our identity by the certificate that it holds for us, if that is new."""
        order, identity = self.trust.orders.authorities, self.spec.identity
        if order == self._authorities_in_use:
            return None
        self._authorities_in_use = order
        for tell in self.on_authorities:
            tell()
        renewed = self.standing.renewed(identity)
        self.spec = dataclasses.replace(self.spec, identity=renewed)
        return None if renewed is identity else renewed

    def adopt(self, identity: Identity, tls_certificate: str) -> None:
        """Be known by a later enrolment from now on. The network must prove it already.

        RecordError, with nothing changed, when it does not hold any more.
        """
        self.authority.check(identity.certificate)
        identity = self.standing.renewed(identity)
        self.spec = dataclasses.replace(self.spec, identity=identity)
        self.note_tls(tls_certificate)
        self.push.adopt(identity)
        self._distrusted = None
        self.identity_conflict = None  # it was about the former enrolment; one that lasts is heard of again at once
        self._update_paused()
        self.loop.perform(self.gossip.adopt(identity, self.env.clock.monotonic()))

    def note_tls(self, certificate: str) -> None:
        """Streams prove this node by this certificate (PEM) from now on."""
        self.spec = dataclasses.replace(self.spec, tls_certificate=certificate)
        self.tls_loaded_at_ms = int(self.env.clock.wall() * 1000)

    def _on_member_changed(self, change: MemberChanged) -> None:
        self.trust_fetch.look()
        self._members_changed.set()
        if change.reason == INSTALLED:
            return  # what it did not say before is of no use to work or rows
        self.gossip.set_vector_digest(self.store.vector.digest())  # kept up to date only while somebody may hear it
        self.ownership.on_member_changed()
        self.support.on_member_changed()
        self.scheduler.on_member_changed()
        self._standing_news.set()
        if change.after == Status.ALIVE and change.node_id != self.spec.node_id:
            self.puller.want_at_once(change.node_id)

    def _on_pull_finished(self, token: int) -> None:
        if self.gate.on_pull_finished(token, self.env.clock.monotonic()):
            log.info("heard from a peer: work owned before is touched again")
            self.runtime.on_gate_opened()
        self.scheduler.on_pull_finished()

    def _on_rumor(self, rumor: RumorReceived) -> None:
        if rumor.topic != TOPIC_BUNDLE:
            return
        try:
            self._bundles_in.send_nowait(open_bundle(self.authority, rumor.payload))
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
            try:
                await self.roster.count_again(self.loop.alive_peers())
            except RelayMeshError as error:
                log.warning("cannot count members again that came back: %s", error)
                self._members_changed.set()
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
                self.roster.on_stored(changed)
            except RelayMeshError as error:
                log.warning("cannot remember member records: %s", error)

    async def _enforce_standing(self) -> None:
        """End the streams of those who were revoked, or enrolled anew, as soon as we know."""
        while True:
            await self._standing_news.wait()
            self._standing_news = trio.Event()
            await self.guard.enforce()

    async def _keep_boot(self) -> None:
        """Count starts on from the latest that the mesh knows: after a restore, the next start is a later one again."""
        while True:
            await self._boot_news.wait()
            self._boot_news = trio.Event()
            try:
                await self.store.write(partial(_raise_boot, boot=self._boot_heard))
            except RelayMeshError as error:
                log.warning("cannot note the latest start of this node: %s", error)

    async def _renew_queue(self) -> None:
        """Learn anew what is kept in memory of rows, after some came or went of which no commit told.

        That is so when a database took the place of ours, and when a whole copy dropped what peers have forgotten.
        """
        while True:
            await self._queue_stale.wait()
            self._queue_stale = trio.Event()
            try:
                await self.ownership.announce(self.spec.labels, self.spec.slots, self.spec.version)
                # A profile may have been current there that was put aside here, as one from the future.
                await self.ownership.read_profiles()
                await self.runtime.holds.load()
                await self.scheduler.load_anew()
            except RelayMeshError as error:
                log.warning("cannot make the queue anew yet: %s", error)
                await self.env.clock.sleep(1.0)
                self._queue_stale.set()
                continue
            self.runtime.on_queue_renewed()

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
            schema = self.loop.schema_with(peer)
            result = await verification.verify(self.store, self.data_calls, peer, address, schema=schema)
            if not result.compared:
                await self.puller.pull(peer)  # brings what one of the two lacks: rows, or what they may forget
                result = await verification.verify(self.store, self.data_calls, peer, address, schema=schema)
        except RelayMeshError as error:
            log.info("cannot compare replicas with %s: %s", peer, error)
            return None
        self.verified[peer], self.verified_at[peer] = result, self.env.clock.monotonic()
        return result

    # --- verbs of peers ---

    def _verbs(self, admin: Handler) -> dict[str, Verb]:
        everyone = ("node", "operator", "local")
        return {
            "probe": Verb(self.loop.handle_probe),
            VERB: Verb(self.trust.serve, concurrent_max=32),
            "pull": Verb(self._handle_pull, concurrent_max=8),
            "snapshot-offer": Verb(lambda _peer, body, _send: self.donor.handle_offer(body), concurrent_max=8),
            "snapshot-chunk": Verb(lambda _peer, body, send: self.donor.handle_chunks(body, send), concurrent_max=2),
            "sync": Verb(self._handle_sync, concurrent_max=32),
            "vector": Verb(lambda _peer, body, _send: serve_vector(self.store, body), concurrent_max=8),
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
        # A node that is being filled itself has nothing to give but rows.
        is_whole = self.bootstrap.progress() is None
        rows_min = (self.spec.settings.bootstrap_rows_min or None) if is_whole else None
        return await serve_pull(self.store, body, send, snapshot_rows_min=rows_min)

    async def _handle_sync(self, peer: PeerIdentity, body: bytes, send: object) -> bytes:
        """A peer asks us to pull from it now. The answer says up to where we durably have what it wrote."""
        await self.puller.pull(peer.name)
        ranges = [
            (origin.incarnation, self.store.vector.unbroken(origin))
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


def retry_of(settings: Settings) -> RetryPolicy:
    """How failed attempts are tried again where neither step nor agent says."""
    return RetryPolicy(
        max_attempts=settings.max_attempts,
        base_backoff_ms=settings.base_backoff_ms,
        max_backoff_ms=settings.max_backoff_ms,
    )


def retention_of(settings: Settings) -> Retention:
    """How long ended tasks are kept."""
    return Retention(
        done_ms=settings.done_retention_ms or None,
        dead_ms=settings.dead_retention_ms or None,
        attempts_ms=settings.attempt_retention_ms or None,
    )


def limits_of(settings: Settings) -> Limits:
    """How much one submit may ask for, be it a client's or a schedule's."""
    return Limits(
        steps_max=settings.steps_per_task_max,
        payload_bytes_max=settings.payload_max_bytes,
        submit_bytes_max=settings.submit_max_bytes,
    )


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
    restored = tx.meta_get(RESTORED_META)
    if restored is not None:
        # Whatever was leased when the snapshot was made may have ended since: the mesh leases it anew.
        transitions.bump_cluster_epoch(tx, reason=restored.decode("utf-8", "replace"), actor="restore")
        tx.execute("DELETE FROM meta WHERE name = ?", (RESTORED_META,))
    return boot


def _raise_boot(tx: Transaction, *, boot: int) -> None:
    tx.meta_set("boot", max(boot, _last_boot(tx)).to_bytes(8, "big"))


def _last_boot(tx: Transaction) -> int:
    return int.from_bytes(tx.meta_get("boot") or b"\0", "big")


def _merge_bundles(tx: Transaction, *, bundles: Sequence[Bundle]) -> None:
    for bundle in bundles:
        deferred = False
        for row in bundle.rows:
            deferred = tx.merge(row, Arrival.PUSHED) == "deferred" or deferred
        if not deferred:
            tx.mark(bundle.origin, bundle.lo, bundle.hi)


def _keep_records(tx: Transaction, *, records: dict[str, tuple[bytes, str]]) -> None:
    for node_id, (record, status) in records.items():
        tx.execute(
            "INSERT OR REPLACE INTO members (node_id, record, status, changed_at_ms) VALUES (?, ?, ?, ?)",
            (node_id, record, status, tx.hlc >> 16),
        )
