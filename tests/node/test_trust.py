"""What the CA said is on the disk before it is used, never goes back, and waits until everybody can follow."""

from __future__ import annotations

import random
from typing import Any, cast

import msgspec
import pytest

from chaos.simulation.credentials import Credentials
from mesh.errors import ConflictError, FrameError, RecordError, StoreError
from mesh.identity import Authority
from mesh.key_rotation import add, promote, sign_ring
from mesh.revocations import Revocations, RevokedEnrolment, sign_revocations
from node.env import Env, PeerIdentity
from node.trust import TRUST_FILE, Trust
from tests.node.conftest import InlineThread, TestDisk, TrioClock

MESH = Credentials(1)
ADDED = add(MESH.ring, b"n" * 32)
PROMOTED = promote(ADDED, ADDED.keys()[-1].key_id)
RING_1, RING_2 = (sign_ring(MESH.ca_key, MESH.cluster, ring) for ring in (ADDED, PROMOTED))
LIST_1 = sign_revocations(
    MESH.ca_key, MESH.cluster, Revocations().with_more([RevokedEnrolment("node", "node-b", 1)], [], [])
)
PEER = PeerIdentity("node", "node-c", 1)


class Member:
    """As much of a member as a rotation asks for."""

    def __init__(self, node_id: str, ring: int, *, active: bool = True) -> None:
        self.node_id, self.ring, self.active = node_id, ring, active


def others(*members: Member) -> Any:
    return members


def trust_on(tmp_path, *, statement: bytes = b"") -> Trust:
    thread, rng = InlineThread(), random.Random(1)
    env = Env(
        clock=TrioClock(),
        rng=rng,
        entropy=rng.randbytes,
        net=cast(Any, None),
        disk=TestDisk(tmp_path),
        writer_thread=thread,
        reader_thread=thread,
        executor=cast(Any, None),
    )
    return Trust(env, Authority(MESH.ca_public_key), ring=MESH.ring, ring_statement=statement)


async def opened(tmp_path, **options: Any) -> Trust:
    trust = trust_on(tmp_path, **options)
    await trust.open()
    return trust


async def test_a_statement_is_durable_before_anybody_hears_of_it_and_survives_a_restart(tmp_path):
    trust = await opened(tmp_path)
    stored: list[bytes] = []
    trust.on_changed.append(lambda: stored.append((tmp_path / TRUST_FILE).read_bytes()))

    assert await trust.accept(RING_2, LIST_1)
    assert len(stored) == 1
    again = await opened(tmp_path)
    assert (again.ring.number, again.ring.primary.key_id) == (2, PROMOTED.primary.key_id)
    assert again.revocations.refusal("node", "node-b", 1)
    assert again.orders == trust.orders
    assert (tmp_path / TRUST_FILE).stat().st_mode & 0o777 == 0o600


async def test_what_is_older_or_the_same_changes_nothing(tmp_path):
    trust = await opened(tmp_path)
    assert await trust.accept(RING_2, b"")
    trust.on_changed.append(lambda: pytest.fail("nothing changed"))
    for ring in (RING_1, RING_2, b""):
        assert not await trust.accept(ring, b"")
    assert trust.ring.number == 2


async def test_half_of_it_forged_is_all_of_it_refused(tmp_path):
    trust = await opened(tmp_path)
    forged = LIST_1[:-1] + bytes([LIST_1[-1] ^ 1])
    with pytest.raises(RecordError):
        await trust.accept(RING_1, forged)
    assert (trust.ring.number, trust.revocations.number) == (0, 0)
    assert not (tmp_path / TRUST_FILE).exists()


async def test_a_disk_that_takes_nothing_leaves_the_old_keys_in_use(tmp_path, monkeypatch):
    trust = await opened(tmp_path)

    def full(disk: TestDisk, name: str, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(TestDisk, "save", full)
        with pytest.raises(StoreError, match="free the disk, or mend it"):
            await trust.accept(RING_1, LIST_1)
    assert (trust.ring.number, trust.revocations.number) == (0, 0)
    assert await trust.accept(RING_1, LIST_1)


@pytest.mark.parametrize(
    "damage", [b"", b"{}", b"\xff\x00", b'{"schema":"relaymesh.trust.v1","ring":"AAAA","revocations":""}']
)
async def test_a_damaged_file_is_said_and_the_ring_of_the_enrolment_used(tmp_path, damage, caplog):
    (tmp_path / TRUST_FILE).write_bytes(damage)
    trust = await opened(tmp_path, statement=RING_1)
    assert trust.ring.number == 1
    assert "is damaged" in caplog.text
    assert await trust.accept(RING_2, b"")
    assert (await opened(tmp_path)).ring.number == 2


async def test_an_enrolment_that_is_newer_than_the_file_is_what_counts(tmp_path):
    assert await (await opened(tmp_path)).accept(RING_1, b"")
    assert (await opened(tmp_path, statement=RING_2)).ring.number == 2


async def test_a_peer_gets_what_it_lacks_and_nothing_else(tmp_path):
    trust, behind = await opened(tmp_path / "."), await opened(tmp_path / ".")
    assert await trust.accept(RING_2, LIST_1)
    answer = await trust.serve(PEER, msgspec.msgpack.encode(behind.orders), None)
    assert msgspec.msgpack.decode(answer) == [RING_2, LIST_1]
    answer = await trust.serve(PEER, msgspec.msgpack.encode(trust.orders), None)
    assert msgspec.msgpack.decode(answer) == [b"", b""]
    with pytest.raises(FrameError):
        await trust.serve(PEER, b"nonsense", None)


async def test_the_next_ring_waits_for_every_member_that_is_there(tmp_path):
    trust = await opened(tmp_path)
    everybody = others(Member("b", 0), Member("c", 0, active=False))
    trust.check_next_ring(RING_1, everybody, force=False)
    await trust.accept(RING_1, b"")

    with pytest.raises(ConflictError, match="not installed yet on b:"):
        trust.check_next_ring(RING_2, everybody, force=False)
    trust.check_next_ring(RING_2, everybody, force=True)
    trust.check_next_ring(RING_2, others(Member("b", 1), Member("c", 0, active=False)), force=False)


async def test_a_new_key_may_be_added_while_somebody_lags_and_no_ring_comes_twice(tmp_path):
    trust = await opened(tmp_path)
    await trust.accept(RING_1, b"")
    grown = sign_ring(MESH.ca_key, MESH.cluster, add(ADDED, b"m" * 32))
    trust.check_next_ring(grown, others(Member("b", 0)), force=False)
    with pytest.raises(ConflictError, match="ring 1 is in use here"):
        trust.check_next_ring(RING_1, others(), force=True)
    with pytest.raises(RecordError):
        trust.check_next_ring(b"nonsense", others(), force=True)
