"""Python and built-in agents through real host processes."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
import trio

from mesh.errors import ConfigError
from node.agents import host_pool
from node.agents.executor import AGENTS_MAX, INPUT_BYTES_MAX, ProcessExecutor
from node.env import Job

AGENTS = '''
import ctypes, json, os, re, signal, subprocess, sys, time
from relaymesh import Context, Fail, Retry, agent

@agent("upper", retry=Retry(7, 10, 20), timeout_s=9, concurrency=3)
def upper(text):
    return text.upper()

@agent("reverse")
def reverse(data: bytes) -> bytes:
    return data[::-1]

@agent("total")
def total(ctx: Context, numbers: list[int]):
    return {"total": sum(numbers), "parents": sorted(ctx.parents), "fence": ctx.fence}

@agent("pid")
def pid(_text):
    return str(os.getpid())

@agent("boom")
def boom(text):
    print("before the boom")
    raise ValueError(text)

@agent("refuse")
def refuse(text):
    raise Fail("no: " + text)

@agent("print")
def print_it(text):
    os.write(1, b"raw ")
    print("x" * int(text) + "end")

@agent("nap")
def nap(text):
    try:
        time.sleep(float(text))
    finally:
        print("cleaned up", flush=True)

@agent("trio-nap")
async def trio_nap(text):
    import trio
    try:
        await trio.sleep(float(text))
    finally:
        print("trio cleaned up", flush=True)

@agent("asyncio-nap", loop="asyncio")
async def asyncio_nap(text):
    import asyncio
    try:
        await asyncio.sleep(float(text))
    finally:
        print("asyncio cleaned up", flush=True)

@agent("stubborn")
def stubborn(text):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60)

@agent("hold-gil")
def hold_gil(_text):
    return str(len(re.findall(r"(a+)+$", "a" * 60 + "b")))  # exponential, in C, without letting the GIL go

@agent("segfault")
def segfault(_text):
    ctypes.string_at(0)

@agent("exit")
def leave(text):
    os._exit(int(text))

@agent("eat")
def eat(text):
    return str(len(bytearray(int(text))))

@agent("fork-and-return")
def fork_and_return(_text):
    os.fork()
    return str(os.getpid())

@agent("litter")
def litter(text):
    """Starts children in sessions of their own, half of them orphans at once."""
    for number in range(int(text)):
        if number % 2:
            subprocess.Popen(["sleep", "300"], start_new_session=True)
        elif os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.execvp("sleep", ["sleep", "300"])
            os._exit(0)
    return "done"

@agent("tidy")
def tidy(_text):
    return subprocess.run(["echo", "hi"], capture_output=True).stdout

@agent("nonsense")
def nonsense(_text):
    os.write(3, b"\\xff\\xff\\xff\\xff what")
    time.sleep(60)

@agent("close-all")
def close_all(_text):
    os.closerange(3, 100)
    time.sleep(60)
'''


def job(agent, payload=b"", *, timeout_s=20.0, parents=None):
    return Job(
        task_id="tsk_1",
        step_id="stp_1",
        step_name="step",
        namespace="default",
        agent=agent,
        attempt=1,
        fence="fence-1",
        traceparent="00-aa-bb-01",
        timeout_s=timeout_s,
        payload=payload,
        parents=parents or {},
    )


def read(path):
    """What a file below /proc says; empty when its process is gone."""
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def children_of(pid):
    return read(f"/proc/{pid}/task/{pid}/children").decode().split()


def descendants_of(pid):
    """Live processes below `pid`, without the spawner and guards, which run the spawner's command line."""
    found = []
    for child in children_of(pid):
        command = read(f"/proc/{child}/cmdline")
        if command and b"node.agents.spawner" not in command:  # an ended process has none
            found.append(command.replace(b"\0", b" "))
        found += descendants_of(child)
    return found


async def eventually(condition, seconds=10.0):
    with trio.fail_after(seconds):
        while True:
            if condition():
                return
            await trio.sleep(0.01)


@pytest.fixture
def agents_file(tmp_path):
    file = tmp_path / "my_agents.py"
    file.write_text(AGENTS)
    return file


@pytest.fixture
async def executor(tmp_path, agents_file):
    executor = ProcessExecutor(tmp_path, [agents_file], slots=4, memory_bytes_max=300 << 20, kill_grace_s=0.3)
    async with executor.running():
        yield executor
    assert descendants_of(os.getpid()) == []


async def test_the_node_learns_the_agents_and_their_options_without_importing_them(executor):
    info = executor.agents()["upper"]
    assert (info.kind, info.timeout_s, info.concurrency) == ("python", 9.0, 3)
    assert (info.max_attempts, info.base_backoff_ms, info.max_backoff_ms) == (7, 10, 20)
    assert executor.agents()["pid"].timeout_s == 60.0
    assert {"echo", "fail", "sleep"} < set(executor.agents())
    assert "my_agents" not in sys.modules


async def test_payloads_of_three_types_come_back_as_results(executor):
    assert (await executor.run(job("upper", "grüße".encode()))).result == "GRÜSSE".encode()
    assert (await executor.run(job("reverse", b"\x00\x01\xff"))).result == b"\xff\x01\x00"
    outcome = await executor.run(job("total", b"[1, 2]", parents={"b": b"", "a": b"x"}))
    assert outcome.result == b'{"total":3,"parents":["a","b"],"fence":"fence-1"}'


async def test_a_large_payload_and_result_pass_whole(executor):
    payload = os.urandom(10 << 20)
    outcome = await executor.run(job("reverse", payload))
    assert outcome.result == payload[::-1]


async def test_a_result_above_the_limit_is_rejected(tmp_path, agents_file):
    executor = ProcessExecutor(tmp_path, [agents_file], slots=1, result_bytes_max=100)
    async with executor.running():
        assert (await executor.run(job("reverse", b"x" * 100))).kind == "success"
        assert (await executor.run(job("reverse", b"x" * 101))).kind == "rejected"


async def test_inputs_above_the_limit_are_rejected_before_they_are_sent(executor):
    half = b"x" * (INPUT_BYTES_MAX // 2)
    refused = await executor.run(job("pid", half, parents={"a": half, "b": b"1"}))
    assert refused.kind == "rejected"
    assert str(INPUT_BYTES_MAX) in refused.error


async def test_failures_say_what_was_raised_and_keep_the_log(executor):
    outcome = await executor.run(job("boom", b"oh"))
    assert (outcome.kind, outcome.error) == ("failed", "ValueError: oh")
    assert "before the boom" in outcome.log
    assert "raise ValueError(text)" in outcome.log
    refused = await executor.run(job("refuse", b"oh"))
    assert (refused.kind, refused.error) == ("rejected", "no: oh")


async def test_the_log_keeps_the_end_and_belongs_to_one_attempt(executor):
    outcome = await executor.run(job("print", b"500000"))
    assert len(outcome.log) == 4096
    assert outcome.log.endswith("xend\n")
    outcome = await executor.run(job("print", b"1"))
    assert outcome.log == "raw xend\n"


async def test_a_warm_host_is_used_again_even_after_a_failure(executor):
    first = await executor.run(job("pid"))
    await executor.run(job("boom"))
    await executor.run(job("tidy"))
    assert (await executor.run(job("pid"))).result == first.result


@pytest.mark.parametrize(
    ("agent", "cleaned"),
    [("nap", "cleaned up"), ("trio-nap", "trio cleaned up"), ("asyncio-nap", "asyncio cleaned up")],
)
async def test_a_timeout_interrupts_the_handler_and_lets_it_clean_up(executor, agent, cleaned):
    started = time.monotonic()
    outcome = await executor.run(job(agent, b"60", timeout_s=0.2))
    assert (outcome.kind, outcome.error) == ("timeout", "ran longer than its limit of 0.2 s and was ended")
    assert cleaned in outcome.log
    assert time.monotonic() - started < 5
    assert (await executor.run(job("upper", b"next"))).result == b"NEXT"


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["stubborn", "hold-gil"])
async def test_a_handler_that_cannot_be_interrupted_is_killed_after_the_grace(executor, agent):
    outcome = await executor.run(job(agent, b"", timeout_s=0.2))
    assert outcome.kind == "timeout"
    assert (await executor.run(job("upper", b"next"))).result == b"NEXT"


@pytest.mark.slow
async def test_one_handler_that_holds_its_gil_does_not_slow_the_others(executor):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(executor.run, job("hold-gil", timeout_s=1.5))
        await executor.run(job("upper"))
        started = time.monotonic()
        for _ in range(20):
            assert (await executor.run(job("upper", b"a"))).result == b"A"
        assert time.monotonic() - started < 1.0
        nursery.cancel_scope.cancel()


async def test_cancelling_kills_the_handler_before_it_returns(executor):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(executor.run, job("nap", b"60"))
        await trio.sleep(0.1)
        assert len(descendants_of(os.getpid())) == 1
        nursery.cancel_scope.cancel()
    assert descendants_of(os.getpid()) == []


async def test_a_segfault_is_a_crash_that_names_the_signal_and_the_line(executor):
    outcome = await executor.run(job("segfault"))
    assert outcome.kind == "crashed"
    assert "signal 11 (SIGSEGV)" in outcome.error
    assert "in segfault" in outcome.log


async def test_leaving_the_process_is_a_crash_that_names_the_exit_code(executor):
    outcome = await executor.run(job("exit", b"7"))
    assert (outcome.kind, outcome.error) == ("crashed", "the process of agent 'exit' ended: exit code 7")


async def test_memory_past_the_limit_fails_the_attempt_only(executor):
    assert (await executor.run(job("eat", str(100 << 20).encode()))).kind == "success"
    outcome = await executor.run(job("eat", str(400 << 20).encode()))
    assert (outcome.kind, outcome.error) == ("failed", "MemoryError")
    assert (await executor.run(job("upper", b"next"))).result == b"NEXT"


async def test_a_child_that_returns_from_the_handler_does_not_answer_for_its_parent(executor):
    before = await executor.run(job("pid"))
    outcome = await executor.run(job("fork-and-return"))
    assert outcome.result == before.result


@pytest.mark.slow
async def test_a_hundred_children_that_left_their_session_are_gone_after_the_run(executor):
    outcome = await executor.run(job("litter", b"100"))
    assert (outcome.kind, outcome.result) == ("success", b"done")
    assert [command for command in descendants_of(os.getpid()) if b"sleep" in command] == []


@pytest.mark.parametrize("agent", ["nonsense", "close-all"])
async def test_a_host_that_breaks_its_protocol_is_ended(executor, agent):
    outcome = await executor.run(job(agent))
    assert outcome.kind == "crashed"
    assert (await executor.run(job("upper", b"next"))).result == b"NEXT"


async def test_a_host_that_died_while_idle_is_replaced_unnoticed(executor):
    pid = int((await executor.run(job("pid"))).result)
    os.kill(pid, 9)
    await eventually(lambda: not os.path.exists(f"/proc/{pid}"))
    outcome = await executor.run(job("pid"))
    assert outcome.kind == "success"
    assert int(outcome.result) != pid


@pytest.mark.slow
async def test_jobs_run_side_by_side_up_to_the_slots_and_extra_hosts_end_when_idle(executor, monkeypatch):
    monkeypatch.setattr(host_pool, "IDLE_HOST_MAX_S", 2.0)
    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(executor.run, job("nap", b"0.2"))
    assert len(descendants_of(os.getpid())) == 4
    await eventually(lambda: len(descendants_of(os.getpid())) == 1)
    await trio.sleep(0.2)
    assert len(descendants_of(os.getpid())) == 1


async def test_builtin_agents_need_no_process(tmp_path):
    executor = ProcessExecutor(tmp_path, slots=1)
    async with executor.running():
        assert (await executor.run(job("echo", b"\xff"))).result == b"\xff"
        assert (await executor.run(job("fail"))).kind == "failed"
        assert (await executor.run(job("sleep", b"0.01"))).result == b"0.01"
        assert (await executor.run(job("sleep", b"60", timeout_s=0.01))).kind == "timeout"
        for text in (b"soon", b"-1", b"nan", b"inf", b""):
            assert (await executor.run(job("sleep", text))).kind == "rejected"
        assert (await executor.run(job("unheard-of"))).kind == "failed"
        assert children_of(os.getpid()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("import relaymesh\n\nx = 1 / 0\n", "line 3: ZeroDivisionError: division by zero"),
        ("def broken(:\n", "line 1: SyntaxError"),
        ("import no_such_module\n", "line 1: ModuleNotFoundError"),
        ("def f(x): ...\n", "bad.py: it defines no agent: put @agent"),
        (
            "from relaymesh import agent\n@agent('bad name')\ndef f(x): ...\n",
            "line 2: ValueError: agent name 'bad name'",
        ),
        ("from relaymesh import agent\n@agent('a')\ndef f(x: object()): ...\n", "JSON cannot become the payload type"),
        ("import sys\nsys.exit(2)\n", "line 2: SystemExit: 2"),
        ("import os\nprint('bye', flush=True)\nos._exit(2)\n", r"ended its process \(exit code 2\).*bye"),
        ("from relaymesh import agent\n@agent('echo')\ndef f(x): ...\n", "agent 'echo' exists twice"),
    ],
)
async def test_an_agents_file_that_cannot_be_used_is_named_with_its_line(tmp_path, content, message):
    file = tmp_path / "bad.py"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        async with ProcessExecutor(tmp_path, [file], slots=1).running():
            pass
    assert descendants_of(os.getpid()) == []


def test_a_missing_agents_file_is_refused_at_once(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.py cannot be read"):
        ProcessExecutor(tmp_path, [tmp_path / "none.py"], slots=1)


@pytest.mark.parametrize(("count", "fits"), [(AGENTS_MAX - 3, True), (AGENTS_MAX - 2, False)])
async def test_a_node_has_at_most_256_agents(tmp_path, count, fits):
    file = tmp_path / "many.py"
    file.write_text(
        f"from relaymesh import agent\nfor n in range({count}):\n    agent(f'{{n:064}}')(eval(f'lambda x: {{n}}'))\n"
    )
    executor = ProcessExecutor(tmp_path, [file], slots=1)
    if fits:
        async with executor.running():
            assert len(executor.agents()) == AGENTS_MAX
    else:
        with pytest.raises(ConfigError, match="one too many"):
            async with executor.running():
                pass


async def test_files_import_their_neighbours_and_do_not_replace_other_modules(tmp_path):
    (tmp_path / "neighbour.py").write_text("WORD = 'hello'\n")
    file = tmp_path / "statistics.py"  # the name of a module that others import
    imports = "import random\nfrom neighbour import WORD\nfrom relaymesh import agent\n"
    file.write_text(imports + "@agent('say')\ndef say(x): return WORD\n")
    executor = ProcessExecutor(tmp_path, [file], slots=1)
    async with executor.running():
        assert (await executor.run(job("say"))).result == b"hello"


@pytest.mark.slow
async def test_ten_thousand_jobs_leave_handles_and_processes_flat(executor):
    async def work(count):
        for _ in range(count):
            assert (await executor.run(job("upper", b"a"))).kind == "success"

    async def counts():
        return len(os.listdir("/proc/self/fd")), len(descendants_of(os.getpid())), len(os.listdir("/proc/self/task"))

    async def burst(count):
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(work, count // 4)

    await burst(400)
    before = await counts()
    await burst(10_000)
    assert await counts() == before


async def test_a_changed_agents_file_is_read_anew_between_runs_and_never_in_one(tmp_path, caplog):
    text = "import time\nfrom relaymesh import agent\nfrom helper import WORD\n"
    text += "@agent('say')\ndef say(text):\n    time.sleep(float(text))\n    return WORD\n"
    file, helper = tmp_path / "mine.py", tmp_path / "helper.py"
    file.write_text(text)
    helper.write_text("WORD = 'old'\n")
    executor = ProcessExecutor(tmp_path, [file], slots=2, kill_grace_s=0.3, reload_agents=True)
    async with executor.running():
        async with trio.open_nursery() as nursery:
            results = []

            async def run(seconds):
                results.append((await executor.run(job("say", seconds))).result)

            nursery.start_soon(run, b"1.5")
            await trio.sleep(0.3)
            helper.write_text("WORD = 'brand new'\n")
            await run(b"0")
        assert results == [b"brand new", b"old"]
        assert (await executor.run(job("say", b"0"))).result == b"brand new"
        assert caplog.records == []
        file.write_text("def broken(:\n")
        outcome = await executor.run(job("say", b"0"))
        assert outcome.kind == "crashed"
        assert "mine.py, line 1: SyntaxError" in outcome.error
        file.write_text(text + "@agent('more')\ndef more(text): ...\n")
        assert (await executor.run(job("say", b"0"))).result == b"brand new"
        assert "restart the node for those" in caplog.text
    assert descendants_of(os.getpid()) == []
