"""Clients do what their workload says and write down what they hear. The cluster is a stand-in that always agrees."""

import threading
import time
from collections import Counter
from pathlib import Path

from chaos.real.clients import Client, Ledger
from chaos.scenario import WorkloadSpec
from mesh.errors import UnavailableError

NODES = ["n0", "n1", "n2"]
PLAIN = WorkloadSpec(
    clients=1, rate=20_000, fail_share=0, diamond_share=0, twice_share=0, cancel_share=0, replay_share=0, run_s=1.0
)


class FakeCluster:
    def __init__(self, fails=False) -> None:
        self.nodes = dict.fromkeys(NODES)
        self.asked = []
        self.fails = fails

    def admin(self, node, command, **args):
        self.asked.append((node, command, args))
        if self.fails:
            raise UnavailableError("away")
        if command == "submit-workflow":
            return {"taskId": args["idempotencyKey"]}
        if command == "task":
            return {"steps": [{"stepId": "s", "generation": 0, "status": "SUCCESS", "fence": "f"}]}
        return {"state": "cancelled"}


def work(workload, *, requests=300, seed=1, fails=False):
    cluster, ledger, stop = FakeCluster(fails), Ledger(), threading.Event()
    client = Client(cluster, ledger, Path("journal"), workload=workload, name="client 0", seed=seed)
    thread = threading.Thread(target=client.run, args=(stop,))
    thread.start()
    deadline = time.monotonic() + 5
    while len(cluster.asked) < requests and time.monotonic() < deadline:
        time.sleep(0.002)
    stop.set()
    thread.join()
    return cluster.asked[:requests], ledger


def steps(asked):
    return [step for _, command, args in asked if command == "submit-workflow" for step in args["definition"]["steps"]]


def changed(**more):
    return WorkloadSpec(**{name: getattr(PLAIN, name) for name in PLAIN.__slots__} | more)


def test_a_plain_workload_submits_single_steps_and_looks():
    asked, ledger = work(PLAIN)
    commands = Counter(command for _, command, _ in asked)
    assert set(commands) == {"submit-workflow", "task"}
    assert 0.4 < commands["submit-workflow"] / len(asked) < 0.8
    assert {step["id"] for step in steps(asked)} == {"only"}
    assert {node for node, _, _ in asked} == set(NODES)
    assert len(ledger.submitted) >= commands["submit-workflow"]
    assert ledger.sights[0].status == "SUCCESS"


def test_a_seed_fixes_what_is_tried():
    first, second = work(PLAIN, requests=50)[0], work(PLAIN, requests=50)[0]
    assert first == second
    assert first != work(PLAIN, requests=50, seed=2)[0]


def test_shares_are_of_all_requests():
    asked, _ = work(changed(cancel_share=0.3, replay_share=0.2, diamond_share=1.0, replicas=2), requests=400)
    commands = Counter(command for _, command, _ in asked)
    assert 0.2 < commands["cancel"] / 400 < 0.4
    assert commands["replay"] > 0.1 * 400
    assert [step["id"] for step in steps(asked)[:4]] == ["top", "left", "right", "join"]
    assert {args["replicas"] for _, command, args in asked if command == "submit-workflow"} == {0, 2}


def test_runs_fail_and_kill_as_often_as_the_workload_says():
    inputs = [step["input"] for step in steps(work(changed(fail_share=1.0))[0]) if step["agent"] == "hunted"]
    kinds = Counter(key for work in inputs for key in work if key in ("doomed", "crash", "fails"))
    assert kinds.total() == len(inputs)
    assert set(kinds) == {"doomed", "crash", "fails"}
    assert kinds["fails"] > kinds["doomed"] > 0
    inputs = [step["input"] for step in steps(work(changed(poison_share=1.0))[0]) if step["agent"] == "hunted"]
    assert all(work["poison"] for work in inputs)


def test_some_runs_are_ten_times_longer_but_none_outlives_its_agent():
    seconds = [step["input"]["seconds"] for step in steps(work(PLAIN)[0]) if step["agent"] == "hunted"]
    assert 0.7 < sorted(seconds)[len(seconds) // 2] + 0.3 < 1.5
    assert 5 < max(seconds) <= 30


def test_one_key_goes_to_two_nodes_at_once_and_now_and_then_for_other_work():
    asked, _ = work(changed(twice_share=1.0), requests=600)
    by_key: dict[str, list] = {}
    for node, command, args in asked:
        if command == "submit-workflow":
            by_key.setdefault(args["idempotencyKey"], []).append((node, args["definition"]))
    pairs = [pair for pair in by_key.values() if len(pair) == 2]
    assert all(here != there for (here, _), (there, _) in pairs)
    conflicts = sum(ours != theirs for (_, ours), (_, theirs) in pairs)
    assert 0 < conflicts < len(pairs) / 2


def test_refusals_and_calls_are_written_down():
    asked, ledger = work(PLAIN, requests=20, fails=True)
    assert {command for _, command, _ in asked} == {"submit-workflow"}  # there is nothing to look at
    assert ledger.submitted == []
    assert {refusal.error for refusal in ledger.refusals} == {"UnavailableError"}
    call = ledger.calls[0]
    assert (call.answer, call.error, call.text) == (None, "UnavailableError", "away")
    assert call.asked_at <= call.at
