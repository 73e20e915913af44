"""Which rows and bars a chart has: membership as strips, overlapping bars beside each other, and its bounds."""

from __future__ import annotations

import itertools
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from chaos.report.chart import Bar, Chart, Row
from chaos.report.layout import HOSTS_MAX, MARKS_MAX, TRACKS_MAX, lay_out
from chaos.runs import RunResult, TimelineEvent, Violation
from chaos.scenario import Scenario


def mark(
    at_ms: float, lane: str, host: str, label: str, until_ms: float | None = None, tone: str = "plain"
) -> TimelineEvent:
    return TimelineEvent(at_ms=at_ms, lane=lane, host=host, label=label, until_ms=until_ms, tone=tone)


def run(*events: TimelineEvent, violations: tuple[Violation, ...] = ()) -> RunResult:
    return RunResult(
        scenario=Scenario(name="made-up"),
        violations=violations,
        coverage={},
        trace_hash="",
        simulated_s=10.0,
        cpu_s=0.0,
        healed_ms=10_000.0,
        timeline=events,
    )


def row(chart: Chart, host: str, title: str) -> Row:
    return next(row for row in chart.rows if (row.host, row.title) == (host, title))


def states(bars: tuple[Bar, ...]) -> list[tuple[float, float | None, str]]:
    return [(bar.from_ms, bar.until_ms, bar.look) for bar in bars]


def test_changes_of_mind_become_states_between_them() -> None:
    chart = lay_out(
        run(
            mark(-500, "membership", "n0", "n1 ALIVE", tone="good"),
            mark(2_000, "membership", "n0", "n1 SUSPECT", tone="warn"),
            mark(5_000, "membership", "n0", "n1 DEAD", tone="bad"),
            mark(8_000, "membership", "n0", "n1 ALIVE", tone="good"),
        )
    )

    expected = [
        (-500.0, 2_000.0, "alive"),
        (2_000.0, 5_000.0, "suspect"),
        (5_000.0, 8_000.0, "dead"),
        (8_000.0, 10_000.0, "alive"),
    ]
    assert states(row(chart, "n0", "sees").bars) == expected
    assert not [each for each in chart.rows if each.host == "n1"], "n1 said nothing, so it has no rows"


def test_how_others_see_a_host_is_the_gravest_opinion_with_its_tally() -> None:
    chart = lay_out(
        run(
            mark(0, "membership", "n1", "n0 ALIVE"),
            mark(0, "membership", "n0", "n1 ALIVE"),
            mark(0, "membership", "n2", "n1 ALIVE"),
            mark(4_000, "membership", "n2", "n1 DEAD"),
        )
    )

    last = row(chart, "n1", "seen as").bars[-1]
    assert (last.from_ms, last.look) == (4_000.0, "dead")
    assert last.detail.startswith("1 DEAD, 1 ALIVE: n2 DEAD")
    assert "4.000 s  n2 on n1 DEAD" in last.detail


def test_a_host_whose_process_ended_sees_nothing_and_counts_for_nothing() -> None:
    chart = lay_out(
        run(
            mark(0, "membership", "n1", "starts", tone="good"),
            mark(0, "membership", "n1", "n0 ALIVE"),
            mark(0, "membership", "n0", "n1 ALIVE"),
            mark(1_000, "membership", "n1", "n0 DEAD"),
            mark(3_000, "membership", "n1", "ends: kill", tone="bad"),
            mark(7_000, "membership", "n1", "starts", tone="good"),
            mark(8_000, "membership", "n1", "n0 ALIVE"),
        )
    )

    strip = tuple(bar for bar in row(chart, "n1", "sees").bars if bar.until_ms is not None)
    assert states(strip)[1:] == [
        (1_000.0, 3_000.0, "dead"),
        (3_000.0, 7_000.0, "down"),
        (8_000.0, 10_000.0, "alive"),
    ]
    assert states(row(chart, "n0", "seen as").bars) == [
        (0.0, 1_000.0, "alive"),
        (1_000.0, 3_000.0, "dead"),
        (8_000.0, 10_000.0, "alive"),
    ]
    assert [bar.label for bar in row(chart, "n1", "sees").bars if bar.until_ms is None] == [
        "starts",
        "ends: kill",
        "starts",
    ]


def test_a_run_whose_first_mark_is_a_doubt_began_with_everybody_alive_to_everybody() -> None:
    doubt = TimelineEvent(
        at_ms=4_000, lane="membership", host="n0", label="n1 SUSPECT", detail="n1: ALIVE -> SUSPECT (probe-timeout)"
    )

    chart = lay_out(run(doubt))

    assert states(row(chart, "n0", "seen as").bars) == [(0.0, 10_000.0, "alive")]
    assert states(row(chart, "n0", "sees").bars) == [(0.0, 4_000.0, "alive"), (4_000.0, 10_000.0, "suspect")]
    assert row(chart, "n0", "sees").bars[-1].label == "1 SUSPECT, 3 ALIVE"


def test_a_run_whose_first_mark_is_an_arrival_began_with_nobody() -> None:
    arrival = TimelineEvent(
        at_ms=4_000, lane="membership", host="n0", label="n1 ALIVE", detail="n1: new -> ALIVE (joined)"
    )

    assert states(row(lay_out(run(arrival)), "n0", "sees").bars) == [(4_000.0, 10_000.0, "alive")]


def test_a_process_that_changes_its_mind_runs_again_even_if_no_start_was_told() -> None:
    chart = lay_out(
        run(
            mark(1_000, "membership", "n1", "ends: kill", tone="bad"),
            mark(7_000, "membership", "n1", "n0 ALIVE"),
        )
    )

    strip = tuple(bar for bar in row(chart, "n1", "sees").bars if bar.until_ms is not None)
    assert states(strip) == [(1_000.0, 7_000.0, "down"), (7_000.0, 10_000.0, "alive")]


def test_strips_end_where_the_timeline_ceases_to_tell_of_membership() -> None:
    told = run(mark(0, "membership", "n0", "n1 ALIVE"), mark(1_000, "membership", "n0", "n1 DEAD", tone="bad"))

    chart = lay_out(replace(told, views_until_ms=3_000.0))

    assert row(chart, "n0", "sees").bars[-1].end_ms == 3_000.0
    assert "membership after 3.0 s" in chart.omitted


def test_rows_come_in_the_order_of_lanes_and_hosts_in_that_of_their_numbers() -> None:
    events = [mark(1, lane, host, "x") for host in ("n10", "n2") for lane in ("clients", "commits", "leases")]

    chart = lay_out(run(*events, mark(0, "faults", "", "loss", 5)))

    assert [(each.host, each.lane) for each in chart.rows] == [
        ("", "faults"),
        *(("n2", lane) for lane in ("leases", "commits", "clients")),
        *(("n10", lane) for lane in ("leases", "commits", "clients")),
    ]


moments = st.lists(st.tuples(st.integers(0, 1_000), st.integers(0, 300)), max_size=30)


@given(moments)
def test_bars_of_one_track_do_not_overlap_but_in_the_last(spans: list[tuple[int, int]]) -> None:
    chart = lay_out(run(*(mark(at, "clients", "n0", "submit", at + length) for at, length in spans)))

    bars = [bar for each in chart.rows for bar in each.bars]
    assert len(bars) == len(spans)
    for track in range(TRACKS_MAX - 1):
        lane = [bar for bar in bars if bar.track == track]
        assert all(before.end_ms <= after.from_ms for before, after in itertools.pairwise(lane))
    assert all(bar.track < each.tracks <= TRACKS_MAX for each in chart.rows for bar in each.bars)


def test_the_axis_holds_everything_that_happened() -> None:
    chart = lay_out(
        run(
            mark(-700, "commits", "n0", "1 rows"), violations=(Violation("late", 30_000, ""), Violation("early", 5, ""))
        )
    )

    assert (chart.begin_ms, chart.end_ms) == (-700, 30_000)
    assert [violation.invariant for violation in chart.violations] == ["early", "late"]


def test_of_very_many_marks_the_grave_ones_stay_and_the_rest_is_thinned_evenly() -> None:
    quiet = [mark(number / 10, "commits", "n0", "1 rows") for number in range(2 * MARKS_MAX)]
    grave = [mark(number, "clients", "n0", "submit", tone="bad") for number in range(1_000)]

    chart = lay_out(run(*quiet, *grave))

    assert len(row(chart, "n0", "clients").bars) == 1_000
    kept = [bar.from_ms for bar in row(chart, "n0", "commits").bars]
    assert 0.97 * MARKS_MAX <= len(kept) <= MARKS_MAX - 1_000
    assert max(after - before for before, after in itertools.pairwise(kept)) < 1.0
    assert "of 81,000 marks" in chart.omitted


def test_of_very_many_hosts_those_in_trouble_stay() -> None:
    events = [mark(1, "membership", f"n{number}", "n0 ALIVE") for number in range(1, 1_000)]
    trouble = [mark(2, "membership", f"n{number}", "n0 DEAD", tone="bad") for number in range(900, 920)]

    chart = lay_out(run(*events, *trouble, mark(3, "membership", "n50", "ends: kill", tone="bad")))

    hosts = list(dict.fromkeys(each.host for each in chart.rows))
    assert "n50" in hosts, "a host that was killed tells more than one that doubts others"
    assert len(hosts) == HOSTS_MAX
    assert set(hosts) >= {f"n{number}" for number in range(900, 920)}
    assert f"{999 - HOSTS_MAX} of 999 hosts" in chart.omitted


def test_a_run_in_which_nothing_was_seen_has_an_empty_chart() -> None:
    assert lay_out(run()).rows == ()
