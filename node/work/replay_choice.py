"""Which steps of a task a replay begins anew, which it leaves alone, and why: rules about rows, without a database.

Only a step that has ended can be replayed, because whoever owns one that has not may be running it. A replay that would
need such a step is refused whole.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from mesh.errors import ConflictError, NotFoundError
from mesh.rows import Row
from node.work.status import depends_on, is_runnable, step_status, waits
from node.work.tables import Status

FAILED = (Status.DEAD_LETTER, Status.CANCELLED)
"""What a replay without a name runs again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayChoice:
    """The steps to begin anew, parents before their children, and the names of the others with the reason."""

    chosen: Sequence[Row]
    left: Sequence[tuple[str, str]]


def choose_failed(task_id: str, steps: Sequence[Row], names: Collection[str] | None = None) -> ReplayChoice:
    """All dead letters and cancelled steps, or those among `names`. ConflictError when there is none."""
    chosen = [step for step in steps if step_status(step) in FAILED and (names is None or step.text("name") in names)]
    if not chosen:
        raise ConflictError(f"task {task_id} has no dead-letter or cancelled step to replay")
    return _choice(chosen, steps)


def choose_one(task_id: str, steps: Sequence[Row], name: str) -> ReplayChoice:
    """That step alone, even one that succeeded. NotFoundError, or ConflictError when it has not ended."""
    return _choice([_ended(task_id, steps, name)], steps)


def choose_from(task_id: str, steps: Sequence[Row], name: str) -> ReplayChoice:
    """That step and all that depend on it, directly or not, those that succeeded, too.

    Below it, a step that waits for a parent need not be touched: it gets the new outputs. NotFoundError for a name that
    the task does not have; ConflictError when a step has begun, or could begin any moment, on outputs that are to be
    replaced.
    """
    top = _ended(task_id, steps, name)
    by_name = {step.text("name"): step for step in steps}
    below = {name}
    grows = True
    while grows:  # a definition need not list parents first
        reached = {each.text("name") for each in steps if below.intersection(depends_on(each))} - below
        below |= reached
        grows = bool(reached)
    for step in steps:
        is_blocked = waits(step) and not is_runnable(step, by_name)
        if step.text("name") in below and not step_status(step).is_terminal and not is_blocked:
            raise ConflictError(
                f"step {step.text('name')!r} depends on {top.text('name')!r} and has not ended yet "
                f"({step.text('status')}): wait, or cancel it"
            )
    return _choice([step for step in steps if step.text("name") in below and step_status(step).is_terminal], steps)


def _ended(task_id: str, steps: Sequence[Row], name: str) -> Row:
    found = next((step for step in steps if step.text("name") == name), None)
    if found is None:
        raise NotFoundError(f"task {task_id} has no step {name!r}")
    if not step_status(found).is_terminal:
        raise ConflictError(f"step {name!r} has not ended yet ({found.text('status')}): wait, or cancel it")
    return found


def _choice(chosen: Sequence[Row], steps: Sequence[Row]) -> ReplayChoice:
    names = {step.text("name") for step in chosen}
    by_name = {step.text("name"): step for step in steps}
    left = [(step.text("name"), _why_left(step, by_name)) for step in steps if step.text("name") not in names]
    return ReplayChoice(chosen=_parents_first(chosen), left=left)


def _why_left(step: Row, by_name: dict[str, Row]) -> str:
    match step_status(step):
        case Status.SUCCESS:
            return "it succeeded: its result is kept"
        case Status.PENDING if not is_runnable(step, by_name):
            return "it has not begun: it runs when what it depends on is done"
        case Status.DEAD_LETTER | Status.CANCELLED:
            return f"it was not asked for, and stays {step.text('status')}"
        case _:
            return f"it has not ended ({step.text('status')})"


def _parents_first(chosen: Sequence[Row]) -> list[Row]:
    """Written in this order, no step is queued for a moment because its parent's old result still stands."""
    left = {step.text("name"): step for step in chosen}
    ordered: list[Row] = []
    while left:
        free = [step for step in left.values() if not left.keys() & set(depends_on(step))]
        assert free, "a definition has no circles"
        ordered += free
        for step in free:
            del left[step.text("name")]
    return ordered
