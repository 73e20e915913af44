"""Every benchmark runs, and says what it promises to say. How fast anything is, is no test's business."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from mesh.errors import NotFoundError
from node.streams.frames import LOCAL_CLUSTER
from node.streams.rpc_messages import decode_call
from tools.bench import machine, tasks
from tools.bench.load import drive, encode_request
from tools.bench.report import latency_us, percentile
from tools.cli import app

MACHINE = {"cores", "kernel", "python", "apsw", "sqlite", "fileSystem", "loadBefore"}

FIELDS = {
    "store": {"concurrency", "submitsPerS", "p50Us", "p99Us", "cpuUs", "submitsPerCommit", "floorRowsPerS", "ratio"},
    "submits": {"clients", "submitsPerS", "p50Us", "p99Us", "nodeCpuUs", "clientCpuUs", "submitsPerCommit", "rssBytes"},
    "packets": {"kind", "perS", "cpuUs", "floorPerS", "ratio", "rows", "datagramBytes"},
    "bootstrap": {
        "rows",
        "snapshotBytes",
        "seconds",
        "mbPerS",
        "delayP50Ms",
        "delayP99Ms",
        "delayMaxMs",
        "idleP99Ms",
    },
    "catch-up": {"rows", "seconds", "rowsPerS", "bytes", "cpuUs"},
    "pull": {
        "missing",
        "rows",
        "metadataBytes",
        "vectorBytes",
        "parts",
        "totalBytes",
        "bytesPerRow",
        "ms",
        "referenceBytes",
        "ratio",
    },
    "verify": {"replicas", "ms", "sumsMs", "repairedRows", "bytes"},
    "purge": {
        "tasks",
        "restarts",
        "liveRows",
        "tombstones",
        "usedMb",
        "fileMb",
        "vectorBytes",
        "origins",
        "ranges",
        "collapsed",
    },
    "idle": {
        "nodeId",
        "cpuPct",
        "writtenBytesPerMin",
        "commits",
        "checkpoints",
        "rssBytes",
        "datagramsSentPerS",
        "bytesSentPerS",
    },
}
BURST = {
    "phase",
    "tasksPerS",
    "p50Us",
    "p99Us",
    "submitsPerS",
    "nodeCpuUs",
    "clientCpuUs",
    "nodeRssBytes",
    "allRssBytes",
}
PACED = {"phase", "tasksPerS", "p50Us", "p99Us", "nodeCpuUs"}


def run(*arguments, directory):
    result = CliRunner().invoke(app, ["bench", *arguments, "--directory", str(directory)])
    assert result.exit_code == 0, result.output
    return result.stdout


def run_json(*arguments, directory):
    report = json.loads(run(*arguments, "--json", directory=directory))
    assert set(report) == {"bench", "machine", "parameters", "results"}
    assert report["bench"] == arguments[0]
    assert set(report["machine"]) == MACHINE
    assert report["parameters"]
    for result in report["results"]:
        for name, value in result.items():
            assert isinstance(value, str) or (math.isfinite(value) and value >= 0), (name, value)
    assert list(directory.iterdir()) == [], "a benchmark leaves nothing behind"
    return report


def test_store_measures_three_concurrencies_beside_the_floor(tmp_path):
    report = run_json("store", "--seconds", "0.05", directory=tmp_path)
    assert [result["concurrency"] for result in report["results"]] == [1, 16, 128]
    assert all(set(result) == FIELDS["store"] and result["submitsPerS"] > 0 for result in report["results"])


def test_packets_are_all_accepted_and_their_rows_opened(tmp_path):
    results = run_json("packets", "--count", "40", directory=tmp_path)["results"]
    assert all(set(result) == FIELDS["packets"] for result in results)
    assert {result["kind"]: result["rows"] for result in results} == {
        "acks": 0,
        "claims": 0,
        "records": 0,
        "bundles": 80,
        "mixed": 20,
    }


def test_for_people_a_table_and_its_legend_are_printed(tmp_path):
    output = run("packets", "--count", "10", directory=tmp_path)
    assert output.startswith("relaymesh bench packets: count 10, members 32\non cores ")
    assert "FLOOR_PER_S" in output


@pytest.mark.slow
@pytest.mark.processes
def test_submits_go_through_a_real_node(tmp_path):
    (result,) = run_json("submits", "--count", "30", "--clients", "4", directory=tmp_path)["results"]
    assert set(result) == FIELDS["submits"]
    assert result["clients"] == 4


@pytest.mark.slow
@pytest.mark.processes
def test_tasks_run_through_a_real_node_and_its_python_agent(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "WARM_UP", 5)
    report = run_json("tasks", "--count", "20", "--clients", "4", "--slots", "2", "--paced", "3", directory=tmp_path)
    burst, paced = report["results"]
    assert (set(burst), burst["phase"]) == (BURST, "burst")
    assert (set(paced), paced["phase"]) == (PACED, "paced")


@pytest.mark.slow
@pytest.mark.processes
def test_idle_watches_every_node(tmp_path, monkeypatch):
    monkeypatch.setattr("tools.bench.idle.SETTLE_S", 0.1)
    results = run_json("idle", "--nodes", "2", "--seconds", "0.5", "--profile", "local", directory=tmp_path)["results"]
    assert [result["nodeId"] for result in results] == ["idle-1", "idle-2"]
    assert all(set(result) == FIELDS["idle"] for result in results)


def test_bootstrap_fills_a_node_and_times_it(tmp_path):
    (result,) = run_json("bootstrap", "--rows", "500", directory=tmp_path)["results"]
    assert set(result) == FIELDS["bootstrap"]
    assert result["rows"] == 500
    assert result["snapshotBytes"] > 500 * 150


@pytest.mark.slow
def test_catch_up_brings_the_missing_rows_and_no_others(tmp_path):
    (result,) = run_json("catch-up", "--rows", "600", "--held", "400", directory=tmp_path)["results"]
    assert set(result) == FIELDS["catch-up"]
    assert result["rows"] == 600
    assert result["rowsPerS"] > 0


@pytest.mark.slow
def test_a_pull_is_weighed_by_what_is_missing(tmp_path):
    results = run_json("pull", "--rows", "4000", directory=tmp_path)["results"]
    assert all(set(result) == FIELDS["pull"] for result in results)
    assert [(result["missing"], result["rows"]) for result in results] == [
        ("tail", 1),
        ("tail", 100),
        ("gaps", 1),
        ("gaps", 100),
    ]
    tail_one, tail_hundred, _, gaps_hundred = results
    assert abs(tail_hundred["metadataBytes"] - tail_one["metadataBytes"]) < 50  # one range is one range
    assert gaps_hundred["vectorBytes"] > tail_hundred["vectorBytes"]
    for result in results:
        assert result["vectorBytes"] < result["metadataBytes"] < result["totalBytes"]


@pytest.mark.slow
def test_verify_finds_and_repairs_the_lost_row(tmp_path):
    results = run_json("verify", "--rows", "400", directory=tmp_path)["results"]
    assert all(set(result) == FIELDS["verify"] for result in results)
    assert [(result["replicas"], result["repairedRows"]) for result in results] == [
        ("equal", 0),
        ("one row lost", 1),
        ("after the repair", 0),
    ]


@pytest.mark.slow
def test_purge_shows_what_stays_of_tasks_that_are_gone(tmp_path, monkeypatch):
    monkeypatch.setattr("tools.bench.purge.BURST_TASKS", 10)
    monkeypatch.setattr("tools.bench.purge.KEEP_S", 20.0)
    monkeypatch.setattr("tools.bench.purge.REST_S", 400.0)
    monkeypatch.setattr("tools.bench.purge.RESTART_EVERY_TASKS", 50)
    results = run_json("purge", "--tasks", "300", directory=tmp_path)["results"]
    assert all(set(result) == FIELDS["purge"] for result in results)
    assert [result["tasks"] for result in results] == [*range(30, 301, 30), 300]
    assert 0 < max(result["liveRows"] for result in results) < 2 * 300
    last = results[-1]
    assert (last["liveRows"], last["tombstones"], last["restarts"]) == (0, 0, 6)
    assert 3 <= last["origins"] <= 6
    assert last["origins"] + last["collapsed"] == 3 + 6  # as many as there ever were
    assert last["ranges"] == last["origins"]


def test_an_unknown_agent_or_directory_is_one_clear_line(tmp_path):
    result = CliRunner().invoke(app, ["bench", "tasks", "--agent", "java"])
    assert (result.exit_code, "choose one of echo, python" in result.output) == (2, True)
    result = CliRunner().invoke(app, ["bench", "packets", "--directory", str(tmp_path / "none")])
    assert (result.exit_code, "create it first" in result.output) == (2, True)


def test_clients_take_every_answer(fake_node):
    fake_node.answers["submit"] = lambda args: {"taskId": args["input"]}
    requests = [encode_request("submit", {"input": str(index)}) for index in range(5)]

    load = drive([fake_node.root], requests, clients=1)

    assert len(load.latencies_s) == 5
    assert [call["args"]["input"] for call in fake_node.calls] == list("01234")


def test_an_error_of_the_node_ends_the_load(fake_node):
    fake_node.answers["submit"] = NotFoundError("nothing here")
    with pytest.raises(NotFoundError, match="nothing here"):
        drive([fake_node.root], [encode_request("submit", {})], clients=1)


def test_a_request_is_what_the_admin_client_sends():
    request = encode_request("submit", {"agent": "echo"})
    assert request[4:12] == LOCAL_CLUSTER
    assert decode_call(request[13:]).verb == "admin"


def test_percentiles_are_values_that_occurred():
    values = [value / 1e6 for value in range(1, 101)]
    assert percentile(values, 0.5) == values[50]
    assert percentile([3.0], 0.99) == 3.0
    assert percentile([], 0.5) == 0.0
    assert latency_us(values) == {"p50Us": 51, "p99Us": 100}


def test_usage_counts_a_process_and_its_ended_children(tmp_path):
    burn = "import time\nwhile time.process_time() < 0.1: pass\n"
    code = (
        "import subprocess, sys\n"
        f"subprocess.run([sys.executable, '-c', {burn!r}])\n"
        f"{burn}print('done', flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "done\n"
        used = machine.usage(machine.tree(process.pid))
        process.stdin.close()
    assert 0.18 <= used.cpu_s < 2.0
    assert used.rss_bytes > 1_000_000
    assert machine.usage([process.pid]) == machine.Usage(0.0, 0, 0)


def test_a_tree_holds_children_and_grandchildren():
    code = "import subprocess, sys; subprocess.run(['sh', '-c', 'echo up; cat; :'])"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "up\n"
        found = machine.tree(process.pid)
        process.stdin.close()
    assert found[0] == process.pid
    assert len(found) in (2, 3)  # `cat` may not have been started yet
