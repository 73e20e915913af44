"""Packets as earlier versions sent them: what is on the wire must stay readable, and must not change unnoticed.

`RELAYMESH_WRITE_GOLDEN=1 python -m pytest tests/mesh/test_golden_packets.py` writes the files anew. Do that only
together with a new packet version, or for a kind that no release has sent yet.
"""

import os
from pathlib import Path

import pytest

from chaos.simulation.credentials import Credentials
from mesh import codec
from mesh.identity import Authority
from mesh.ids import Address, make_life, node_tag
from mesh.messages import (
    Ack,
    Claim,
    Digest,
    Item,
    Nack,
    Outline,
    Ping,
    PingRequest,
    Reason,
    Rumor,
    RumorKind,
    SignedRecord,
    VectorHint,
)
from mesh.own_record import OwnRecord
from mesh.protocol import SILENT
from mesh.records import RecordVerifier
from mesh.sealing import KeyRing, KeyState, RingKey, Sealer, receiver_tag

FOLDER = Path(__file__).parent.parent / "golden" / "packets"
MESH = Credentials(1)
RING = KeyRing([RingKey(bytes(range(32)), KeyState.PRIMARY)])
LIFE = make_life(1, 2)
RECORD = OwnRecord(
    MESH.identity("node-a"),
    boot=2,
    process=3,
    address=Address("192.0.2.1", 17_888),
    rpc_address=Address("2001:db8::1", 18_443),
).current
CLAIM = Claim(node_tag("node-b"), LIFE, 4, node_tag("node-a"), Reason.PROBE_TIMEOUT, False)
PACKETS: dict[str, list[Item]] = {
    "empty": [],
    "ping": [Ping(2**63 - 1, b"12345678")],
    "ack": [Ack(1, b"")],
    "ping-request": [PingRequest(2, node_tag("node-b"))],
    "nack": [Nack(3)],
    "record": [SignedRecord(RECORD.raw)],
    "claim": [CLAIM],
    "digest": [Digest(bytes(8), b"\xff" * 8, False, bytes(range(42)))],
    "outline": [Outline(bytes(range(16)))],
    "hint": [VectorHint(b"12345678")],
    "rumor-record": [Rumor(RECORD.tag, LIFE, 5, 8, RumorKind.RECORD, 0, RECORD.raw)],
    "rumor-claim": [Rumor(RECORD.tag, LIFE, 6, 7, RumorKind.CLAIM, 0, codec.encode_claim(CLAIM))],
    "rumor-topic": [Rumor(RECORD.tag, LIFE, 7, 1, RumorKind.TOPIC, 9, b"payload")],
    "call": [SignedRecord(RECORD.raw), Ping(8, b"12345678"), Digest(bytes(8), b"\xff" * 8, False, b"")],
    "many": [Nack(number) for number in range(20)],
}


def sealer() -> Sealer:
    return Sealer(ring=RING, cluster=MESH.cluster, sender=node_tag("node-a"), life=LIFE, process=3)


def sealed(name: str) -> bytes:
    receiver = 0 if name == "call" else receiver_tag(node_tag("node-b"), LIFE)
    return sealer().seal(codec.encode(PACKETS[name]), receiver)


@pytest.mark.parametrize("name", PACKETS)
def test_a_golden_packet_is_written_and_read_as_before(name: str) -> None:
    file = FOLDER / f"{name}.hex"
    if os.environ.get("RELAYMESH_WRITE_GOLDEN") == "1":
        file.write_text(sealed(name).hex("\n", 32) + "\n")
    golden = bytes.fromhex(file.read_text())
    assert sealed(name) == golden
    packet = sealer().open(golden)
    assert codec.decode(packet.body) == PACKETS[name]
    assert (packet.sender, packet.life, packet.process) == (node_tag("node-a"), LIFE, 3)


def test_the_golden_record_still_verifies() -> None:
    record = RecordVerifier(Authority(MESH.ca_public_key)).verify(RECORD.raw)
    assert (record.node_id, record.life) == ("node-a", LIFE)


@pytest.mark.parametrize("name", ["record", "rumor-record", "call"])
def test_a_record_of_the_first_release_is_read_as_speaking_the_first_protocol(name: str) -> None:
    packet = sealer().open(bytes.fromhex((FOLDER.parent / "packets-0.1" / f"{name}.hex").read_text()))
    item = codec.decode(packet.body)[0]
    record = RecordVerifier(Authority(MESH.ca_public_key)).verify(
        item.payload if isinstance(item, Rumor) else item.record
    )
    assert (record.node_id, record.life, record.body.speaks) == ("node-a", LIFE, SILENT)


def test_every_golden_file_belongs_to_a_packet() -> None:
    assert sorted(file.stem for file in FOLDER.glob("*.hex")) == sorted(PACKETS)
