"""The world as a node sees it. A node reaches clocks, randomness, sockets, disks and processes through one `Env` only.

The daemon builds the real one (`node.real_env`). A simulator builds another, and the same node runs under it.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import trio

from mesh.ids import Address

T = TypeVar("T")


class Clock(Protocol):
    """Time. Monotonic time includes the time a host slept, so that a paused node notices."""

    def monotonic(self) -> float:
        """Seconds since some fixed point; never goes back, and goes on while the host is suspended."""
        ...

    def wall(self) -> float:
        """Seconds since 1970, as the host believes. Only for display and for anchoring stamps."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Sleep this long on the monotonic clock."""
        ...


class DatagramSocket(Protocol):
    """A bound UDP socket. Sending never raises for network trouble: UDP may always lose."""

    @property
    def address(self) -> Address:
        """The address it is bound to."""
        ...

    async def wait_readable(self) -> None:
        """Return when `receive_nowait` may have something."""
        ...

    def receive_nowait(self) -> tuple[bytes, Address] | None:
        """The next datagram, or None when there is none now."""
        ...

    def send(self, data: bytes, address: Address) -> bool:
        """Hand one datagram to the network; False when the network refused it at once."""
        ...

    def close(self) -> None:
        """Release the port."""
        ...


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """Who is at the other end of a stream: proven by a certificate of the mesh's CA, or by the local socket's owner."""

    role: str
    """`node`, `operator` or `local`."""
    name: str
    enrolment: int = 0
    serial: str = ""
    """Of its TLS certificate, lower-case hex without leading zeros; empty where there is none."""
    fingerprint: str = ""
    """SHA-256 of that certificate's DER form, lower-case hex."""
    public_key: bytes = b""
    """The key of that certificate."""
    ca_public_key: bytes | None = None
    """Of the CA that signed it; empty when that is none that we know. None where that needs no look: there is no
    certificate, or the whole way from it to a trusted CA was checked."""


class SecureStream(Protocol):
    """A byte stream whose other end has proven who it is."""

    @property
    def peer(self) -> PeerIdentity:
        """Who is at the other end."""
        ...

    async def send_all(self, data: bytes) -> None:
        """Send all bytes, or raise trio.BrokenResourceError."""
        ...

    async def receive_some(self, max_bytes: int) -> bytes:
        """The next bytes; empty at a clean end."""
        ...

    async def aclose(self) -> None:
        """End the stream without waiting for the other side."""
        ...


class Net(Protocol):
    """Sockets. Streams are mutually authenticated; how is the environment's business (TLS 1.3 in production)."""

    async def bind_datagram(self, address: Address) -> DatagramSocket:
        """Bind UDP; ConfigError when the port is taken or the address is not ours."""
        ...

    async def connect(self, address: Address) -> SecureStream:
        """Open an authenticated stream; UnavailableError when nobody answers or the identity does not hold."""
        ...

    async def serve(
        self,
        address: Address,
        handler: Callable[[SecureStream], Awaitable[object]],
        *,
        task_status: trio.TaskStatus[Address],
    ) -> None:
        """Listen until cancelled; `await handler(stream)` runs per connection. ConfigError when the port is taken."""
        ...

    async def serve_local(
        self, path: Path, handler: Callable[[SecureStream], Awaitable[object]], *, task_status: trio.TaskStatus[None]
    ) -> None:
        """The same on a Unix socket (mode 0600) for the host's own operator."""
        ...


class Disk(Protocol):
    """Where files live, and how SQLite reaches them."""

    root: Path
    vfs: str
    """Name of the registered SQLite VFS; the empty string is the system's own."""
    shared_memory: bool
    """Whether several connections may use one database through it. A simulated disk has one connection a database."""

    def free_bytes(self) -> int:
        """Bytes that this node may still write; StoreError when the disk does not say."""
        ...

    def load(self, name: str) -> bytes | None:
        """The content of a small secret file in the root; None when there is none. Blocks."""
        ...

    def save(self, name: str, data: bytes) -> None:
        """Replace that file whole and durably, for its owner's eyes only; OSError leaves the old one. Blocks."""
        ...

    def kernel_boot_id(self) -> str:
        """A text that changes whenever the host's kernel was started anew (page cache lost)."""
        ...

    def exists(self, name: str) -> bool:
        """Whether the root holds a file of this name. OSError when the disk fails, as of the two below."""
        ...

    def rename(self, name: str, new_name: str) -> None:
        """Give a file of the root another name, replacing what has that: in one step, durable on return.

        Names that were made or removed before are durable first. The content is the caller's to sync. It blocks.
        """
        ...

    def remove(self, name: str) -> None:
        """Remove a file of the root, if it is there."""
        ...


class StoreThread(Protocol):
    """Runs blocking database calls one after another: a thread in production, inline in a simulator."""

    async def run(self, fn: Callable[[], T]) -> T:
        """Run `fn` and return its result. A cancelled caller still waits for the call to end."""
        ...

    def close(self) -> None:
        """End the thread."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentInfo:
    """What a node knows about one agent it can run."""

    name: str
    kind: str
    """`builtin`, `python` or `script`."""
    timeout_s: float | None = None
    """Longest run; None takes the step's or the settings' value."""
    max_attempts: int | None = None
    base_backoff_ms: int | None = None
    max_backoff_ms: int | None = None
    concurrency: int | None = None


class RunLine(Protocol):
    """What a running attempt tells its node, and what the node tells the attempt. Lives as long as the attempt."""

    cancel_asked: bool
    """Whether a cancel of the task was asked for, soft or hard."""
    on_cancel: Callable[[], None]
    """Called once when that happens, on the loop's thread; not when it has happened already. The executor sets it."""

    def note_progress(self, fraction: float, text: str) -> None:
        """Keep in memory how far the attempt says it is: `fraction` from 0 to 1."""
        ...

    async def save_checkpoint(self, content: bytes) -> None:
        """Store what the step's next attempt is to begin with; durable on return.

        ConflictError when the lease has moved; LimitError above the limit in agents.api; another RelayMeshError when it
        may not be stored now, and perhaps was.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One attempt at one step, as an agent sees it."""

    task_id: str
    step_id: str
    step_name: str
    namespace: str
    agent: str
    attempt: int
    fence: str
    """See mesh/fences.py: a text whose byte order is the order in which leases win."""
    traceparent: str
    timeout_s: float
    payload: bytes
    parents: Mapping[str, bytes]
    """Outputs of the steps that this one depends on, by step name."""
    saved: bytes = b""
    """The latest checkpoint of an earlier attempt, as JSON; empty when there is none."""
    line: RunLine | None = None
    """To the node that runs it; None where nobody listens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an attempt ended."""

    kind: str
    """`success`, `failed` (the handler said so), `timeout`, `crashed` (its process died), `rejected` (not retried),
    `snoozed` (waits again, and was no attempt), `cancelled` (the handler gave up on purpose)."""
    result: bytes = b""
    error: str = ""
    log: str = ""
    """The tail of what the handler wrote for people, at most 4 KiB."""
    snooze_ms: int = 0
    """How long a snoozed step waits, within the limits of agents.api."""


class Executor(Protocol):
    """Runs user code outside the node's process."""

    def agents(self) -> Mapping[str, AgentInfo]:
        """What can be run here, by name."""
        ...

    def running(self) -> AbstractAsyncContextManager[None]:
        """Start what is needed; on exit every process ever started is gone."""
        ...

    async def run(self, job: Job) -> Outcome:
        """Run one attempt to its end. Cancelling this call kills the handler and its children before it returns."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Env:
    """All of the outside world, in one value."""

    clock: Clock
    rng: random.Random
    entropy: Callable[[int], bytes]
    net: Net
    disk: Disk
    writer_thread: StoreThread
    reader_thread: StoreThread
    executor: Executor
