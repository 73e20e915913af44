"""Drives the membership core: hands it datagrams and the time, carries out what it asks for.

One task reads the socket and fires the timers, so the core needs no lock. After every wait all queued datagrams are
read before a timer fires: after a pause, answers that came meanwhile count before any verdict about who did not answer.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

import msgspec
import trio

from mesh.effects import (
    Effect,
    MemberChanged,
    PacketRefused,
    ProbeStream,
    RumorReceived,
    SelfConflict,
    SendDatagram,
    VectorDiffers,
)
from mesh.errors import RelayMeshError
from mesh.gossip import Gossip
from mesh.ids import Address
from mesh.membership import Member, Status
from mesh.protocol import refusal
from mesh.takeover import OwnerState
from node.env import DatagramSocket, Env, PeerIdentity
from node.replication.calls import Caller

log = logging.getLogger(__name__)

DRAIN_MAX = 64
"""Datagrams handled between two looks at the other tasks of this process (reference: dependencies, section 3)."""
DRAIN_S = 0.05
"""How long a flood may postpone the timers: detection must go on under load."""
STREAM_PROBE_S = 1.0
REFUSED_LOG_EVERY_S = 60.0
REFUSED_LOG_HOSTS_MAX = 256


class GossipLoop:
    """Runs one `Gossip` on one socket, and answers what the other parts need to know of the mesh."""

    def __init__(
        self, env: Env, gossip: Gossip, socket: DatagramSocket, calls: Caller, *, me: str, turn_max_s: float
    ) -> None:
        """`turn_max_s`: the loop turns at least this often, also when a node is alone and has nothing to say."""
        self._env = env
        self._turn_max_s = turn_max_s
        self._gossip = gossip
        self._socket = socket
        self._calls = calls
        self._me = me
        self._wait_scope = trio.CancelScope()
        self._wakes_at = float("inf")
        self._nursery: trio.Nursery | None = None
        self._refused_logged: dict[str, float] = {}
        self._conflict_logged: str | None = None
        self._strangers: dict[str, int] = {}
        self.on_member_changed: list[Callable[[MemberChanged], None]] = []
        self.on_vector_differs: Callable[[str], None] = lambda _node: None
        self.on_rumor: Callable[[RumorReceived], None] = lambda _rumor: None
        self.on_self_conflict: Callable[[SelfConflict], None] = lambda _conflict: None
        self.on_unknown_key: Callable[[], None] = lambda: None
        """A datagram came under a ring key that we do not have."""
        self.on_turn: Callable[[], object] = lambda: None
        """Called on every turn of the loop, several times in each dead time: this is how the gate notices a pause."""
        self.refused: Counter[str] = Counter()
        """Datagrams dropped, by reason."""
        self.sent_total = 0
        self.sent_bytes_total = 0
        self.received_total = 0

    @property
    def gossip(self) -> Gossip:
        """The core. Everything that it returns must go through `perform`."""
        return self._gossip

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Gossip until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self.perform(self._gossip.start(self._env.clock.monotonic()))
            task_status.started()
            while True:
                with trio.CancelScope() as self._wait_scope:
                    await self._wait()
                self.on_turn()
                more = self._drain()
                now = self._env.clock.monotonic()
                if self._gossip.next_deadline() <= now:
                    self.perform(self._gossip.on_timer(now))
                if more:
                    await trio.lowlevel.checkpoint()

    async def _wait(self) -> None:
        self._wakes_at = self._gossip.next_deadline()
        pause_s = self._wakes_at - self._env.clock.monotonic()
        with trio.move_on_after(min(max(0.0, pause_s), self._turn_max_s)):
            await self._socket.wait_readable()

    def _drain(self) -> bool:
        """Hand over what is queued; True when more may be there."""
        started = self._env.clock.monotonic()
        while True:
            for _ in range(DRAIN_MAX):
                received = self._socket.receive_nowait()
                if received is None:
                    return False
                self.received_total += 1
                data, source = received
                self.perform(self._gossip.on_datagram(data, source, self._env.clock.monotonic()))
            if self._env.clock.monotonic() - started > DRAIN_S:
                return True

    def perform(self, effects: list[Effect]) -> None:
        """Carry out effects in order. Never blocks: what takes time becomes a task of its own."""
        for effect in effects:
            match effect:
                case SendDatagram():
                    self.sent_total += 1
                    self.sent_bytes_total += len(effect.data)
                    self._socket.send(effect.data, effect.address)
                case RumorReceived():
                    self.on_rumor(effect)
                case VectorDiffers():
                    self.on_vector_differs(effect.node_id)
                case MemberChanged():
                    self._note_change(effect)
                case ProbeStream():
                    assert self._nursery is not None, "effects come only while the loop runs"
                    self._nursery.start_soon(self._probe, effect)
                case PacketRefused():
                    self._note_refused(effect)
                case SelfConflict():
                    self._note_conflict(effect)
        # Whoever called may have given the core something to do sooner. Else the loop sleeps on: a busy store calls
        # here after each commit, and a turn of the loop costs as much as a small request.
        if self._gossip.next_deadline() < self._wakes_at:
            self._wait_scope.cancel()

    def _note_conflict(self, conflict: SelfConflict) -> None:
        if conflict.detail != self._conflict_logged:  # every datagram of the other process tells the same
            self._conflict_logged = conflict.detail
            log.error("identity conflict, nothing new is started here: %s", conflict.detail)
        self.on_self_conflict(conflict)

    def _note_change(self, change: MemberChanged) -> None:
        log.info("member %s: %s -> %s (%s)", change.node_id, change.before or "new", change.after, change.reason)
        self._note_release(change.node_id)
        for callback in self.on_member_changed:
            callback(change)

    def _note_release(self, node_id: str) -> None:
        """Say once for each life that a member's release has no protocol in common with ours."""
        member = self._gossip.members.get(node_id)
        if member is None or not member.active or self._gossip.members.protocol_with(member) is not None:
            return
        if self._strangers.get(node_id) != member.life:
            self._strangers[node_id] = member.life
            log.error("cannot talk to a member: %s", refusal(self._gossip.members.own.speaks, member.speaks, node_id))

    def _note_refused(self, effect: PacketRefused) -> None:
        self.refused[effect.reason] += 1
        if effect.reason == "unknown-key":
            self.on_unknown_key()
        now, host = self._env.clock.monotonic(), effect.source.host
        if now - self._refused_logged.get(host, -REFUSED_LOG_EVERY_S) < REFUSED_LOG_EVERY_S:
            return
        if len(self._refused_logged) >= REFUSED_LOG_HOSTS_MAX:
            self._refused_logged.clear()
        self._refused_logged[host] = now
        why = f"{effect.reason}, {effect.detail}" if effect.detail else effect.reason
        log.warning("refused a datagram from %s: %s (said once a minute)", effect.source, why)

    async def _probe(self, effect: ProbeStream) -> None:
        alive = False
        with trio.move_on_after(STREAM_PROBE_S):
            try:
                body = msgspec.msgpack.encode(effect.nonce)
                await self._calls.call(effect.rpc_address, "probe", body, expect=effect.node_id)
                alive = True
            except RelayMeshError as error:
                log.debug("stream probe of %s: %s", effect.node_id, error)
        now = self._env.clock.monotonic()
        self.perform(self._gossip.on_stream_probe(effect.node_id, effect.nonce, alive, now))

    async def handle_probe(self, peer: PeerIdentity, body: bytes, send: object) -> bytes:
        """The other end of a stream probe: answering at all is the answer."""
        return body

    # --- what the rest of the node asks ---

    def publish(self, topic: int, payload: bytes, subject: bytes) -> None:
        """Spread a payload of another layer."""
        self.perform(self._gossip.publish(topic, payload, self._env.clock.monotonic(), subject=subject))

    def hint(self) -> None:
        """Our replica changed: say so at the next gossip tick. The digest was set before."""
        self.perform(self._gossip.hint(self._env.clock.monotonic()))

    def owner_state(self, node_id: str) -> OwnerState:
        """What is believed of a node as an owner of work."""
        if node_id == self._me:
            return OwnerState.PRESENT
        member = self._gossip.members.get(node_id)
        if member is None:
            return OwnerState.UNKNOWN
        if member.status is Status.DEAD:
            return OwnerState.DEAD
        if member.status is Status.LEFT:
            return OwnerState.LEFT
        return OwnerState.STORE_FAILED if member.store_failed else OwnerState.PRESENT

    def members(self) -> list[Member]:
        """Every member that gossip knows, this node included."""
        return list(self._gossip.members.all())

    def status(self, node_id: str) -> Status | None:
        """The protocol status of a member; None when gossip does not know it."""
        member = self._gossip.members.get(node_id)
        return None if member is None else member.status

    def forget(self, node_id: str) -> bool:
        """Forget a member that is DEAD or LEFT; False when it is active, or unknown."""
        return self._gossip.forget(node_id, self._env.clock.monotonic())

    def is_there(self, node_id: str) -> bool:
        """Whether the node is a member that may answer: neither declared dead, nor gone, nor never heard of."""
        member = self._gossip.members.get(node_id)
        return member is not None and member.active

    def may_reclaim(self) -> bool:
        """False while the mass-failure freeze holds."""
        return self._gossip.may_reclaim(self._env.clock.monotonic())

    def usable(self) -> list[str]:
        """Members that can work, this node included: alive, with a working store."""
        return [member.node_id for member in self._gossip.members.alive() if not member.store_failed]

    def placeable(self) -> list[str]:
        """The usable members that new work can go to: those that no dwell window withholds, and that we can talk to."""
        now = self._env.clock.monotonic()
        return [
            node
            for node in self.usable()
            if node == self._me
            or (self._gossip.effective.status(node, now) is Status.ALIVE and self.rpc_address(node) is not None)
        ]

    def alive_peers(self) -> list[str]:
        """Members other than this node whose protocol status is ALIVE, by node id."""
        return [member.node_id for member in self._gossip.members.alive() if member.node_id != self._me]

    def has_peers(self) -> bool:
        """Whether any other member may still hear us."""
        return self._gossip.members.size() > 1

    def rpc_address(self, node_id: str) -> Address | None:
        """Where the node's streams are, if it is known and speaks a protocol that we speak too."""
        member = self._gossip.members.get(node_id)
        if member is None or self._gossip.members.protocol_with(member) is None:
            return None
        return member.rpc_address

    def schema_with(self, node_id: str) -> int:
        """The newest schema whose tables both this node and another know."""
        own, member = self._gossip.members.own, self._gossip.members.get(node_id)
        return min(own.speaks.schema, (member or own).speaks.schema)

    def current_life(self, node_id: str) -> int | None:
        """The latest life of a node that a signed record showed."""
        member = self._gossip.members.get(node_id)
        return member.life if member is not None else None
