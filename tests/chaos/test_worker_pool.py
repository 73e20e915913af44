"""Calls in other processes: values, errors, deaths and hangs come back, and nothing stays behind."""

from __future__ import annotations

import ctypes
import operator
import os
import subprocess
import sys
import time

import pytest

from chaos.worker_pool import Call, Done, WorkerPool

LIMIT_S = 30.0


def run_all(*calls: Call, jobs: int = 1) -> list[Done]:
    done: list[Done] = []
    with WorkerPool(jobs) as pool:
        for call in calls:
            pool.submit(call)
        while pool.under_way:
            ended = pool.next_done(1.0)
            done += [] if ended is None else [ended]
    return done


def call(function, *args, limit_s: float = LIMIT_S, hash_seed: int | None = None) -> Call:
    return Call(function=function, args=args, limit_s=limit_s, hash_seed=hash_seed)


def test_values_and_errors_come_back_and_the_worker_goes_on():
    product, failed, process, same = run_all(
        call(operator.mul, 6, 7), call(operator.truediv, 1, 0), call(os.getpid), call(os.getpid)
    )

    assert (product.value, product.error) == (42, "")
    assert "ZeroDivisionError" in failed.error
    assert not failed.hung
    assert process.value == same.value != os.getpid()


def test_a_worker_that_dies_costs_one_call_and_says_how():
    died, after = run_all(call(ctypes.string_at, 0), call(operator.add, 1, 2))

    assert died.error.startswith("its process ended (-11)")
    assert "Segmentation fault" in died.error
    assert not died.hung
    assert after.value == 3


def test_a_call_that_hangs_is_ended_and_shows_its_stack():
    hung, after = run_all(call(time.sleep, 600, limit_s=0.3), call(operator.add, 1, 2))

    assert hung.hung
    assert hung.error.startswith("not done after 0.3 s")
    assert "most recent call first" in hung.error
    assert after.value == 3


def test_a_hash_seed_is_that_of_a_process_of_its_own():
    hashes = [run_all(call(hash, "text", hash_seed=seed))[0].value for seed in (1, 2, 1)]

    assert hashes[0] == hashes[2] != hashes[1]
    processes = run_all(call(os.getpid, hash_seed=1), call(os.getpid, hash_seed=1))
    assert len({done.value for done in processes}) == 2


def test_leaving_ends_what_is_under_way():
    with WorkerPool(2) as pool:
        pool.submit(call(os.getpid))
        done = pool.next_done(LIMIT_S)
        assert done is not None
        pool.submit(call(time.sleep, 600))
        assert pool.next_done(0.05) is None

    with pytest.raises(ProcessLookupError):
        os.kill(done.value, 0)


def test_an_interrupt_of_all_processes_reaches_the_parent_alone():
    program = (
        "import operator, os, time\n"
        "from chaos.worker_pool import Call, WorkerPool\n"
        "with WorkerPool(1) as pool:\n"
        "    pool.submit(Call(function=operator.add, args=(1, 2), limit_s=30))\n"
        "    pool.next_done(30)\n"
        "    try:\n"
        "        os.killpg(0, 2)\n"
        "        time.sleep(30)\n"
        "    except KeyboardInterrupt:\n"
        "        pool.submit(Call(function=operator.mul, args=(6, 7), limit_s=30))\n"
        "        print(pool.next_done(30))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], start_new_session=True, capture_output=True, text=True, timeout=30, check=True
    )

    assert "value=42" in ended.stdout
    assert ended.stderr == ""
