"""Plays the faults of a scenario on real processes, lines and disks, each at its time, and mends everything.

It is also the operator of the mesh: a process that should run and does not is started again, and one that ended though
nobody ended it is written down.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from chaos.line_faults import LINE_KINDS, bad_times, overlay
from chaos.real.lines import Lines
from chaos.real.processes import SETTINGS_FILE, Cluster
from chaos.real.small_disk import SmallDisk
from chaos.scenario import Fault
from mesh.errors import ConfigError, RelayMeshError

PROCESS_KINDS = ("kill", "stop", "pause", "starve", "power-cut", "settings", "epoch-bump")
"""What a process, its control socket and its settings file are enough for. A power cut is only a kill here."""
DISK_KINDS = ("disk-full",)
TICK_S = 0.1
RESTART_S = 1.0
"""Between the end of a process that nobody ended and its next start."""


@dataclass(slots=True)
class Record:
    """What came of it."""

    exit_codes: list[tuple[str, int | str]] = field(default_factory=list)
    """Of graceful stops and of nodes that ended by themselves: the node, and its exit code or what went wrong."""
    starts: Counter[str] = field(default_factory=Counter)
    """By node: how often it was started again."""
    poisoned: int = 0
    """Nodes that an agent killed."""


@dataclass(frozen=True, slots=True)
class _Happening:
    at_s: float
    begins: bool
    fault: Fault
    do: Callable[[], None]

    @property
    def order(self) -> tuple[float, int]:
        """What ends at an instant ends before others begin in it, but not before it began itself."""
        if self.begins:
            return self.at_s, 1
        return self.at_s, 0 if self.fault.for_s else 2


class Trouble:
    """One schedule. It must run in the thread that started the cluster: nodes end with the thread that started them."""

    def __init__(
        self,
        cluster: Cluster,
        lines: Lines,
        disks: Mapping[str, SmallDisk],
        faults: Sequence[Fault],
        *,
        poison: bool,
        tell: Callable[[str], None],
    ) -> None:
        """`disks` by node, for every node whose disk a fault fills. With `poison`, agents may kill their nodes."""
        self._cluster = cluster
        self._lines = lines
        self._disks = disks
        self._poison = poison
        self._tell = tell
        self._down: Counter[str] = Counter()  # faults that keep a node down
        self._still: Counter[str] = Counter()  # faults that keep it paused
        self._ended_by_us: set[str] = set()
        self._stopping: dict[str, threading.Thread] = {}
        self._cut_short: set[str] = set()  # killed while they stopped
        self._was_full: set[str] = set()
        self._not_before: dict[str, float] = {}  # when a node that ended by itself may start again
        self.record = Record()
        happenings = [happening for fault in faults for happening in self._happenings(fault)]
        self._happenings_in_order = sorted(happenings, key=lambda each: each.order)

    def run(self, until_s: float) -> None:
        """Do everything at its time, counted from now, and return at `until_s`; `mend` ends what lasts longer."""
        started = time.monotonic()
        for each in self._happenings_in_order:
            if each.at_s > until_s:
                break
            self._wait(started + each.at_s)
            if each.begins and each.at_s == each.fault.at_s:
                self._tell(f"{each.at_s:6.1f} s  {describe(each.fault)}")
            each.do()
        self._wait(started + until_s)

    def mend(self) -> None:
        """Undo whatever is still broken, and start every node that does not run."""
        for each in self._happenings_in_order:
            if not each.begins:
                each.do()
        self._down.clear()
        self._still.clear()
        for thread in list(self._stopping.values()):
            thread.join()
        for node in self._cluster.running():
            self._cluster.resume(node)  # harmless where nothing was paused
        self.look_after()

    def look_after(self) -> None:
        """Start every node that should run and does not, one that ended by itself a moment later."""
        running = self._cluster.running()
        for node in self._cluster.nodes:
            if node in running or self._down[node] or node in self._stopping:
                continue
            if node not in self._ended_by_us:
                self._ended_by_us.add(node)
                self._note_end(node)
                self._not_before[node] = time.monotonic() + RESTART_S
            if time.monotonic() >= self._not_before.get(node, 0.0):
                self._ended_by_us.discard(node)
                self._cluster.start(node, wait=False)
                self.record.starts[node] += 1

    def _note_end(self, node: str) -> None:
        code = self._cluster.exit_code(node)
        if self._poison and code == -signal.SIGKILL:
            self.record.poisoned += 1
        elif node not in self._was_full or self._cluster.is_ready(node):  # a full disk excuses only a refused start
            self.record.exit_codes.append((node, f"it had ended by itself, with {code}"))

    def _wait(self, until: float) -> None:
        while True:
            self.look_after()
            left_s = until - time.monotonic()
            if left_s <= 0:
                return
            time.sleep(min(TICK_S, left_s))

    # --- what each fault does ---

    def _happenings(self, fault: Fault) -> Iterator[_Happening]:
        def lasting(begin: Callable[[], None], end: Callable[[], None]) -> Iterator[_Happening]:
            yield _Happening(fault.at_s, True, fault, begin)
            yield _Happening(fault.until_s, False, fault, _once(end))

        if fault.kind in LINE_KINDS:
            yield from self._on_lines(fault)
            return
        match fault.kind:
            case "kill" | "power-cut":
                yield from lasting(lambda: self._each(fault, self._kill), lambda: self._each(fault, self._raise))
            case "stop":
                yield from lasting(lambda: self._each(fault, self._stop), lambda: self._each(fault, self._raise))
            case "pause":
                yield from lasting(lambda: self._each(fault, self._pause), lambda: self._each(fault, self._resume))
            case "starve":
                yield from self._starve(fault)
            case "settings":
                yield _Happening(fault.at_s, True, fault, lambda: self._each(fault, self._change_settings(fault)))
            case "epoch-bump":
                yield _Happening(fault.at_s, True, fault, lambda: self._each(fault, self._bump))
            case "disk-full":
                yield from lasting(lambda: self._fill(fault), lambda: self._each(fault, self._free))
            case _:
                raise AssertionError(f"{fault.kind} is not played on real processes")

    def _each(self, fault: Fault, act: Callable[[str], None]) -> None:
        for node in fault.nodes or self._cluster.nodes:
            act(node)

    def _on_lines(self, fault: Fault) -> Iterator[_Happening]:
        for from_s, until_s in bad_times(fault):
            # One object for both: lines know an overlay by its identity.
            laid = overlay(fault, list(self._cluster.nodes))
            yield _Happening(from_s, True, fault, lambda laid=laid: self._lines.lay(laid))  # type: ignore[misc]
            yield _Happening(until_s, False, fault, lambda laid=laid: self._lines.lift(laid))  # type: ignore[misc]

    def _starve(self, fault: Fault) -> Iterator[_Happening]:
        share, slice_s = _number(fault, "share"), _number(fault, "slice_s")
        for number in itertools.count():
            at_s = fault.at_s + number * slice_s
            if at_s >= fault.until_s:
                return
            until_s = min(fault.until_s, at_s + slice_s * (1 - share))
            yield _Happening(at_s, True, fault, lambda: self._each(fault, self._pause))
            yield _Happening(until_s, False, fault, _once(lambda: self._each(fault, self._resume)))

    def _kill(self, node: str) -> None:
        self._down[node] += 1
        if node in self._cluster.running():
            self._ended_by_us.add(node)
            if node in self._stopping:
                self._cut_short.add(node)
            self._cluster.kill(node)

    def _stop(self, node: str) -> None:
        self._down[node] += 1
        if node in self._cluster.running() and node not in self._stopping:
            self._ended_by_us.add(node)
            self._cluster.resume(node)  # a process that stands still cannot stop in order
            thread = threading.Thread(target=self._terminate, args=(node,), daemon=True)
            self._stopping[node] = thread  # before it can end and take itself out
            thread.start()

    def _terminate(self, node: str) -> None:
        try:
            code: int | str = self._cluster.terminate(node)
        except TimeoutError as error:
            code = str(error)
            self._cluster.kill(node)
        except ConfigError:
            code = 0  # another fault had killed it already
        # A process that is still loading its modules ends as the kernel sees fit, and one that is killed at once.
        if node in self._cut_short or code == -signal.SIGTERM:
            code = 0
        self._cut_short.discard(node)
        self.record.exit_codes.append((node, code))
        del self._stopping[node]

    def _raise(self, node: str) -> None:
        self._down[node] = max(0, self._down[node] - 1)

    def _pause(self, node: str) -> None:
        self._still[node] += 1
        if node in self._cluster.running() and node not in self._stopping:
            self._cluster.pause(node)

    def _resume(self, node: str) -> None:
        self._still[node] = max(0, self._still[node] - 1)
        if not self._still[node] and node in self._cluster.running():
            self._cluster.resume(node)

    def _change_settings(self, fault: Fault) -> Callable[[str], None]:
        def change(node: str) -> None:
            path = self._cluster.nodes[node].root / SETTINGS_FILE
            settings = json.loads(path.read_text()) if path.exists() else {}
            changed = {"gossipFanout": fault.options["fanout"], "gossipPacketTtl": fault.options["ttl"]}
            path.write_text(json.dumps(settings | changed))
            self._kill(node)
            self._raise(node)

        return change

    def _bump(self, node: str) -> None:
        def bump() -> None:
            with contextlib.suppress(RelayMeshError):  # it may be down: then nothing is bumped
                self._cluster.admin(node, "cluster-epoch-bump", reason="chaos", actor="chaos")

        threading.Thread(target=bump, daemon=True).start()

    def _fill(self, fault: Fault) -> None:
        for node in fault.nodes:
            self._was_full.add(node)
            self._disks[node].fill(int(_number(fault, "free_kib")) * 1024)

    def _free(self, node: str) -> None:
        self._disks[node].free()


def describe(fault: Fault) -> str:
    """One line for people: what, whom, from whom, for how long."""
    sides = " | ".join("+".join(side) for side in fault.groups)
    options = ", ".join(f"{name}={value}" for name, value in fault.options.items())
    parts = (fault.kind, "+".join(fault.nodes), sides, options, f"for {fault.for_s:g} s" if fault.for_s else "")
    return " ".join(part for part in parts if part)


def _number(fault: Fault, option: str) -> float:
    value = fault.options[option]
    assert isinstance(value, int | float), (option, value)
    return float(value)


def _once(do: Callable[[], None]) -> Callable[[], None]:
    """The end of a fault happens at its time or at the mending, not at both."""
    done = False

    def do_once() -> None:
        nonlocal done
        if not done:
            done = True
            do()

    return do_once
