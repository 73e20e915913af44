"""Real processes: two nodes that know nothing of each other, and a controller that carries work over and back."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

from chaos.real.processes import source_path

NOBODY = ("--seeds", "127.0.0.1:9")


def test_a_task_goes_over_and_its_result_comes_back(make_mesh, tmp_path):
    settings = {"linkedSites": True}
    with make_mesh("a", "b", start=False, flags={"a": NOBODY, "b": NOBODY}, settings=settings) as mesh:
        mesh.cluster.start()
        assert mesh.statuses("a") == {"a": "ALIVE"}
        root, peer = mesh.cluster.nodes["a"].root, mesh.cluster.nodes["b"].stream
        task = mesh.submit_workflow("a", {"id": "there", "agent": "echo", "input": "hello", "node": "b"})
        code = "import sys; from tools.cli import main; sys.exit(main())"
        with subprocess.Popen(
            [
                *(sys.executable, "-c", code, "--root", str(root)),
                *("replication-controller", "--peers", str(peer), "--interval-ms", "300", "--json"),
            ],
            stdout=subprocess.PIPE,
            text=True,
            env={"PYTHONPATH": source_path(), "PATH": "/usr/bin:/bin"},
        ) as carrier:
            try:
                mesh.wait_task("a", task, "SUCCESS", timeout_s=30)
                mesh.wait_agreed(task)
            finally:
                carrier.send_signal(signal.SIGINT)
            out, _ = carrier.communicate(timeout=10)

        assert mesh.step("a", task)["owner"] == "b"
        assert carrier.returncode == 0
        rounds = [json.loads(line) for line in out.splitlines()]
        assert sum(each["failures"] for each in rounds) == 0
        assert sum(each["pulledRows"] for each in rounds) > 0
        assert mesh.statuses("a") == {"a": "ALIVE"}  # nobody was introduced to anybody
