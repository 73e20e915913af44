"""Every run of a step, what became of it, and which one counts: read from the step's row and its history.

A run is known by its fence. Several rows may tell of one: the node that took the step over saw a run that was still
going on, and the node that ran it tells later how that ended.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mesh.fences import Fence
from mesh.rows import Row
from node.work.history import Action
from node.work.status import step_status
from node.work.tables import Status

_TOLD_BY = (
    # Who says most comes first. A result that lost is more than that its run was stopped, and that more than that it
    # was still going on when another node took the step.
    Action.SUPERSEDED,
    Action.FAILED,
    Action.SNOOZED,
    Action.ABORTED,
    Action.LOST,
    Action.REQUEUED,
    Action.RELEASED,
    Action.TAKEN_OVER,
)

_OWNER_MOVES = {Action.TAKEN_OVER: "took it over", Action.HANDED_OVER: "got it", Action.REPLAYED: "replayed it"}

_RANK_TEXTS = {"0": "not ended", **{str(status.rank): status.value for status in Status if status.is_terminal}}

_TIES = {
    "generation": "the later replay counts (generation {winner} over {loser})",
    "deleted": "the deletion counts",
    "rank": "{winner} counts more than {loser}: finished work is never undone",
    "clusterEpoch": "the higher cluster epoch counts ({winner} over {loser})",
    "leaseEpoch": "the lease that was opened later counts (epoch {winner} over {loser})",
    "leaseHlc": "of two leases with the same epoch, the one with the later stamp counts",
    "hlc": "of two results under one lease, the one that was written later counts",
    "node": "all else was equal, so the lexically lower node name counts ({winner} before {loser})",
    "origin": "all else was equal, so the later write of the node counts",
}


def runs_of(step: Row, events: Sequence[Row]) -> list[dict[str, Any]]:
    """All runs in the order in which they began; `events` are the history rows of the step.

    Each is `{"node", "epoch", "generation", "fence", "startedAtMs", "endedAtMs", "outcome", "text", "accepted"}`. The
    outcome is an action of the history (`failed`, `lost`, …), `running`, or how the step ended.
    """
    told: dict[str, tuple[int, Row]] = {}
    for event in events:
        action = Action(event.text("action")) if event.text("action") in _TOLD_BY else None
        if action is None or (action is Action.TAKEN_OVER and _detail(event).get("was") != Status.RUNNING):
            continue
        fence, place = event.text("fence"), _TOLD_BY.index(action)
        if fence not in told or place < told[fence][0]:
            told[fence] = (place, event)
    runs = {fence: _told_run(fence, event) for fence, (_, event) in told.items()}
    if (current := _current_run(step)) is not None:
        runs[current["fence"]] = {**runs.get(current["fence"], {}), **current}
    return sorted(runs.values(), key=lambda run: (run["startedAtMs"], run["fence"]))


def _current_run(step: Row) -> dict[str, Any] | None:
    # A step that waits has not been started under its present lease, or that run is over and told of. The last attempt
    # of a dead letter is told of too, with the same fence.
    status = step_status(step)
    if not step.integer("attempt") or status in (Status.PENDING, Status.RETRYING):
        return None
    fence = Fence.of(step, step.text("owner"))
    is_running = status is Status.RUNNING
    texts = {
        Status.RUNNING: "runs now",
        Status.SUCCESS: "its result is the accepted one",
        Status.DEAD_LETTER: f"the last attempt failed: {step.text('last_error')}",
        Status.CANCELLED: step.text("last_error") or "cancelled",
    }
    return {
        **_lease(fence),
        "endedAtMs": None if is_running else step.hlc >> 16,
        "outcome": "running" if is_running else status.value,
        "text": texts[status],
        "accepted": status is Status.SUCCESS,
    }


def _lease(fence: Fence) -> dict[str, Any]:
    return {
        "node": fence.node,
        "epoch": fence.lease_epoch,
        "generation": fence.generation,
        "fence": fence.encode(),
        "startedAtMs": fence.lease_hlc >> 16,
    }


def _told_run(fence: str, event: Row) -> dict[str, Any]:
    return {
        **_lease(Fence.decode(fence)),
        "endedAtMs": event.hlc >> 16,
        "outcome": event.text("action"),
        "text": _what_became(event),
        "accepted": False,
    }


def _what_became(event: Row) -> str:
    detail = _detail(event)
    match event.text("action"):
        case Action.SUPERSEDED:
            return (
                f"its {detail.get('outcome')} does not count, {detail.get('winner')} has the step: {detail.get('why')}"
            )
        case Action.FAILED:
            kind = "" if detail.get("kind") == "failed" else f" ({detail.get('kind')})"
            return f"failed{kind}: {detail.get('error')}"
        case Action.SNOOZED:
            return f"asked to be run again, which counts as no attempt: {detail.get('reason')}"
        case Action.ABORTED:
            return f"was stopped, {detail.get('winner')} owned the step by then"
        case Action.TAKEN_OVER:
            return f"was going on when {event.node} took the step over; what became of it is not told here"
        case Action.LOST:
            return "ended with the process of its node"
        case _:
            return f"was given back and does not count as an attempt: {detail.get('why')}"


def ties_of(events: Sequence[Row]) -> list[dict[str, Any]]:
    """Where two results met: who lost to whom, and which part of the merge order decided.

    Each is `{"atMs", "decidedBy", "winner", "loser", "winnerValue", "loserValue", "text"}`.
    """
    ties = []
    for event in events:
        detail = _detail(event)
        if event.text("action") != Action.SUPERSEDED or "decidedBy" not in detail:
            continue
        # A peer's: the rules for rows say that it is an object, and nothing about what is in it.
        decided_by, winner, loser = str(detail["decidedBy"]), detail.get("winnerValue"), detail.get("loserValue")
        is_rank = decided_by == "rank"
        shown = [_RANK_TEXTS.get(str(value or 0), str(value)) if is_rank else value for value in (winner, loser)]
        ties.append(
            {
                "atMs": event.hlc >> 16,
                "decidedBy": decided_by,
                "winner": detail.get("winner"),
                "loser": event.node,
                "winnerValue": winner,
                "loserValue": loser,
                "text": _TIES.get(decided_by, f"{decided_by} decided").format(winner=shown[0], loser=shown[1]),
            }
        )
    return ties


def owners_of(step: Row, events: Sequence[Row]) -> list[dict[str, Any]]:
    """Who owned the step from when to when, as far as this node has heard.

    Each is `{"node", "epoch", "fromMs", "untilMs", "how"}`; the epoch is the one under which the owner got the step,
    None for the first. On two sides of a cut a step has two owners at a time: they are shown one after the other.
    """
    moves = [event for event in events if event.text("action") in _OWNER_MOVES]
    first = step.text("owner") if not moves else moves[0].text("from_node") or moves[0].node
    begun_ms = step.integer("created_hlc") >> 16
    owners: list[dict[str, Any]] = [
        {"node": first, "epoch": None, "fromMs": begun_ms, "untilMs": None, "how": "it was submitted there"}
    ]
    for event in moves:
        action = Action(event.text("action"))
        heir = str(_detail(event).get("to")) if action is Action.HANDED_OVER else event.node
        owners[-1]["untilMs"] = event.hlc >> 16
        owners.append(
            {
                "node": heir,
                "epoch": Fence.decode(event.text("fence")).lease_epoch + 1,
                "fromMs": event.hlc >> 16,
                "untilMs": None,
                "how": f"{heir} {_OWNER_MOVES[action]}",
            }
        )
    return owners


def _detail(event: Row) -> Mapping[str, Any]:
    found = json.loads(event.text("detail") or "{}")
    return found if isinstance(found, dict) else {}
