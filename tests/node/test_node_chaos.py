"""Random crashes, cuts, pauses and operators; afterwards every promise is looked at. One seed is one story."""

from __future__ import annotations

import random

import pytest
import trio

from mesh.errors import RelayMeshError
from mesh.fences import Fence
from node.work.status import step_status
from node.work.tables import Status
from tests.node.simulated_env import Host, World, simulated_world

TROUBLE_S = 60.0
SEEDS = range(4)
ENDED = ("SUCCESS", "DEAD_LETTER", "CANCELLED")


class Story:
    """What the world did, and what it promised meanwhile."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.rng = random.Random(seed)
        self.accepted: list[str] = []
        self.must_succeed: set[str] = set()  # only membership is asked, never iterated
        self.told: list[tuple[float, str]] = []

    def tell(self, text: str) -> None:
        self.told.append((round(trio.current_time(), 2), text))

    def someone(self) -> Host | None:
        """A host that could answer now."""
        able = [host for host in self.world.running() if host.paused.since is None]
        return self.rng.choice(able) if able else None

    async def trouble(self) -> None:
        acts = [self.submit] * 8 + [self.crash, self.start, self.start, self.cut, self.heal, self.pause, self.resume]
        acts += [self.cancel, self.replay, self.bump, self.stop]
        until = trio.current_time() + TROUBLE_S
        async with trio.open_nursery() as nursery:
            while trio.current_time() < until:
                await trio.sleep(self.rng.expovariate(2.0))
                nursery.start_soon(self._guarded, self.rng.choice(acts))

    async def _guarded(self, act) -> None:
        try:
            await act()
        except RelayMeshError as error:
            self.tell(f"{act.__name__}: {error}")

    async def submit(self) -> None:
        host = self.someone()
        if host is None:
            return
        kind = self.rng.randrange(4)
        if kind == 0:
            steps = [
                {"id": "x", "agent": "sleep", "input": f"{self.rng.random() * 2:.2f}"},
                {"id": "y", "agent": "echo", "input": "y" * self.rng.choice([3, 3000])},
                {"id": "z", "agent": "join", "dependsOn": ["x", "y"]},
            ]
            task_id = await host.workflow(*steps)
        elif kind == 1:
            task_id = await host.submit("fail", maxAttempts=2)
        else:
            task_id = await host.submit("sleep", input=f"{self.rng.random() * 6:.2f}")
        self.tell(f"{task_id} accepted at {host.name}")
        self.accepted.append(task_id)
        if kind != 1:
            self.must_succeed.add(task_id)

    async def crash(self) -> None:
        host = self.someone()
        if host is not None:
            self.tell(f"crash {host.name}")
            await host.crash()

    async def stop(self) -> None:
        host = self.someone()
        if host is not None and not host.node._stopping:
            self.tell(f"stop {host.name}")
            await host.stop()

    async def start(self) -> None:
        down = [host for host in self.world.hosts.values() if host.is_down]
        if down:
            host = self.rng.choice(down)
            self.tell(f"start {host.name}")
            await host.start()

    async def cut(self) -> None:
        names = list(self.world.hosts)
        side = self.rng.sample(names, self.rng.randint(1, len(names) - 1))
        self.tell(f"cut {''.join(side)}")
        self.world.network.cut(side, [name for name in names if name not in side])

    async def heal(self) -> None:
        self.tell("heal")
        self.world.network.heal()

    async def pause(self) -> None:
        host = self.someone()
        if host is not None and not host.node._stopping:
            self.tell(f"pause {host.name}")
            host.pause()
            await trio.sleep(self.rng.random() * 12)
            self.tell(f"resume {host.name}")
            host.resume()

    async def resume(self) -> None:
        for host in self.world.hosts.values():
            host.resume()

    async def cancel(self) -> None:
        host = self.someone()
        if host is not None and self.accepted:
            task_id = self.rng.choice(self.accepted)
            self.must_succeed.discard(task_id)
            self.tell(f"cancel {task_id} at {host.name}")
            await host.admin("cancel", taskId=task_id)

    async def replay(self) -> None:
        host = self.someone()
        if host is not None and self.accepted:
            task_id = self.rng.choice(self.accepted)
            self.must_succeed.discard(task_id)
            self.tell(f"replay {task_id} at {host.name}")
            await host.admin("replay", taskId=task_id)

    async def bump(self) -> None:
        host = self.someone()
        if host is not None and self.rng.random() < 0.3:
            self.tell(f"bump at {host.name}")
            await host.admin("cluster-epoch-bump")

    async def calm(self) -> None:
        """Everything works again: in bounded time all is done, and all agree."""
        self.world.network.heal()
        self.world.network.loss = 0.0
        await self.resume()
        for host in self.world.hosts.values():
            await self.world.until(lambda host=host: host.is_up or host.is_down)
            if host.is_down:
                await host.start()
        await self.world.until(self._all_ended, limit_s=300, every_s=0.5)
        await self.world.until(self.world.agree, limit_s=60)

    async def _all_ended(self) -> bool:
        for host in self.world.hosts.values():
            for task_id in self.accepted:
                if not await host.knows(task_id):
                    return False
                if (await host.admin("task", taskId=task_id))["status"] not in ENDED:
                    return False
        return True

    async def check(self) -> None:
        a = next(iter(self.world.hosts.values()))
        final = {row.key: row for row in await a.rows("steps")}
        for task_id in self.accepted:
            status = (await a.admin("task", taskId=task_id))["status"]
            assert task_id not in self.must_succeed or status == "SUCCESS", (task_id, status)
        for host in self.world.hosts.values():
            for result in host.results:
                now = final[result.key]
                assert now.generation > result.generation or step_status(now) is Status.SUCCESS, result
            assert not host.executor.running_now
            # A lease epoch is opened by one node once: no two runs ever had the same fence.
        fences = [job.fence for host in self.world.hosts.values() for job in host.jobs]
        assert len(fences) == len(set(fences))
        for row in final.values():
            if row.text("status") == "SUCCESS":
                assert Fence.of(row, row.text("owner")).encode() >= max(
                    (
                        job.fence
                        for host in self.world.hosts.values()
                        for job in host.jobs
                        if job.step_id == row.key and _is_result(host, job, row)
                    ),
                    default="",
                )

    async def tell_what_is_open(self) -> None:
        """For whoever looks at a failure: why each host thinks that a step has not ended."""
        for host in self.world.running():
            for row in await host.rows("steps"):
                if not row.rank:
                    told = await host.admin("explain", taskId=row.key)
                    print(host.name, row.key, row.text("status"), *(step["summary"] for step in told["steps"]))
                    for line in told["steps"][0]["timeline"]:
                        print("   ", (line["atMs"] - 1_700_000_000_000) / 1000, line["text"])
                    print("   ", row, host.node.life, [job.fence for job in host.jobs if job.step_id == row.key])
            sees = [f"{name} {host.sees(name)}" for name in self.world.hosts]
            print(host.name, "gate", host.node.gate.state, "paused", host.node.runtime.paused, *sees)

    async def check_quiet(self) -> None:
        """A mesh without work writes nothing, once the last news of members has been kept."""
        await trio.sleep(60)
        hosts = self.world.hosts.values()
        changed: list[tuple[str, str, str]] = []
        for host in hosts:
            host.node.store.on_commit(
                lambda commit, name=host.name: changed.extend(
                    (name, change.after.table, change.after.key) for change in commit.changes
                )
            )
        before = {host.name: host.node.store.counters().get("commits") for host in hosts}
        began_ms = [host.node.store.physical_ms() for host in hosts]
        await trio.sleep(120)
        after = {host.name: host.node.store.counters().get("commits") for host in hosts}
        members = [
            await host.node.store.read(lambda reader: reader.sql("SELECT node_id, status, changed_at_ms FROM members"))
            for host in hosts
        ]
        assert after == before, (changed, began_ms, members)


def _is_result(host: Host, job, row) -> bool:
    return any(result.key == row.key and Fence.of(result, host.name).encode() == job.fence for result in host.results)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
async def test_after_any_trouble_all_accepted_work_has_ended_once_and_all_nodes_agree(tmp_path, autojump_clock, seed):
    async with simulated_world(tmp_path, seed=seed) as world:
        for name in "abcd"[: 3 + seed % 2]:
            world.host(name, slots=2, base_backoff_ms=100)
        await world.up()
        world.network.loss = 0.05
        story = Story(world, seed)
        try:
            await story.trouble()
            await story.calm()
            await story.check()
            await story.check_quiet()
        except BaseException:
            print(*story.told, sep="\n")
            with trio.CancelScope(shield=True):
                await story.tell_what_is_open()
            raise
