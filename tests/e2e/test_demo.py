"""The demo as users run it: on a small directory, with its nodes killed for real."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from chaos.real.processes import source_path, wait_until

CODE = "import sys; from tools.cli import main; sys.exit(main())"


@pytest.fixture
def directory(tmp_path) -> Path:
    for number in range(6):
        (tmp_path / "files" / f"d{number % 3}").mkdir(parents=True, exist_ok=True)
        (tmp_path / "files" / f"d{number % 3}" / f"{number} täxt.txt").write_text(
            f"seven words are in file {number} here\n" * 9
        )
    return tmp_path / "files"


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    (tmp_path / "tmp").mkdir()
    return {"PYTHONPATH": source_path(), "PATH": os.environ["PATH"], "TMPDIR": str(tmp_path / "tmp")}


@pytest.mark.slow
def test_the_demo_survives_its_kill_and_tells_a_true_story(directory, environment, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CODE, "demo", str(directory), "--json"],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["ok"]
    assert report["resultMatches"]
    assert report["restartedAgrees"]
    assert report["files"] == report["result"]["files"] == 6
    assert report["runningOnKilled"]
    assert set(report["takenOver"].values()) <= {"node-a", "node-b", "node-c"} - {report["killed"]}
    assert any("took it over" in event["text"] for event in report["timeline"])
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_demo_leaves_no_process(directory, environment, number):
    with subprocess.Popen(
        [sys.executable, "-c", CODE, "demo", str(directory)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    ) as demo:
        wait_until(lambda: "took task" in demo.stdout.readline(), 30, "the demo works")
        demo.send_signal(number)
        demo.stdout.read()
    wait_until(lambda: processes_below(environment["TMPDIR"]) == [], 5, "no node is left")


def processes_below(directory: str) -> list[int]:
    """Processes whose command line names something in this directory, as every node's does."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and directory.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found
