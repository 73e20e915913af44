"""Promises about what clients were told, each broken by hand and kept by hand."""

from __future__ import annotations

import json

import msgspec
import pytest

from chaos.observations import ClientAsked, HostEnded
from mesh.rows import Row
from tests.chaos.feeds import Feed, fence, result


def accepted(host: str = "n0", *others: str) -> Feed:
    """A task of one step, stored at a host and copied to others; not acknowledged yet."""
    feed = Feed()
    feed.copy(feed.write(host, "t", table="tasks", step_count=1), *others)
    feed.copy(feed.write(host), *others)
    return feed


def finished(feed: Feed, host: str) -> Row:
    feed.write(host)
    claimed = feed.claim(host)
    feed.run(host, claimed)
    return feed.write(host, status="SUCCESS", result=result(claimed))


def test_a_task_is_committed_before_it_is_acknowledged():
    feed = Feed()
    feed.submit("n0")
    assert feed.broken() == {"acknowledged-kept"}
    kept = accepted()
    kept.submit("n0")
    assert not kept.broken()


def test_replicas_that_an_answer_counts_have_the_task():
    feed = accepted("n0", "n1")
    feed.submit("n0", replicated=1)
    assert not feed.broken()
    feed.submit("n0", replicated=2, deduplicated=True)
    assert feed.broken() == {"acknowledged-kept"}


@pytest.mark.parametrize(("gone", "is_broken"), [("tasks/t", True), ("steps/k", True), ("", False)])
def test_an_acknowledged_task_is_everywhere_at_rest_with_all_its_steps(gone, is_broken):
    feed = accepted()
    feed.submit("n0")
    rest = feed.rest()
    if gone:
        table, key = gone.split("/")
        rest.replicas["n0"].rows.pop((table, "default", key))
    assert ("acknowledged-kept" in feed.broken(rest)) == is_broken


def test_a_task_may_be_lost_with_the_only_disk_that_held_it_and_with_no_other():
    for others, is_broken in (((), False), (("n1",), True)):
        feed = accepted("n0", *others)
        feed.submit("n0")
        feed.tell(HostEnded, "n0", how="power-cut", durable_lost=True)
        feed.rows = {"n0": {}, "n1": {}}
        assert ("acknowledged-kept" in feed.broken(feed.rest())) == is_broken


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_node_knows_what_it_acknowledged_until_its_disk_is_lost(is_lost):
    feed = accepted()
    feed.submit("n0")
    if is_lost:
        feed.tell(HostEnded, "n0", how="power-cut", durable_lost=True)
    feed.ask("n0", "task", {"taskId": "t"}, error="NotFoundError", text="task t is not known here")
    assert ("node-knows-its-word" in feed.broken()) == (not is_lost)


def test_a_host_accepts_a_key_as_new_once():
    feed = accepted()
    feed.submit("n0")
    feed.submit("n0", deduplicated=True)
    assert not feed.broken()
    feed.submit("n0")
    assert feed.broken() == {"one-task-per-key"}


def test_one_key_is_one_task_on_all_hosts():
    feed = accepted()
    feed.submit("n0")
    feed.write("n1", "other", table="tasks")
    feed.submit("n1", "other")
    assert feed.broken() == {"one-task-per-key"}


@pytest.mark.parametrize(
    ("command", "error", "trouble", "is_explained"),
    [
        ("task", "NotFoundError", "", True),
        ("submit-workflow", "NotFoundError", "", False),
        ("replay", "ConflictError", "", True),
        ("submit-workflow", "ConflictError", "", False),
        ("task", "StoreError", "", False),
        ("task", "StoreError", "io-error", True),
        ("task", "UnavailableError", "", False),
        ("task", "UnavailableError", "stop", True),
        ("task", "", "", False),
        ("task", "", "pause", True),
        ("task", "InternalError", "pause", False),
    ],
)
def test_a_client_is_refused_for_a_reason(command, error, trouble, is_explained):
    feed = Feed()
    feed.start("n0")
    feed.at_ms += 60_000
    if trouble:
        feed.fault(trouble, "n0")
    feed.ask("n0", command, {"taskId": "t"}, error=error)
    assert ("refusals-explained" in feed.broken()) == (not is_explained)


def test_a_host_that_is_down_cannot_answer():
    feed = Feed()
    feed.ask("n0", "task", {"taskId": "t"}, error="UnavailableError")
    assert not feed.broken()


def test_a_success_that_was_shown_is_shown_again():
    feed = Feed()
    feed.write("n0")
    claimed = feed.claim("n0")
    done = feed.write("n0", status="SUCCESS")
    feed.look("n0", done)
    feed.look("n0", done)
    assert not feed.broken()
    feed.look("n0", claimed)
    assert feed.broken() == {"finished-stays"}


@pytest.mark.parametrize("budget", [0, 1_000])
def test_a_client_is_refused_for_a_budget_where_there_is_one(budget):
    feed = Feed(settings={"diskBudgetBytes": budget})
    feed.start("n0")
    feed.at_ms += 60_000
    feed.ask("n0", "submit-workflow", {}, error="UnavailableError", text="disk_budget: the database holds 9,999 B")
    assert ("refusals-explained" in feed.broken()) == (not budget)


@pytest.mark.parametrize("is_deleted", [False, True])
def test_what_the_history_told_before_it_was_deleted_is_told(is_deleted):
    feed = Feed(nodes=2)
    loser, winner = finished(feed, "n0"), finished(feed, "n1")
    feed.rows["n0"]["steps", "default", "k"] = winner
    told = feed.history("n0", loser, "superseded")
    feed.copy(told, "n1")
    if is_deleted:
        gone = msgspec.structs.replace(told, deleted=True, values={}, seq=told.seq + 1, hlc=told.hlc + 1)
        feed.commit("n0", gone, told, local=True)
        feed.copy(gone, "n1")
    for rows in feed.rows.values():
        del rows["history", "default", told.key]
    expected = set() if is_deleted else {"result-stays", "final-is-maximum", "vectors-honest"}
    assert feed.broken(feed.rest()) & {"result-stays", "final-is-maximum", "vectors-honest"} == expected


@pytest.mark.parametrize(
    ("is_told", "is_excused", "is_broken"), [(False, False, True), (True, False, False), (False, True, False)]
)
def test_a_result_that_lost_is_told_as_superseded(is_told, is_excused, is_broken):
    feed = Feed(nodes=2)
    loser, winner = finished(feed, "n0"), finished(feed, "n1")
    assert fence(loser) != fence(winner)
    feed.rows["n0"]["steps", "default", "k"] = winner
    if is_told:
        feed.copy(feed.history("n0", loser, "superseded"), "n1")
    if is_excused:
        feed.tell(HostEnded, "n0", how="power-cut", durable_lost=True)
    assert ("result-stays" in feed.broken(feed.rest())) == is_broken


def cancelled() -> Feed:
    feed = Feed()
    feed.write("n0")
    feed.ask("n0", "cancel", {"taskId": "t"}, answer={"taskId": "t", "state": "cancelled"})
    return feed


def test_what_was_answered_as_cancelled_runs_no_more_there_unless_it_is_replayed():
    for is_replayed in (False, True):
        feed = cancelled()
        if is_replayed:
            feed.tell(ClientAsked, "n0", call=99, command="replay", args={"taskId": "t"})
        feed.run("n0", feed.claim("n0"), after_ms=1_000.0)
        assert ("cancelled-stays" in feed.broken()) == (not is_replayed)


@pytest.mark.parametrize(
    ("status", "is_broken"), [("PENDING", True), ("DEAD_LETTER", True), ("CANCELLED", False), ("SUCCESS", False)]
)
def test_what_was_answered_as_cancelled_ended_as_that_or_in_success(status, is_broken):
    feed = cancelled()
    feed.write("n0", status=status, last_error="told")
    assert ("cancelled-stays" in feed.broken(feed.rest())) == is_broken


@pytest.mark.parametrize(("below", "is_broken"), [(1, True), (0, False)])
def test_a_stored_cancel_stops_claims_of_what_it_concerns(below, is_broken):
    feed = Feed()
    feed.write("n0", "t", table="tasks", cancelled_below=below)
    feed.write("n0")
    feed.claim("n0")
    assert ("cancel-obeyed" in feed.broken()) == is_broken


@pytest.mark.parametrize(
    ("status", "work", "is_cancel_asked", "is_allowed"),
    [
        ("SUCCESS", {}, False, True),
        ("SUCCESS", {"doomed": True}, False, False),
        ("DEAD_LETTER", {"doomed": True}, False, True),
        ("DEAD_LETTER", {}, False, False),
        ("CANCELLED", {}, True, True),
        ("CANCELLED", {}, False, False),
        ("RUNNING", {}, False, False),
        ("RETRYING", {}, False, False),
        ("PENDING", {}, False, False),
    ],
)
def test_steps_end_as_their_definition_and_their_clients_allow(status, work, is_cancel_asked, is_allowed):
    feed = Feed()
    feed.write("n0", "t", table="tasks", step_count=1)
    if is_cancel_asked:
        feed.tell(ClientAsked, "n0", call=1, command="cancel", args={"taskId": "t"})
    feed.write("n0", status=status, input=json.dumps(work).encode(), last_error="told")
    assert ("tasks-end-as-defined" in feed.broken(feed.rest())) == (not is_allowed)


@pytest.mark.parametrize(("parent", "is_allowed"), [("DEAD_LETTER", True), ("SUCCESS", False)])
def test_a_step_waits_for_ever_only_below_a_parent_that_failed(parent, is_allowed):
    feed = Feed()
    work = b'{"doomed": true}' if parent == "DEAD_LETTER" else b"{}"
    feed.write("n0", "top", status=parent, input=work)
    feed.write("n0", "child", depends_on='["top"]')
    assert ("tasks-end-as-defined" in feed.broken(feed.rest())) == (not is_allowed)


@pytest.mark.parametrize(("deaths", "is_allowed"), [(5, True), (4, False)])
def test_poison_is_what_five_processes_died_of(deaths, is_allowed):
    feed = Feed()
    feed.write("n0")
    for _ in range(deaths):
        feed.claim("n0")
        feed.tell(HostEnded, "n0", how="kill")
    feed.write("n0", opens=True, status="DEAD_LETTER", last_error="poison: 5 nodes' processes ended")
    assert ("tasks-end-as-defined" in feed.broken(feed.rest())) == (not is_allowed)


@pytest.mark.parametrize(
    ("is_there", "is_lost", "is_allowed"), [(True, True, False), (False, True, True), (False, False, False)]
)
def test_a_step_may_wait_for_an_input_only_if_a_disk_took_it_along(is_there, is_lost, is_allowed):
    feed = Feed()
    if is_lost:
        feed.tell(HostEnded, "n1", how="power-cut", durable_lost=True)
    if is_there:
        feed.write("n0", "blob", table="payloads", content=b"{}")
    feed.write("n0", input_ref="blob")
    assert ("tasks-end-as-defined" in feed.broken(feed.rest())) == (not is_allowed)
