"""Comparing replicas: ranges are cut without a gap, and what differs is found and mended from either side."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import FrameError
from node.replication.calls import decode
from node.replication.verify import (
    BRANCHES,
    RangesRequest,
    VerifyAnswer,
    serve_ranges,
    serve_rows,
    serve_verify,
    split,
    verify,
)
from tests.node.work_desk import desks, workflow


@given(st.integers(1, 10_000), st.integers(0, 100_000))
def test_ranges_cover_all_without_gap_or_overlap(lo, width):
    hi = lo + width
    ranges = split(lo, hi)
    assert 1 <= len(ranges) <= BRANCHES
    assert (ranges[0][0], ranges[-1][1]) == (lo, hi)
    assert all(a <= b for a, b in ranges)
    assert all(following[0] == before[1] + 1 for before, following in pairwise(ranges))


class Calls:
    """Asks another desk directly."""

    def __init__(self, desk) -> None:
        self.desk = desk
        self.asked: list[str] = []

    async def call(self, address, verb, body, **more):
        self.asked.append(verb)
        serve = {"verify": serve_verify, "ranges": serve_ranges, "rows": serve_rows}[verb]
        return await serve(self.desk.store, body)


async def compare(one, other):
    calls = Calls(other)
    return await verify(one.store, calls, other.me, None), calls.asked


async def test_equal_replicas_cost_one_question(tmp_path):
    async with desks(tmp_path, "a", "b") as (a, b):
        await a.submit(workflow(x=[], y=["x"]))
        await b.pull(a)
        result, asked = await compare(a, b)
        assert (result.compared, result.differing_ranges, result.repaired_rows) == (True, 0, 0)
        assert asked == ["verify"]


async def test_different_vectors_are_not_compared(tmp_path):
    async with desks(tmp_path, "a", "b") as (a, b):
        await a.one()
        result, asked = await compare(a, b)
        assert not result.compared
        assert asked == ["verify"]


@pytest.mark.parametrize("lost", [1, 150, 400])
async def test_a_lost_row_is_located_by_ranges_and_fetched(tmp_path, lost):
    async with desks(tmp_path, "a", "b") as (a, b):

        def fill(tx):
            for number in range(400):
                tx.put("payloads", "default", f"k{number}", {"content": b"%d" % number})

        await a.write(fill)
        await b.pull(a)
        b.store._writer.ledger.connection.execute("DELETE FROM payloads WHERE seq = ?", (lost,))
        result, asked = await compare(b, a)
        assert (result.compared, result.differing_ranges, result.repaired_rows) == (True, 1, 1)
        assert asked == ["verify", "ranges", "rows"]
        assert await a.sums() == await b.sums()


async def test_a_row_that_only_we_have_travels_when_the_peer_asks(tmp_path):
    async with desks(tmp_path, "a", "b") as (a, b):
        await a.one()
        await b.pull(a)
        b.store._writer.ledger.connection.execute("DELETE FROM tasks")
        result, _ = await compare(a, b)
        assert (result.differing_ranges, result.repaired_rows) == (1, 0)
        result, _ = await compare(b, a)
        assert result.repaired_rows == 1
        assert await a.sums() == await b.sums()


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x80", b"\x92\x01\x02", b"\xa3abc"])
def test_a_body_that_does_not_fit_its_verb_is_a_frame_error(body):
    for wanted in (RangesRequest, VerifyAnswer, list[tuple[int, int]]):
        with pytest.raises(FrameError, match="not a"):
            decode(body, wanted)
