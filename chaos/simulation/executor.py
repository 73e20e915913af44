"""Agents of a simulated host: they take virtual time, fail as told, and write to the outside through their fence.

An agent is a process of its own: it goes on while its node stands still, and dies with it. Its payload says what it
does, so that a run's course follows from the task and not from chance: see `Work`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import msgspec
import trio

from chaos.observations import CheckpointAsked, CheckpointKept, RunEnded, RunStarted, Seen, SinkWrite
from chaos.simulation.event_heap import EventHeap
from chaos.simulation.process import Process
from mesh.errors import RelayMeshError
from node.env import AgentInfo, Job, Outcome

AGENT = "work"
POISON = "poison"
SNOOZE_MS = 700


class Choices(msgspec.Struct, frozen=True):
    """What a handler does besides succeeding or failing."""

    snoozes: int = 0
    """So many of its runs ask to be run again later."""
    saves: int = 0
    """So many checkpoints each run keeps, one after the other, counting on from that of the run before."""
    gives_up: bool = False
    """It cancels its step where it would have succeeded."""


NO_CHOICES = Choices()


class Work(msgspec.Struct, frozen=True):
    """The payload of a run."""

    run_s: float = 0.0
    fails: int = 0
    """So many attempts fail before one succeeds."""
    doomed: bool = False
    """It fails for good, and is not tried again."""
    pad: str = ""
    """Comes back in the result, and in checkpoints, to make rows large."""
    choices: Choices | msgspec.UnsetType = msgspec.UNSET
    """Left out where there are none, so that such payloads are as long as they always were."""

    @property
    def chosen(self) -> Choices:
        """Its choices, or none."""
        return NO_CHOICES if self.choices is msgspec.UNSET else self.choices


class Saved(msgspec.Struct, frozen=True):
    """A checkpoint."""

    number: int = 0
    pad: str = ""


class Sink:
    """A service outside of the mesh that everyone can always reach and that checks fences, as the README asks for."""

    def __init__(self) -> None:
        self._highest: dict[str, str] = {}
        self._refused: dict[str, int] = {}

    def is_busy(self, step_id: str, times: int) -> bool:
        """Whether it has no time for this step: the first so many times that it is asked."""
        asked = self._refused.get(step_id, 0)
        self._refused[step_id] = asked + 1
        return asked < times

    def write(self, step_id: str, fence: str) -> bool:
        """Whether the write is taken: not when a higher fence of this step came before."""
        if fence < self._highest.get(step_id, ""):
            return False
        self._highest[step_id] = fence
        return True


class SimulatedExecutor:
    """`node.env.Executor` of one life of one host."""

    def __init__(
        self,
        heap: EventHeap,
        process: Process,
        sink: Sink,
        *,
        tell: Callable[[Seen], None],
        now_ms: Callable[[], float],
        on_poison: Callable[[], None],
    ) -> None:
        """`on_poison` is called when an agent brings its whole host process down."""
        self._heap = heap
        self._process = process
        self._sink = sink
        self._tell = tell
        self._now_ms = now_ms
        self._on_poison = on_poison
        self._agents = {
            name: AgentInfo(name=name, kind="builtin", base_backoff_ms=100, max_backoff_ms=2_000)
            for name in (AGENT, POISON)
        }

    def agents(self) -> Mapping[str, AgentInfo]:
        """What can be run here, by name."""
        return self._agents

    def running(self) -> AbstractAsyncContextManager[None]:
        """Nothing needs to be started."""
        return _nothing()

    async def run(self, job: Job) -> Outcome:
        """Run one attempt to its end in virtual time, or to its cancellation."""
        self._process.check()
        host = self._process.host
        self._tell(RunStarted(at_ms=self._now_ms(), host=host, job=job))
        if job.agent == POISON:
            self._heap.after(0.05, self._poison)
        ended: list[Outcome] = []
        done = trio.Event()
        parts = 1 + _work_of(job).chosen.saves
        await self._save(job, parts)
        appointment = self._heap.after(self._length_s(job) / parts, lambda: self._finish(job, ended, done))
        try:
            await self._process.live(done.wait)
        except BaseException:
            if not ended:
                appointment.cancel()
                self._tell(RunEnded(at_ms=self._now_ms(), host=host, job=job, outcome="killed"))
            raise
        return ended[0]

    async def _save(self, job: Job, parts: int) -> None:
        """Keep the checkpoints of a run, each after its part of the time. A refusal does not end the run."""
        saved = msgspec.json.decode(job.saved or b"{}", type=Saved)
        try:
            for number in range(1, parts):
                await self._process.live(trio.sleep, self._length_s(job) / parts)
                content = msgspec.json.encode(Saved(saved.number + number, _work_of(job).pad))
                assert job.line is not None
                job.line.note_progress(number / parts, "saving")
                self._tell(CheckpointAsked(at_ms=self._now_ms(), host=self._process.host, job=job, content=content))
                try:
                    await self._process.live(job.line.save_checkpoint, content)
                except RelayMeshError:
                    continue
                self._tell(CheckpointKept(at_ms=self._now_ms(), host=self._process.host, job=job, content=content))
        except BaseException:
            self._tell(RunEnded(at_ms=self._now_ms(), host=self._process.host, job=job, outcome="killed"))
            raise

    def _length_s(self, job: Job) -> float:
        work = _work_of(job)
        return min(work.run_s, job.timeout_s) if job.agent == AGENT else job.timeout_s

    def _finish(self, job: Job, ended: list[Outcome], done: trio.Event) -> None:
        if self._process.is_gone:
            return  # the agent died with its node; what waits for it will tell
        host, work = self._process.host, _work_of(job)
        if work.run_s > job.timeout_s or job.agent == POISON:
            outcome = Outcome(kind="timeout", error=f"ran longer than {job.timeout_s:g} s")
        elif work.doomed:
            outcome = Outcome(kind="rejected", error="doomed from the start")
        elif job.attempt <= work.fails:
            outcome = Outcome(kind="failed", error=f"fails until attempt {work.fails + 1}")
        elif self._sink.is_busy(job.step_id, work.chosen.snoozes):
            outcome = Outcome(kind="snoozed", error="the sink is busy", snooze_ms=SNOOZE_MS)
        elif work.chosen.gives_up:
            outcome = Outcome(kind="cancelled", error="there is nothing to do")
        else:
            accepted = self._sink.write(job.step_id, job.fence)
            self._tell(
                SinkWrite(at_ms=self._now_ms(), host=host, step_id=job.step_id, fence=job.fence, accepted=accepted)
            )
            result = json.dumps({"step": job.step_id, "fence": job.fence, "pad": work.pad})
            outcome = Outcome(kind="success", result=result.encode())
        self._tell(RunEnded(at_ms=self._now_ms(), host=host, job=job, outcome=outcome.kind))
        ended.append(outcome)
        done.set()

    def _poison(self) -> None:
        if not self._process.is_gone:
            self._on_poison()


def _work_of(job: Job) -> Work:
    return msgspec.json.decode(job.payload, type=Work) if job.agent == AGENT else Work()


@asynccontextmanager
async def _nothing() -> AsyncIterator[None]:
    yield
