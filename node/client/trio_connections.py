"""Connections for Trio programs: any number of tasks may ask at once, and a cancelled call is cancelled at the node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import trio

from mesh.errors import RecordError, UnavailableError
from mesh.ids import Address
from node.admin_client import CONNECT_S, LocalTarget, PeerTarget
from node.env import PeerIdentity, SecureStream
from node.streams.rpc import RpcPool
from node.streams.tls import failure_text, peer_name
from node.streams.trio_net import LocalStream, TlsStream

CALLS_MAX = 200
"""Calls at once, below the connections that a node serves; more wait their turn."""
DIALS_MAX = 16
"""Connections of these that are being opened: a node turns away a host that opens many and has proven nothing yet."""
IDLE_MAX = 32
"""Idle connections that are kept for each target."""


class TrioConnections:
    """Lines to a list of targets. A line is a pool of one connection, so that tasks share none."""

    def __init__(self, targets: Sequence[LocalTarget | PeerTarget]) -> None:
        self._targets = targets
        self.count = len(targets)
        self._calls = trio.Semaphore(CALLS_MAX)
        self._dials = trio.Semaphore(DIALS_MAX)
        self._idle: list[list[RpcPool]] = [[] for _ in targets]

    async def exchange(self, target: int, command: str, body: bytes, *, fresh: bool) -> Any:
        """The answer of one target, see `Connections`."""
        idle = self._idle[target]
        async with self._calls:
            line = self._line(target) if fresh or not idle else idle.pop()
            kept = False
            try:
                answer = await line.call(_address(self._targets[target]), "admin", body)
                if len(idle) < IDLE_MAX:
                    idle.append(line)
                    kept = True
            finally:
                if not kept:
                    await _close(line)
        return msgspec.msgpack.decode(answer)

    def _line(self, target: int) -> RpcPool:
        return RpcPool(_Dialler(self._targets[target], self._dials), self._targets[target].cluster)

    async def pause(self, seconds: float) -> None:
        """Sleep this long."""
        await trio.sleep(seconds)

    def now(self) -> float:
        """Seconds on Trio's clock."""
        return trio.current_time()

    async def close(self) -> None:
        """Close the idle connections."""
        for idle in self._idle:
            while idle:
                await _close(idle.pop())


async def _close(line: RpcPool) -> None:
    with trio.CancelScope() as over:
        over.cancel()
        await line.run()  # closes what is idle when it is cancelled


def _address(target: LocalTarget | PeerTarget) -> Address:
    return Address("", 0) if isinstance(target, LocalTarget) else target.address


class _Dialler:
    """Opens streams to one target. A control socket is a stream like any other once the kernel has let us in."""

    def __init__(self, target: LocalTarget | PeerTarget, dials: trio.Semaphore) -> None:
        self._target = target
        self._dials = dials

    async def connect(self, address: Address) -> SecureStream:
        target = self._target
        if isinstance(target, LocalTarget):
            opened = target.connect()  # the kernel answers at once, or says why not
            return LocalStream(
                trio.SocketStream(trio.socket.from_stdlib_socket(opened)), PeerIdentity("node", "of this host")
            )
        async with self._dials:
            with trio.move_on_after(CONNECT_S):
                return await _dial(target)
        raise UnavailableError(f"{address} did not answer within {CONNECT_S:g} s")


async def _dial(target: PeerTarget) -> SecureStream:
    try:
        transport = await trio.open_tcp_stream(target.address.host, target.address.port)
    except OSError as error:
        raise UnavailableError(
            f"no node answers at {target.address} ({failure_text(error)}): give the stream address of a running node "
            "(its --rpc-bind; `relaymesh members` shows all)"
        ) from error
    stream = trio.SSLStream(transport, target.context)
    try:
        await stream.do_handshake()
        name = peer_name(stream.getpeercert(), target.cluster)
        if name.role != "node":
            raise RecordError("it is an operator")
    except (trio.BrokenResourceError, RecordError) as error:
        await trio.aclose_forcefully(transport)
        raise UnavailableError(
            f"{target.address} did not prove to be a node of this mesh ({failure_text(error)}): check the address and "
            "the identity"
        ) from error
    except trio.Cancelled:
        await trio.aclose_forcefully(transport)
        raise
    return TlsStream(stream, PeerIdentity(name.role, name.name, name.enrolment))
