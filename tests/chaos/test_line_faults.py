"""What each fault of lines does to packets, said once for simulated and real lines."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.fault_menu import MENU
from chaos.line_faults import LINE_KINDS, bad_times, overlay
from chaos.scenario import Fault
from chaos.simulation.links import Conditions

HOSTS = ["n0", "n1", "n2", "n3"]
CLEAN = Conditions(delay_min_s=0.0, delay_mean_s=0.0)
EVERY_PAIR = {(a, b) for a in HOSTS for b in HOSTS if a != b}


def fault(kind, **more):
    options = {name: option.default for name, option in MENU[kind].options.items()} | more.pop("options", {})
    return Fault(kind=kind, at_s=10.0, for_s=5.0, options=options, **more)


def hit(kind, **more):
    """The pairs that the fault's overlay is laid over."""
    pairs = overlay(fault(kind, **more), HOSTS).pairs
    return EVERY_PAIR if pairs is None else {(a, b) for a, b in pairs if a != b}


def test_every_fault_of_lines_is_one_of_the_menu_and_changes_something():
    for kind in LINE_KINDS:
        assert MENU[kind].hits in ("lines", "sides", "towards", "node")
        laid = overlay(fault(kind, nodes=("n0",), groups=(("n1",), ("n2",))), HOSTS)
        assert laid.over(CLEAN) != CLEAN, kind


def test_a_fault_of_lines_hits_those_of_its_nodes_or_all():
    assert hit("loss") == EVERY_PAIR
    assert hit("loss", nodes=("n1",)) == {pair for pair in EVERY_PAIR if "n1" in pair}


def test_a_partition_cuts_every_side_from_every_other_and_nobody_within_one():
    sides = (("n0", "n1"), ("n2",), ("n3",))
    together = [{"n0", "n1"}, {"n2"}, {"n3"}]
    assert hit("partition", groups=sides) == {
        (a, b) for a, b in EVERY_PAIR if not any({a, b} <= side for side in together)
    }


def test_who_belongs_to_no_side_hears_all():
    assert hit("partition", groups=(("n0",), ("n1",))) == {("n0", "n1"), ("n1", "n0")}


def test_one_way_stops_the_senders_only():
    assert hit("one-way", nodes=("n0",), groups=(("n1", "n2"),)) == {("n0", "n1"), ("n0", "n2")}


@pytest.mark.parametrize("kind", ["isolate", "flap"])
def test_an_isolated_node_loses_all_its_lines(kind):
    assert hit(kind, nodes=("n3",)) == {pair for pair in EVERY_PAIR if "n3" in pair}


def test_units_are_those_of_the_menu():
    late = overlay(fault("delay", options={"delay_ms": 50.0, "jitter_ms": 20.0}), HOSTS)
    assert (late.delay_s, late.jitter_s) == (0.05, 0.02)
    assert overlay(fault("bandwidth", options={"bytes_s": 9_000.0}), HOSTS).bandwidth_bytes_s == 9_000


def test_what_is_no_fault_of_lines_is_refused():
    with pytest.raises(AssertionError, match="kill is no fault of lines"):
        overlay(fault("kill", nodes=("n0",)), HOSTS)


@given(st.floats(0.1, 10), st.floats(0.05, 0.95), st.floats(0.1, 30))
def test_a_flap_is_bad_for_its_share_of_every_period_and_over_when_it_ends(period_s, down_share, for_s):
    flap = Fault(
        kind="flap", at_s=3, for_s=for_s, nodes=("n0",), options={"period_s": period_s, "down_share": down_share}
    )
    times = list(bad_times(flap))
    assert times[0][0] == 3
    for (_, until_s), (next_s, _) in itertools.pairwise(times):
        assert until_s < next_s
    assert all(from_s < until_s <= flap.until_s for from_s, until_s in times)
    assert sum(until_s - from_s for from_s, until_s in times) == pytest.approx(down_share * for_s, abs=period_s)


def test_other_faults_are_bad_once():
    assert list(bad_times(fault("clog"))) == [(10.0, 15.0)]
