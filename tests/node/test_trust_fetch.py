"""What the CA said is fetched over slow links too, and strangers cannot keep a node asking."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
import trio

from mesh.ids import Address
from mesh.membership import Status
from node.trust import Orders
from node.trust_fetch import STRANGERS_PAUSE_MAX_S, TrustFetch
from tests.node.conftest import TrioClock

PEER = SimpleNamespace(
    node_id="b",
    rpc_address=Address("b.test", 1),
    ring=0,
    revocations=0,
    authorities=1,
    last_heard=1.0,
    status=Status.ALIVE,
)


class SlowPeer:
    """Has a list of CAs that takes a while to send."""

    def __init__(self, answer_s: float) -> None:
        self.answer_s = answer_s
        self.asked = 0
        self.accepted: list[tuple[bytes, bytes, bytes]] = []

    async def call(self, address: Address, verb: str, body: bytes, *, expect: str) -> bytes:
        self.asked += 1
        await trio.sleep(self.answer_s)
        return msgspec.msgpack.encode((b"", b"", b"list"))

    async def accept(self, *said: bytes) -> bool:
        self.accepted.append(cast(Any, said))
        PEER.authorities = 0
        return True


@pytest.fixture
def peer():
    PEER.authorities = 1
    return SlowPeer(10.0)


def fetch_from(peer: SlowPeer) -> TrustFetch:
    trust = SimpleNamespace(
        ring=SimpleNamespace(number=0),
        revocations=SimpleNamespace(number=0),
        authorities=SimpleNamespace(number=0),
        orders=Orders((0, b""), (0, b"")),
        accept=peer.accept,
    )
    own = SimpleNamespace()
    members = SimpleNamespace(active_others=lambda: [PEER], all=lambda: [PEER, own], own=own)
    env = SimpleNamespace(clock=TrioClock())
    parts: Any = (env, trust, SimpleNamespace(members=members), peer)
    return TrustFetch(*parts, seeds=(), rpc_port=1)


async def test_a_list_that_takes_longer_than_a_call_is_waited_for_in_the_end(peer, autojump_clock):
    fetch = fetch_from(peer)
    with trio.move_on_after(60):
        await fetch.run()
    assert peer.accepted == [(b"", b"", b"list")]
    assert peer.asked == 3  # 3 s, 6 s, 12 s
    assert fetch.fetched_total == 1


async def test_strangers_are_a_reason_to_ask_ever_more_seldom(peer, autojump_clock):
    PEER.authorities, peer.answer_s = 0, 0.0

    async def nothing_new(*said: bytes) -> bool:
        return False

    peer.accept = nothing_new  # type: ignore[method-assign]
    fetch = fetch_from(peer)
    with trio.move_on_after(1_000):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch.run)
            while True:
                fetch.on_stranger()
                await trio.sleep(0.5)
    assert 6 <= peer.asked <= 8 + 1_000 / STRANGERS_PAUSE_MAX_S
