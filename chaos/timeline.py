"""Turns what is seen of a run into the marks and bars of its timeline."""

from __future__ import annotations

from collections.abc import Sequence

from chaos.observations import (
    ClientAnswered,
    ClientAsked,
    Committed,
    FaultBegan,
    FaultEnded,
    HostEnded,
    HostStarted,
    MemberSeen,
    RunEnded,
    RunStarted,
    Seen,
    SinkWrite,
)
from chaos.runs import TimelineEvent
from chaos.scenario import Fault
from node.env import Job

DETAIL_CHARS_MAX = 1_500
_TONES = {"ALIVE": "good", "SUSPECT": "warn", "DEAD": "bad", "LEFT": "plain"}
_RUN_TONES = {"success": "good", "killed": "bad", "crashed": "bad"}


class TimelineKeeper:
    """Hears every observation; `events` gives the timeline of what it heard."""

    def __init__(self) -> None:
        self._events: list[TimelineEvent] = []
        self._faults: dict[int, float] = {}
        self._runs: dict[tuple[str, str], RunStarted] = {}
        self._calls: dict[int, ClientAsked] = {}

    def events(self) -> Sequence[TimelineEvent]:
        """All of it, by time."""
        return sorted(self._events, key=lambda event: (event.at_ms, event.lane, event.host, event.label))

    def see(self, seen: Seen) -> None:
        """Hear what happened."""
        match seen:
            case FaultBegan():
                self._faults[id(seen.fault)] = seen.at_ms
            case FaultEnded():
                began_ms = self._faults.pop(id(seen.fault), seen.at_ms)
                self._add(seen, "faults", seen.fault.kind, _fault_text(seen.fault), began_ms=began_ms, tone="warn")
            case HostStarted():
                self._add(seen, "membership", "starts", f"life {seen.life:x}, origin {seen.origin}", tone="good")
            case HostEnded():
                self._add(seen, "membership", f"ends: {seen.how}", seen.detail, tone="bad")
            case MemberSeen(change=change):
                text = f"{change.node_id}: {change.before or 'new'} -> {change.after} ({change.reason})"
                tone = _TONES.get(change.after, "plain")
                self._add(seen, "membership", f"{change.node_id} {change.after}", text, tone=tone)
            case RunStarted():
                self._runs[seen.host, seen.job.fence] = seen
            case RunEnded():
                started = self._runs.pop((seen.host, seen.job.fence), None)
                began_ms = seen.at_ms if started is None else started.at_ms
                tone = _RUN_TONES.get(seen.outcome, "warn")
                label = f"{seen.job.step_name} {seen.outcome}"
                self._add(seen, "leases", label, _job_text(seen.job), began_ms=began_ms, tone=tone)
            case SinkWrite(accepted=False):
                self._add(seen, "leases", "sink refused", f"step {seen.step_id} fence {seen.fence}", tone="warn")
            case Committed():
                texts = [
                    f"{'own' if change.local else 'merged'} {change.after.table} {change.after.key} "
                    f"{change.after.values.get('status') or ''!s} epoch {change.after.lease_epoch} "
                    f"seq {change.after.seq} of {change.after.origin.node}"
                    for change in seen.changes
                ]
                self._add(seen, "commits", f"{len(seen.changes)} rows", "\n".join(texts))
            case ClientAsked():
                self._calls[seen.call] = seen
            case ClientAnswered():
                asked = self._calls.pop(seen.call, None)
                tone = "good" if seen.answer is not None else ("warn" if seen.error else "bad")
                detail = f"{seen.command} {dict(seen.args)}\n{seen.answer or f'{seen.error}: {seen.text}'}"
                began_ms = seen.at_ms if asked is None else asked.at_ms
                self._add(seen, "clients", seen.command, detail, began_ms=began_ms, tone=tone)
            case _:
                pass  # samples and logs are no marks

    def _add(
        self, seen: Seen, lane: str, label: str, detail: str, *, began_ms: float | None = None, tone: str = "plain"
    ) -> None:
        self._events.append(
            TimelineEvent(
                at_ms=seen.at_ms if began_ms is None else began_ms,
                until_ms=None if began_ms is None else seen.at_ms,
                lane=lane,
                host=seen.host,
                label=label,
                detail=detail[:DETAIL_CHARS_MAX],
                tone=tone,
            )
        )


def _fault_text(fault: Fault) -> str:
    sides = " | ".join("+".join(side) for side in fault.groups)
    options = ", ".join(f"{name}={value}" for name, value in fault.options.items())
    return " ".join(part for part in (fault.kind, "+".join(fault.nodes), sides, options) if part)


def _job_text(job: Job) -> str:
    return f"task {job.task_id}\nstep {job.step_id} ({job.step_name})\nattempt {job.attempt}\nfence {job.fence}"
