"""Promises, each fed by hand with what breaks it and with what does not."""

from __future__ import annotations

import msgspec
import pytest

from chaos.invariants import ALL, Judge
from chaos.observations import (
    Committed,
    Healed,
    HostEnded,
    HostStarted,
    Logged,
    Rest,
    RunStarted,
    Sampled,
    Settled,
    SinkWrite,
)
from chaos.scenario import Scenario
from mesh.ids import Origin
from mesh.rows import Row
from mesh.version_vector import VersionVector
from node.storage.transaction import Change

SCENARIO = Scenario(name="x", nodes=3)
A, B = Origin("n0", 11), Origin("n1", 22)
LOW, HIGH = (f"00000000-00000001-{epoch:08x}-018bcfe5cc3f000c-91ce{'f' * 124}" for epoch in (1, 2))


def broken(*feed, rest: Rest | None = None) -> set[str]:
    judge = Judge(SCENARIO)
    for seen in feed:
        judge.see(seen)
    if rest is not None:
        judge.judge(rest)
    return {violation.invariant for violation in judge.violations}


def a_row(**fields) -> Row:
    values = {"status": "PENDING", "owner": "n0", "name": "s", "task_id": "t", "attempt": 0}
    base = Row(table="steps", namespace="default", key="k", hlc=100, node="n0", origin=A, seq=1, values=values)
    return msgspec.structs.replace(base, **fields)


def committed(row: Row, *, host: str = "n0", at_ms: float = 10.0, synced: bool = True, before: Row | None = None):
    local = row.origin.node == host
    change = Change(before, row, local)
    return Committed(at_ms=at_ms, host=host, changes=(change,), written=((row,),) if local else (), synced=synced)


def started(host: str = "n0", life: int = 1, at_ms: float = 0.0, **fields) -> HostStarted:
    return HostStarted(at_ms=at_ms, host=host, life=life, origin=Origin(host, 1), **fields)


def sampled(
    stored: VersionVector,
    *,
    memory: VersionVector | None = None,
    host: str = "n0",
    total: int = 1,
    parked: dict[str, int] | None = None,
):
    return Sampled(
        at_ms=20.0,
        host=host,
        memory_vector=memory or stored,
        stored_vector=stored,
        sums={A: (total, total, total)},
        parked=parked or {},
        levels={},
    )


def test_every_promise_has_a_name_of_its_own_and_says_what_it_is():
    assert len({promise.name for promise in ALL}) == len(ALL)
    assert all(promise.__doc__ for promise in ALL)


def test_one_number_names_one_content():
    other = a_row(values={"status": "PENDING", "owner": "n1", "name": "s", "task_id": "t", "attempt": 0})
    assert "one-content-per-dot" in broken(committed(a_row()), committed(other, host="n1"))
    assert "one-content-per-dot" not in broken(committed(a_row()), committed(a_row(), host="n1"))


def test_a_commit_is_on_disk_when_it_returns():
    assert "durable-before-heard" in broken(committed(a_row(), synced=False))
    assert "durable-before-heard" not in broken(committed(a_row()))


def test_the_sink_never_takes_a_lower_fence_after_a_higher_one():
    low, high = (SinkWrite(at_ms=1, host="n0", step_id="k", fence=fence, accepted=True) for fence in (LOW, HIGH))
    assert "sink-monotonic" in broken(high, low)
    assert "sink-monotonic" not in broken(low, high)


def test_each_start_is_a_later_life():
    end = HostEnded(at_ms=5, host="n0", how="kill")
    again = started(life=1, at_ms=6)
    assert "lives-rise" in broken(started(life=1), end, again)
    assert "lives-rise" not in broken(started(life=1), end, started(life=2, at_ms=6))
    lost = HostEnded(at_ms=5, host="n0", how="power-cut", durable_lost=True)
    assert "lives-rise" not in broken(started(life=1), lost, again)


def test_stamps_of_requests_rise():
    first, second = a_row(hlc=100), a_row(key="l", hlc=100, seq=2)
    assert "stamps-rise" in broken(committed(first), committed(second, at_ms=11))
    assert "stamps-rise" not in broken(committed(first), committed(msgspec.structs.replace(second, hlc=101), at_ms=11))


def test_nodes_end_only_when_somebody_ends_them():
    failed = HostEnded(at_ms=5, host="n0", how="failed", detail="RuntimeError: on purpose")
    assert "nodes-live-on" in broken(started(), failed)
    assert "nodes-live-on" not in broken(started(), HostEnded(at_ms=5, host="n0", how="kill"))


def test_databases_are_sound_at_each_start():
    assert "databases-sound" in broken(started(integrity="row 3 missing from index"))
    assert "databases-sound" not in broken(started())


def test_logs_tell_of_no_fault():
    assert "logs-tell-of-no-fault" in broken(Logged(at_ms=1, host="n0", level=40, text="Traceback: KeyError"))


def test_a_settled_mesh_is_idle():
    rest = (Healed(at_ms=1), Settled(at_ms=5))
    assert "idle-when-settled" in broken(*rest, committed(a_row(), at_ms=6))
    assert "idle-when-settled" not in broken(committed(a_row(), at_ms=0.5), *rest)


@pytest.mark.parametrize(("settings", "is_broken"), [({}, True), ({"diskBudgetBytes": 1}, False)])
def test_retention_goes_on_at_rest_where_a_scenario_has_a_short_one(settings, is_broken):
    judge = Judge(Scenario(name="x", nodes=3, settings=settings))
    for seen in (Healed(at_ms=1), Settled(at_ms=5), committed(a_row(table="tasks", values={}, deleted=True), at_ms=6)):
        judge.see(seen)
    assert any(each.invariant == "idle-when-settled" for each in judge.violations) == is_broken
    judge.see(committed(a_row(seq=2), at_ms=7))
    assert any(each.invariant == "idle-when-settled" and each.at_ms == 7 for each in judge.violations)


def test_the_vector_in_memory_is_the_stored_one():
    stored, more = VersionVector({A: [(1, 3)]}), VersionVector({A: [(1, 4)]})
    assert "vectors-honest" in broken(sampled(stored, memory=more))
    assert "vectors-honest" not in broken(sampled(stored))


def test_equal_vectors_mean_equal_sums_but_for_rows_of_the_future():
    vector = VersionVector({A: [(1, 3)]})
    one, other = sampled(vector), sampled(vector, host="n1", total=2)
    assert "equal-vectors-equal-replicas" in broken(one, other)
    assert "equal-vectors-equal-replicas" not in broken(one, sampled(vector, host="n1"))
    assert "equal-vectors-equal-replicas" not in broken(
        one, sampled(vector, host="n1", total=2, parked={"profiles": 1})
    )


def test_work_applies_at_once_whatever_the_date_of_its_writer():
    vector = VersionVector({A: [(1, 3)]})
    assert "quarantine-explained" in broken(sampled(vector, parked={"steps": 2}))
    assert "quarantine-explained" not in broken(sampled(vector, parked={"profiles": 2}))


def test_a_mended_mesh_comes_to_rest():
    rest = Rest(replicas={}, healed_ms=0, settled_ms=None, settle_s=60, unsettled="task t is RUNNING")
    assert broken(Healed(at_ms=0), rest=rest) >= {"comes-to-rest"}


def test_violations_of_one_promise_are_kept_up_to_a_number_and_then_counted():
    judge = Judge(SCENARIO)
    for number in range(25):
        judge.see(committed(a_row(key=f"k{number}", seq=number + 1, hlc=100 + number), synced=False))
    found = [each for each in judge.violations if each.invariant == "durable-before-heard"]
    assert len(found) == 11
    assert found[-1].detail == "and 15 more"


@pytest.mark.parametrize("kind", [RunStarted, SinkWrite])
def test_what_is_seen_has_a_time_and_a_host(kind):
    assert {"at_ms", "host"} <= set(kind.__dataclass_fields__)
