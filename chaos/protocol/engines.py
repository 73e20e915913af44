"""A mesh of bare membership engines: virtual time, simulated lines, and a shell that does no more than node's does.

Promises: everything follows from the seed, and `ProtocolWorld.trace_hash` tells whether two runs were the same one.
Effects are carried out as `node.gossip_loop` does: datagrams travel, timers fire when they are due by the host's own
clock, after a pause the socket is emptied before any timer fires, and a stream probe answers when its target runs and
both directions are open.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from chaos.simulation.credentials import Credentials
from chaos.simulation.datagrams import HOST_SUFFIX, RECEIVE_BUFFER_DATAGRAMS, flipped, host_of
from chaos.simulation.event_heap import Appointment, EventHeap
from chaos.simulation.fingerprint import Fingerprint
from chaos.simulation.links import Conditions, Links
from chaos.simulation.seeds import stream
from mesh.effects import Effect, ProbeStream, SendDatagram
from mesh.gossip import Gossip
from mesh.identity import Authority
from mesh.ids import Address
from mesh.membership import Status
from mesh.profiles import LAN, Profile
from mesh.records import RecordVerifier
from mesh.sealing import PACKET_BYTES_MAX, PacketKeys

GOSSIP_PORT = 17_888
STREAM_PORT = 18_443
SEEDS = 3
"""Hosts that every node of a whole mesh has for its seeds."""
STREAM_PROBE_S = 1.0
"""How long the shell waits for a stream probe, see node.gossip_loop."""
_STREAM_SEGMENTS = 6  # one after the other: TCP and TLS 1.3 handshakes, request, answer
_STREAM_SEGMENT_BYTES = 500
_ROUNDING_S = 1e-6


@dataclass(slots=True, eq=False)
class Engine:
    """One started node: its core, the host that it runs on, and what was counted there."""

    name: str
    """Of the host. Two hosts with one node id are clones."""
    node_id: str
    gossip: Gossip
    boot: int
    enrolment: int
    up: bool = True
    pauses: int = 0
    """Reasons for which the process stands still now."""
    inbox: deque[tuple[bytes, Address]] = field(default_factory=deque)
    datagrams_sent: int = 0
    bytes_sent: int = 0
    """Payloads of datagrams, without the headers of UDP and IP."""
    wake: Appointment | None = None
    rate: float = 1.0
    """How fast the host's clock runs."""
    clock_base_s: float = 0.0

    @property
    def runs(self) -> bool:
        """Whether it handles events now."""
        return self.up and not self.pauses

    def clock(self, now: float) -> float:
        """The host's monotonic clock at this time of the world."""
        return self.clock_base_s + now * self.rate


class ProtocolWorld:
    """Hosts by name, the lines between them, and one heap of events."""

    def __init__(
        self,
        seed: int,
        *,
        profile: Profile = LAN,
        conditions: Conditions | None = None,
        share_crypto: bool = False,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        """`share_crypto` has all engines share the memory of verified records and derived keys: results are the same,
        a thousand engines do not each check a thousand equal signatures. `tell` hears every event, for comparisons.
        """
        self.seed = seed
        self.profile = profile
        self.heap = EventHeap()
        self.links = Links(seed, conditions or Conditions())
        self.credentials = Credentials(seed)
        self.engines: dict[str, Engine] = {}
        self.datagrams = True
        """Whether any datagram passes; False as behind a firewall that lets only streams pass."""
        self.streams = True
        """Whether any stream connects; False as behind a firewall that lets only datagrams pass."""
        self._starts: dict[str, int] = {}
        self.on_effect: list[Callable[[Engine, Effect], None]] = []
        """Hear every effect but datagrams, in order."""
        self.on_send: list[Callable[[str, str, bytes], None]] = []
        """Hear every datagram as it is sent: sending host, receiving host, bytes."""
        self._fingerprint = Fingerprint(self.heap, tell=tell)
        self._verifier: RecordVerifier | None = None
        self._packet_keys: PacketKeys | None = None
        if share_crypto:
            self._verifier = RecordVerifier(Authority(self.credentials.ca_public_key))
            self._packet_keys = PacketKeys(self.credentials.cluster)

    # --- hosts and what happens to them -----------------------------------------------------------------------------

    @property
    def now(self) -> float:
        """Seconds since the world began."""
        return self.heap.now

    def start(
        self,
        name: str,
        *,
        seeds: Iterable[str] = (),
        known: Sequence[bytes] = (),
        boot: int = 1,
        enrolment: int = 1,
        node_id: str | None = None,
    ) -> Engine:
        """Start a node on this host, in place of what ran there. `seeds` are hosts; `known` as for `Gossip`."""
        before = self.engines.get(name)
        if before is not None:
            self._end(before)
        self._starts[name] = self._starts.get(name, 0) + 1
        gossip = self._core(name, seeds=seeds, known=known, boot=boot, enrolment=enrolment, node_id=node_id or name)
        return self.adopt(name, gossip, boot=boot, enrolment=enrolment)

    def _core(
        self, name: str, *, seeds: Iterable[str], known: Sequence[bytes], boot: int, enrolment: int, node_id: str
    ) -> Gossip:
        draws = stream(self.seed, f"start {self._starts.get(name, 1)} of {name}")
        return Gossip(
            identity=self.credentials.identity(node_id, enrolment),
            ring=self.credentials.ring,
            profile=self.profile,
            rng=random.Random(draws.getrandbits(64)),
            entropy=random.Random(draws.getrandbits(64)).randbytes,
            boot=boot,
            address=address_of(name),
            rpc_address=Address(name + HOST_SUFFIX, STREAM_PORT),
            seeds=[address_of(seed) for seed in seeds],
            known=known,
            verifier=self._verifier,
            packet_keys=self._packet_keys,
        )

    def adopt(self, name: str, gossip: Gossip, *, boot: int = 1, enrolment: int = 1) -> Engine:
        """Start a core that the caller has made, on this host."""
        engine = Engine(name, gossip.members.own.node_id, gossip, boot, enrolment)
        self.engines[name] = engine
        self._note("starts", engine, b"")
        self.perform(name, gossip.start(engine.clock(self.now)))
        return engine

    def start_mesh(self, count: int) -> list[str]:
        """Start hosts n0, n1, … in one moment, all with the first as their seed; their names."""
        names = [f"n{index}" for index in range(count)]
        for name in names:
            self.start(name, seeds=names[:1])
        return names

    def start_whole(self, count: int) -> list[str]:
        """Start hosts n0, n1, … in one moment as a mesh that remembers all its members; their names."""
        names = [f"n{index}" for index in range(count)]
        # A core that is made twice signs the same record twice: the first one only tells what the others remember.
        known = [
            self._core(name, seeds=(), known=(), boot=1, enrolment=1, node_id=name).members.own.record for name in names
        ]
        for name in names:
            self.start(name, seeds=names[:SEEDS], known=known)
        return names

    def kill(self, name: str) -> None:
        """End a process without a word."""
        self._note("dies", self.engines[name], b"")
        self._end(self.engines[name])

    def restart(self, name: str, *, seeds: Iterable[str] = (), known: Sequence[bytes] = ()) -> Engine:
        """Start the node anew, one boot later."""
        last = self.engines[name]
        return self.start(
            name, seeds=seeds, known=known, boot=last.boot + 1, enrolment=last.enrolment, node_id=last.node_id
        )

    def pause(self, name: str, for_s: float) -> None:
        """Stop a process for a while: its datagrams wait in its socket, its timers fire late."""
        engine = self.engines[name]
        engine.pauses += 1
        self.heap.after(for_s, partial(self._resume, engine))

    def starve(self, name: str, *, share: float, slice_s: float, for_s: float) -> None:
        """Let a process run only in slices: of each `slice_s` seconds this share, at the end."""
        engine, until = self.engines[name], self.now + for_s

        def wait() -> None:
            if engine.up and self.now < until:
                self.pause(name, slice_s * (1 - share))
                self.heap.after(slice_s, wait)

        wait()

    def set_drift(self, name: str, ppm: float) -> None:
        """Have a host's clock run this much too fast from now on."""
        engine = self.engines[name]
        shown = engine.clock(self.now)
        engine.rate = 1.0 + ppm / 1e6
        engine.clock_base_s = shown - self.now * engine.rate
        self._arm(engine)

    def leave(self, name: str) -> None:
        """Stop a node in order: it says goodbye, and ends when that is heard or took too long."""
        engine = self.engines[name]
        self.perform(name, engine.gossip.leave(engine.clock(self.now)))
        self._end_when_left(engine)

    def publish(self, name: str, topic: int, payload: bytes) -> None:
        """Have a node spread a rumor."""
        engine = self.engines[name]
        self.perform(name, engine.gossip.publish(topic, payload, engine.clock(self.now)))

    # --- time -------------------------------------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        """Let this much time pass."""
        self.heap.run_until(self.now + seconds)

    def run_until(self, condition: Callable[[], bool], limit_s: float, *, every_s: float = 0.05) -> float | None:
        """Run until the condition holds, looking every so often; the seconds that took, None when it took too long."""
        began = self.now
        while not condition():
            if self.now - began >= limit_s:
                return None
            self.run(every_s)
        return self.now - began

    # --- looking ----------------------------------------------------------------------------------------------------

    def running(self) -> list[Engine]:
        """Processes that were not ended, standing ones included, in the order of their first start."""
        return [engine for engine in self.engines.values() if engine.up]

    def status(self, viewer: str, node_id: str) -> Status | None:
        """What one host holds of a node; None when it does not know it."""
        member = self.engines[viewer].gossip.members.get(node_id)
        return None if member is None else member.status

    def all_see(self, viewers: Iterable[str], node_ids: Iterable[str], status: Status | None) -> bool:
        """Whether each of these hosts holds this of each of these nodes but itself."""
        nodes = list(node_ids)
        return all(
            self.status(viewer, node_id) is status for viewer in viewers for node_id in nodes if viewer != node_id
        )

    def trace_hash(self) -> str:
        """Over every event so far: starts, ends, datagrams, timers and stream probes."""
        return self._fingerprint.hexdigest()

    def _note(self, what: str, engine: Engine, content: bytes) -> None:
        self._fingerprint.note(f"{engine.name} {what}", content)

    # --- the shell of an engine -------------------------------------------------------------------------------------

    def perform(self, name: str, effects: Sequence[Effect]) -> None:
        """Carry out what a core asked for, in order, and keep its next appointment."""
        engine = self.engines[name]
        for effect in effects:
            if isinstance(effect, SendDatagram):
                self._send(engine, effect)
                continue
            if isinstance(effect, ProbeStream):
                self._probe_stream(engine, effect)
            for hear in self.on_effect:
                hear(engine, effect)
        self._arm(engine)

    def deliver(self, name: str, data: bytes, source: Address) -> None:
        """Hand a datagram to whoever runs on this host, now."""
        engine = self.engines.get(name)
        if engine is None or not engine.up:
            return
        if engine.pauses:
            if len(engine.inbox) < RECEIVE_BUFFER_DATAGRAMS:
                engine.inbox.append((data, source))
            return
        self._note("hears", engine, b"")
        self.perform(name, engine.gossip.on_datagram(data, source, engine.clock(self.now)))

    def transmit(self, sender: str, receiver: str, data: bytes) -> None:
        """Put a datagram on the line from one host to another; whoever does it."""
        self._fingerprint.note(f"{sender} sends", data)
        if not self.datagrams:
            return
        pair, source = (sender, receiver), address_of(sender)
        for arrival in self.links.arrivals(pair, len(data), self.now):
            copy = data if arrival.mutated is None else flipped(data, arrival.mutated)
            self.heap.at(arrival.at, partial(self._arrive, pair, copy, source))

    def _send(self, engine: Engine, effect: SendDatagram) -> None:
        assert len(effect.data) <= PACKET_BYTES_MAX, len(effect.data)
        receiver = host_of(effect.address)
        engine.datagrams_sent += 1
        engine.bytes_sent += len(effect.data)
        for hear in self.on_send:
            hear(engine.name, receiver, effect.data)
        self.transmit(engine.name, receiver, effect.data)

    def _arrive(self, pair: tuple[str, str], data: bytes, source: Address) -> None:
        if not self.links.held(pair, partial(self.deliver, pair[1], data, source)):
            self.deliver(pair[1], data, source)

    def _probe_stream(self, engine: Engine, probe: ProbeStream) -> None:
        pair = engine.name, host_of(probe.rpc_address)
        delay_s = sum(
            self.links.segment_delay_s(line, _STREAM_SEGMENT_BYTES, self.now)
            for line in (pair, pair[::-1]) * (_STREAM_SEGMENTS // 2)
        )
        asked_until = self.now + STREAM_PROBE_S
        self.heap.after(min(delay_s, STREAM_PROBE_S), partial(self._stream_ended, engine, probe, asked_until))

    def _stream_ended(self, engine: Engine, probe: ProbeStream, asked_until: float) -> None:
        target = self.engines.get(host_of(probe.rpc_address))
        reached = target is not None and self._stream_open(engine, target)
        if reached and target is not None and target.pauses and self.now < asked_until:
            # Its kernel took the connection; the process answers when it goes on, if that is soon enough.
            again_at = min(asked_until, self.now + STREAM_PROBE_S / 20)
            self.heap.at(again_at, partial(self._stream_ended, engine, probe, asked_until))
            return
        answered = reached and target is not None and target.runs and target.node_id == probe.node_id
        if not answered and self.now < asked_until:
            self.heap.at(asked_until, partial(self._stream_failed, engine, probe))
            return
        self._report_stream(engine, probe, alive=answered)

    def _stream_failed(self, engine: Engine, probe: ProbeStream) -> None:
        self._report_stream(engine, probe, alive=False)

    def _report_stream(self, engine: Engine, probe: ProbeStream, *, alive: bool) -> None:
        if not engine.runs:
            return  # a standing process had its own time-out pass meanwhile, a dead one asks nothing
        self._note("streams", engine, b"\x01" if alive else b"\x00")
        effects = engine.gossip.on_stream_probe(probe.node_id, probe.nonce, alive, engine.clock(self.now))
        self.perform(engine.name, effects)

    def _stream_open(self, engine: Engine, target: Engine) -> bool:
        pair = engine.name, target.name
        return self.streams and target.up and self.links.is_open(pair) and self.links.is_open(pair[::-1])

    def _arm(self, engine: Engine) -> None:
        if not engine.up:
            return
        deadline = engine.gossip.next_deadline()
        if deadline == float("inf"):
            if engine.wake is not None:
                engine.wake.cancel()
            engine.wake = None
            return
        when = max(self.now, (deadline - engine.clock_base_s) / engine.rate)
        if engine.wake is not None:
            if engine.wake.when == when and engine.wake.action is not None:
                return
            engine.wake.cancel()
        engine.wake = self.heap.at(when, partial(self._wake, engine))

    def _wake(self, engine: Engine) -> None:
        engine.wake = None
        if engine.runs:
            self._note("wakes", engine, b"")
            self.perform(engine.name, engine.gossip.on_timer(self._due(engine)))

    def _due(self, engine: Engine) -> float:
        """The host's clock, which has reached the deadline that it was woken for, whatever rounding made of it."""
        now, deadline = engine.clock(self.now), engine.gossip.next_deadline()
        return deadline if now < deadline <= now + _ROUNDING_S else now

    def _resume(self, engine: Engine) -> None:
        engine.pauses -= 1
        if not engine.runs:
            return
        # What lay in the socket is heard before anybody's silence is judged.
        while engine.inbox:
            data, source = engine.inbox.popleft()
            self.deliver(engine.name, data, source)
        self._note("resumes", engine, b"")
        self.perform(engine.name, engine.gossip.on_timer(engine.clock(self.now)))

    def _end(self, engine: Engine) -> None:
        engine.up = False
        engine.inbox.clear()
        if engine.wake is not None:
            engine.wake.cancel()

    def _end_when_left(self, engine: Engine) -> None:
        if not engine.up:
            return
        if engine.runs and engine.gossip.left_done(engine.clock(self.now)):
            self.kill(engine.name)
            return
        self.heap.after(self.profile.gossip_interval_s, partial(self._end_when_left, engine))


def address_of(name: str) -> Address:
    """Where the node on this host receives datagrams."""
    return Address(name + HOST_SUFFIX, GOSSIP_PORT)
