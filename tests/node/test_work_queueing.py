"""Delays, expiry, holds and fair order: the rules, on stores without the moving parts."""

from __future__ import annotations

import collections

import msgspec
import pytest
import trio

from mesh.errors import ConfigError, RecordError
from mesh.ids import Origin
from node.env import Outcome
from node.work import row_rules, transitions, work_queue
from node.work.definition import DELAY_MS_MAX, Definition, Limits, parse_workflow
from node.work.history import Action
from node.work.holds import Scope, hold, is_node_held, read_holds, release
from node.work.priorities import AGED_AFTER_MS, AGED_EVERY, HIGH, LOW, PriorityWheel
from node.work.tables import MESH_NAMESPACE, Status
from node.work.work_queue import Queued, State, expired_entries, next_entry, next_expiry_ms, ripen, ripened_entry
from tests.node.work_desk import FAILED, SPACE, desks, step

NOW = 1 << 60
"""In milliseconds: after everything."""


@pytest.fixture
async def a(tmp_path):
    async with desks(tmp_path, "a") as (a,):
        yield a


async def physical_ms(desk):
    return await desk.write(lambda tx: tx.now_ms)


async def next_of(desk, now_ms, **more):
    def find(tx):
        ripen(tx, now_ms=now_ms)
        options = {"priorities": (0, 1, 2), "full_agents": (), "fresh_after": None} | more
        return next_entry(tx, now_ms=now_ms, **options)

    return await desk.write(find)


async def expire(desk, now_ms):
    def end(tx):
        found = expired_entries(tx, now_ms=now_ms, limit=100)
        return [transitions.expire(tx, entry, me=desk.me) for entry in found]

    return await desk.write(end)


# --- what was asked for ---


def one_step(**more):
    return parse_workflow({"steps": [{"id": "x", "agent": "echo", **more}]}, Limits())


def test_a_definition_that_asks_for_no_time_is_the_one_it_always_was():
    plain = Definition((step("x"),))
    assert plain.digest == one_step().digest == one_step(delayMs=0, expiresMs=0, notBeforeMs=0).digest
    assert plain.steps[0].canonical() == ["x", "echo", b"", 1, [], 0, 0, None, []]
    digests = {one_step(**more).digest for more in ({}, {"delayMs": 5}, {"expiresMs": 5}, {"notBeforeMs": 5})}
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"delayMs": -1}, "'delayMs' must be a whole number from 0"),
        ({"delayMs": True}, "'delayMs' must be a whole number"),
        ({"expiresMs": DELAY_MS_MAX + 1}, "'expiresMs' must be a whole number"),
        ({"delayMs": 5, "notBeforeMs": 5}, "not both"),
        ({"delayMs": 5, "expiresMs": 5}, "must be longer than delayMs"),
        ({"delay": 5}, "did you mean 'delayMs'"),
    ],
)
def test_times_that_make_no_sense_are_refused(more, says):
    with pytest.raises(ConfigError, match=says):
        one_step(**more)


async def test_a_date_becomes_a_delay_and_the_same_submit_later_is_the_same_task(a):
    now = await physical_ms(a)
    definition = one_step(notBeforeMs=now + 60_000)
    first = await a.submit(definition)
    row = await a.step(first.task_id, "x")
    assert 50_000 < row.integer("delay_ms") <= 60_000
    assert (await a.submit(definition)).deduplicated
    past = await a.submit(one_step(notBeforeMs=1), "past")
    assert (await a.step(past.task_id, "x")).integer("delay_ms") == 0


async def test_a_date_beyond_reason_is_refused_and_nothing_is_written(a):
    now = await physical_ms(a)
    for more, says in (
        ({"notBeforeMs": now + 2 * DELAY_MS_MAX}, "366 days"),
        ({"notBeforeMs": now + 60_000, "expiresMs": 1_000}, "never start"),
    ):
        with pytest.raises(ConfigError, match=says):
            await a.submit(one_step(**more))
    assert await a.store.read(lambda reader: reader.select("tasks")) == []


# --- delay ---


async def test_a_delayed_step_is_claimable_when_its_delay_is_over_and_not_before(a):
    row = await a.step(await a.one(delay_ms=30_000))
    due = (row.integer("created_hlc") >> 16) + 30_000
    assert (await a.queued())[row.key].runnable == State.NOT_DUE
    assert await next_of(a, due - 1) is None
    found = await next_of(a, due)
    assert found is not None
    assert found[0].step_id == row.key


async def test_a_hand_over_does_not_start_the_delay_again(tmp_path):
    async with desks(tmp_path, "a", "b") as (a, b):
        row = await a.step(await a.one(delay_ms=30_000))
        await a.write(lambda tx: transitions.hand_over(tx, [Queued(SPACE, row.key, "echo")], me="a", to="b", why=""))
        before = (row.integer("created_hlc") >> 16) + 30_000
        await b.pull(a)
        assert (await b.queued())[row.key].due_ms <= before
        moved = await b.step(row.text("task_id"))
        assert moved.hlc > row.hlc


@pytest.mark.parametrize("how", ["hand-over", "take-over"])
async def test_a_new_owner_waits_for_what_is_left_of_a_snooze(tmp_path, autojump_clock, how):
    async with desks(tmp_path, "a", "b") as (a, b):
        task_id = await a.one()
        snoozed = Outcome(kind="snoozed", snooze_ms=60_000, error="later")
        row = (await a.run(await a.step(task_id), snoozed)).step
        due_ms = (await a.queued())[row.key].due_ms
        await trio.sleep(40)
        if how == "hand-over":
            entry = Queued(SPACE, row.key, "echo")
            await a.write(lambda tx: transitions.hand_over(tx, [entry], me="a", to="b", why=""))
            await b.pull(a)
        else:
            await b.pull(a)
            await b.take_over(await b.step(task_id))
        assert abs((await b.queued())[row.key].due_ms - due_ms) < 2_000


async def test_what_cannot_be_claimed_does_not_hide_what_became_due_after_it(a, monkeypatch):
    monkeypatch.setattr(work_queue, "RIPEN_MAX", 2)
    for number in range(5):
        await a.one(f"full {number}", agent="other", delay_ms=1_000)
    free = await a.step(await a.one("free", delay_ms=2_000))

    def claim(tx):
        options = {"priorities": (0, 1, 2), "full_agents": ("other",), "fresh_after": None}
        return ripened_entry(tx, now_ms=NOW, **options)

    found = await a.write(claim)
    assert found is not None
    assert found[0].step_id == free.key


async def test_an_entry_whose_step_is_gone_does_not_expire_again_and_again(a):
    task_id = await a.one(expires_ms=5)
    key = (await a.step(task_id)).key
    await a.write(lambda tx: tx.execute("DELETE FROM steps WHERE key = ?", (key,)))
    await expire(a, NOW)
    assert await a.queued() == {}


async def test_a_delay_is_counted_from_now_when_its_stamp_is_still_to_come_here(a):
    row = await a.step(await a.one(delay_ms=30_000))
    later = row.hlc + (1 << 40)
    values = row.values | {"created_hlc": later}
    ahead = msgspec.structs.replace(row, hlc=later, node="c", origin=Origin("c", 1), values=values)
    await a.write(lambda tx: tx.merge(ahead))
    assert (await a.queued())[row.key].due_ms <= await physical_ms(a) + 30_000


async def test_what_was_delayed_stands_behind_what_came_before_its_time(a):
    delayed = await a.step(await a.one("1", delay_ms=1_000))
    plain = await a.step(await a.one("2"))
    found = await next_of(a, NOW)
    assert found is not None
    assert found[0].step_id == plain.key
    await a.run(plain)
    found = await next_of(a, NOW)
    assert found is not None
    assert found[0].step_id == delayed.key


# --- expiry ---


async def test_what_has_not_begun_in_time_is_never_started_and_ends_as_cancelled(a):
    task_id = await a.one(expires_ms=5_000)
    row = await a.step(task_id)
    expiry = (row.integer("created_hlc") >> 16) + 5_000
    assert await a.store.read(lambda reader: next_expiry_ms(reader, 0)) == expiry
    assert await next_of(a, expiry - 1) is not None
    assert await next_of(a, expiry) is None
    assert await expire(a, expiry - 1) == []
    assert [ended.key for ended in await expire(a, expiry)] == [row.key]
    ended = await a.step(task_id)
    assert (ended.text("status"), await a.status(task_id)) == ("CANCELLED", Status.CANCELLED)
    assert ended.text("last_error") == "expired: it did not begin within 5 s of its submit"
    assert await a.actions(task_id) == [Action.EXPIRED]
    assert await a.queued() == {}
    assert await expire(a, NOW) == []


async def test_a_retry_of_what_began_in_time_goes_on(a):
    task_id = await a.one(expires_ms=5_000)
    await a.run(await a.step(task_id), FAILED)
    assert (await a.queued())[(await a.step(task_id)).key].expires_ms == 0
    assert await expire(a, NOW) == []
    assert await next_of(a, NOW) is not None


async def test_a_run_that_was_given_back_has_begun_all_the_same(a):
    task_id = await a.one(expires_ms=5_000)
    claimed = await a.claim(await a.step(task_id))
    await a.write(lambda tx: transitions.requeue(tx, claimed.step, me="a", action=Action.RELEASED, why="test"))
    assert (await a.step(task_id)).integer("attempt") == 0
    assert await expire(a, NOW) == []


async def test_only_the_owner_ends_an_expired_step(tmp_path):
    async with desks(tmp_path, "a", "b") as (a, b):
        row = await a.step(await a.one(expires_ms=5_000))
        await b.pull(a)
        assert await b.write(lambda tx: transitions.expire(tx, Queued(SPACE, row.key, "echo"), me="b")) is None


async def test_a_replay_of_an_expired_step_runs_now(a):
    task_id = await a.one(delay_ms=1_000, expires_ms=5_000)
    await expire(a, NOW)
    await a.replay(task_id)
    row = await a.step(task_id)
    assert (row.integer("delay_ms"), row.integer("expires_ms")) == (0, 0)
    assert (await a.queued())[row.key].runnable == State.READY


# --- holds ---


async def pause(desk, *scopes):
    await desk.write(lambda tx: [hold(tx, Scope.parse(scope), reason="why", actor="me") for scope in scopes])


async def resume(desk, *scopes):
    return await desk.write(lambda tx: release(tx, [Scope.parse(scope) for scope in scopes]))


async def test_a_paused_agent_is_out_of_the_way_until_it_is_resumed(a):
    early = await a.step(await a.one("1"))
    other = await a.step(await a.one("2", agent="other"))
    await pause(a, "agent echo")
    late = await a.step(await a.one("3"))
    delayed = await a.step(await a.one("4", delay_ms=60_000))
    states = {key: entry.runnable for key, entry in (await a.queued()).items()}
    assert states == {
        early.key: State.HELD,
        other.key: State.READY,
        late.key: State.HELD,
        delayed.key: State.HELD,
    }
    assert await a.write(a.queue.rebuild) == 4
    assert states == {key: entry.runnable for key, entry in (await a.queued()).items()}
    found = await next_of(a, NOW)
    assert found is not None
    assert found[0].step_id == other.key
    assert await resume(a, "agent echo", "mesh") == [Scope("agent", "echo")]
    states = {key: entry.runnable for key, entry in (await a.queued()).items()}
    assert (states[early.key], states[late.key], states[delayed.key]) == (State.READY, State.READY, State.NOT_DUE)


async def test_the_later_word_wins_wherever_it_was_said(tmp_path):
    async with desks(tmp_path, "a", "b") as (a, b):
        await pause(a, "mesh", "node b")
        await b.pull(a)
        assert await b.store.read(lambda reader: is_node_held(reader, "b"))
        assert await a.store.read(lambda reader: is_node_held(reader, "a"))
        await resume(b, "mesh")
        assert [each.scope for each in await b.store.read(read_holds)] == [Scope("node", "b")]
        await pause(b, "mesh")
        await resume(b, "mesh", "node b")
        await a.pull(b)
        assert await a.store.read(read_holds) == []
        assert await a.sums() == await b.sums()


async def test_the_same_hold_twice_writes_once(a):
    await pause(a, "mesh")
    (before,) = await a.store.read(lambda reader: reader.select("holds"))
    await pause(a, "mesh")
    assert await a.store.read(lambda reader: reader.select("holds")) == [before]


@pytest.mark.parametrize("key", ["", "mesh a", "node", "node ", "node a b", "agent", "agent a/b", "drain *", "x y"])
async def test_a_hold_that_nobody_could_have_written_is_refused(a, key):
    row = (await a.write(lambda tx: [hold(tx, Scope("mesh"), reason="", actor="x"), *tx.select("holds")]))[-1]
    rule = row_rules._on_hold
    rule(None, None, row)
    with pytest.raises((RecordError, ConfigError)):
        rule(None, None, msgspec.structs.replace(row, key=key))
    with pytest.raises(RecordError):
        rule(None, None, msgspec.structs.replace(row, namespace=SPACE))
    assert row.namespace == MESH_NAMESPACE


@pytest.mark.parametrize("column", ["delay_ms", "expires_ms"])
@pytest.mark.parametrize("value", [-1, DELAY_MS_MAX + 1])
async def test_times_that_nobody_could_have_asked_for_are_refused(a, column, value):
    row = await a.step(await a.one())
    with pytest.raises(RecordError, match=column):
        row_rules.check_step(msgspec.structs.replace(row, values=row.values | {column: value}))


# --- fair order ---


async def claims(desk, count, wheel, now_ms=NOW):
    """The next entries as a runtime would take them, each taken out of the queue."""

    def take(tx):
        found = next_entry(
            tx,
            priorities=wheel.order(),
            now_ms=now_ms,
            full_agents=(),
            fresh_after=None,
            served=wheel.served,
            aged_until_ms=wheel.aged_until_ms(now_ms),
        )
        if found is None:
            return None
        entry, priority = found
        wheel.claimed(priority, entry.namespace)
        tx.execute("DELETE FROM queue WHERE step_id = ?", (entry.step_id,))
        return entry.namespace, priority

    return [await desk.write(take) for _ in range(count)]


def fill(desk, rows):
    def insert(tx):
        for number, (namespace, priority, enqueued_ms) in enumerate(rows):
            tx.execute(
                "INSERT INTO queue (step_id, namespace, agent, priority, runnable, due_ms, enqueued_hlc, guarded, "
                "expires_ms) VALUES (?, ?, 'echo', ?, 1, 0, ?, 0, 0)",
                (f"s{number}", namespace, priority, enqueued_ms << 16),
            )

    return desk.write(insert)


async def test_namespaces_of_a_class_take_turns_however_long_their_backlogs(a):
    rows = [("big", 1, n) for n in range(50)] + [("mid", 1, 100 + n) for n in range(5)] + [("small", 1, 200)]
    await fill(a, rows)
    taken = [space for space, _ in await claims(a, 12, PriorityWheel(), now_ms=1_000)]
    assert taken == ["big", "mid", "small", "big", "mid", "big", "mid", "big", "mid", "big", "mid", "big"]


async def test_under_endless_high_load_what_is_low_begins_within_its_bound(a):
    now = 10 * AGED_AFTER_MS
    await fill(a, [("x", HIGH, now + n) for n in range(200)] + [("x", LOW, now)])
    wheel = PriorityWheel()
    young = [priority for _, priority in await claims(a, 12, wheel, now_ms=now)]
    assert young.count(LOW) == 1  # by the wheel
    await fill(a, [])
    await a.write(lambda tx: tx.execute("DELETE FROM queue"))
    await fill(a, [("x", HIGH, n) for n in range(200)] + [("x", LOW, now + n) for n in range(20)])
    aged = [
        priority for _, priority in await claims(a, 4 * AGED_EVERY, PriorityWheel(), now_ms=now + 2 * AGED_AFTER_MS)
    ]
    assert collections.Counter(aged)[LOW] >= 4
    assert all(LOW in aged[n : n + AGED_EVERY] for n in range(len(aged) - AGED_EVERY + 1))
    assert collections.Counter(aged)[HIGH] >= 8  # and it takes no more than its share
