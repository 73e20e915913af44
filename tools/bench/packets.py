"""Gossip datagrams into one membership core: verified, decoded and applied, beside their cryptography alone.

Each kind is what a member of a mesh of 32 receives: acknowledgements, accusations that are news, signed records that
refute them, and signed bundles of a submitted task's rows, whose signatures are checked as a node does before it
stores them. The floor checks the HMAC, decrypts, decodes as many bytes as plain msgpack, and knows nothing else.
"""

from __future__ import annotations

import hmac
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from mesh import codec
from mesh.bundles import make_bundle, open_bundle
from mesh.effects import PacketRefused, RumorReceived
from mesh.gossip import Gossip
from mesh.identity import Authority, Identity, cluster_id, issue
from mesh.ids import Address, Origin
from mesh.messages import Ack, Claim, Item, Reason, Rumor, RumorKind, SignedRecord
from mesh.own_record import OwnRecord
from mesh.profiles import LAN
from mesh.replica import Stamp, successor
from mesh.rows import Row
from mesh.sealing import HEADER_BYTES, MAC_BYTES, KeyRing, KeyState, RingKey, Sealer, receiver_tag
from mesh.tables import Value
from node.work.tables import STEPS, TASKS, Status
from tools.bench.report import Report, make_report

MEMBERS = 32
CLAIMS_PER_PACKET = 6
RECORDS_PER_PACKET = 2
_TTL = 4
_NOW = 1.0
_TOPIC = 1
_NOTES = (
    "perS: datagrams of one core on one CPU. floorPerS: HMAC, AES-GCM and msgpack of as many bytes, in the same run.",
)


class _Mesh:
    """A CA and a ring, for one run."""

    def __init__(self) -> None:
        self._ca_key = Ed25519PrivateKey.generate()
        self.ca_public_key = self._ca_key.public_key().public_bytes_raw()
        self.cluster = cluster_id(self.ca_public_key)
        self.ring = KeyRing([RingKey(os.urandom(32), KeyState.PRIMARY)])

    def identity(self, name: str) -> Identity:
        key = Ed25519PrivateKey.generate()
        certificate = issue(
            self._ca_key,
            cluster=self.cluster,
            role="node",
            name=name,
            enrolment=1,
            public_key=key.public_key().public_bytes_raw(),
        )
        return Identity(certificate=certificate, private_key=key, ca_public_key=self.ca_public_key)


class _Speaker:
    """One other member: says things to the core under test, correctly sealed and signed."""

    def __init__(self, mesh: _Mesh, index: int, receiver: int) -> None:
        self.identity = mesh.identity(f"member-{index:02d}")
        address = Address(f"127.0.0.{index + 2}", 17_888)
        self.record = OwnRecord(
            self.identity, boot=1, process=index, address=address, rpc_address=Address(address.host, 18_443)
        )
        self.tag = self.record.current.tag
        self._receiver = receiver
        self._sealer = Sealer(
            ring=mesh.ring, cluster=mesh.cluster, sender=self.tag, life=self.record.life, process=index
        )
        self._number = 0

    def say(self, items: Iterable[Item]) -> bytes:
        return self._sealer.seal(codec.encode(items), self._receiver)

    def rumor(self, kind: RumorKind, payload: bytes, topic: int = 0) -> Rumor:
        self._number += 1
        return Rumor(self.tag, self.record.life, self._number, _TTL, kind, topic, payload)

    def claim(self, subject: _Speaker) -> Rumor:
        about = subject.record
        claim = Claim(
            subject.tag, about.life, about.current.body.incarnation, self.tag, Reason.PROBE_TIMEOUT, dead=False
        )
        return self.rumor(RumorKind.CLAIM, codec.encode_claim(claim))


@dataclass(slots=True)
class _World:
    """The core under test and all who talk to it."""

    mesh: _Mesh
    core: Gossip
    speakers: list[_Speaker]

    def receive(self, datagram: bytes) -> Sequence[object]:
        return self.core.on_datagram(datagram, Address("127.0.0.2", 17_888), _NOW)


def bench_packets(directory: Path, *, count: int) -> Report:
    """Measure `count` datagrams of each kind, and of all kinds in turn."""
    kinds: dict[str, Callable[[_World], Iterator[bytes]]] = {
        "acks": _acks,
        "claims": _claims,
        "records": _records,
        "bundles": _bundles,
        "mixed": _mixed,
    }
    results = [_measure(name, make, count) for name, make in kinds.items()]
    return make_report("packets", directory, {"count": count, "members": MEMBERS}, results, notes=_NOTES)


def _measure(name: str, make: Callable[[_World], Iterator[bytes]], count: int) -> dict[str, Any]:
    world = _world()
    datagrams = list(islice(make(world), count))
    authority = Authority(world.mesh.ca_public_key)
    rows = 0
    started = time.process_time()
    for datagram in datagrams:
        for effect in world.receive(datagram):
            if isinstance(effect, RumorReceived):
                rows += len(open_bundle(authority, effect.payload).rows)
            assert not isinstance(effect, PacketRefused), effect
    took_s = time.process_time() - started
    floor_s = _floor_s([len(datagram) for datagram in datagrams])
    return {
        "kind": name,
        "perS": round(count / took_s),
        "cpuUs": round(took_s / count * 1e6, 1),
        "floorPerS": round(count / floor_s),
        "ratio": round(floor_s / took_s, 3),
        "rows": rows,
        "datagramBytes": round(sum(map(len, datagrams)) / count),
    }


def _world() -> _World:
    mesh = _Mesh()
    core = Gossip(
        identity=mesh.identity("core"),
        ring=mesh.ring,
        profile=LAN,
        rng=random.Random(1),
        entropy=os.urandom,
        boot=1,
        address=Address("127.0.0.1", 17_888),
        rpc_address=Address("127.0.0.1", 18_443),
        seeds=[],
    )
    core.start(_NOW)
    own = core.members.own
    speakers = [_Speaker(mesh, index, receiver_tag(own.tag, own.life)) for index in range(MEMBERS)]
    world = _World(mesh, core, speakers)
    for speaker in speakers:
        world.receive(speaker.say([SignedRecord(speaker.record.current.raw)]))
    assert len(core.members.alive()) == MEMBERS + 1
    return world


def _acks(world: _World) -> Iterator[bytes]:
    rng = random.Random(2)
    for speaker in cycle(world.speakers):
        yield speaker.say([Ack(rng.getrandbits(63), rng.randbytes(8))])


def _claims(world: _World) -> Iterator[bytes]:
    # Every member accuses every other one: each claim is news the first time, and confirms others before it.
    for step in cycle(range(1, MEMBERS)):
        for index, speaker in enumerate(world.speakers):
            accused = (world.speakers[(index + step + offset) % MEMBERS] for offset in range(CLAIMS_PER_PACKET))
            yield speaker.say([speaker.claim(subject) for subject in accused if subject is not speaker])


def _records(world: _World) -> Iterator[bytes]:
    # Each record is one incarnation further, so each signature is checked and each record is news.
    for index, speaker in enumerate(cycle(world.speakers)):
        subjects = [world.speakers[(index + offset) % MEMBERS] for offset in range(RECORDS_PER_PACKET)]
        yield speaker.say([speaker.rumor(RumorKind.RECORD, subject.record.refute().raw) for subject in subjects])


def _bundles(world: _World) -> Iterator[bytes]:
    for number, speaker in enumerate(cycle(world.speakers)):
        rows = _submitted_rows(speaker.identity.node_id, number)
        bundle = make_bundle(speaker.identity, rows, rows[0].seq, rows[-1].seq)
        yield speaker.say([speaker.rumor(RumorKind.TOPIC, bundle, _TOPIC)])


def _mixed(world: _World) -> Iterator[bytes]:
    makers = [_acks(world), _claims(world), _records(world), _bundles(world)]
    for maker in cycle(makers):
        yield next(maker)


def _submitted_rows(node: str, number: int) -> list[Row]:
    stamp = Stamp(Origin(node, 7), (1 << 40) + number)
    task_id, seq = f"tsk-{number:040d}", 2 * number + 1
    task: dict[str, Value] = {"idempotency_key": f"{number:032d}", "step_count": 1, "trace_id": f"{number:032d}"}
    step: dict[str, Value] = {
        "task_id": task_id,
        "name": "echo",
        "agent": "echo",
        "input": b"x" * 64,
        "owner": node,
        "status": Status.PENDING.value,
        "attempt": 0,
    }
    return [
        successor(TASKS, None, stamp, seq, namespace="default", key=task_id, values=task),
        successor(STEPS, None, stamp, seq + 1, namespace="default", key=f"stp-{number:040d}", values=step),
    ]


def _floor_s(sizes: Sequence[int]) -> float:
    """CPU seconds for the cryptography and a plain msgpack decode of datagrams of these sizes."""
    key, cipher, nonce = os.urandom(32), AESGCM(os.urandom(32)), os.urandom(12)
    header = os.urandom(HEADER_BYTES)
    made = {}
    for size in sorted(set(sizes)):
        body = msgspec.msgpack.encode([1, b"x" * (size - 2 * MAC_BYTES - HEADER_BYTES - 6)])
        sealed = header + cipher.encrypt(nonce, body, header)
        made[size] = sealed + hmac.digest(key, sealed, "sha256")[:MAC_BYTES]
    packets = [made[size] for size in sizes]
    started = time.process_time()
    for packet in packets:
        assert hmac.compare_digest(hmac.digest(key, packet[:-MAC_BYTES], "sha256")[:MAC_BYTES], packet[-MAC_BYTES:])
        msgspec.msgpack.decode(cipher.decrypt(nonce, packet[HEADER_BYTES:-MAC_BYTES], packet[:HEADER_BYTES]))
    return time.process_time() - started
