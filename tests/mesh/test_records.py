from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.simulation.credentials import Credentials
from mesh import records
from mesh.ca_statements import NUMBER_MAX
from mesh.errors import ConfigError, RecordError
from mesh.identity import Authority, Identity, content_of, issue
from mesh.ids import Address, make_life
from mesh.messages import RECORD_BYTES_MAX
from mesh.own_record import OwnRecord
from mesh.records import HOST_CHARS_MAX, RecordVerifier

MESH = Credentials(1)


def own(identity: Identity | None = None, *, boot: int = 1, host: str = "127.0.0.1") -> OwnRecord:
    address = Address(host, 17_888)
    return OwnRecord(
        identity or MESH.identity("node-a"), boot=boot, process=5, address=address, rpc_address=Address(host, 18_443)
    )


def verifier() -> RecordVerifier:
    return RecordVerifier(Authority(MESH.ca_public_key))


def test_a_signed_record_verifies_and_says_what_was_signed() -> None:
    record = verifier().verify(own(boot=3).current.raw)
    assert record.node_id == "node-a"
    assert record.life == make_life(1, 3)
    assert (record.address, record.rpc_address) == (Address("127.0.0.1", 17_888), Address("127.0.0.1", 18_443))


@given(st.data())
def test_a_record_changed_in_any_byte_is_refused(data: st.DataObject) -> None:
    raw = bytearray(own().current.raw)
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(RecordError):
        verifier().verify(bytes(raw))


@given(st.binary(max_size=RECORD_BYTES_MAX + 1))
def test_random_bytes_raise_nothing_but_a_record_error(raw: bytes) -> None:
    with pytest.raises(RecordError):
        verifier().verify(raw)


def test_a_member_cannot_sign_for_another() -> None:
    thief = Identity(
        certificate=MESH.identity("node-b").certificate,
        private_key=MESH.identity("node-a").private_key,
        ca_public_key=MESH.ca_public_key,
    )
    with pytest.raises(RecordError, match="does not hold"):
        verifier().verify(own(thief).current.raw)


def test_a_record_of_another_mesh_is_refused() -> None:
    with pytest.raises(RecordError, match="another mesh"):
        verifier().verify(own(Credentials(2).identity("node-a")).current.raw)


def test_an_operator_cannot_be_a_member() -> None:
    key = MESH.key("op")
    public_key = key.public_key().public_bytes_raw()
    certificate = issue(
        MESH.ca_key, cluster=MESH.cluster, role="operator", name="op", enrolment=1, public_key=public_key
    )
    operator = Identity(certificate=certificate, private_key=key, ca_public_key=MESH.ca_public_key)
    with pytest.raises(RecordError, match="no node"):
        verifier().verify(own(operator).current.raw)


def test_the_longest_names_still_fit_a_record() -> None:
    identity = MESH.identity("n" * 32, enrolment=2**24 - 1)
    record = own(identity, boot=2**39 - 1, host="h" * HOST_CHARS_MAX)
    told = record.set_installed(ring=NUMBER_MAX, revocations=NUMBER_MAX, authorities=NUMBER_MAX)
    assert told is not None
    assert len(told.raw) <= RECORD_BYTES_MAX
    assert verifier().verify(told.raw).body.authorities == NUMBER_MAX


def test_a_certificate_of_another_ca_comes_into_use_in_the_same_life() -> None:
    record, identity = own(), MESH.identity("node-a")
    role, name, enrolment, public_key = content_of(identity.certificate)
    again = issue(
        MESH.key("second ca"), cluster=MESH.cluster, role=role, name=name, enrolment=enrolment, public_key=public_key
    )
    renewed = replace(identity, certificate=again)
    life = record.life
    told = record.set_installed(ring=0, revocations=0, authorities=2, renewed=renewed)
    assert told is not None
    assert (told.life, told.body.incarnation, told.body.certificate) == (life, 1, again)
    assert record.set_installed(ring=0, revocations=0, authorities=2) is None
    assert record.refute().body.certificate == again
    checks = verifier()
    with pytest.raises(RecordError, match="not trusted here"):
        checks.verify(told.raw)
    checks.authority.trust([MESH.key("second ca").public_key().public_bytes_raw()], ())
    assert checks.verify(told.raw).body == told.body
    checks.authority.trust([MESH.ca_public_key], ())  # remembered records are looked at again
    with pytest.raises(RecordError, match="not trusted here"):
        checks.verify(told.raw)


@pytest.mark.parametrize("host", ["h" * (HOST_CHARS_MAX + 1), "hôte", ""])
def test_a_host_name_that_cannot_be_gossiped_is_refused_at_the_start(host: str) -> None:
    with pytest.raises(ConfigError, match="advertised host"):
        own(host=host)


def test_every_change_of_our_own_record_raises_the_incarnation_by_one() -> None:
    record = own()
    steps = [record.refute(), record.set_store_failed(True), record.leave()]
    assert [step.body.incarnation for step in steps if step] == [1, 2, 3]
    assert record.left
    assert record.current.body.store_failed
    assert record.set_store_failed(True) is None
    assert record.is_current(record.life, 3)
    assert not record.is_current(record.life, 4)


def test_verified_records_are_remembered_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "RECORDS_CACHED_MAX", 2)
    checks = verifier()
    record = own()
    first = record.current
    for raw in (first.raw, record.refute().raw, record.refute().raw):
        checks.verify(raw)
    assert len(checks._verified) == 2
    assert first.raw not in checks._verified


def test_a_port_of_zero_is_refused() -> None:
    identity = MESH.identity("node-a")
    body = msgspec.structs.replace(own().current.body, port=0)
    with pytest.raises(RecordError, match="cannot be read"):
        verifier().verify(records.sign_record(identity, body).raw)


@pytest.mark.parametrize("host", ["", "a\0b", "a b", "host\n", "höst", "x" * (HOST_CHARS_MAX + 1)])
def test_a_host_that_no_resolver_takes_is_refused_whoever_signed_it(host: str) -> None:
    with pytest.raises(ConfigError):
        own(host=host)
    identity = MESH.identity("node-a")
    body = msgspec.structs.replace(own().current.body, host=host)
    content = msgspec.msgpack.encode(body)
    raw = msgspec.msgpack.encode((content, identity.sign(b"relaymesh member", content)))
    with pytest.raises(RecordError):
        verifier().verify(raw)
