"""Whole meshes in one process, on virtual time: one heap of events, seeded delay, loss and cuts.

Each host carries out the effects of its `Gossip` as the real shell does: datagrams travel, timers fire at
`next_deadline()`, stream probes answer when the target runs and no cut lies between.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mesh.effects import Effect, ProbeStream, SendDatagram
from mesh.gossip import Gossip
from mesh.identity import Identity, cluster_id, issue
from mesh.ids import Address
from mesh.membership import Status
from mesh.profiles import LOCAL, Profile
from mesh.sealing import KeyRing, KeyState, RingKey


def seeded_key(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(random.Random(name).randbytes(32))


class TestMesh:
    """A CA and a key ring; makes identities."""

    __test__ = False

    def __init__(self, name: str = "mesh") -> None:
        self.ca_key = seeded_key(f"ca-{name}")
        self.ca_public_key = self.ca_key.public_key().public_bytes_raw()
        self.cluster = cluster_id(self.ca_public_key)
        self.ring = KeyRing([RingKey(random.Random(name).randbytes(32), KeyState.PRIMARY)])

    def identity(self, node_id: str, enrolment: int = 1) -> Identity:
        key = seeded_key(f"{node_id}-{enrolment}")
        certificate = issue(
            self.ca_key,
            cluster=self.cluster,
            role="node",
            name=node_id,
            enrolment=enrolment,
            public_key=key.public_key().public_bytes_raw(),
        )
        return Identity(certificate=certificate, private_key=key, ca_public_key=self.ca_public_key)


@dataclass
class Host:
    """One running node and what it has told its shell."""

    gossip: Gossip
    address: Address
    boot: int
    up: bool = True
    paused: bool = False
    inbox: list[tuple[bytes, Address]] = field(default_factory=list)
    log: list[tuple[float, Effect]] = field(default_factory=list)
    wake_token: int = 0
    datagrams_sent: int = 0
    bytes_sent: int = 0


class World:
    """Hosts, a network between them, and virtual time."""

    def __init__(self, *, seed: int = 1, profile: Profile = LOCAL, loss: float = 0.0, delay_s: float = 0.002) -> None:
        self.now = 1_000.0
        self.rng = random.Random(seed)
        self.mesh = TestMesh()
        self.profile = profile
        self.loss = loss
        self.delay_s = delay_s
        self.streams = True
        self.hosts: dict[str, Host] = {}
        self.cuts: set[tuple[str, str]] = set()  # only membership is asked, never iterated
        self.wire: list[tuple[str, str, bytes]] | None = None
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def add(
        self, node_id: str, *, seeds: Iterable[str] = (), boot: int = 1, known: Iterable[bytes] = (), enrolment: int = 1
    ) -> Host:
        address = address_of(node_id)
        gossip = Gossip(
            identity=self.mesh.identity(node_id, enrolment),
            ring=self.mesh.ring,
            profile=self.profile,
            rng=random.Random(self.rng.getrandbits(64)),
            entropy=random.Random(self.rng.getrandbits(64)).randbytes,
            boot=boot,
            address=address,
            rpc_address=Address(address.host, address.port + 1),
            seeds=[address_of(seed) for seed in seeds],
            known=list(known),
        )
        host = Host(gossip, address, boot)
        self.hosts[node_id] = host
        self.carry_out(node_id, gossip.start(self.now))
        return host

    def mesh_of(self, count: int, *, settle_s: float = 3.0) -> list[str]:
        """Start this many nodes at once, all seeded with the first, and let them find each other."""
        names = [f"n{index:03d}" for index in range(count)]
        for name in names:
            self.add(name, seeds=names[:1])
        self.run(settle_s)
        return names

    def crash(self, node_id: str) -> None:
        self.hosts[node_id].up = False

    def restart(self, node_id: str, *, seeds: Iterable[str] = ()) -> Host:
        return self.add(node_id, seeds=seeds, boot=self.hosts[node_id].boot + 1)

    def pause(self, node_id: str, seconds: float) -> None:
        """Stop a process: its datagrams wait in its socket, its timers fire late."""
        host = self.hosts[node_id]
        host.paused = True
        self.at(self.now + seconds, lambda: self._resume(node_id, host))

    def cut(self, one: Iterable[str], other: Iterable[str]) -> None:
        other = list(other)
        for a in one:
            for b in other:
                self.cuts |= {(a, b), (b, a)}

    def heal(self) -> None:
        self.cuts.clear()

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self._heap and self._heap[0][0] <= end:
            self.now, _, action = heapq.heappop(self._heap)
            action()
        self.now = end

    def run_until(self, condition: Callable[[], bool], limit_s: float) -> float:
        """Run until the condition holds; the seconds that took. AssertionError when it does not come true."""
        began = self.now
        while not condition():
            assert self.now - began < limit_s, f"not within {limit_s} s"
            self.run(0.05)
        return self.now - began

    def at(self, when: float, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._heap, (when, self._count, action))

    def carry_out(self, node_id: str, effects: list[Effect]) -> None:
        host = self.hosts[node_id]
        for effect in effects:
            host.log.append((self.now, effect))
            if isinstance(effect, SendDatagram):
                assert len(effect.data) <= 1_200
                host.datagrams_sent += 1
                host.bytes_sent += len(effect.data)
                self._send(node_id, effect)
            elif isinstance(effect, ProbeStream):
                self._probe_stream(node_id, host, effect)
        self._arm(node_id, host)

    def status(self, viewer: str, node_id: str) -> Status | None:
        member = self.hosts[viewer].gossip.members.get(node_id)
        return member.status if member is not None else None

    def all_see(self, viewers: Iterable[str], node_ids: Iterable[str], status: Status | None) -> bool:
        node_ids = list(node_ids)
        return all(self.status(a, b) is status for a in viewers for b in node_ids if a != b)

    def effects(self, node_id: str, kind: type[Effect]) -> list[Effect]:
        return [effect for _, effect in self.hosts[node_id].log if isinstance(effect, kind)]

    def _node_at(self, address: Address) -> str | None:
        return next((name for name, host in self.hosts.items() if host.address == address), None)

    def _delay(self) -> float:
        return self.delay_s * (0.5 + self.rng.random())

    def _send(self, sender: str, effect: SendDatagram) -> None:
        receiver = _name_at(effect.address)
        if self.wire is not None:
            self.wire.append((sender, receiver, effect.data))
        lost = self.rng.random() < self.loss
        if lost or (sender, receiver) in self.cuts or receiver not in self.hosts:
            return
        source = self.hosts[sender].address
        self.at(self.now + self._delay(), lambda: self.deliver(receiver, effect.data, source))

    def deliver(self, receiver: str, data: bytes, source: Address) -> None:
        host = self.hosts[receiver]
        if host.paused:
            host.inbox.append((data, source))
        elif host.up:
            self.carry_out(receiver, host.gossip.on_datagram(data, source, self.now))

    def _probe_stream(self, prober: str, host: Host, probe: ProbeStream) -> None:
        def answer() -> None:
            target = self.hosts.get(probe.node_id)
            reachable = (prober, probe.node_id) not in self.cuts and (probe.node_id, prober) not in self.cuts
            alive = self.streams and target is not None and target.up and not target.paused and reachable
            if host.up and self.hosts[prober] is host:
                self.carry_out(prober, host.gossip.on_stream_probe(probe.node_id, probe.nonce, alive, self.now))

        self.at(self.now + 3 * self._delay(), answer)

    def _arm(self, node_id: str, host: Host) -> None:
        host.wake_token += 1
        token, deadline = host.wake_token, host.gossip.next_deadline()
        if deadline < float("inf"):
            self.at(max(self.now, deadline), lambda: self._wake(node_id, host, token))

    def _wake(self, node_id: str, host: Host, token: int) -> None:
        if host.up and not host.paused and host.wake_token == token and self.hosts[node_id] is host:
            self.carry_out(node_id, host.gossip.on_timer(self.now))

    def _resume(self, node_id: str, host: Host) -> None:
        host.paused = False
        waiting, host.inbox = host.inbox, []
        for data, source in waiting:
            self.carry_out(node_id, host.gossip.on_datagram(data, source, self.now))
        self.carry_out(node_id, host.gossip.on_timer(self.now))


def address_of(node_id: str) -> Address:
    return Address(f"{node_id}.test", 17_888)


def _name_at(address: Address) -> str:
    return address.host.removesuffix(".test")
