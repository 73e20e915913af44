"""What the outside saw of a run, told as observations."""

import json
import time

from chaos.coverage import Coverage
from chaos.observations import (
    ClientAnswered,
    ClientAsked,
    FaultBegan,
    FaultEnded,
    HostEnded,
    Logged,
    MemberSeen,
    RunEnded,
)
from chaos.real import observed
from chaos.real.clients import Call
from chaos.real.evidence import AgentRun, Replica, read_journals
from chaos.scenario import Fault
from chaos.timeline import TimelineKeeper
from mesh.ids import Origin
from mesh.rows import Row

NOW = 1_700_000_000.0
CLOCK = observed.Clock(whole_at=NOW)


def row(table, key, hlc=0, **values):
    return Row(
        table=table, namespace="default", key=key, hlc=hlc, node="n0", origin=Origin("n0", 1), seq=1, values=values
    )


def test_faults_are_told_as_far_as_they_were_played():
    faults = [Fault(kind="kill", at_s=1, for_s=4, nodes=("n0",)), Fault(kind="kill", at_s=6, nodes=("n0",))]
    assert list(observed.of_faults(faults, until_s=3)) == [
        FaultBegan(at_ms=1_000, fault=faults[0]),
        FaultEnded(at_ms=3_000, fault=faults[0]),
        HostEnded(at_ms=1_000, host="n0", how="kill"),
    ]


def test_a_call_is_asked_and_answered():
    call = Call("n1", "submit", {"a": 1}, NOW + 1, NOW + 1.5, None, "UnavailableError", "away")
    asked, answered = observed.of_calls([call], CLOCK)
    assert asked == ClientAsked(at_ms=1_000, host="n1", call=1, command="submit", args={"a": 1})
    assert isinstance(answered, ClientAnswered)
    assert (answered.at_ms, answered.answer, answered.error, answered.text) == (1_500, None, "UnavailableError", "away")


def test_logs_tell_of_members_and_warnings_and_nothing_else(tmp_path):
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(NOW + 2))
    log = tmp_path / "n0.log"
    log.write_text(
        f"{at},250 n0 INFO node.gossip_loop: member n1: new -> ALIVE (joined)\n"
        f"{at},500 n0 INFO node.gossip_loop: member n1: ALIVE -> SUSPECT (probe-timeout)\n"
        f"{at},600 n0 WARNING node.node: cannot apply 1 row bundles\n"
        f"{at},700 n0 INFO relaymesh: stopped\n"
        "Traceback (most recent call last):\n"
    )
    joined, suspected, warned = observed.of_log("n0", log, CLOCK)
    assert isinstance(joined, MemberSeen)
    assert (joined.at_ms, joined.change.before, joined.change.after) == (2_250, None, "ALIVE")
    assert isinstance(suspected, MemberSeen)
    assert suspected.change.reason == "probe-timeout"
    assert warned == Logged(at_ms=2_600, host="n0", level=30, text="cannot apply 1 row bundles")
    assert list(observed.of_log("n0", tmp_path / "none.log", CLOCK)) == []


def test_a_run_ends_when_its_agent_or_else_the_history_says_so(tmp_path):
    lines = ("start s 1 f1", 1), ("start s 2 f2", 3), ("end s 2 f2", 4), ("start t 1 f3", 5)
    (tmp_path / "n0").write_text("".join(f"{text} {NOW + after_s:.3f}\n" for text, after_s in lines))
    runs = read_journals(tmp_path)
    assert runs[1] == AgentRun("s", "n0", 2, "f2", NOW + 3, NOW + 4)
    rows = [
        row("steps", "s", task_id="task", name="only", agent="hunted"),
        row("history", "e", hlc=int((NOW + 2) * 1000) << 16, step_id="s", fence="f1", action="failed"),
        row("history", "l", hlc=int((NOW + 2) * 1000) << 16, step_id="s", fence="f2", action="logged"),
    ]
    replica = Replica(rows={(r.table, r.namespace, r.key): r for r in rows}, sums={}, queued={}, quarantine=[])
    ends = [seen for seen in observed.of_runs(runs, replica, CLOCK) if isinstance(seen, RunEnded)]
    assert [(end.at_ms, end.outcome) for end in ends] == [(2_000, "failed"), (4_000, "success"), (5_000, "unknown")]
    assert (ends[0].job.task_id, ends[0].job.step_name, ends[2].job.task_id) == ("task", "only", "")
    blind = [seen for seen in observed.of_runs(runs, None, CLOCK) if isinstance(seen, RunEnded)]
    assert [end.outcome for end in blind] == ["unknown", "success", "unknown"]


def test_rows_tell_when_and_by_whom_they_were_stamped_and_what_was_met():
    rows = [
        row("steps", "s", hlc=int((NOW + 3) * 1000) << 16, status="DEAD_LETTER", last_error="doomed", owner="n0"),
        row("history", "e", hlc=int((NOW + 2) * 1000) << 16, action="taken_over", detail="{}"),
        row("tasks", "t", step_count=1),
    ]
    replica = Replica(rows={(r.table, r.namespace, r.key): r for r in rows}, sums={}, queued={}, quarantine=[])
    told, coverage = list(observed.of_rows(replica, CLOCK)), Coverage()
    assert [(seen.at_ms, seen.host) for seen in told] == [(2_000, "n0"), (3_000, "n0")]
    for seen in told:
        coverage.see(seen)
    assert coverage.counts == {"taken-over": 1, "dead-letter": 1}


def test_everything_becomes_a_timeline(tmp_path):
    (tmp_path / "n0").write_text(f"start s 1 f1 {NOW + 1:.3f}\nend s 1 f1 {NOW + 1.5:.3f}\n")
    call = Call("n1", "submit", json.loads("{}"), NOW + 0.5, NOW + 0.6, {"taskId": "t"}, "", "")
    keeper = TimelineKeeper()
    for seen in observed.in_order(
        observed.of_runs(read_journals(tmp_path), None, CLOCK),
        observed.of_calls([call], CLOCK),
        observed.of_faults([Fault(kind="kill", at_s=1, for_s=4, nodes=("n0",))], until_s=9),
    ):
        keeper.see(seen)
    assert [(event.lane, event.at_ms, event.until_ms) for event in keeper.events()] == [
        ("clients", 500, 600),
        ("faults", 1_000, 5_000),
        ("leases", 1_000, 1_500),
        ("membership", 1_000, None),
    ]
