"""The spawner and its guards: nothing survives, whoever dies first."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import trio

import node
from node.agents import process_tree
from node.agents.processes import ExitStatus, Processes

REPOSITORY = Path(node.__file__).parent.parent


def read(path):
    """What a file below /proc says; empty when its process is gone."""
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def children_of(pid):
    return read(f"/proc/{pid}/task/{pid}/children").decode().split()


def processes_with(marker):
    """Pids of the processes that have `marker` in their environment or command line."""
    found = []
    for entry in Path("/proc").iterdir():
        is_other = entry.name.isdigit() and int(entry.name) != os.getpid()
        if is_other and marker.encode() in read(entry / "environ") + read(entry / "cmdline"):
            found.append(int(entry.name))
    return found


def wait_until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


async def eventually(condition, seconds=10.0):
    with trio.fail_after(seconds):
        while True:
            if condition():
                return
            await trio.sleep(0.01)


@pytest.fixture
async def processes(monkeypatch, tmp_path):
    monkeypatch.setenv("TEST_MARKER", str(tmp_path))
    processes = Processes(grace_s=0.3)
    yield processes
    await processes.aclose()
    assert processes_with(str(tmp_path)) == []


async def start(processes, *argv, cwd=Path("/"), environment=None):
    null = os.open(os.devnull, os.O_RDWR)
    try:
        return await processes.start(
            argv, cwd=cwd, environment=environment or {}, memory_bytes_max=1 << 30, descriptors=[null] * 3
        )
    finally:
        os.close(null)


TREE = "setsid sh -c 'trap \"\" TERM HUP; sleep 300 & setsid sleep 300 & wait' & (sleep 300 &) ; exec sleep 300"


def sleepers(tmp_path):
    return [pid for pid in processes_with(str(tmp_path)) if read(f"/proc/{pid}/cmdline").startswith(b"sleep")]


async def start_tree(processes, tmp_path):
    before = len(sleepers(tmp_path))
    process = await start(processes, "sh", "-c", TREE)
    await eventually(lambda: len(sleepers(tmp_path)) == before + 4)
    return process


async def test_exit_codes_and_signals_come_back(processes):
    assert await (await start(processes, "true")).wait() == ExitStatus(0)
    status = await (await start(processes, "sh", "-c", "exit 5")).wait()
    assert (status.ok, status.exit_code, str(status)) == (False, 5, "exit code 5")
    status = await (await start(processes, "sh", "-c", "kill -TERM $$")).wait()
    assert (status.exit_code, str(status)) == (None, "killed by signal 15 (SIGTERM)")
    assert str(ExitStatus(9, survivors=2)) == "killed by signal 9 (SIGKILL); 2 of its processes could not be killed"


async def test_what_cannot_be_started_says_why(processes, tmp_path):
    status = await (await start(processes, "/no/such/program")).wait()
    assert str(status) == "/no/such/program: No such file or directory"
    status = await (await start(processes, "true", cwd=tmp_path / "none")).wait()
    assert str(status) == f"{tmp_path}/none: No such file or directory"
    status = await (await start(processes, "true", environment={"A": "\0"})).wait()
    assert "null byte" in str(status)


async def test_ending_takes_the_whole_tree(processes, tmp_path):
    process = await start_tree(processes, tmp_path)
    status = await process.end(softly=False)
    assert str(status) == "killed by signal 9 (SIGKILL)"
    assert sleepers(tmp_path) == []


async def test_ending_twice_and_after_the_end_is_harmless(processes):
    process = await start(processes, "true")
    assert (await process.wait()).ok
    assert (await process.end(softly=True)).ok
    assert (await process.end(softly=False)).ok


async def test_an_order_that_crosses_the_report_does_not_hide_it(processes):
    for round_number in range(60):
        process = await start(processes, "true")
        await trio.sleep(round_number % 20 / 4000)
        status = await process.end(softly=False)
        assert str(status) in ("exit code 0", "killed by signal 9 (SIGKILL)")


async def test_a_cancelled_end_still_ends(processes, tmp_path):
    process = await start_tree(processes, tmp_path)
    with trio.CancelScope() as scope:
        scope.cancel()
        await process.end(softly=False)
    assert sleepers(tmp_path) == []


async def test_closing_takes_everything(processes, tmp_path):
    one, two = await start_tree(processes, tmp_path), await start(processes, "sleep", "300")
    await processes.aclose()
    assert sleepers(tmp_path) == []
    assert not (await one.wait()).ok
    assert not (await two.wait()).ok


async def test_a_killed_spawner_takes_its_trees_along_and_is_replaced(processes, tmp_path):
    process = await start_tree(processes, tmp_path)
    spawner = processes._spawner
    os.kill(spawner.pid, signal.SIGKILL)
    with trio.fail_after(10):
        assert not (await process.wait()).ok
    assert sleepers(tmp_path) == []
    assert (await (await start(processes, "true")).wait()).ok
    assert processes._spawner is not spawner


async def test_commands_that_meet_a_dead_spawner_together_share_the_next_one(processes):
    assert (await (await start(processes, "true")).wait()).ok
    for _ in range(5):
        dead = processes._spawner
        os.kill(dead.pid, signal.SIGKILL)
        await eventually(lambda pid=dead.pid: read(f"/proc/{pid}/stat").rpartition(b")")[2].split()[:1] == [b"Z"])
        ended = []

        async def run():
            ended.append(await (await start(processes, "true")).wait())  # noqa: B023

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(run)
        assert [status.ok for status in ended] == [True] * 4
        assert processes._spawner is not None
        assert processes._spawner.poll() is None
        assert len(children_of(os.getpid())) == 1


async def test_a_killed_guard_takes_its_tree_along_and_no_other(processes, tmp_path):
    other = await start(processes, "sleep", "301")
    await eventually(lambda: len(sleepers(tmp_path)) == 1)
    process = await start_tree(processes, tmp_path)
    _other_guard, guard = children_of(processes._spawner.pid)
    os.kill(int(guard), signal.SIGKILL)
    assert str(await process.wait()) == "its guard was killed"
    await eventually(lambda: len(sleepers(tmp_path)) == 1)
    assert b"301" in read(f"/proc/{sleepers(tmp_path)[0]}/cmdline")
    assert str(await other.end(softly=False)) == "killed by signal 9 (SIGKILL)"


@pytest.mark.slow
async def test_a_fork_bomb_is_ended(processes, tmp_path):
    # Each process forks two and leaves its session: 300 at most, so that a failing kill spares the machine.
    bomb = textwrap.dedent("""
        import os, sys, time
        def breed(depth):
            for _ in range(2):
                if depth and os.fork() == 0:
                    os.setsid()
                    breed(depth - 1)
            time.sleep(300)
        breed(7)
    """)
    process = await start(processes, sys.executable, "-S", "-c", bomb)
    await eventually(lambda: len(processes_with(str(tmp_path))) > 100)
    with trio.fail_after(8):
        await process.end(softly=False)
    assert len(processes_with(str(tmp_path))) <= 2  # the spawner, and the guard on its way out


NODE = """
import sys, trio
from pathlib import Path
from node.agents.executor import ProcessExecutor
from node.env import Job

def job(agent):
    return Job(task_id="t", step_id="s", step_name="n", namespace="d", agent=agent, attempt=1, fence="f",
               traceparent="", timeout_s=300.0, payload=b"", parents={})

async def main():
    root = Path(sys.argv[1])
    executor = ProcessExecutor(root, [root / "agents.py"], slots=4)
    async with executor.running(), trio.open_nursery() as nursery:
        nursery.start_soon(executor.run, job("deep"))
        nursery.start_soon(executor.run, job("script"))

trio.run(main)
"""

DEEP = """
import os, signal, subprocess, time
from relaymesh import agent

@agent("deep")
def deep(_text):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    subprocess.Popen(["sh", "-c", "trap '' TERM; setsid sleep 300 & exec sleep 300"], start_new_session=True)
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execvp("sleep", ["sleep", "300"])
        os._exit(0)
    time.sleep(300)
"""


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_of_a_node_that_was_killed(tmp_path, signum):
    (tmp_path / "agents").mkdir()
    script = "setsid sleep 300 & sleep 300"
    (tmp_path / "agents" / "scripts.json").write_text(
        f'{{"agents": [{{"id": "script", "command": ["sh", "-c", "{script}"]}}]}}'
    )
    (tmp_path / "agents.py").write_text(DEEP)
    process = subprocess.Popen(
        [sys.executable, "-c", NODE, str(tmp_path)],
        cwd=REPOSITORY,
        env={**os.environ, "TEST_MARKER": str(tmp_path)},
        stderr=subprocess.PIPE,
    )
    with process:
        wait_until(lambda: process.poll() is not None or len(sleepers(tmp_path)) == 5)
        assert process.poll() is None, process.stderr.read()
        process.send_signal(signum)
        process.wait(20)
        wait_until(lambda: processes_with(str(tmp_path)) == [])


def test_a_process_name_with_brackets_does_not_confuse_the_tree(tmp_path):
    program = tmp_path / "a) S 1 (b"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([str(program), "300"]) as process:
        try:
            wait_until(lambda: b"a) S 1" in Path(f"/proc/{process.pid}/stat").read_bytes())
            assert process.pid in list(process_tree.descendants())
            assert process.pid not in list(process_tree.descendants(spared={process.pid}))
        finally:
            process.kill()


@pytest.mark.slow
async def test_an_idle_executor_uses_no_cpu(tmp_path):
    from node.agents.executor import ProcessExecutor

    (tmp_path / "agents.py").write_text("from relaymesh import agent\n@agent('a')\ndef a(x): ...\n")
    async with ProcessExecutor(tmp_path, [tmp_path / "agents.py"], slots=2).running():
        await trio.sleep(0.2)
        used = time.process_time()
        ticks = _ticks_below(os.getpid())
        await trio.sleep(1.0)
        assert time.process_time() - used < 0.01
        assert _ticks_below(os.getpid()) == ticks


def _ticks_below(pid):
    """CPU ticks used by the processes below `pid`."""
    total = 0
    for child in children_of(pid):
        fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12]) + _ticks_below(child)
    return total
