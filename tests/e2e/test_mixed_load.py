"""Mixed work without end through three nodes while one is killed every 20 s: every task ends as its definition says.

The soak takes a hundred thousand tasks (RELAYMESH_SOAK_TASKS says otherwise); a sample runs in every test run.
"""

import collections
import contextlib
import os
import random
import secrets
import threading
import time
from pathlib import Path

import apsw
import pytest

from chaos.real.processes import wait_until
from mesh.errors import ConflictError, NotFoundError, UnavailableError
from node.admin_client import AdminClient, LocalTarget

NODES = ("a", "b", "c")
CLIENTS = 8
KILL_EVERY_S = 20.0
DOWN_S = 1.0
PATIENCE_S = 120.0
RSS_MAX = 512 * 1024 * 1024
"""Of one node, agents apart: rows that await the next commit, pages and caches; not the work that it has done."""

SIZES = (64, 64, 64, 64, 4_096, 65_536)
LARGE = 1024 * 1024
DEEP, WIDE = 10, 200

ENDED = {
    "echo": {"SUCCESS"},
    "fail": {"DEAD_LETTER"},
    "sleep": {"SUCCESS"},
    "deep": {"SUCCESS"},
    "wide": {"SUCCESS"},
    "large": {"SUCCESS"},
    "replayed": {"DEAD_LETTER"},
    "cancelled": {"CANCELLED", "SUCCESS"},
}


def draw(draws: random.Random) -> tuple[str, list[dict]]:
    """What kind of task, and its steps."""
    kinds = ("echo", "fail", "sleep", "cancelled", "replayed", "large", "deep", "wide")
    (kind,) = draws.choices(kinds, (8200, 800, 300, 300, 200, 20, 30, 2))
    if kind == "deep":
        return kind, [
            {"id": f"s{n}", "agent": "echo", "input": "x", "dependsOn": [f"s{n - 1}"] if n else []} for n in range(DEEP)
        ]
    if kind == "wide":
        fan = [{"id": f"s{n}", "agent": "echo", "input": "x"} for n in range(WIDE)]
        return kind, [*fan, {"id": "join", "agent": "echo", "input": "x", "dependsOn": [step["id"] for step in fan]}]
    if kind in ("fail", "replayed"):
        return kind, [{"id": "only", "agent": "fail", "input": "x", "maxAttempts": draws.choice([1, 2])}]
    if kind in ("sleep", "cancelled"):
        return kind, [{"id": "only", "agent": "sleep", "input": f"{draws.uniform(0.05, 1.5):.2f}"}]
    size = LARGE if kind == "large" else draws.choice(SIZES)
    return kind, [{"id": "only", "agent": "echo", "input": "x" * size, "priority": draws.choice(["high", "normal"])}]


class Client:
    """Submits its share, at whichever node answers; a key makes each task one, however often it has to ask."""

    def __init__(self, roots: list[Path], count: int, seed: int) -> None:
        self.kinds: dict[str, str] = {}
        self.broken: list[str] = []
        self._roots = roots
        self._count = count
        self._draws = random.Random(seed)

    def run(self) -> None:
        try:
            for _ in range(self._count):
                kind, steps = draw(self._draws)
                task_id = self._ask(
                    "submit-workflow", definition={"steps": steps}, idempotencyKey=secrets.token_hex(8)
                )["taskId"]
                self.kinds[task_id] = kind
                if kind == "cancelled":
                    self._ask("cancel", taskId=task_id, mode=self._draws.choice(["hard", "soft"]), reason="soak")
                elif kind == "replayed" and self._draws.random() < 0.5:
                    with contextlib.suppress(ConflictError):  # it has not failed yet: then there is nothing to replay
                        self._ask("replay", taskId=task_id)
        except Exception as error:
            self.broken.append(f"{type(error).__name__}: {error}")

    def _ask(self, command: str, **args):
        deadline = time.monotonic() + PATIENCE_S
        while True:
            root = self._draws.choice(self._roots)
            try:
                with AdminClient(LocalTarget(root)) as client:
                    return client.call(command, args)
            except (UnavailableError, NotFoundError):  # that node is down, or has not heard of the task yet
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)


def soak(make_mesh, *, count: int, kill_every_s: float) -> None:
    with make_mesh(*NODES, agents=[], slots=8) as mesh:
        roots = [mesh.cluster.nodes[node].root for node in NODES]
        clients = [Client(roots, count // CLIENTS, seed) for seed in range(CLIENTS)]
        threads = [threading.Thread(target=client.run) for client in clients]
        for thread in threads:
            thread.start()
        killed, largest, began = kill_while(mesh, lambda: any(t.is_alive() for t in threads), kill_every_s)
        assert not [fault for client in clients for fault in client.broken]
        kinds = {task_id: kind for client in clients for task_id, kind in client.kinds.items()}
        more, after, _ = kill_while(mesh, lambda: any(unfinished(root) for root in roots), kill_every_s, began)
        mesh.mend()
        wait_until(lambda: not any(unfinished(root) for root in roots), PATIENCE_S, "all has ended everywhere")
        wait_until(lambda: len(mesh.digests()) == 1, PATIENCE_S, "all replicas are equal")
        assert killed + more >= 1
        assert max(largest, after) <= RSS_MAX
        wrong = {task_id: status for task_id, status in statuses(roots[0]).items() if not fits(kinds, task_id, status)}
        assert not wrong, dict(list(wrong.items())[:5])
        assert statuses(roots[0]).keys() >= kinds.keys()
        print(
            f"{len(kinds)} tasks, {collections.Counter(kinds.values())}, {killed + more} kills, "
            f"{time.monotonic() - began:.0f} s, largest node {max(largest, after) >> 20} MiB"
        )


def kill_while(mesh, condition, every_s: float, began: float | None = None) -> tuple[int, int, float]:
    """Kill one node after another; how often that was, the largest memory seen, and when it began."""
    draws, killed, largest = random.Random(1), 0, 0
    began = time.monotonic() if began is None else began
    next_at = time.monotonic() + every_s
    deadline = time.monotonic() + 3600
    while condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)
        for node in mesh.cluster.running():
            pages = Path(f"/proc/{mesh.cluster.pid(node)}/statm").read_text().split()[1]
            largest = max(largest, int(pages) * os.sysconf("SC_PAGE_SIZE"))
        if time.monotonic() >= next_at:
            node = draws.choice(NODES)
            mesh.cluster.kill(node)
            time.sleep(DOWN_S)
            mesh.cluster.start(node)
            killed, next_at = killed + 1, time.monotonic() + every_s
    return killed, largest, began


def read(root: Path, sql: str) -> list[tuple]:
    database = apsw.Connection(str(root / "relaymesh.db"), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return list(database.execute(sql))
    finally:
        database.close()


def unfinished(root: Path) -> bool:
    """Whether a step is open that can still end: below a dead letter it waits for ever."""
    return bool(read(root, "SELECT EXISTS (SELECT 1 FROM steps WHERE rank = 0 AND deleted = 0)")[0][0])


def statuses(root: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = collections.defaultdict(set)
    for task_id, status in read(root, "SELECT task_id, status FROM steps WHERE deleted = 0"):
        found[task_id].add(status)
    return found


def fits(kinds: dict[str, str], task_id: str, status: set[str]) -> bool:
    # A submit whose answer was lost, and which was repeated, is one task by its key: there is none beside those known.
    return task_id in kinds and len(status) == 1 and status <= ENDED[kinds[task_id]]


@pytest.mark.slow
def test_mixed_work_ends_as_defined_while_nodes_are_killed(make_mesh):
    """A sample of what the soak test below does."""
    soak(make_mesh, count=800, kill_every_s=3.0)


@pytest.mark.soak
def test_a_hundred_thousand_mixed_tasks(make_mesh):
    soak(make_mesh, count=int(os.environ.get("RELAYMESH_SOAK_TASKS", "100000")), kill_every_s=KILL_EVERY_S)
