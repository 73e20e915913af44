"""Brings what the CA said since we last heard: asks members over TLS streams, which need no gossip key.

Promises: a member whose record shows a later ring or list than ours is asked at once and again until we have it. A node
that can open nobody's packets any more, because it was away while keys were rotated, or believe nobody's certificate,
because it was away while the CA was, asks everybody it ever knew and the hosts of its seeds; its certificate is all
that this takes. Strangers can cause one round of calls in `ROUND_S` at
most, and a node that hears others and is up to date asks nobody.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import trio

from mesh.errors import RelayMeshError
from mesh.gossip import Gossip
from mesh.ids import Address
from mesh.membership import Status
from node.env import Env
from node.replication.calls import Caller, decode
from node.trust import Statements, Trust, encode_trust

log = logging.getLogger(__name__)

VERB = "trust"
ROUND_S = 1.0
ALONE_S = 5.0
"""A node that hears nobody asks around this often, as it redials: perhaps its keys are why."""
STRANGERS_PAUSE_MAX_S = 64.0
CALL_MAX_S = 3.0
PATIENCE_MAX_S = 96.0
"""The certificates of 100 hosts are 60 kB; whoever is not there at all is given up after the handshake's 5 s."""
ROUND_CALLS_MAX = 8


@dataclass(frozen=True, slots=True)
class _Known:
    """Somebody to ask; `node_id` is None where only an address is known."""

    address: Address
    node_id: str | None


class TrustFetch:
    """Asks when there is a reason to. Everything but `run` returns at once."""

    def __init__(
        self, env: Env, trust: Trust, gossip: Gossip, calls: Caller, *, seeds: Sequence[Address], rpc_port: int
    ) -> None:
        """Seeds are known by their gossip addresses: their streams are looked for at our `rpc_port` there."""
        self._env = env
        self._trust = trust
        self._gossip = gossip
        self._calls = calls
        self._seeds = [_Known(Address(seed.host, rpc_port), None) for seed in seeds]
        self._news = trio.Event()
        self._heard_stranger = False
        self._strangers_pause_s = ROUND_S
        self._strangers_from = 0.0
        self._patience_s = CALL_MAX_S
        self._turn = 0
        self.fetched_total = 0

    def look(self) -> None:
        """Members have changed: somebody may be ahead of us, or we may be alone."""
        if self._ahead() or self._is_alone():
            self._news.set()

    def on_unknown_key(self) -> None:
        """A datagram came under a key that we do not have: perhaps the mesh has rotated its keys."""
        self._heard_stranger = True
        self._news.set()

    def on_stranger(self) -> None:
        """Something was signed by no CA that we trust: perhaps the mesh has rotated its CA.

        Those who were left behind say such things for ever, so that we ask more and more seldom while nobody has news.
        """
        now = self._env.clock.monotonic()
        if now >= self._strangers_from:
            self._strangers_from = now + self._strangers_pause_s
            self._strangers_pause_s = min(STRANGERS_PAUSE_MAX_S, 2 * self._strangers_pause_s)
            self.on_unknown_key()

    async def run(self) -> None:
        """Ask as long as there is a reason, until cancelled."""
        alone_s = ROUND_S  # at first: a node that starts under old keys should not wait for long
        while True:
            if not self._ahead():
                with trio.move_on_after(alone_s if self._is_alone() else float("inf")):
                    await self._news.wait()
                alone_s = min(ALONE_S, 2 * alone_s)
            self._news = trio.Event()
            if not await self._round():
                await self._env.clock.sleep(ROUND_S)

    async def _round(self) -> bool:
        """Ask one after another until somebody had news; False when nobody had."""
        ahead, asks_around = self._ahead(), self._heard_stranger or self._is_alone()
        self._heard_stranger = False
        for known in self._some_of([*ahead, *(self._everybody() if asks_around else ())]):
            if await self._ask(known):
                return True
        return False

    async def _ask(self, known: _Known) -> bool:
        try:
            with trio.move_on_after(self._patience_s) as limit:
                body = encode_trust(self._trust.orders)
                answer = await self._calls.call(known.address, VERB, body, expect=known.node_id)
                said = decode(answer, Statements)
                if await self._trust.accept(said.ring, said.revocations, said.authorities):
                    self.fetched_total += 1
                    self._strangers_pause_s, self._patience_s = ROUND_S, CALL_MAX_S
                    return True
            if limit.cancelled_caught:  # it may be there, and its answer large for this link
                self._patience_s = min(PATIENCE_MAX_S, 2 * self._patience_s)
        except RelayMeshError as error:
            log.info("cannot fetch what the CA said from %s: %s", known.node_id or known.address, error)
        return False

    def _ahead(self) -> list[_Known]:
        trust = self._trust
        ring, revocations, authorities = trust.ring.number, trust.revocations.number, trust.authorities.number
        return [
            _Known(member.rpc_address, member.node_id)
            for member in self._gossip.members.active_others()
            if member.ring > ring or member.revocations > revocations or member.authorities > authorities
        ]

    def _everybody(self) -> list[_Known]:
        """Whom we do not hear comes first: those are the ones that may have gone on without us."""
        others = [m for m in self._gossip.members.all() if m is not self._gossip.members.own]
        others.sort(key=lambda member: member.status is Status.ALIVE)
        known = [_Known(member.rpc_address, member.node_id) for member in others]
        addresses = {each.address for each in known}
        return [*known, *(seed for seed in self._seeds if seed.address not in addresses)]

    def _some_of(self, known: list[_Known]) -> list[_Known]:
        if len(known) <= ROUND_CALLS_MAX:
            return known
        self._turn = (self._turn + ROUND_CALLS_MAX) % len(known)
        return (known + known)[self._turn : self._turn + ROUND_CALLS_MAX]

    def _is_alone(self) -> bool:
        """Whether we hear nobody although there is somebody to ask."""
        others = self._gossip.members.active_others()
        heard = any(member.last_heard is not None and member.status is Status.ALIVE for member in others)
        return not heard and bool(others or self._seeds or len(self._gossip.members.all()) > 1)
