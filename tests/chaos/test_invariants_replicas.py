"""Promises about rows, replicas and rest, each broken by hand and kept by hand."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.invariants import ALL, oracle
from chaos.invariants.bounded_levels import LIMITS
from chaos.observations import HostEnded, HostStarted, RumorRepeated, RunStarted, Sampled, SettingsReloaded, Settled
from mesh import registers
from mesh.ids import Origin
from mesh.replica import REASON_CONFLICT
from mesh.rows import Row
from mesh.version_vector import VersionVector
from node.work.tables import WORK_TABLES
from tests.chaos.feeds import Feed, result

SMALL = st.integers(0, 2)


@st.composite
def versions(draw, table: str) -> Row:
    node = draw(st.sampled_from(["a", "ab", "b"]))
    return Row(
        table=table,
        namespace="default",
        key="k",
        generation=draw(SMALL),
        deleted=draw(st.booleans()),
        rank=draw(SMALL),
        cluster_epoch=draw(SMALL),
        lease_epoch=draw(SMALL),
        lease_hlc=draw(SMALL),
        hlc=draw(st.integers(2, 4)),
        node=node,
        origin=Origin(node, draw(st.integers(1, 2))),
        seq=draw(st.integers(1, 3)),
        values={"content": draw(st.sampled_from([b"x", b"y"]))},
    )


@pytest.mark.parametrize("table", WORK_TABLES, ids=lambda table: table.name)
def test_the_oracle_and_the_product_agree_about_which_version_wins(table):
    @given(versions(table.name), versions(table.name))
    def agree(a: Row, b: Row) -> None:
        if oracle.dot_of(a) != oracle.dot_of(b):  # one dot names one content
            assert oracle.wins(a, b) == registers.beats(table.register, a, b)
        assert not (oracle.wins(a, b) and oracle.wins(b, a))

    agree()


def test_a_version_gives_way_only_to_one_that_wins():
    feed = Feed()
    older = feed.write("n0", table="tasks")
    newer = feed.write("n0", table="tasks", cancelled_below=1)
    assert not feed.broken()
    feed.commit("n0", older, newer, local=False)
    assert feed.broken() == {"versions-only-grow"}


def two_versions() -> Feed:
    """n0 has the second one, n1 only the first."""
    feed = Feed(nodes=2)
    feed.copy(feed.write("n0", table="tasks"), "n1")
    feed.write("n0", table="tasks", cancelled_below=1)
    return feed


def test_all_replicas_end_with_the_greatest_version():
    feed = two_versions()
    assert "final-is-maximum" in feed.broken(feed.rest())
    feed.copy(feed.rows["n0"]["tasks", "default", "k"], "n1")
    assert not feed.broken(feed.rest())


def test_the_greatest_version_may_go_with_the_only_disk_that_had_it():
    feed = two_versions()
    feed.tell(HostEnded, "n0", how="power-cut", durable_lost=True)
    feed.rows["n0"] = dict(feed.rows["n1"])
    assert "final-is-maximum" not in feed.broken(feed.rest())


@pytest.mark.parametrize(("fault", "is_broken"), [("kill", True), ("power-cut-at-write", False)])
def test_a_version_that_nobody_was_seen_to_commit_needs_a_disk_that_failed(fault, is_broken):
    feed = Feed(nodes=1)
    row = feed.write("n0", table="tasks")
    feed.fault(fault, "n0")
    feed.rows["n0"]["tasks", "default", "k"] = msgspec.structs.replace(row, hlc=row.hlc + 1, seq=2)
    assert ("final-is-maximum" in feed.broken(feed.rest())) == is_broken


def test_nothing_is_heard_of_before_its_writer_has_committed_it():
    feed = Feed()
    row = feed.write("n0")
    feed.copy(row, "n1")
    assert not feed.broken()
    feed.copy(msgspec.structs.replace(row, key="early", seq=9), "n1")
    assert feed.broken() == {"durable-before-heard"}


def settled_pair() -> Feed:
    feed = Feed(nodes=2)
    feed.copy(feed.write("n0", table="tasks"), "n1")
    return feed


def test_a_vector_covers_only_what_is_there_whether_or_not_the_mesh_came_to_rest():
    feed = settled_pair()
    assert not feed.broken(feed.rest())
    rest = feed.rest(settled_ms=None)
    rest.replicas["n1"].rows.clear()
    assert "vectors-honest" in feed.broken(rest)


@pytest.mark.parametrize(
    "change", [{"rows": {}}, {"vector": VersionVector()}, {"sums": {Origin("n0", 7): (1, 2, 3)}}], ids=str
)
def test_replicas_are_equal_at_rest(change):
    feed = settled_pair()
    rest = feed.rest()
    rest.replicas["n1"] = dataclasses.replace(rest.replicas["n1"], **change)
    assert "replicas-equal" in feed.broken(rest)


@pytest.mark.parametrize(("queued", "is_broken"), [("open", False), ("done", True), ("gone", True)])
def test_a_queue_holds_waiting_steps_of_its_own(queued, is_broken):
    feed = Feed(nodes=1)
    feed.write("n0", "done", status="SUCCESS", result=b"{}")
    feed.write("n0", "open", depends_on='["never"]')
    rest = feed.rest()
    rest.replicas["n0"] = dataclasses.replace(rest.replicas["n0"], queued={queued: "default"})
    assert ("queues-hold-open-steps" in feed.broken(rest)) == is_broken


@pytest.mark.parametrize(
    ("members", "is_broken"),
    [
        ({"n0": "ALIVE", "n1": "ALIVE"}, False),
        ({"n0": "ALIVE", "n1": "DEAD"}, True),
        ({"n0": "ALIVE"}, True),
        ({"n0": "ALIVE", "n1": "ALIVE", "n9": "ALIVE"}, True),
        ({"n0": "ALIVE", "n1": "ALIVE", "n9": "DEAD"}, False),
    ],
)
def test_each_node_holds_exactly_the_living_for_alive(members, is_broken):
    feed = settled_pair()
    rest = feed.rest()
    rest.replicas["n1"] = dataclasses.replace(rest.replicas["n1"], members=members)
    assert ("members-are-the-living" in feed.broken(rest)) == is_broken


def test_all_nodes_run_at_rest():
    feed = settled_pair()
    assert "members-are-the-living" in feed.broken(feed.rest(replicas={"n0": feed.rest().replicas["n0"]}))


@pytest.mark.parametrize(
    ("fault", "row", "is_broken"),
    [
        ("poison-row", ("steps", "default", "poison-1", "rejected", ""), False),
        ("kill", ("steps", "default", "poison-1", "rejected", ""), True),
        ("poison-row", ("steps", "default", "k", "rejected", ""), True),
        ("stale-image", ("history", "default", "k", REASON_CONFLICT, ""), False),
        ("kill", ("history", "default", "k", REASON_CONFLICT, ""), True),
    ],
)
def test_quarantine_holds_what_faults_explain(fault, row, is_broken):
    feed = Feed(nodes=1)
    feed.write("n0", table="tasks")
    feed.fault(fault, "n0")
    rest = feed.rest()
    rest.replicas["n0"] = dataclasses.replace(rest.replicas["n0"], quarantine=[row])
    assert ("quarantine-explained" in feed.broken(rest)) == is_broken


def test_poison_becomes_current_nowhere():
    feed = Feed()
    feed.write("n0", "poison-1")
    assert feed.broken() == {"quarantine-explained"}


@pytest.mark.parametrize("is_seen", [True, False])
def test_a_result_comes_from_a_run_that_was_seen(is_seen):
    feed = Feed(nodes=1)
    feed.write("n0")
    claimed = feed.claim("n0")
    if is_seen:
        feed.run("n0", claimed)
    feed.write("n0", status="SUCCESS", result=result(claimed))
    assert ("results-come-from-runs" in feed.broken(feed.rest())) == (not is_seen)
    assert "runs-explained" not in feed.broken(feed.rest())


def test_a_result_is_of_the_lease_that_its_row_shows():
    feed = Feed(nodes=1)
    feed.write("n0")
    first = feed.claim("n0")
    feed.run("n0", first)
    feed.claim("n0")
    feed.claim("n0")
    feed.write("n0", status="SUCCESS", result=result(first))
    assert "results-come-from-runs" in feed.broken(feed.rest())


@pytest.mark.parametrize(("action", "is_broken"), [("failed", False), ("lost", False), ("logged", True), ("", True)])
def test_of_a_run_without_a_result_the_history_says_what_became_of_it(action, is_broken):
    feed = Feed(nodes=1)
    feed.write("n0")
    claimed = feed.claim("n0")
    feed.run("n0", claimed)
    if action:
        feed.history("n0", claimed, action)
    assert ("runs-explained" in feed.broken(feed.rest())) == is_broken


def test_a_lost_disk_takes_the_story_of_its_runs_along():
    feed = Feed(nodes=1)
    feed.write("n0")
    feed.run("n0", feed.claim("n0"))
    feed.tell(HostEnded, "n0", how="power-cut", durable_lost=True)
    assert "runs-explained" not in feed.broken(feed.rest())


def sample(feed: Feed, host: str, *, after_ms: float = 10.0, levels: dict[str, int] | None = None) -> None:
    vectors = {"memory_vector": VersionVector(), "stored_vector": VersionVector()}
    feed.tell(Sampled, host, **vectors, sums={}, parked={}, levels=levels or {}, after_ms=after_ms)


@pytest.mark.parametrize("name", LIMITS)
def test_queues_stay_within_their_limits(name):
    for above in (0, 1):
        feed = Feed()
        sample(feed, "n0", levels={name: LIMITS[name] + above})
        assert feed.broken() == ({"levels-bounded"} if above else set())


def test_a_level_without_a_limit_is_not_let_through():
    feed = Feed()
    sample(feed, "n0", levels={"another_queue": 1})
    assert feed.broken() == {"levels-bounded"}


def test_a_suspicion_ends():
    feed = Feed(nodes=3)
    feed.start("n0", members={"n1": "ALIVE"})
    feed.sees("n0", "n1", "SUSPECT")
    sample(feed, "n0", after_ms=1_000.0)
    assert not feed.broken()
    sample(feed, "n0", after_ms=120_000.0)
    assert feed.broken() == {"suspicions-end"}


def test_a_mesh_that_never_came_to_rest_is_judged_for_that_and_not_for_its_differences():
    feed = two_versions()
    broken = feed.broken(feed.rest(settled_ms=None, unsettled="replicas differ"))
    assert broken & {"comes-to-rest", "replicas-equal", "final-is-maximum"} == {"comes-to-rest"}
    assert "comes-to-rest" not in feed.broken(feed.rest())


def test_nothing_runs_in_a_settled_mesh():
    feed = Feed()
    feed.write("n0")
    claimed = feed.claim("n0")
    feed.tell(Settled)
    assert not feed.broken()
    feed.run("n0", claimed)
    assert isinstance(feed.seen[-1], RunStarted)
    assert feed.broken() == {"idle-when-settled"}


@pytest.mark.parametrize(
    ("news", "after_ms", "is_broken"), [(False, 500.0, False), (False, 9_000.0, True), (True, 9_000.0, False)]
)
def test_a_settled_node_soon_writes_nothing_to_its_disk_but_news_of_members(news, after_ms, is_broken):
    feed = Feed()

    def sample(disk_writes: int, after_ms: float) -> None:
        nothing = VersionVector()
        fields = {"memory_vector": nothing, "stored_vector": nothing, "sums": {}, "parked": {}, "levels": {}}
        feed.tell(Sampled, "n0", after_ms=after_ms, disk_writes=disk_writes, **fields)

    feed.tell(Settled)
    sample(5, after_ms)
    if news:
        feed.sees("n0", "n1", "SUSPECT")
    sample(6, 100.0)
    assert ("disks-rest" in feed.broken()) == is_broken


def test_every_promise_hears_what_it_sees_and_judges_something():
    for promise in ALL:
        assert bool(promise.hears) == ("see" in vars(promise)), promise
        assert promise.hears or "judge" in vars(promise), promise


def test_a_rumor_is_news_once():
    feed = Feed()
    feed.tell(RumorRepeated, "n0")
    assert feed.broken() == {"rumors-are-news"}


@pytest.mark.parametrize(
    "wrong", [{"bad_refused": False}, {"in_force": {"gossipFanout": 3, "gossipPacketTtl": 4}}, {"spread": (3, 4)}, {}]
)
def test_a_reload_refuses_what_is_bad_and_takes_in_what_is_good(wrong):
    feed, wanted = Feed(), {"gossipFanout": 1, "gossipPacketTtl": 4}
    told = {"bad_refused": True, "wanted": wanted, "in_force": {**wanted, "maxAttempts": 3}, "spread": (1, 4)} | wrong
    feed.tell(SettingsReloaded, "n0", **told)
    assert feed.broken() == ({"settings-in-force"} if wrong else set())


@pytest.mark.parametrize("is_cloned", [False, True])
def test_what_is_deleted_comes_back_through_an_uncounted_process_only(is_cloned):
    feed = Feed()
    feed.copy(feed.write("n0", "t", table="tasks"), "n1")
    if is_cloned:
        feed.tell(HostStarted, "n0 clone", life=2, origin=Origin("n0", 8), members={})
    unheard = feed.write("n0", "t", table="tasks")
    feed.write("n1", "t", table="tasks", deleted=True)
    del feed.rows["n1"]["tasks", "default", "t"]  # everybody who counts has seen it go
    feed.copy(unheard, "n1")
    assert ("deleted-stays-deleted" in feed.broken(feed.rest())) is not is_cloned
