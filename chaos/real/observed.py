"""What was seen of a run on real processes, told as the simulator tells what it sees: for timelines and coverage.

Nobody watches a real node from inside. What there is comes from outside and after the run: the schedule as it was
played, what clients asked and heard, what agents noted, what nodes logged, and the history in the rows.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from chaos.observations import (
    ClientAnswered,
    ClientAsked,
    Committed,
    FaultBegan,
    FaultEnded,
    HostEnded,
    Logged,
    MemberSeen,
    RunEnded,
    RunStarted,
    Seen,
)
from chaos.real.clients import Call
from chaos.real.evidence import AgentRun, Replica
from chaos.scenario import Fault
from mesh.effects import MemberChanged
from mesh.rows import Row
from node.env import Job
from node.storage.transaction import Change
from node.work.history import Action

_LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3}) \S+ (\w+) (\S+): (.*)")
_TIME = "%Y-%m-%d %H:%M:%S"
_MEMBER = re.compile(r"member (\S+): (\S+) -> (\S+) \((.*)\)")
_LEVELS = {"WARNING": 30, "ERROR": 40, "CRITICAL": 50}
_ENDS_OF_HOSTS = {"kill": "kill", "stop": "stop", "power-cut": "kill", "settings": "kill"}
_OUTCOMES = {Action.FAILED: "failed", Action.LOST: "killed", Action.TAKEN_OVER: "killed"}


@dataclass(frozen=True, slots=True)
class Clock:
    """Turns wall time, which is what everybody outside writes down, into time of the run."""

    whole_at: float
    """Wall time of the moment when the mesh was whole."""

    def ms(self, wall: float) -> float:
        """Milliseconds since the mesh was whole."""
        return round((wall - self.whole_at) * 1000, 3)


def in_order(*told: Iterable[Seen]) -> list[Seen]:
    """All of it by time; what happens at one time stays in the order given."""
    return sorted((seen for each in told for seen in each), key=lambda seen: seen.at_ms)


def of_faults(faults: Sequence[Fault], until_s: float) -> Iterator[Seen]:
    """The schedule, as far as it was played, and the ends of processes in it: they happen within some milliseconds."""
    for fault in faults:
        if fault.at_s <= until_s:
            yield FaultBegan(at_ms=fault.at_s * 1000, fault=fault)
            yield FaultEnded(at_ms=min(fault.until_s, until_s) * 1000, fault=fault)
            if fault.kind in _ENDS_OF_HOSTS:
                for node in fault.nodes:
                    yield HostEnded(at_ms=fault.at_s * 1000, host=node, how=_ENDS_OF_HOSTS[fault.kind])


def of_calls(calls: Sequence[Call], clock: Clock) -> Iterator[Seen]:
    """What clients asked and heard."""
    for number, call in enumerate(calls, 1):
        asked = ClientAsked(
            at_ms=clock.ms(call.asked_at), host=call.node, call=number, command=call.command, args=call.args
        )
        yield asked
        yield ClientAnswered(
            at_ms=clock.ms(call.at),
            host=asked.host,
            call=number,
            command=asked.command,
            args=asked.args,
            answer=call.answer,
            error=call.error,
            text=call.text,
        )


def of_log(host: str, log: Path, clock: Clock) -> Iterator[Seen]:
    """How a node's mind changed about members, and what it warned of."""
    if not log.exists():
        return
    for line in log.read_text(errors="replace").splitlines():
        found = _LINE.fullmatch(line)
        if found is None:
            continue
        seconds, milliseconds, level, _, text = found.groups()
        at_ms = clock.ms(time.mktime(time.strptime(seconds, _TIME)) + int(milliseconds) / 1000)
        member = _MEMBER.fullmatch(text)
        if member is not None:
            node_id, before, after, reason = member.groups()
            change = MemberChanged(node_id, None if before == "new" else before, after, reason)
            yield MemberSeen(at_ms=at_ms, host=host, change=change)
        elif level in _LEVELS:
            yield Logged(at_ms=at_ms, host=host, level=_LEVELS[level], text=text)


def of_runs(runs: Sequence[AgentRun], replica: Replica | None, clock: Clock) -> Iterator[Seen]:
    """Runs of agents, with the names of their steps; how one ended that noted no end is in the history.

    Without a replica, as after a run that was interrupted, both stay unknown.
    """
    steps = {step.key: step for step in replica.table("steps")} if replica else {}
    ends = {
        (event.text("step_id"), event.text("fence")): event
        for event in (replica.table("history") if replica else ())
        if event.text("action") != Action.LOGGED
    }
    for run in runs:
        job = _job(run, steps.get(run.step_id))
        yield RunStarted(at_ms=clock.ms(run.at), host=run.node, job=job)
        at_ms, outcome = _end(run, ends.get((run.step_id, run.fence)), clock)
        yield RunEnded(at_ms=at_ms, host=run.node, job=job, outcome=outcome)


def of_rows(replica: Replica, clock: Clock) -> Iterator[Seen]:
    """What the mesh itself recorded: its history, and how steps ended; at the times and by the nodes in the rows."""
    for row in (*replica.table("history"), *replica.table("steps")):
        change = Change(before=None, after=row, local=True)
        yield Committed(at_ms=_stamped_ms(row, clock), host=row.node, changes=(change,), written=(), synced=True)


def _stamped_ms(row: Row, clock: Clock) -> float:
    return clock.ms((row.hlc >> 16) / 1000)


def _end(run: AgentRun, event: Row | None, clock: Clock) -> tuple[float, str]:
    if run.ended_at is not None:
        return clock.ms(run.ended_at), "success"
    if event is None:
        return clock.ms(run.at), "unknown"
    action = Action(event.text("action"))
    return _stamped_ms(event, clock), _OUTCOMES.get(action, str(action))


def _job(run: AgentRun, step: Row | None) -> Job:
    return Job(
        task_id=step.text("task_id") if step else "",
        step_id=run.step_id,
        step_name=step.text("name") if step else "",
        namespace="default",
        agent=step.text("agent") if step else "",
        attempt=run.attempt,
        fence=run.fence,
        traceparent="",
        timeout_s=0.0,
        payload=b"",
        parents={},
    )
