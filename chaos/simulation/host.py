"""One simulated machine: its disk and its clocks stay, the process of its node comes and goes.

A death has three steps in this order: the world of the process goes dead, then its tasks are cancelled, then the disk
becomes what the death leaves of it. A graceful end is the node's own.
"""

from __future__ import annotations

import contextvars
import random
import traceback
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import apsw
import msgspec
import trio

from chaos.observations import (
    CaListInstalled,
    Committed,
    DatabaseReplaced,
    HostEnded,
    HostStarted,
    MemberSeen,
    RingInstalled,
    RumorRepeated,
    Sampled,
)
from chaos.simulation import next_release
from chaos.simulation.datagrams import HOST_SUFFIX, SimulatedSocket
from chaos.simulation.disk import SimulatedDisk
from chaos.simulation.executor import SimulatedExecutor
from chaos.simulation.host_clock import HostClock
from chaos.simulation.process import Process, ProcessGone
from chaos.simulation.scheduling import HOST
from chaos.simulation.streams import SimulatedStream
from mesh import profiles
from mesh.effects import RumorReceived
from mesh.errors import RelayMeshError, UnavailableError
from mesh.ids import Address, NodeId
from mesh.key_rotation import key_name
from node.admin.service import AdminService
from node.config import NodeConfig
from node.env import Env, PeerIdentity
from node.node import Node, NodeSpec
from node.settings import SETTINGS_FILE, Settings
from node.settings_reload import SettingsFile, SettingsReload
from node.storage.reader import Reader
from node.storage.store import Commit
from node.storage.transaction import Change
from node.streams.rpc import RpcServer
from node.work.tables import WORK_TABLES

if TYPE_CHECKING:
    from chaos.simulation.world import World

T = TypeVar("T")

GOSSIP_PORT, STREAM_PORT = 17_888, 18_443
SLOTS = 3
START_S = 0.3
"""From the start of a process to its first line of ours: an interpreter loads its modules."""
RESTART_AFTER_S = 2.0
"""A node that ended by itself is started again after this, as systemd does."""
RESTART_GAP_S = 0.2
OPERATOR = PeerIdentity(role="operator", name="chaos")

FUTURE_ROWS = "SELECT table_name, count(*) FROM quarantine WHERE reason = 'future-stamp' GROUP BY table_name"
SAMPLE_EVERY_S = 2.0
PROFILES = {"local": profiles.LOCAL, "lan": profiles.LAN, "wan": profiles.WAN}


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """How a process was ended from outside."""

    how: str
    image: str = "drop"
    """What the drive keeps of unsynced writes; only for a power cut."""


class InlineThread:
    """`node.env.StoreThread` without a thread: each call takes its virtual time, then happens at once."""

    def __init__(self, process: Process, latency_s: Callable[[], float], now: Callable[[], float]) -> None:
        self._process = process
        self._latency_s = latency_s
        self._now = now
        self._free_at = 0.0
        self._closed = False

    async def run(self, fn: Callable[[], T]) -> T:
        """Run `fn` when its turn has come."""
        self._free_at = max(self._free_at, self._now()) + self._latency_s()
        await self._process.nap(self._free_at - self._now())
        assert not self._closed, "closed"
        try:
            return fn()
        except SystemError as error:
            # What a VFS in Python raises while apsw closes something by force, it neither drops nor passes on.
            if isinstance(error.__cause__, apsw.Error):
                raise error.__cause__ from None
            raise

    def close(self) -> None:
        """Take no more calls."""
        self._closed = True


class SimulatedHostDisk:
    """`node.env.Disk` of a host: all that it needs of it are `name`, `disk` and `boots`."""

    def __init__(self, host: Host, vfs: str) -> None:
        self._host = host
        self.root = Path("/", host.name)
        self.vfs = vfs
        self.shared_memory = False

    def free_bytes(self) -> int:
        """Bytes that may still be written."""
        return self._host.disk.free_bytes()

    def load(self, name: str) -> bytes | None:
        """All of a small file beside the database, None when there is none."""
        return self._host.disk.load(str(self.root / name))

    def save(self, name: str, data: bytes) -> None:
        """Give such a file this content, durably and in one step."""
        self._host.disk.replace(str(self.root / name), data)

    def kernel_boot_id(self) -> str:
        """Changes with every start of the host."""
        return f"{self._host.name}-boot-{self._host.boots}"

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return self._host.disk.stat(name) is not None

    def rename(self, name: str, new_name: str) -> None:
        """Another name for a file, in one durable step."""
        disk = self._host.disk
        disk.sync_names()
        disk.rename(name, new_name)
        disk.sync_names()

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        if self.exists(name):
            self._host.disk.unlink(name)


class _HostNet:
    """`node.env.Net` of one process."""

    def __init__(self, world: World, process: Process, me: PeerIdentity) -> None:
        self._world = world
        self._process = process
        self._me = me

    async def bind_datagram(self, address: Address) -> SimulatedSocket:
        self._process.check()
        return self._world.datagrams.bind(address, self._process)

    async def connect(self, address: Address) -> SimulatedStream:
        return await self._world.streams.connect(self._process, self._me, address)

    async def serve(
        self,
        address: Address,
        handler: Callable[[Any], Awaitable[object]],
        *,
        task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        await self._world.streams.serve(self._process, self._me, address, handler, task_status=task_status)

    async def serve_local(self, path: Path, handler: object, *, task_status: trio.TaskStatus[None]) -> None:
        raise AssertionError("clients of a simulated host use Host.call")


class Host:
    """A machine with a name. `node_id` differs from it only for a clone."""

    def __init__(self, world: World, name: str, *, seeds: tuple[str, ...], node_id: str | None = None) -> None:
        self.world = world
        self.name = name
        self.node_id = node_id or name
        self.seeds = seeds
        self.enrolment = 1
        self.boots = 1
        self.settings: Mapping[str, Any] = dict(world.scenario.settings)
        self.bad_settings: bytes | None = None
        """What a careless operator has just made of its settings file."""
        self.runs_next_release = False
        """What its next start runs; see `next_release`."""
        self.disk = SimulatedDisk(world.stream(f"disk {name}"))
        self._draws = world.stream(f"host {name}")
        clock = world.scenario.clock
        self.process = Process(name)
        self.process.dies()
        self.clock = HostClock(
            world.heap,
            self.process,
            skew_s=self._draws.uniform(-clock.skew_s, clock.skew_s),
            drift_ppm=self._draws.uniform(-clock.drift_ppm, clock.drift_ppm),
        )
        self.extra_latency_s = 0.0
        self.durable_lost = False
        """Whether the end that comes next takes synced data along."""
        self.lives = 0
        self.questions = 0
        """What its process was asked and works on, whether or not somebody still waits for the answer."""
        self.node: Node | None = None
        self.wanted = False
        """Whether a supervisor would start the process again when it ended."""
        self._nursery: trio.Nursery | None = None
        self._scope: trio.CancelScope | None = None
        self._ended = trio.Event()
        self._ended.set()
        self._death: Death | None = None
        self._supervised = False
        self._asked_to_stop = trio.Event()

    # --- where it is ---

    @property
    def address(self) -> Address:
        """Where its datagrams arrive."""
        return Address(self.name + HOST_SUFFIX, GOSSIP_PORT)

    @property
    def rpc_address(self) -> Address:
        """Where its streams arrive."""
        return Address(self.name + HOST_SUFFIX, STREAM_PORT)

    @property
    def is_up(self) -> bool:
        """Whether its node takes work."""
        return self._nursery is not None and not self.process.is_gone

    @property
    def is_paused(self) -> bool:
        """Whether its process stands still."""
        return self.world.queue.holds(self.name)

    # --- its lives ---

    def start(self) -> None:
        """Have the process run, and run again should it end by itself. A no-op when that is so already."""
        self.wanted = True
        self.world.streams.power_back(self.name)
        if not self._supervised:
            self._supervised = True
            self.world.nursery.start_soon(self._supervise)

    async def _supervise(self) -> None:
        await self._ended.wait()
        while self.wanted:
            self._ended = trio.Event()
            self.process = Process(self.name)
            self.clock.process = self.process
            self._death = None
            self._in_context(self.world.nursery, self._life, self.process)
            await self._ended.wait()
            if self.wanted:
                await trio.sleep(RESTART_AFTER_S)
        self._supervised = False

    def _in_context(self, nursery: trio.Nursery, fn: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Start a task as one of this host's: a task inherits the host of whoever starts it."""
        context = contextvars.copy_context()
        context.run(HOST.set, self.name)
        context.run(nursery.start_soon, fn, *args)

    async def _life(self, process: Process) -> None:
        self.lives += 1
        node: Node | None = None
        how, detail = "failed", ""
        try:
            with trio.CancelScope() as self._scope:
                await process.live(trio.sleep, START_S)
                node = self._new_node(process)
                await self._run(node, process)
                how = "stop"
        except (Exception, BaseExceptionGroup, ProcessGone) as error:
            if not process.is_gone:
                how, detail = _cause(error)
        finally:
            self._nursery = self.node = None
            self._bury(process, node, how, detail)

    def _new_node(self, process: Process) -> Node:
        env, spec = self._env(process), self._spec()
        if not self.runs_next_release:
            return Node(env, spec)
        node = Node(env, spec, tables=next_release.TABLES, migrations=next_release.MIGRATIONS)
        next_release.keep_diary(node.store, self.node_id)
        return node

    async def _run(self, node: Node, process: Process) -> None:
        node.store.on_commit(lambda commit: self._on_commit(node, commit))
        node.store.on_replaced(partial(self._on_replaced, node))
        await node.open()
        ((integrity,),) = await node.store.read(lambda reader: reader.sql("PRAGMA integrity_check"))
        service = AdminService(node, self._config(), settings=self._settings_reload(node))
        net = node.env.net
        socket = await net.bind_datagram(self.address)
        async with trio.open_nursery() as nursery:

            async def serve(server: RpcServer) -> None:
                # The node knows who it is, and has not begun to act.
                self._tell_started(node, str(integrity))
                await nursery.start(net.serve, self.rpc_address, server.handle)

            await nursery.start(partial(node.run, socket, service.handle, serve=serve))
            self.node, self._service, self._nursery = node, service, nursery
            nursery.start_soon(self._sample_now_and_then, node)
            await self._asked_to_stop.wait()
            self._asked_to_stop = trio.Event()
            await node.stop()
            self._nursery = None  # closed to new calls, while the node writes its last word
            nursery.cancel_scope.cancel()
        await node.close()

    def _settings_reload(self, node: Node) -> SettingsReload:
        async def read() -> SettingsFile:
            await node.env.clock.sleep(0.0)
            return SettingsFile(self.bad_settings or msgspec.json.encode(self.settings))

        return SettingsReload(node, source_path=f"/{self.name}/{SETTINGS_FILE}", read=read)

    def _tell_started(self, node: Node, integrity: str) -> None:
        node.loop.on_member_changed.append(
            lambda change: self.world.tell(MemberSeen(at_ms=self.world.now_ms(), host=self.name, change=change))
        )
        node.trust.on_changed.append(lambda: self._tell_trust(node))
        node.loop.on_rumor = self._noting_repetitions(node.loop.on_rumor)
        self.world.tell(
            HostStarted(
                at_ms=self.world.now_ms(),
                host=self.name,
                life=node.life,
                origin=node.store.origin,
                integrity=integrity,
                members={member.node_id: member.status.value for member in node.gossip.members.all()},
            )
        )
        self._tell_trust(node)

    def _tell_trust(self, node: Node) -> None:
        ring = node.trust.ring
        names = {key.key_id: key_name(key.key_id) for key in ring}
        self.world.tell(
            RingInstalled(
                at_ms=self.world.now_ms(),
                host=self.name,
                number=ring.number,
                primary=names[ring.primary.key_id],
                keys=tuple(names.values()),
            )
        )
        authorities = node.trust.authorities
        self.world.tell(
            CaListInstalled(
                at_ms=self.world.now_ms(),
                host=self.name,
                number=authorities.number,
                signing=authorities.signing.name,
            )
        )

    def _noting_repetitions(self, pass_on: Callable[[RumorReceived], None]) -> Callable[[RumorReceived], None]:
        heard: dict[bytes, None] = {}

        def hear(rumor: RumorReceived) -> None:
            if rumor.payload in heard:
                self.world.tell(RumorRepeated(at_ms=self.world.now_ms(), host=self.name))
            heard[rumor.payload] = None
            pass_on(rumor)

        return hear

    def _bury(self, process: Process, node: Node | None, how: str, detail: str) -> None:
        """The last thing of a life. From here on the next one may begin."""
        death = self._death or Death(how=how)
        process.dies()
        self.world.datagrams.unbind(self.address)
        if self._death is None:
            self.world.streams.process_died(self.name)
        if node is not None:
            self.disk.dead = True
            node.store.abandon()
        self.disk.dead = False
        if death.how == "power-cut":
            self.boots += 1
            self.clock.reboot()
            self.disk.power_cut(death.image, self._draws)
        else:
            self.disk.process_killed()
        lost, self.durable_lost = self.durable_lost, False
        self.world.tell(
            HostEnded(at_ms=self.world.now_ms(), host=self.name, how=death.how, durable_lost=lost, detail=detail)
        )
        self._ended.set()

    # --- its ends ---

    def die(self, how: str, *, image: str = "drop", restart: bool = False) -> None:
        """End the process as a `kill` or a `power-cut` does, from one line of its code to the next."""
        self.wanted = restart
        if self.process.is_gone or self._ended.is_set():
            return
        self._death = Death(how=how, image=image)
        self.process.dies()
        self.world.datagrams.unbind(self.address)
        if how == "power-cut":
            self.world.streams.power_lost(self.name)
            if restart:
                self.world.streams.power_back(self.name)
        else:
            self.world.streams.process_died(self.name)
        self.disk.dead = True
        self.world.queue.release(self.name)
        assert self._scope is not None, "a life begins with its scope"
        self._scope.cancel()

    async def lose_disk(self) -> None:
        """End the process together with what its disk holds; the caller then says what the disk is afterwards."""
        self.durable_lost = True
        self.die("power-cut")
        await self._ended.wait()
        if self.durable_lost:  # no process was there to end
            self.durable_lost = False
            self.world.tell(HostEnded(at_ms=self.world.now_ms(), host=self.name, how="power-cut", durable_lost=True))

    async def until_ended(self) -> None:
        """Wait until no process is left."""
        await self._ended.wait()

    async def stop(self) -> None:
        """Ask the node to stop in order, and wait until it has."""
        self.wanted = False
        if self.is_up:
            self._asked_to_stop.set()
        elif not self.process.is_gone:
            self.die("kill")  # it is still loading its modules
        await self._ended.wait()

    async def restart(self) -> None:
        """Kill the process and start it again, as an operator does who changed something."""
        self.die("kill")
        await self._ended.wait()
        await trio.sleep(RESTART_GAP_S)
        self.start()

    async def upgrade(self) -> None:
        """Stop in order and start as the next release."""
        await self.stop()
        self.runs_next_release = True
        self.start()

    async def roll_back(self) -> None:
        """Stop in order, lead the database back to this release, and start as that."""
        await self.stop()
        next_release.go_back(Path("/", self.name, "relaymesh.db"), self.world.vfs.name, now_ms=int(self.world.now_ms()))
        self.runs_next_release = False
        self.start()

    def pause(self) -> None:
        """Stop the process in its tracks, as SIGSTOP does."""
        if not self.process.is_gone:
            self.world.queue.hold(self.name)

    def resume(self) -> None:
        """Let it go on."""
        self.world.queue.release(self.name)

    # --- asking it ---

    async def call(self, command: str, args: Mapping[str, Any], timeout_s: float) -> Any:
        """The answer to an admin command, through the very bytes that a client sends.

        RelayMeshError is the node's own answer; UnavailableError before anything was sent; TimeoutError when nobody
        knows whether the request happened.
        """
        if not self.is_up:
            raise UnavailableError(f"{self.name} cannot be reached: connection refused")
        body = msgspec.msgpack.encode({"command": command, "namespace": "default", "args": dict(args)})
        return msgspec.msgpack.decode(await self.ask(lambda: self._service.handle(OPERATOR, body, None), timeout_s))

    async def ask(self, question: Callable[[], Awaitable[T]], timeout_s: float) -> T:
        """Have the host's own process do something and bring the outcome; TimeoutError when it dies or is too slow."""
        if self._nursery is None:
            raise TimeoutError(f"{self.name} does not run")
        outcome: list[Callable[[], T]] = []
        done = trio.Event()

        async def answer() -> None:
            self.questions += 1
            try:
                outcome.append(partial(_same, await question()))
            except RelayMeshError as error:
                outcome.append(partial(_raise, error))
            finally:
                self.questions -= 1
                done.set()

        self._in_context(self._nursery, answer)
        with trio.move_on_after(timeout_s):
            await done.wait()
        if self.process.is_gone:
            await self._ended.wait()  # the reset comes from a kernel whose process is gone
        if not outcome:
            raise TimeoutError(f"{self.name} gave no answer")
        return outcome[0]()

    async def read(self, fn: Callable[[Reader], T]) -> T:
        """Read its database, through its own store; TimeoutError when no process is there to do it."""
        node = self.node
        if node is None:
            raise TimeoutError(f"{self.name} does not run")
        return await self.ask(lambda: node.store.read(fn), 60.0)

    # --- what it shows ---

    def _on_commit(self, node: Node, commit: Commit) -> None:
        self.world.fingerprint.note("commit", repr(commit.requests).encode())
        self.world.tell(
            Committed(
                at_ms=self.world.now_ms(),
                host=self.name,
                changes=commit.changes,
                written=commit.requests,
                synced=self.disk.lying_sync or not self.disk.unsynced_bytes("-wal"),
                pulls=node.puller.pulls_total if hasattr(node, "puller") else 0,
            )
        )

    async def _on_replaced(self, node: Node) -> None:
        rows = await node.store.read(lambda reader: [row for table in WORK_TABLES for row in reader.select(table.name)])
        self.world.tell(DatabaseReplaced(at_ms=self.world.now_ms(), host=self.name, origin=node.store.origin))
        self.world.tell(
            Committed(
                at_ms=self.world.now_ms(),
                host=self.name,
                changes=tuple(Change(None, row, False) for row in rows),
                written=(),
                synced=self.disk.lying_sync or not self.disk.unsynced_bytes("relaymesh.db"),
                pulls=node.puller.pulls_total,
            )
        )

    async def _sample_now_and_then(self, node: Node) -> None:
        while True:
            await node.env.clock.sleep(SAMPLE_EVERY_S)
            try:
                stored, sums, memory, parked, stable, has_garbage = await node.store.read(
                    lambda reader: (
                        reader.vector(),
                        reader.sums(next_release.SCHEMA),  # of the tables that all releases here know
                        node.store.vector.copy(),
                        dict(reader.sql(FUTURE_ROWS)),
                        reader.stable().digest(),
                        node.store.has_garbage,
                    )
                )
            except RelayMeshError:
                continue  # the disk fails just now
            levels = {
                **{name: count for name, count in node.store.counters().items() if name.endswith("_waiting")},
                "rumors_queued": node.gossip.statistics().rumors_queued,
            }
            self.world.tell(
                Sampled(
                    at_ms=self.world.now_ms(),
                    host=self.name,
                    memory_vector=memory,
                    stored_vector=stored,
                    sums=sums,
                    parked=parked,
                    levels=levels,
                    stable=stable,
                    has_garbage=has_garbage,
                    forgotten=node.store.counters().get("rows_forgotten", 0),
                    collapsed=node.store.stable.collapsed.origin_count,
                    disk_writes=self.disk.writes,
                )
            )

    # --- what it is made of ---

    def _env(self, process: Process) -> Env:
        world, draws = self.world, self.world.stream(f"node {self.name} {self.lives}")

        def latency_s() -> float:
            mean_s = world.scenario.disk.latency_ms / 1000
            return draws.random() * 2 * mean_s + self.extra_latency_s

        thread = InlineThread(process, latency_s, lambda: world.heap.now)
        return Env(
            clock=self.clock,
            rng=random.Random(draws.getrandbits(64)),
            entropy=random.Random(draws.getrandbits(64)).randbytes,
            net=_HostNet(world, process, PeerIdentity("node", self.node_id, self.enrolment)),
            disk=SimulatedHostDisk(self, world.vfs.name),
            writer_thread=thread,
            reader_thread=thread,
            executor=SimulatedExecutor(
                world.heap,
                process,
                world.sink,
                tell=world.tell,
                now_ms=world.now_ms,
                on_poison=lambda: self.die("kill", restart=True),
            ),
        )

    def _spec(self) -> NodeSpec:
        return NodeSpec(
            node_id=self.node_id,
            identity=self.world.credentials.identity(self.node_id, self.enrolment),
            ring=self.world.credentials.ring,
            profile=PROFILES[self.world.scenario.profile],
            address=self.address,
            rpc_address=self.rpc_address,
            seeds=tuple(Address(seed + HOST_SUFFIX, GOSSIP_PORT) for seed in self.seeds),
            labels={},
            slots=SLOTS,
            version="simulated",
            settings=msgspec.convert(dict(self.settings), Settings),
        )

    def _config(self) -> NodeConfig:
        spec = self._spec()
        return NodeConfig(
            root=Path("/", self.name),
            node_id=NodeId(self.node_id),
            bind=self.address,
            rpc_bind=self.rpc_address,
            advertise=self.address,
            rpc_advertise=self.rpc_address,
            seeds=tuple(spec.seeds),
            enroll=None,
            agents=(),
            labels=spec.labels,
            slots=SLOTS,
            profile=self.world.scenario.profile,
            log_format="text",
            start_alone=False,
            settings=spec.settings,
        )


def _cause(error: BaseException) -> tuple[str, str]:
    """How a life ended that nobody ended: refused to start, with a word, or failed. Judged as `node.daemon` does."""
    if isinstance(error, BaseExceptionGroup):
        refusals, rest = error.split(RelayMeshError)
        if refusals is not None and rest is None:
            return _cause(refusals.exceptions[0])
    if isinstance(error, RelayMeshError):
        return "refused", str(error)
    return "failed", "".join(traceback.format_exception(error))


def _same(value: T) -> T:
    return value


def _raise(error: RelayMeshError) -> Any:
    raise error
