"""A node that answers from a script, on a real Unix socket, and a way to run `relaymesh` against it in this process."""

from __future__ import annotations

import dataclasses
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from mesh.errors import RelayMeshError
from node.streams.frames import LOCAL_CLUSTER, FrameDecoder, encode_message
from node.streams.rpc_messages import End, Error, Tick, decode_call, encode, error_code
from tools.cli import app


@dataclasses.dataclass
class FakeNode:
    """`answers[command]` is a value, an exception of mesh.errors, or a function of the arguments giving either."""

    root: Path
    answers: dict[str, Any]
    calls: list[dict[str, Any]]
    drop_next: int = 0
    """So many requests are cut off before an answer."""

    def args(self, command: str) -> dict[str, Any]:
        """The arguments of the only call of this command."""
        (call,) = [call for call in self.calls if call["command"] == command]
        return call["args"]

    def answer(self, body: bytes) -> End | Error:
        request = msgspec.msgpack.decode(body)
        self.calls.append(request)
        answer = self.answers[request["command"]]
        answer = answer(request["args"]) if callable(answer) else answer
        if isinstance(answer, RelayMeshError):
            return Error(error_code(answer), str(answer))
        return End(msgspec.msgpack.encode(answer))


@contextmanager
def _serving(listener: socket.socket, serve: Callable[[socket.socket], None]) -> Iterator[None]:
    """Accept connections in a thread, one after another, until the block ends."""

    def accept_all() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                serve(connection)

    listener.listen()
    thread = threading.Thread(target=accept_all)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)
        assert not thread.is_alive()


def _serve_requests(connection: socket.socket, node: FakeNode, cluster: bytes) -> None:
    decoder = FrameDecoder(cluster)
    while data := connection.recv(65_536):
        decoder.feed(data)
        while (message := decoder.next_message()) is not None:
            if node.drop_next:
                node.drop_next -= 1
                return
            call = decode_call(message)
            assert call.verb == "admin"
            for reply in (Tick(), node.answer(call.body)):
                connection.sendall(encode_message(cluster, encode(reply)))


@pytest.fixture
def fake_node(tmp_path: Path) -> Iterator[FakeNode]:
    node = FakeNode(tmp_path, answers={}, calls=[])
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(tmp_path / "control.sock"))
    with _serving(listener, lambda connection: _serve_requests(connection, node, LOCAL_CLUSTER)):
        yield node


@pytest.fixture
def serving() -> Callable[..., Any]:
    return _serving


@pytest.fixture
def serve_requests() -> Callable[..., None]:
    return _serve_requests


@dataclasses.dataclass
class Ran:
    code: int
    out: str
    raw: bytes
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def relaymesh(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    for name in ("RELAYMESH_ROOT", "RELAYMESH_PEER", "RELAYMESH_IDENTITY"):
        monkeypatch.delenv(name, raising=False)

    def run(*args: str | Path, stdin: bytes = b"") -> Ran:
        result = CliRunner().invoke(app, [str(arg) for arg in args], input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Ran(result.exit_code, result.stdout, result.stdout_bytes, result.stderr)

    return run
