"""Clients of a real mesh: each draws what to do next, asks a random node, and writes down what it was told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos.real.agents import MAX_ATTEMPTS
from chaos.real.processes import Cluster
from chaos.scenario import WorkloadSpec
from chaos.simulation import seeds
from mesh.errors import RelayMeshError

RECENT = 60
"""Cancels, replays and looks choose among this many latest tasks."""
LOOKS_S = 100.0
"""What watchers ask in a second, all together: what a node shows for a moment only must be seen, too."""
_SUBMITS_AND_CHANGES_SHARE = 0.6  # the rest of all requests are looks
_LONG_SHARE, _LONG_FACTOR, _RUN_MAX_S = 0.1, 10, 30.0  # an agent is given 60 s
_CONFLICT_SHARE = 0.2  # of submits to two nodes under one key: other work, of which one may be refused
_REPLICAS_SHARE = 0.3
_PINNED_SHARE = 0.15
_DOOMED_SHARE = 0.25  # of the share of runs that fail
_CRASH_SHARE = 0.1  # as well


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A node promised to keep a task."""

    task_id: str
    node: str
    at: float
    """Wall time of the answer."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A cancel or a replay, and the answer; None when none came, so that it may or may not have happened."""

    task_id: str
    node: str
    at: float
    answer: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Sight:
    """What a node showed of a step at a time: asked not before `asked_at`, answered not after `at` (wall times)."""

    step_id: str
    node: str
    asked_at: float
    at: float
    generation: int
    status: str
    fence: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that a node did not do, or that got no answer."""

    command: str
    node: str
    asked_at: float
    error: str
    """The name of its class in `mesh.errors`."""
    text: str
    task_id: str = ""


@dataclass(frozen=True, slots=True)
class Call:
    """One request that may have changed something: from when until when, and its outcome. Looks are `Sight`s."""

    node: str
    command: str
    args: dict[str, Any]
    asked_at: float
    at: float
    answer: Any
    error: str
    text: str


@dataclass(slots=True)
class Ledger:
    """All that clients were told. Lists only grow, and each append is one step, so threads may share it."""

    submitted: list[Acknowledged] = field(default_factory=list)
    cancels: list[Asked] = field(default_factory=list)
    replays: list[Asked] = field(default_factory=list)
    sights: list[Sight] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)


class Client:
    """One of several; runs in a thread of its own until told to stop."""

    def __init__(
        self, cluster: Cluster, ledger: Ledger, journal: Path, *, workload: WorkloadSpec, name: str, seed: int
    ) -> None:
        self._cluster = cluster
        self._ledger = ledger
        self._journal = journal
        self._workload = workload
        self._name = name
        self._draws = seeds.stream(seed, name)
        self._nodes = list(cluster.nodes)
        self._keys = 0

    def run(self, stop: threading.Event) -> None:
        """Act until `stop` is set."""
        every_s = self._workload.clients / self._workload.rate
        while not stop.wait(self._draws.expovariate(1 / every_s)):
            roll, work = self._draws.random(), self._workload
            if roll < work.cancel_share:
                self._cancel()
            elif roll < work.cancel_share + work.replay_share:
                self._replay()
            elif roll < _SUBMITS_AND_CHANGES_SHARE:
                self._submit_something()
            else:
                self._look()

    def watch(self, node: str, stop: threading.Event) -> None:
        """Look at one node all the time."""
        while not stop.wait(len(self._nodes) / LOOKS_S):
            task_id = self._a_task()
            if task_id is not None:
                self.look_at(node, task_id)

    # --- what it does ---

    def _submit_something(self) -> None:
        """One step or a diamond of four, at one node, or at two at once under one key."""
        self._keys += 1
        key, steps = f"{self._name}-{self._keys}", self._some_steps()
        if self._draws.random() >= self._workload.twice_share:
            self._submit(self._a_node(), key, steps)
            return
        others = self._some_steps() if self._draws.random() < _CONFLICT_SHARE else steps
        here, there = self._draws.sample(self._nodes, 2)
        other = threading.Thread(target=self._submit, args=(there, key, others))
        other.start()
        self._submit(here, key, steps)
        other.join()

    def _cancel(self) -> None:
        task_id, node = self._a_task(), self._a_node()
        if task_id is not None:
            mode = self._draws.choice(["hard", "soft"])
            self._change(self._ledger.cancels, node, "cancel", task_id, mode=mode, reason="chaos")

    def _replay(self) -> None:
        """Often at two nodes, which may not hear each other. A step that is named may be replayed after its success."""
        task_id = self._a_task()
        if task_id is None:
            return
        part = {"step": self._draws.choice(["only", "only", "top", "join"])} if self._draws.random() < 0.7 else {}
        for node in self._draws.sample(self._nodes, self._draws.choice([1, 2])):
            self._change(self._ledger.replays, node, "replay", task_id, **part)

    def _look(self) -> None:
        task_id, node = self._a_task(), self._a_node()
        if task_id is not None:
            self.look_at(node, task_id)

    def look_at(self, node: str, task_id: str) -> None:
        """Write down what a node shows of a task now."""
        asked_at = time.time()
        shown, _ = self._ask(node, "task", taskId=task_id)
        at = time.time()
        for step in shown["steps"] if shown else ():
            self._ledger.sights.append(
                Sight(step["stepId"], node, asked_at, at, step["generation"], step["status"], step["fence"])
            )

    # --- what it draws ---

    def _a_node(self) -> str:
        return self._draws.choice(self._nodes)

    def _a_task(self) -> str | None:
        recent = self._ledger.submitted[-RECENT:]
        return self._draws.choice(recent).task_id if recent else None

    def _some_steps(self) -> list[dict[str, Any]]:
        if self._draws.random() >= self._workload.diamond_share:
            return [self._a_step("only", [])]
        parents: dict[str, list[str]] = {"top": [], "left": ["top"], "right": ["top"], "join": ["left", "right"]}
        return [self._a_step(name, above) for name, above in parents.items()]

    def _a_step(self, name: str, parents: Sequence[str]) -> dict[str, Any]:
        draws = self._draws
        step: dict[str, Any] = {"id": name, "dependsOn": list(parents), "priority": draws.choice(["high", "normal"])}
        if draws.random() < _PINNED_SHARE:
            step["node"] = self._a_node()  # often another than the one that is asked: it must be handed over
        kind = draws.choices(["hunted", "echo", "sleep"], [7, 2, 1])[0]
        if kind == "echo":
            return {**step, "agent": "echo", "input": self._pad()}
        if kind == "sleep":
            return {**step, "agent": "sleep", "input": f"{self._run_s():.2f}"}
        return {**step, "agent": "hunted", "input": self._work()}

    def _work(self) -> dict[str, Any]:
        work: dict[str, Any] = {
            "journal": str(self._journal),
            "seconds": round(self._run_s(), 2),
            "pad": self._pad(),
        }
        fails, roll = self._workload.fail_share, self._draws.random()
        if self._draws.random() < self._workload.poison_share:
            work["poison"] = True
        elif roll < fails * _DOOMED_SHARE:
            work["doomed"] = True
        elif roll < fails * (_DOOMED_SHARE + _CRASH_SHARE):
            work["crash"] = True
        elif roll < fails:
            work["fails"] = self._draws.randint(1, MAX_ATTEMPTS - 1)
        return work

    def _run_s(self) -> float:
        run_s = self._draws.expovariate(1 / self._workload.run_s) if self._workload.run_s else 0.0
        return min(_RUN_MAX_S, run_s * (_LONG_FACTOR if self._draws.random() < _LONG_SHARE else 1))

    def _pad(self) -> str:
        # Small ones travel in datagrams, larger ones by pulls, the largest beside their row.
        return "x" * self._draws.choice([0, 0, 300, 5_000])

    # --- how it asks ---

    def _submit(self, node: str, key: str, steps: list[dict[str, Any]]) -> None:
        definition = json.loads(json.dumps({"steps": steps}))
        wanted = self._workload.replicas if self._draws.random() < _REPLICAS_SHARE else 0
        answer, _ = self._ask(node, "submit-workflow", definition=definition, idempotencyKey=key, replicas=wanted)
        if answer is not None:
            self._ledger.submitted.append(Acknowledged(answer["taskId"], node, time.time()))

    def _change(self, asked: list[Asked], node: str, command: str, task_id: str, **args: Any) -> None:
        """Ask for a cancel or a replay, and write it down unless the node said that nothing was done."""
        answer, error = self._ask(node, command, taskId=task_id, **args)
        if error not in ("ConflictError", "NotFoundError"):
            asked.append(Asked(task_id, node, time.time(), answer))

    def _ask(self, node: str, command: str, **args: Any) -> tuple[Any, str]:
        """The answer, or None and the name of an error; more of that goes to the ledger."""
        asked_at = time.time()
        answer, name, text = None, "", ""
        try:
            answer = self._cluster.admin(node, command, **args)
        except RelayMeshError as error:
            name, text = type(error).__name__, str(error)
            self._ledger.refusals.append(Refusal(command, node, asked_at, name, text, args.get("taskId", "")))
        if command != "task":
            self._ledger.calls.append(Call(node, command, args, asked_at, time.time(), answer, name, text))
        return answer, name
