"""The fence's text must sort exactly as the lifecycle order sorts leases: resources compare nothing but the text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.fences import Fence
from mesh.ids import Origin
from mesh.registers import beats
from mesh.rows import Row
from mesh.tables import Register

_counters = st.integers(0, 2**32 - 1)
_nodes = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}", fullmatch=True)
fences = st.builds(Fence, _counters, _counters, _counters, st.integers(0, 2**63 - 1), _nodes)


def _row(fence: Fence) -> Row:
    return Row(
        table="steps",
        namespace="default",
        key="k",
        generation=fence.generation,
        cluster_epoch=fence.cluster_epoch,
        lease_epoch=fence.lease_epoch,
        lease_hlc=fence.lease_hlc,
        hlc=7,
        node=fence.node,
        origin=Origin("x", 1),
        seq=1,
        values={},
    )


@given(fences)
def test_decoding_gives_the_fence_back(fence: Fence):
    text = fence.encode()

    assert Fence.decode(text) == fence
    assert len(text) == 108


@given(fences, fences)
def test_text_order_is_merge_order(one: Fence, other: Fence):
    one_wins = beats(Register.LIFECYCLE, _row(one), _row(other))

    assert (one.encode() > other.encode()) == (one_wins and one != other)


@given(fences)
def test_the_lexically_lower_node_has_the_greater_fence(fence: Fence):
    longer = fence._replace(node=(fence.node + "0")[:32])

    if longer.node != fence.node:
        assert fence.encode() > longer.encode()


@pytest.mark.parametrize("text", ["", "0" * 108, "zz", Fence(0, 0, 0, 0, "a").encode() + "0"])
def test_anything_else_is_no_fence(text: str):
    with pytest.raises(ValueError, match="not a fence"):
        Fence.decode(text)


def test_a_counter_that_outgrows_its_field_is_refused():
    with pytest.raises(AssertionError):
        Fence(2**32, 0, 0, 0, "a").encode()
