"""Real processes: a node with an empty disk, and one with a broken database, are filled by a snapshot of a peer."""

from __future__ import annotations

from chaos.real.processes import wait_until


def test_a_node_that_joins_late_is_filled_by_a_snapshot_and_works(make_mesh):
    with make_mesh("a", "b", start=False, settings={"bootstrapRowsMin": 50}) as mesh:
        mesh.cluster.start("a")
        done = [mesh.submit("a", "echo", f"task {number}") for number in range(60)]
        mesh.wait_task("a", done[-1], "SUCCESS")

        mesh.cluster.start("b")
        filled(mesh, "b")
        assert mesh.task("b", done[0])["status"] == "SUCCESS"
        mesh.wait_task("b", mesh.submit("b", "echo", "new"), "SUCCESS")
        mesh.wait_agreed(*done[:5])
        assert mesh.cluster.admin("b", "health")["bootstrap"] is None

        mesh.cluster.terminate("b")
        (database,) = [path for path in mesh.cluster.directory.rglob("relaymesh.db") if path.parent.name == "b"]
        database.write_bytes(b"x" * 4_096)
        mesh.cluster.start("b")
        filled(mesh, "b")
        assert database.with_name("relaymesh.db.corrupt-1").read_bytes() == b"x" * 4_096
        mesh.wait_agreed(*done[:5])


def filled(mesh, node: str) -> None:
    wait_until(
        lambda: mesh.cluster.admin(node, "stats")["replication"]["snapshotsAdopted"] == 1, 15, f"{node} is filled"
    )
