"""Promises about ownership, leases and runs, each broken by hand and kept by hand."""

from __future__ import annotations

import pytest

from chaos.invariants import oracle
from chaos.observations import HostEnded, Logged, SinkWrite
from mesh.fences import Fence
from tests.chaos.feeds import Feed, fence

DEAD_TIME_MS = 2_500.0


def test_the_oracle_reads_and_writes_fences_as_the_product_does():
    step = Feed().claim("n1", generation=3, cluster_epoch=2, lease_epoch=9)
    assert oracle.fence_of(step) == fence(step)
    lease = oracle.parse_fence(fence(step))
    assert (lease.generation, lease.cluster_epoch, lease.lease_epoch, lease.node) == (3, 2, 9, "n1")
    assert oracle.lease_of(step) == lease


@pytest.mark.parametrize("nodes", [("a", "b"), ("a", "ab"), ("n1", "n10"), ("n2", "n10")])
def test_of_equal_leases_the_lexically_lower_node_wins(nodes):
    low, high = (oracle.parse_fence(Fence(0, 1, 1, 5, node).encode()) for node in sorted(nodes))
    assert low > high


def test_a_run_needs_a_claim_of_that_very_process():
    feed = Feed()
    feed.write("n0")
    claimed = feed.claim("n0")
    feed.run("n0", claimed)
    assert not feed.broken()
    feed.tell(HostEnded, "n0", how="kill")
    feed.run("n0", claimed)
    assert feed.broken() == {"own-epoch", "one-run-per-fence"}


def test_a_run_carries_the_fence_of_its_claim():
    feed = Feed()
    feed.write("n0")
    feed.write("n0", status="CANCELLED")
    feed.write("n0", opens=True, status="PENDING", generation=1)
    claimed = feed.claim("n0")
    without_generation = fence(claimed).replace("00000001", "00000000", 1)
    feed.run("n0", claimed, fence_text=without_generation)
    assert "own-epoch" in feed.broken()


def test_a_claim_opens_an_epoch():
    feed = Feed()
    feed.write("n0")
    feed.write("n0", status="RUNNING")
    assert feed.broken() == {"own-epoch"}


def test_nobody_but_the_owner_writes_a_step():
    feed = Feed()
    feed.copy(feed.write("n0"), "n1")
    feed.write("n1", status="SUCCESS")
    assert feed.broken() == {"one-writer"}


def test_owners_claim_finish_and_hand_over():
    feed = Feed()
    feed.write("n0")
    feed.copy(feed.write("n0", opens=True, owner="n1"), "n1")
    feed.copy(feed.claim("n1"), "n0")
    feed.copy(feed.write("n1", status="SUCCESS"), "n0")
    assert not feed.broken()


@pytest.mark.parametrize(("ended", "verdict"), [("PENDING", {"one-writer"}), ("CANCELLED", set())])
def test_a_replay_is_of_what_has_ended(ended, verdict):
    feed = Feed()
    feed.write("n0")
    feed.copy(feed.write("n0", status=ended, last_error="told"), "n1")
    feed.write("n1", opens=True, owner="n1", generation=1, status="PENDING")
    assert feed.broken() == verdict


def taken(feed: Feed, taker: str = "n1") -> Feed:
    feed.copy(feed.rows["n0"]["steps", "default", "k"], taker)
    feed.write(taker, opens=True, owner=taker)
    return feed


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        ("DEAD", set()),
        ("LEFT", set()),
        ("ALIVE", {"takeover-justified"}),
        ("SUSPECT", {"takeover-justified"}),
    ],
)
def test_work_is_taken_only_from_owners_that_are_gone(status, verdict):
    feed = Feed()
    feed.start("n1", members={"n0": "ALIVE"})
    feed.write("n0")
    feed.sees("n1", "n0", status)
    assert taken(feed).broken() == verdict


def test_work_is_not_taken_from_an_owner_that_has_come_back():
    feed = Feed()
    feed.start("n1", members={"n0": "DEAD"})
    feed.write("n0")
    feed.sees("n1", "n0", "ALIVE", before="DEAD")
    feed.at_ms += 1_000
    assert taken(feed).broken() == {"takeover-justified"}


@pytest.mark.parametrize(("wait_ms", "verdict"), [(100.0, {"takeover-justified"}), (DEAD_TIME_MS, set())])
def test_a_stranger_has_one_dead_time_to_show_up(wait_ms, verdict):
    feed = Feed()
    feed.start("n1")
    feed.write("n0")
    feed.at_ms += wait_ms
    assert taken(feed).broken() == verdict


def test_work_is_taken_from_an_owner_whose_store_fails():
    feed = Feed()
    feed.start("n1", members={"n0": "ALIVE"})
    feed.write("n0")
    feed.fault("disk-full", "n0")
    feed.tell(Logged, "n0", level=40, text="the local store fails: this node starts no work")
    assert not taken(feed).broken()


@pytest.mark.parametrize(("failing", "verdict"), [(("n0", "n2"), {"nothing-taken-in-freeze"}), (("n0",), set())])
def test_nothing_is_taken_while_most_others_seem_to_fail(failing, verdict):
    feed = Feed()
    feed.start("n1", members=dict.fromkeys(("n0", "n1", "n2", "n3"), "ALIVE"))
    feed.write("n0")
    for name in failing:
        feed.sees("n1", name, "SUSPECT")
    feed.sees("n1", "n0", "DEAD", before="SUSPECT", after_ms=0.6 * DEAD_TIME_MS)
    assert taken(feed).broken() == verdict


def test_a_goodbye_makes_no_mass_failure_of_those_who_fail_already():
    feed = Feed()
    feed.start("n1", members=dict.fromkeys(("n0", "n1", "n2", "n3", "n4"), "ALIVE"))
    feed.write("n0")
    for name in ("n2", "n0"):
        feed.sees("n1", name, "SUSPECT")
    feed.sees("n1", "n3", "LEFT")
    feed.sees("n1", "n2", "ALIVE", before="SUSPECT")
    feed.sees("n1", "n0", "DEAD", before="SUSPECT", after_ms=0.6 * DEAD_TIME_MS)
    assert not taken(feed).broken()


@pytest.mark.parametrize(("heard", "verdict"), [(True, {"nothing-taken-in-freeze"}), (False, set())])
def test_a_node_that_may_have_frozen_for_hearing_nobody_is_not_judged_by_a_later_freeze(heard, verdict):
    feed = Feed()
    feed.start("n1", members=dict.fromkeys(("n0", "n1", "n2", "n3"), "ALIVE"))
    row = feed.write("n0")
    feed.sees("n1", "n2", "SUSPECT")
    feed.at_ms += 0.6 * DEAD_TIME_MS
    if heard:
        feed.copy(row, "n1")
    feed.sees("n1", "n0", "SUSPECT", after_ms=0.6 * DEAD_TIME_MS)
    feed.sees("n1", "n0", "DEAD", before="SUSPECT", after_ms=0.6 * DEAD_TIME_MS)
    assert taken(feed).broken() == verdict


def test_a_node_is_judged_again_two_dead_times_after_nobody_fails_any_more():
    feed = Feed()
    feed.start("n1", members=dict.fromkeys(("n0", "n1", "n2", "n3"), "ALIVE"))
    feed.write("n0")
    feed.sees("n1", "n2", "SUSPECT")
    feed.sees("n1", "n2", "ALIVE", before="SUSPECT", after_ms=1.2 * DEAD_TIME_MS)
    feed.sees("n1", "n2", "SUSPECT", after_ms=2.1 * DEAD_TIME_MS)
    feed.sees("n1", "n0", "SUSPECT")
    feed.sees("n1", "n0", "DEAD", before="SUSPECT", after_ms=0.6 * DEAD_TIME_MS)
    assert taken(feed).broken() == {"nothing-taken-in-freeze"}


@pytest.mark.parametrize(
    ("pulls", "after_ms", "verdict"),
    [(0, 100.0, {"gate-holds"}), (1, 100.0, set()), (0, DEAD_TIME_MS, set())],
)
def test_a_started_node_goes_on_only_after_news_or_long_silence(pulls, after_ms, verdict):
    feed = Feed()
    feed.start("n0")
    feed.write("n0")
    feed.tell(HostEnded, "n0", how="kill")
    feed.start("n0", life=2)
    feed.claim("n0", pulls=pulls, after_ms=after_ms)
    assert feed.broken() == verdict


def test_a_started_node_may_run_new_work_and_obey_cancels_at_once():
    feed = Feed()
    feed.start("n0")
    feed.write("n0", "old")
    feed.tell(HostEnded, "n0", how="kill")
    feed.start("n0", life=2)
    feed.write("n0", "new", pulls=0)
    feed.claim("n0", "new", pulls=0)
    feed.write("n0", "old", status="CANCELLED", pulls=0)
    assert not feed.broken()


def test_nobody_writes_a_step_under_a_lower_epoch_than_it_has_seen():
    feed = Feed()
    feed.write("n0")
    feed.claim("n0")
    feed.write("n0", lease_epoch=0, lease_hlc=0, status="SUCCESS")
    assert feed.broken() == {"refused-after-higher-epoch"}


@pytest.mark.parametrize(("epoch", "verdict"), [(1, {"refused-after-higher-epoch"}), (2, set())])
def test_no_run_ends_under_a_lower_cluster_epoch_than_its_node_has_seen(epoch, verdict):
    feed = Feed()
    feed.write("n0", cluster_epoch=epoch)
    feed.claim("n0")
    feed.copy(feed.write("n1", "cluster_epoch", table="cluster", namespace="_mesh", rank=2), "n0")
    feed.write("n0", status="SUCCESS")
    assert feed.broken() == verdict


def test_the_sink_refuses_only_who_lost():
    feed = Feed()
    feed.write("n0")
    first, second = feed.claim("n0"), feed.claim("n0")
    for step, accepted in ((second, True), (first, False)):
        feed.tell(SinkWrite, "n0", step_id="k", fence=fence(step), accepted=accepted)
    assert not feed.broken()
    feed.tell(SinkWrite, "n0", step_id="k", fence=fence(second), accepted=False)
    assert feed.broken() == {"sink-monotonic"}


@pytest.mark.parametrize(
    ("parent", "used", "verdict"),
    [
        ("SUCCESS", '{"top": [0, 0]}', set()),
        ("DEAD_LETTER", '{"top": [0, 0]}', {"children-after-parents"}),
        ("SUCCESS", '{"top": [1, 0]}', {"children-after-parents"}),
        ("SUCCESS", None, {"children-after-parents"}),
    ],
)
def test_a_child_runs_after_its_parents_and_says_what_it_used(parent, used, verdict):
    feed = Feed()
    feed.write("n0", "top", status=parent)
    feed.write("n0", "child", depends_on='["top"]')
    feed.claim("n0", "child", parents_used=used)
    assert feed.broken() == verdict


def test_a_lease_needs_no_heartbeat():
    feed = Feed()
    feed.write("n0")
    feed.claim("n0")
    assert not feed.broken()
    feed.write("n0")
    assert "writes-change-something" in feed.broken()


def test_what_a_node_knows_to_have_ended_does_not_begin_again():
    feed = Feed()
    feed.write("n0")
    claimed = feed.claim("n0")
    feed.write("n0", status="SUCCESS")
    feed.run("n0", claimed)  # its claim was on the way
    assert not feed.broken()
    feed.run("n0", claimed, after_ms=600.0)
    assert "finished-stays" in feed.broken()


def test_what_has_ended_is_not_opened_again_in_its_generation():
    for generation, is_broken in ((0, True), (1, False)):
        feed = Feed()
        feed.write("n0")
        feed.write("n0", status="SUCCESS")
        feed.write("n0", opens=True, status="PENDING", generation=generation)
        assert ("finished-stays" in feed.broken()) == is_broken


@pytest.mark.parametrize(("first", "second", "is_broken"), [(0, 1, False), (1, 1, True), (0, 0, False), (0, 2, True)])
def test_a_generation_counts_one_more_beginning(first, second, is_broken):
    feed = Feed()
    feed.write("n0", generation=first, status="CANCELLED")
    feed.write("n0", opens=True, generation=second, status="CANCELLED" if first == second else "PENDING")
    assert ("generations-count" in feed.broken()) == is_broken
