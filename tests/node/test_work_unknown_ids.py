"""Whoever asks for an id that is not here is told what to try next. Method: a store with a few tasks."""

from __future__ import annotations

from node.work.unknown_ids import unknown_id
from tests.node.work_desk import desks


async def test_an_unknown_id_is_answered_by_what_helps(tmp_path):
    async with desks(tmp_path, "a") as (desk,):
        task_id = await desk.one()
        other_id = await desk.one("other")
        await desk.write(lambda tx: tx.put("tasks", "default", other_id, {}, deleted=True, rank=0, generation=1))
        step_id = (await desk.step(task_id)).key

        async def told(asked: str, namespace: str = "default", away=()) -> str:
            return str(await desk.store.read(lambda reader: unknown_id(reader, namespace, asked, away)))

        assert "begin with tsk_ or stp_" in await told("nightly")
        assert await told(task_id, "blue") == f"task {task_id} is in the namespace default: add `--namespace default`"
        assert "add `--namespace default`" in await told(step_id, "blue")
        assert "was deleted" in await told(other_id)
        assert await told(task_id[:12]) == f"task {task_id[:12]} is not known here; did you mean {task_id}?"
        assert step_id in await told(step_id[:-1])
        assert "did you mean" not in await told(task_id[:9])
        unknown = await told("tsk_0123456789", away=["b", "c"])
        assert unknown.startswith("task tsk_0123456789 is not known here in namespace 'default'")
        assert unknown.endswith("it may be at b, c, which cannot be heard from here now")
