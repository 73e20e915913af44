"""Coverage: the rare situations that a run got into are counted, each under its name."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from chaos.coverage import POINTS, REQUIRED, Coverage
from chaos.observations import (
    CaListInstalled,
    CheckpointKept,
    DatabaseReplaced,
    HostEnded,
    Logged,
    RingInstalled,
    RunEnded,
    RunStarted,
    Sampled,
    SettingsReloaded,
    SinkWrite,
)
from mesh.ids import Origin
from mesh.version_vector import VersionVector
from tests.chaos.feeds import Feed, fence


def met(feed: Feed) -> dict[str, int]:
    coverage = Coverage()
    for seen in feed.seen:
        coverage.see(seen)
    return coverage.counts


def suspects(feed: Feed) -> None:
    feed.sees("n0", "n1", "SUSPECT")
    feed.sees("n0", "n1", "ALIVE", before="SUSPECT")


def returns(feed: Feed) -> None:
    feed.sees("n0", "n1", "DEAD", before="SUSPECT")
    feed.sees("n0", "n1", "ALIVE", before="DEAD")


def leaves(feed: Feed) -> None:
    feed.sees("n0", "n1", "LEFT")


def fails_in_numbers(feed: Feed) -> None:
    for name in ("n1", "n2", "n3"):
        feed.sees("n0", name, "ALIVE", before="DEAD")
    for name in ("n1", "n2"):
        feed.sees("n0", name, "SUSPECT")


def conflicts(feed: Feed) -> None:
    feed.tell(Logged, "n0", level=40, text="identity conflict, nothing new is started here: …")


def adopts_a_snapshot(feed: Feed) -> None:
    feed.tell(DatabaseReplaced, "n0", origin=Origin("n0", 8))


def sets_its_database_aside(feed: Feed) -> None:
    feed.tell(Logged, "n0", level=30, text="… cannot be used. It is kept as x, and this node is filled by its peers")


def store_fails_and_works(feed: Feed) -> None:
    feed.tell(Logged, "n0", level=40, text="the local store fails: this node starts no work")
    feed.tell(Logged, "n0", level=40, text="the local store works again")


def rotates(feed: Feed) -> None:
    feed.tell(RingInstalled, "n0", number=0, primary="a", keys=("a",))
    feed.tell(RingInstalled, "n0", number=4, primary="b", keys=("b",))


def rotates_its_ca(feed: Feed) -> None:
    feed.tell(CaListInstalled, "n0", number=0, signing="a")
    feed.tell(CaListInstalled, "n0", number=3, signing="b")


def tells(action: str, **columns: object):
    def story(feed: Feed) -> None:
        step = feed.write("n0")
        feed.write("n0", "told", table="history", action=action, step_id="k", fence=fence(step), **columns)

    return story


def opens_twice(feed: Feed) -> None:
    feed.copy(feed.write("n0"), "n1")
    feed.claim("n0")
    feed.write("n1", opens=True, owner="n1")


def replays_twice(feed: Feed) -> None:
    feed.write("n0")
    feed.copy(feed.write("n0", status="CANCELLED"), "n1")
    for host in ("n0", "n1"):
        feed.write(host, opens=True, owner=host, generation=1, status="PENDING")


def sink_refuses(feed: Feed) -> None:
    feed.tell(SinkWrite, "n0", step_id="k", fence="", accepted=False)


def runs_twice(feed: Feed) -> None:
    feed.write("n0")
    feed.run("n0", feed.claim("n0"))
    feed.write("n1")
    feed.run("n1", feed.claim("n1"), parents={"top": b""})


def ends_a_step(**columns: str):
    def story(feed: Feed) -> None:
        feed.write("n0")
        feed.write("n0", **columns)

    return story


def cancels_a_run(feed: Feed) -> None:
    feed.write("n0")
    feed.claim("n0")
    feed.write("n0", status="CANCELLED")


def bumps(feed: Feed) -> None:
    feed.write("n0", "cluster_epoch", table="cluster", rank=2)


def copies_a_payload(feed: Feed) -> None:
    feed.copy(feed.write("n0", "p", table="payloads", content=b"x"), "n1")


def answers(command: str, **answered: object):
    def story(feed: Feed) -> None:
        feed.ask("n0", command, {"taskId": "t"}, **answered)

    return story


def submits(*hosts: str, **answer: object):
    def story(feed: Feed) -> None:
        for host in hosts:
            feed.submit(host, **answer)

    return story


def dies(*, how: str, is_lost: bool = False, incarnation: int = 7):
    def story(feed: Feed) -> None:
        feed.start("n0")
        feed.write("n0")
        feed.run("n0", feed.claim("n0"))
        feed.tell(HostEnded, "n0", how=how, durable_lost=is_lost)
        feed.start("n0", life=2, incarnation=incarnation)
        feed.claim("n0")

    return story


def has_a_gap(feed: Feed) -> None:
    vector = VersionVector({Origin("n1", 7): [(1, 2), (5, 6)]})
    feed.tell(Sampled, "n0", memory_vector=vector, stored_vector=vector, sums={}, parked={}, levels={})


def forgets(feed: Feed) -> None:
    nothing = VersionVector()
    fields = {"memory_vector": nothing, "stored_vector": nothing, "sums": {}, "parked": {}, "levels": {}}
    feed.tell(Sampled, "n0", forgotten=3, collapsed=1, **fields)


def copies_everything(feed: Feed) -> None:
    feed.tell(Logged, "n0", level=30, text="this node was away for too long to catch up by news: it copies all of n1")


def uses_a_checkpoint(feed: Feed) -> None:
    feed.write("n0")
    claimed = feed.claim("n0")
    feed.run("n0", claimed)
    started = feed.seen[-1]
    assert isinstance(started, RunStarted)
    feed.tell(CheckpointKept, "n0", job=started.job, content=b"1")
    feed.tell(RunStarted, "n1", job=replace(started.job, saved=b"1"))


def snoozes(feed: Feed) -> None:
    feed.write("n0")
    feed.run("n0", feed.claim("n0"))
    started = feed.seen[-1]
    assert isinstance(started, RunStarted)
    feed.tell(RunEnded, "n0", job=started.job, outcome="snoozed")


def reloads_settings(feed: Feed) -> None:
    feed.tell(SettingsReloaded, "n0", bad_refused=True, wanted={}, in_force={}, spread=(3, None))


def submits_a_slot(feed: Feed) -> None:
    for host in ("n0", "n1"):
        feed.write(host, table="tasks", idempotency_key="schedule s 2026-01-01T00:00:00Z")


STORIES = [
    ("suspect-refuted", suspects),
    ("dead-returned", returns),
    ("left-in-order", leaves),
    ("most-others-failing", fails_in_numbers),
    ("identity-conflict", conflicts),
    ("taken-over", tells("taken_over")),
    ("handed-over", tells("handed_over")),
    ("released", tells("released")),
    ("lost-with-process", tells("lost")),
    ("aborted", tells("aborted")),
    ("superseded", tells("superseded", detail='{"why": "another result won"}')),
    ("finished-too-late", tells("superseded", detail=json.dumps({"why": "its lease had moved before …"}))),
    ("requeued", tells("requeued")),
    ("replayed", tells("replayed")),
    ("epoch-opened-twice", opens_twice),
    ("sink-refused", sink_refuses),
    ("ran-twice", runs_twice),
    ("child-ran", runs_twice),
    ("cluster-epoch-raised", bumps),
    ("retried", ends_a_step(status="RETRYING")),
    ("snoozed", snoozes),
    ("checkpoint-used", uses_a_checkpoint),
    ("checkpoint-used-elsewhere", uses_a_checkpoint),
    ("dead-letter", ends_a_step(status="DEAD_LETTER", last_error="told")),
    ("poison", ends_a_step(status="DEAD_LETTER", last_error="poison: told")),
    ("cancelled-waiting", ends_a_step(status="CANCELLED")),
    ("cancelled-running", cancels_a_run),
    ("cancel-requested", answers("cancel", answer={"state": "requested"})),
    ("cancel-too-late", answers("cancel", answer={"state": "too_late"})),
    ("replayed-twice", replays_twice),
    ("large-row-copied", copies_a_payload),
    ("slot-submitted", submits_a_slot),
    ("slot-on-two-sides", submits_a_slot),
    ("submit-unknown", answers("submit-workflow")),
    ("submit-deduplicated", submits("n0", deduplicated=True)),
    ("same-key-on-two-sides", submits("n0", "n1")),
    ("replicated-answer", submits("n0", replicated=2, replicasWanted=2)),
    ("too-few-replicas", submits("n0", replicated=1, replicasWanted=2)),
    ("killed-while-running", dies(how="kill")),
    ("power-cut-recovered", dies(how="power-cut")),
    ("image-lost", dies(how="power-cut", is_lost=True)),
    ("origin-minted", dies(how="power-cut", incarnation=8)),
    ("start-refused", dies(how="refused")),
    ("snapshot-adopted", adopts_a_snapshot),
    ("database-set-aside", sets_its_database_aside),
    ("store-failed", store_fails_and_works),
    ("store-worked-again", store_fails_and_works),
    ("disk-error-answered", answers("task", error="StoreError")),
    ("vector-gap", has_a_gap),
    ("rows-forgotten", forgets),
    ("origins-collapsed", forgets),
    ("copied-whole", copies_everything),
    ("key-promoted", rotates),
    ("returned-by-certificate", rotates),
    ("ca-promoted", rotates_its_ca),
    ("returned-to-another-ca", rotates_its_ca),
    ("old-work-after-restart", dies(how="kill")),
    ("settings-reloaded", reloads_settings),
]


@pytest.mark.parametrize(("point", "story"), STORIES, ids=[point for point, _ in STORIES])
def test_what_happened_is_counted_under_its_name(point, story):
    feed = Feed()
    story(feed)
    assert met(feed)[point] >= 1


def test_every_point_has_a_story_here():
    assert {point for point, _ in STORIES} == POINTS.keys()


def test_a_run_without_trouble_meets_nothing():
    feed = Feed()
    feed.start("n0")
    feed.write("n0")
    claimed = feed.claim("n0")
    feed.run("n0", claimed)
    started = feed.seen[-1]
    assert isinstance(started, RunStarted)
    feed.tell(RunEnded, "n0", job=started.job, outcome="success")
    feed.write("n0", status="SUCCESS")
    feed.tell(HostEnded, "n0", how="stop")
    assert met(feed) == {}


def test_an_end_without_a_run_in_flight_kills_none():
    feed = Feed()
    feed.start("n0")
    feed.tell(HostEnded, "n0", how="kill")
    assert "killed-while-running" not in met(feed)


def test_runs_that_are_told_to_end_as_their_process_is_killed_were_running():
    for after_ms, is_met in ((0.0, True), (50.0, False)):
        feed = Feed()
        feed.start("n0")
        feed.write("n0")
        feed.run("n0", feed.claim("n0"))
        feed.tell(RunEnded, "n0", job=feed.seen[-1].job, outcome="killed")
        feed.tell(HostEnded, "n0", how="kill", after_ms=after_ms)
        assert ("killed-while-running" in met(feed)) == is_met


def test_what_a_batch_must_meet_are_points_with_a_meaning():
    assert frozenset() < REQUIRED <= POINTS.keys()
    assert all(POINTS.values())
