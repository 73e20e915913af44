"""Plays a scenario on real `relaymesh-node` processes, and judges by what can be seen from outside.

Promises: whatever this driver or this user cannot do is refused before anything starts. Whatever ends a run, Ctrl-C
included, no process, rule, network or mount is left, and what was seen is told. The seed fixes what is tried and when;
real processes answer in their own time, so the same seed makes a like run, not the same one.
"""

from __future__ import annotations

import contextlib
import resource
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from chaos.coverage import Coverage
from chaos.line_faults import LINE_KINDS
from chaos.observations import Seen
from chaos.real import agents, firewall, kernel, observed, small_disk, tun_switch
from chaos.real.clients import Client, Ledger
from chaos.real.evidence import Evidence, Replica, bad_lines, damage, read_journals, read_replica
from chaos.real.firewall import Firewall
from chaos.real.lines import FirewallLines, Lines, NoLines
from chaos.real.processes import Cluster, leftovers
from chaos.real.quiet import await_quiet, await_whole, stop_all, unexplained
from chaos.real.small_disk import SmallDisk
from chaos.real.trouble import DISK_KINDS, PROCESS_KINDS, Trouble
from chaos.real.tun_switch import TunSwitch
from chaos.real.verdict import judge
from chaos.runs import RunResult, Violation
from chaos.scenario import ClockSpec, DiskSpec, NetSpec, Scenario
from chaos.simulation import seeds
from chaos.simulation.links import Conditions, Overlay
from chaos.timeline import TimelineKeeper
from mesh.errors import ConfigError

Driver = Literal["loopback", "tun"]

LINE_KINDS_OF: Mapping[Driver, tuple[str, ...]] = {
    "loopback": ("loss", "partition", "one-way", "isolate", "flap"),
    "tun": LINE_KINDS,
}
"""What each driver can do to lines. To processes and disks all do the same."""

START_S = 60.0
"""A mesh without faults that is not whole after this long has failed already."""
SLOTS = 4
LOG_LINES_MAX = 2_000
"""Per node. The last ones are kept."""
_OWN_NAMESPACES = "as root, or as a user who may make namespaces under `unshare -rnm`"


@dataclass(slots=True)
class _Stage:
    """Everything that a run happens to."""

    cluster: Cluster
    lines: Lines
    disks: Mapping[str, SmallDisk]


@dataclass(slots=True)
class _Seen:
    """What the run came to so far."""

    ledger: Ledger = field(default_factory=Ledger)
    whole_at: float = 0.0
    """Wall time."""
    ended_at: float = 0.0
    """Wall time of the end of the trouble, or of the run when it was interrupted."""
    settled_ms: float | None = None
    replica: Replica | None = None
    """One node's rows, read when all were equal or should have been."""
    violations: list[Violation] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    logs: dict[str, list[str]] = field(default_factory=dict)


def play_real(
    scenario: Scenario,
    *,
    driver: Driver,
    directory: Path,
    progress: Callable[[str], None] = lambda line: None,
) -> RunResult:
    """Run a scenario whose faults are all explicit, in real time. Databases, logs and journals stay in `directory`.

    `directory` must be new or empty. `progress` hears a line for each thing that happens. Raises ConfigError before
    anything starts when the driver cannot play the scenario, or this user not run the driver; after that, only for
    what is wrong with the host. Must be called from a thread that lives on: nodes end with the thread that starts them.
    """
    assert scenario.random is None, "swarm.expand draws random faults before a run"
    check(scenario, driver)
    return _Play(scenario, driver, directory, progress).run()


def check(scenario: Scenario, driver: Driver) -> None:
    """Raise ConfigError with one line that says what stands in the way, and what works instead."""
    if scenario.scale != "node":
        raise ConfigError(
            f"{scenario.name} is of scale {scenario.scale!r}; real processes play scenarios of scale 'node'"
        )
    if scenario.pending:
        raise ConfigError(f"{scenario.name} is pending, so real processes would show nothing new: {scenario.pending}")
    impossible = sorted({fault.kind for fault in scenario.faults} - set(_kinds_of(driver)))
    if impossible:
        raise ConfigError(_cannot_play(driver, impossible))
    missing = _missing_right(scenario, driver)
    if missing:
        raise ConfigError(missing)


def notes_on(scenario: Scenario, driver: Driver) -> list[str]:
    """What of a scenario is played in another way than the simulator would, or not at all: one line each."""
    notes = []
    if any(fault.kind == "power-cut" for fault in scenario.faults):
        notes.append("a power-cut is played as a kill: the host keeps its power, so nothing unsynced is lost")
    net = scenario.net
    if driver == "loopback" and net != NetSpec(loss=net.loss):
        notes.append("of [net], the loopback driver plays loss only; --driver tun plays all of it")
    if scenario.clock != ClockSpec():
        notes.append("[clock] is not played: all nodes share the host's clock")
    if scenario.disk != DiskSpec():
        notes.append("[disk] is not played: the host's disk takes its own time")
    return notes


def _kinds_of(driver: Driver) -> tuple[str, ...]:
    return (*LINE_KINDS_OF[driver], *PROCESS_KINDS, *DISK_KINDS)


def _cannot_play(driver: Driver, kinds: list[str]) -> str:
    words = f"the {driver} driver cannot play {', '.join(kinds)}"
    if driver != "tun" and set(kinds) <= set(_kinds_of("tun")):
        return f"{words}; --driver tun can"
    return f"{words}; it plays {', '.join(_kinds_of(driver))}, and the simulator (`relaymesh chaos run`) plays them all"


def _missing_right(scenario: Scenario, driver: Driver) -> str:
    if driver == "tun":
        reason = tun_switch.available()
        if reason is not None:
            return f"the tun driver cannot work here: {reason}; run it {_OWN_NAMESPACES}"
    elif _cuts_lines(scenario):
        reason = firewall.available()
        if reason is not None:
            return f"the loopback driver cannot cut lines here: {reason}; run it {_OWN_NAMESPACES}"
    if _small_disks(scenario):
        reason = small_disk.available()
        if reason is not None:
            return f"disks cannot be filled here: {reason}; run it {_OWN_NAMESPACES}"
    return ""


def _cuts_lines(scenario: Scenario) -> bool:
    return scenario.net.loss > 0 or any(fault.kind in LINE_KINDS for fault in scenario.faults)


def _small_disks(scenario: Scenario) -> list[str]:
    return sorted({node for fault in scenario.faults if fault.kind in DISK_KINDS for node in fault.nodes})


class _Play:
    """One run. `play_real` is what callers use."""

    def __init__(self, scenario: Scenario, driver: Driver, directory: Path, progress: Callable[[str], None]) -> None:
        self._scenario = scenario
        self._driver = driver
        self._directory = directory
        self._progress = progress
        self._journal = directory / "journal"
        self._seen = _Seen()

    def run(self) -> RunResult:
        began, cpu_began_s = time.monotonic(), _cpu_s()
        self._seen.facts |= {"driver": self._driver, "notes": notes_on(self._scenario, self._driver)}
        self._journal.mkdir(parents=True)
        with _stage(self._scenario, self._driver, self._directory) as stage:
            try:
                self._phases(stage)
            except KeyboardInterrupt:
                self._interrupted(stage)
            self._seen.facts |= stage.lines.figures()
            self._seen.logs = {node: _last_lines(spec.log) for node, spec in stage.cluster.nodes.items()}
            timeline, coverage = TimelineKeeper(), Coverage()
            for each in self._observations(stage.cluster):
                timeline.see(each)
                coverage.see(each)
        return RunResult(
            scenario=self._scenario,
            violations=self._seen.violations,
            coverage=coverage.counts,
            trace_hash="",
            simulated_s=round(time.monotonic() - began, 3),
            cpu_s=round(_cpu_s() - cpu_began_s, 3),
            healed_ms=self._ms(self._seen.ended_at),
            settled_ms=self._seen.settled_ms,
            timeline=timeline.events(),
            logs=self._seen.logs,
            facts=self._seen.facts,
        )

    def _phases(self, stage: _Stage) -> None:
        cluster, seen = stage.cluster, self._seen
        self._progress(f"starting {len(cluster.nodes)} nodes")
        started = time.monotonic()
        cluster.start()
        missing = await_whole(cluster, START_S)
        seen.whole_at = seen.ended_at = time.time()
        if missing:
            seen.violations.append(Violation("liveness", 0.0, f"a mesh without faults is not whole: {missing}"))
            return
        self._progress(f"the mesh is whole after {time.monotonic() - started:.1f} s")
        trouble = self._trouble(stage)
        seen.ended_at = time.time()
        self._progress("mended; waiting until all work has ended and all replicas agree")
        unquiet = await_quiet(cluster, self._scenario.settle_s, trouble.look_after)
        if not unquiet:
            seen.settled_ms = self._ms(time.time())
        self._progress(unquiet or f"quiet after {time.time() - seen.ended_at:.1f} s")
        self._judge(cluster, trouble, unquiet)

    def _trouble(self, stage: _Stage) -> Trouble:
        trouble = Trouble(
            stage.cluster,
            stage.lines,
            stage.disks,
            self._scenario.faults,
            poison=self._scenario.workload.poison_share > 0,
            tell=self._progress,
        )
        with self._clients(stage.cluster):
            try:
                trouble.run(self._scenario.duration_s)
            except KeyboardInterrupt:
                stage.cluster.close()  # so that no client waits for an answer
                raise
        trouble.mend()
        return trouble

    @contextlib.contextmanager
    def _clients(self, cluster: Cluster) -> Iterator[None]:
        """Clients at work until the block ends."""
        stop, workload = threading.Event(), self._scenario.workload
        threads = []
        if workload.rate:
            for number in range(workload.clients):
                client = self._client(cluster, f"client {number}")
                threads.append(threading.Thread(target=client.run, args=(stop,), daemon=True))
            for node in cluster.nodes:
                watcher = self._client(cluster, f"watcher of {node}")
                threads.append(threading.Thread(target=watcher.watch, args=(node, stop), daemon=True))
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    def _client(self, cluster: Cluster, name: str) -> Client:
        return Client(
            cluster,
            self._seen.ledger,
            self._journal,
            workload=self._scenario.workload,
            name=name,
            seed=self._scenario.seed,
        )

    def _judge(self, cluster: Cluster, trouble: Trouble, unquiet: str) -> None:
        seen, ledger = self._seen, self._seen.ledger
        draws = seeds.stream(self._scenario.seed, "last looks")
        accepted = list(dict.fromkeys(told.task_id for told in ledger.submitted))
        looker = self._client(cluster, "looker")
        for task_id in accepted:
            looker.look_at(draws.choice(list(cluster.nodes)), task_id)
        untold = [] if unquiet else list(unexplained(cluster, accepted, draws))
        databases = {name: spec.root / "relaymesh.db" for name, spec in cluster.nodes.items()}
        # Before the nodes stop: the last ones would take over from the first what waits below dead letters.
        replicas = {name: read_replica(database) for name, database in databases.items()}
        codes = [*trouble.record.exit_codes, *stop_all(cluster)]
        full = frozenset(_small_disks(self._scenario))
        seen.replica = next(iter(replicas.values()))
        evidence = Evidence(
            replicas=replicas,
            damage=[line for database in databases.values() for line in damage(database)],
            runs=read_journals(self._journal),
            ledger=ledger,
            unquiet=unquiet,
            unexplained=untold,
            exit_codes=codes,
            leftovers=leftovers(cluster.marker),
            log_lines=bad_lines({name: spec.log for name, spec in cluster.nodes.items()}, full_disks=full),
            full_disks=full,
        )
        seen.violations += judge(evidence, self._ms(time.time()))
        seen.facts |= {
            "submits": sum(call.command == "submit-workflow" for call in ledger.calls),
            "accepted": len(accepted),
            "runs": len(evidence.runs),
            "looks": len(ledger.sights),
            "restarts": trouble.record.starts.total(),
            "poisoned": trouble.record.poisoned,
        }

    def _interrupted(self, stage: _Stage) -> None:
        self._progress("interrupted: ending all processes")
        stage.cluster.close()
        self._seen.violations.clear()  # half a run proves nothing
        self._seen.ended_at = time.time()
        self._seen.facts["interrupted"] = True

    def _observations(self, cluster: Cluster) -> list[Seen]:
        seen, clock = self._seen, observed.Clock(self._seen.whole_at or time.time())
        told = [
            observed.of_faults(self._scenario.faults, self._ms(seen.ended_at) / 1000),
            observed.of_calls(seen.ledger.calls, clock),
            observed.of_runs(read_journals(self._journal), seen.replica, clock),
            *(observed.of_log(node, spec.log, clock) for node, spec in cluster.nodes.items()),
        ]
        if seen.replica is not None:
            told.append(observed.of_rows(seen.replica, clock))
        return observed.in_order(*told)

    def _ms(self, wall: float) -> float:
        return observed.Clock(self._seen.whole_at).ms(wall) if self._seen.whole_at else 0.0


@contextlib.contextmanager
def _stage(scenario: Scenario, driver: Driver, directory: Path) -> Iterator[_Stage]:
    """The cluster, its lines and its small disks; nothing runs yet. All of it is gone when the block ends."""
    names = scenario.node_names()
    options: dict[str, Any] = {
        "profile": scenario.profile,
        "slots": SLOTS,
        "agents": [Path(agents.__file__)],
        "settings": scenario.settings,
    }
    small_disk.sweep()
    with contextlib.ExitStack() as stack:
        lines: Lines
        if driver == "tun":
            lines = switch = stack.enter_context(TunSwitch(names, seed=scenario.seed, base=_conditions(scenario.net)))
            cluster = stack.enter_context(Cluster(directory / "mesh", names, network=switch, **options))
        else:
            kernel.set_up("lo")  # in a network of our own it may be down still
            cluster = stack.enter_context(Cluster(directory / "mesh", names, **options))
            lines = _loopback_lines(stack, scenario, cluster)
        disks = {node: stack.enter_context(SmallDisk(cluster.nodes[node].root)) for node in _small_disks(scenario)}
        stack.callback(cluster.close)  # before its disks go
        yield _Stage(cluster, lines, disks)


def _loopback_lines(stack: contextlib.ExitStack, scenario: Scenario, cluster: Cluster) -> Lines:
    if not _cuts_lines(scenario):
        return NoLines()
    walls = stack.enter_context(Firewall())
    lines = FirewallLines(walls, {name: spec.host for name, spec in cluster.nodes.items()})
    if scenario.net.loss:
        lines.lay(Overlay(pairs=None, loss=scenario.net.loss))
    return lines


def _conditions(net: NetSpec) -> Conditions:
    return Conditions(
        loss=net.loss,
        duplicate=net.duplicate,
        reorder=net.reorder,
        delay_min_s=net.delay_min_ms / 1000,
        delay_mean_s=net.delay_mean_ms / 1000,
    )


def _last_lines(log: Path) -> list[str]:
    return log.read_text(errors="replace").splitlines()[-LOG_LINES_MAX:] if log.exists() else []


def _cpu_s() -> float:
    """Of this process and of all that it has started and waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
