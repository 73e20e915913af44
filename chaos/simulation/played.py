"""Plays a scenario of whole nodes: start, trouble, healing, rest, judgement.

Safety is judged all the time; liveness after the healing, on a mesh in which everything works again and nobody asks for
anything new: only then must all work have ended, and all replicas be equal.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import trio

from chaos.coverage import Coverage
from chaos.invariants import Judge
from chaos.invariants.oracle import name_of, wins
from chaos.observations import Healed, Replica, Rest, Settled
from chaos.runs import RunResult, Violation
from chaos.scenario import Fault, Scenario
from chaos.simulation.clock import WorldClock
from chaos.simulation.event_heap import EventHeap
from chaos.simulation.faulting import play_fault
from chaos.simulation.fingerprint import Fingerprint
from chaos.simulation.host import Host
from chaos.simulation.leak_guard import leak_guard
from chaos.simulation.scheduling import install_holding_queue, seeded_scheduling
from chaos.simulation.vfs import SimulatedVfs, installed_vfs
from chaos.simulation.workload import Workload
from chaos.simulation.world import World, captured_logs
from chaos.timeline import TimelineKeeper
from mesh.replica import REASON_UNKNOWN_TABLE
from mesh.row_codec import CHUNK_LIMITS, decode_rows
from mesh.rows import Row
from node.storage.reader import Reader
from node.work.payloads import missing_payloads
from node.work.status import is_partial, is_runnable, step_status, task_status, waits
from node.work.tables import WORK_TABLES, Status

START_MAX_S = 60.0
"""A mesh without faults that is not whole after this long has failed already."""
TAIL_MAX_S = 30.0
"""How long a fault may take to end after its time, such as a node that stops in order."""
LOOK_EVERY_S = 0.5
FOR_EVER_S = 1e9
IDLE_S = 15.0
"""How long a settled mesh is watched for writes that nobody asked for."""


class Play:
    """One run. `play` is what callers use."""

    def __init__(
        self, scenario: Scenario, seed: int, *, until_s: float | None, tell: Callable[[str], None] | None
    ) -> None:
        self._scenario = scenario
        self._seed = seed
        self._until_s = until_s
        self._heap = EventHeap()
        self._fingerprint = Fingerprint(self._heap, tell=tell)
        self._clock = WorldClock(self._heap)
        self._judge = Judge(scenario)
        self._coverage = Coverage()
        self._timeline = TimelineKeeper()
        self._logs: dict[str, list[str]] = {}
        self._facts: dict[str, object] = {}
        self._healed_ms = 0.0
        self._settled_ms: float | None = None
        self._unsettled = ""
        self._violations: list[Violation] = []

    def run(self) -> RunResult:
        """Play it, and say what it came to."""
        began = time.process_time()
        with (
            seeded_scheduling(self._seed),
            installed_vfs(self._seed, lambda: self._heap.now) as vfs,
            leak_guard(),
        ):
            try:
                trio.run(self._main, vfs, clock=self._clock, instruments=[self._fingerprint])
            except KeyboardInterrupt:
                self._facts["interrupted"] = True
        if self._clock.stuck:
            self._violations.append(Violation("liveness", self._heap.now * 1000, self._clock.stuck))
        return RunResult(
            scenario=self._scenario,
            violations=[*self._violations, *self._judge.violations],
            coverage=self._coverage.counts,
            trace_hash=self._fingerprint.hexdigest(),
            simulated_s=round(self._heap.now, 3),
            cpu_s=round(time.process_time() - began, 3),
            healed_ms=self._healed_ms,
            settled_ms=self._settled_ms,
            timeline=self._timeline.events(),
            logs=self._logs,
            facts=self._facts,
        )

    async def _main(self, vfs: SimulatedVfs) -> None:
        queue = install_holding_queue()
        with self._clock.running():
            async with trio.open_nursery() as nursery:
                world = World(
                    self._scenario,
                    self._seed,
                    heap=self._heap,
                    fingerprint=self._fingerprint,
                    vfs=vfs,
                    queue=queue,
                    nursery=nursery,
                )
                world.watchers += [self._judge.see, self._coverage.see, self._timeline.see]
                with captured_logs(world) as logs:
                    self._logs = logs.lines
                    try:
                        await self._phases(world)
                    finally:
                        world.watchers.clear()  # the end of the world is no event in it
                        with trio.CancelScope(shield=True):
                            await _end_all(world)
                nursery.cancel_scope.cancel()

    async def _phases(self, world: World) -> None:
        for host in world.hosts.values():
            host.start()
        if not await _until(world.is_whole, START_MAX_S):
            self._violate(world, "liveness", f"a mesh without faults was not whole after {START_MAX_S:g} s")
            return
        world.began_s = self._heap.now
        workload = Workload(world)
        # Trio looks at the clock for a finite limit only, and each look counts: with and without, a run is the same.
        until_s = self._until_s if self._until_s is not None else FOR_EVER_S
        with trio.move_on_after(until_s) as played, _ended_by_interrupt(partial(self._interrupt, played)):
            await self._trouble(world, workload)
            self._mend(world)
            await self._come_to_rest(world, workload)
        self._facts |= {
            "submits": workload.submits,
            "accepted": len(workload.accepted),
            "datagrams": world.datagrams.delivered,
            "streams": world.streams.opened,
            "steps": self._fingerprint.steps,
        }

    def _interrupt(self, played: trio.CancelScope) -> None:
        self._facts["interrupted"] = True
        played.cancel()

    def _violate(self, world: World, invariant: str, detail: str) -> None:
        self._violations.append(Violation(invariant, world.now_ms(), detail))

    async def _trouble(self, world: World, workload: Workload) -> None:
        async with trio.open_nursery() as faults:
            for fault in self._scenario.faults:
                faults.start_soon(_in_time, world, fault)
            with trio.move_on_after(self._scenario.duration_s):
                async with trio.open_nursery() as clients:
                    clients.start_soon(workload.run)
                    await trio.sleep_forever()
            faults.cancel_scope.deadline = self._heap.now + TAIL_MAX_S

    def _mend(self, world: World) -> None:
        world.links.heal()
        for host in world.hosts.values():
            host.resume()
            host.disk.mend()
            host.extra_latency_s = 0.0
            if host.name in self._scenario.node_names():
                host.start()
        self._healed_ms = world.now_ms()
        world.tell(Healed(at_ms=world.now_ms()))

    async def _come_to_rest(self, world: World, workload: Workload) -> None:
        limit = self._heap.now + self._scenario.settle_s
        while self._settled_ms is None and self._heap.now < limit:
            await trio.sleep(LOOK_EVERY_S)
            await _restart_conflicting(world)
            await workload.lift_holds()
            self._unsettled = await _what_is_open(world, workload.accepted)
            if not self._unsettled:
                self._settled_ms = world.now_ms()
                world.tell(Settled(at_ms=world.now_ms()))
        if self._settled_ms is not None:
            await trio.sleep(IDLE_S)
        replicas = {host.node_id: await _replica(host) for host in world.running()}
        rest = Rest(
            replicas=replicas,
            healed_ms=self._healed_ms,
            settled_ms=self._settled_ms,
            settle_s=self._scenario.settle_s,
            unsettled=self._unsettled,
        )
        self._judge.judge(rest)


@contextmanager
def _ended_by_interrupt(end: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C ends the run between two steps. As an exception it would hit whatever runs: a node, or SQLite's calls into
    a drive, which would take it for a failing disk.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    token = trio.lowlevel.current_trio_token()
    before = signal.signal(signal.SIGINT, lambda *_: token.run_sync_soon(end))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


async def _in_time(world: World, fault: Fault) -> None:
    await trio.sleep_until(world.began_s + fault.at_s)
    await play_fault(world, fault)


async def _until(condition: Callable[[], bool], limit_s: float) -> bool:
    with trio.move_on_after(limit_s):
        while not condition():  # noqa: ASYNC110 - nothing tells when views of many nodes agree
            await trio.sleep(LOOK_EVERY_S / 5)
        return True
    return False


async def _end_all(world: World) -> None:
    for host in world.hosts.values():
        host.die("kill")
    for host in world.hosts.values():
        await host.until_ended()


async def _what_is_open(world: World, accepted: Iterable[str]) -> str:
    """Why the mesh has not come to rest; empty when it has. What waits for a payload that nobody has is at rest."""
    if not world.is_whole():
        return "not all nodes run and see each other: " + "; ".join(map(_view, world.hosts.values()))
    if busy := [host.name for host in world.hosts.values() if host.questions]:
        return f"{', '.join(busy)} still work on what clients asked"
    hosts = [host for host in world.hosts.values() if host.wanted]
    if filled := [host.name for host in hosts if host.node is not None and host.node.bootstrap.is_wanted]:
        return f"{', '.join(filled)} are being filled by a snapshot"
    if looking := [host.name for host in hosts if host.node is not None and host.node.stability.is_looking]:
        return f"{', '.join(looking)} ask what all have seen"
    if remembering := [host.name for host in hosts if host.node is not None and host.node.store.has_tombstones]:
        return f"{', '.join(remembering)} remember deleted rows"
    try:
        heads = [await host.read(_head) for host in hosts]
        if any(head != heads[0] for head in heads):
            return "replicas differ"
        steps = await hosts[0].read(lambda reader: reader.select("steps"))
        lost = await hosts[0].read(partial(missing_payloads, rows=steps))
        # A submit whose client heard no answer was perhaps accepted, and then it runs like any other.
        tasks = {task.key: task for task in await hosts[0].read(lambda reader: reader.select("tasks", order="key"))}
        # Reads take time: nothing may have changed meanwhile.
        if [await host.read(_head) for host in hosts] != heads:
            return "replicas change"
    except TimeoutError as error:
        return str(error)
    by_task: dict[str, list[Row]] = {}
    for step in steps:
        by_task.setdefault(step.text("task_id"), []).append(step)
    return next(
        (
            f"task {task_id} is {task_status(tasks[task_id], by_task[task_id])}"
            for task_id in [*dict.fromkeys([*accepted, *tasks])]
            if task_id in tasks
            and task_id in by_task
            and not task_status(tasks[task_id], by_task[task_id]).is_terminal
            and not _is_stuck(tasks[task_id], by_task[task_id])
            and not any(
                step.text(column) in lost for step in by_task[task_id] for column in ("input_ref", "result_ref")
            )
        ),
        "",
    )


def _is_stuck(task: Row, steps: Sequence[Row]) -> bool:
    """Whether a task can only wait for steps that went with a disk; `acknowledged-kept` judges whether that may be."""
    by_name = {step.text("name"): step for step in steps}
    return is_partial(task, steps) and not any(
        step_status(step) is Status.RUNNING or (waits(step) and is_runnable(step, by_name)) for step in steps
    )


def _head(reader: Reader) -> tuple[bytes, object]:
    return reader.vector().digest(), reader.sums()


async def _restart_conflicting(world: World) -> None:
    """What the alarm tells the operator: a restored host is restarted once, after the copy is gone."""
    for host in world.running():
        if host.node is not None and host.node.identity_conflict:
            await host.restart()


def _view(host: Host) -> str:
    if host.node is None:
        return f"{host.name} is down"
    members = ", ".join(f"{member.node_id} {member.status.value}" for member in host.node.gossip.members.all())
    return f"{host.name} (gate {host.node.gate.state}) sees {members}"


async def _replica(host: Host) -> Replica:
    node = host.node
    assert node is not None, "it runs"
    rows, handed_on, vector, sums, quarantine, queued = await host.read(
        lambda reader: (
            {(row.table, row.namespace, row.key): row for table in WORK_TABLES for row in reader.select(table.name)},
            _handed_on(reader),
            reader.vector(),
            reader.sums(),
            reader.sql("SELECT table_name, namespace, key, reason, detail FROM quarantine ORDER BY 1, 2, 3"),
            dict(reader.sql("SELECT step_id, namespace FROM queue ORDER BY step_id")),
        )
    )
    members = {member.node_id: member.status.value for member in node.gossip.members.all()}
    for row in handed_on:
        name = name_of(row)
        if name not in rows or wins(row, rows[name]):
            rows[name] = row
    return Replica(rows=rows, vector=vector, sums=sums, quarantine=quarantine, queued=queued, members=members)


def _handed_on(reader: Reader) -> list[Row]:
    """Versions of rows of tables that this release does not know: it keeps and passes on all, and cannot judge them."""
    found = reader.sql("SELECT row FROM quarantine WHERE reason = ? ORDER BY seq", (REASON_UNKNOWN_TABLE,))
    return [row for (data,) in found for row in decode_rows(data, limits=CHUNK_LIMITS)]


def play(
    scenario: Scenario,
    seed: int | None = None,
    *,
    until_s: float | None = None,
    tell: Callable[[str], None] | None = None,
) -> RunResult:
    """Run a scenario whose faults are all explicit, with its own seed or another.

    `until_s` ends it at that time, unjudged at rest. `tell` hears every step, for comparing two runs.
    """
    assert scenario.random is None, "swarm.expand draws random faults before a run"
    return Play(scenario, scenario.seed if seed is None else seed, until_s=until_s, tell=tell).run()
