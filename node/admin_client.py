"""Asks a running node for admin commands, synchronously: for command lines, benchmarks and test clusters.

It promises that an answer comes from a node of the mesh (or from the owner of the local control socket), that errors
come back as the exception classes of `mesh.errors`, and that a silent peer is given up after `SILENCE_S`. It imports no
Trio, and TLS only for peers, so that a command line starts quickly.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import msgspec

from mesh.errors import FrameError, RecordError, UnavailableError
from mesh.ids import Address
from mesh.protocol import this_release
from node.streams.frames import LOCAL_CLUSTER, FrameDecoder, encode_message
from node.streams.local_socket import connect_local
from node.streams.rpc_messages import SILENCE_S, Call, End, Error, Part, decode_reply, encode

if TYPE_CHECKING:
    import ssl

CONTROL_SOCKET = "control.sock"
CONNECT_S = 5.0
ANSWER_BYTES_MAX = 64 * 1024 * 1024  # one message; a task shows the results of all its steps
_RECEIVE_BYTES = 64 * 1024


class Target(Protocol):
    """Where a node can be asked."""

    @property
    def cluster(self) -> bytes:
        """The cluster id that every frame must carry."""
        ...

    def connect(self) -> socket.socket:
        """Open an authenticated connection, or raise UnavailableError saying why there is none."""
        ...


@dataclass(frozen=True, slots=True)
class LocalTarget:
    """The node of this host that runs on `root`, reached by its control socket."""

    root: Path

    @property
    def cluster(self) -> bytes:
        """Local frames carry the reserved all-zero cluster id."""
        return LOCAL_CLUSTER

    def connect(self) -> socket.socket:
        """Connect to `<root>/control.sock`."""
        path = self.root / CONTROL_SOCKET
        try:
            return connect_local(path, timeout_s=CONNECT_S)
        except PermissionError as error:
            raise UnavailableError(f"{path} belongs to another user: run this as the user who runs the node") from error
        except OSError as error:
            raise UnavailableError(
                f"no node answers at {path} ({error.strerror or error}): start one with "
                f"`relaymesh-node --root {self.root}`, or give --peer HOST:PORT"
            ) from error


@dataclass(frozen=True, slots=True)
class PeerTarget:
    """Any node of the mesh, reached by TLS at its stream address with the identity of an enrolment."""

    address: Address
    cluster: bytes
    context: ssl.SSLContext
    """Our identity and the mesh's CA as the only trust: `node.streams.tls.client_context`."""

    def connect(self) -> socket.socket:
        """Connect, prove who we are, and check that the other side is a node of the same mesh."""
        from node.streams.tls import peer_name  # brings in OpenSSL, which the control socket does without

        try:
            plain = socket.create_connection(self.address, timeout=CONNECT_S)
        except OSError as error:
            raise UnavailableError(
                f"no node answers at {self.address} ({error.strerror or error}): give the stream address of a running "
                "node (its --rpc-bind; `members` shows all)"
            ) from error
        secure: ssl.SSLSocket | None = None
        try:
            secure = self.context.wrap_socket(plain)
            if peer_name(secure.getpeercert(), self.cluster).role != "node":
                raise RecordError("it is an operator")
            return secure
        except (OSError, RecordError) as error:
            (secure or plain).close()
            raise UnavailableError(
                f"{self.address} did not prove to be a node of this mesh ({error}): check the address and the identity"
            ) from error


class AdminClient:
    """One connection to one node. Not for use by several threads at once."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._connection: socket.socket | None = None
        self._decoder = FrameDecoder(target.cluster, message_bytes_max=ANSWER_BYTES_MAX)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connection; the next call opens another."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None
        self._decoder = FrameDecoder(self._target.cluster, message_bytes_max=ANSWER_BYTES_MAX)

    def call(self, command: str, args: Mapping[str, Any] | None = None, *, namespace: str = "default") -> Any:
        """The node's answer to one admin command: plain JSON-able values.

        Raises the class of `mesh.errors` that the node named. UnavailableError may also mean that the connection broke
        after the node acted: repeat only what carries an idempotency key or changes nothing.
        """
        body = msgspec.msgpack.encode({"command": command, "namespace": namespace, "args": dict(args or {})})
        return self.exchange(command, body)

    def exchange(self, command: str, body: bytes) -> Any:
        """The same for a request that is encoded already; `command` is for the texts of errors."""
        opening = this_release() if self._connection is None else None
        request = encode_message(self._target.cluster, encode(Call("admin", body, opening)))
        connection = self._connection = self._connection or self._target.connect()
        connection.settimeout(SILENCE_S)
        try:
            connection.sendall(request)
            answer = self._receive_answer(connection)
        except (OSError, FrameError) as error:
            self.close()
            raise UnavailableError(f"the node's answer to {command!r} did not arrive: {_cause(error)}") from error
        except BaseException:
            self.close()
            raise
        if isinstance(answer, Error):
            raise answer.exception()
        return msgspec.msgpack.decode(answer)

    def _receive_answer(self, connection: socket.socket) -> bytes | Error:
        parts: list[bytes] = []
        while True:
            match decode_reply(self._receive_message(connection)):
                case Part(body):
                    parts.append(body)
                case End(body):
                    return b"".join([*parts, body])
                case Error() as error:
                    return error
                case _:
                    pass  # a tick, since it works on the request, or a hello: a node refuses us where we do not match

    def _receive_message(self, connection: socket.socket) -> bytes:
        while True:
            message = self._decoder.next_message()
            if message is not None:
                return message
            data = connection.recv(_RECEIVE_BYTES)
            if not data:
                raise FrameError("the node closed the connection")
            self._decoder.feed(data)


def call_local(root: Path, command: str, args: Mapping[str, Any] | None = None, *, namespace: str = "default") -> Any:
    """One command to the local node on `root`, over a connection of its own."""
    with AdminClient(LocalTarget(root)) as client:
        return client.call(command, args, namespace=namespace)


def _cause(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"it was silent for {SILENCE_S:.0f} s"
    return str(error) or type(error).__name__
