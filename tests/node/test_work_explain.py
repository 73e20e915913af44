"""Every sentence that tells of a step: what it is, why twice, and why not yet."""

from __future__ import annotations

import json

import msgspec
import pytest

from mesh.fences import Fence
from mesh.ids import Origin
from mesh.placement import Offer
from mesh.rows import Row
from node.work.explain import Situation, explain_step, reasons, summarise, tell, why_not_yet
from node.work.history import Action
from node.work.tables import Status

HERE = Situation(
    me="a",
    member_status={"a": "ALIVE", "b": "ALIVE", "c": "DEAD"},
    offers={name: Offer(node=name, abilities=frozenset({"echo"})) for name in "abc"},
    usable=("a", "b"),
    idle_slots=1,
)


def a_step(status: Status = Status.PENDING, name: str = "s", owner: str = "a", **values) -> Row:
    return Row(
        table="steps",
        namespace="default",
        key=f"stp_{name}",
        rank=status.rank,
        lease_epoch=3,
        lease_hlc=2000 << 16,
        hlc=3000 << 16,
        node=owner,
        origin=Origin(owner, 1),
        seq=1,
        values={"name": name, "status": status.value, "owner": owner, "agent": "echo", **values},
    )


def earlier() -> Row:
    """The step under the lease before its present one."""
    return msgspec.structs.replace(a_step(), lease_epoch=2)


def event(action: Action, node: str = "a", *, step: Row | None = None, at_ms: int = 2500, **detail) -> Row:
    row = step or a_step()
    from_node = detail.pop("from_node", None)
    values = {
        "step_id": row.key,
        "action": action.value,
        "attempt": 1,
        "fence": Fence.of(row, node).encode(),
        "detail": json.dumps(detail),
    }
    if from_node:
        values["from_node"] = from_node
    return Row(
        table="history",
        namespace="default",
        key=f"{action}-{at_ms}",
        hlc=at_ms << 16,
        node=node,
        origin=Origin(node, 1),
        seq=2,
        values=values,
    )


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (
            event(Action.TAKEN_OVER, "b", from_node="c", why="owner c is dead", was="RUNNING"),
            "b took it over from c (owner c is dead; it was RUNNING)",
        ),
        (event(Action.FAILED, kind="failed", error="ValueError: x"), "attempt 1 on a failed: ValueError: x"),
        (event(Action.HANDED_OVER, to="b", why="it asked"), "a handed it over to b: it asked"),
        (event(Action.FAILED, kind="timeout", error="too slow"), "attempt 1 on a failed (timeout): too slow"),
        (event(Action.LOST, why="gone"), "a lost its run under epoch 3: gone"),
        (event(Action.RELEASED, why="stopping"), "a gave its run under epoch 3 back, uncounted: stopping"),
        (event(Action.REQUEUED, why="epoch"), "a gave its run under epoch 3 back, uncounted: epoch"),
        (event(Action.ABORTED, winner="b"), "a stopped its run under epoch 3; b owns the step now"),
        (
            event(Action.SUPERSEDED, outcome="success", winner="b", why="late", decidedBy="leaseEpoch"),
            "the success of a under epoch 3 was superseded by b: late (decided by leaseEpoch)",
        ),
        (event(Action.REPLAYED, was="DEAD_LETTER"), "an operator replayed it at a (it was DEAD_LETTER)"),
        (event(Action.CANCELLED, mode="hard"), "a cancelled it (hard): no reason given"),
    ],
)
def test_each_event_is_one_sentence(row, sentence):
    assert tell(row) == sentence


def summary(step: Row, *events: Row, situation: Situation = HERE) -> str:
    return summarise(step, {step.text("name"): step}, events, situation)


def test_ended_steps_say_how():
    assert summary(a_step(Status.SUCCESS)) == "a ran it and its result was accepted."
    dead = a_step(Status.DEAD_LETTER, last_error="no luck")
    assert summary(dead) == "It is a dead letter: no luck. Mend the cause, then `relaymesh replay`."
    assert summary(a_step(Status.CANCELLED, last_error="cancelled: why")) == "It was cancelled: why."


def test_a_running_step_names_its_owner_and_its_owners_trouble():
    assert summary(a_step(Status.RUNNING, attempt=2)) == "a runs it now (attempt 2, epoch 3)."
    assert summary(a_step(Status.RUNNING, owner="c", attempt=1)).endswith(
        "Its owner c is DEAD; an able member takes it over."
    )


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        (Action.FAILED, "an attempt failed"),
        (Action.LOST, "its owner's process ended"),
        (Action.RELEASED, "its owner gave the run back"),
        (Action.REQUEUED, "the cluster epoch rose"),
        (Action.SUPERSEDED, "two nodes ran it without being able to hear each other"),
        (Action.ABORTED, "its lease moved during a run"),
    ],
)
def test_a_second_run_is_explained(action, reason):
    step = a_step(Status.SUCCESS, attempt=1)
    assert summary(step, event(action, step=earlier())).endswith(f"It was started 2 times: {reason}.")


def test_a_dead_letter_counts_its_last_attempt_once_and_a_waiting_step_no_run_to_come():
    failures = [event(Action.FAILED, step=earlier()), event(Action.FAILED, kind="failed", error="no luck")]
    dead = a_step(Status.DEAD_LETTER, attempt=2, last_error="no luck")
    assert summary(dead, *failures).endswith("It was started 2 times: an attempt failed.")
    assert "times" not in summary(dead, failures[1])
    assert "times" not in summary(a_step(Status.RETRYING, attempt=1, last_error="no luck"), failures[1])
    waiting = a_step(attempt=1)
    assert "times" not in summary(waiting, event(Action.TAKEN_OVER, step=earlier(), from_node="c", was="RUNNING"))


def test_taking_over_what_only_waited_is_no_second_run():
    step = a_step(Status.SUCCESS, attempt=1)
    waited = event(Action.TAKEN_OVER, "a", step=earlier(), from_node="c", was="PENDING")
    ran = event(Action.TAKEN_OVER, "a", step=earlier(), from_node="c", was="RUNNING")
    assert "times" not in summary(step, waited)
    back = event(Action.RELEASED, "c", step=earlier())
    assert summary(step, back, waited).endswith("started 2 times: its owner gave the run back.")
    assert summary(step, ran).endswith("started 2 times: its owner was gone during the run.")


def not_yet(step: Row, *siblings: Row, **changes) -> str:
    situation = HERE if not changes else _changed(**changes)
    return why_not_yet(step, {row.text("name"): row for row in (step, *siblings)}, situation)


def _changed(**changes) -> Situation:
    fields = {name: getattr(HERE, name) for name in Situation.__dataclass_fields__}
    return Situation(**{**fields, **changes})


def test_why_not_yet_gives_the_first_reason_that_holds():
    child = a_step(name="y", depends_on='["x", "z"]')
    assert not_yet(child, a_step(Status.RUNNING, name="x")) == (
        "It waits for 2 step(s) it depends on: x (RUNNING), z (not here yet)."
    )
    assert not_yet(a_step(owner="d")).startswith("It waits. Its owner d is not known here; after one dead time")
    assert "takes over" in not_yet(a_step(owner="b"), member_status={"b": "SUSPECT"})
    assert "more than half of the mesh failed at once" in not_yet(a_step(owner="c"), reclaim_frozen=True)
    assert not_yet(a_step(input_ref="blb_1"), missing_payloads=frozenset({"blb_1"})).startswith(
        "It waits for its input (blb_1), which has not arrived at a yet."
    )
    big = a_step(Status.SUCCESS, name="x", result_ref="blb_2")
    assert not_yet(a_step(name="y", depends_on='["x"]'), big, missing_payloads=frozenset({"blb_2"})).startswith(
        "It waits for the result of x (blb_2), which"
    )
    retrying = a_step(Status.RETRYING, attempt=1, retry_delay_ms=1500, last_error="oops")
    assert not_yet(retrying) == "Attempt 1 failed; a tries again 1.5 s after that. Last error: oops"
    assert not_yet(a_step(agent="rare")).startswith("No member can run it: a has no agent rare; b has no agent rare;")
    elsewhere = not_yet(a_step(owner="a", pin_node="b"))
    assert elsewhere.startswith("Its owner a is not node b and hands it over"), elsewhere
    only_c = {"a": Offer(node="a", abilities=frozenset()), "c": HERE.offers["c"]}
    assert not_yet(a_step(), offers=only_c) == (
        "No member can run it: a has no agent echo; c could, but is DEAD. It waits until one can."
    )
    assert "no member has announced" in not_yet(a_step(), offers={})


def test_a_runnable_step_says_what_its_own_node_waits_for():
    queued = "It waits in the queue of a for a free slot."
    assert not_yet(a_step()) == queued
    assert not_yet(a_step(), idle_slots=0) == f"{queued} All slots of this node are busy."
    assert not_yet(a_step(), paused="its store fails") == f"{queued} This node starts nothing new: its store fails."
    assert "waits to hear from a peer" in not_yet(a_step(), gate_open=False)
    assert not_yet(a_step(owner="b"), idle_slots=0) == "It waits in the queue of b for a free slot."


def test_the_timeline_is_in_order_and_leaves_logs_out():
    step = msgspec.structs.replace(a_step(Status.SUCCESS, attempt=1, created_hlc=1000 << 16), generation=0)
    history = [
        event(Action.TAKEN_OVER, "a", from_node="c", why="gone", was="RUNNING", claimedAtMs=1200, at_ms=1800),
        event(Action.LOGGED, "c", at_ms=1500, log="noise"),
        event(Action.FAILED, "c", step=a_step(name="other"), at_ms=1500),
    ]
    told = explain_step(step, [step], history, HERE)
    assert [(line["atMs"], line["text"].split()[0]) for line in told["timeline"]] == [
        (1000, "submitted"),
        (1200, "c"),
        (1800, "a"),
        (2000, "a"),
        (3000, "ended"),
    ]
    assert (told["stepId"], told["status"], told["owner"]) == ("stp_s", "SUCCESS", "a")


def codes(step: Row, *siblings: Row, task: Row | None = None, **changes) -> list[str]:
    by_name = {row.text("name"): row for row in (step, *siblings)}
    return [reason.code for reason in reasons(step, by_name, _changed(**changes), task)]


def a_task(mode: str = "hard", **values) -> Row:
    return Row(
        table="tasks",
        namespace="default",
        key="tsk_1",
        rank=1,
        hlc=1,
        node="a",
        origin=Origin("a", 1),
        seq=9,
        values={"cancelled_below": 1, "cancel_mode": mode, "cancel_reason": "wrong input", **values},
    )


def test_every_reason_that_holds_is_told_the_weightiest_first():
    assert codes(a_step()) == ["slots"]
    assert codes(a_step(), idle_slots=0) == ["slots", "slots-full"]
    assert codes(a_step(), full_agents=frozenset({"echo"})) == ["slots", "agent-full"]
    assert codes(a_step(), paused="its store fails") == ["slots", "node-paused"]
    assert codes(a_step(agent="rare"), gate_open=False, idle_slots=0) == ["nobody-able", "gate"]
    assert codes(a_step(owner="c", agent="rare"), task=a_task()) == ["owner-away", "cancel", "nobody-able"]
    child = a_step(name="y", owner="c", depends_on='["x"]', input_ref="blb_1")
    assert codes(child, a_step(Status.RUNNING, name="x")) == ["parents", "owner-away"]
    assert codes(a_step(input_ref="blb_1"), missing_payloads=frozenset({"blb_1"})) == ["payload"]
    assert codes(a_step(pin_node="b")) == ["owner-unable"]
    assert codes(a_step(), lacks_support=lambda _step: " It needs two.") == ["support"]


def test_a_step_that_ended_waits_for_nothing_and_a_running_one_for_no_slot():
    assert codes(a_step(Status.SUCCESS, attempt=1), idle_slots=0) == []
    assert codes(a_step(Status.RUNNING, attempt=1), idle_slots=0, gate_open=False) == []
    assert codes(a_step(Status.RUNNING, attempt=1, owner="c"), task=a_task()) == ["owner-away", "cancel"]


def test_a_child_of_a_parent_that_failed_is_told_what_mends_it():
    child = a_step(name="y", depends_on='["x"]')
    assert not_yet(child, a_step(Status.DEAD_LETTER, name="x")) == (
        "It waits for 1 step(s) it depends on: x (DEAD_LETTER). It never runs unless x succeeds: mend what made that "
        "fail, then `relaymesh replay`."
    )


def test_what_is_due_later_says_when_as_this_clock_counts():
    retrying = a_step(Status.RETRYING, attempt=1, retry_delay_ms=1500, last_error="oops")
    assert "1.5 s after that (due in 1.0 s). Last" in not_yet(retrying, now_ms=3500)
    assert "(due now)" in not_yet(retrying, now_ms=9000)
    delayed = a_step(created_hlc=1000 << 16, delay_ms=30_000)
    assert not_yet(delayed, now_ms=11_000) == "It was submitted with a delay of 30 s: due in 20.0 s."
    assert codes(delayed, now_ms=31_000) == ["slots"]


@pytest.mark.parametrize("key", ["mesh", "node a", "drain a", "agent echo"])
def test_a_hold_on_the_step_its_owner_or_its_agent_is_named(key):
    text = not_yet(a_step(), holds={key: "by olga (release)"})
    if key == "drain a":
        assert text == "Node a is drained by olga (release): `relaymesh resume --node a` ends that."
    else:
        assert text.endswith(f"was paused by olga (release): `relaymesh resume --{key}` lets it go on.")
    assert codes(a_step(), holds={"node b": "", "agent other": ""}) == ["slots"]


def test_an_owner_that_cannot_be_heard_has_heirs_and_a_time():
    heirs = {"heirs": lambda _step: ["a", "d"]}
    suspect = {"member_status": {"b": "SUSPECT"}, "dead_in_s": {"b": 2.5}}
    assert "it refutes soon, or a takes over in 2.5 s." in not_yet(a_step(owner="b"), **suspect, **heirs)
    assert "c is DEAD; a, or d a moment later, takes it over." in not_yet(a_step(owner="c"), **heirs)
    assert "b says that its store fails" in not_yet(a_step(owner="b"), store_failed=frozenset("b"))


def test_a_cancel_says_who_has_to_obey():
    (reason,) = [each for each in reasons(a_step(), {}, HERE, a_task()) if each.code == "cancel"]
    assert reason.text == "A hard cancel was requested (wrong input): a ends it."
    running = reasons(a_step(Status.RUNNING, attempt=1), {}, HERE, a_task("soft"))
    assert running[0].text.endswith("a lets this run end first.")
    assert "cancel" not in codes(a_step(task_generation=1), task=a_task())  # replayed after it
