"""One hunt, from the start of the mesh to the verdict."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from chaos.real.firewall import Firewall, available
from chaos.real.hunt import agents
from chaos.real.hunt.clients import Client, Ledger
from chaos.real.hunt.evidence import Evidence, bad_lines, damage, read_journals, read_replica
from chaos.real.hunt.faults import Trouble, schedule
from chaos.real.hunt.verdict import Violation, judge
from chaos.real.processes import Cluster, leftovers, wait_until
from mesh.errors import RelayMeshError
from node.work.tables import Status

CLIENTS = 6
QUIET_S = 120.0
"""How long a mended mesh may take until all work has ended and all replicas agree."""
STAYS_QUIET_S = 1.0
# Short dwell windows, so that a node that came back gets work again within a hunt.
SETTINGS = {"suspectRecoverMinMs": 200, "deadRecoverMinMs": 500, "baseBackoffMs": 100, "maxBackoffMs": 1_000}


@dataclass(frozen=True, slots=True)
class Report:
    """What a hunt found. Everything that its nodes wrote stays in `directory`."""

    seed: int
    directory: Path
    faults: list[str]
    tasks: int
    runs: int
    quiet_s: float
    """From the end of the faults until all work had ended and all replicas were equal."""
    violations: list[Violation]


def hunt(directory: Path, *, seed: int, seconds: float, nodes: int | None = None) -> Report:
    """Run one hunt in a new directory. `nodes` None draws three to five. Never raises for what it hunts."""
    draws = random.Random(seed)
    names = [f"n{number}" for number in range(1, 1 + (nodes or draws.randint(3, 5)))]
    journal, ledger = directory / "journal", Ledger()
    journal.mkdir(parents=True)
    agent_file = Path(agents.__file__)
    with (
        _walls() as walls,
        Cluster(
            directory / "mesh", names, slots=draws.randint(2, 5), agents=[agent_file], settings=SETTINGS
        ) as cluster,
    ):
        cluster.start()
        faults = schedule(draws, names, seconds, every_s=draws.uniform(0.4, 1.5))
        trouble = Trouble(cluster, walls, faults)
        with _clients(cluster, ledger, journal, seed) as looker:
            trouble.run(time.monotonic())
        mended = time.monotonic()
        trouble.mend()
        unquiet = _await_quiet(cluster)
        quiet_s = time.monotonic() - mended
        for told in ledger.submitted:
            looker.look_at(draws.choice(names), told.task_id)
        unexplained = list(_unexplained(cluster, ledger, draws)) if not unquiet else []
        databases = {name: spec.root / "relaymesh.db" for name, spec in cluster.nodes.items()}
        # Before the nodes stop: the last ones would take over from the first what waits below dead letters.
        replicas = {name: read_replica(database) for name, database in databases.items()}
        codes = [*trouble.exit_codes, *_stop(cluster)]
        evidence = Evidence(
            replicas=replicas,
            damage=[line for database in databases.values() for line in damage(database)],
            runs=read_journals(journal),
            ledger=ledger,
            unquiet=unquiet,
            unexplained=unexplained,
            exit_codes=codes,
            leftovers=leftovers(cluster.marker),
            log_lines=bad_lines(spec.log for spec in cluster.nodes.values()),
        )
    return Report(
        seed=seed,
        directory=directory,
        faults=[str(fault) for fault in faults],
        tasks=len({told.task_id for told in ledger.submitted}),
        runs=len(evidence.runs),
        quiet_s=quiet_s,
        violations=judge(evidence),
    )


@contextlib.contextmanager
def _walls() -> Iterator[Firewall | None]:
    if available() is not None:
        yield None
    else:
        with Firewall() as walls:
            yield walls


@contextlib.contextmanager
def _clients(cluster: Cluster, ledger: Ledger, journal: Path, seed: int) -> Iterator[Client]:
    """Clients at work until the block ends; yields one that only looks."""
    stop = threading.Event()
    clients = [Client(cluster, ledger, journal, name=f"c{number}", seed=seed) for number in range(CLIENTS)]
    threads = [threading.Thread(target=client.run, args=(stop,), daemon=True) for client in clients]
    for node in cluster.nodes:
        watcher = Client(cluster, ledger, journal, name=f"watcher of {node}", seed=seed)
        threads.append(threading.Thread(target=watcher.watch, args=(node, stop), daemon=True))
    for thread in threads:
        thread.start()
    try:
        yield Client(cluster, ledger, journal, name="looker", seed=seed)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _await_quiet(cluster: Cluster) -> str:
    """Until all nodes see each other, all tasks have ended everywhere and nothing changes; else why not."""
    deadline = time.monotonic() + QUIET_S
    last = ""

    def quiet() -> bool:
        nonlocal last
        try:
            last = _noise(cluster)
        except RelayMeshError as error:
            last = str(error)
        return not last

    try:
        for node in cluster.nodes:
            cluster.wait_ready(node)
        while True:
            wait_until(quiet, max(0.0, deadline - time.monotonic()), "the mesh is quiet")
            before = _digests(cluster)
            time.sleep(STAYS_QUIET_S)
            if _digests(cluster) == before:
                return ""
    except (TimeoutError, RelayMeshError) as error:
        return f"{error}: {last}"


def _noise(cluster: Cluster) -> str:
    """What is not quiet yet; empty when all is."""
    for node in cluster.nodes:
        away = [m["nodeId"] for m in cluster.admin(node, "members") if m["effectiveStatus"] != "ALIVE"]
        if away:
            return f"{node} sees {away} away"
        unfinished = [task["taskId"] for task in _all_tasks(cluster, node) if not Status(task["status"]).is_terminal]
        if unfinished:
            return f"{node} has {len(unfinished)} unfinished tasks: {unfinished[:5]}"
    digests = _digests(cluster)
    return "" if len(set(digests.values())) == 1 else f"replicas differ: {digests}"


def _all_tasks(cluster: Cluster, node: str) -> Iterator[dict[str, str]]:
    offset = 0
    while page := cluster.admin(node, "tasks", limit=1_000, offset=offset):
        yield from page
        offset += len(page)


def _digests(cluster: Cluster) -> dict[str, str]:
    return {node: cluster.admin(node, "stats")["replication"]["vectorDigest"] for node in cluster.nodes}


def _unexplained(cluster: Cluster, ledger: Ledger, draws: random.Random) -> Iterator[str]:
    for task_id in dict.fromkeys(told.task_id for told in ledger.submitted):
        node = draws.choice(list(cluster.nodes))
        try:
            story = cluster.admin(node, "explain", taskId=task_id)
        except RelayMeshError as error:
            yield f"{node} on {task_id}: {error}"
            continue
        if not story["summary"] or not all(step["summary"] and step["timeline"] for step in story["steps"]):
            yield f"{node} on {task_id}: {story}"


def _stop(cluster: Cluster) -> Iterator[tuple[str, int | str]]:
    for node in cluster.running():
        try:
            yield node, cluster.terminate(node)
        except TimeoutError as error:
            yield node, str(error)
            cluster.kill(node)
