"""A task's status, folded from its steps. Nothing stores it, so no merge can make the two disagree."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence

from mesh.rows import Row
from mesh.support import majority
from node.work.tables import Status

_BY_TEXT: Mapping[str, Status] = {status.value: status for status in Status}  # a third of the time of Status(text)


def step_status(step: Row) -> Status:
    """The status column as the enum. Rows that cannot be read so never pass node/work/row_rules.py."""
    return _BY_TEXT[step.text("status")]


def waits(step: Row) -> bool:
    """Whether the step is neither running nor ended: it may begin, for the first time or again, once it is free."""
    return step_status(step) in (Status.PENDING, Status.RETRYING)


def depends_on(step: Row) -> list[str]:
    """The names of the steps whose success this one needs."""
    text = step.text("depends_on")
    return [str(name) for name in json.loads(text)] if text else []


def roster_of(step: Row) -> list[str]:
    """The members whose majority must support whoever runs this step; empty when nobody needs to."""
    text = step.text("roster")
    return [str(name) for name in json.loads(text)] if text else []


def tell_roster(roster: Sequence[str]) -> str:
    """A roster for people: how many are a majority, and who they are."""
    named = ", ".join(roster[:9]) + (", …" if len(roster) > 9 else "")
    return f"{majority(roster)} of the {len(roster)} members of its roster ({named})"


def continues(step: Row) -> bool:
    """Whether the step runs when its parents have ended, however they did."""
    return step.text("on_failure") == "continue"


def is_runnable(step: Row, by_name: Mapping[str, Row]) -> bool:
    """Whether everything that the step depends on has succeeded; for a step that continues: has ended."""
    ended = ended_names(by_name) if continues(step) else None
    return _is_runnable(step, by_name, ended)


def _is_runnable(step: Row, by_name: Mapping[str, Row], ended: Collection[str] | None) -> bool:
    names = depends_on(step)
    if continues(step) and ended is not None:
        return all(name in ended for name in names)
    return all(
        name in by_name and not by_name[name].deleted and step_status(by_name[name]) is Status.SUCCESS for name in names
    )


def ended_names(by_name: Mapping[str, Row]) -> set[str]:
    """The names of the steps that will not run any more: those that have ended, and those that wait in vain below one.

    Without recursion, since a thousand steps may stand in one chain.
    """
    live = {name: step for name, step in by_name.items() if not step.deleted}
    below: dict[str, list[str]] = {}
    for name, step in live.items():
        if waits(step) and not continues(step):
            for parent in depends_on(step):
                below.setdefault(parent, []).append(name)
    ended = {name for name, step in live.items() if step_status(step).is_terminal}
    failed = [name for name in ended if step_status(live[name]) is not Status.SUCCESS]
    while failed:
        blocked = [name for name in below.get(failed.pop(), ()) if name not in ended]
        ended.update(blocked)
        failed += blocked
    return ended


def task_status(task: Row, steps: Iterable[Row]) -> Status:
    """The status of a task, the first of these that matches:

    all SUCCESS; any RUNNING; any runnable RETRYING; any runnable PENDING; any DEAD_LETTER; else CANCELLED. A step that
    waits for a parent which will never succeed counts for nothing: it is blocked, and the parent's end is the task's
    end. So is one that was tried already, when a replayed parent failed meanwhile.

    A task of which steps are missing here has not ended: they come, or went with the only disk that had them. Only
    where a cancel was asked for, and some step obeyed or failed, does it not matter how they ended.
    """
    live = [step for step in steps if not step.deleted]
    folded = _fold(live)
    if folded.is_terminal and is_partial(task, live) and (not task.rank or folded is Status.SUCCESS):
        return Status.PENDING
    return folded


def is_partial(task: Row, steps: Sequence[Row]) -> bool:
    """Whether steps of the task are missing here."""
    return len(steps) < task.integer("step_count")


def _fold(live: Sequence[Row]) -> Status:
    statuses = [step_status(step) for step in live]
    if not live:
        return Status.PENDING  # the task row came before its steps did
    if all(status is Status.SUCCESS for status in statuses):
        return Status.SUCCESS
    if Status.RUNNING in statuses:
        return Status.RUNNING
    by_name = {step.text("name"): step for step in live}
    ended = ended_names(by_name) if any(continues(step) for step in live) else None
    for wanted in (Status.RETRYING, Status.PENDING):
        if any(
            status is wanted and _is_runnable(step, by_name, ended) for step, status in zip(live, statuses, strict=True)
        ):
            return wanted
    return Status.DEAD_LETTER if Status.DEAD_LETTER in statuses else Status.CANCELLED
