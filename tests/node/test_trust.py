"""What the CA said is on the disk before it is used, never goes back, and waits until everybody can follow."""

from __future__ import annotations

import random
from typing import Any, cast

import msgspec
import pytest

from chaos.simulation.credentials import Credentials
from mesh.authorities import add as add_ca
from mesh.authorities import first_authorities, sign_authorities
from mesh.authorities import promote as promote_ca
from mesh.authorities import retire as retire_ca
from mesh.errors import ConflictError, FrameError, RecordError, StoreError
from mesh.identity import Authority
from mesh.key_rotation import add, promote, sign_ring
from mesh.revocations import Revocations, RevokedEnrolment, sign_revocations
from mesh.sealing import KeyRing
from node.env import Env, PeerIdentity
from node.trust import TRUST_FILE, Orders, Statements, Trust, encode_trust
from tests.node.conftest import InlineThread, TestDisk, TrioClock

MESH = Credentials(1)
ADDED = add(MESH.ring, b"n" * 32)
PROMOTED = promote(ADDED, ADDED.keys()[-1].key_id)
RING_1, RING_2 = (sign_ring(MESH.ca_key, MESH.cluster, ring) for ring in (ADDED, PROMOTED))
LIST_1 = sign_revocations(
    MESH.ca_key, MESH.cluster, Revocations().with_more([RevokedEnrolment("node", "node-b", 1)], [], [])
)
CA_KEY = MESH.key("second ca")
CA_ADDED = add_ca(first_authorities(MESH.ca_public_key), MESH.ca_key, CA_KEY.public_key().public_bytes_raw())
CA_PROMOTED = promote_ca(CA_ADDED, CA_ADDED.cas[-1].name, ())
CA_RETIRED = retire_ca(CA_PROMOTED, CA_ADDED.cas[0].name, ())
CAS_1 = sign_authorities(MESH.ca_key, MESH.cluster, CA_ADDED)
CAS_2, CAS_3 = (sign_authorities(CA_KEY, MESH.cluster, each) for each in (CA_PROMOTED, CA_RETIRED))
RING_3 = sign_ring(CA_KEY, MESH.cluster, KeyRing([*PROMOTED], number=3))
PEER = PeerIdentity("node", "node-c", 1)


class Member:
    """As much of a member as a rotation asks for."""

    def __init__(self, node_id: str, ring: int, *, active: bool = True) -> None:
        self.node_id, self.ring, self.active = node_id, ring, active
        self.authorities = 0


def others(*members: Member) -> Any:
    return members


def trust_on(tmp_path, *, statement: bytes = b"", authorities: bytes = b"") -> Trust:
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
    return Trust(
        env,
        Authority(MESH.ca_public_key),
        ring=MESH.ring,
        ring_statement=statement,
        authorities_statement=authorities,
    )


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
    answer = await trust.serve(PEER, encode_trust(behind.orders), None)
    assert msgspec.msgpack.decode(answer) == [RING_2, LIST_1]
    answer = await trust.serve(PEER, encode_trust(trust.orders), None)
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


# --- CAs ---


def test_while_no_ca_was_rotated_what_is_said_has_the_form_that_older_releases_read():
    orders = Orders((1, b"a"), (0, b""))
    assert msgspec.msgpack.decode(encode_trust(orders)) == [[1, b"a"], [0, b""]]
    assert msgspec.msgpack.decode(encode_trust(Statements(b"r"))) == [b"r", b""]
    assert msgspec.msgpack.decode(encode_trust(Statements(b"r", b"", b"c"))) == [b"r", b"", b"c"]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode([[1, b"a"], [0, b""]]), type=Orders) == orders


async def test_all_of_a_rotation_comes_at_once_and_is_judged_by_the_cas_after_it(tmp_path):
    trust = await opened(tmp_path)
    assert await trust.accept(RING_2, LIST_1)
    with pytest.raises(RecordError):  # the new CA is nobody yet
        await trust.accept(RING_3, b"")
    assert await trust.accept(RING_3, b"", CAS_3)
    assert (trust.ring.number, trust.authorities.number) == (3, 3)
    again = await opened(tmp_path)
    assert (again.orders, again.authorities) == (trust.orders, trust.authorities)


async def test_older_lists_are_no_news_though_their_ca_is_retired_and_so_is_what_that_says(tmp_path):
    trust = await opened(tmp_path)
    assert await trust.accept(RING_3, b"", CAS_3)
    trust.on_changed.append(lambda: pytest.fail("nothing changed"))
    for said in ((RING_1, b"", CAS_1), (RING_2, b"", b""), (b"", b"", CAS_2), (RING_3, b"", CAS_3)):
        assert not await trust.accept(*said)
    stolen = sign_ring(MESH.ca_key, MESH.cluster, KeyRing([*PROMOTED], number=9))
    with pytest.raises(RecordError, match="not trusted here"):
        await trust.accept(stolen, b"")


async def test_half_a_rotation_forged_is_all_of_it_refused(tmp_path):
    trust = await opened(tmp_path)
    for said in ((RING_3[:-1] + b"x", b"", CAS_3), (RING_3, b"", CAS_3[:-1] + b"x"), (RING_3, b"", CAS_3[:-1])):
        with pytest.raises(RecordError):
            await trust.accept(*said)
        with pytest.raises(RecordError):
            trust.check(*said)
    assert trust.orders == (await opened(tmp_path)).orders == Orders((0, b""), (0, b""))
    assert not (tmp_path / TRUST_FILE).exists()


async def test_a_later_enrolment_counts_beside_a_file_whose_ca_was_retired_since(tmp_path, caplog):
    assert await (await opened(tmp_path)).accept(RING_1, LIST_1)
    trust = trust_on(tmp_path, statement=RING_3, authorities=CAS_3)
    await trust.open()
    assert (trust.ring.number, trust.authorities.number) == (3, 3)
    assert trust.revocations.refusal("node", "node-b", 1)
    assert "is damaged" not in caplog.text


async def test_an_enrolment_by_a_ca_that_is_retired_here_keeps_nobody_from_starting(tmp_path, caplog):
    assert await (await opened(tmp_path)).accept(RING_3, b"", CAS_3)
    stale = sign_ring(MESH.ca_key, MESH.cluster, KeyRing([*PROMOTED], number=9))
    assert (await opened(tmp_path, statement=stale)).ring.number == 3
    assert "what the enrolment says of keys and CAs is not used" in caplog.text


async def test_a_peer_gets_the_cas_with_the_rest(tmp_path):
    trust, behind = await opened(tmp_path / "."), await opened(tmp_path / ".")
    assert await trust.accept(RING_3, b"", CAS_3)
    answer = await trust.serve(PEER, encode_trust(behind.orders), None)
    assert msgspec.msgpack.decode(answer) == [RING_3, b"", CAS_3]
    answer = await trust.serve(PEER, encode_trust(trust.orders), None)
    assert msgspec.msgpack.decode(answer) == [b"", b""]


async def test_no_ca_is_retired_while_the_ring_is_of_it_not_even_by_force(tmp_path):
    trust = await opened(tmp_path)
    await trust.accept(RING_2, b"", CAS_2)
    with pytest.raises(ConflictError, match="sign them anew"):
        trust.check_next_authorities(Statements(b"", b"", CAS_3), others(), force=True)
    trust.check_next_authorities(Statements(RING_3, b"", CAS_3), others(), force=False)


async def test_no_list_of_cas_comes_twice_and_the_next_waits_for_who_is_there(tmp_path):
    trust = await opened(tmp_path)
    await trust.accept(b"", b"", CAS_1)
    with pytest.raises(ConflictError, match="CA list 1 is followed here"):
        trust.check_next_authorities(Statements(authorities=CAS_1), others(), force=True)
    with pytest.raises(RecordError):
        trust.check_next_authorities(Statements(authorities=b"nonsense"), others(), force=True)
    with pytest.raises(ConflictError, match="not followed yet by b:"):
        trust.check_next_authorities(Statements(authorities=CAS_2), others(Member("b", 0)), force=False)
    trust.check_next_authorities(Statements(authorities=CAS_2), others(Member("b", 0, active=False)), force=False)
    trust.check_next_authorities(Statements(authorities=CAS_2), others(Member("b", 0)), force=True)
