"""A UDP socket for gossip: receiving never waits inside a batch, sending never raises for the network's sake.

Names of peers (a seed may be a host name) are resolved off the send path: the first datagrams to a name that is not
known yet are lost, like any datagram may be, and seeds are redialled for ever.
"""

from __future__ import annotations

import errno
import logging
import socket

import trio

from mesh.errors import ConfigError
from mesh.ids import Address

log = logging.getLogger(__name__)

RECEIVE_BUFFER_BYTES = 2 * 1024 * 1024
"""Room for about 1,500 packets while the process is stalled. The kernel may grant less (net.core.rmem_max)."""

_DATAGRAM_BYTES_READ = 2_048  # past the 1,200 of the protocol, so that a longer one is seen to be oversized
_RECEIVE_ERRORS_MAX = 16  # errors queued by earlier sends that one receive call steps over
_NAMES_MAX = 256
_NAME_FRESH_S = 30.0


class UdpSocket:
    """The `DatagramSocket` of node/env.py on a real socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._names = _Names(sock.family)
        name = sock.getsockname()
        self._address = Address(name[0], name[1])
        self.send_refused = 0
        """Datagrams that the network refused at once."""

    @property
    def address(self) -> Address:
        """The address it is bound to."""
        return self._address

    @property
    def receive_buffer_bytes(self) -> int:
        """What the kernel granted, without its own bookkeeping: Linux reports twice the room for data."""
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2

    async def wait_readable(self) -> None:
        """Return when `receive_nowait` may have something."""
        await trio.lowlevel.wait_readable(self._socket)

    def receive_nowait(self) -> tuple[bytes, Address] | None:
        """The next datagram, or None when there is none now."""
        for _ in range(_RECEIVE_ERRORS_MAX):
            try:
                data, source = self._socket.recvfrom(_DATAGRAM_BYTES_READ)
            except BlockingIOError:
                return None
            except OSError as error:
                # An ICMP answer to an earlier send surfaces here; there may be datagrams behind it.
                if error.errno == errno.EBADF:
                    raise
                continue
            return data, Address(source[0], source[1])
        return None

    def send(self, data: bytes, address: Address) -> bool:
        """Hand one datagram to the network; False when it was refused at once, or the host name is not known yet."""
        host = self._names.numeric(address.host)
        if host is not None:
            try:
                self._socket.sendto(data, (host, address.port))
            except OSError as error:
                # A full buffer, no route, a firewall on output (EPERM), a peer that answered ICMP: all of it is loss.
                if error.errno == errno.EBADF:
                    raise
            else:
                return True
        self.send_refused += 1
        return False

    def close(self) -> None:
        """Release the port."""
        self._socket.close()


class _Names:
    """Numeric addresses of hosts, resolved in the background and renewed every 30 s while they are used."""

    def __init__(self, family: socket.AddressFamily) -> None:
        self._family = family
        self._numeric: dict[str, str] = {}
        self._asked_at: dict[str, float] = {}

    def numeric(self, host: str) -> str | None:
        """The host's address as far as it is known; None when it has none in this socket's family, or not yet."""
        try:
            socket.inet_pton(self._family, host)
        except (OSError, ValueError):  # ValueError: a NUL inside
            return self._resolved(host)
        return host

    def _resolved(self, host: str) -> str | None:
        now = trio.current_time()
        if now - self._asked_at.get(host, -_NAME_FRESH_S) >= _NAME_FRESH_S:
            if host not in self._asked_at and len(self._asked_at) >= _NAMES_MAX:
                oldest = min(self._asked_at, key=self._asked_at.__getitem__)
                del self._asked_at[oldest]
                self._numeric.pop(oldest, None)
            self._asked_at[host] = now
            trio.lowlevel.spawn_system_task(self._resolve, host)
        return self._numeric.get(host)

    async def _resolve(self, host: str) -> None:
        try:
            found = await trio.socket.getaddrinfo(host, None, family=self._family, type=socket.SOCK_DGRAM)
        except (OSError, UnicodeError) as error:
            log.info("host name %r has no address now (%s); asking again later", host, error)
            return
        if host in self._asked_at:  # else its place went to another name meanwhile
            self._numeric[host] = str(found[0][4][0])


async def bind_udp(address: Address) -> UdpSocket:
    """A bound socket with a large receive buffer; ConfigError when the address cannot be had, saying what to do."""
    try:
        found = await trio.socket.getaddrinfo(address.host, address.port, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError) as error:
        raise bind_error(address, error) from error
    family, _kind, _protocol, _name, place = found[0]
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        sock.bind(place)
    except OSError as error:
        sock.close()
        raise bind_error(address, error) from error
    return UdpSocket(sock)


def bind_error(address: Address, error: Exception) -> ConfigError:
    """The reason why an address cannot be listened on, and the way out, for UDP and TCP alike."""
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EADDRINUSE:
        return ConfigError(f"{address} is already in use: stop the process that has it, or give another port")
    if number == errno.EADDRNOTAVAIL:
        return ConfigError(f"{address} is no address of this host: give one of its own (see `ip addr`)")
    if number in (errno.EACCES, errno.EPERM):
        return ConfigError(f"{address} needs more rights: give a port above 1023")
    return ConfigError(f"cannot listen on {address}: {error}")
