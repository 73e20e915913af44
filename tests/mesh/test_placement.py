"""Placement must be the same everywhere, spread work, and say why a node does not fit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh.placement import Offer, Requirement, able, rendezvous

_nodes = st.lists(st.text("abcdefgh", min_size=1, max_size=6), unique=True, max_size=8)


@given(st.text(), _nodes, st.randoms(use_true_random=False))
def test_every_node_computes_one_order_whatever_order_it_learned_of_the_others(work, nodes, rng):
    shuffled = list(nodes)
    rng.shuffle(shuffled)

    assert rendezvous(work, shuffled) == rendezvous(work, nodes)
    assert sorted(rendezvous(work, nodes)) == sorted(nodes)


@given(st.text(), _nodes)
def test_losing_a_node_moves_only_what_stood_on_it(work, nodes):
    order = rendezvous(work, nodes)

    for lost in nodes:
        assert rendezvous(work, [node for node in nodes if node != lost]) == [node for node in order if node != lost]


def test_work_spreads_over_equal_nodes():
    firsts = [rendezvous(f"step-{number}", ["a", "b", "c"])[0] for number in range(300)]

    assert min(firsts.count(node) for node in "abc") > 60


def test_an_offer_names_what_it_misses():
    offer = Offer(node="a", abilities=frozenset({"echo"}), labels={"site": "north"})

    assert offer.misses(Requirement(ability="echo")) is None
    assert offer.misses(Requirement(ability="gpu")) == "has no agent gpu"
    assert offer.misses(Requirement(ability="echo", node="b")) == "is not node b"
    assert offer.misses(Requirement(ability="echo", labels={"site": "south"})) == "has not the label site=south"
    assert able([offer], Requirement(ability="echo", node="a", labels={"site": "north"})) == ["a"]
