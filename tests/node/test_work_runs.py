"""Every run, owner and tie of a step is told from its rows. Method: made-up histories, as transitions write them."""

from __future__ import annotations

import msgspec
import pytest

from mesh.fences import Fence
from node.work.history import Action
from node.work.runs import owners_of, runs_of, ties_of
from node.work.tables import Status
from tests.node.test_work_explain import a_step
from tests.node.test_work_explain import event as event_under_own_fence


def under(epoch: int, owner: str = "a"):
    """The step's version under an earlier lease."""
    return msgspec.structs.replace(a_step(owner=owner), lease_epoch=epoch, lease_hlc=(1000 + epoch) << 16)


def event(action: Action, node: str = "a", *, step=None, **detail):
    """A history row with the fence of the lease that it tells of, whoever tells."""
    row = step or a_step()
    told = event_under_own_fence(action, node, step=row, **detail)
    fence = Fence.of(row, row.text("owner")).encode()
    return msgspec.structs.replace(told, values={**told.values, "fence": fence})


def test_a_first_run_that_succeeded_is_the_accepted_one():
    (run,) = runs_of(a_step(Status.SUCCESS, attempt=1), [])
    assert run == {
        "node": "a",
        "epoch": 3,
        "generation": 0,
        "fence": Fence.of(a_step(), "a").encode(),
        "startedAtMs": 2000,
        "endedAtMs": 3000,
        "outcome": "SUCCESS",
        "text": "its result is the accepted one",
        "accepted": True,
    }


def test_runs_on_two_sides_of_a_cut_are_both_told_and_one_counts():
    lost = event(
        Action.SUPERSEDED,
        "c",
        step=under(2, "c"),
        outcome="SUCCESS",
        winner="a",
        why="the merge",
        decidedBy="leaseEpoch",
    )
    taken = event(Action.TAKEN_OVER, "a", step=under(2, "c"), from_node="c", why="owner c is dead", was="RUNNING")
    runs = runs_of(a_step(Status.SUCCESS, attempt=1), [taken, lost])

    assert [(run["node"], run["epoch"], run["outcome"], run["accepted"]) for run in runs] == [
        ("c", 2, "superseded", False),
        ("a", 3, "SUCCESS", True),
    ]
    assert runs[0]["text"] == "its SUCCESS does not count, a has the step: the merge"
    # Until the loser is heard, nobody knows what became of its run.
    assert "not told here" in runs_of(a_step(Status.SUCCESS, attempt=1), [taken])[0]["text"]


@pytest.mark.parametrize(
    ("told", "text"),
    [
        (event(Action.FAILED, step=under(1), kind="timeout", error="too slow"), "failed (timeout): too slow"),
        (event(Action.FAILED, step=under(1), kind="failed", error="no"), "failed: no"),
        (event(Action.LOST, step=under(1)), "ended with the process of its node"),
        (event(Action.ABORTED, step=under(1), winner="b"), "was stopped, b owned the step by then"),
        (event(Action.RELEASED, step=under(1), why="stop"), "was given back and does not count as an attempt: stop"),
    ],
)
def test_what_became_of_a_run(told, text):
    first, second = runs_of(a_step(Status.RUNNING, attempt=2), [told])
    assert (first["text"], first["endedAtMs"]) == (text, 2500)
    assert (second["outcome"], second["endedAtMs"]) == ("running", None)


def test_a_step_that_waits_again_shows_only_what_ran():
    failed = event(Action.FAILED, kind="failed", error="no")
    waited = event(Action.TAKEN_OVER, "a", step=under(1, "c"), from_node="c", was="PENDING")
    assert [run["outcome"] for run in runs_of(a_step(Status.RETRYING, attempt=1), [failed, waited])] == ["failed"]
    assert runs_of(a_step(), [waited, event(Action.REPLAYED, was="DEAD_LETTER")]) == []


def test_the_owners_follow_each_other():
    step = a_step(owner="b", created_hlc=1000 << 16)
    moves = [
        event(Action.HANDED_OVER, "c", step=under(0, "c"), from_node="c", to="a", why="it asked", at_ms=1100),
        event(Action.FAILED, "a", kind="failed", error="no", at_ms=1150),
        event(Action.TAKEN_OVER, "b", step=under(2, "a"), from_node="a", was="PENDING", at_ms=1200),
    ]
    assert [(owner["node"], owner["epoch"], owner["fromMs"], owner["untilMs"]) for owner in owners_of(step, moves)] == [
        ("c", None, 1000, 1100),
        ("a", 1, 1100, 1200),
        ("b", 3, 1200, None),
    ]
    assert owners_of(step, [])[0]["node"] == "b"


@pytest.mark.parametrize(
    ("decided_by", "winner", "loser", "text"),
    [
        ("leaseEpoch", 4, 3, "the lease that was opened later counts (epoch 4 over 3)"),
        ("rank", 3, 1, "SUCCESS counts more than DEAD_LETTER: finished work is never undone"),
        ("rank", 3, 0, "SUCCESS counts more than not ended: finished work is never undone"),
        ("node", "a", "b", "all else was equal, so the lexically lower node name counts (a before b)"),
        ("something new", 1, 2, "something new decided"),
    ],
)
def test_a_tie_says_what_decided(decided_by, winner, loser, text):
    told = event(
        Action.SUPERSEDED, "c", winner="a", decidedBy=decided_by, winnerValue=winner, loserValue=loser, why="merge"
    )
    (tie,) = ties_of([told, event(Action.SUPERSEDED, "c", winner="a", why="its lease had moved"), event(Action.LOST)])
    assert (tie["text"], tie["winner"], tie["loser"], tie["decidedBy"]) == (text, "a", "c", decided_by)


@pytest.mark.parametrize("said", [{"decidedBy": []}, {"decidedBy": "rank", "winnerValue": "x", "loserValue": []}])
def test_a_peer_s_history_may_hold_any_json(said):
    (tie,) = ties_of([event(Action.SUPERSEDED, "c", step=under(2, "c"), winner="a", **said)])
    assert (tie["loser"], tie["winner"]) == ("c", "a")
