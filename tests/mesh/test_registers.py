"""Merging by every register kind is a maximum over a total order, and the orders say what the design says."""

from __future__ import annotations

from functools import reduce
from itertools import pairwise, permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.ids import Origin
from mesh.registers import beats, order_key
from mesh.rows import Row
from mesh.tables import Register

REGISTERS = list(Register)


@st.composite
def versions(draw, max_size=6):
    """Versions of one row. As in the real world no dot names two of them; everything else collides often."""
    small = st.integers(0, 2)
    rows = []
    for seq in range(1, 1 + draw(st.integers(1, max_size))):
        node = draw(st.sampled_from(["a", "ab", "node-a", "node-b"]))
        rows.append(
            Row(
                table="t",
                namespace="default",
                key="k",
                generation=draw(small),
                deleted=draw(st.booleans()),
                rank=draw(small),
                cluster_epoch=draw(small),
                lease_epoch=draw(small),
                lease_hlc=draw(small),
                hlc=draw(small),
                node=node,
                origin=Origin(node, draw(small)),
                seq=seq,
                values={"v": draw(small)},
            )
        )
    return rows


def merge(register, a, b):
    return b if beats(register, b, a) else a


@pytest.mark.parametrize("register", REGISTERS)
@given(rows=versions())
def test_replicas_that_saw_the_same_versions_in_any_order_hold_the_same_one(register, rows):
    results = [reduce(lambda a, b: merge(register, a, b), order) for order in list(permutations(rows))[:50]]

    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("register", REGISTERS)
@given(rows=versions(max_size=3))
def test_merge_is_associative_commutative_and_idempotent(register, rows):
    a, b, c = rows[0], rows[len(rows) // 2], rows[-1]

    assert merge(register, a, b) == merge(register, b, a)
    assert merge(register, merge(register, a, b), c) == merge(register, a, merge(register, b, c))
    assert merge(register, a, a) == a
    assert not beats(register, a, a)


@pytest.mark.parametrize("register", REGISTERS)
@given(rows=versions(max_size=2))
def test_different_versions_have_different_keys_and_one_of_them_wins(register, rows):
    if len(rows) == 2:
        assert order_key(register, rows[0]) != order_key(register, rows[1])
        assert beats(register, rows[0], rows[1]) != beats(register, rows[1], rows[0])


@pytest.mark.parametrize("register", REGISTERS)
def test_a_reused_dot_still_makes_all_replicas_agree(register):
    a = version(values={"v": 1})
    b = version(values={"v": 2})

    assert beats(register, a, b) != beats(register, b, a)


@given(rows=versions())
def test_finished_work_is_never_undone_within_its_generation(rows):
    current = rows[0]
    for row in rows[1:]:
        after = merge(Register.LIFECYCLE, current, row)
        if after.generation == current.generation and not after.deleted:
            assert after.rank >= current.rank
        assert after.generation >= current.generation
        current = after


def version(**changes):
    defaults = {
        "table": "t",
        "namespace": "default",
        "key": "k",
        "hlc": 100,
        "node": "node-b",
        "seq": 1,
        "values": {"v": 0},
    }
    fields = defaults | changes
    return Row(origin=Origin(fields["node"], 1), **fields)


@pytest.mark.parametrize(
    ("register", "ascending"),
    [
        # Each list goes from the weakest to the strongest version; every later one must beat every earlier one.
        (
            Register.LWW,
            [
                {"hlc": 100, "node": "node-b"},
                {"hlc": 100, "node": "node-a"},
                {"hlc": 100, "node": "node"},
                {"hlc": 100, "lease_epoch": 1},
                {"hlc": 100, "cluster_epoch": 1},
                {"hlc": 101},
            ],
        ),
        (
            Register.LIFECYCLE,
            [
                {"hlc": 900},
                {"hlc": 100, "lease_hlc": 50},
                {"hlc": 100, "lease_epoch": 1},
                {"hlc": 100, "cluster_epoch": 1},
                {"hlc": 100, "rank": 1, "cluster_epoch": 0},
                {"hlc": 100, "rank": 3},
                {"hlc": 100, "deleted": True},
                {"hlc": 1, "generation": 1},
            ],
        ),
        (Register.MAX, [{"rank": 1, "hlc": 900}, {"rank": 2, "hlc": 1}, {"rank": 2, "hlc": 2}]),
        (
            Register.REMOVE_WINS,
            [{"hlc": 900}, {"hlc": 1, "deleted": True}, {"hlc": 2, "deleted": True}, {"hlc": 1, "generation": 1}],
        ),
        (Register.IMMUTABLE, [{"hlc": 2}, {"hlc": 1}, {"hlc": 3, "deleted": True}]),
    ],
)
def test_orders_are_as_designed(register, ascending):
    rows = [version(seq=seq, **changes) for seq, changes in enumerate(ascending, 1)]

    for index, row in enumerate(rows):
        assert all(beats(register, stronger, row) for stronger in rows[index + 1 :])
    assert all(order_key(register, a) < order_key(register, b) for a, b in pairwise(rows))


def test_an_immutable_conflict_is_decided_by_content_and_not_by_time():
    early, late = version(hlc=1, values={"v": 1}), version(hlc=9, seq=2, values={"v": 2})
    winner = early if beats(Register.IMMUTABLE, early, late) else late

    swapped_early = version(hlc=1, values=dict(late.values))
    swapped_late = version(hlc=9, seq=2, values=dict(early.values))
    swapped = swapped_early if beats(Register.IMMUTABLE, swapped_early, swapped_late) else swapped_late
    assert winner.values == swapped.values


def test_versions_of_different_rows_do_not_compete():
    with pytest.raises(AssertionError):
        beats(Register.LWW, version(), version(key="other"))
