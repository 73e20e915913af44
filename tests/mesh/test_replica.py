"""What a local write makes of a row, and how a foreign version is judged."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import ConflictError, LimitError
from mesh.ids import Origin
from mesh.registers import beats
from mesh.replica import (
    REASON_CONFLICT,
    REASON_FUTURE,
    REASON_POISON,
    REASON_UNKNOWN_TABLE,
    Outcome,
    Stamp,
    judge,
    successor,
)
from mesh.row_codec import KEY_CHARS_MAX
from mesh.tables import Column, Register, Table

COLUMNS = (Column("text"), Column("size", "int"), Column("weight", "real"))
TABLES = {register: Table("t", register, COLUMNS) for register in Register}
LWW, LIFECYCLE, IMMUTABLE = TABLES[Register.LWW], TABLES[Register.LIFECYCLE], TABLES[Register.IMMUTABLE]

A, B = Origin("node-a", 1), Origin("node-b", 1)


def write(table, current=None, *, origin=A, hlc=100, seq=1, key="k", values=None, **options):
    return successor(
        table, current, Stamp(origin, hlc), seq, namespace="default", key=key, values=values or {}, **options
    )


def test_a_write_keeps_what_it_does_not_name():
    first = write(LIFECYCLE, values={"text": "a", "size": 1}, rank=1, lease_epoch=3, cluster_epoch=2, open_lease=True)
    second = write(LIFECYCLE, first, hlc=200, seq=2, values={"size": 2})

    assert second.values == {"text": "a", "size": 2}
    assert (second.rank, second.lease_epoch, second.cluster_epoch, second.lease_hlc) == (1, 3, 2, 100)
    assert (second.hlc, second.seq) == (200, 2)


def test_opening_a_lease_takes_the_stamp_of_this_write():
    first = write(LIFECYCLE, open_lease=True)
    second = write(LIFECYCLE, first, hlc=200, seq=2, lease_epoch=1, open_lease=True)

    assert (first.lease_hlc, second.lease_hlc) == (100, 200)


def test_values_are_brought_to_the_form_that_comes_back_from_disk():
    row = write(LWW, values={"weight": 3, "size": True, "text": None})
    zero = write(LWW, values={"weight": -0.0})

    assert row.values == {"weight": 3.0, "size": 1}
    assert [type(value) for value in row.values.values()] == [float, int]
    assert str(zero.values["weight"]) == "0.0"


def test_a_deletion_drops_the_values_and_a_write_over_it_is_a_new_generation():
    first = write(LIFECYCLE, values={"text": "a"}, rank=2)
    gone = write(LIFECYCLE, first, hlc=200, seq=2, deleted=True)
    again = write(LIFECYCLE, gone, hlc=300, seq=3, values={"size": 1})

    assert (gone.values, gone.deleted, gone.generation) == ({}, True, 0)
    assert (again.values, again.deleted, again.generation, again.rank) == ({"size": 1}, False, 1, 0)


def test_a_write_that_would_lose_to_its_own_base_is_a_broken_promise():
    finished = write(LIFECYCLE, rank=3)

    with pytest.raises(AssertionError, match="would lose"):
        write(LIFECYCLE, finished, hlc=200, seq=2, rank=0)


def test_a_write_on_a_row_of_the_future_is_stamped_just_behind_it():
    base = write(LIFECYCLE, origin=B, hlc=10_000)
    row = write(LIFECYCLE, base, hlc=200, seq=2, values={"size": 1})

    assert row.hlc == 10_001


def test_a_row_that_one_request_writes_twice_keeps_the_stamp_of_the_request():
    claimed = write(LIFECYCLE, hlc=200, seq=7, lease_epoch=1, open_lease=True)
    finished = write(LIFECYCLE, claimed, hlc=200, seq=7, rank=3)

    assert (finished.hlc, finished.seq, finished.lease_hlc) == (200, 7, 200)
    with pytest.raises(AssertionError, match="would lose"):
        write(LIFECYCLE, finished, hlc=200, seq=7, rank=0)


@pytest.mark.parametrize("register", list(Register))
@given(data=st.data())
def test_every_local_write_beats_what_it_replaces(register, data):
    table = TABLES[register]
    current = None
    for seq in range(1, data.draw(st.integers(2, 8))):
        options = {
            "deleted": data.draw(st.booleans()),
            "rank": (current.rank if current else 0) + data.draw(st.integers(0, 1)),
            "lease_epoch": (current.lease_epoch if current else 0) + data.draw(st.integers(0, 1)),
            "open_lease": data.draw(st.booleans()),
        }
        if register in (Register.LIFECYCLE, Register.REMOVE_WINS) and current and current.deleted:
            options["rank"] = None
        try:
            row = write(table, current, hlc=data.draw(st.integers(1, 50)), seq=seq, values={"size": seq}, **options)
        except ConflictError:
            assert register is Register.IMMUTABLE
            continue
        assert current is None or beats(register, row, current)
        current = row


def test_an_immutable_row_is_written_once_and_can_only_be_deleted():
    first = write(IMMUTABLE, values={"text": "a"})

    with pytest.raises(ConflictError):
        write(IMMUTABLE, first, hlc=200, seq=2, values={"text": "b"})
    gone = write(IMMUTABLE, first, hlc=200, seq=2, deleted=True)
    assert gone.deleted
    with pytest.raises(ConflictError):
        write(IMMUTABLE, gone, hlc=300, seq=3, values={"text": "b"})


def test_limits_of_a_local_write_are_told_to_the_caller():
    assert write(LWW, key="k" * KEY_CHARS_MAX)
    with pytest.raises(LimitError):
        write(LWW, key="k" * (KEY_CHARS_MAX + 1))
    with pytest.raises(LimitError):
        write(LWW, values={"size": 1 << 63})
    with pytest.raises(AssertionError):
        write(LWW, values={"no_such_column": 1})


def test_a_new_row_a_newer_version_an_older_one_and_a_repeat():
    old, new = write(LWW, hlc=1), write(LWW, origin=B, hlc=2)

    assert judge(LWW, None, old, in_time=True).outcome is Outcome.APPLIED
    assert judge(LWW, old, new, in_time=True).outcome is Outcome.APPLIED
    assert judge(LWW, new, old, in_time=True).outcome is Outcome.STALE
    assert judge(LWW, new, new, in_time=True).outcome is Outcome.SAME


@pytest.mark.parametrize("register", list(Register))
def test_a_stamp_of_the_future_waits_only_where_the_stamp_decides(register):
    verdict = judge(TABLES[register], None, write(TABLES[register]), in_time=False)

    if register in (Register.LIFECYCLE, Register.IMMUTABLE, Register.MAX):
        assert verdict.outcome is Outcome.APPLIED
    else:
        assert (verdict.outcome, verdict.reason) == (Outcome.QUARANTINED, REASON_FUTURE)
        assert verdict.parked is not None


def test_what_this_release_cannot_keep_is_put_aside_and_never_raises():
    row = write(LWW, values={"size": 1})

    assert judge(None, None, row, in_time=True).reason == REASON_UNKNOWN_TABLE
    for values in ({"size": "text"}, {"size": 1 << 64}, {"weight": float("nan")}):
        verdict = judge(LWW, None, msgspec.structs.replace(row, values=values), in_time=True)
        assert (verdict.outcome, verdict.reason) == (Outcome.QUARANTINED, REASON_POISON)


def test_the_loser_of_an_immutable_conflict_is_kept_on_both_sides():
    a = write(IMMUTABLE, values={"text": "a"})
    b = write(IMMUTABLE, origin=B, values={"text": "b"})

    at_a, at_b = judge(IMMUTABLE, a, b, in_time=True), judge(IMMUTABLE, b, a, in_time=True)

    assert {at_a.outcome, at_b.outcome} == {Outcome.APPLIED, Outcome.STALE}
    assert at_a.reason == at_b.reason == REASON_CONFLICT
    assert at_a.parked == at_b.parked


def test_equal_immutable_content_is_no_conflict():
    a = write(IMMUTABLE, values={"text": "a"}, hlc=100)
    b = write(IMMUTABLE, origin=B, values={"text": "a"}, hlc=50)

    assert judge(IMMUTABLE, a, b, in_time=True) == (Outcome.APPLIED, None, "", "")
    assert judge(IMMUTABLE, b, a, in_time=True) == (Outcome.STALE, None, "", "")
    assert judge(IMMUTABLE, a, write(IMMUTABLE, origin=B, deleted=True), in_time=True).reason == ""
