"""A mesh of real nodes per test module, and what tests ask of it."""

import json
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chaos.real.firewall import Firewall, available
from chaos.real.processes import Cluster, leftovers, source_path, wait_until
from mesh.errors import RelayMeshError
from mesh.profiles import LOCAL

HERE = Path(__file__).parent
AGENTS = HERE / "mesh_agents.py"
SPECIAL_AGENTS = HERE / "special_agents.py"

DEAD_TIME_S = LOCAL.dead_after_s(3)
"""The shortest time after which a silent node is DEAD."""

# Short dwell windows, so that a node that came back gets work again within a test.
SETTINGS = {"suspectRecoverMinMs": 200, "deadRecoverMinMs": 500, "baseBackoffMs": 100, "maxBackoffMs": 1_000}
FINAL = {"SUCCESS", "DEAD_LETTER", "CANCELLED"}


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(item.fspath).parent == HERE:
            item.add_marker(pytest.mark.processes)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Show the nodes' last words with a failure."""
    report = yield
    mesh = item.funcargs.get("mesh")
    if report.failed and mesh is not None:
        for node in mesh.cluster.nodes:
            report.sections.append((f"log of {node}", mesh.cluster.log_tail(node)))
    return report


class Mesh:
    """A cluster, and the words in which tests speak of work."""

    dead_time_s = DEAD_TIME_S

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.scratch = cluster.directory / "scratch"
        self.scratch.mkdir(exist_ok=True)

    # --- members ---

    def statuses(self, node: str) -> dict[str, str]:
        return {member["nodeId"]: member["status"] for member in self.cluster.admin(node, "members")}

    def wait_members(self, timeout_s: float, **wanted: str) -> None:
        """Until every running node sees these statuses."""
        for node in self.cluster.running():
            self.wait_seen(node, timeout_s, **wanted)

    def wait_seen(self, node: str, timeout_s: float, **wanted: str) -> None:
        self.cluster.wait_answer(
            node,
            "members",
            lambda members: wanted.items() <= {m["nodeId"]: m["status"] for m in members}.items(),
            timeout_s,
            f"{node} sees {wanted}",
        )

    def mend(self) -> None:
        """Everybody runs, and everybody sees everybody ALIVE and fit for new work."""
        for node in self.cluster.nodes:
            if node not in self.cluster.running():
                self.cluster.start(node)
        for node in self.cluster.nodes:
            self.cluster.wait_answer(
                node,
                "members",
                lambda members: (
                    [m["status"] for m in members] == ["ALIVE"] * len(self.cluster.nodes)
                    and all(m["effectiveStatus"] == "ALIVE" for m in members)
                ),
                20,
                f"{node} sees all nodes ALIVE",
            )

    # --- work ---

    def journal(self) -> Path:
        return self.scratch / f"journal-{secrets.token_hex(6)}"

    def submit(self, node: str, agent: str, payload: Any = "", **args: Any) -> str:
        """The id of a new task of one step at this node."""
        body = (
            payload
            if isinstance(payload, bytes)
            else (payload if isinstance(payload, str) else json.dumps(payload)).encode()
        )
        args.setdefault("idempotencyKey", secrets.token_hex(8))
        return self.cluster.admin(node, "submit", agent=agent, input=body, **args)["taskId"]

    def submit_workflow(self, node: str, *steps: dict[str, Any], **args: Any) -> str:
        args.setdefault("idempotencyKey", secrets.token_hex(8))
        return self.cluster.admin(node, "submit-workflow", definition={"steps": list(steps)}, **args)["taskId"]

    def task(self, node: str, task_id: str) -> dict[str, Any]:
        return self.cluster.admin(node, "task", taskId=task_id)

    def step(self, node: str, task_id: str) -> dict[str, Any]:
        """The only step of a task."""
        (step,) = self.task(node, task_id)["steps"]
        return step

    def wait_task(
        self, node: str, task_id: str, wanted: Callable[[dict[str, Any]], Any] | str, timeout_s: float = 15
    ) -> dict[str, Any]:
        """Until the task, as this node sees it, has a status or satisfies a condition."""
        condition = (lambda task: task["status"] == wanted) if isinstance(wanted, str) else wanted
        what = f"task {task_id} is {wanted if isinstance(wanted, str) else 'as wanted'} at {node}"
        return self.cluster.wait_answer(node, "task", condition, timeout_s, what, taskId=task_id)

    def wait_owned(self, node: str, task_id: str, owner: str, status: str = "RUNNING", timeout_s: float = 10) -> None:
        """Until the task's only step has this owner and status."""
        self.wait_task(
            node,
            task_id,
            lambda task: [(s["owner"], s["status"]) for s in task["steps"]] == [(owner, status)],
            timeout_s,
        )

    def wait_everywhere(self, task_id: str, status: str, timeout_s: float = 15) -> list[dict[str, Any]]:
        """Until all running nodes agree on this status."""
        return [self.wait_task(node, task_id, status, timeout_s) for node in self.cluster.running()]

    def result(self, node: str, task_id: str) -> Any:
        """The result of a task of one step: its text, or the decoded JSON of agent `work`."""
        payload = self.cluster.admin(node, "result", taskId=task_id)["resultPayload"]
        return json.loads(payload) if payload.startswith("{") else payload

    def explain(self, node: str, task_id: str) -> str:
        """Everything that `explain` says, as one text."""
        return json.dumps(self.cluster.admin(node, "explain", taskId=task_id))

    def assert_agreed(self, *task_ids: str) -> None:
        """All running nodes show these tasks with the same content, owners and epochs included."""
        shown = [
            {task_id: _content(self.task(node, task_id)) for task_id in task_ids} for node in self.cluster.running()
        ]
        assert all(view == shown[0] for view in shown), shown

    def wait_agreed(self, *task_ids: str, timeout_s: float = 10) -> None:
        """Until all running nodes know the same rows and show these tasks alike."""

        def agreed() -> bool:
            try:
                self.assert_agreed(*task_ids)
                return len(self.digests()) == 1
            except (AssertionError, RelayMeshError):
                return False

        try:
            wait_until(agreed, timeout_s, "all nodes show the same")
        except TimeoutError:
            self.assert_agreed(*task_ids)
            assert len(self.digests()) == 1, self.digests()

    def digests(self) -> set[str]:
        """Over everything that each running node's replica covers: one when all know the same."""
        stats = [self.cluster.admin(node, "stats") for node in self.cluster.running()]
        return {view["replication"]["vectorDigest"] for view in stats}


def _content(task: dict[str, Any]) -> dict[str, Any]:
    steps = [{key: step[key] for key in ("name", "status", "owner", "leaseEpoch", "attempt")} for step in task["steps"]]
    return {"status": task["status"], "result": task.get("resultPayload"), "steps": steps}


@pytest.fixture(scope="session")
def runs() -> Callable[[Path], list[str]]:
    """The lines of a journal that begin a run."""

    def started(journal: Path) -> list[str]:
        return [line for line in lines_of(journal) if line.startswith("start")]

    return started


@pytest.fixture(scope="session")
def ends() -> Callable[[Path], list[str]]:
    """The lines of a journal that end a run."""

    def ended(journal: Path) -> list[str]:
        return [line for line in lines_of(journal) if line.startswith("end")]

    return ended


def lines_of(journal: Path) -> list[str]:
    return journal.read_text().splitlines() if journal.exists() else []


@pytest.fixture(scope="session")
def make_mesh(tmp_path_factory) -> Callable[..., Any]:
    """Start a mesh in a `with` block; at its end no process of it may be left by itself."""
    from contextlib import contextmanager

    @contextmanager
    def started(
        *node_ids: str, start: bool = True, settings: dict[str, Any] | None = None, **options: Any
    ) -> Iterator[Mesh]:
        directory = tmp_path_factory.mktemp("mesh")
        options.setdefault("agents", [AGENTS])
        with Cluster(directory, node_ids, settings=SETTINGS | (settings or {}), **options) as cluster:
            mesh = Mesh(cluster)
            if start:
                cluster.start()
                mesh.mend()
            yield mesh
            for node in cluster.running():
                cluster.kill(node)
            wait_until(lambda: leftovers(cluster.marker) == [], 5, "no process of the mesh is left")

    return started


@pytest.fixture(scope="module")
def module_mesh(make_mesh) -> Iterator[Mesh]:
    with make_mesh("a", "b", "c") as mesh:
        yield mesh


@pytest.fixture
def mesh(module_mesh) -> Mesh:
    """Three healthy nodes a, b and c, shared by the tests of one module."""
    module_mesh.mend()
    return module_mesh


@pytest.fixture
def walls() -> Iterator[Firewall]:
    """A firewall for cuts, or a skip that says why there is none."""
    reason = available()
    if reason is not None:
        pytest.skip(f"cuts need a firewall: {reason}")
    with Firewall() as walls:
        yield walls


@pytest.fixture(scope="session")
def relaymesh() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the `relaymesh` command line to its end."""

    def run(*arguments: object, timeout_s: float = 30) -> subprocess.CompletedProcess[str]:
        code = "import sys; from tools.cli import main; sys.exit(main())"
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            env={"PYTHONPATH": source_path(), "PATH": "/usr/bin:/bin", "TERM": "dumb"},
        )

    return run
