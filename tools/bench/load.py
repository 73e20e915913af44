"""Many clients of one node in one process: each sends its next request when its last answer has come.

A selector drives all connections, with requests that were encoded before, because on a small machine the clients' own
CPU is taken from the node: a thread per client costs more than the node's answer. What it did cost is measured.
"""

from __future__ import annotations

import selectors
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from mesh.errors import FrameError, UnavailableError
from node.admin_client import CONTROL_SOCKET
from node.streams.frames import LOCAL_CLUSTER, FrameDecoder, encode_message
from node.streams.local_socket import connect_local
from node.streams.rpc_messages import SILENCE_S, Call, End, Error, decode_reply, encode

_RECEIVE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What the clients saw."""

    seconds: float
    """From the first request to the last answer."""
    cpu_s: float
    """What the clients used themselves."""
    latencies_s: Sequence[float]


class _Client:
    """One connection, with at most one request on its way."""

    def __init__(self, root: Path) -> None:
        self.connection = connect_local(root / CONTROL_SOCKET)
        self._decoder = FrameDecoder(LOCAL_CLUSTER)
        self._sent_at = 0.0

    def send(self, request: bytes) -> None:
        self._sent_at = time.perf_counter()
        self.connection.sendall(request)  # far smaller than a socket's buffer

    def receive(self) -> float | None:
        """How long the answer took, None while it is not there yet; raises the error that the node answered."""
        data = self.connection.recv(_RECEIVE_BYTES)
        if not data:
            raise UnavailableError("the node closed a connection of the benchmark: see its log")
        self._decoder.feed(data)
        while (message := self._decoder.next_message()) is not None:
            reply = decode_reply(message)
            if isinstance(reply, Error):
                raise reply.exception()
            if isinstance(reply, End):
                return time.perf_counter() - self._sent_at
        return None


def encode_request(command: str, args: Mapping[str, Any]) -> bytes:
    """One admin command as the bytes that a client sends."""
    body = msgspec.msgpack.encode({"command": command, "namespace": "default", "args": dict(args)})
    return encode_message(LOCAL_CLUSTER, encode(Call("admin", body)))


def drive(roots: Sequence[Path], requests: Sequence[bytes], *, clients: int) -> LoadResult:
    """Send all requests over `clients` connections, spread over the nodes on `roots`, and take every answer.

    Raises the error of a node that refuses one, and UnavailableError when a node falls silent.
    """
    with selectors.DefaultSelector() as selector:
        opened = [_Client(roots[index % len(roots)]) for index in range(min(clients, len(requests)))]
        try:
            for client in opened:
                selector.register(client.connection, selectors.EVENT_READ, client)
            return _exchange(selector, opened, requests)
        except (OSError, FrameError) as error:
            raise UnavailableError(f"a node left the benchmark: {error}") from error
        finally:
            for client in opened:
                client.connection.close()


def _exchange(selector: selectors.BaseSelector, clients: Sequence[_Client], requests: Sequence[bytes]) -> LoadResult:
    waiting = iter(requests)
    latencies: list[float] = []
    started, cpu_started = time.perf_counter(), time.process_time()
    for client in clients:
        client.send(next(waiting))
    while len(latencies) < len(requests):
        ready = selector.select(SILENCE_S)
        if not ready:
            raise UnavailableError(f"no node answered for {SILENCE_S:.0f} s")
        for key, _ in ready:
            took_s = key.data.receive()
            if took_s is None:
                continue
            latencies.append(took_s)
            request = next(waiting, None)
            if request is not None:
                key.data.send(request)
    return LoadResult(time.perf_counter() - started, time.process_time() - cpu_started, latencies)
