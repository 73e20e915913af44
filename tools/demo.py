"""`relaymesh demo`: three real nodes on this machine do real work, lose one of them to `kill -9`, and finish.

It succeeds only if the kill hit running steps, other nodes took them over, every step ended in one accepted result, the
merged result equals the one computed without the mesh, and the killed node, started again, agrees.
"""

from __future__ import annotations

import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from json import loads
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec

from chaos.real.processes import Cluster
from mesh.errors import RelayMeshError, UnavailableError
from tools.demo_job import AGENTS_FILE, MERGE_STEP, cut_batches, plain_result, scripts_json, select_files, workflow
from tools.demo_view import PlainView, Snapshot, View, make_view

NODE_IDS = ("node-a", "node-b", "node-c")
SLOTS = 2
MEMBERS_S = 15.0
FINISH_S = 120.0
AGREE_S = 20.0
POLL_S = 0.1
KILL_IDLE_S = 1.5
"""When every step of a small job runs at once, the kill comes this long after the last one started."""


class DemoError(Exception):
    """The demo did not show what it promises; the text says what happened instead."""


class Report(msgspec.Struct, kw_only=True, rename="camel"):
    """What the demo found, in the form of its `--json` output."""

    ok: bool = False
    task_id: str = ""
    files: int = 0
    steps: int = 0
    killed: str = ""
    running_on_killed: list[str] = msgspec.field(default_factory=list)
    taken_over: dict[str, str] = msgspec.field(default_factory=dict)
    """The node that finished each step which ran on the killed node."""
    timeline: list[dict[str, Any]] = msgspec.field(default_factory=list)
    """What `explain` tells about the first of them."""
    result: dict[str, Any] = msgspec.field(default_factory=dict)
    result_matches: bool = False
    restarted_agrees: bool = False
    mesh_s: float = 0.0
    plain_s: float = 0.0
    failure: str = ""


def run_demo(directory: Path | None, *, keep: bool, json: bool) -> int:
    """Run the demo and return the exit code: 0 if everything matched, 1 if not.

    `directory` None takes Python's own library. `keep` leaves the nodes running and says how to talk to them. `json`
    prints one object on standard output and everything else on standard error. ConfigError for an unusable directory.
    """
    view = PlainView(sys.stderr) if json else make_view(sys.stdout)
    place = Path(tempfile.mkdtemp(prefix="relaymesh-demo-"))
    report = Report()
    with _terminated_as_interrupt():
        cluster: Cluster | None = None
        try:
            demo = Demo(directory, view, report)
            cluster = Cluster(place, NODE_IDS, slots=SLOTS, agents=[AGENTS_FILE], outlive_us=keep)
            demo.run(cluster)
            report.ok = True
        except (DemoError, TimeoutError, UnavailableError) as error:
            report.failure = str(error)
        finally:
            view.close()
            stays = keep and report.ok
            if cluster is not None:
                (cluster.close if stays else cluster.shut_down)()
            if not stays and not report.failure:
                shutil.rmtree(place, ignore_errors=True)
    _print_report(report, place, as_json=json)
    if stays and cluster is not None:
        print(_how_to_talk(cluster, report.task_id), file=sys.stderr if json else sys.stdout)
    return 0 if report.ok else 1


class Demo:
    """One run, step by step. ConfigError at once when the directory cannot be used."""

    def __init__(self, directory: Path | None, view: View, report: Report) -> None:
        self._selection = select_files(directory)
        self._batches = cut_batches(self._selection)
        self._view = view
        self._report = report
        self._began = time.monotonic()
        self._watched = NODE_IDS[0]

    def run(self, cluster: Cluster) -> None:
        """Do everything; DemoError says what did not hold."""
        self._introduce()
        self._start_mesh(cluster)
        task_id = self._submit(cluster)
        self._work_through_the_loss(cluster, task_id)
        self._check_result(cluster, task_id)
        self._restart_killed(cluster, task_id)

    def _introduce(self) -> None:
        chosen = self._selection
        left_out = f"; left out: {chosen.left_out}" if chosen.left_out else ""
        self._say(f"{len(chosen.paths):,} files, {chosen.octets:,} bytes of {chosen.directory}{left_out}")
        self._report.files = len(chosen.paths)

    def _start_mesh(self, cluster: Cluster) -> None:
        for spec in cluster.nodes.values():
            (spec.root / "agents").mkdir()
            (spec.root / "agents" / "scripts.json").write_text(scripts_json())
        cluster.start()
        for node_id in NODE_IDS:
            cluster.wait_answer(node_id, "members", _all_alive, MEMBERS_S, f"{node_id} sees {len(NODE_IDS)} members")
        self._say(f"three nodes form a mesh: {', '.join(str(spec.gossip) for spec in cluster.nodes.values())}")

    def _submit(self, cluster: Cluster) -> str:
        definition = workflow(self._batches)
        self._report.steps = len(definition["steps"])
        answer = cluster.admin(
            NODE_IDS[0], "submit-workflow", definition=definition, idempotencyKey=f"demo-{secrets.token_hex(8)}"
        )
        task_id: str = answer["taskId"]
        self._report.task_id = task_id
        batches = "one batch" if len(self._batches) == 1 else f"{len(self._batches)} batches"
        self._say(
            f"{NODE_IDS[0]} took task {task_id}: {batches}, hashed by a shell script and counted by "
            f"a Python agent, each step holding its slot a little so that you can watch; one step merges"
        )
        return task_id

    def _work_through_the_loss(self, cluster: Cluster, task_id: str) -> None:
        began = time.monotonic()
        owners: dict[str, str] = {}
        last_start = began
        while True:
            task, members = self._look(cluster, task_id)
            for (before, after), names in _moves(owners, task["steps"]).items():
                how = (
                    f"takes over from {before}" if before == self._report.killed else f"is idle and helps {before} with"
                )
                self._say(f"{after} {how}: {', '.join(names)}")
            running = [step for step in task["steps"] if step["status"] == "RUNNING"]
            if any(step["status"] == "PENDING" and step["name"] != MERGE_STEP for step in task["steps"]):
                last_start = time.monotonic()
            if not self._report.killed and _kill_is_due(task["steps"], time.monotonic() - last_start) and running:
                self._kill_busiest(cluster, running)
            if task["status"] in {"SUCCESS", "DEAD_LETTER", "CANCELLED"}:
                break
            if time.monotonic() - began > FINISH_S:
                raise DemoError(f"the task is still {task['status']} after {FINISH_S:.0f} s; members: {members}")
            time.sleep(POLL_S)
        self._report.mesh_s = round(time.monotonic() - began, 1)
        if task["status"] != "SUCCESS":
            raise DemoError(f"the task ended {task['status']}: {task.get('lastError') or 'no reason given'}")
        self._say(f"the task is SUCCESS after {self._report.mesh_s} s")

    def _look(self, cluster: Cluster, task_id: str) -> tuple[dict[str, Any], dict[str, str]]:
        for node_id in [self._watched, *cluster.running()]:
            if node_id not in cluster.running():
                continue
            try:
                task = cluster.admin(node_id, "task", taskId=task_id)
                listed = cluster.admin(node_id, "members")
            except RelayMeshError as error:
                self._say(f"{node_id} does not answer ({error}); asking another")
                continue
            self._watched = node_id
            members = {member["nodeId"]: member["status"] for member in listed}
            self._view.show(Snapshot(self._elapsed_s(), node_id, members, task["steps"]))
            return task, members
        raise DemoError("no node answers any more")

    def _kill_busiest(self, cluster: Cluster, running: Sequence[Mapping[str, Any]]) -> None:
        # On a tie the node that took the task dies: the hardest case.
        owners = [step["owner"] for step in running]
        victim = max(NODE_IDS, key=lambda node_id: (owners.count(node_id), node_id == NODE_IDS[0]))
        self._report.killed = victim
        self._report.running_on_killed = sorted(step["name"] for step in running if step["owner"] == victim)
        cluster.kill(victim)
        self._say(f"kill -9 {victim}, which runs {', '.join(self._report.running_on_killed)}")

    def _check_result(self, cluster: Cluster, task_id: str) -> None:
        report = self._report
        if not report.killed:
            raise DemoError("the task ended before a node could be killed: give a directory with more files")
        steps = {step["name"]: step for step in cluster.admin(self._watched, "task", taskId=task_id)["steps"]}
        report.taken_over = {
            name: steps[name]["owner"] for name in report.running_on_killed if steps[name]["owner"] != report.killed
        }
        report.result = _merged_result(cluster.admin(self._watched, "result", taskId=task_id))
        began = time.monotonic()
        expected = plain_result(self._selection)
        report.plain_s = round(time.monotonic() - began, 1)
        report.result_matches = report.result == expected
        if not report.result_matches:
            raise DemoError(_difference(report.result, expected))
        if not report.taken_over:
            raise DemoError(f"no step that ran on {report.killed} was taken over")
        told = cluster.admin(self._watched, "explain", taskId=task_id)["steps"]
        report.timeline = next(step["timeline"] for step in told if step["name"] == next(iter(report.taken_over)))

    def _restart_killed(self, cluster: Cluster, task_id: str) -> None:
        killed = self._report.killed
        self._say(f"starting {killed} again on its old disk")
        cluster.start(killed)
        cluster.wait_answer(
            killed, "task", lambda task: task["status"] == "SUCCESS", AGREE_S, f"{killed} agrees", taskId=task_id
        )
        theirs = _merged_result(cluster.admin(killed, "result", taskId=task_id))
        self._report.restarted_agrees = theirs == self._report.result
        if not self._report.restarted_agrees:
            raise DemoError(f"{killed}, started again, has another result than the others")
        self._look(cluster, task_id)
        self._say(f"{killed} has the same result as the others")

    def _say(self, text: str) -> None:
        self._view.say(self._elapsed_s(), text)

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._began


def _all_alive(members: Sequence[Mapping[str, Any]]) -> bool:
    return [member["status"] for member in members] == ["ALIVE"] * len(NODE_IDS)


def _moves(owners: dict[str, str], steps: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[str]]:
    """Steps by (old owner, new owner), where `owners` remembers who had each step at the last look."""
    moved: dict[tuple[str, str], list[str]] = {}
    for step in steps:
        before = owners.get(step["name"], step["owner"])
        if before != step["owner"]:
            moved.setdefault((before, step["owner"]), []).append(step["name"])
        owners[step["name"]] = step["owner"]
    return moved


def _kill_is_due(steps: Sequence[Mapping[str, Any]], all_started_s: float) -> bool:
    """In the middle: a third is done, or everything runs at once and a moment has passed."""
    done = sum(1 for step in steps if step["status"] == "SUCCESS")
    return 3 * done >= len(steps) - 1 or all_started_s >= KILL_IDLE_S


def _merged_result(answer: Mapping[str, Any]) -> dict[str, Any]:
    merged: dict[str, Any] = loads(loads(answer["resultPayload"])[MERGE_STEP])
    return merged


def _difference(ours: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    differing = [
        f"{key}: {ours.get(key)!r} instead of {value!r}" for key, value in expected.items() if ours.get(key) != value
    ]
    return (
        f"the mesh's result differs from the plain loop's in {'; '.join(differing)}. "
        "If files of the directory changed meanwhile, choose one at rest"
    )


def _print_report(report: Report, place: Path, *, as_json: bool) -> None:
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    elif report.ok:
        print(_story(report))
    if report.failure:
        print(f"relaymesh demo: {report.failure}\nLogs and databases are kept in {place}", file=sys.stderr)


def _story(report: Report) -> str:
    top = ", ".join(f"{word} {times:,}" for word, times in report.result["topWords"][:5])
    lines = [
        "",
        f"{report.result['files']:,} files, {report.result['words']:,} words ({top}, ...), SHA-256 over all "
        f"{report.result['digest'][:16]}...",
        f"equal to the same job in one plain loop ({report.plain_s} s): yes",
        f"{report.killed} was killed while it ran {len(report.running_on_killed)} steps; taken over: "
        + ", ".join(f"{step} by {node}" for step, node in report.taken_over.items()),
        "",
        f"Ownership of step {next(iter(report.taken_over))}:",
        *_timeline_lines(report.timeline),
    ]
    return "\n".join(lines)


def _timeline_lines(timeline: Sequence[Mapping[str, Any]]) -> list[str]:
    if not timeline:
        return []
    began_ms = int(timeline[0]["atMs"])
    return [f"  {(int(event['atMs']) - began_ms) / 1_000:+8.3f} s  {event['text']}" for event in timeline]


def _how_to_talk(cluster: Cluster, task_id: str) -> str:
    root = cluster.nodes[NODE_IDS[0]].root
    pids = " ".join(str(cluster.pid(node_id)) for node_id in NODE_IDS)
    return "\n".join(
        [
            "",
            "The three nodes stay up. Talk to any of them:",
            *(f"  relaymesh --root {spec.root} members" for spec in cluster.nodes.values()),
            f"  relaymesh --root {root} explain {task_id}",
            f"  relaymesh --root {root} submit --agent echo --input hello --wait",
            f"Stop them and remove their files: kill {pids}; rm -r {cluster.directory}",
        ]
    )


@contextmanager
def _terminated_as_interrupt() -> Iterator[None]:
    """SIGTERM ends the demo as Ctrl-C does, so that its nodes and files go with it."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
