"""What the CA said holds as it was said, for one mesh, one kind and one number, and nobody else can say it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.simulation.credentials import Credentials
from mesh.ca_statements import NOTHING_SAID, STATEMENT_BYTES_MAX, open_statement, sign_statement
from mesh.errors import RecordError
from mesh.identity import Authority

MESH, OTHER = Credentials(1), Credentials(2)
AUTHORITY = Authority(MESH.ca_public_key)


def said(number: int = 1, content: bytes = b"x", *, kind: str = "ring", mesh: Credentials = MESH) -> bytes:
    return sign_statement(mesh.ca_key, cluster=MESH.cluster, kind=kind, number=number, content=content)


def test_a_statement_reads_as_it_was_made() -> None:
    statement = open_statement(AUTHORITY, said(7, b"content"), "ring")
    assert (statement.number, statement.content, statement.raw) == (7, b"content", said(7, b"content"))


@given(st.data())
def test_a_statement_changed_in_any_byte_is_refused(data: st.DataObject) -> None:
    raw = bytearray(said())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(RecordError):
        open_statement(AUTHORITY, bytes(raw), "ring")


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(RecordError):
        open_statement(AUTHORITY, raw, "ring")


def test_another_kind_another_mesh_another_signer_and_too_much_are_refused() -> None:
    elsewhere = sign_statement(OTHER.ca_key, cluster=OTHER.cluster, kind="ring", number=1, content=b"x")
    for raw in (said(kind="revocations"), said(mesh=OTHER), elsewhere, said(content=bytes(STATEMENT_BYTES_MAX))):
        with pytest.raises(RecordError):
            open_statement(AUTHORITY, raw, "ring")


@given(st.lists(st.tuples(st.integers(1, 5), st.binary(max_size=3)), min_size=2, max_size=6))
def test_the_later_one_is_the_same_for_everybody_whatever_order_they_arrive_in(said_ones) -> None:
    opened = [open_statement(AUTHORITY, said(number, content), "ring") for number, content in said_ones]
    last = max(opened, key=lambda each: each.order)
    assert last.number == max(number for number, _ in said_ones)
    assert max(reversed(opened), key=lambda each: each.order).raw == last.raw
    assert all(each.order > NOTHING_SAID for each in opened)
