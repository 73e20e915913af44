"""A handler's line to its node, in the host process: what `Context` uses. No thread and no frame for jobs that do not.

Any thread of the handler may use it. The node's answers are read by whoever waits for one, and looked for by whoever
asks `cancelled`; between jobs the host's own loop reads. What outlives its job can say nothing into the next one.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import Any

import msgspec

from node.agents.api import CHECKPOINT_BYTES_MAX, CheckpointError, LeaseMovedError
from node.agents.wire import (
    HEADER_BYTES,
    RUN_BYTES_MAX,
    CancelAsked,
    Report,
    Save,
    Saved,
    ToHost,
    body_length,
    decode_to_host,
    encode_frame,
)

PROGRESS_CHARS_MAX = 200
PROGRESS_BURST = 10
PROGRESS_PER_S = 10.0
"""More often than people can look. What is held back goes with the next call that may go."""

ENDED = 0
"""The turn between jobs."""


class HostLink:
    """One host's end of the socket to its node, shared by its jobs, one turn each."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._pid = os.getpid()
        self._turns = 0
        self._turn = ENDED
        self._sending = threading.Lock()
        self._asking = threading.Lock()
        """Held by whoever reads during a turn. Taken before `_sending`, never after."""
        self._cancelled = False
        self._tokens = float(PROGRESS_BURST)
        self._filled_at = 0.0
        self._held_back: Report | None = None
        self.is_broken = False
        """A call was interrupted half way: what comes next on the socket is not known, so the host must be retired."""

    def begin(self) -> int:
        """Begin a job's turn; the number that its context gives with every call."""
        self._turns += 1
        self._turn = self._turns
        self._cancelled = False
        self._tokens = float(PROGRESS_BURST)
        self._held_back = None
        return self._turns

    def end(self) -> None:
        """End the turn. Waits for a checkpoint that another thread of the handler is in the middle of."""
        with self._asking, self._sending:
            self._turn = ENDED

    def send(self, message: bytearray) -> None:
        """Send a whole frame, for the host's own loop."""
        with self._sending:
            self._connection.sendall(message)

    def receive(self) -> ToHost | None:
        """The next message, or None at the end of the stream. Between jobs the host's own loop calls this."""
        header = self._receive_exactly(HEADER_BYTES)
        body = header and self._receive_exactly(body_length(header, RUN_BYTES_MAX))
        return decode_to_host(body) if body else None

    # --- for handlers ---

    def report(self, turn: int, fraction: float, text: str) -> None:
        """Tell the node how far the job is. Never waits: what cannot go now goes with a later call, or never."""
        if self._is_mine(turn):
            self._held_back = Report(fraction, text[:PROGRESS_CHARS_MAX])
            self._send_report(turn)

    def cancelled(self, turn: int) -> bool:
        """Whether a cancel was asked for. Never waits. True for a job that has ended."""
        if self._turn != turn:
            return True
        if self._cancelled or os.getpid() != self._pid or self.is_broken:
            return self._cancelled
        if self._asking.acquire(blocking=False):  # else somebody reads, and will see it
            try:
                if self._turn == turn:
                    self._look()
            finally:
                self._asking.release()
        if self._held_back is not None:
            self._send_report(turn)
        return self._cancelled

    def save(self, turn: int, value: Any) -> None:
        """Have the node keep a checkpoint. Waits until it is durable; see `Context.checkpoint`."""
        content = encode_checkpoint(value)
        with self._asking:
            if not self._is_mine(turn):
                raise CheckpointError("only the process and the attempt that a handler runs in can keep its checkpoint")
            try:
                self.send(encode_frame(Save(content)))
                saved = self._wait_for_answer()
            except BaseException:
                self.is_broken = True
                raise
        match saved.kind:
            case "":
                return
            case "moved":
                raise LeaseMovedError(saved.error)
            case _:
                raise CheckpointError(saved.error)

    def _is_mine(self, turn: int) -> bool:
        return self._turn == turn and os.getpid() == self._pid and not self.is_broken

    def _wait_for_answer(self) -> Saved:
        while True:
            message = self.receive()
            if isinstance(message, Saved):
                return message
            if message is None:
                raise CheckpointError("the node has ended")
            self._cancelled = True

    def _look(self) -> None:
        try:
            self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        # Nothing else is sent unasked during a job; the end of the stream is the end of the node.
        message = self.receive()
        assert message is None or isinstance(message, CancelAsked), message
        self._cancelled = True

    def _send_report(self, turn: int) -> None:
        now = time.monotonic()
        self._tokens = min(PROGRESS_BURST, self._tokens + (now - self._filled_at) * PROGRESS_PER_S)
        self._filled_at = now
        if self._tokens < 1 or not self._sending.acquire(blocking=False):
            return
        try:
            report = self._held_back
            if report is None or not self._is_mine(turn):
                return
            frame = encode_frame(report)
            sent = self._connection.send(frame, socket.MSG_DONTWAIT)
            # So small a frame goes whole or not at all; were it ever cut, the rest must follow.
            self._connection.sendall(memoryview(frame)[sent:])
            self._tokens -= 1
            self._held_back = None
        except BlockingIOError:
            pass  # the node is busy; the report stays held back
        finally:
            self._sending.release()

    def _receive_exactly(self, length: int) -> bytearray | None:
        """`length` bytes, or None at the end of the stream."""
        buffer = bytearray(length)
        filled = 0
        while filled < length:
            received = self._connection.recv_into(memoryview(buffer)[filled:], 0, socket.MSG_WAITALL)
            if received == 0:
                return None
            filled += received
        return buffer


def encode_checkpoint(value: Any) -> bytes:
    """A checkpoint as JSON. TypeError for what JSON cannot hold, ValueError above CHECKPOINT_BYTES_MAX."""
    content = msgspec.json.encode(value)
    if len(content) > CHECKPOINT_BYTES_MAX:
        raise ValueError(
            f"the checkpoint has {len(content)} bytes as JSON, above the limit of {CHECKPOINT_BYTES_MAX}: keep data in "
            "a place of your own, and in the checkpoint only where it is"
        )
    return content
