"""A simulated world: hosts, what lies between them, and one clock. `played.play` runs scenarios in one.

Everything in it follows from the scenario and its seed.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

from chaos.observations import Logged, Seen
from chaos.scenario import Scenario
from chaos.simulation import seeds
from chaos.simulation.ca_operator import CaOperator
from chaos.simulation.credentials import Credentials
from chaos.simulation.datagrams import DatagramNetwork
from chaos.simulation.event_heap import EventHeap
from chaos.simulation.executor import Sink
from chaos.simulation.fingerprint import Fingerprint
from chaos.simulation.host import Host
from chaos.simulation.key_operator import KeyOperator
from chaos.simulation.links import Conditions, Links
from chaos.simulation.scheduling import HOST, HoldingQueue
from chaos.simulation.streams import StreamNetwork
from chaos.simulation.vfs import SimulatedVfs

LOG_LINES_MAX = 2_000
"""Per host. The last ones are kept: what a failure needs is what came before it."""


class World:
    """Hosts by name, and what they share. Made inside of `trio.run`."""

    def __init__(
        self,
        scenario: Scenario,
        seed: int,
        *,
        heap: EventHeap,
        fingerprint: Fingerprint,
        vfs: SimulatedVfs,
        queue: HoldingQueue,
        nursery: trio.Nursery,
    ) -> None:
        self.scenario = scenario
        self.seed = seed
        self.heap = heap
        self.fingerprint = fingerprint
        self.vfs = vfs
        self.queue = queue
        self.nursery = nursery
        self.began_s = 0.0
        """When the mesh was whole: observations count from here."""
        net = scenario.net
        base = Conditions(
            loss=net.loss,
            duplicate=net.duplicate,
            reorder=net.reorder,
            delay_min_s=net.delay_min_ms / 1000,
            delay_mean_s=net.delay_mean_ms / 1000,
        )
        self.links = Links(seed, base)
        self.datagrams = DatagramNetwork(heap, self.links, fingerprint)
        self.streams = StreamNetwork(heap, self.links, fingerprint)
        self.credentials = Credentials(seed)
        self.ca_operator = CaOperator(self)
        self.key_operator = KeyOperator(self)
        self.sink = Sink()
        self.watchers: list[Callable[[Seen], None]] = []
        """Hear every observation, in order."""
        self.hosts: dict[str, Host] = {}
        for name in scenario.node_names():
            self.add(name)

    def add(self, name: str, *, node_id: str | None = None) -> Host:
        """One more machine, with an empty disk and without power; `node_id` makes it a clone of another node's."""
        host = Host(self, name, seeds=self.scenario.node_names(), node_id=node_id)
        self.hosts[name] = host
        self.vfs.attach(name, host.disk)
        return host

    def stream(self, name: str) -> random.Random:
        """A generator of its own for whatever is called so."""
        return seeds.stream(self.seed, name)

    def now_ms(self) -> float:
        """Milliseconds since the mesh was whole."""
        return round((self.heap.now - self.began_s) * 1000, 3)

    def tell(self, seen: Seen) -> None:
        """Something happened that those who watch should hear of."""
        for watcher in self.watchers:
            watcher(seen)

    def running(self) -> list[Host]:
        """Hosts whose nodes take work."""
        return [host for host in self.hosts.values() if host.is_up]

    def is_whole(self) -> bool:
        """Whether all wanted hosts run, see each other ALIVE, and know what the others can run."""
        wanted = [host for host in self.hosts.values() if host.wanted]
        names = {host.node_id for host in wanted}
        for host in wanted:
            node = host.node
            if node is None or not {member.node_id for member in node.gossip.members.alive()} >= names:
                return False
            if not node.gate.is_open or not node.ownership.all_offers().keys() >= names:
                return False
        return True


class HostLogs(logging.Handler):
    """Log lines by host, in virtual time. Warnings and worse are told to the world as well."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.INFO)
        self._world = world
        self.lines: dict[str, list[str]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Part of logging's interface."""
        host, at_ms = HOST.get(), self._world.now_ms()
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        lines = self.lines.setdefault(host, [])
        lines.append(f"{at_ms / 1000:9.3f} {record.levelname:7} {record.name}: {text}")
        if len(lines) > LOG_LINES_MAX:
            del lines[: LOG_LINES_MAX // 2]
        if record.levelno >= logging.WARNING:
            self._world.tell(Logged(at_ms=at_ms, host=host, level=record.levelno, text=text))


@contextmanager
def captured_logs(world: World) -> Iterator[HostLogs]:
    """Catch what nodes log, and keep it from everybody else."""
    handler = HostLogs(world)
    loggers = [logging.getLogger(name) for name in ("node", "mesh")]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.addHandler(handler)
    try:
        yield handler
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate
