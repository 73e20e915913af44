"""Replay, dead letters and exports as a client of a node sees them."""

from __future__ import annotations

import pytest
import trio

from mesh.errors import ConfigError, ConflictError, NotFoundError, StoreError
from node.admin import export_commands, recovery_commands
from node.env import Outcome
from tests.node.simulated_env import simulated_world

BIG = b"\xff" * 100_000


@pytest.fixture
async def world(tmp_path):
    async with simulated_world(tmp_path) as world:
        yield world


async def reject(job):
    return Outcome(kind="rejected", error=f"no use: {job.payload.decode()}")


async def flaky(job):
    """Rejects its first generation, and succeeds after a replay."""
    if job.fence.startswith("00000000"):
        return Outcome(kind="rejected", error="not yet")
    return Outcome(kind="success", result=BIG)


async def start(world, **settings):
    host = world.host("a", agents={"reject": reject, "flaky": flaky}, max_attempts=1, **settings)
    await world.up()
    return host


async def dead_task(a, agent="fail", **args) -> str:
    task_id = await a.submit(agent, **args)
    assert (await a.wait(task_id))["status"] == "DEAD_LETTER"
    return task_id


async def test_a_replay_says_what_runs_again_and_what_does_not(world, autojump_clock):
    a = await start(world)
    task_id = await a.workflow(
        {"id": "x", "agent": "echo"},
        {"id": "y", "agent": "flaky", "dependsOn": ["x"]},
        {"id": "z", "agent": "echo", "dependsOn": ["y"]},
    )
    await a.wait(task_id)
    answer = await a.admin("replay", taskId=task_id)
    assert (answer["replayed"], answer["steps"], answer["generation"]) == (True, ["y"], 1)
    assert answer["notReplayed"] == [
        {"why": "it succeeded: its result is kept", "steps": ["x"]},
        {"why": "it has not begun: it runs when what it depends on is done", "steps": ["z"]},
    ]
    assert (await a.wait(task_id))["status"] == "SUCCESS"
    again = await a.admin("replay", taskId=task_id, fromStep="y")
    assert again["steps"] == ["y", "z"]
    with pytest.raises(ConfigError, match="give either step"):
        await a.admin("replay", taskId=task_id, step="x", fromStep="y")
    assert (await a.wait(task_id))["status"] == "SUCCESS"
    with pytest.raises(ConflictError, match="no dead-letter or cancelled step"):
        await a.admin("replay", taskId=task_id)


async def test_a_batch_replays_what_matches_and_tells_of_each_task(world, autojump_clock):
    a = await start(world)
    flaky_tasks = [await dead_task(a, "flaky", input=str(number)) for number in range(3)]
    other = await dead_task(a, "fail")
    mixed = await a.workflow({"id": "f", "agent": "flaky"}, {"id": "r", "agent": "reject"})
    await a.wait(mixed)

    part = await a.admin("replay-batch", agent="flaky", limit=2)
    assert (part["total"], part["replayed"], part["failed"], part["more"]) == (2, 2, 0, True)
    assert [detail["taskId"] for detail in part["details"]] == [mixed, flaky_tasks[2]]  # the latest ends first
    assert part["details"][0]["steps"] == ["f"]  # not the one of another agent
    rest = await a.admin("replay-batch", cause="rejected", agent="flaky")
    assert {detail["taskId"] for detail in rest["details"]} == set(flaky_tasks[:2])
    assert not rest["more"]
    for task_id in flaky_tasks:
        assert (await a.wait(task_id))["status"] == "SUCCESS"
    assert (await a.wait(mixed))["status"] == "DEAD_LETTER"
    assert (await a.admin("task", taskId=other))["status"] == "DEAD_LETTER"
    all_of_them = await a.admin("replay-batch")
    assert {detail["taskId"] for detail in all_of_them["details"]} == {mixed, other}
    assert all_of_them["status"] == "DEAD_LETTER"


async def test_a_batch_takes_cancelled_tasks_when_asked_and_nothing_that_runs(world, autojump_clock):
    a = await start(world)
    cancelled = await a.submit("sleep", input="1000")
    await a.admin("cancel", taskId=cancelled)
    running = await a.workflow({"id": "s", "agent": "sleep", "input": "1000"}, {"id": "f", "agent": "fail"})

    async def failed():
        return await a.status(running, "f") == "DEAD_LETTER"

    await world.until(failed)

    assert (await a.admin("replay-batch"))["details"] == []
    batch = await a.admin("replay-batch", status="CANCELLED")
    assert [detail["taskId"] for detail in batch["details"]] == [cancelled]
    with pytest.raises(ConfigError, match="only dead letters have a cause"):
        await a.admin("replay-batch", status="CANCELLED", cause="timeout")
    with pytest.raises(ConfigError, match="status must be one of DEAD_LETTER, CANCELLED"):
        await a.admin("replay-batch", status="RUNNING")


async def test_a_batch_whose_commit_fails_says_which_tasks_it_did_not_replay(world, autojump_clock, monkeypatch):
    monkeypatch.setattr(recovery_commands, "COMMIT_TASKS_MAX", 1)
    a = await start(world)
    tasks = [await dead_task(a, "fail", input=str(number)) for number in range(3)]
    write, calls = a.node.store.write, []

    async def write_once(fn, **options):
        calls.append(fn)
        if len(calls) > 1:
            raise StoreError("the disk is full")
        return await write(fn, **options)

    a.node.store.write = write_once
    answer = await a.admin("replay-batch")
    a.node.store.write = write
    assert (answer["total"], answer["replayed"], answer["failed"]) == (3, 1, 2)
    assert [detail["message"] for detail in answer["details"][1:]] == [
        "not stored: the disk is full",
        "not tried: the store fails",
    ]
    # One that was purged meanwhile fails alone.
    refused = await a.node.store.write(
        lambda tx: recovery_commands._replay_page(
            tx, namespace="default", page=[("tsk_gone", ["x"]), (tasks[0], ["fail"])], me="a"
        )
    )
    assert [detail["replayed"] for detail in refused] == [False, True]


async def test_dead_letters_are_listed_by_cause_and_page_by_page(world, autojump_clock):
    a = await start(world, agent_timeout_ms=200)
    tasks = [
        await dead_task(a, "reject", input="x"),
        await dead_task(a, "fail"),
        await dead_task(a, "sleep", input="100"),
    ]
    answer = await a.admin("dead")
    assert [row["taskId"] for row in answer["dead"]] == tasks[::-1]
    assert answer["byCause"] == {"timeout": 1, "attempts-exhausted": 1, "rejected": 1}
    assert answer["next"] is None
    assert (answer["dead"][2]["lastError"], answer["dead"][2]["attempts"]) == ("no use: x", 1)
    assert [row["cause"] for row in (await a.admin("dead", cause="timeout"))["dead"]] == ["timeout"]

    seen, before = [], None
    while True:
        page = await a.admin("dead", limit=1, withInput=True, **({} if before is None else {"before": before}))
        seen += [(row["taskId"], row["input"]) for row in page["dead"]]
        before = page["next"]
        if before is None:
            break
    assert seen == [(tasks[2], "100"), (tasks[1], ""), (tasks[0], "x")]
    with pytest.raises(ConfigError, match="before must be"):
        await a.admin("dead", before="yesterday")
    with pytest.raises(ConfigError, match="cause must be one of"):
        await a.admin("dead", cause="bad luck")


async def test_an_export_has_small_payloads_and_says_where_large_ones_are(world, autojump_clock, monkeypatch):
    monkeypatch.setattr(export_commands, "PAGE_STEPS_MAX", 1)
    monkeypatch.setattr(export_commands, "PAGE_EVENTS_MAX", 1)
    a = await start(world)
    task_id = await a.workflow(
        {"id": "x", "agent": "echo", "input": "small"}, {"id": "y", "agent": "flaky", "dependsOn": ["x"]}
    )
    await a.wait(task_id)
    await a.admin("replay", taskId=task_id)
    await a.wait(task_id)

    first = await a.admin("task-export", taskId=task_id)
    second = await a.admin("task-export", taskId=task_id, offset=first["next"])
    (x,), (y,) = first["items"], second["items"]
    assert (x["input"], x["result"], second["next"]) == ("small", "small", None)
    assert y["resultBytes"] == len(BIG)
    assert "result" not in y
    assert (await a.admin("step-payload", stepId=y["stepId"], column="result"))["content"] == BIG
    assert first["task"]["status"] == "SUCCESS"

    events = await a.admin("task-export", taskId=task_id, part="events")
    later = await a.admin("task-export", taskId=task_id, part="events", offset=events["next"])
    assert [each["items"][0]["action"] for each in (events, later)] == ["failed", "replayed"]
    for command, args in (("task-export", {"taskId": "tsk_x"}), ("step-payload", {"stepId": "stp_x"})):
        with pytest.raises(NotFoundError):
            await a.admin(command, **args)


async def test_a_lease_report_counts_what_happened_to_leases(world, autojump_clock):
    a = await start(world)
    task_id = await dead_task(a)
    for _ in range(2):
        await a.admin("replay", taskId=task_id)
        await a.wait(task_id)
    report = await a.admin("lease-report", hours=1)
    assert (report["rows"], report["window_hours"], report["more"]) == (2, 1, False)
    assert report["by_event_type"] == {"replayed": 2}
    assert report["top_workers"] == [{"nodeId": "a", "events": 2}]
    assert report["top_steps"][0]["events"] == 2
    assert [event["action"] for event in report["sample"]] == ["replayed", "replayed"]
    short = await a.admin("lease-report", limit=1)
    assert (short["rows"], short["more"]) == (1, True)
    await trio.sleep(2 * 3600)
    assert (await a.admin("lease-report", hours=1))["rows"] == 0


async def test_stats_count_dead_letters_by_cause_and_how_long_work_waits(world, autojump_clock):
    a = await start(world, slots=1)
    await dead_task(a)
    await trio.sleep(3601)
    await dead_task(a, "reject", input="x")
    await dead_task(a, "reject", input="y")
    await a.submit("sleep", input="1000", priority="high")
    await a.submit("echo", input="waits")
    await trio.sleep(50)
    stats = await a.admin("stats")
    assert stats["deadLetters"] == {"total": 3, "classed": 3, "byCause": {"rejected": 2, "attempts-exhausted": 1}}
    assert (stats["deadLetterGrowth1h"], stats["leaseConflict1h"], stats["workerPaused"]) == (2, 0, None)
    assert 49_000 <= stats["queueLagMs"] <= 52_000


async def test_maintenance_tells_what_it_took_and_pruned(world, autojump_clock):
    a = await start(world)
    answer = await a.admin("maintenance")
    assert (answer["deadOwnerReclaimed"], answer["reclaimed"], answer["deadNodesPruned"]) == (0, 0, 0)
    assert answer["verified"] == []
