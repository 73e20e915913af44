"""The handling of processes, on a stand-in for the node that starts in no time."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chaos.real import processes
from chaos.real.networks import GOSSIP_PORT, LoopbackNetwork
from chaos.real.processes import Cluster, leftovers, wait_until
from mesh.errors import ConfigError, UnavailableError

STAND_IN = """
import signal, subprocess, sys, time
root = sys.argv[sys.argv.index("--root") + 1]
mode = open(root + "/mode").read() if __import__("os").path.exists(root + "/mode") else "good"
if mode == "broken":
    sys.exit("cannot start: because")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7) if mode != "stubborn" else None)
if mode == "orphan":
    subprocess.Popen(["sleep", "1000"], start_new_session=True)
print("starting", flush=True)
if mode != "silent":
    print("ready: node a of mesh m", flush=True)
while True:
    time.sleep(0.02)
"""


@pytest.fixture(autouse=True)
def stand_in(tmp_path, monkeypatch):
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(processes, "node_command", lambda: [sys.executable, "-S", str(script)])


@pytest.fixture
def cluster(tmp_path):
    with Cluster(tmp_path / "cluster", ["a", "b"]) as cluster:
        yield cluster


def mode(cluster: Cluster, node_id: str, text: str) -> None:
    (cluster.nodes[node_id].root / "mode").write_text(text)


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_started_nodes_run_with_addresses_of_their_own_until_the_block_ends(tmp_path):
    with Cluster(tmp_path / "cluster", ["a", "b"]) as cluster:
        cluster.start()
        assert cluster.running() == ["a", "b"]
        assert leftovers(cluster.marker) == sorted([cluster.pid("a"), cluster.pid("b")])
        assert cluster.nodes["a"].host != cluster.nodes["b"].host
    assert leftovers(cluster.marker) == []


def test_an_exception_in_the_block_ends_the_processes_too(tmp_path):
    with contextlib.suppress(ZeroDivisionError), Cluster(tmp_path / "cluster", ["a"]) as cluster:
        cluster.start()
        raise ZeroDivisionError
    assert leftovers(cluster.marker) == []


def test_orphans_that_a_node_left_are_seen_and_ended(tmp_path):
    with Cluster(tmp_path / "cluster", ["a"]) as cluster:
        mode(cluster, "a", "orphan")
        cluster.start()
        cluster.kill("a")
        assert len(leftovers(cluster.marker)) == 1
    wait_until(lambda: leftovers(cluster.marker) == [], 2, "the orphan is gone")


def test_killing_the_process_that_holds_the_cluster_ends_its_nodes(tmp_path):
    holder = f"""
import sys, time
from pathlib import Path
from chaos.real import processes
processes.node_command = lambda: [{sys.executable!r}, "-S", {str(tmp_path / "stand_in.py")!r}]
cluster = processes.Cluster(Path({str(tmp_path / "held")!r}), ["a"])
cluster.start()
print(cluster.marker, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE, text=True) as process:
        marker = process.stdout.readline().strip()
        assert len(leftovers(marker)) == 1
        process.kill()
    wait_until(lambda: leftovers(marker) == [], 2, "the node ended with its holder")


def test_a_cluster_meant_to_outlive_us_goes_on_until_it_is_shut_down(tmp_path):
    with Cluster(tmp_path / "cluster", ["a"], outlive_us=True) as cluster:
        cluster.start()
    assert len(leftovers(cluster.marker)) == 1
    cluster.shut_down()
    assert leftovers(cluster.marker) == []


def test_kill_terminate_restart_pause_and_resume_do_what_they_say(cluster):
    cluster.start()
    cluster.kill("a")
    assert cluster.running() == ["b"]
    assert cluster.terminate("b") == 7
    cluster.restart("a")
    pid = cluster.pid("a")
    cluster.pause("a")
    wait_until(lambda: state_of(pid) == "T", 2, "it is stopped")
    cluster.resume("a")
    wait_until(lambda: state_of(pid) != "T", 2, "it goes on")
    cluster.restart("a")
    assert cluster.pid("a") != pid


def test_ready_is_looked_for_in_the_log_of_the_present_start_only(cluster):
    cluster.start("a")
    cluster.kill("a")
    mode(cluster, "a", "silent")
    cluster.start("a", wait=False)
    with pytest.raises(UnavailableError, match=r"(?s)waited 0\.3 s .* a is ready.*starting"):
        cluster.wait_ready("a", timeout_s=0.3)


def test_a_node_that_cannot_start_is_reported_with_its_words(cluster):
    mode(cluster, "a", "broken")
    with pytest.raises(UnavailableError, match=r"(?s)a exited with 1 .*cannot start: because"):
        cluster.start("a")


def test_a_node_that_ignores_sigterm_is_reported(cluster):
    mode(cluster, "a", "stubborn")
    cluster.start("a")
    with pytest.raises(TimeoutError, match="SIGTERM"):
        cluster.terminate("a", timeout_s=0.2)


def test_unknown_doubled_and_stopped_nodes_are_refused(cluster):
    with pytest.raises(ConfigError, match="does not run"):
        cluster.kill("a")
    with pytest.raises(ConfigError, match="has a node a already"):
        cluster.add("a")
    cluster.start("a")
    with pytest.raises(ConfigError, match="runs already"):
        cluster.start("a")


def test_the_command_line_names_every_node_as_a_seed_and_has_the_nodes_own_flags(tmp_path):
    with Cluster(tmp_path / "c", ["a", "b"], slots=2, flags={"b": ["--label", "gpu=yes"]}) as cluster:
        command = cluster.command("b")
        seeds = command[command.index("--seeds") + 1].split(",")
        assert seeds == [str(spec.gossip) for spec in cluster.nodes.values()]
        assert command[-2:] == ["--label", "gpu=yes"]
        assert "gpu=yes" not in cluster.command("a")


def test_settings_of_ours_do_not_leak_into_a_node(tmp_path, monkeypatch):
    monkeypatch.setenv("RELAYMESH_MAX_ATTEMPTS", "99")
    with Cluster(tmp_path / "c", ["a"], settings={"maxAttempts": 2}) as cluster:
        cluster.start()
        environment = Path(f"/proc/{cluster.pid('a')}/environ").read_bytes()
        assert b"MAX_ATTEMPTS" not in environment
        assert (cluster.nodes["a"].root / "relaymesh-settings.json").read_text() == '{"maxAttempts": 2}'


def test_clusters_side_by_side_never_share_a_network(tmp_path):
    with contextlib.ExitStack() as stack:
        clusters = [stack.enter_context(Cluster(tmp_path / str(n), ["a"])) for n in range(20)]
        assert len({cluster.nodes["a"].host for cluster in clusters}) == 20


def test_a_network_on_which_nodes_still_run_is_not_taken(monkeypatch):
    network = LoopbackNetwork()
    host = network.host(1)
    network.release()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as node:
        node.bind((host, GOSSIP_PORT))
        with pytest.raises(OSError, match="in use"):
            LoopbackNetwork._check_unused(host)


def test_a_network_has_253_hosts():
    network = LoopbackNetwork()
    try:
        assert network.host(253).endswith(".253")
        with pytest.raises(ConfigError, match="253"):
            network.host(254)
    finally:
        network.release()


def test_waiting_ends_with_the_condition_or_says_what_did_not_come():
    began = time.monotonic()
    assert wait_until(lambda: time.monotonic() - began > 0.1 and "there", 5, "x") == "there"
    with pytest.raises(TimeoutError, match=r"waited 0\.1 s in vain until the sky falls"):
        wait_until(lambda: False, 0.1, "the sky falls")


def test_leftovers_ignore_dead_children_that_nobody_waited_for(cluster):
    cluster.start("a")
    os.kill(cluster.pid("a"), signal.SIGKILL)
    wait_until(lambda: leftovers(cluster.marker) == [], 2, "only a zombie is left")
