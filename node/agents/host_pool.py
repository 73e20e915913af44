"""A few warm agent-host processes, one job at a time each: started when needed, reused, replaced after any trouble.

The way of a job through a warm host is one send, one wait and one receive in the caller's own task. A host that was
cut off in the middle of anything (timeout, cancellation, crash, left-over children) is never used again, and its whole
tree is gone before `run` returns.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Sequence
from pathlib import Path

import trio

from mesh.errors import ConfigError, ConflictError, FrameError, RelayMeshError
from node.agents.api import CHECKPOINT_BYTES_MAX
from node.agents.process_output import LogTail
from node.agents.processes import ExitStatus, GuardedProcess, Processes, python_command
from node.agents.source_files import Stamps, stamps_of
from node.agents.wire import (
    DONE_OVERHEAD_BYTES_MAX,
    HEADER_BYTES,
    LOG_BYTES_MAX,
    CancelAsked,
    Done,
    FromHost,
    Hello,
    LoadFailed,
    Offer,
    Report,
    Run,
    Save,
    Saved,
    body_length,
    decode_from_host,
    encode_frame,
)
from node.env import Job, Outcome, RunLine

logger = logging.getLogger(__name__)

HOST_START_MAX_S = 120.0
"""For importing the agent files. Some import large libraries from slow disks; this only ends a wait that has no end."""

IDLE_HOST_MAX_S = 60.0
"""After this long without a job a host ends, unless it is the only one."""

_RECEIVE_BYTES = 64 * 1024


class AgentHost:
    """The node's end of one host process."""

    def __init__(
        self,
        process: GuardedProcess,
        connection: socket.socket,
        log: LogTail,
        message_bytes_max: int,
        stamps: Stamps | None,
    ) -> None:
        connection.setblocking(False)
        self.process = process
        self.log = log
        self.idle_since = 0.0
        self.stamps = stamps
        self._connection = connection
        self._message_bytes_max = message_bytes_max
        self._is_sending = False
        self._owes_cancel = False

    def is_alive(self) -> bool:
        """False when the host has ended, or said something unasked, since its last job."""
        try:
            self._connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except ConnectionResetError:
            pass
        return False

    async def exchange(self, frame: bytes | bytearray, line: RunLine | None) -> FromHost | None:
        """Send a job and return the answer; None when the host ends instead. FrameError when it talks nonsense.

        Meanwhile `line` hears what the handler says, and may tell it that a cancel was asked for.
        """
        if line is not None:
            line.on_cancel = self._tell_cancel
            self._owes_cancel = line.cancel_asked
        try:
            if not await self._send(frame):
                return None
            buffer = bytearray()
            while True:
                message = await self.receive(buffer)
                if isinstance(message, Report):
                    if line is not None:
                        line.note_progress(message.fraction, message.text)
                elif isinstance(message, Save):
                    if not await self._send(encode_frame(await _save(message, line))):
                        return None
                elif buffer:
                    raise FrameError("an agent host said more than it was asked")
                else:
                    return message
        finally:
            if line is not None:
                line.on_cancel = _nothing  # this host may soon run something else

    async def receive(self, buffer: bytearray) -> FromHost | None:
        """The next message; None when the host ends instead. FrameError when it talks nonsense.

        `buffer` holds what was read beyond the message before, and afterwards what was read beyond this one.
        """
        while True:
            if len(buffer) >= HEADER_BYTES:
                end = HEADER_BYTES + body_length(buffer, self._message_bytes_max)
                if len(buffer) >= end:
                    message = decode_from_host(bytes(memoryview(buffer)[HEADER_BYTES:end]))
                    del buffer[:end]
                    return message
            await trio.lowlevel.wait_readable(self._connection)
            try:
                chunk = self._connection.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                continue
            except ConnectionResetError:
                return None
            if not chunk:
                return None
            buffer += chunk

    async def _send(self, frame: bytes | bytearray) -> bool:
        """Send it whole, and a cancel that came meanwhile; False when the host has ended."""
        rest = memoryview(frame)
        self._is_sending = True
        try:
            while rest:
                try:
                    rest = rest[self._connection.send(rest) :]
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(self._connection)
                except (BrokenPipeError, ConnectionResetError):
                    return False
        finally:
            self._is_sending = False
        if self._owes_cancel:
            self._tell_cancel()
        return True

    def _tell_cancel(self) -> None:
        self._owes_cancel = self._is_sending
        if not self._is_sending:
            # A full socket would be one of which the host reads nothing; then it would not hear of a cancel either.
            with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
                self._connection.send(encode_frame(CancelAsked()))

    async def end(self, *, softly: bool) -> ExitStatus:
        """End the process and everything below it; afterwards only `log` may still be used, until `close`."""
        status = await self.process.end(softly=softly)
        self._connection.close()
        return status


class HostPool:
    """Runs Python agents. At most as many hosts exist as `run` is called at a time, which the caller bounds."""

    def __init__(
        self,
        processes: Processes,
        files: Sequence[Path],
        *,
        cwd: Path,
        memory_bytes_max: int,
        result_bytes_max: int,
        reload: bool = False,
    ) -> None:
        """With `reload` no job begins in a host that is older than the files' last change."""
        self._reload = reload
        self._offers: list[Offer] = []
        self._processes = processes
        self._files = files
        self._cwd = cwd
        self._memory_bytes_max = memory_bytes_max
        self._result_bytes_max = result_bytes_max
        self._idle: list[AgentHost] = []  # the last one used is used next, so the first one is the longest idle
        self._host_count = 0
        self._has_extras = trio.Event()
        self._nursery: trio.Nursery | None = None

    async def discover(self) -> list[Offer]:
        """Start the first host and return the agents that it found; ConfigError when a file cannot be imported."""
        started = await self._start_host()
        if isinstance(started, str):
            raise ConfigError(started)
        host, hello = started
        self._put_back(host)
        self._offers = hello.agents
        return hello.agents

    async def serve(self) -> None:
        """Keep reading the hosts' logs, and end hosts that idle for long; until cancelled. Jobs run only meanwhile."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for host in self._idle:
                nursery.start_soon(host.log.pipe.follow)
            await self._end_idle_hosts()

    async def run(self, job: Job) -> Outcome:
        """Run one attempt in a host of its own. Cancellation kills it before this returns."""
        host = await self._take()
        if isinstance(host, str):
            return Outcome(kind="crashed", error=host)
        host.log.clear()
        reply: FromHost | None = None
        nonsense = ""
        limit = trio.move_on_after(job.timeout_s)
        try:
            with limit:
                reply = await host.exchange(encode_frame(run_of(job)), job.line)
        except FrameError as error:
            nonsense = f"{error}, and was ended: "
        except BaseException:
            await self._drop(host, softly=True)
            raise
        if isinstance(reply, Done) and not reply.retire:
            log = host.log.text()
            self._put_back(host)
            return _outcome(reply, log)
        # Softly only while a handler is running: what is left below an answered or dead one has had its time.
        status, log = await self._drop(host, softly=limit.cancelled_caught)
        if isinstance(reply, Done):
            return _outcome(reply, log)
        if limit.cancelled_caught:
            return Outcome(kind="timeout", error=timeout_text(job), log=log)
        return Outcome(kind="crashed", error=f"the process of agent {job.agent!r} ended: {nonsense}{status}", log=log)

    async def aclose(self) -> None:
        """End the idle hosts. Not cut short by cancellation."""
        while self._idle:
            await self._drop(self._idle.pop(), softly=False)

    async def _take(self) -> AgentHost | str:
        """A host for one job, or why none can be had."""
        stamps = stamps_of(self._files) if self._reload else None
        while self._idle:
            host = self._idle.pop()
            if host.is_alive() and host.stamps == stamps:
                return host
            await self._drop(host, softly=False)
        started = await self._start_host()
        if isinstance(started, str):
            return started
        host, hello = started
        if self._reload and hello.agents != self._offers:
            logger.warning(
                "the agent files declare other agents or options than at the start: restart the node for those"
            )
        return host

    def _put_back(self, host: AgentHost) -> None:
        host.idle_since = trio.current_time()
        self._idle.append(host)

    async def _drop(self, host: AgentHost, *, softly: bool) -> tuple[ExitStatus, str]:
        """End a host for good; how it ended, and the end of its log."""
        status = await host.end(softly=softly)
        log = host.log.text()
        host.log.pipe.close()
        self._host_count -= 1
        return status, log

    async def _start_host(self) -> tuple[AgentHost, Hello] | str:
        """Start a host and wait until it is ready; a text for the operator when it cannot be."""
        host = await self._spawn()
        opening: FromHost | None = None
        limit = trio.move_on_after(HOST_START_MAX_S)
        try:
            # A nursery of its own, because discovery starts a host before `serve` is there to read logs.
            async with trio.open_nursery() as nursery:
                nursery.start_soon(host.log.pipe.follow)
                with limit:
                    opening = await _receive_opening(host)
                nursery.cancel_scope.cancel()
        except BaseException:
            await self._drop(host, softly=False)
            raise
        if isinstance(opening, Hello):
            if self._nursery is not None:
                self._nursery.start_soon(host.log.pipe.follow)
            if self._host_count > 1:
                self._has_extras.set()
            return host, opening
        status, log = await self._drop(host, softly=False)
        if isinstance(opening, LoadFailed):
            place = f"{opening.file}, line {opening.line}" if opening.line else opening.file
            return f"agents file {place}: {opening.error}. Correct the file and try again."
        files = ", ".join(map(str, self._files))
        ended = (
            f"took longer than {HOST_START_MAX_S:.0f} s" if limit.cancelled_caught else f"ended its process ({status})"
        )
        return (
            f"importing {files} {ended}. An agents file should only define functions. Its last output: {log[-400:]!r}"
        )

    async def _spawn(self) -> AgentHost:
        ours, theirs = socket.socketpair()
        log_reader, log_writer = os.pipe()
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        argv = python_command("node.agents.host", "sys.argv[2:]", flags=("-P",))
        log = LogTail(log_reader, LOG_BYTES_MAX)
        stamps = stamps_of(self._files) if self._reload else None  # before the host reads them
        try:
            process = await self._processes.start(
                [*argv, str(self._result_bytes_max), *map(str, self._files)],
                cwd=self._cwd,
                environment={},
                memory_bytes_max=self._memory_bytes_max,
                descriptors=[null, log_writer, log_writer, theirs.fileno()],
            )
        except BaseException:
            ours.close()
            log.pipe.close()
            raise
        finally:
            theirs.close()
            os.close(log_writer)
            os.close(null)
        self._host_count += 1
        bytes_max = max(self._result_bytes_max, CHECKPOINT_BYTES_MAX) + DONE_OVERHEAD_BYTES_MAX
        return AgentHost(process, ours, log, bytes_max, stamps)

    async def _end_idle_hosts(self) -> None:
        """End what idled too long. Sleeps without a timer while there is no more than one host."""
        while True:
            await self._has_extras.wait()
            oldest = self._idle[0].idle_since if self._idle else trio.current_time()
            await trio.sleep_until(oldest + IDLE_HOST_MAX_S)
            while (
                self._host_count > 1
                and self._idle
                and self._idle[0].idle_since + IDLE_HOST_MAX_S <= trio.current_time()
            ):
                await self._drop(self._idle.pop(0), softly=True)
            if self._host_count <= 1:
                self._has_extras = trio.Event()


def timeout_text(job: Job) -> str:
    """What a step that ran too long keeps as its error."""
    return f"ran longer than its limit of {job.timeout_s:g} s and was ended"


def _outcome(done: Done, log: str) -> Outcome:
    return Outcome(kind=done.kind, result=done.result, error=done.error, log=log, snooze_ms=done.snooze_ms)


async def _save(save: Save, line: RunLine | None) -> Saved:
    if line is None:
        return Saved("failed", "nobody keeps checkpoints here")
    try:
        await line.save_checkpoint(save.content)
    except ConflictError as moved:
        return Saved("moved", str(moved))
    except RelayMeshError as error:
        return Saved("failed", str(error))
    return Saved()


def _nothing() -> None: ...


async def _receive_opening(host: AgentHost) -> FromHost | None:
    try:
        return await host.receive(bytearray())
    except FrameError:
        return None


def run_of(job: Job) -> Run:
    """The job as a handler's process is told of it."""
    return Run(
        agent=job.agent,
        payload=job.payload,
        parents=dict(job.parents),
        fence=job.fence,
        attempt=job.attempt,
        task_id=job.task_id,
        step_id=job.step_id,
        step_name=job.step_name,
        namespace=job.namespace,
        trace=job.traceparent,
        saved=job.saved,
    )
