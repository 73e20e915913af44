"""Encoding gives rows back equal, digests see everything a row says, and hostile bytes raise only RecordError."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mesh.errors import RecordError
from mesh.ids import Origin
from mesh.row_codec import (
    CHUNK_LIMITS,
    COLUMNS_MAX,
    KEY_CHARS_MAX,
    VALUES_BYTES_MAX,
    RowLimits,
    decode_rows,
    decode_values,
    encode_rows,
    encode_values,
    row_digest,
    value_problem,
)
from mesh.rows import Row
from mesh.tables import Column, Register, Table

TABLE = Table(
    "t", Register.LWW, (Column("text"), Column("size", "int"), Column("weight", "real"), Column("body", "blob"))
)

int64 = st.integers(-(1 << 63), (1 << 63) - 1)
counts = st.integers(0, (1 << 63) - 1)
scalars = st.one_of(
    st.text(max_size=20), int64, st.floats(allow_nan=False).filter(lambda x: str(x) != "-0.0"), st.binary(max_size=20)
)
names = st.from_regex(r"[a-z][a-z0-9_]{0,10}", fullmatch=True)


@st.composite
def rows(draw):
    node = draw(st.sampled_from(["node-a", "node-b", "x"]))
    return Row(
        table=draw(names),
        namespace=draw(st.sampled_from(["default", "_mesh", "a.b-c_d"])),
        key=draw(st.text(min_size=1, max_size=20)),
        generation=draw(counts),
        deleted=draw(st.booleans()),
        rank=draw(counts),
        cluster_epoch=draw(counts),
        lease_epoch=draw(counts),
        lease_hlc=draw(counts),
        hlc=draw(counts),
        node=node,
        origin=Origin(node, draw(st.integers(0, 3))),
        seq=draw(st.integers(1, (1 << 63) - 1)),
        values=draw(st.dictionaries(names, scalars, max_size=5)),
    )


@given(st.lists(rows(), max_size=5))
def test_rows_come_back_equal_and_in_order(originals):
    assert decode_rows(encode_rows(originals), limits=CHUNK_LIMITS) == originals


@given(rows())
def test_the_digest_does_not_depend_on_the_order_of_columns(row):
    turned = msgspec.structs.replace(row, values=dict(reversed(row.values.items())))

    assert row_digest(turned) == row_digest(row)
    assert all(0 <= part < 1 << 40 for part in row_digest(row))


@given(rows(), st.data())
def test_the_digest_sees_every_field(row, data):
    field = data.draw(
        st.sampled_from(
            [
                "table",
                "namespace",
                "key",
                "generation",
                "rank",
                "cluster_epoch",
                "lease_epoch",
                "lease_hlc",
                "hlc",
                "seq",
            ]
        )
    )
    old = getattr(row, field)
    changed = msgspec.structs.replace(row, **{field: old + "x" if isinstance(old, str) else old ^ 1})

    assert row_digest(changed) != row_digest(row)
    assert row_digest(msgspec.structs.replace(row, deleted=not row.deleted)) != row_digest(row)
    assert row_digest(msgspec.structs.replace(row, values={**row.values, "zzz": 1})) != row_digest(row)


@given(st.dictionaries(names, scalars, max_size=5))
def test_values_come_back_equal(values):
    assert decode_values(encode_values(values)) == values


@given(st.binary(max_size=300))
@example(b"\x91" * 100_000)
@example(b"\x92\xdd\xff\xff\xff\xff")
@example(b"\x92\x90\x91\x9d\xa2\xff\xff")
def test_random_bytes_raise_only_record_error(data):
    for decode in (lambda: decode_rows(data, limits=CHUNK_LIMITS), lambda: decode_values(data)):
        try:
            decode()
        except RecordError:
            pass


@given(st.lists(rows(), min_size=1, max_size=2), st.data())
def test_damaged_rows_raise_only_record_error(originals, data):
    encoded = bytearray(encode_rows(originals))
    for _ in range(data.draw(st.integers(1, 4))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode_rows(bytes(encoded), limits=CHUNK_LIMITS)
    except RecordError:
        pass


def wire_row(**changes):
    fields = {
        "table": "t",
        "namespace": "default",
        "key": "k",
        "origin_index": 0,
        "seq": 1,
        "hlc": 5,
        "deleted": False,
        "generation": 0,
        "rank": 0,
        "cluster_epoch": 0,
        "lease_epoch": 0,
        "lease_hlc": 0,
        "values": {},
    }
    return list((fields | changes).values())


def decode_one(*row, origins=(("node-a", 1),), limits=CHUNK_LIMITS):
    return decode_rows(msgspec.msgpack.encode([origins, [*row]]), limits=limits)


@pytest.mark.parametrize(
    "changes",
    [
        {"namespace": "Default"},
        {"namespace": "default\n"},
        {"namespace": ""},
        {"key": ""},
        {"key": "k" * (KEY_CHARS_MAX + 1)},
        {"origin_index": 1},
        {"seq": 0},
        {"seq": 1 << 63},
        {"hlc": -1},
        {"values": {"a": [1]}},
        {"values": {"a": True}},
        {"values": {f"c{number}": 1 for number in range(COLUMNS_MAX + 1)}},
    ],
)
def test_rows_that_cannot_be_named_or_held_are_refused(changes):
    with pytest.raises(RecordError):
        decode_one(wire_row(**changes))


def test_limits_hold_at_the_limit():
    (row,) = decode_one(wire_row(key="k" * KEY_CHARS_MAX, values={f"c{number}": 1 for number in range(COLUMNS_MAX)}))

    assert len(row.key) == KEY_CHARS_MAX
    assert len(row.values) == COLUMNS_MAX


def test_number_and_size_of_rows_are_limited():
    data = msgspec.msgpack.encode([[("node-a", 1)], [wire_row(seq=1), wire_row(seq=2)]])

    assert len(decode_rows(data, limits=RowLimits(len(data), 2))) == 2
    with pytest.raises(RecordError):
        decode_rows(data, limits=RowLimits(len(data), 1))
    with pytest.raises(RecordError):
        decode_rows(data, limits=RowLimits(len(data) - 1, 2))


def test_the_writer_of_a_row_is_its_origins_node():
    with pytest.raises(RecordError):
        decode_one(wire_row(), origins=[("no node/id", 1)])
    assert decode_one(wire_row())[0].node == "node-a"


def test_fields_of_a_newer_release_are_skipped_and_null_is_absent():
    (row,) = decode_one([*wire_row(values={"a": None, "b": 1}), "new", "fields"])

    assert row.values == {"b": 1}


@pytest.mark.parametrize(
    "values",
    [
        {"text": b"bytes"},
        {"size": "text"},
        {"size": 1.0},
        {"weight": 1},
        {"weight": float("nan")},
        {"weight": -0.0},
        {"body": "text"},
        {"size": 1 << 63},
        {"unknown": 1 << 63},
        {"unknown": float("nan")},
        {"Not A Name": 1},
        {"text": "\ud800"},
        {"body": bytes(VALUES_BYTES_MAX + 1)},
    ],
)
def test_values_that_would_not_come_back_equal_are_a_problem(values):
    assert value_problem(TABLE, values)


def test_good_and_unknown_values_are_no_problem():
    assert value_problem(TABLE, {"text": "ü", "size": -(1 << 63), "weight": 0.0, "body": b"", "of_tomorrow": 1}) is None
    assert value_problem(TABLE, {"body": bytes(VALUES_BYTES_MAX)}) is None
