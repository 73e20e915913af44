"""What happens to the processes and lines of a mesh during a hunt: a schedule from a seed, and its execution."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from chaos.real.firewall import Cut, Firewall
from chaos.real.processes import Cluster
from mesh.errors import ConfigError, RelayMeshError

_WEIGHTS = {"kill": 10, "blackout": 1, "pause": 8, "stop": 4, "cut": 8, "one-way": 6, "bump": 2}
_LONGEST_S = {"kill": 6.0, "blackout": 2.0, "pause": 8.0, "stop": 6.0, "cut": 10.0, "one-way": 8.0, "bump": 0.0}
_SHORTEST_S = {"kill": 0.1, "blackout": 0.1, "pause": 1.0, "stop": 1.0, "cut": 1.0, "one-way": 1.0, "bump": 0.0}
KINDS = tuple(_WEIGHTS)
CUTS_MAX = 2
"""Lines broken at a time. More would leave little to hunt: every node alone."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong at `at_s` and is undone at `until_s`, both counted from the start of the hunt."""

    at_s: float
    until_s: float
    kind: str
    here: tuple[str, ...]
    """The node that it happens to (all of them in a blackout), or one side of a cut."""
    there: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = f" from {'+'.join(self.there)}" if self.there else ""
        return f"{self.at_s:.2f}-{self.until_s:.2f} s: {self.kind} {'+'.join(self.here)}{lines}"


def schedule(draws: random.Random, nodes: Sequence[str], seconds: float, *, every_s: float) -> list[Fault]:
    """Faults at random times, one in `every_s` or so. A node has one at a time; but for blackouts, one node runs."""
    faults: list[Fault] = []
    at_s = 1.0
    while (at_s := at_s + draws.expovariate(1 / every_s)) < seconds:
        (kind,) = draws.choices(KINDS, [*_WEIGHTS.values()])
        until_s = min(seconds, at_s + draws.uniform(_SHORTEST_S[kind], _LONGEST_S[kind]))
        now = [fault for fault in faults if fault.until_s > at_s - 0.5]
        busy = {node for fault in now if not fault.there for node in fault.here}
        free = [node for node in nodes if node not in busy]
        if kind == "bump":
            faults.append(Fault(at_s, until_s, kind, (draws.choice(nodes),)))
        elif kind in ("cut", "one-way"):
            if sum(bool(fault.there) for fault in now) < CUTS_MAX:
                shuffled = draws.sample(nodes, len(nodes))
                size = 1 if kind == "one-way" else draws.randint(1, len(nodes) - 1)
                other = shuffled[1:2] if kind == "one-way" else shuffled[size:]
                faults.append(Fault(at_s, until_s, kind, tuple(shuffled[:size]), tuple(other)))
        elif kind == "blackout":
            if len(free) == len(nodes):
                faults.append(Fault(at_s, until_s, kind, tuple(nodes)))
        elif len(free) > 1:
            faults.append(Fault(at_s, until_s, kind, (draws.choice(free),)))
    return faults


class Trouble:
    """Carries a schedule out, in the thread that started the cluster: nodes end with the thread that started them."""

    def __init__(self, cluster: Cluster, walls: Firewall | None, faults: Sequence[Fault]) -> None:
        """Without a firewall, cuts are left out."""
        self._cluster = cluster
        self._walls = walls
        self._cuts: dict[Fault, Cut] = {}
        self._stopping: dict[str, threading.Thread] = {}
        self.exit_codes: list[tuple[str, int | str]] = []
        """Of graceful stops: the node, and its exit code or what went wrong."""
        kept = [fault for fault in faults if walls is not None or not fault.there]
        begins = [(fault.at_s, 1, fault) for fault in kept]
        ends = [(fault.until_s, 0, fault) for fault in kept]
        self._events = sorted([*begins, *ends], key=lambda event: event[:2])

    def run(self, started: float) -> None:
        """Do everything at its time, counted from this monotonic time, and undo it; returns when all is mended."""
        for at_s, begins, fault in self._events:
            time.sleep(max(0.0, started + at_s - time.monotonic()))
            try:
                (self._begin if begins else self._end)(fault)
            except ConfigError as error:
                self.exit_codes.append((fault.here[0], f"it had ended by itself: {error}"))

    def mend(self) -> None:
        """Undo whatever is still broken, and start every node that does not run."""
        for fault in list(self._cuts):
            self._end(fault)
        for node in list(self._stopping):
            self._await_stopped(node)
        for node in self._cluster.nodes:
            if node in self._cluster.running():
                self._cluster.resume(node)  # harmless where nothing was paused
            else:
                self._cluster.start(node, wait=False)

    def _begin(self, fault: Fault) -> None:
        (node, *_) = fault.here
        match fault.kind:
            case "kill" | "blackout":
                for each in fault.here:
                    self._cluster.kill(each)
            case "pause":
                self._cluster.pause(node)
            case "stop":
                self._stopping[node] = _background(lambda: self._terminate(node))
            case "bump":
                _background(lambda: self._bump(node))
            case _:
                assert self._walls is not None
                hosts = [[self._cluster.nodes[node].host for node in side] for side in (fault.here, fault.there)]
                self._cuts[fault] = self._walls.cut(*hosts, one_way=fault.kind == "one-way")

    def _end(self, fault: Fault) -> None:
        (node, *_) = fault.here
        match fault.kind:
            case "kill" | "blackout":
                for each in fault.here:
                    self._cluster.start(each, wait=False)
            case "pause":
                self._cluster.resume(node)
            case "stop":
                self._await_stopped(node)
                self._cluster.start(node, wait=False)
            case "bump":
                pass
            case _:
                self._cuts.pop(fault).heal()

    def _terminate(self, node: str) -> None:
        try:
            code = self._cluster.terminate(node)
            # A process that is still loading its modules ends as the kernel sees fit.
            self.exit_codes.append((node, 0 if code == -signal.SIGTERM else code))
        except TimeoutError as error:
            self.exit_codes.append((node, str(error)))
            self._cluster.kill(node)

    def _await_stopped(self, node: str) -> None:
        self._stopping.pop(node).join()

    def _bump(self, node: str) -> None:
        with contextlib.suppress(RelayMeshError):  # it may be down: then nothing is bumped
            self._cluster.admin(node, "cluster-epoch-bump", reason="hunt", actor="hunt")


def _background(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread
