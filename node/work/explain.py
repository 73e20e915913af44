"""Says in words what became of a step: who ran it and why there, why twice, and why not yet.

Pure: it reads rows and a few facts about this node's view of the mesh. What it cannot know (what happens on the other
side of a cut) it says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mesh.fences import Fence
from mesh.placement import Offer
from mesh.rows import Row
from node.work.handler_choices import SNOOZED
from node.work.history import Action
from node.work.runs import owners_of, runs_of, ties_of
from node.work.status import continues, depends_on, is_runnable, roster_of, step_status, tell_roster
from node.work.tables import Status
from node.work.timing import tell_waiting
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
    now_ms: int | None = None
    """This node's physical clock; without it nothing is said of what is due when."""
    dead_in_s: Mapping[str, float] = field(default_factory=dict)
    """Of SUSPECT members: in how many seconds each is DEAD, unless it answers."""
    store_failed: frozenset[str] = frozenset()
    """Members that say themselves that they cannot commit."""
    heirs: Callable[[Row], Sequence[str]] = lambda _step: ()
    """Who could take a step over, in order."""
    full_agents: frozenset[str] = frozenset()
    """Agents of which this node runs as many at a time as it may."""
    holds: Mapping[str, str] = field(default_factory=dict)
    """What was paused, by the key of its row, and by whom and why."""


class Reason(NamedTuple):
    """One thing that keeps a step from running or ending: a word for programs, a sentence for people."""

    code: str
    text: str


def explain_step(
    step: Row, siblings: Sequence[Row], history: Sequence[Row], situation: Situation, task: Row | None = None
) -> dict[str, Any]:
    """The story of one step.

    `{"stepId", "name", "status", "owner", "summary", "reasons": [{"code", "text"}…], "owners", "runs", "ties",
    "timeline": [{"atMs", "text", "node", "epoch", "action"}…]}`; for owners, runs and ties see node/work/runs.py.
    """
    by_name = {sibling.text("name"): sibling for sibling in siblings}
    events = sorted(
        (row for row in history if row.text("step_id") == step.key and row.text("action") != Action.LOGGED),
        key=lambda row: (row.hlc, row.key),
    )
    owners = owners_of(step, events)
    timeline = [_line(step.integer("created_hlc") >> 16, "submitted", owners[0]["node"], None, "submitted")]
    timeline += [line for row in events if (line := _earlier_claim(row)) is not None]
    timeline += [
        _line(row.hlc >> 16, tell(row), row.node, Fence.decode(row.text("fence")).lease_epoch, row.text("action"))
        for row in events
    ]
    timeline += _current_lease(step)
    timeline.sort(key=lambda item: int(item["atMs"]))
    return {
        "stepId": step.key,
        "name": step.text("name"),
        "status": step_status(step).value,
        "owner": step.text("owner"),
        "summary": summarise(step, by_name, events, situation),
        "reasons": [reason._asdict() for reason in reasons(step, by_name, situation, task)],
        "owners": owners,
        "runs": runs_of(step, events),
        "ties": ties_of(events),
        "timeline": timeline,
    }


def _line(at_ms: int, text: str, node: str, epoch: int | None, action: str) -> dict[str, Any]:
    return {"atMs": at_ms, "text": text, "node": node, "epoch": epoch, "action": action}


def _earlier_claim(row: Row) -> dict[str, Any] | None:
    """When the owner that was taken over from had begun its run: nobody else wrote that down."""
    detail = json.loads(row.text("detail") or "{}")
    if row.text("action") != Action.TAKEN_OVER or detail.get("was") != Status.RUNNING:
        return None
    lease = Fence.decode(row.text("fence"))
    text = f"{row.text('from_node')} ran it under epoch {lease.lease_epoch}"
    return _line(detail["claimedAtMs"], text, row.text("from_node"), lease.lease_epoch, "claimed")


def _current_lease(step: Row) -> list[dict[str, Any]]:
    status = step_status(step)
    owner, claimed = step.text("owner"), step.lease_hlc >> 16
    lines: list[dict[str, Any]] = []
    if step.integer("attempt") and status is not Status.CANCELLED:
        text = f"{owner} ran attempt {step.integer('attempt')} under epoch {step.lease_epoch}"
        lines.append(_line(claimed, text, owner, step.lease_epoch, "claimed"))
    if status.is_terminal:
        lines.append(_line(step.hlc >> 16, f"ended as {status.value} on {owner}", owner, step.lease_epoch, "ended"))
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
        case Action.SNOOZED:
            wait_s = int(detail.get("delayMs", 0)) / 1000
            return f"its handler on {node} asked to be run again {wait_s:.1f} s later: {detail.get('reason')}"
        case Action.EXPIRED:
            return f"{node} gave it up: it had not begun within {detail.get('expiresMs', 0) / 1000:g} s of its submit"
        case other:
            return f"{node}: {other}"


def summarise(step: Row, by_name: Mapping[str, Row], events: Sequence[Row], situation: Situation) -> str:
    """One or two sentences: the state, and why."""
    status, owner = step_status(step), step.text("owner")
    runs = len(runs_of(step, events))
    twice = f" It was started {runs} times: {_why_twice(events)}." if runs > 1 else ""
    match status:
        case Status.SUCCESS:
            return f"{owner} ran it and its result was accepted.{twice}"
        case Status.DEAD_LETTER:
            return f"It is a dead letter: {step.text('last_error')}. Mend the cause, then `relaymesh replay`.{twice}"
        case Status.CANCELLED:
            last_error = step.text("last_error")
            was = {"expired": "It ", "cancelled": "It was "}.get(re.split("[: ]", last_error)[0], "It was cancelled: ")
            return f"{was}{last_error}.{twice}"
        case Status.RUNNING:
            return f"{owner} runs it now (attempt {step.integer('attempt')}, epoch {step.lease_epoch}).{twice}" + (
                _owner_trouble(step, situation) + _support_trouble(step, situation)
            )
        case _:
            waited = "" if situation.now_ms is None else tell_waiting(step, situation.now_ms)
            return why_not_yet(step, by_name, situation) + waited + twice


def _why_twice(events: Sequence[Row]) -> str:
    reasons = {
        Action.FAILED: "an attempt failed",
        Action.LOST: "its owner's process ended",
        Action.RELEASED: "its owner gave the run back",
        Action.REQUEUED: "the cluster epoch rose",
        Action.TAKEN_OVER: "its owner was gone during the run",
        Action.SUPERSEDED: "two nodes ran it without being able to hear each other",
        Action.ABORTED: "its lease moved during a run",
        Action.SNOOZED: "its handler asked to be run again later",
    }
    told = [row for row in events if row.text("action") in reasons and not _took_over_what_waited(row)]
    seen = dict.fromkeys(reasons[Action(row.text("action"))] for row in told)
    return ", ".join(seen) or "see the timeline"


def _took_over_what_waited(row: Row) -> bool:
    detail = json.loads(row.text("detail") or "{}")
    return row.text("action") == Action.TAKEN_OVER and detail.get("was") != Status.RUNNING


def why_not_yet(step: Row, by_name: Mapping[str, Row], situation: Situation) -> str:
    """Why a waiting step does not run now, the first reason that holds."""
    first = reasons(step, by_name, situation)[0]
    return f"It waits. {first.text}" if first.code in _ABOUT_OTHERS else first.text


def reasons(step: Row, by_name: Mapping[str, Row], situation: Situation, task: Row | None = None) -> list[Reason]:
    """All that keeps the step from running, or a running one from ending well, the weightiest first.

    Of a waiting step there is at least one; of one that ended there is none.
    """
    status = step_status(step)
    if status.is_terminal:
        return []
    found = [
        _blocked(step, by_name),
        Reason("owner-away", _owner_trouble(step, situation).strip()),
        _cancel(step, situation, task),
    ]
    if status is Status.RUNNING:
        return [reason for reason in [*found, _support(step, situation)] if reason.text]
    found += [_held(step, situation), _not_due(step, situation), *_place(step, situation)]
    found += [Reason("payload", _missing_payload(step, by_name, situation)), _support(step, situation)]
    weighty = [reason for reason in found if reason.text]
    here = _own_reasons(step, situation)
    if weighty:
        # Whether a slot is free does not matter to what could not use one; but a shut gate is told of.
        return weighty + [reason for reason in here if reason.code in ("node-paused", "gate")]
    queued = f"It waits in the queue of {step.text('owner')} for a free slot."
    return [Reason("slots", " ".join([queued, *(reason.text for reason in here)])), *here]


_ABOUT_OTHERS = ("owner-away", "support")
"""Reasons whose sentences do not say themselves that the step waits."""


def _blocked(step: Row, by_name: Mapping[str, Row]) -> Reason:
    waiting = [
        name
        for name in depends_on(step)
        if name not in by_name
        or not (step_status(by_name[name]) is Status.SUCCESS or (continues(step) and by_name[name].rank))
    ]
    if not waiting or is_runnable(step, by_name):
        return Reason("parents", "")
    named = ", ".join(
        f"{name} ({step_status(by_name[name]).value if name in by_name else 'not here yet'})" for name in waiting[:5]
    )
    text = f"It waits for {len(waiting)} step(s) it depends on: {named}."
    ended = [name for name in waiting if name in by_name and step_status(by_name[name]).is_terminal]
    if ended:
        text += f" It never runs unless {ended[0]} succeeds: mend what made that fail, then `relaymesh replay`."
    return Reason("parents", text)


def _cancel(step: Row, situation: Situation, task: Row | None) -> Reason:
    if task is None or step.integer("task_generation") >= task.integer("cancelled_below"):
        return Reason("cancel", "")
    mode, why, owner = task.text("cancel_mode"), task.text("cancel_reason"), step.text("owner")
    may_end = mode == "soft" and step_status(step) is Status.RUNNING
    obeys = "lets this run end first" if may_end else "ends it"
    return Reason("cancel", f"A {mode} cancel was requested ({why or 'no reason given'}): {owner} {obeys}.")


def _held(step: Row, situation: Situation) -> Reason:
    owner, agent = step.text("owner"), step.text("agent")
    for key in ("mesh", f"node {owner}", f"drain {owner}", f"agent {agent}"):
        if key in situation.holds:
            what = "The whole mesh" if key == "mesh" else key[0].upper() + key[1:]
            if key.startswith("drain "):
                resume = f"`relaymesh resume --node {owner}`"
                return Reason("held", f"Node {owner} is drained {situation.holds[key]}: {resume} ends that.")
            resume = f"`relaymesh resume --{key}`"  # a scope's key and the option that names it are alike
            return Reason("held", f"{what} was paused {situation.holds[key]}: {resume} lets it go on.")
    return Reason("held", "")


def _not_due(step: Row, situation: Situation) -> Reason:
    now_ms, delay_ms = situation.now_ms, step.integer("delay_ms")
    if step_status(step) is Status.RETRYING:
        due_ms = (step.hlc >> 16) + step.integer("retry_delay_ms")
        due = f" (due {_in_words(due_ms, now_ms)})" if now_ms is not None else ""
        if step.text("last_error").startswith(SNOOZED):
            return Reason(
                "snoozed",
                f"Its handler asked to be run again {step.integer('retry_delay_ms') / 1000:.1f} s after its last run"
                f"{due}, which counts as no attempt ({step.text('last_error')}); {step.text('owner')} does so.",
            )
        return Reason(
            "retry",
            f"Attempt {step.integer('attempt')} failed; {step.text('owner')} tries again "
            f"{step.integer('retry_delay_ms') / 1000:.1f} s after that{due}. Last error: {step.text('last_error')}",
        )
    if not delay_ms or now_ms is None or (due_ms := (step.integer("created_hlc") >> 16) + delay_ms) <= now_ms:
        return Reason("delay", "")
    return Reason("delay", f"It was submitted with a delay of {delay_ms / 1000:g} s: due {_in_words(due_ms, now_ms)}.")


def _in_words(due_ms: int, now_ms: int) -> str:
    return f"in {(due_ms - now_ms) / 1000:.1f} s" if due_ms > now_ms else "now"


def _place(step: Row, situation: Situation) -> list[Reason]:
    """Who can run it at all: nobody, or others than its owner."""
    misfits = _misfits(step, situation)
    if misfits is not None:
        return [Reason("nobody-able", f"No member can run it: {misfits}. It waits until one can.")]
    owner = situation.offers.get(step.text("owner"))
    miss = owner.misses(requirement_of(step)) if owner is not None else None
    if miss is None:
        return []
    return [
        Reason(
            "owner-unable",
            f"Its owner {step.text('owner')} {miss} and hands it over to a member that can run it: ask the owner, if "
            "this lasts.",
        )
    ]


def _support(step: Row, situation: Situation) -> Reason:
    return Reason("support", _support_trouble(step, situation).strip())


def _support_trouble(step: Row, situation: Situation) -> str:
    return situation.lacks_support(step) if step.text("owner") == situation.me else ""


def _missing_payload(step: Row, by_name: Mapping[str, Row], situation: Situation) -> str:
    """A step's row is small and comes at once; what it runs on may be large, and come later or never."""
    if step.text("owner") != situation.me:
        return ""
    needed = {"its input": step.text("input_ref")}
    needed |= {
        f"the result of {name}": by_name[name].text("result_ref") for name in depends_on(step) if name in by_name
    }
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
    if owner in situation.store_failed and owner != situation.me:
        return f" Its owner {owner} says that its store fails; an able member takes it over."
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
        by_then = situation.dead_in_s.get(owner)
        when = "" if by_then is None else f" in {max(0.0, by_then):.1f} s"
        heir = f"{heirs[0]}" if (heirs := situation.heirs(step)) else "an able member"
        return f" Its owner {owner} does not answer (SUSPECT): it refutes soon, or {heir} takes over{when}."
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
    heirs = situation.heirs(step)
    heir = f"{heirs[0]}" + (f", or {heirs[1]} a moment later," if heirs[1:] else "") if heirs else "an able member"
    return f" Its owner {owner} is {status}; {heir} takes it over."


def _own_reasons(step: Row, situation: Situation) -> list[Reason]:
    """What this node, as its owner, has to say beside: that it starts nothing, or has no room."""
    if step.text("owner") != situation.me:
        return []
    if situation.paused:
        return [Reason("node-paused", f"This node starts nothing new: {situation.paused}.")]
    if not situation.gate_open:
        return [
            Reason(
                "gate",
                "This node has just started or was paused, and waits to hear from a peer before it touches old work.",
            )
        ]
    if step.text("agent") in situation.full_agents:
        return [Reason("agent-full", f"This node runs as many of {step.text('agent')} at a time as it may.")]
    return [] if situation.idle_slots else [Reason("slots-full", "All slots of this node are busy.")]
