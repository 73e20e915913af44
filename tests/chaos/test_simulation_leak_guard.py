from __future__ import annotations

import logging
import os
import random
import secrets
import socket
import threading
import time
import uuid

import pytest
import trio

from chaos.simulation.leak_guard import LeakError, leak_guard
from chaos.simulation.scheduling import HOST

PROBES = {
    "wall clock": lambda: time.time(),
    "monotonic clock": lambda: time.monotonic(),
    "fine clock": lambda: time.perf_counter(),
    "boot clock": lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
    "nanoseconds": lambda: time.time_ns(),
    "sleep": lambda: time.sleep(0),
    "entropy": lambda: os.urandom(8),
    "secrets": lambda: secrets.token_bytes(8),
    "uuid": lambda: uuid.uuid4(),
    "module random": lambda: random.random(),
    "module choice": lambda: random.choice([1, 2]),
    "unseeded generator": lambda: random.Random(),
    "system generator": lambda: random.SystemRandom().random(),
    "socket": lambda: socket.socket(),
    "name lookup": lambda: socket.getaddrinfo("localhost", 1),
    "thread": lambda: threading.Thread(target=print).start(),
}


@pytest.fixture
def as_host():
    token = HOST.set("n0")
    yield
    HOST.reset(token)


@pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES)
def test_a_host_that_reaches_for_the_real_world_is_refused(probe, as_host):
    with leak_guard(), pytest.raises(LeakError, match="n0 used"):
        probe()


@pytest.mark.parametrize("probe", [probe for name, probe in PROBES.items() if name != "thread"])
def test_the_harness_itself_is_not_refused(probe):
    with leak_guard():
        result = probe()
    if isinstance(result, socket.socket):
        result.close()


def test_a_thread_of_trio_is_refused(as_host):
    async def main() -> None:
        with leak_guard(), pytest.raises(LeakError, match=r"to_thread"):
            await trio.to_thread.run_sync(print)

    token = HOST.set("n0")
    try:
        trio.run(main)
    finally:
        HOST.reset(token)


def test_a_seeded_generator_is_allowed(as_host):
    with leak_guard():
        assert random.Random(1).random() == random.Random(1).random()


def test_a_log_record_carries_virtual_time():
    record: list[logging.LogRecord] = []

    async def main() -> None:
        token = HOST.set("n0")
        with leak_guard():
            record.append(logging.makeLogRecord({}))
        HOST.reset(token)
        assert record[0].created <= trio.current_time()

    trio.run(main)


def test_everything_is_as_before_when_the_guard_ends(as_host):
    before = (time.time, os.urandom, random.random, random.Random, socket.socket.__init__, threading.Thread.start)
    with leak_guard():
        pass
    assert before == (
        time.time,
        os.urandom,
        random.random,
        random.Random,
        socket.socket.__init__,
        threading.Thread.start,
    )
