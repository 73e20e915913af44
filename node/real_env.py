"""The real outside world: what a daemon runs on. A simulator has its own `Env`, and this module is not used there."""

from __future__ import annotations

import os
import queue
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import outcome
import trio

from mesh.errors import StoreError
from node import durable_files
from node.durable_files import sync_directory
from node.env import Env, Executor, Net

T = TypeVar("T")

_KERNEL_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class SystemClock:
    """The host's clocks."""

    def monotonic(self) -> float:
        """Seconds since the host started, suspension included: after a suspend a node must see how long it was away."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall(self) -> float:
        """Seconds since 1970, as the host believes."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Sleep this long; time in which the host is suspended does not count, so look at `monotonic` afterwards."""
        await trio.sleep(seconds)


class LocalDisk:
    """The node's root directory on the host's own file system."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.vfs = ""
        self.shared_memory = True

    def free_bytes(self) -> int:
        """Bytes that an ordinary user may still write where the root is; StoreError when the disk does not say."""
        try:
            space = os.statvfs(self.root)
        except OSError as error:
            raise StoreError(f"the disk of {self.root} does not say what is free: {error.strerror}") from error
        return space.f_bavail * space.f_frsize

    def load(self, name: str) -> bytes | None:
        """The content of a small file in the root; None when there is none."""
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            return None

    def save(self, name: str, data: bytes) -> None:
        """Replace that file whole and durably, mode 0600; OSError leaves the old one."""
        durable_files.replace(self.root / name, data)

    def kernel_boot_id(self) -> str:
        """The kernel's random id of this start; it changes whenever the page cache was lost."""
        return _KERNEL_BOOT_ID.read_text(encoding="ascii").strip()

    def exists(self, name: str) -> bool:
        """Whether the root holds a file of this name."""
        return (self.root / name).exists()

    def rename(self, name: str, new_name: str) -> None:
        """Give a file another name in one durable step; what happened to names before is durable first. OSError."""
        sync_directory(self.root)
        (self.root / name).rename(self.root / new_name)
        sync_directory(self.root)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there. OSError."""
        (self.root / name).unlink(missing_ok=True)


class DedicatedThread:
    """A `StoreThread`: one named thread that runs calls in the order given.

    SQLite connections stay on one thread, and the hand-over costs a tenth of trio.to_thread.
    """

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], trio.lowlevel.Task, trio.lowlevel.TrioToken] | None]
        self._calls = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()
        self._closed = False

    async def run(self, fn: Callable[[], T]) -> T:
        """Run `fn` there and return its result or raise its exception. A cancelled caller still waits for the end.

        So the caller always learns what happened; its cancellation comes at its next checkpoint.
        """
        assert not self._closed, f"{self._thread.name} was closed"
        self._calls.put((fn, trio.lowlevel.current_task(), trio.lowlevel.current_trio_token()))
        return cast(T, await trio.lowlevel.wait_task_rescheduled(_keep_waiting))

    def close(self) -> None:
        """Let the calls that were given end, and end the thread. Blocks until it is gone. May be repeated."""
        if not self._closed:
            self._closed = True
            self._calls.put(None)
            self._thread.join()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            fn, task, token = call
            result = outcome.capture(fn)
            try:
                token.run_sync_soon(trio.lowlevel.reschedule, task, result)
            except trio.RunFinishedError:
                return  # the loop crashed around its tasks; nobody is left to hear results
            # Keeping the last call's objects until the next one would keep its rows and its caller alive.
            del call, fn, task, token, result


def _keep_waiting(_raise_cancel: object) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.FAILED


def make_env(root: Path, *, net: Net, executor: Executor) -> Env:
    """The environment of a daemon on `root`. The caller closes both store threads at the end."""
    return Env(
        clock=SystemClock(),
        rng=random.Random(os.urandom(32)),
        entropy=os.urandom,
        net=net,
        disk=LocalDisk(root),
        writer_thread=DedicatedThread("store-writer"),
        reader_thread=DedicatedThread("store-reader"),
        executor=executor,
    )
