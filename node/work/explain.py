"""Says in words what became of a step: who ran it and why there, why twice, and why not yet.

Pure: it reads rows and a few facts about this node's view of the mesh. What it cannot know (what happens on the other
side of a cut) it says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mesh.fences import Fence
from mesh.placement import Offer
from mesh.rows import Row
from node.work.history import Action
from node.work.status import continues, depends_on, is_runnable, roster_of, step_status, tell_roster
from node.work.tables import Status
from node.work.work_queue import requirement_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What this node knows besides the rows."""

    me: str
    member_status: Mapping[str, str]
    """Protocol status by node id, as this node sees it."""
    offers: Mapping[str, Offer]
    """The profile of every node ever seen."""
    usable: Sequence[str] = ()
    """Members that are alive with a working store, as this node sees it."""
    gate_open: bool = True
    reclaim_frozen: bool = False
    paused: str | None = None
    idle_slots: int = 0
    missing_payloads: frozenset[str] = frozenset()
    """What the steps refer to and this node does not have."""
    running_here: frozenset[str] = field(default_factory=frozenset)
    linked_sites: bool = False
    """Whether an unknown owner is taken for one at another site."""
    lacks_support: Callable[[Row], str] = lambda _step: ""
    """Which support of its roster a step of this node lacks, as a sentence."""


def explain_step(step: Row, siblings: Sequence[Row], history: Sequence[Row], situation: Situation) -> dict[str, Any]:
    """The story of one step as `{"name", "status", "summary", "timeline": [sentence…], "events": […]}`."""
    by_name = {sibling.text("name"): sibling for sibling in siblings}
    events = sorted(
        (row for row in history if row.text("step_id") == step.key and row.text("action") != Action.LOGGED),
        key=lambda row: (row.hlc, row.key),
    )
    timeline: list[dict[str, Any]] = [{"atMs": step.integer("created_hlc") >> 16, "text": "submitted"}]
    timeline += [line for row in events if (line := _earlier_claim(row)) is not None]
    timeline += [{"atMs": row.hlc >> 16, "text": tell(row)} for row in events]
    timeline += _current_lease(step)
    timeline.sort(key=lambda item: int(item["atMs"]))
    return {
        "stepId": step.key,
        "name": step.text("name"),
        "status": step_status(step).value,
        "owner": step.text("owner"),
        "summary": summarise(step, by_name, events, situation),
        "timeline": timeline,
    }


def _earlier_claim(row: Row) -> dict[str, Any] | None:
    """When the owner that was taken over from had begun its run: nobody else wrote that down."""
    detail = json.loads(row.text("detail") or "{}")
    if row.text("action") != Action.TAKEN_OVER or detail.get("was") != Status.RUNNING:
        return None
    lease = Fence.decode(row.text("fence"))
    return {"atMs": detail["claimedAtMs"], "text": f"{row.text('from_node')} ran it under epoch {lease.lease_epoch}"}


def _current_lease(step: Row) -> list[dict[str, Any]]:
    status = step_status(step)
    owner, claimed = step.text("owner"), step.lease_hlc >> 16
    lines: list[dict[str, Any]] = []
    if step.integer("attempt") and status is not Status.CANCELLED:
        lines.append(
            {"atMs": claimed, "text": f"{owner} ran attempt {step.integer('attempt')} under epoch {step.lease_epoch}"}
        )
    if status.is_terminal:
        lines.append({"atMs": step.hlc >> 16, "text": f"ended as {status.value} on {owner}"})
    return lines


def tell(row: Row) -> str:
    """One history row as a sentence."""
    detail = json.loads(row.text("detail") or "{}")
    node, epoch = row.node, Fence.decode(row.text("fence")).lease_epoch
    match row.text("action"):
        case Action.TAKEN_OVER:
            return f"{node} took it over from {row.text('from_node')} ({detail.get('why')}; it was {detail.get('was')})"
        case Action.HANDED_OVER:
            return f"{node} handed it over to {detail.get('to')}: {detail.get('why')}"
        case Action.FAILED:
            kind = "" if detail.get("kind") == "failed" else f" ({detail.get('kind')})"
            return f"attempt {row.integer('attempt')} on {node} failed{kind}: {detail.get('error')}"
        case Action.LOST:
            return f"{node} lost its run under epoch {epoch}: {detail.get('why')}"
        case Action.RELEASED | Action.REQUEUED:
            return f"{node} gave its run under epoch {epoch} back, uncounted: {detail.get('why')}"
        case Action.ABORTED:
            return f"{node} stopped its run under epoch {epoch}; {detail.get('winner')} owns the step now"
        case Action.SUPERSEDED:
            tie = f" (decided by {detail['decidedBy']})" if "decidedBy" in detail else ""
            return (
                f"the {detail.get('outcome')} of {node} under epoch {epoch} was superseded by "
                f"{detail.get('winner')}: {detail.get('why')}{tie}"
            )
        case Action.REPLAYED:
            return f"an operator replayed it at {node} (it was {detail.get('was')})"
        case Action.CANCELLED:
            return f"{node} cancelled it ({detail.get('mode')}): {detail.get('reason') or 'no reason given'}"
        case other:
            return f"{node}: {other}"


def summarise(step: Row, by_name: Mapping[str, Row], events: Sequence[Row], situation: Situation) -> str:
    """One or two sentences: the state, and why."""
    status, owner = step_status(step), step.text("owner")
    runs = _runs(step, events)
    twice = f" It was started {runs} times: {_why_twice(events)}." if runs > 1 else ""
    match status:
        case Status.SUCCESS:
            return f"{owner} ran it and its result was accepted.{twice}"
        case Status.DEAD_LETTER:
            return f"It is a dead letter: {step.text('last_error')}. Mend the cause, then `relaymesh replay`.{twice}"
        case Status.CANCELLED:
            return f"It was cancelled: {step.text('last_error')}.{twice}"
        case Status.RUNNING:
            return f"{owner} runs it now (attempt {step.integer('attempt')}, epoch {step.lease_epoch}).{twice}" + (
                _owner_trouble(step, situation) + _support_trouble(step, situation)
            )
        case _:
            return why_not_yet(step, by_name, situation) + twice


def _runs(step: Row, events: Sequence[Row]) -> int:
    """How often the step was started: what the history tells, and the run under the present lease."""
    told = (Action.FAILED, Action.LOST, Action.RELEASED, Action.REQUEUED, Action.ABORTED, Action.SUPERSEDED)
    keys = {row.text("fence") for row in events if row.text("action") in told}
    keys |= {
        row.text("fence")
        for row in events
        if row.text("action") == Action.TAKEN_OVER and json.loads(row.text("detail")).get("was") == Status.RUNNING
    }
    # A step that waits has not been started under its present lease, or that run is over and told of above. The last
    # attempt of a dead letter is told of too, with the same fence.
    if step.integer("attempt") and step_status(step) not in (Status.PENDING, Status.RETRYING):
        keys.add(Fence.of(step, step.text("owner")).encode())
    return len(keys)


def _why_twice(events: Sequence[Row]) -> str:
    reasons = {
        Action.FAILED: "an attempt failed",
        Action.LOST: "its owner's process ended",
        Action.RELEASED: "its owner gave the run back",
        Action.REQUEUED: "the cluster epoch rose",
        Action.TAKEN_OVER: "its owner was gone during the run",
        Action.SUPERSEDED: "two nodes ran it without being able to hear each other",
        Action.ABORTED: "its lease moved during a run",
    }
    seen = dict.fromkeys(reasons[Action(row.text("action"))] for row in events if row.text("action") in reasons)
    return ", ".join(seen) or "see the timeline"


def why_not_yet(step: Row, by_name: Mapping[str, Row], situation: Situation) -> str:
    """Why a waiting step does not run now, the first reason that holds."""
    waiting = [
        name
        for name in depends_on(step)
        if name not in by_name
        or not (step_status(by_name[name]) is Status.SUCCESS or (continues(step) and by_name[name].rank))
    ]
    if waiting and not is_runnable(step, by_name):
        named = ", ".join(
            f"{name} ({step_status(by_name[name]).value if name in by_name else 'not here yet'})"
            for name in waiting[:5]
        )
        return f"It waits for {len(waiting)} step(s) it depends on: {named}."
    trouble = _owner_trouble(step, situation)
    if trouble:
        return "It waits." + trouble
    if step_status(step) is Status.RETRYING:
        return (
            f"Attempt {step.integer('attempt')} failed; {step.text('owner')} tries again "
            f"{step.integer('retry_delay_ms') / 1000:.1f} s after that. Last error: {step.text('last_error')}"
        )
    misfits = _misfits(step, situation)
    if misfits is not None:
        return f"No member can run it: {misfits}. It waits until one can."
    owner = situation.offers.get(step.text("owner"))
    miss = owner.misses(requirement_of(step)) if owner is not None else None
    if miss is not None:
        return (
            f"Its owner {step.text('owner')} {miss} and hands it over to a member that can run it: ask the owner, if "
            "this lasts."
        )
    missing = _missing_payload(step, by_name, situation)
    if missing:
        return missing
    lacking = _support_trouble(step, situation)
    if lacking:
        return "It waits." + lacking
    return f"It waits in the queue of {step.text('owner')} for a free slot." + _own_reasons(step, situation)


def _support_trouble(step: Row, situation: Situation) -> str:
    return situation.lacks_support(step) if step.text("owner") == situation.me else ""


def _missing_payload(step: Row, by_name: Mapping[str, Row], situation: Situation) -> str:
    """A step's row is small and comes at once; what it runs on may be large, and come later or never."""
    if step.text("owner") != situation.me:
        return ""
    needed = {"its input": step.text("input_ref")}
    needed |= {f"the result of {name}": by_name[name].text("result_ref") for name in depends_on(step)}
    for what, reference in needed.items():
        if reference in situation.missing_payloads:
            return (
                f"It waits for {what} ({reference}), which has not arrived at {situation.me} yet. If it was only on a "
                "disk that is lost, cancel the task and submit it again."
            )
    return ""


def _misfits(step: Row, situation: Situation) -> str | None:
    """Why each known member cannot run the step; None when at least one usable member can."""
    reasons = []
    for node, offer in sorted(situation.offers.items()):
        miss = offer.misses(requirement_of(step))
        if miss is None and node in situation.usable:
            return None
        status = situation.member_status.get(node, "unknown")
        reasons.append(f"{node} {miss}" if miss else f"{node} could, but is {status}")
    return "; ".join(reasons[:8]) or "no member has announced what it can run yet"


def _owner_trouble(step: Row, situation: Situation) -> str:
    owner = step.text("owner")
    status = situation.member_status.get(owner)
    if owner == situation.me or status == "ALIVE":
        return ""
    if status is None and situation.linked_sites:
        return (
            f" Its owner {owner} is not known here, so it is left to its site if anybody there can run it "
            "(setting linkedSites); `relaymesh mesh-recover` takes it over."
        )
    if status is None:
        return f" Its owner {owner} is not known here; after one dead time an able member takes it over."
    if status == "SUSPECT":
        return f" Its owner {owner} does not answer (SUSPECT): it refutes soon, or an able member takes over."
    if situation.reclaim_frozen:
        return (
            f" Its owner {owner} is {status}, but more than half of the mesh failed at once: nothing is taken over for "
            "two dead times, in case this node is the one that is cut off."
        )
    if roster := roster_of(step):
        return (
            f" Its owner {owner} is {status}; an able member takes it over once {tell_roster(roster)} agree, since it "
            "asked to run in one place only (on_partition=wait)."
        )
    return f" Its owner {owner} is {status}; an able member takes it over."


def _own_reasons(step: Row, situation: Situation) -> str:
    if step.text("owner") != situation.me:
        return ""
    if situation.paused:
        return f" This node starts nothing new: {situation.paused}."
    if not situation.gate_open:
        return " This node has just started or was paused, and waits to hear from a peer before it touches old work."
    return "" if situation.idle_slots else " All slots of this node are busy."
