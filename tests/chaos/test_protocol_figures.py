"""Small editions of the published figures: the aims hold in them too."""

import pytest

from chaos.protocol import figures
from chaos.protocol.figures import Figure


@pytest.mark.parametrize(("count", "limit_s"), [(10, 10.0), (25, 12.0)])
def test_a_crash_is_dead_everywhere_no_sooner_than_a_suspicion_lasts(count: int, limit_s: float) -> None:
    assert 4.0 < figures.crash_to_dead_s(count, 1) < limit_s


def test_rumors_reach_all_through_heavy_loss() -> None:
    assert max(figures.rumor_to_all_s(30, 1, loss=0.2, rumors=5)) < 1.5


def test_loss_and_starvation_kill_nobody() -> None:
    assert figures.false_deaths(10, 1, loss=0.05, hours=0.02) == 0
    assert figures.deaths_by_starvation(10, 1, share=0.1, slice_s=5.0) == 0


def test_a_quiet_mesh_sends_no_more_per_node_when_it_is_larger() -> None:
    small, large = figures.idle_bytes_s(5, 1), figures.idle_bytes_s(20, 1)
    assert large < 1.1 * small < 500


def test_a_cut_heals_and_a_mesh_forms() -> None:
    assert figures.heal_to_agreed_s(10, 1) < 15.0
    assert figures.join_s(20, 1) < 3.0


def test_a_figure_that_is_worse_than_its_aim_is_marked() -> None:
    held = Figure(what="a", value=1.0, unit="s", aim=1.0, of="x")
    missed = Figure(what="b", value=1.1, unit="s", aim=1.0, of="x")
    told = Figure(what="c", value=9.0, unit="s", aim=None, of="x")
    assert (held.held, missed.held, told.held) == (True, False, True)
    rows = figures.table([held, missed, told]).splitlines()[2:]
    assert [("**missed**" in row) for row in rows] == [False, True, False]
