"""Schedules on whole nodes: one submitter, both sides of a cut, catching up, and what must not be submitted."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import trio

from mesh.errors import ConfigError, ConflictError, NotFoundError
from mesh.ids import Origin
from mesh.rows import Row
from node.storage.transaction import Arrival
from node.work.cron import parse_utc_text, utc_text
from node.work.schedules import fire_order, parse_slot_key, time_stamp
from tests.node.simulated_env import Host, World, simulated_world

ECHO = {"steps": [{"id": "only", "agent": "echo", "input": "tick"}]}


@pytest.fixture
async def world(tmp_path):
    async with simulated_world(tmp_path) as world:
        yield world


async def add(host: Host, name: str = "s", cron: str = "* * * * *", **args: Any) -> Any:
    return await host.admin("schedule-add", **{"name": name, "cron": cron, "definition": ECHO, **args})


async def slots_of(host: Host, name: str = "s") -> list[str]:
    """The slots of the tasks that this host has, in order, each as often as there are tasks of it."""
    keys = [row.text("idempotency_key") for row in await host.rows("tasks") if not row.deleted]
    found = [parse_slot_key(key) for key in keys]
    return sorted(utc_text(each[1]) for each in found if each is not None and each[0] == name)


def minutes(after: str, until: str) -> list[str]:
    first, last = parse_utc_text(after), parse_utc_text(until)
    assert first is not None
    assert last is not None
    return [utc_text(at_ms) for at_ms in range((first // 60_000 + 1) * 60_000, last + 1, 60_000)]


def now(host: Host) -> str:
    return utc_text(host.node.scheduler.now_ms())


def note_submits(world: World) -> Counter[tuple[str, str]]:
    """Counts who stored the task of which slot, from now on."""
    made: Counter[tuple[str, str]] = Counter()

    def note(host: Host, commit: Any) -> None:
        for change in commit.changes:
            found = parse_slot_key(change.after.text("idempotency_key")) if change.after.table == "tasks" else None
            if found is not None and change.local and change.before is None:
                made[host.name, utc_text(found[1])] += 1

    for host in world.running():
        host.node.store.on_commit(lambda commit, host=host: note(host, commit))
    return made


async def test_each_slot_becomes_one_task_which_one_member_submits(world, autojump_clock):
    a, b, c = (world.host(name) for name in "abc")
    await world.up()
    made = note_submits(world)
    began = now(a)
    await add(a)

    await trio.sleep(300)
    await world.until(world.agree)
    every = minutes(began, now(a))
    assert len(every) == 5
    first = fire_order("default", "s", "abc")[0]
    assert made == {(first, slot): 1 for slot in every}
    for host in (a, b, c):
        assert await slots_of(host) == every
    shown = await b.admin("schedule-show", name="s")
    assert [each["status"] for each in shown["recent"]][:5] == ["SUCCESS"] * 5
    assert (shown["state"], shown["submitter"], shown["definition"]) == ("ACTIVE", first, ECHO)


async def test_when_the_first_member_dies_the_next_one_submits(world, autojump_clock):
    hosts = [world.host(name) for name in "abc"]
    await world.up()
    began = now(hosts[0])
    await add(hosts[0])
    first, second, third = (world.hosts[name] for name in fire_order("default", "s", "abc"))

    await trio.sleep(30)  # a few seconds before a slot: nobody knows of its death yet
    made = note_submits(world)
    await first.crash()
    await trio.sleep(150)
    assert await slots_of(third) == minutes(began, now(third))
    assert set(made) == {(second.name, slot) for slot in await slots_of(third)}


async def test_a_member_that_cannot_submit_is_stood_in_for(world, autojump_clock):
    a, _, _ = (world.host(name) for name in "abc")
    await world.up()
    await add(a)
    first, second, _ = fire_order("default", "s", "abc")
    world.hosts[first].node.runtime.paused = "for the test"
    made = note_submits(world)

    await trio.sleep(120)
    assert len(made) == 2
    assert {name for name, _ in made} == {second}


async def test_both_sides_of_a_cut_submit_and_after_the_heal_each_slot_is_one_task(world, autojump_clock):
    a, b, c = (world.host(name) for name in "abc")
    await world.up()
    began = now(a)
    await add(a)
    await world.until(world.agree)
    made = note_submits(world)
    world.network.cut("a", "bc")

    await trio.sleep(180)
    assert await slots_of(a) == await slots_of(b) == minutes(began, now(a))
    assert {name for name, _ in made} >= {"a"}
    assert len({name for name, _ in made}) == 2
    world.network.heal()
    await trio.sleep(70)
    await world.until(world.agree)
    for host in (a, b, c):
        assert await slots_of(host) == minutes(began, now(host))


@pytest.mark.parametrize(("catch_up", "made_up_for"), [("all", 5), ("latest", 1), ("skip", 0)])
async def test_slots_that_nobody_was_up_for(world, autojump_clock, catch_up, made_up_for):
    a = world.host("a")
    await world.up()
    await add(a, cron="*/10 * * * *", catchUp=catch_up)
    await trio.sleep(600)
    before = await slots_of(a)
    await a.crash()
    await trio.sleep(3000)
    await a.start()
    await trio.sleep(60)

    assert len(before) == 1
    assert len(await slots_of(a)) == 1 + made_up_for


async def test_no_slot_comes_back_when_its_task_was_deleted_and_forgotten(world, autojump_clock):
    a, b = (world.host(name, garbage_interval_ms=1_000) for name in "ab")
    await world.up()
    await add(a, cron="14,15 * * * *", catchUp="all")  # 22:14 and 22:15, 40 s and 100 s after the start of the world
    await trio.sleep(120)
    assert len(await slots_of(a)) == 2
    await a.admin("purge", doneRetentionMs=0, deadRetentionMs=0)
    await trio.sleep(60)
    assert await a.rows("tasks") == await b.rows("tasks") == []
    for host in (a, b):
        await host.crash()
    for host in (a, b):
        await host.start()
    await trio.sleep(60)

    assert await slots_of(a) == await slots_of(b) == []


async def test_no_slot_comes_back_to_a_member_that_lost_its_disk(world, autojump_clock):
    a, b = (world.host(name, garbage_interval_ms=1_000) for name in "ab")
    await world.up()
    await add(a, cron="14,15 * * * *", catchUp="all")  # 22:14 and 22:15, 40 s and 100 s after the start of the world
    await trio.sleep(120)
    await a.admin("purge", doneRetentionMs=0, deadRetentionMs=0)
    await trio.sleep(60)
    await a.crash()
    for file in a.root.glob("relaymesh.db*"):
        file.unlink()
    a.enrolment = 2
    await a.start()
    await world.until(world.agree)
    await b.crash()  # now only the one that has forgotten is left
    await trio.sleep(60)

    assert [row.key for row in await a.rows("schedules")] == ["s"]
    assert await slots_of(a) == []


async def test_a_changed_schedule_begins_anew_and_a_paused_one_makes_up_for_nothing(world, autojump_clock):
    a, b = (world.host(name) for name in "ab")
    await world.up()
    await add(a, catchUp="all")
    await world.until(world.agree)
    with pytest.raises(ConflictError, match="--replace"):
        await add(b, cron="*/2 * * * *", catchUp="all")
    assert (await add(a, catchUp="all"))["changed"] is False
    await trio.sleep(60)
    await world.until(world.agree)
    assert (await b.admin("schedule-pause", name="s"))["state"] == "PAUSED"
    count = len(await slots_of(b))
    await trio.sleep(90)
    assert len(await slots_of(b)) == count == 1

    await a.admin("schedule-resume", name="s")
    changed = {"steps": [{"id": "only", "agent": "echo", "input": "other"}]}
    assert (await add(a, catchUp="all", definition=changed, replace=True))["changed"] is True
    await trio.sleep(120)
    await world.until(world.agree)
    assert len(await slots_of(b)) == 3
    inputs = sorted(job.payload for host in (a, b) for job in host.jobs)
    assert inputs == [b"other", b"other", b"tick"]

    await b.admin("schedule-remove", name="s")
    await trio.sleep(90)
    assert len(await slots_of(a)) == 3
    assert (await a.admin("schedule-list"))["schedules"] == []


async def test_while_the_mesh_is_held_nothing_is_submitted(world, autojump_clock):
    a, b = (world.host(name) for name in "ab")
    await world.up()
    await add(a)
    await a.node.store.write(lambda tx: tx.put("holds", "_mesh", "mesh", {"reason": "x", "actor": "t"}))
    await trio.sleep(180)
    assert await slots_of(a) == await slots_of(b) == []
    assert (await b.admin("schedule-list"))["held"] is True

    await b.node.store.write(lambda tx: tx.put("holds", "_mesh", "mesh", {}, deleted=True))
    await trio.sleep(10)
    assert len(await slots_of(a)) == 1  # the latest


@pytest.mark.parametrize(
    ("hours", "told"), [(1, "s ahead of the time of the mesh"), (-1, "s behind the time of the mesh")]
)
async def test_a_host_whose_date_is_wrong_says_so_and_submits_in_time(world, autojump_clock, caplog, hours, told):
    first, *others = fire_order("default", "s", "abcd")
    right = [world.host(name) for name in others]
    wrong = world.host(first, wall_offset_s=3_600.0 * hours)
    await world.up(*right)
    await wrong.start()
    await trio.sleep(20)  # rows of one that is ahead are put aside: it never looks whole
    began = now(right[0])
    await add(right[0])
    await trio.sleep(180)

    assert await slots_of(right[0]) == minutes(began, now(right[0]))
    assert told in (await wrong.admin("schedule-list"))["clockProblem"]
    assert told in caplog.text
    assert (await right[0].admin("schedule-list"))["clockProblem"] == ""


async def test_a_host_without_a_date_submits_nothing_and_says_so(world, autojump_clock):
    a = world.host("a", wall_offset_s=-1_700_000_000.0)
    await world.up()
    await add(a)
    await trio.sleep(180)
    assert await slots_of(a) == []
    assert "no date" in (await a.admin("schedule-list"))["clockProblem"]


async def test_foreign_rows_are_put_aside_or_shown_as_broken_and_never_followed(world, autojump_clock):
    a = world.host("a")
    await world.up()
    good = {
        "cron": "* * * * *",
        "time_zone": "UTC",
        "catch_up": "all",
        "definition": b"{}",
        "from_hlc": 0,
        "actor": "x",
    }
    poison: list[dict[str, Any]] = [
        {"catch_up": "never"},
        {"catch_up": None},
        {"cron": "1," * 200},
        {"time_zone": "x" * 100},
        {"definition": b"x" * 300_000},
        {"from_hlc": -1},
        {"from_hlc": 1 << 62 | 1},
    ]
    halves = rb'{"steps":[{"id":"x","agent":"echo","input":"\ud800"}]}'  # JSON can say what UTF-8 cannot
    broken = [
        {"time_zone": "Mars/Olympus"},
        {"cron": "61 * * * *"},
        {"definition": b"{"},
        {"definition": halves},
        {"time_zone": "localtime"},
    ]
    origin, stamp = Origin("b", 7), time_stamp(a.node.scheduler.now_ms())

    def row(number: int, values: dict[str, Any], key: str = "") -> Row:
        return Row(
            table="schedules",
            namespace="default",
            key=key or f"s{number}",
            hlc=stamp,
            node="b",
            origin=origin,
            seq=number,
            values={**good, **values},
        )

    rows = [row(number, values) for number, values in enumerate([*poison, *broken], 1)]
    rows.append(row(len(rows) + 1, {}, key="a b"))
    for each in rows:
        await a.node.store.write(lambda tx, each=each: tx.merge(each, Arrival.CARRIED))
    await trio.sleep(120)

    shown = (await a.admin("schedule-list"))["schedules"]
    assert [each["name"] for each in shown] == ["s10", "s11", "s12", "s8", "s9"]
    assert {each["state"] for each in shown} == {"BROKEN"}
    told = [(await a.admin("schedule-show", name=each["name"]))["definition"] for each in shown]
    assert told == ["{", halves.decode(), {}, {}, {}]
    assert all(each["problem"] for each in shown)
    assert len((await a.admin("quarantine-list"))["rows"]) == len(poison) + 1
    assert await a.rows("tasks") == []


async def test_a_bad_request_is_one_error_and_stores_nothing(world, autojump_clock):
    a = world.host("a")
    await world.up()
    for wrong, told in (
        ({"cron": "99 * * * *"}, "the field minute"),
        ({"timeZone": "Mars/Olympus"}, "Mars/Olympus"),
        ({"catchUp": "never"}, "catchUp must be one of"),
        ({"name": "a b"}, "schedule name"),
        ({"definition": {"steps": []}}, "'steps' is empty"),
        ({"definition": None}, "a workflow is a JSON object"),
    ):
        with pytest.raises(ConfigError, match=told):
            await add(a, **wrong)
    for command in ("schedule-show", "schedule-pause", "schedule-resume", "schedule-remove", "schedule-next"):
        with pytest.raises(NotFoundError, match="no schedule 'none'"):
            await a.admin(command, name="none")
    assert await a.rows("schedules") == []
    assert (
        "an agent 'missing' yet" in (await add(a, definition={"steps": [{"id": "x", "agent": "missing"}]}))["message"]
    )
    assert len((await a.admin("schedule-next", name="s", count=3))["slots"]) == 3


async def test_a_change_on_one_side_of_a_cut_wins_and_a_slot_of_both_versions_shows_as_two_tasks(world, autojump_clock):
    a, b = (world.host(name) for name in "ab")
    await world.up()
    await add(a)
    await world.until(world.agree)
    world.network.cut("a", "b")
    await trio.sleep(20)
    changed = {"steps": [{"id": "only", "agent": "echo", "input": "other"}]}
    await add(b, definition=changed, replace=True)
    await trio.sleep(60)
    world.network.heal()
    await trio.sleep(70)
    await world.until(world.agree)

    of_both, later = Counter(await slots_of(a)).items()
    assert (of_both[1], later[1]) == (2, 1)
    (conflict,) = (await a.admin("quarantine-list"))["keyConflicts"]
    assert conflict["idempotencyKey"] == f"schedule s {of_both[0]}"
    for host in (a, b):
        assert (await host.admin("schedule-show", name="s"))["definition"] == changed
