"""What the demo decides and shows, without a mesh; tests/e2e/test_demo.py runs it for real."""

import io
import json

import pytest
from rich.console import Console

from mesh.errors import ConfigError
from tools import demo
from tools.demo import Report, run_demo
from tools.demo_view import LiveView, PlainView, Snapshot, make_view


def steps(*statuses: str, owner: str = "node-a") -> list[dict[str, str]]:
    return [{"name": f"s{n}", "status": status, "owner": owner} for n, status in enumerate(statuses)]


@pytest.mark.parametrize(
    ("statuses", "all_started_s", "due"),
    [
        (["SUCCESS", "RUNNING", "RUNNING", "PENDING"], 0.0, True),
        (["SUCCESS", "RUNNING", "RUNNING", "PENDING", "PENDING"], 0.0, False),
        (["RUNNING", "RUNNING", "PENDING"], 1.0, False),
        (["RUNNING", "RUNNING", "PENDING"], 2.0, True),
    ],
)
def test_the_kill_comes_when_a_third_is_done_or_all_has_run_for_a_moment(statuses, all_started_s, due):
    assert demo._kill_is_due(steps(*statuses), all_started_s) is due


def test_a_step_that_changed_its_owner_is_told_once():
    owners: dict[str, str] = {}
    assert demo._moves(owners, steps("RUNNING", "PENDING")) == {}
    assert demo._moves(owners, steps("RUNNING", "PENDING", owner="node-b")) == {("node-a", "node-b"): ["s0", "s1"]}
    assert demo._moves(owners, steps("SUCCESS", "PENDING", owner="node-b")) == {}


def test_a_differing_result_is_told_by_field():
    text = demo._difference({"words": 1, "digest": "x"}, {"words": 2, "digest": "x"})
    assert "words: 1 instead of 2" in text
    assert "digest" not in text


def test_the_story_tells_the_take_over():
    report = Report(
        ok=True,
        killed="node-b",
        running_on_killed=["count-07"],
        taken_over={"count-07": "node-c"},
        result={"files": 3, "words": 1_234, "topWords": [["self", 99]], "digest": "ab" * 32},
        timeline=[{"atMs": 1_000, "text": "submitted"}, {"atMs": 3_500, "text": "node-c took it over"}],
    )
    story = demo._story(report)
    assert "count-07 by node-c" in story
    assert "+2.500 s  node-c took it over" in story


def test_an_unusable_directory_is_refused_before_a_node_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "Cluster", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with pytest.raises(ConfigError, match="no directory"):
        run_demo(tmp_path / "absent", keep=False, json=False)
    assert list(tmp_path.iterdir()) == []


def test_plain_lines_come_for_changes_only():
    stream = io.StringIO()
    view = make_view(stream)
    assert isinstance(view, PlainView)
    one = Snapshot(1.0, "node-a", {"node-a": "ALIVE"}, steps("RUNNING", "PENDING"))
    view.show(one)
    view.show(Snapshot(2.0, "node-a", one.members, one.steps))
    view.say(2.5, "kill -9 node-a")
    view.show(Snapshot(3.0, "node-b", {"node-a": "DEAD"}, steps("SUCCESS", "RUNNING", owner="node-b")))
    view.close()
    assert stream.getvalue().splitlines() == [
        "   1.0 s  done 0/2  running [node-a:1]  members node-a=ALIVE",
        "   2.5 s  kill -9 node-a",
        "   3.0 s  done 1/2  running [node-b:1]  members node-a=DEAD",
    ]


def test_the_live_view_shows_nodes_progress_and_events_and_leaves_them_behind():
    stream = io.StringIO()
    view = LiveView(Console(file=stream, force_terminal=True, width=100, _environ={"TERM": "xterm"}))
    view.show(
        Snapshot(4.0, "node-c", {"node-b": "DEAD", "node-c": "ALIVE"}, steps("SUCCESS", "RUNNING", owner="node-c"))
    )
    view.say(4.5, "step s1 moved from node-b to node-c")
    view.close()
    shown = stream.getvalue()
    for words in ("node-b", "DEAD", "1/2 steps done", "step s1 moved from node-b to node-c", "as node-c sees it"):
        assert words in shown


def test_the_report_is_one_json_object(capsys, tmp_path):
    demo._print_report(Report(ok=True, task_id="tsk_1"), tmp_path, as_json=True)
    assert json.loads(capsys.readouterr().out)["taskId"] == "tsk_1"
