"""Clients of a hunt: each draws what to do next, asks a random node, and writes down what it was told."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos.real.hunt.agents import MAX_ATTEMPTS
from chaos.real.processes import Cluster
from mesh.errors import RelayMeshError

_ACTIONS = ("single", "diamond", "twice", "cancel", "replay", "look")
_WEIGHTS = (8, 3, 3, 2, 2, 12)
PAUSE_MAX_S = 0.25
WATCH_EVERY_S = 0.02
RECENT = 60
"""Cancels, replays and looks choose among this many latest tasks."""


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


@dataclass(slots=True)
class Ledger:
    """All that clients were told. Lists only grow, and each append is one step, so threads may share it."""

    submitted: list[Acknowledged] = field(default_factory=list)
    cancels: list[Asked] = field(default_factory=list)
    replays: list[Asked] = field(default_factory=list)
    sights: list[Sight] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)


class Client:
    """One of several; runs in a thread of its own until told to stop."""

    def __init__(self, cluster: Cluster, ledger: Ledger, journal: Path, *, name: str, seed: int) -> None:
        self._cluster = cluster
        self._ledger = ledger
        self._journal = journal
        self._name = name
        self._draws = random.Random(f"{seed} {name}")
        self._nodes = list(cluster.nodes)
        self._keys = 0

    def run(self, stop: threading.Event) -> None:
        """Act until `stop` is set."""
        while not stop.is_set():
            (action,) = self._draws.choices(_ACTIONS, _WEIGHTS)
            getattr(self, f"_{action}")()
            stop.wait(self._draws.uniform(0, PAUSE_MAX_S))

    def watch(self, node: str, stop: threading.Event) -> None:
        """Look at one node all the time: what it shows for a moment only must be seen, too."""
        while not stop.wait(WATCH_EVERY_S):
            task_id = self._a_task()
            if task_id is not None:
                self.look_at(node, task_id)

    # --- what it does ---

    def _single(self) -> None:
        self._submit(self._a_node(), self._key(), [self._a_step("only", [])])

    def _diamond(self) -> None:
        steps = [
            self._a_step("top", []),
            self._a_step("left", ["top"]),
            self._a_step("right", ["top"]),
            self._a_step("join", ["left", "right"]),
        ]
        self._submit(self._a_node(), self._key(), steps)

    def _twice(self) -> None:
        """One key at two nodes at once; now and then for different work, of which one may be refused."""
        key, steps = self._key(), [self._a_step("only", [])]
        others = [self._a_step("only", [])] if self._draws.random() < 0.2 else steps
        here, there = self._draws.sample(self._nodes, 2)
        other = threading.Thread(target=self._submit, args=(there, key, others))
        other.start()
        self._submit(here, key, steps)
        other.join()

    def _cancel(self) -> None:
        task_id, node = self._a_task(), self._a_node()
        if task_id is not None:
            mode = self._draws.choice(["hard", "soft"])
            self._change(self._ledger.cancels, node, "cancel", task_id, mode=mode, reason="hunt")

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

    def _key(self) -> str:
        self._keys += 1
        return f"{self._name}-{self._keys}"

    def _a_step(self, name: str, parents: Sequence[str]) -> dict[str, Any]:
        draws = self._draws
        step: dict[str, Any] = {"id": name, "dependsOn": list(parents), "priority": draws.choice(["high", "normal"])}
        if draws.random() < 0.15:
            step["node"] = self._a_node()  # often another than the one that is asked: it must be handed over
        kind = draws.choices(["hunted", "echo", "sleep"], [7, 2, 1])[0]
        if kind == "echo":
            return {**step, "agent": "echo", "input": self._pad()}
        if kind == "sleep":
            return {**step, "agent": "sleep", "input": f"{draws.uniform(0.1, 1):.2f}"}
        return {**step, "agent": "hunted", "input": self._work()}

    def _work(self) -> dict[str, Any]:
        draws = self._draws
        work: dict[str, Any] = {
            "journal": str(self._journal),
            "seconds": round(draws.choice([0.0, 0.0, draws.uniform(0.1, 2)]), 2),
            "pad": self._pad(),
        }
        (end,) = draws.choices(["well", "fails", "doomed", "crash"], [12, 3, 2, 1])
        if end != "well":
            work[end] = draws.randint(1, MAX_ATTEMPTS - 1) if end == "fails" else True
        return work

    def _pad(self) -> str:
        # Small ones travel in datagrams, larger ones by pulls, the largest beside their row.
        return "x" * self._draws.choice([0, 0, 300, 5_000])

    # --- how it asks ---

    def _submit(self, node: str, key: str, steps: list[dict[str, Any]]) -> None:
        definition = json.loads(json.dumps({"steps": steps}))
        answer, _ = self._ask(node, "submit-workflow", definition=definition, idempotencyKey=key)
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
        try:
            return self._cluster.admin(node, command, **args), ""
        except RelayMeshError as error:
            name, task_id = type(error).__name__, args.get("taskId", "")
            self._ledger.refusals.append(Refusal(command, node, asked_at, name, str(error), task_id))
            return None, name
