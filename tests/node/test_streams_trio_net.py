"""Real sockets: both ends prove themselves, and whoever does not is refused without hurting anybody else."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import socket
import ssl
import stat
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from mesh.authorities import Reissued, add, promote, retire
from mesh.errors import ConfigError, UnavailableError
from mesh.ids import Address
from node.env import PeerIdentity
from node.identity_files import Enrolment, create_mesh, enroll, tls_material
from node.streams import rpc_messages, trio_net
from node.streams.frames import LOCAL_CLUSTER
from node.streams.framing import FramedStream
from node.streams.local_socket import SOCKET_PATH_BYTES_MAX, connect_local
from node.streams.rpc import RpcPool, RpcServer, Verb
from node.streams.tls import client_context, make_contexts, san_uri
from node.streams.trio_net import TrioNet
from node.x509_certificates import (
    der_of,
    load_private_key,
    make_ca,
    make_cross,
    make_leaf,
    names_of,
    pem_of,
    private_key_pem,
)

ANY_PORT = Address("127.0.0.2", 0)

Enroll = Callable[[str], Enrolment]


def enroller(directory: Path) -> Enroll:
    create_mesh(directory / "mesh")
    made: dict[str, Enrolment] = {}

    def get(name: str) -> Enrolment:
        if name not in made:
            person = {"operator": name} if name.startswith("op-") else {"node_id": name}
            made[name] = enroll(directory / "mesh", out=directory / f"{name}.json", **person)
        return made[name]

    return get


@pytest.fixture(scope="module")
def enrolled(tmp_path_factory: pytest.TempPathFactory) -> Enroll:
    """The enrolment of a name in one mesh; names beginning with `op-` are operators."""
    return enroller(tmp_path_factory.mktemp("our-mesh"))


@pytest.fixture(scope="module")
def enrolled_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Enroll:
    """The same in a foreign mesh."""
    return enroller(tmp_path_factory.mktemp("foreign-mesh"))


def net_of(enrolment, source_host=None) -> TrioNet:
    return TrioNet(make_contexts(enrolment.tls_material), source_host=source_host)


async def greet(stream) -> None:
    """Say who was recognised, then echo until the end."""
    await stream.send_all(f"{stream.peer.role} {stream.peer.name} {stream.peer.enrolment};".encode())
    while data := await stream.receive_some(65_536):
        await stream.send_all(data)


@contextlib.asynccontextmanager
async def serving(net, handler=greet):
    async with trio.open_nursery() as nursery:
        yield await nursery.start(net.serve, ANY_PORT, handler)
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], object]) -> None:
    """Wait for what another task or the kernel is about to do."""
    with trio.fail_after(5):
        while not condition():  # noqa: ASYNC110 - the condition is not ours to signal
            await trio.sleep(0.01)


async def still_serves(net: TrioNet, address: Address) -> bool:
    stream = await net.connect(address)
    with trio.fail_after(5):
        greeting = await stream.receive_some(1000)
    await stream.aclose()
    return greeting.startswith(b"node ")


async def test_both_ends_learn_who_the_other_is(enrolled):
    a, b = enrolled("node-a"), enrolled("node-b")
    async with serving(net_of(a)) as address:
        stream = await net_of(b).connect(address)
        assert (stream.peer.role, stream.peer.name, stream.peer.enrolment) == ("node", "node-a", a.enrolment)
        assert (stream.peer.serial, stream.peer.fingerprint) == names_of(a.tls_certificate_pem)
        assert await stream.receive_some(1000) == f"node node-b {b.enrolment};".encode()
        await stream.aclose()
        operator = await net_of(enrolled("op-ann")).connect(address)
        assert await operator.receive_some(1000) == b"operator op-ann 1;"
        await operator.aclose()


async def test_outgoing_streams_leave_from_the_chosen_address(enrolled):
    sources = []

    async def note(stream) -> None:
        sources.append(stream._ssl.transport_stream.socket.getpeername()[0])
        await stream.send_all(b"x")

    async with serving(net_of(enrolled("node-a")), note) as address:
        for host in ("127.0.0.3", "0.0.0.0"):
            stream = await net_of(enrolled("node-b"), host).connect(address)
            await stream.receive_some(1)
            await stream.aclose()
    assert sources[0] == "127.0.0.3"
    assert sources[1] != "0.0.0.0"


async def test_a_peer_of_another_mesh_is_refused_at_both_ends(enrolled, enrolled_elsewhere):
    ours, theirs = net_of(enrolled("node-a")), net_of(enrolled_elsewhere("node-a"))
    async with serving(ours) as address:
        with pytest.raises(UnavailableError, match=rf"{address} does not prove .*certificate refused"):
            await theirs.connect(address)
        assert await still_serves(net_of(enrolled("node-b")), address)
    assert ours.refused == {"handshake-failed": 1}


@pytest.mark.parametrize("certificate", ["none", "foreign"])
async def test_a_client_that_proves_nothing_reaches_no_handler(enrolled, enrolled_elsewhere, certificate):
    seen = []

    async def note(stream) -> None:
        seen.append(stream.peer)
        await greet(stream)

    ours = net_of(enrolled("node-a"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if certificate == "foreign":
        context = client_context(enrolled_elsewhere("node-b").tls_material)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    async with serving(ours, note) as address:
        stream = trio.SSLStream(await trio.open_tcp_stream(*address), context)
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(b"hello")
            assert await stream.receive_some(1000) == b""
        await trio.aclose_forcefully(stream)
        assert seen == []
        assert await still_serves(net_of(enrolled("node-b")), address)
    assert ours.refused == {"handshake-failed": 1}


async def test_the_pool_names_a_server_that_refuses_our_certificate(enrolled, enrolled_elsewhere):
    # The client trusts our CA but shows a foreign certificate: under TLS 1.3 it learns of the refusal when it reads.
    ours, foreign = enrolled("node-a").tls_material, enrolled_elsewhere("node-b").tls_material
    mixed = type(ours)(ours.cluster, foreign.certificate_pem, foreign.private_key_pem, ours.ca_pem)
    server = RpcServer({}, cluster=ours.cluster)
    async with serving(net_of(enrolled("node-a")), server.handle) as address:
        pool = RpcPool(TrioNet(make_contexts(mixed)), ours.cluster)
        with pytest.raises(UnavailableError, match=rf"{address} \(echo\).*may not accept this identity"):
            await pool.call(address, "echo", b"")


async def test_older_tls_is_refused(enrolled):
    ours = net_of(enrolled("node-a"))
    context = client_context(enrolled("node-b").tls_material)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with serving(ours) as address:
        stream = trio.SSLStream(await trio.open_tcp_stream(*address), context)
        with pytest.raises(trio.BrokenResourceError):
            await stream.do_handshake()
        await trio.aclose_forcefully(stream)
    assert ours.refused == {"handshake-failed": 1}


async def test_plaintext_and_noise_are_refused_and_the_server_goes_on(enrolled, caplog):
    ours = net_of(enrolled("node-a"))
    rng = random.Random(3)
    async with serving(ours) as address:
        for data in [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", *(rng.randbytes(200) for _ in range(20))]:
            async with await trio.open_tcp_stream(*address) as stream:
                await stream.send_all(data)
                await stream.send_eof()
                with contextlib.suppress(trio.BrokenResourceError):
                    while await stream.receive_some():
                        pass
        assert await still_serves(net_of(enrolled("node-b")), address)
    assert ours.refused == {"handshake-failed": 21}
    # A host that redials for ever is worth one line a minute.
    assert caplog.text.count("refused a connection from 127.0.0.") == 1


async def test_a_peer_that_says_nothing_is_given_up(enrolled, monkeypatch):
    monkeypatch.setattr(trio_net, "HANDSHAKE_S", 0.15)
    ours = net_of(enrolled("node-a"))
    async with serving(ours) as address:
        async with await trio.open_tcp_stream(*address) as silent:
            with trio.fail_after(3):
                assert await silent.receive_some() == b""
        assert await still_serves(net_of(enrolled("node-b")), address)
    assert ours.refused == {"handshake-timeout": 1}


async def test_a_server_that_says_nothing_is_given_up(enrolled, monkeypatch):
    monkeypatch.setattr(trio_net, "HANDSHAKE_S", 0.15)
    with socket.create_server(("127.0.0.2", 0)) as mute:
        address = Address(*mute.getsockname())
        with pytest.raises(UnavailableError, match=rf"{address} did not answer within 0.15 s"):
            await net_of(enrolled("node-a")).connect(address)


async def test_where_nobody_listens_the_reason_is_named(enrolled):
    with socket.socket() as unused:
        unused.bind(("127.0.0.2", 0))
        address = Address(*unused.getsockname())
        with pytest.raises(UnavailableError, match=rf"{address} cannot be reached: .*Connection refused"):
            await net_of(enrolled("node-a"), "127.0.0.3").connect(address)
    with pytest.raises(UnavailableError, match="cannot be reached"):
        await net_of(enrolled("node-a")).connect(Address("no-such-host.invalid", 1))


async def test_a_taken_port_and_a_foreign_address_are_configuration_errors(enrolled):
    ours = net_of(enrolled("node-a"))
    async with serving(ours) as address:
        with pytest.raises(ConfigError, match=rf"{address} is already in use: .*another port"):
            await ours.serve(address, greet)
    with pytest.raises(ConfigError, match="no address of this host"):
        await ours.serve(Address("192.0.2.1", 18443), greet)


async def test_a_handler_that_fails_ends_only_its_own_connection(enrolled, caplog):
    async def fail(stream) -> None:
        if stream.peer.name == "node-b":
            raise ValueError("a bug")
        await greet(stream)

    async with serving(net_of(enrolled("node-a")), fail) as address:
        stream = await net_of(enrolled("node-b")).connect(address)
        with trio.fail_after(5):
            assert await stream.receive_some(10) == b""
        await stream.aclose()
        assert await still_serves(net_of(enrolled("node-c")), address)
    assert "a bug" in caplog.text


async def test_unproven_connections_have_a_limit_of_their_own(enrolled, monkeypatch):
    monkeypatch.setattr(trio_net, "HANDSHAKES_MAX", 3)
    ours = net_of(enrolled("node-a"))
    async with serving(ours) as address:
        idle = [await trio.open_tcp_stream(*address) for _ in range(3)]
        await until(lambda: ours._handshakes.total() == 3)
        with pytest.raises(UnavailableError):
            await net_of(enrolled("node-b")).connect(address)
        assert ours.refused == {"too-many-handshakes": 1}
        await idle[0].aclose()
        await until(lambda: ours._handshakes.total() < 3)
        assert await still_serves(net_of(enrolled("node-b")), address)
        for stream in idle:
            await stream.aclose()


async def test_one_host_cannot_take_all_the_room_for_unproven_connections(enrolled, monkeypatch):
    monkeypatch.setattr(trio_net, "HANDSHAKES_PER_HOST_MAX", 3)
    ours = net_of(enrolled("node-a"))
    async with serving(ours) as address:
        idle = [await trio.open_tcp_stream(*address, local_address="127.0.0.9") for _ in range(3)]
        await until(lambda: ours._handshakes == {"127.0.0.9": 3})
        one_more = await trio.open_tcp_stream(*address, local_address="127.0.0.9")
        assert await one_more.receive_some(1) == b""
        assert ours.refused == {"too-many-handshakes": 1}
        assert await still_serves(net_of(enrolled("node-b")), address)
        for stream in (*idle, one_more):
            await stream.aclose()
        await until(lambda: not ours._handshakes)


async def test_a_server_out_of_descriptors_waits_and_goes_on(enrolled, caplog):
    async with serving(net_of(enrolled("node-a"))) as address:
        client = net_of(enrolled("node-b"))
        assert await still_serves(client, address)
        sock = trio.socket.socket()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        holes = [os.dup(0) for _ in range(highest + 1 - len(os.listdir("/proc/self/fd")) + 1)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(*holes, highest) + 1 if holes else highest + 1, hard))
        try:
            await sock.connect(address)
            await until(lambda: "Too many open files" in caplog.text)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for hole in holes:
                os.close(hole)
        sock.close()
        assert await still_serves(client, address)


@pytest.mark.slow
async def test_three_hundred_connections_leave_a_working_server(enrolled):
    async def echo(peer, body, send):
        return body

    server = RpcServer({"echo": Verb(echo)}, cluster=enrolled("node-a").cluster, connections_max=256)
    answered, refused, streams = [], [], []

    async def one(number: int) -> None:
        pool = RpcPool(net_of(enrolled("node-b")), enrolled("node-b").cluster)
        try:
            answered.append(await pool.call(address, "echo", str(number).encode()))
        except UnavailableError as error:
            refused.append(str(error))
        streams.extend(pool._kept.values())

    async with serving(net_of(enrolled("node-a")), server.handle) as address:
        with trio.fail_after(30):
            for start in range(0, 300, 50):
                async with trio.open_nursery() as nursery:
                    for number in range(start, start + 50):
                        nursery.start_soon(one, number)
            assert len(answered) == 256
            assert len(refused) == 44
            assert server.connections == 256
            for kept in streams:
                await kept.framed.aclose()
            await until(lambda: not server.connections)
            pool = RpcPool(net_of(enrolled("node-b")), enrolled("node-b").cluster)
            assert await pool.call(address, "echo", b"room again") == b"room again"
            for kept in pool._kept.values():
                await kept.framed.aclose()


async def test_a_large_message_passes_over_tls_in_both_directions(enrolled):
    async def echo(peer, body, send):
        await send(body)
        return body

    parts = []

    async def on_part(part: bytes) -> None:
        await trio.lowlevel.checkpoint()
        parts.append(part)

    cluster = enrolled("node-a").cluster
    body = random.Random(1).randbytes(3_000_000)
    async with serving(net_of(enrolled("node-a")), RpcServer({"echo": Verb(echo)}, cluster=cluster).handle) as address:
        pool = RpcPool(net_of(enrolled("node-b")), cluster)
        assert await pool.call(address, "echo", body, expect="node-a", on_part=on_part) == body
        assert parts == [body]
        for kept in pool._kept.values():
            await kept.framed.aclose()


async def test_a_killed_peer_cancels_the_handler_over_tls(enrolled):
    started, ended = trio.Event(), trio.Event()

    async def wait(peer, body, send):
        started.set()
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    cluster = enrolled("node-a").cluster
    async with serving(net_of(enrolled("node-a")), RpcServer({"wait": Verb(wait)}, cluster=cluster).handle) as address:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(RpcPool(net_of(enrolled("node-b")), cluster).call, address, "wait", b"")
            await started.wait()
            nursery.cancel_scope.cancel()
        with trio.fail_after(5):
            await ended.wait()


# --- the control socket -----------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def serving_local(net, path, handler=greet):
    async with trio.open_nursery() as nursery:
        await nursery.start(net.serve_local, path, handler)
        yield
        nursery.cancel_scope.cancel()


async def local_greeting(path: Path) -> bytes:
    sock = await trio.to_thread.run_sync(connect_local, path)
    sock.setblocking(False)
    async with trio.SocketStream(trio.socket.from_stdlib_socket(sock)) as stream:
        with trio.fail_after(5):
            return bytes(await stream.receive_some(1000))


async def test_the_control_socket_is_private_and_knows_its_user(enrolled, tmp_path):
    path = tmp_path / "control.sock"
    async with serving_local(net_of(enrolled("node-a")), path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert await local_greeting(path) == f"local uid-{os.geteuid()} 0;".encode()
    assert not path.exists()


async def test_a_control_socket_may_lie_deeper_than_the_kernel_allows(enrolled, tmp_path):
    directory = tmp_path / ("d" * 100) / ("e" * 100)
    directory.mkdir(parents=True)
    path = directory / "control.sock"
    assert len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX
    async with serving_local(net_of(enrolled("node-a")), path):
        assert await local_greeting(path) == f"local uid-{os.geteuid()} 0;".encode()
    assert not path.exists()


@pytest.mark.parametrize("length", [SOCKET_PATH_BYTES_MAX, SOCKET_PATH_BYTES_MAX + 1])
async def test_a_socket_path_at_the_kernels_limit_and_one_past_it(enrolled, length):
    with tempfile.TemporaryDirectory(prefix="rm-", dir="/tmp") as short:
        directory = Path(short) / ("d" * (length - len(short) - len("//control.sock")))
        directory.mkdir()
        path = directory / "control.sock"
        assert len(os.fsencode(path)) == length
        async with serving_local(net_of(enrolled("node-a")), path):
            assert (await local_greeting(path)).startswith(b"local")


async def test_a_socket_left_by_a_crash_is_replaced(enrolled, tmp_path):
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.is_socket()
    async with serving_local(net_of(enrolled("node-a")), path):
        assert (await local_greeting(path)).startswith(b"local")


async def test_a_living_node_keeps_its_socket(enrolled, tmp_path):
    path = tmp_path / "control.sock"
    net = net_of(enrolled("node-a"))
    async with serving_local(net, path):
        with pytest.raises(ConfigError, match="another relaymesh-node runs on this root"):
            await net.serve_local(path, greet)
        assert (await local_greeting(path)).startswith(b"local")


async def test_a_file_in_the_way_is_not_deleted(enrolled, tmp_path):
    path = tmp_path / "control.sock"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="in the way"):
        await net_of(enrolled("node-a")).serve_local(path, greet)
    assert path.read_text() == "mine"
    with pytest.raises(ConfigError, match="cannot listen"):
        await net_of(enrolled("node-a")).serve_local(tmp_path / "absent" / "control.sock", greet)


async def test_another_user_of_the_host_is_refused(enrolled, tmp_path, monkeypatch, caplog):
    path = tmp_path / "control.sock"
    net = net_of(enrolled("node-a"))
    async with serving_local(net, path):
        monkeypatch.setattr(trio_net, "_peer_uid", lambda _: 4711)
        assert await local_greeting(path) == b""
        assert net.refused == {"foreign-user": 1}
        assert "user id 4711" in caplog.text


async def test_requests_over_the_control_socket(enrolled, tmp_path):
    async def echo(peer, body, send):
        return f"{peer.role}:".encode() + body

    server = RpcServer({"echo": Verb(echo, roles=("local",))}, cluster=enrolled("node-a").cluster)
    path = tmp_path / "control.sock"
    async with serving_local(net_of(enrolled("node-a")), path, server.handle):
        sock = await trio.to_thread.run_sync(connect_local, path)
        sock.setblocking(False)
        stream = trio_net.LocalStream(
            trio.SocketStream(trio.socket.from_stdlib_socket(sock)), PeerIdentity("local", "me")
        )
        framed = FramedStream(stream, LOCAL_CLUSTER)
        for _ in range(3):
            await framed.send(rpc_messages.encode(rpc_messages.Call("echo", b"hi")))
            assert rpc_messages.decode_reply(await framed.receive()) == rpc_messages.End(b"local:hi")
        await framed.aclose()


async def test_ending_a_stream_waits_only_briefly_for_a_stalled_peer(enrolled, monkeypatch):
    monkeypatch.setattr(trio_net, "_CLOSE_S", 0.1)

    async def read_nothing(stream) -> None:
        await trio.sleep_forever()

    async with serving(net_of(enrolled("node-a")), read_nothing) as address:
        stream = await net_of(enrolled("node-b")).connect(address)
        descriptor = stream._ssl.transport_stream.socket.fileno()
        with contextlib.suppress(BlockingIOError):
            while True:  # below TLS, so that its goodbye finds the kernel's buffers full
                os.write(descriptor, bytes(65_536))
        with trio.fail_after(5):
            await stream.aclose()


# --- when the mesh's CA is rotated ---


class Rotated:
    """The enrolments of one mesh, in the forms that TLS has before and after its CA was rotated twice."""

    def __init__(self, directory: Path) -> None:
        create_mesh(directory / "mesh")
        self.a = enroll(directory / "mesh", node_id="node-a", out=directory / "a")
        self.b = enroll(directory / "mesh", node_id="node-b", out=directory / "b")
        self.lists = [self.a.authorities]
        self.keys = [load_private_key((directory / "mesh" / "ca-key.pem").read_text())]
        for _ in range(2):
            self._rotate()

    def _rotate(self) -> None:
        key, former, now = Ed25519PrivateKey.generate(), self.keys[-1], self.lists[-1]
        pem = make_ca(key, name=f"RelayMesh {self.a.cluster.hex()}")
        cross = der_of(make_cross(former, pem_of(now.signing.root), key.public_key()))
        added = add(now, former, key.public_key().public_bytes_raw(), root=der_of(pem), cross=cross)
        reissued = [Reissued(each.certificate, self._leaf(each, key, pem)) for each in (self.a, self.b)]
        self.keys.append(key)
        self.lists.append(retire(promote(added, added.cas[-1].name, reissued), now.signing.name, reissued))

    def _leaf(self, of: Enrolment, key: Ed25519PrivateKey, pem: str) -> bytes:
        public_key = Ed25519PublicKey.from_public_bytes(of.certificate.public_key)
        uri = san_uri(of.cluster, "node", of.name, of.enrolment)
        return der_of(make_leaf(key, pem, public_key=public_key, name=of.name, uri=uri))

    def net(self, enrolment: Enrolment, rotations: int) -> TrioNet:
        """Of a node that knows of this many rotations."""
        return TrioNet(make_contexts(tls_material(enrolment, self.lists[rotations])))

    def ca(self, number: int) -> bytes:
        return self.lists[-1].cas[number].public_key


@pytest.fixture(scope="module")
def rotated(tmp_path_factory: pytest.TempPathFactory) -> Rotated:
    return Rotated(tmp_path_factory.mktemp("rotated"))


async def who_came(rotated: Rotated, serving_knows: int, dialling_knows: int) -> tuple[PeerIdentity, PeerIdentity]:
    """Whom the server saw, and whom the dialling side."""
    seen: list[PeerIdentity] = []

    async def note(stream) -> None:
        seen.append(stream.peer)
        await greet(stream)

    async with serving(rotated.net(rotated.a, serving_knows), note) as address:
        stream = await rotated.net(rotated.b, dialling_knows).connect(address)
        with trio.fail_after(5):
            assert (await stream.receive_some(1000)).startswith(b"node node-b 1;")
        await stream.aclose()
    return seen[0], stream.peer


async def test_who_missed_every_rotation_reaches_who_did_not_and_is_known_by_its_former_ca(rotated):
    served, dialled = await who_came(rotated, serving_knows=2, dialling_knows=0)
    assert (served.ca_public_key, served.public_key) == (rotated.ca(0), rotated.b.certificate.public_key)
    assert dialled.ca_public_key is None  # the chain says that it holds; which CA it is of is not known yet
    served, dialled = await who_came(rotated, serving_knows=2, dialling_knows=1)
    assert (served.ca_public_key, dialled.ca_public_key) == (rotated.ca(1), None)
    served, dialled = await who_came(rotated, serving_knows=2, dialling_knows=2)
    assert (served.ca_public_key, dialled.ca_public_key) == (rotated.ca(2), rotated.ca(2))


async def test_a_server_that_is_behind_says_that_it_does_not_know_the_ca(rotated):
    assert (await who_came(rotated, serving_knows=0, dialling_knows=0))[0].ca_public_key == rotated.ca(0)
    async with serving(rotated.net(rotated.a, 1)) as address:
        with pytest.raises(UnavailableError, match="certificate refused"):  # we follow no retired CA of others
            await rotated.net(rotated.b, 2).connect(address)


async def test_a_chain_that_a_retired_ca_vouches_for_proves_nothing(rotated):
    # With the first CA's key one can make a CA, and with that a leaf: OpenSSL follows both to a root it was given.
    mine, key = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    chain = make_cross(rotated.keys[0], pem_of(rotated.lists[0].signing.root), mine.public_key())
    uri = san_uri(rotated.a.cluster, "node", "node-b", 1)
    leaf = make_leaf(mine, chain, public_key=key.public_key(), name="node-b", uri=uri)
    known = tls_material(rotated.b, rotated.lists[2])
    forged = replace(known, certificate_pem=leaf, private_key_pem=private_key_pem(key), chain_pem=chain)
    seen: list[PeerIdentity] = []

    async def note(stream) -> None:
        seen.append(stream.peer)

    async with serving(rotated.net(rotated.a, 2), note) as address:
        stream = await TrioNet(make_contexts(forged)).connect(address)
        await until(lambda: seen)
        await stream.aclose()
        assert seen[0].ca_public_key == b""  # of no CA that is known: refused where anything was retired
        assert seen[0].public_key == key.public_key().public_bytes_raw()
    async with serving(TrioNet(make_contexts(forged)), note) as address:
        with pytest.raises(UnavailableError, match="certificate refused"):
            await rotated.net(rotated.a, 2).connect(address)
