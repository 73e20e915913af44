"""`Mesh.memory()`: what a user's test sees of keys, retries, dead letters, workflows, cancel and replay."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import pytest
import trio

from mesh.errors import ConfigError, ConflictError, LimitError, NotFoundError
from node.agents import api
from node.agents.api import Context, Fail, Retry, Snooze, agent
from node.client.mesh import Mesh
from node.client.outcomes import ResultTypeError, TaskCancelled, TaskFailed
from node.client.workflow import Workflow


@pytest.fixture(autouse=True)
def _fresh_registry(monkeypatch):
    monkeypatch.setattr(api, "registered", {})


def flaky(failures: int, **retry: int):
    """An agent that fails so often before it succeeds, and the attempts that it saw."""
    seen: list[int] = []

    @agent("flaky", retry=Retry(**retry))
    def handler(ctx: Context) -> int:
        seen.append(ctx.attempt)
        if len(seen) <= failures:
            raise OSError("no link")
        return ctx.attempt

    return handler, seen


# --- inputs and results ---


@dataclass
class Size:
    width: int
    height: int


def test_a_function_s_result_comes_back_as_its_annotation_says():
    @agent("double")
    def double(size: Size) -> Size:
        return Size(2 * size.width, 2 * size.height)

    assert Mesh.memory().submit(double, Size(1, 2)).result() == Size(2, 4)
    assert double(Size(1, 1)) == Size(2, 2)


def test_by_name_a_result_is_text_unless_it_is_none_and_a_type_decodes_it():
    @agent("raw")
    def raw(payload: bytes) -> bytes:
        return payload

    mesh = Mesh.memory()

    assert mesh.submit("raw", "grün").result() == "grün"
    assert mesh.submit("raw", b"\xff\x00").result() == b"\xff\x00"
    assert mesh.submit("raw", {"n": [1, None]}).result() == '{"n":[1,null]}'
    assert mesh.submit("raw", {"n": 1}).result(type=dict[str, int]) == {"n": 1}


def test_none_and_unions_with_text_come_back_as_they_were():
    @agent("maybe")
    def maybe(text: str) -> str | None:
        return text or None

    @agent("nothing")
    def nothing(text: str) -> None:
        return None

    mesh = Mesh.memory()

    assert mesh.submit(maybe, "a").result() == "a"
    assert mesh.submit(maybe, "").result() is None
    assert mesh.submit(nothing, "x").result() is None


def test_a_result_that_does_not_fit_the_type_is_told_with_its_bytes():
    task = Mesh.memory().submit("echo", "[1")

    with pytest.raises(ResultTypeError, match="does not fit int") as caught:
        task.result(type=int)
    assert caught.value.content == b"[1"
    assert task.result() == "[1"


def test_what_is_no_agent_or_no_input_is_refused_before_anything_is_stored():
    def plain(text: str) -> str:
        return text

    mesh = Mesh.memory()

    with pytest.raises(TypeError, match="put @agent"):
        mesh.submit(plain, "x")
    with pytest.raises(TypeError, match="cannot become JSON"):
        mesh.submit("echo", object())
    with pytest.raises(ConfigError, match="no agent 'ecko'; known agents: echo, fail, sleep"):
        mesh.submit("ecko", "x")
    with pytest.raises(TypeError, match="unknown option 'prio'"):
        mesh.submit("echo", "x", prio="high")
    with pytest.raises(ConfigError, match="priority 'urgent'"):
        mesh.submit("echo", "x", priority="urgent")
    with pytest.raises(ConfigError, match="1 to 256 characters"):
        mesh.submit("echo", "x", key="k" * 257)
    with pytest.raises(LimitError, match="10,485,760"):
        mesh.submit("echo", bytes(10 * 1024 * 1024 + 1))
    with pytest.raises(ValueError, match="timeout_s"):
        mesh.submit("echo", "x", timeout_s=-1)


# --- keys ---


def test_the_same_key_is_the_same_task_and_runs_once():
    handler, seen = flaky(0)
    mesh = Mesh.memory()

    first, second = mesh.submit(handler, "x", key="k"), mesh.submit(handler, "x", key="k")

    assert first.id == second.id
    assert [first.result(), second.result(), len(seen)] == [1, 1, 1]
    with pytest.raises(ConflictError, match="key 'k' already belongs"):
        mesh.submit(handler, "y", key="k")
    assert mesh.submit(handler, "x").id != first.id


# --- retries ---


def test_a_failing_step_is_retried_without_waiting_for_real():
    handler, seen = flaky(3, max_attempts=4, base_ms=3_600_000, max_ms=3_600_000)
    began = time.monotonic()

    task = Mesh.memory().submit(handler, "")
    states = [(step.status, step.attempt) for step in task.progress()]

    assert (task.result(), seen) == (4, [1, 2, 3, 4])
    assert states == [("PENDING", 0), ("RETRYING", 1), ("RETRYING", 2), ("RETRYING", 3), ("SUCCESS", 4)]
    assert time.monotonic() - began < 5


def test_attempts_run_out_as_the_submit_says_and_the_reason_is_kept():
    handler, seen = flaky(9, max_attempts=5)

    with pytest.raises(TaskFailed, match="flaky") as caught:
        Mesh.memory().submit(handler, "", max_attempts=2).result()

    assert len(seen) == 2
    assert caught.value.reason == "step 'flaky' (agent flaky): OSError: no link"


def test_fail_ends_a_step_at_once():
    @agent("refuse")
    def refuse(text: str) -> str:
        raise Fail(f"no {text}")

    task = Mesh.memory().submit(refuse, "luck")

    assert task.wait() == "DEAD_LETTER"
    with pytest.raises(TaskFailed, match="no luck"):
        task.result()


def test_a_timeout_runs_out_on_the_virtual_clock():
    handler, _ = flaky(1, base_ms=3_600_000, max_ms=3_600_000)
    task = Mesh.memory().submit(handler, "")

    with pytest.raises(TimeoutError, match=r"still RETRYING after 0\.001 s"):
        task.result(timeout_s=0.001)
    assert task.result(timeout_s=3600) == 2


def test_sleep_and_the_other_built_in_agents_take_no_time():
    began = time.monotonic()

    assert Mesh.memory().submit("sleep", "50").result() == "50"
    assert time.monotonic() - began < 5


# --- workflows ---


def test_steps_run_in_the_order_of_the_dag_with_their_parents_outputs():
    ran: list[str] = []

    @agent("number")
    def number(ctx: Context, value: int) -> int:
        ran.append(ctx.step_name)
        return value

    @agent("sum")
    def total(ctx: Context) -> int:
        ran.append(ctx.step_name)
        return sum(int(output) for output in ctx.parents.values())

    wf = Workflow("sums")
    numbers = [wf.step(number, value, id=f"n{value}") for value in (1, 2, 3)]
    part = wf.step(total, parents=numbers[:2], id="part")
    wf.step(total, parents=[part, numbers[2]], id="all", priority="high")
    wf.step(number, 7, id="alone", priority="low")

    assert Mesh.memory().submit_workflow(wf).result() == {"all": 6, "alone": 7}
    assert ran.index("part") > max(ran.index("n1"), ran.index("n2"))
    assert ran.index("all") > ran.index("part")


def test_a_workflow_of_one_step_and_bytes_at_its_end_are_told_by_id_too():
    @agent("bytes")
    def blob(text: str) -> bytes:
        return b"\xff" + text.encode()

    mesh = Mesh.memory()
    one, two = Workflow("one"), Workflow("two")
    one.step(blob, "a", id="only")
    two.step(blob, "a", id="first")
    two.step(blob, "b", id="second")

    assert mesh.submit_workflow(one).result() == {"only": b"\xffa"}
    assert mesh.submit_workflow(two).result() == {"first": b"\xffa", "second": b"\xffb"}


def test_a_dead_parent_ends_the_task_and_a_replay_goes_on_from_there():
    handler, seen = flaky(1, max_attempts=1)

    @agent("after")
    def after(ctx: Context) -> str:
        return f"after {ctx.parents['flaky'].decode()}"

    wf = Workflow("w")
    wf.step(after, parents=[wf.step(handler)], id="last")
    task = Mesh.memory().submit_workflow(wf)

    assert task.wait() == "DEAD_LETTER"
    assert [step.blocked for step in task.progress()] == [False, True]
    assert task.replay() == ["flaky"]
    assert task.result() == {"last": "after 1"}
    assert len(seen) == 2
    with pytest.raises(ConflictError, match="no dead-letter or cancelled step"):
        task.replay()


def test_a_step_that_continues_runs_below_a_parent_that_failed():
    @agent("gather")
    def gather(ctx: Context) -> str:
        return ",".join(sorted(ctx.parents))

    wf = Workflow("w")
    parents = [wf.step("echo", "x", id="good"), wf.step("fail", id="bad", max_attempts=1)]
    wf.step(gather, parents=parents, id="all", on_failure="continue")
    mesh = Mesh.memory()
    task = mesh.submit_workflow(wf)

    assert task.wait() == "DEAD_LETTER"
    assert [step.status for step in task.progress()] == ["SUCCESS", "DEAD_LETTER", "SUCCESS"]
    with pytest.raises(TaskFailed, match="step 'bad'"):
        task.result()
    with pytest.raises(TypeError, match="unknown option 'on_failure'"):
        mesh.submit("echo", on_failure="continue")


# --- cancel ---


def test_a_cancelled_task_never_runs_and_can_be_replayed():
    handler, seen = flaky(0)
    task = Mesh.memory().submit(handler, "")

    assert task.cancel(reason="not today") == "cancelled"
    with pytest.raises(TaskCancelled, match="not today"):
        task.result()
    assert seen == []
    assert task.replay() == ["flaky"]
    assert task.result() == 1
    assert task.cancel() == "too_late"


def test_a_handler_may_cancel_its_own_task_and_what_waits_never_runs():
    mesh = Mesh.memory()
    handles = []

    @agent("stop")
    def stop(text: str) -> str:
        return handles[0].cancel(reason="seen enough")

    wf = Workflow("w")
    wf.step("echo", parents=[wf.step(stop, "x")], id="last")
    handles.append(mesh.submit_workflow(wf))

    assert handles[0].wait() == "CANCELLED"
    assert [step.status for step in handles[0].progress()] == ["SUCCESS", "CANCELLED"]


# --- the mesh itself ---


def test_run_runs_all_and_a_task_that_cannot_end_is_told_as_such():
    mesh = Mesh.memory()
    tasks = [mesh.submit("echo", str(number)) for number in range(20)]

    mesh.run()

    assert {task.status() for task in tasks} == {"SUCCESS"}
    with pytest.raises(NotFoundError):
        mesh.task("tsk_unknown").status()


def test_namespaces_and_meshes_are_apart():
    one, other = Mesh.memory(), Mesh.memory(namespace="tests")
    task = one.submit("echo", "x")

    with pytest.raises(NotFoundError):
        other.task(task.id).status()
    with pytest.raises(ConfigError):
        Mesh.memory(namespace="no such thing")


def test_a_step_that_is_pinned_labelled_or_waits_on_a_partition_runs_all_the_same():
    task = Mesh.memory().submit("echo", "x", node="pump-3", labels={"site": "north"}, on_partition="wait")

    assert task.result() == "x"


async def test_async_handlers_run_from_a_trio_test_in_both_forms():
    @agent("waits")
    async def waits(text: str) -> str:
        await trio.lowlevel.checkpoint()
        return text

    @agent("asyncio", loop="asyncio")
    async def waits_too(text: str) -> str:
        await asyncio.sleep(0)
        return text

    mesh = Mesh.memory_async()
    tasks = [await mesh.submit(waits, "a"), await mesh.submit(waits_too, "b")]

    assert [await task.result() for task in tasks] == ["a", "b"]
    assert Mesh.memory().submit(waits, "c").result() == "c"
    assert [step.status async for step in tasks[0].progress()] == ["SUCCESS"]
    assert await mesh.cancel(tasks[0].id) == "too_late"


def test_a_sync_mesh_serves_an_asyncio_test_too():
    @agent("asyncio", loop="asyncio")
    async def waits(text: str) -> str:
        await asyncio.sleep(0)
        return text

    async def main() -> str:
        return Mesh.memory().submit(waits, "a").result()

    assert asyncio.run(main()) == "a"


def test_a_handler_in_memory_keeps_checkpoints_and_snoozes():
    seen = []

    @agent("keeps-its-place")
    def keeps_its_place(ctx: Context) -> str:
        seen.append((ctx.attempt, ctx.saved, ctx.cancelled))
        if ctx.saved is None:
            ctx.checkpoint({"page": 1})
            raise RuntimeError("after the first page")
        if ctx.saved == {"page": 1}:
            ctx.checkpoint({"page": 2})
            return Snooze(3600, "the rest comes later")
        ctx.progress(1.0)
        return "done"

    assert Mesh.memory().submit(keeps_its_place).result() == "done"
    assert seen == [(1, None, False), (2, {"page": 1}, False), (2, {"page": 2}, False)]


def test_a_delay_passes_in_no_time():
    began = time.monotonic()
    assert Mesh.memory().submit("echo", "late", delay_s=7 * 24 * 3600).result() == "late"
    assert time.monotonic() - began < 60


def test_what_expires_before_its_turn_never_begins():
    handler, _ = flaky(1, base_ms=3_600_000, max_ms=3_600_000)
    wf = Workflow("nightly")
    wf.step("echo", "x", id="after", parents=[wf.step(handler)], expires_s=1)
    task = Mesh.memory().submit_workflow(wf)
    assert task.wait() == "CANCELLED"
    with pytest.raises(TaskCancelled, match="did not begin within 1 s"):
        task.result()
