"""The real network: UDP, mutual TLS over TCP, and the control socket. Implements `Net` of node/env.py.

A connection that does not prove itself within `HANDSHAKE_S` is closed and counted. Nothing that one connection does
ends the server.
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import ssl
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import trio

from mesh.errors import RecordError, UnavailableError
from mesh.ids import Address
from node.datagrams import UdpSocket, bind_error, bind_udp
from node.env import PeerIdentity, SecureStream
from node.streams.local_socket import listening_local
from node.streams.tls import PeerName, TlsContexts, failure_text, peer_name
from node.x509_certificates import signer_of

log = logging.getLogger(__name__)

HANDSHAKE_S = 5.0
"""TCP connect and TLS handshake together; six round trips of a second each do not make a usable link."""
HANDSHAKES_MAX = 128
"""Connections at once that have proven nothing yet. A whole mesh of 100 may dial one node in the same moment."""
HANDSHAKES_PER_HOST_MAX = 32
"""Of these from one host: whoever opens connections and proves nothing takes only a part of the room."""
_CLOSE_S = 1.0  # a close-notify waits this long for room in a stalled peer's window
_BACKLOG = 128
_LOG_EVERY_S = 60.0
_LOG_HOSTS_MAX = 256

Handler = Callable[[SecureStream], Awaitable[object]]


class TlsStream:
    """A `SecureStream` on TLS 1.3. Created by `TrioNet` after the handshake."""

    __slots__ = ("_peer", "_ssl")

    def __init__(self, stream: trio.SSLStream[trio.SocketStream], peer: PeerIdentity) -> None:
        self._ssl = stream
        self._peer = peer

    @property
    def peer(self) -> PeerIdentity:
        """The holder of the verified certificate."""
        return self._peer

    async def send_all(self, data: bytes) -> None:
        """Send all bytes, or raise trio.BrokenResourceError."""
        await self._ssl.send_all(data)

    async def receive_some(self, max_bytes: int) -> bytes:
        """The next bytes; empty when the peer closed the stream. A connection cut without TLS's goodbye raises."""
        return bytes(await self._ssl.receive_some(max_bytes))

    async def aclose(self) -> None:
        """End the stream. A cancelled caller ends it at once, without the goodbye."""
        with trio.move_on_after(_CLOSE_S):
            await self._ssl.aclose()


class LocalStream:
    """A `SecureStream` on the control socket, whose other end the kernel vouches for."""

    __slots__ = ("_peer", "_stream")

    def __init__(self, stream: trio.SocketStream, peer: PeerIdentity) -> None:
        self._stream = stream
        self._peer = peer

    @property
    def peer(self) -> PeerIdentity:
        """Role `local`, named after the user id of the process at the other end."""
        return self._peer

    async def send_all(self, data: bytes) -> None:
        """Send all bytes, or raise trio.BrokenResourceError."""
        await self._stream.send_all(data)

    async def receive_some(self, max_bytes: int) -> bytes:
        """The next bytes; empty at the end."""
        return bytes(await self._stream.receive_some(max_bytes))

    async def aclose(self) -> None:
        """End the stream."""
        await self._stream.aclose()


class TrioNet:
    """Sockets of this host, under one identity.

    `source_host` is the address that outgoing streams leave from: the host of --rpc-bind, so that a firewall between
    two nodes sees the same pair of addresses in both directions. None leaves the choice to the kernel.
    """

    def __init__(self, contexts: TlsContexts, *, source_host: str | None = None) -> None:
        self._contexts = contexts
        self._source_host = None if source_host in ("0.0.0.0", "::", "") else source_host  # noqa: S104 - not a bind
        self._handshakes: Counter[str] = Counter()
        self._complained_at: dict[str, float] = {}
        self.refused: Counter[str] = Counter()
        """Incoming connections that never became streams, by reason."""

    async def bind_datagram(self, address: Address) -> UdpSocket:
        """Bind UDP; ConfigError when the port is taken or the address is not ours."""
        return await bind_udp(address)

    async def connect(self, address: Address) -> TlsStream:
        """Open an authenticated stream within 5 s; UnavailableError when nobody answers or the identity does not hold.

        A peer that refuses *our* certificate shows it only at the first read: TLS 1.3 lets the client finish first.
        """
        with trio.move_on_after(HANDSHAKE_S):
            transport = await self._dial(address)
            try:
                return await self._shake_hands(transport, self._contexts.client, server_side=False)
            except (trio.BrokenResourceError, RecordError) as error:
                await trio.aclose_forcefully(transport)
                why = failure_text(error)
                raise UnavailableError(f"{address} does not prove that it belongs to this mesh: {why}") from error
            except trio.Cancelled:
                await trio.aclose_forcefully(transport)
                raise
        raise UnavailableError(f"{address} did not answer within {HANDSHAKE_S:g} s")

    def adopt(self, contexts: TlsContexts) -> None:
        """Prove this identity of the same mesh on every stream that opens from now on."""
        assert contexts.cluster == self._contexts.cluster
        self._contexts = contexts

    async def _dial(self, address: Address) -> trio.SocketStream:
        try:
            return await trio.open_tcp_stream(address.host, address.port, local_address=self._source_host)
        except (OSError, UnicodeError) as error:
            raise UnavailableError(f"{address} cannot be reached: {failure_text(error)}") from error

    async def _shake_hands(
        self, transport: trio.SocketStream, context: ssl.SSLContext, *, server_side: bool
    ) -> TlsStream:
        stream = trio.SSLStream(transport, context, server_side=server_side)
        await stream.do_handshake()
        name = peer_name(stream.getpeercert(), self._contexts.cluster)
        peer = _identity(name, stream, self._contexts.ca_public_keys)
        if not server_side and not peer.ca_public_key:
            # Whom we dial OpenSSL has followed to a trusted CA: it is of a later one, of which we have not heard.
            peer = replace(peer, ca_public_key=None)
        return TlsStream(stream, peer)

    async def serve(
        self,
        address: Address,
        handler: Handler,
        *,
        task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Listen until cancelled; `await handler(stream)` runs per authenticated connection, and then it is closed.

        ConfigError when the port is taken or the address is not ours. Reports the bound address when it listens.
        """
        try:
            listeners = await trio.open_tcp_listeners(address.port, host=address.host, backlog=_BACKLOG)
        except (OSError, UnicodeError) as error:
            raise bind_error(address, error) from error
        bound = listeners[0].socket.getsockname()

        async def on_connection(transport: trio.SocketStream) -> None:
            await self._guard(self._serve_tls(transport, handler))

        # serve_listeners waits and goes on when the process is out of descriptors.
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, on_connection, listeners)
            task_status.started(Address(bound[0], bound[1]))

    async def serve_local(
        self,
        path: Path,
        handler: Handler,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """The same on a Unix socket of mode 0600, for this user and root; its file is removed at the end.

        ConfigError when another process answers at `path`, or it cannot be created.
        """

        async def on_connection(transport: trio.SocketStream) -> None:
            await self._guard(self._serve_unix(transport, handler))

        with listening_local(path) as sock:
            listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
            async with trio.open_nursery() as nursery:
                await nursery.start(trio.serve_listeners, on_connection, [listener])
                task_status.started()

    async def _serve_tls(self, transport: trio.SocketStream, handler: Handler) -> None:
        async with transport:
            stream = await self._accept_tls(transport)
            if stream is not None:
                try:
                    await handler(stream)
                finally:
                    await stream.aclose()

    async def _accept_tls(self, transport: trio.SocketStream) -> TlsStream | None:
        host = _remote_host(transport)
        if self._handshakes.total() >= HANDSHAKES_MAX or self._handshakes[host] >= HANDSHAKES_PER_HOST_MAX:
            self.refused["too-many-handshakes"] += 1
            return None
        self._handshakes[host] += 1
        try:
            with trio.move_on_after(HANDSHAKE_S):
                return await self._shake_hands(transport, self._contexts.server, server_side=True)
            self._refuse(transport, "handshake-timeout", f"no TLS handshake within {HANDSHAKE_S:g} s")
        except (trio.BrokenResourceError, RecordError) as error:
            self._refuse(transport, "handshake-failed", failure_text(error))
        finally:
            self._handshakes -= Counter((host,))  # which also forgets a host at 0
        return None

    def _refuse(self, transport: trio.SocketStream, reason: str, detail: str) -> None:
        """Count a refused connection, and say so once a minute for each host: a wrong mesh redials for ever."""
        self.refused[reason] += 1
        host = _remote_host(transport)
        now = trio.current_time()
        if now - self._complained_at.get(host, -_LOG_EVERY_S) < _LOG_EVERY_S:
            return
        if len(self._complained_at) >= _LOG_HOSTS_MAX:
            self._complained_at.clear()
        self._complained_at[host] = now
        log.warning("refused a connection from %s: %s", host, detail)

    async def _serve_unix(self, transport: trio.SocketStream, handler: Handler) -> None:
        async with transport:
            uid = _peer_uid(transport)
            if uid not in (0, os.geteuid()):
                self._refuse(transport, "foreign-user", f"user id {uid} may not use the control socket")
                return
            await handler(LocalStream(transport, PeerIdentity("local", f"uid-{uid}")))

    async def _guard(self, serving: Awaitable[None]) -> None:
        """Let nothing but our own cancellation out of one connection."""
        try:
            await serving
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            log.debug("a connection broke: %s", failure_text(error))
        except Exception:
            log.exception("a connection's handler failed; the server goes on")


def _identity(
    name: PeerName, stream: trio.SSLStream[trio.SocketStream], ca_public_keys: Sequence[bytes]
) -> PeerIdentity:
    """The peer with what revocations may name of its certificate, and which CA it is of."""
    certificate = stream.getpeercert()
    der = stream.getpeercert(binary_form=True)
    serial = str(certificate["serialNumber"]).lower().lstrip("0") or "0"
    public_key, ca_public_key = signer_of(der, ca_public_keys)
    fingerprint = hashlib.sha256(der).hexdigest()
    return PeerIdentity(name.role, name.name, name.enrolment, serial, fingerprint, public_key, ca_public_key)


def _peer_uid(transport: trio.SocketStream) -> int:
    credentials = transport.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _pid, uid, _gid = struct.unpack("3i", credentials)
    return int(uid)


def _remote_host(transport: trio.SocketStream) -> str:
    try:
        name = transport.socket.getpeername()
    except OSError:
        return "a peer that is gone"
    return str(name[0]) if isinstance(name, tuple) and name else "this host"
