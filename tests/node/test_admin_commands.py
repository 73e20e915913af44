"""The admin commands of one node, asked through the bytes that a client sends: fields, limits, clear refusals."""

from __future__ import annotations

import msgspec
import pytest
import trio

from mesh.errors import ConfigError, ConflictError, LimitError, NotFoundError, StoreError, UnavailableError
from mesh.ids import Origin
from node.admin.arguments import Arguments
from node.env import Outcome
from tests.node.simulated_env import OPERATOR, simulated_world


@pytest.fixture
async def world(tmp_path):
    async with simulated_world(tmp_path) as world:
        yield world


async def start(world, **settings):
    host = world.host("a", **settings)
    await world.up()
    return host


async def test_submit_answers_with_the_task_and_dedups_by_key(world, autojump_clock):
    a = await start(world)
    first = await a.admin("submit", agent="echo", input="x", idempotencyKey="k")
    assert first == {
        "taskId": first["taskId"],
        "deduplicated": False,
        "idempotencyKey": "k",
        "traceId": first["traceId"],
        "replicated": 0,
        "replicasWanted": 0,
        "message": "accepted, durable at this node",
    }
    again = await a.admin("submit", agent="echo", input="x", idempotencyKey="k")
    assert (again["taskId"], again["traceId"], again["deduplicated"]) == (first["taskId"], first["traceId"], True)
    with pytest.raises(ConflictError, match=first["taskId"]):
        await a.admin("submit", agent="echo", input="y", idempotencyKey="k")
    assert await a.submit(input="x") != await a.submit(input="x")  # a key of its own each time


async def test_task_shows_the_contracts_fields(world, autojump_clock):
    a = await start(world)
    task_id = await a.submit(input="hello", priority="high")
    await a.wait(task_id)
    view = await a.admin("task", taskId=task_id)

    contract = (
        "taskId",
        "status",
        "idempotencyKey",
        "traceId",
        "resultPayload",
        "lastError",
        "createdAtMs",
        "updatedAtMs",
    )
    assert view.keys() >= set(contract)
    assert (view["status"], view["resultPayload"], view["lastError"]) == ("SUCCESS", "hello", None)
    assert view["createdAtMs"] <= view["updatedAtMs"]
    (step,) = view["steps"]
    assert (step["agentId"], step["owner"], step["priority"], step["attempt"]) == ("echo", "a", "high", 1)
    assert (step["leaseEpoch"], step["generation"], step["lostLeases"], step["resultBytes"]) == (1, 0, 0, 5)
    assert a.jobs[0].fence == step["fence"]
    assert await a.admin("result", taskId=task_id) == {
        "taskId": task_id,
        "status": "SUCCESS",
        "resultPayload": "hello",
    }


async def test_a_result_that_is_no_text_comes_in_base64(world, autojump_clock):
    a = await start(world)
    task_id = await a.submit(input=b"\xff\x00")
    await a.wait(task_id)
    assert (await a.admin("result", taskId=task_id))["resultPayloadBase64"] == "/wA="


async def test_workflow_shows_steps_and_edges(world, autojump_clock):
    a = await start(world)
    task_id = await a.workflow(
        {"id": "x", "agent": "fail", "maxAttempts": 1}, {"id": "y", "agent": "echo", "dependsOn": ["x"]}
    )
    await a.wait(task_id)
    view = await a.admin("workflow", taskId=task_id)
    assert view["edges"] == ["x -> y"]
    assert view["task"]["status"] == "DEAD_LETTER"
    assert [(step["name"], step["status"], step["blocked"]) for step in view["steps"]] == [
        ("x", "DEAD_LETTER", False),
        ("y", "PENDING", True),
    ]
    assert (await a.admin("result", taskId=task_id))["lastError"] == "told to fail"


async def test_a_task_of_which_steps_are_missing_here_is_not_told_as_ended(world, autojump_clock):
    a = await start(world)
    whole = await a.submit(input="x")
    await a.wait(whole)
    origin = Origin("b", 1)

    def bring_a_part(tx):
        task, (step,) = tx.get("tasks", "default", whole), tx.select("steps")
        for row, key, seq, values in (
            (task, "tsk_part", 1, {"step_count": 2}),
            (step, "stp_part", 2, {"task_id": "tsk_part"}),
        ):
            changed = {"key": key, "origin": origin, "node": "b", "seq": seq, "values": row.values | values}
            assert tx.merge(msgspec.structs.replace(row, **changed)) == "applied"

    await a.node.store.write(bring_a_part)
    assert (await a.admin("task", taskId="tsk_part"))["status"] == "PENDING"
    assert (await a.admin("wait", taskId="tsk_part", timeoutMs=100))["timedOut"]
    assert "1 more have not come to this node" in (await a.admin("explain", taskId="tsk_part"))["summary"]
    cancelled = await a.admin("cancel", taskId="tsk_part")
    assert cancelled["state"] == "requested"
    assert (await a.admin("task", taskId="tsk_part"))["cancelRequested"]
    purged = await a.admin("purge", doneRetentionMs=0, deadRetentionMs=0)
    assert purged["doneTasksPurged"] == 2  # and so it does not stay for ever


async def test_tasks_are_listed_newest_first_with_filter_limit_and_offset(world, autojump_clock):
    a = await start(world, max_attempts=1)
    ids = []
    for number in range(6):
        ids.append(await a.submit("fail" if number % 2 else "echo", input=str(number)))
        await a.wait(ids[-1])
    newest = ids[::-1]

    async def listed(**args):
        return [task["taskId"] for task in await a.admin("tasks", **args)]

    assert await listed() == newest
    assert await listed(limit=2, offset=1) == newest[1:3]
    assert await listed(status="dead_letter") == newest[::2]
    assert await listed(status="SUCCESS", limit=1, offset=1) == [newest[3]]
    assert await listed(status="RUNNING") == []
    assert await a.admin("tasks", namespace="other") == []


async def test_wait_tells_when_its_time_is_up(world, autojump_clock):
    a = await start(world)
    task_id = await a.submit("sleep", input="10")
    began = trio.current_time()
    view = await a.admin("wait", taskId=task_id, timeoutMs=500)
    assert (view["timedOut"], view["status"]) == (True, "RUNNING")
    assert trio.current_time() - began == pytest.approx(0.5, abs=0.1)
    assert (await a.admin("wait", taskId=task_id))["timedOut"] is False


async def test_watch_answers_once_the_task_is_another_than_the_one_seen(world, autojump_clock):
    a = await start(world)
    task_id = await a.submit("sleep", input="10")

    first = await a.admin("watch", taskId=task_id)
    began = trio.current_time()
    running = first
    while running["status"] != "RUNNING":
        running = await a.admin("watch", taskId=task_id, seen=running["version"])
    idle = await a.admin("watch", taskId=task_id, seen=running["version"], timeoutMs=500)
    ended = await a.admin("watch", taskId=task_id, seen=running["version"])

    assert (idle["version"], idle["ended"]) == (running["version"], False)
    assert (ended["status"], ended["ended"], ended["resultPayload"]) == ("SUCCESS", True, "10")
    assert trio.current_time() - began == pytest.approx(10, abs=0.2)


async def test_cancel_answers_what_came_of_it(world, autojump_clock):
    a = await start(world)
    running = await a.submit("sleep", input="50")
    await world.until(lambda: a.jobs)
    answer = await a.admin("cancel", taskId=running)
    assert answer == {
        "taskId": running,
        "cancelled": True,
        "state": "cancelled",
        "mode": "hard",
        "message": "cancelled",
    }
    assert (await a.admin("cancel", taskId=running))["cancelled"] is True
    done = await a.submit()
    await a.wait(done)
    late = await a.admin("cancel", taskId=done)
    assert (late["cancelled"], late["state"]) == (False, "too_late")
    assert "already ended as SUCCESS" in late["message"]


async def test_explain_takes_a_task_or_one_of_its_steps(world, autojump_clock):
    a = await start(world)
    task_id = await a.workflow({"id": "x", "agent": "echo"}, {"id": "y", "agent": "echo"})
    await a.wait(task_id)
    told = await a.admin("explain", taskId=task_id)
    assert (told["summary"], told["seenFrom"], told["events"]) == ("2 step(s): 2 SUCCESS.", "a", [])
    assert [step["name"] for step in told["steps"]] == ["x", "y"]
    one = await a.admin("explain", taskId=told["steps"][1]["stepId"])
    assert (one["taskId"], [step["name"] for step in one["steps"]]) == (task_id, ["y"])


async def test_views_of_the_mesh(world, autojump_clock):
    a, b = world.host("a", labels={"site": "north"}), world.host("b")
    await world.up()
    members = await a.admin("members")
    assert [(m["nodeId"], m["status"], m["effectiveStatus"], m["isThisNode"]) for m in members] == [
        ("a", "ALIVE", "ALIVE", True),
        ("b", "ALIVE", "ALIVE", False),
    ]
    assert members[0]["labels"] == {"site": "north"}
    assert members[1]["agents"] == ["echo", "fail", "join", "sleep"]
    assert members[1]["rpcAddress"] == "b.test:18443"
    agents = await a.admin("agents")
    assert agents[0] == {
        "agentId": "echo",
        "kind": "builtin",
        "here": True,
        "nodes": ["a", "b"],
        "availableOn": ["a", "b"],
    }

    await b.submit("sleep", input="30")
    await world.until(world.agree)
    await world.until(lambda: b.jobs or a.jobs)
    await b.crash()
    await world.until(lambda: a.sees("b") == "DEAD")
    summary = await a.admin("mesh-summary")
    assert (summary["totalNodes"], summary["aliveNodes"], summary["deadNodes"]) == (2, 1, 1)
    assert summary["seenFrom"] == "a"
    (_, gone) = await a.admin("members")
    assert gone["accusers"]
    recovered = await a.admin("mesh-recover")
    assert recovered["deadNodes"] == ["b"]


async def test_health_names_each_problem(world, autojump_clock):
    a = await start(world, min_free_disk_bytes=1000)
    good = await a.admin("health")
    assert (good["ok"], good["dbOk"], good["diskPressure"], good["gateOpen"]) == (True, True, False, True)
    a.disk.free = 999
    a.node.identity_conflict = "another process"
    bad = await a.admin("health")
    assert bad["ok"] is False
    assert bad["problems"] == ["identity conflict: another process", "less disk is free than minFreeDiskBytes"]


async def test_health_answers_where_the_database_cannot_be_read(world, autojump_clock, monkeypatch):
    a = await start(world, disk_budget_bytes=1)

    async def broken(_fn):
        raise StoreError("the database cannot be read: broken on purpose")

    monkeypatch.setattr(a.node.store, "read", broken)
    health = await a.admin("health")
    assert (health["ok"], health["databaseBytes"]) == (False, None)
    assert health["problems"] == ["the database cannot be read: broken on purpose"]


async def test_stats_and_version_and_cluster_state(world, autojump_clock):
    a = await start(world)
    await a.wait(await a.submit())
    stats = await a.admin("stats")
    assert stats["steps"] == {"SUCCESS": 1}
    assert (stats["queue"], stats["attempts"], stats["startedTotal"]) == ({}, {"success": 1}, 1)
    assert (stats["slots"], stats["idleSlots"], stats["clusterEpoch"]) == (4, 4, 1)
    version = await a.admin("version")
    assert (version["version"], version["nodeId"], version["profile"]) == ("1.0-test", "a", "local")
    assert (await a.admin("cluster-state"))["epoch"] == 1
    bumped = await a.admin("cluster-epoch-bump")
    assert (bumped["previousEpoch"], bumped["currentEpoch"], bumped["reason"]) == (1, 2, "manual")
    state = await a.admin("cluster-state")
    assert (state["epoch"], state["rawValue"], state["reason"], state["actor"]) == (2, "2", "manual", OPERATOR.name)


async def test_logs_can_be_limited_to_a_step_and_a_number(world, autojump_clock):
    async def chatty(job):
        return Outcome(kind="success", log=f"log of {job.step_name}")

    a = await start(world, agents={"chatty": chatty})
    task_id = await a.workflow(*({"id": name, "agent": "chatty"} for name in "xyz"))
    await a.wait(task_id)
    assert len(await a.admin("logs", taskId=task_id)) == 3
    (line,) = await a.admin("logs", taskId=task_id, step="y")
    assert (line["step"], line["details"]) == ("y", {"log": "log of y"})
    assert len(await a.admin("logs", taskId=task_id, limit=2)) == 2


async def test_ownership_events_are_newest_first_and_can_be_limited(world, autojump_clock):
    a = await start(world, max_attempts=1)
    task_id = await a.submit("fail")
    await a.wait(task_id)
    for _ in range(3):
        await a.admin("replay", taskId=task_id)
        await a.wait(task_id)
    events = await a.admin("ownership-events")
    assert [(event["action"], event["generation"]) for event in events] == [
        ("replayed", 2),
        ("replayed", 1),
        ("replayed", 0),
    ]
    assert len(await a.admin("ownership-events", limit=1)) == 1
    assert await a.admin("ownership-events", taskId="tsk_other") == []
    assert await a.admin("lease-conflicts") == []


# --- refusals ---


@pytest.mark.parametrize(
    ("command", "args", "message"),
    [
        ("submit", {}, "submit: agent must be a text"),
        ("submit", {"agent": "ehco"}, "no node of this mesh has an agent 'ehco'; known agents: echo, fail"),
        ("submit", {"agent": "echo", "input": 5}, "submit: input must be bytes or text"),
        ("submit", {"agent": "echo", "priority": "urgent"}, "priority 'urgent' is not one of"),
        ("submit", {"agent": "echo", "timeoutMs": "5s"}, "timeoutMs must be a whole number"),
        ("submit", {"agent": "echo", "maxAttempts": 1001}, "maxAttempts must be a whole number from 0 to 1000"),
        ("submit", {"agent": "echo", "node": "not a node"}, "not a node"),
        ("submit", {"agent": "echo", "labels": ["x"]}, "'labels' must be an object"),
        ("submit", {"agent": "echo", "replicas": -1}, "replicas must be a whole number"),
        ("submit", {"agent": "echo", "idempotencyKey": "k" * 257}, "idempotencyKey must be a text of 1 to 256"),
        ("submit-workflow", {}, "a workflow is a JSON object"),
        ("tasks", {"status": "DONE"}, "status must be one of PENDING, RUNNING"),
        ("tasks", {"limit": 0}, "limit must be a whole number from 1 to 1000"),
        ("tasks", {"limit": 1001}, "limit must be a whole number from 1 to 1000"),
        ("task", {}, "taskId must be a text"),
        ("wait", {"taskId": "t", "timeoutMs": -1}, "timeoutMs must be a whole number"),
        ("cancel", {"taskId": "t", "mode": "firm"}, "mode must be one of hard, soft"),
        ("ownership-events", {"limit": 5001}, "limit must be a whole number from 1 to 5000"),
        ("ownership-events", {"sinceHours": 0}, "sinceHours must be a whole number"),
        ("mesh-recover", {"limit": True}, "limit must be a whole number"),
        ("frobnicate", {}, "unknown command 'frobnicate': this node knows agents, bootstrap-from, cancel"),
    ],
)
async def test_a_bad_argument_is_one_clear_refusal_and_nothing_happens(world, autojump_clock, command, args, message):
    a = await start(world)
    vector = a.node.store.vector.copy()
    with pytest.raises(ConfigError) as caught:
        await a.admin(command, **args)
    assert message in str(caught.value)
    assert a.node.store.vector == vector


async def test_a_request_that_cannot_be_read_is_refused(world, autojump_clock):
    a = await start(world)
    for body in (b"", b"\xc1", msgspec.msgpack.encode({"command": 1}), msgspec.msgpack.encode({"cmd": "task"})):
        with pytest.raises(ConfigError, match="not an admin request"):
            await a.service.handle(OPERATOR, body, None)
    with pytest.raises(ConfigError, match="namespace 'No' is not usable"):
        await a.admin("tasks", namespace="No")


@pytest.mark.parametrize(
    "command", ["task", "workflow", "result", "wait", "watch", "cancel", "replay", "explain", "logs"]
)
async def test_a_task_that_is_not_known_here_is_not_found(world, autojump_clock, command):
    a = await start(world)
    with pytest.raises(NotFoundError, match="task tsk_x is not known here"):
        await a.admin(command, taskId="tsk_x")


async def test_a_submit_that_no_member_can_run_now_says_so(world, autojump_clock):
    a = await start(world)

    pinned = await a.admin("submit", agent="echo", input="x", node="nobody")
    labelled = await a.admin("submit", agent="echo", input="x", labels={"site": "moon"})

    assert "no member can run step 'echo' now" in pinned["message"]
    assert "no member can run step 'echo' now" in labelled["message"]


async def test_limits_refuse_a_submit_before_anything_is_stored(world, autojump_clock):
    a = await start(world, payload_max_bytes=100, submit_max_bytes=150, steps_per_task_max=2)
    await a.submit(input="x" * 100)
    with pytest.raises(LimitError, match="payloadMaxBytes"):
        await a.submit(input="x" * 101)
    with pytest.raises(LimitError, match="submitMaxBytes"):
        await a.workflow(*({"id": str(n), "agent": "echo", "input": "x" * 76} for n in range(2)))
    with pytest.raises(LimitError, match="stepsPerTaskMax"):
        await a.workflow(*({"id": str(n), "agent": "echo"} for n in range(3)))
    assert len(await a.rows("tasks")) == 1


async def test_admission_refuses_with_the_way_out(world, autojump_clock):
    a = await start(world, submit_rate_limit_per_min=3, min_free_disk_bytes=1000)
    for _ in range(3):
        await a.submit()
    with pytest.raises(UnavailableError, match=r"submitRateLimitPerMin.*try again in") as refused:
        await a.submit()
    assert 0 < refused.value.retry_after_ms <= 60_001
    await trio.sleep(60)
    await a.submit()
    a.disk.free = 10
    with pytest.raises(UnavailableError, match=r"disk_pressure.*another peer") as refused:
        await a.submit()
    assert refused.value.retry_after_ms is None


async def test_a_queue_that_is_deep_enough_takes_no_more(world, autojump_clock):
    a = await start(world, slots=1, max_ingress_queue_depth=3)
    for number in range(4):
        await a.submit("sleep", input=f"{100 + number}")
        await trio.sleep(1.1)
    with pytest.raises(UnavailableError, match="queue_depth_limit: 3 steps wait here"):
        await a.submit("sleep", input="200")


def test_arguments_read_their_types():
    args = Arguments("x", "default", {"b": b"\x00", "t": "é", "n": 0, "none": None}, OPERATOR)
    assert args.payload("b") == b"\x00"
    assert args.payload("t") == "é".encode()
    assert args.payload("absent") == b""
    assert args.whole("n", 5, largest=1) == 0
    assert args.whole("none", 5, largest=1) == 5
    assert args.text("absent", "default") == "default"
    assert args.optional_text("none") is None
    assert args.one_of("absent", ("p", "q"), "q") == "q"


async def test_a_node_can_be_filled_by_a_peer_that_is_named(world, autojump_clock):
    a, b = world.host("a"), world.host("b")
    await world.up()
    task_id = await b.submit(input="x")
    await a.wait(task_id)
    before = a.node.store.origin
    assert (await a.admin("bootstrap-from", peer="b"))["from"] == "b"
    with pytest.raises(ConflictError, match="being filled already"):
        await a.admin("bootstrap-from", peer="b")
    await world.until(lambda: a.node.bootstrap.adopted_total)
    assert a.node.store.origin != before
    assert (await a.wait(task_id))["status"] == "SUCCESS"
    assert (await a.wait(await a.submit(input="y")))["status"] == "SUCCESS"
    await world.until(world.agree)
    assert (await a.admin("health"))["bootstrap"] is None
    with pytest.raises(NotFoundError, match="c is no peer that can be reached from here: ALIVE are b"):
        await a.admin("bootstrap-from", peer="c")
