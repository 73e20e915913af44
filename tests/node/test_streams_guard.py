"""Streams of those who were refused end, opened or served, and nothing that a stream does on its way out harms us."""

from __future__ import annotations

import pytest
import trio

from mesh.errors import UnavailableError
from mesh.ids import Address
from node.env import PeerIdentity
from node.streams.guard import GuardedDialler, StreamGuard

ADDRESS = Address("127.0.0.1", 1)


class Stream:
    """A stream that notes its end, and may fail in it."""

    def __init__(self, name: str, role: str = "node", failure: Exception | None = None) -> None:
        self.peer = PeerIdentity(role, name, 1)
        self.ended = 0
        self._failure = failure

    async def send_all(self, data: bytes) -> None: ...

    async def receive_some(self, max_bytes: int) -> bytes:
        return b""

    async def aclose(self) -> None:
        self.ended += 1
        await trio.lowlevel.checkpoint()
        if self._failure is not None:
            raise self._failure


class Dialler:
    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def connect(self, address: Address) -> Stream:
        return self._stream


@pytest.fixture
def refused():
    return set()


@pytest.fixture
def guard(refused):
    return StreamGuard(lambda peer: f"{peer.name} was revoked" if peer.name in refused else None)


async def test_open_streams_of_a_refused_peer_end_and_others_stay(guard, refused):
    gone, dialled, other = Stream("b"), Stream("b"), Stream("c")
    assert guard.admit(gone) is None
    assert guard.admit(other) is None
    await GuardedDialler(Dialler(dialled), guard).connect(ADDRESS)
    refused.add("b")
    await guard.enforce()
    await guard.enforce()
    assert (gone.ended, dialled.ended, other.ended) == (1, 1, 0)


async def test_a_refused_peer_gets_no_new_stream_in_either_direction(guard, refused):
    refused.add("b")
    served, dialled = Stream("b"), Stream("b")
    assert guard.admit(served) == "b was revoked"
    with pytest.raises(UnavailableError, match="b was revoked"):
        await GuardedDialler(Dialler(dialled), guard).connect(ADDRESS)
    assert dialled.ended == 1


async def test_what_has_ended_is_not_ended_again(guard, refused):
    served, dialled = Stream("b"), Stream("b")
    guard.admit(served)
    guard.forget(served)
    stream = await GuardedDialler(Dialler(dialled), guard).connect(ADDRESS)
    await stream.aclose()
    refused.add("b")
    await guard.enforce()
    assert (served.ended, dialled.ended) == (0, 1)


@pytest.mark.parametrize("failure", [trio.BrokenResourceError(), trio.ClosedResourceError()])
async def test_a_stream_that_fails_as_it_is_ended_harms_no_other(guard, refused, failure):
    failing, other = Stream("b", failure=failure), Stream("b")
    guard.admit(failing)
    guard.admit(other)
    refused.add("b")
    await guard.enforce()
    assert (failing.ended, other.ended) == (1, 1)


async def test_the_owner_of_the_host_is_never_refused(guard, refused):
    refused.add("uid-0")
    stream = Stream("uid-0", role="local")
    assert guard.admit(stream) is None
    await guard.enforce()
    assert stream.ended == 0
