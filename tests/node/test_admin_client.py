"""The synchronous admin client against a scripted server on a real Unix socket."""

import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from mesh.errors import ConflictError, LimitError, NotFoundError, RelayMeshError, UnavailableError
from mesh.ids import Address
from node import admin_client, identity_files
from node.admin_client import AdminClient, LocalTarget, PeerTarget, call_local
from node.streams.frames import LOCAL_CLUSTER, FrameDecoder, encode_message
from node.streams.local_socket import listening_local
from node.streams.rpc_messages import Call, End, Error, Part, Reply, Tick, decode_call, encode
from node.streams.tls import TlsMaterial, client_context, make_contexts

Script = Callable[[Call], list[Reply] | bytes]


def packed(value: object) -> bytes:
    return msgspec.msgpack.encode(value)


@contextmanager
def server(root: Path, script: Script) -> Iterator[list[Call]]:
    """Answer every request with the script's replies, or with raw bytes and a closed connection."""
    calls: list[Call] = []
    with listening_local(root / "control.sock") as listener, served(listener, LOCAL_CLUSTER, script, calls):
        yield calls


@contextmanager
def served(listener: socket.socket, cluster: bytes, script: Script, calls: list[Call]) -> Iterator[None]:
    listener.settimeout(0.05)
    stopping = threading.Event()
    thread = threading.Thread(target=_serve, args=(listener, cluster, script, calls, stopping))
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join(5)
        assert not thread.is_alive()


def _serve(listener, cluster, script, calls, stopping):
    while not stopping.is_set():
        try:
            connection, _ = listener.accept()
        except (TimeoutError, ssl.SSLError):
            continue
        with connection:
            connection.settimeout(0.05)
            with suppress(OSError):  # the client went away
                _serve_one(connection, cluster, script, calls, stopping)


def _serve_one(connection, cluster, script, calls, stopping):
    decoder = FrameDecoder(cluster)
    while not stopping.is_set():
        try:
            data = connection.recv(65_536)
        except TimeoutError:
            continue
        if not data:
            return
        decoder.feed(data)
        while (message := decoder.next_message()) is not None:
            calls.append(decode_call(message))
            replies = script(calls[-1])
            if isinstance(replies, bytes):
                connection.sendall(replies)
                return
            for reply in replies:
                connection.sendall(encode_message(cluster, encode(reply)))


def test_a_command_travels_with_its_namespace_and_arguments_and_brings_the_answer_home(tmp_path):
    with server(tmp_path, lambda call: [End(packed({"taskId": "tsk_1", "n": [1, None, "x"]}))]) as calls:
        answer = call_local(tmp_path, "task", {"taskId": "tsk_1", "input": b"\xff\x00"}, namespace="blue")
    assert answer == {"taskId": "tsk_1", "n": [1, None, "x"]}
    assert calls[0].verb == "admin"
    assert msgspec.msgpack.decode(calls[0].body) == {
        "command": "task",
        "namespace": "blue",
        "args": {"taskId": "tsk_1", "input": b"\xff\x00"},
    }


def test_ticks_are_waited_through_and_parts_are_joined(tmp_path):
    whole = packed(["x" * 200_000])
    replies = [Tick(), Part(whole[:90_000]), Tick(), End(whole[90_000:])]
    with server(tmp_path, lambda call: replies):
        assert call_local(tmp_path, "logs") == ["x" * 200_000]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("not_found", NotFoundError),
        ("conflict", ConflictError),
        ("limit", LimitError),
        ("busy", UnavailableError),
        ("frame", RelayMeshError),
        ("something-newer", RelayMeshError),
    ],
)
def test_an_error_comes_back_as_its_class_and_the_connection_stays_good(tmp_path, code, kind):
    def script(call: Call) -> list[Reply]:
        wanted = msgspec.msgpack.decode(call.body)["command"]
        return [Error(code, "do this instead")] if wanted == "bad" else [End(packed("fine"))]

    with server(tmp_path, script), AdminClient(LocalTarget(tmp_path)) as client:
        with pytest.raises(kind, match="do this instead"):
            client.call("bad")
        connection = client._connection
        assert client.call("good") == "fine"
        assert client._connection is connection


def test_nobody_there_says_how_to_start_a_node(tmp_path):
    with pytest.raises(UnavailableError, match=f"relaymesh-node --root {tmp_path}"):
        call_local(tmp_path, "members")


@pytest.mark.parametrize(
    "garbage", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00\x00\x00\x01" + bytes(9) + b"\xc1"]
)
def test_a_broken_answer_is_unavailable_and_the_next_call_dials_anew(tmp_path, garbage):
    answers: list[list[Reply] | bytes] = [garbage, [End(packed(1))]]
    with server(tmp_path, lambda call: answers.pop(0)), AdminClient(LocalTarget(tmp_path)) as client:
        with pytest.raises(UnavailableError, match="'members' did not arrive"):
            client.call("members")
        assert client.call("members") == 1


def test_a_silent_node_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(admin_client, "SILENCE_S", 0.1)
    with server(tmp_path, lambda call: []), pytest.raises(UnavailableError, match="silent"):
        call_local(tmp_path, "members")


def test_a_root_deeper_than_a_socket_address_is_reached(tmp_path):
    root = tmp_path / ("deep" * 20) / ("deeper" * 10)
    root.mkdir(parents=True)
    with server(root, lambda call: [End(packed("here"))]):
        assert call_local(root, "version") == "here"


def test_an_oversized_request_is_refused_before_anything_is_sent(tmp_path):
    with server(tmp_path, lambda call: [End(packed(1))]) as calls:
        with pytest.raises(LimitError):
            call_local(tmp_path, "submit", {"input": bytes(21 * 1024 * 1024)})
        assert calls == []


def test_the_client_does_not_load_trio():
    code = "import sys, node.admin_client; sys.exit('trio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- over TLS ---


@pytest.fixture
def enrol(tmp_path):
    """Make an identity of one of several meshes."""

    def enrolled(mesh: str, **who: str) -> TlsMaterial:
        if not (tmp_path / mesh).exists():
            identity_files.create_mesh(tmp_path / mesh)
        out = tmp_path / f"{mesh}-{'-'.join(who.values())}"
        identity_files.enroll(tmp_path / mesh, out=out, **who)
        return identity_files.read_enrolment(out).tls_material

    return enrolled


@contextmanager
def tls_server(material: TlsMaterial) -> Iterator[Address]:
    with socket.create_server(("127.0.0.1", 0)) as plain:
        secure = make_contexts(material).server.wrap_socket(plain, server_side=True)
        with secure, served(secure, material.cluster, lambda call: [End(packed("hello"))], []):
            yield Address(*secure.getsockname())


def ask(address: Address, material: TlsMaterial) -> object:
    with AdminClient(PeerTarget(address, material.cluster, client_context(material))) as client:
        return client.call("version")


def test_an_operator_asks_any_node_of_its_mesh(enrol):
    with tls_server(enrol("ours", node_id="node-a")) as address:
        assert ask(address, enrol("ours", operator="olga")) == "hello"


@pytest.mark.parametrize(("mesh", "who"), [("theirs", {"node_id": "node-a"}), ("ours", {"operator": "mallory"})])
def test_a_server_that_is_no_node_of_the_mesh_gets_no_request(enrol, mesh, who):
    with tls_server(enrol(mesh, **who)) as address, pytest.raises(UnavailableError, match="did not prove"):
        ask(address, enrol("ours", operator="olga"))


def test_a_port_where_nobody_listens_is_named(enrol):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = Address(*listener.getsockname())
    with pytest.raises(UnavailableError, match=str(address)):
        ask(address, enrol("ours", operator="olga"))
