"""Nodes of the last release, of this one and of the next in one mesh: none harms, loses or holds up what others do."""

import json
import sys
import zipfile
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from chaos.real.processes import Release, node_command, source_path
from mesh.protocol import NEWEST, OLDEST
from mesh.tables import declared_at
from node.storage.database import open_connection
from node.storage.migrate import applied_version, load_migrations
from node.storage.schema_changes import roll_back, upgrade
from node.work.tables import WORK_TABLES
from tools.replica_check import check_replica

HERE = Path(__file__).parent
(WHEEL,) = (HERE.parent / "releases").glob("*.whl")
LAST_RELEASE = WHEEL.name.split("-")[1]
TOMORROW = Release(source_path(), (sys.executable, str(HERE / "node_of_tomorrow.py")))


@pytest.fixture(scope="session")
def last_release(tmp_path_factory) -> Release:
    folder = tmp_path_factory.mktemp("release")
    with zipfile.ZipFile(WHEEL) as wheel:
        wheel.extractall(folder)
    return Release(str(folder), tuple(node_command()))


def kept_schema() -> int:
    with zipfile.ZipFile(WHEEL) as wheel:
        return sum(name.startswith("node/storage/migrations/0") for name in wheel.namelist())


def submit_for(mesh, node: str, runner: str) -> str:
    """A task submitted to one node that only another may run."""
    return mesh.submit_workflow(node, {"id": "step", "agent": "work", "input": "{}", "node": runner})


def assert_equal_replicas(mesh, *nodes: str) -> None:
    """Compared by each of these nodes with every other."""
    for node in nodes:
        verified = mesh.cluster.admin(node, "maintenance")["verified"]
        assert [(each["compared"], each["differingRanges"]) for each in verified] == [(True, 0)] * (len(nodes) - 1)


@pytest.mark.slow
def test_two_releases_are_one_mesh_and_a_node_goes_to_the_new_one_and_back(make_mesh, last_release, relaymesh):
    with make_mesh("old", "new", start=False) as mesh:
        mesh.cluster.releases = {"old": last_release}
        mesh.cluster.start()
        mesh.mend()
        crossed = [submit_for(mesh, "old", "new"), submit_for(mesh, "new", "old")]
        for task_id in crossed:
            mesh.wait_everywhere(task_id, "SUCCESS")
        assert [mesh.step("old", task_id)["owner"] for task_id in crossed] == ["new", "old"]
        mesh.wait_agreed(*crossed)
        assert_equal_replicas(mesh, "old", "new")
        seen = {member["nodeId"]: member for member in mesh.cluster.admin("new", "members")}
        assert (seen["old"]["release"], seen["old"]["protocol"]) == (LAST_RELEASE, "1")
        assert (seen["new"]["protocol"], seen["old"]["protocolProblem"]) == (f"{OLDEST} to {NEWEST}", None)
        version = mesh.cluster.admin("new", "version")
        assert (version["protocolOfAll"], version["schemaVersion"]) == (1, load_migrations()[-1].version)

        # A new CA means nothing to the old release, which keeps its part in the mesh, and keeps that CA from signing.
        ca = ("--root", mesh.cluster.nodes["new"].root, "--json", "mesh", "ca")
        added = relaymesh(*ca, "add", "--mesh", mesh.cluster.mesh_directory)
        assert added.returncode == 0, added.stderr
        name = json.loads(added.stdout)["cas"][-1]["ca"]
        refused = relaymesh(*ca, "promote", name, "--mesh", mesh.cluster.mesh_directory)
        assert refused.returncode == 4
        assert "not followed yet by old" in refused.stderr
        crossed += [submit_for(mesh, "old", "new"), submit_for(mesh, "new", "old")]
        for task_id in crossed[-2:]:
            mesh.wait_everywhere(task_id, "SUCCESS")

        mesh.cluster.terminate("old")
        del mesh.cluster.releases["old"]
        mesh.cluster.start("old")
        mesh.mend()
        crossed.append(submit_for(mesh, "old", "new"))
        mesh.wait_everywhere(crossed[-1], "SUCCESS")

        mesh.cluster.terminate("old")
        change_schema(mesh.cluster.nodes["old"].root / "relaymesh.db", kept_schema())
        mesh.cluster.releases["old"] = last_release
        mesh.cluster.start("old")
        mesh.mend()
        crossed.append(submit_for(mesh, "new", "old"))
        mesh.wait_everywhere(crossed[-1], "SUCCESS")
        mesh.wait_agreed(*crossed)
        assert_equal_replicas(mesh, "old", "new")


def change_schema(path: Path, *versions: int) -> None:
    """Lead a database to each of these schemas in turn, by all migrations between."""
    with closing(open_connection(path, "")) as database:
        for version in versions:
            database.execute("BEGIN IMMEDIATE")
            upgrade(database, WORK_TABLES, load_migrations(), now_ms=0)
            roll_back(database, WORK_TABLES, load_migrations(), to_version=version, now_ms=0)
            database.execute("COMMIT")
            assert applied_version(database) == version


@pytest.mark.slow
def test_all_migrations_go_down_and_up_on_a_database_in_which_the_last_release_worked(make_mesh, last_release):
    with make_mesh("a", start=False) as mesh:
        mesh.cluster.releases = {"a": last_release}
        mesh.cluster.start()
        done = mesh.submit("a", "work", {})
        mesh.wait_task("a", done, "SUCCESS")
        waiting = submit_for(mesh, "a", "elsewhere")
        large = mesh.submit("a", "echo", "x" * 100_000)
        mesh.wait_task("a", large, "SUCCESS")
        mesh.cluster.kill("a")

        path = mesh.cluster.nodes["a"].root / "relaymesh.db"
        with closing(open_connection(path, "")) as database:
            before = check_replica(database, declared_at(WORK_TABLES, kept_schema()))
        change_schema(path, 1, kept_schema(), 2, kept_schema())
        with closing(open_connection(path, "")) as database:
            after = check_replica(database, declared_at(WORK_TABLES, kept_schema()))
        assert (after, before.problems) == (before, [])
        assert before.rows["payloads"] > 0

        mesh.cluster.start("a")
        assert [mesh.task("a", task)["status"] for task in (done, waiting, large)] == ["SUCCESS", "PENDING", "SUCCESS"]
        del mesh.cluster.releases["a"]
        mesh.cluster.terminate("a")
        mesh.cluster.start("a")
        mesh.wait_task("a", mesh.submit("a", "work", {}), "SUCCESS")


@pytest.mark.slow
def test_an_upgrade_and_the_way_back_are_rehearsed_beside_a_running_node(make_mesh, last_release, relaymesh, tmp_path):
    with make_mesh("a", "b", start=False) as mesh:
        mesh.cluster.releases = {"a": last_release, "b": last_release}
        mesh.cluster.start()
        mesh.mend()
        task_id = mesh.submit("a", "work", {"seconds": 60})
        mesh.wait_owned("b", task_id, "a")

        root = mesh.cluster.nodes["a"].root
        ran = relaymesh("upgrade-rehearsal", "--root", root, "--out", tmp_path / "out", "--wheel", WHEEL, "--json")
        report = json.loads(ran.stdout)
        assert (ran.returncode, report["ok"], report["problems"]) == (0, True, []), ran.stderr
        assert (report["nodeWasRunning"], report["previousRelease"]) == (True, LAST_RELEASE)
        assert [step["ok"] for step in report["steps"]] == [True] * 6
        assert mesh.statuses("b") == {"a": "ALIVE", "b": "ALIVE"}
        assert mesh.step("b", task_id)["owner"] == "a"


@pytest.mark.slow
@pytest.mark.parametrize("middle", ["this release", "the last release"])
def test_what_only_a_newer_release_knows_survives_a_pass_through_an_older_one(make_mesh, last_release, middle):
    with make_mesh("from", "through", "to", start=False) as mesh:
        mesh.cluster.releases = {"from": TOMORROW, "to": TOMORROW}
        if middle == "the last release":
            mesh.cluster.releases["through"] = last_release
        mesh.cluster.start("from", "through")
        task_id = mesh.submit("from", "work", {})
        mesh.wait_task("through", task_id, "SUCCESS")
        mesh.wait_agreed(task_id)
        if middle == "this release":
            assert_equal_replicas(mesh, "from", "through")
            protocols = {m["nodeId"]: m["protocol"] for m in mesh.cluster.admin("through", "members")}
            assert protocols["from"] == f"{OLDEST} to {NEWEST + 1}"
        mesh.cluster.kill("from")

        mesh.cluster.start("to")
        mesh.wait_task("to", task_id, "SUCCESS")
        mesh.wait_agreed(task_id)
        mesh.cluster.terminate("to")
        with closing(apsw.Connection(str(mesh.cluster.nodes["to"].root / "relaymesh.db"))) as database:
            assert list(database.execute("SELECT key, mood FROM tasks")) == [(task_id, "sunny")]
            assert list(database.execute("SELECT key, entry FROM diary")) == [(task_id, "a task came")]
