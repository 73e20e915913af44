"""The rules of schedules: expressions, slots, what is due, who submits it when, and whose time counts."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import ConfigError
from mesh.hlc import DRIFT_MAX_MS
from mesh.ids import Origin
from mesh.rows import Row
from node.work.cron import local_text, next_slots, parse_cron, parse_utc_text, utc_text
from node.work.definition import Limits
from node.work.schedules import (
    CATCH_UP_ALL_MAX,
    CATCH_UPS,
    CLOCKS_AGREE_S,
    EARLIEST_MS,
    ON_TIME_MS,
    Schedule,
    agreed_offset_ms,
    clock_problem,
    decided_after,
    due_slots,
    fire_order,
    fire_wait_s,
    next_look_ms,
    parse_slot_key,
    read_schedule,
    slot_key,
    time_stamp,
)

MINUTE = 60_000
HOUR = 60 * MINUTE


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1000


def row(cron: str = "* * * * *", zone: str = "UTC", catch_up: str = "all", *, from_ms: int | None = 0) -> Row:
    values: dict[str, Any] = {
        "cron": cron,
        "time_zone": zone,
        "catch_up": catch_up,
        "definition": b'{"steps": [{"id": "a", "agent": "echo"}]}',
        "from_hlc": None if from_ms is None else time_stamp(from_ms),
    }
    origin = Origin("a", 1)
    return Row(table="schedules", namespace="default", key="s", hlc=1, node="a", origin=origin, seq=1, values=values)


def schedule(*args: str, from_ms: int | None = 0) -> Schedule:
    return read_schedule(row(*args, from_ms=from_ms), Limits())


def slots(cron: str, zone: str, after: str, until: str) -> list[str]:
    found = parse_cron(cron, zone).last_between(at(after), at(until), 1000)
    return [utc_text(slot_ms) for slot_ms in found]


# --- expressions ---


@pytest.mark.parametrize(
    ("cron", "field"),
    [
        ("61 * * * *", "the field minute cannot be '61'"),
        ("* 24 * * *", "the field hour cannot be '24'"),
        ("* * 0 * *", "the field day-of-month cannot be '0'"),
        ("* * * FOO *", "the field month cannot be 'FOO'"),
        ("* * * * 9", "the field day-of-week cannot be '9'"),
        ("*/0 * * * *", "the field minute cannot be '*/0'"),
        ("0 0 31 2 *", "the field day-of-month cannot be '31'"),
        ("* * * *", "has 4 fields: give 5"),
        ("0 * * * * *", "has 6 fields: give 5"),
        ("", "has 0 fields"),
        ("@often", "unknown name; known: @hourly"),
        ("* * */20 * 1L", "never happens"),
    ],
)
def test_a_bad_expression_is_one_error_that_names_the_field(cron, field):
    with pytest.raises(ConfigError, match="(?s)" + field.replace("*", r"\*").replace("@", "@")):
        parse_cron(cron, "UTC")


@pytest.mark.parametrize("zone", ["", "Mars/Olympus", "../etc/passwd", "America", "x" * 100, "a\0b", "é", "localtime"])
def test_an_unknown_zone_is_one_error(zone):
    with pytest.raises(ConfigError, match="is not known here"):
        parse_cron("* * * * *", zone)


@given(st.text(alphabet="0123456789*/-,L#WMONJAN@ ²", max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_text_is_an_expression_or_an_error_of_ours(text):
    try:
        cron = parse_cron(text, "Europe/Berlin")
    except ConfigError:
        return
    slot_ms = cron.next_after(at("2026-01-01"))
    assert slot_ms is not None
    assert slot_ms % MINUTE == 0


def test_names_are_read():
    assert slots("@daily", "UTC", "2026-01-01T12:00", "2026-01-03T12:00") == [
        "2026-01-02T00:00:00Z",
        "2026-01-03T00:00:00Z",
    ]
    assert slots("0 9 * JAN MON", "UTC", "2026-01-01", "2026-01-10") == ["2026-01-05T09:00:00Z"]


def test_a_fixed_hour_in_the_gap_runs_right_after_it_and_in_the_repeated_hour_once():
    gap = slots("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00", "2026-03-30T12:00")
    assert gap == ["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]  # 3:00 and 2:30 summer time
    fold = slots("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00", "2026-10-26T12:00")
    assert fold == ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]
    assert len(slots("*/30 * * * *", "Europe/Berlin", "2026-10-24T23:59", "2026-10-25T02:59")) == 6


@given(
    st.sampled_from(["* * * * *", "*/7 1-3 * * *", "0,30 2 * * *", "15 2 * * *", "5 */2 * * SUN", "0 3 1 * *"]),
    st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "America/Havana"]),
    st.sampled_from(["2026-03-29T01:00", "2026-10-25T01:00", "2026-03-08T07:00", "2026-11-01T05:30", "2026-07-01"]),
    st.integers(-400, 400),
    st.integers(1, 400),
)
@settings(deadline=None)
def test_slots_are_the_same_whenever_they_are_asked_for_and_strictly_rise(cron, zone, about, start, later):
    parsed = parse_cron(cron, zone)
    first = at(about) + start * MINUTE
    second, end = first + later * MINUTE, first + (later + 500) * MINUTE
    all_of_it = parsed.last_between(first, end, 10_000)

    assert all(a < b for a, b in itertools.pairwise(all_of_it))
    assert [slot_ms for slot_ms in all_of_it if slot_ms > second] == parsed.last_between(second, end, 10_000)
    assert all_of_it[-3:] == parsed.last_between(first, end, 3)


def test_the_latest_slots_of_a_year_of_minutes_are_found_at_once():
    found = parse_cron("* * * * *", "UTC").last_between(at("2025-01-01"), at("2026-01-01"), 3)
    assert [utc_text(slot_ms) for slot_ms in found] == [f"2025-12-31T23:5{n}:00Z" for n in (8, 9)] + [
        "2026-01-01T00:00:00Z"
    ]


def test_the_next_slots_of_a_rare_expression_end_before_the_calendar_does():
    answer = next_slots(parse_cron("0 0 29 2 */7", "UTC"), at("2026-03-28"), 1000)  # leap days that are Sundays
    assert [each["utc"][:10] for each in answer["slots"]] == ["2032-02-29", "2060-02-29", "2088-02-29"]


def test_next_slots_are_told_in_both_times():
    answer = next_slots(parse_cron("30 2 * * *", "Europe/Berlin"), at("2026-03-28"), 2)
    assert answer["slots"] == [
        {"local": "2026-03-28T02:30:00+01:00", "utc": "2026-03-28T01:30:00Z"},
        {"local": "2026-03-29T03:00:00+02:00", "utc": "2026-03-29T01:00:00Z"},
    ]
    assert local_text(0, parse_cron("* * * * *", "UTC").zone) == "1970-01-01T00:00:00+00:00"


# --- keys ---


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True), st.integers(0, 4_000_000_000))
def test_a_key_tells_its_name_and_slot(name, second):
    key = slot_key(name, second * 1000)
    assert parse_slot_key(key) == (name, second * 1000)
    assert len(key) <= 256


@pytest.mark.parametrize(
    "key",
    [
        "",
        "schedule",
        "schedule  2026-01-01T00:00:00Z",
        "schedule a 2026-01-01",
        "schedule a 2026-1-1T00:00:00Z",
        "x y z",
    ],
)
def test_other_keys_are_nobody_s(key):
    assert parse_slot_key(key) is None


def test_only_our_own_form_of_a_time_is_read():
    assert parse_utc_text("2026-01-01T00:00:00Z") == at("2026-01-01")
    assert parse_utc_text("2026-02-30T00:00:00Z") is None


# --- what is due ---

NOW = at("2026-06-01T12:00:30")


@given(
    st.sampled_from(CATCH_UPS),
    st.integers(0, 400),
    st.integers(0, 400),
    st.integers(0, 59_999),
)
@settings(deadline=None)
def test_due_slots_are_those_that_are_undecided_as_far_as_the_policy_makes_up_for_them(
    catch_up, from_ago, decided_ago, part_ms
):
    now_ms = at("2026-06-01T12:00") + part_ms
    from_ms, decided_ms = now_ms - from_ago * MINUTE, now_ms - decided_ago * MINUTE
    due = due_slots(schedule("* * * * *", "UTC", catch_up, from_ms=from_ms), decided_ms=decided_ms, now_ms=now_ms)
    after_ms = max(from_ms, decided_ms)
    every = [slot for slot in range(at("2026-06-01"), now_ms + 1, MINUTE) if after_ms < slot <= now_ms]
    expected = {
        "all": every[-CATCH_UP_ALL_MAX:],
        "latest": every[-1:],
        "skip": [slot for slot in every if slot > now_ms - ON_TIME_MS],
    }
    assert due == expected[catch_up]


@given(st.lists(st.integers(1, 90), min_size=1, max_size=30), st.sampled_from(["all", "latest"]))
@settings(deadline=None)
def test_whatever_the_pauses_between_looks_no_slot_is_due_twice_and_all_makes_up_for_each(pauses, catch_up):
    begins_ms = NOW
    rule = schedule("*/5 * * * *", "UTC", catch_up, from_ms=begins_ms)
    decided_ms, now_ms, fired = begins_ms, begins_ms, []
    for pause in pauses:
        now_ms += pause * MINUTE
        for slot_ms in due_slots(rule, decided_ms=decided_ms, now_ms=now_ms):
            fired.append(slot_ms)
            decided_ms = decided_after(decided_ms, slot_ms, now_ms=now_ms)
    every = rule.cron.last_between(begins_ms, now_ms, 10_000)
    assert len(set(fired)) == len(fired)
    assert fired == every if catch_up == "all" else fired[-1:] == every[-1:]


def test_a_paused_schedule_has_no_due_slot_and_no_next_one():
    paused = schedule(from_ms=None)
    assert due_slots(paused, decided_ms=0, now_ms=NOW) == []
    assert next_look_ms(paused, decided_ms=0, now_ms=NOW) is None


def test_nothing_is_due_before_the_schedule_was_made_nor_in_the_future():
    made = schedule(from_ms=NOW)
    assert due_slots(made, decided_ms=0, now_ms=NOW + 29_999) == []
    assert next_look_ms(made, decided_ms=0, now_ms=NOW) == NOW + 30_000
    assert due_slots(made, decided_ms=0, now_ms=NOW - HOUR) == []
    assert next_look_ms(made, decided_ms=0, now_ms=NOW - HOUR) == NOW + 30_000


def test_a_task_from_the_future_decides_nothing():
    assert decided_after(NOW, NOW + HOUR, now_ms=NOW) == NOW
    assert decided_after(NOW + HOUR, NOW + HOUR, now_ms=NOW) == NOW
    assert decided_after(NOW, NOW + DRIFT_MAX_MS, now_ms=NOW) == NOW + DRIFT_MAX_MS


@pytest.mark.parametrize(
    ("column", "value"),
    [("cron", "61 * * * *"), ("time_zone", "Mars/Olympus"), ("definition", b"{"), ("definition", b"{}")],
)
def test_a_row_that_cannot_be_followed_here_says_why(column, value):
    bad = row()
    bad.values[column] = value
    with pytest.raises(ConfigError):
        read_schedule(bad, Limits())


# --- who, when ---


@given(st.sets(st.sampled_from("abcdefgh"), min_size=1))
def test_all_members_agree_who_is_first_and_each_waits_longer_than_the_one_before(members):
    order = fire_order("default", "s", sorted(members))
    assert order == fire_order("default", "s", sorted(members, reverse=True))
    assert sorted(order) == sorted(members)
    waits = [fire_wait_s(place, tick_s=0.2) for place in range(len(order))]
    assert waits[0] == 0
    assert all(later - sooner >= 0.5 for sooner, later in itertools.pairwise(waits))
    assert all(wait > CLOCKS_AGREE_S for wait in waits[1:])


def test_schedules_spread_over_members():
    assert len({fire_order("default", f"s{number}", "abcde")[0] for number in range(50)}) == 5


# --- whose time ---


@given(st.lists(st.integers(-10_000_000, 10_000_000), min_size=1, max_size=9))
def test_all_nodes_come_to_one_time_which_some_clock_shows_and_half_are_not_behind(clocks):
    agreed = {
        own + agreed_offset_ms([other - own for j, other in enumerate(clocks) if j != i])
        for i, own in enumerate(clocks)
    }
    (time,) = agreed
    assert time in clocks
    assert sum(clock >= time for clock in clocks) * 2 >= len(clocks)


def test_a_wrong_clock_is_told():
    def problem(**changed: int) -> str:
        right = {"now_ms": NOW, "peers": 2, "wall_ms": NOW, "last_stamp_ms": NOW}
        return clock_problem(**(right | changed))

    assert problem() == problem(wall_ms=NOW + DRIFT_MAX_MS) == ""
    assert "no date" in problem(now_ms=EARLIEST_MS - 1)
    assert "3600 s ahead of the time of the mesh" in problem(wall_ms=NOW + HOUR)
    assert "3600 s behind the time of the mesh" in problem(wall_ms=NOW - HOUR)
    assert "restart the node" in problem(peers=0, wall_ms=NOW + HOUR)
    assert "behind what its node has stored" in problem(last_stamp_ms=NOW + HOUR)


def test_leap_days_are_found():
    assert slots("0 0 29 2 *", "UTC", "2026-01-01", "2033-01-01") == ["2028-02-29T00:00:00Z", "2032-02-29T00:00:00Z"]
