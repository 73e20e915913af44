"""The Python clients against real nodes: by control socket and by TLS, through restarts and the death of a node."""

from __future__ import annotations

import doctest
import inspect
import threading
from pathlib import Path

import pytest
import trio

import relaymesh
from chaos.real.processes import Cluster
from mesh.errors import ConfigError, ConflictError, NotFoundError, UnavailableError
from relaymesh import AsyncClient, Client, Mesh, TaskCancelled, TaskFailed, Workflow, agent

AGENTS = Path(__file__).parent / "mesh_agents.py"


@agent("work")
def work(payload: dict) -> dict[str, object]:
    """As nodes run it: see mesh_agents.py."""
    raise NotImplementedError


@pytest.fixture
def bind(mesh) -> str:
    """A gossip address for a mesh of its own, which nobody uses."""
    return f"{mesh.cluster._network.host(9)}:17888"


def root_of(cluster: Cluster, node: str):
    return cluster.nodes[node].root


def peers(cluster: Cluster, *nodes: str) -> str:
    return ",".join(str(cluster.nodes[node].stream) for node in nodes)


def identity_of(cluster: Cluster, node: str):
    return root_of(cluster, node) / "identity.json"


@pytest.mark.parametrize("name", ["Client", "Client.close", "AsyncClient", "Mesh"])
def test_the_examples_that_need_a_node_run(mesh, name, tmp_path, bind):
    owner, _, method = name.partition(".")
    value = getattr(relaymesh, owner)
    text = inspect.getdoc(getattr(value, method) if method else value) or ""
    names = {public: getattr(relaymesh, public) for public in relaymesh.__all__}
    root = tmp_path / "root" if name == "Mesh" else root_of(mesh.cluster, "a")
    test = doctest.DocTestParser().get_doctest(
        text, {**names, "trio": trio, "root": root, "bind": bind}, name, None, None
    )
    told: list[str] = []

    result = doctest.DocTestRunner(verbose=False).run(test, out=told.append)

    assert test.examples
    assert result.failed == 0, "".join(told)


def test_a_script_submits_waits_fails_cancels_and_replays(mesh):
    with Client(root_of(mesh.cluster, "a")) as client:
        done = client.submit(work, {"say": "hi"}, key="client-1", priority="high", replicas=1)
        assert done.result(30)["said"] == "hi"
        assert client.submit(work, {"say": "hi"}, key="client-1", priority="high").id == done.id
        with pytest.raises(ConflictError):
            client.submit(work, {"say": "ho"}, key="client-1")

        failed = client.submit("fail", max_attempts=2)
        with pytest.raises(TaskFailed, match="always fails"):
            failed.result(30)
        assert failed.replay() == ["fail"]
        assert failed.wait(30) == "DEAD_LETTER"

        long = client.submit("sleep", "60")
        with pytest.raises(TimeoutError):
            long.result(0.2)
        assert long.cancel(reason="enough") == "cancelled"
        with pytest.raises(TaskCancelled, match="enough"):
            long.result(30)
        with pytest.raises(ConfigError, match="has an agent 'ecko'"):
            client.submit("ecko")
        with pytest.raises(NotFoundError):
            client.task("tsk_0").status()


def test_progress_shows_each_step_of_a_workflow_as_it_changes(mesh):
    wf = Workflow("two")
    first = wf.step(work, {"seconds": 0.3}, id="first")
    wf.step(work, {"say": "after"}, id="second", parents=[first])

    with Client(root_of(mesh.cluster, "b")) as client:
        task = client.submit_workflow(wf)
        seen = [(step.name, step.status, step.blocked) for step in task.progress()]

        assert seen[:2] == [("first", seen[0][1], False), ("second", "PENDING", True)]
        assert ("first", "RUNNING", False) in seen
        assert seen.index(("first", "SUCCESS", False)) < seen.index(("second", "SUCCESS", False))
        assert set(task.result(30)) == {"second"}


def test_threads_share_a_client_and_do_not_wait_for_each_other(mesh):
    with Client(root_of(mesh.cluster, "a")) as client:
        long = client.submit("sleep", "60")
        waiting = threading.Thread(target=long.wait, daemon=True)
        waiting.start()

        assert client.submit("echo", "quick").result(10) == "quick"
        assert long.cancel() == "cancelled"
        waiting.join(10)
        assert not waiting.is_alive()


async def test_a_hundred_tasks_of_a_trio_program_wait_at_once_over_tls(mesh):
    cluster, results = mesh.cluster, []

    async def one(client: AsyncClient, number: int) -> None:
        task = await client.submit("echo", str(number))
        results.append(await task.result(60))

    async with AsyncClient(peer=peers(cluster, "b"), identity=identity_of(cluster, "a")) as client:
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(one, client, number)
        assert sorted(map(int, results)) == list(range(100))

        failed = await client.submit("fail", max_attempts=1)
        with pytest.raises(TaskFailed):
            await failed.result(30)
        assert await failed.replay() == ["fail"]
        assert [step.status async for step in failed.progress()][-1] == "DEAD_LETTER"


async def test_a_cancelled_wait_leaves_the_task_and_the_client_usable(mesh):
    async with AsyncClient(root_of(mesh.cluster, "a")) as client:
        task = await client.submit("sleep", "60")
        with trio.move_on_after(0.2) as limit:
            await task.result()

        assert limit.cancelled_caught
        assert await task.status() in ("PENDING", "RUNNING")
        assert await task.cancel() == "cancelled"


def test_work_goes_on_at_the_next_address_when_a_node_dies(mesh):
    cluster = mesh.cluster
    with Client(peer=peers(cluster, "b", "c"), identity=identity_of(cluster, "a")) as client:
        task = client.submit("sleep", "1", key="survivor", node="c", replicas=2)
        cluster.kill("b")

        assert task.result(60) == "1"
        assert client.submit("sleep", "1", key="survivor", node="c").id == task.id


def test_a_wait_outlives_a_restart_of_the_only_node_that_was_named(mesh):
    cluster = mesh.cluster
    with Client(root_of(cluster, "a")) as client:
        task = client.submit(work, {"seconds": 1}, node="b")
        ended: list[object] = []
        waiting = threading.Thread(target=lambda: ended.append(task.wait(60)), daemon=True)
        waiting.start()
        cluster.kill("a")
        cluster.start("a")
        waiting.join(60)

        assert ended == ["SUCCESS"]


def test_a_root_without_a_node_is_told_so(tmp_path):
    with Client(tmp_path) as client, pytest.raises(UnavailableError, match="no node answers at"):
        client.submit("echo", "x")


# --- a node inside of a program ---


async def test_what_an_embedded_node_refuses_or_its_block_raises_comes_out_as_it_is(tmp_path, bind):
    with pytest.raises(ConfigError, match="HOST:PORT"):
        async with Mesh(tmp_path, bind="nowhere"):
            pass
    with pytest.raises(KeyError):  # noqa: PT012  (the block is what is tested)
        async with Mesh(tmp_path, bind=bind, profile="local"):
            with pytest.raises(ConfigError, match="another relaymesh-node runs on"):
                await Mesh(tmp_path, bind=bind).__aenter__()
            raise KeyError

    with trio.move_on_after(60) as limit:
        async with Mesh(tmp_path, bind=bind, profile="local") as mesh:
            assert await (await mesh.submit("echo", "again")).result(30) == "again"
            limit.cancel()
            await trio.sleep_forever()
    assert limit.cancelled_caught
    assert not (tmp_path / "control.sock").exists()


async def test_an_embedded_node_joins_a_mesh_and_gives_its_work_back_at_the_end(mesh, tmp_path):
    cluster = mesh.cluster
    spec = cluster.add("embedded")
    try:
        async with Mesh(
            spec.root,
            enroll=cluster.enrolment("embedded"),
            bind=str(spec.gossip),
            rpc_bind=str(spec.stream),
            seeds=[str(cluster.nodes["a"].gossip)],
            agents=[AGENTS],
            labels={"kind": "program"},
            profile="local",
        ) as embedded:
            mine = await embedded.submit(work, {"say": "here"}, labels={"kind": "program"})
            assert (await mine.result(60))["said"] == "here"
            theirs = await embedded.submit(work, {"seconds": 60}, key="moves", replicas=1)
            await trio.to_thread.run_sync(mesh.wait_task, "a", theirs.id, "RUNNING", 30)

        mesh.wait_seen("a", 10, embedded="LEFT")  # the last test of this module: to mend, all members must be ALIVE
        with Client(root_of(cluster, "a")) as client:
            assert client.cancel(theirs.id) in ("cancelled", "requested")
            with pytest.raises(TaskCancelled):
                client.task(theirs.id).result(60)
        with pytest.raises(RuntimeError, match="not running"):
            await embedded.submit("echo", "x")
    finally:
        del cluster.nodes["embedded"]
