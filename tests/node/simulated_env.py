"""Whole nodes in one process: an `Env` whose network, executor and time belong to the test.

Each `Host` runs the real `node.node.Node` on a real database in its own folder. Datagrams and streams travel through
one `Network`, which loses, delays and cuts; handlers are coroutines of the test; time is Trio's, so that
`autojump_clock` skips every wait. A host can crash, start again on its disk, be paused like a stopped process, or stop
in order.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import apsw
import msgspec
import trio
import trio.testing

from chaos.simulation.credentials import Credentials
from mesh.errors import ConfigError, UnavailableError
from mesh.ids import Address, NodeId
from mesh.profiles import LOCAL, Profile
from mesh.rows import Row
from node import durable_files
from node.admin.service import AdminService
from node.config import NodeConfig
from node.env import AgentInfo, Env, Job, Outcome, PeerIdentity
from node.node import Node, NodeSpec
from node.settings import Settings
from node.streams.rpc import RpcServer

T = TypeVar("T")
Handler = Callable[[Job], Awaitable[Outcome]]

START_WALL_S = 1_700_000_000.0
CONNECT_TIMEOUT_S = 5.0
OPERATOR = PeerIdentity(role="operator", name="olga")


class Paused:
    """Whether one host's process is stopped. Everything that it does passes here, so that nothing moves meanwhile."""

    def __init__(self) -> None:
        self._running = trio.Event()
        self._running.set()
        self.since: float | None = None

    def stop(self) -> None:
        self.since = trio.current_time()
        self._running = trio.Event()

    def go_on(self) -> None:
        self.since = None
        self._running.set()

    async def wait(self) -> None:
        if self.since is not None:
            await self._running.wait()


class HostClock:
    """Trio's time, as one host sees it: it stands while the host is paused, and its wall time may be wrong."""

    def __init__(self, paused: Paused, wall_offset_s: float = 0.0) -> None:
        self._paused = paused
        self.wall_offset_s = wall_offset_s

    def monotonic(self) -> float:
        return trio.current_time() if self._paused.since is None else self._paused.since

    def wall(self) -> float:
        return START_WALL_S + self.monotonic() + self.wall_offset_s

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)
        await self._paused.wait()


class InlineThread:
    """Runs database calls at once, in the loop's own thread."""

    def __init__(self, paused: Paused) -> None:
        self._paused = paused
        self._closed = False

    async def run(self, fn: Callable[[], T]) -> T:
        with trio.CancelScope(shield=True):
            await trio.lowlevel.checkpoint()
            await self._paused.wait()
        if self._closed:
            raise UnavailableError("this process has ended")
        return fn()

    def close(self) -> None:
        self._closed = True


class _BreakableFile(apsw.VFSFile):
    def __init__(self, vfs: BreakableVfs, filename: Any, flags: list[int]) -> None:
        self._vfs = vfs
        super().__init__(vfs.base, filename, flags)

    def xWrite(self, data: bytes, offset: int) -> None:
        if self._vfs.broken:
            raise apsw.IOError("broken on purpose")
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:
        if self._vfs.broken:
            raise apsw.IOError("broken on purpose")
        super().xSync(flags)


class BreakableVfs(apsw.VFS):
    """A file system that takes no writes while it is `broken`. Unregister it at the end."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.broken = False
        self.base = apsw.vfs_names()[0]
        super().__init__(name, self.base)

    def xOpen(self, name: Any, flags: list[int]) -> _BreakableFile:
        return _BreakableFile(self, name, flags)


@dataclass
class HostDisk:
    root: Path
    vfs: str = ""
    shared_memory: bool = True
    free: int = 1 << 40

    def free_bytes(self) -> int:
        return self.free

    def load(self, name: str) -> bytes | None:
        path = self.root / name
        return path.read_bytes() if path.exists() else None

    def save(self, name: str, data: bytes) -> None:
        durable_files.replace(self.root / name, data)

    def kernel_boot_id(self) -> str:
        return "kernel-1"

    def exists(self, name: str) -> bool:
        return (self.root / name).exists()

    def rename(self, name: str, new_name: str) -> None:
        (self.root / name).rename(self.root / new_name)

    def remove(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)


class HostSocket:
    """One host's UDP socket."""

    def __init__(self, network: Network, host: str, address: Address, paused: Paused) -> None:
        self._network = network
        self._host = host
        self._address = address
        self._paused = paused
        self._inbox: deque[tuple[bytes, Address]] = deque()
        self._arrived = trio.Event()

    @property
    def address(self) -> Address:
        return self._address

    async def wait_readable(self) -> None:
        while not self._inbox:
            self._arrived = trio.Event()
            await self._arrived.wait()
        await self._paused.wait()

    def receive_nowait(self) -> tuple[bytes, Address] | None:
        return self._inbox.popleft() if self._inbox and self._paused.since is None else None

    def send(self, data: bytes, address: Address) -> bool:
        assert len(data) <= 1_200, len(data)
        self._network.send(self._host, data, self._address, address)
        return True

    def arrive(self, data: bytes, source: Address) -> None:
        self._inbox.append((data, source))
        self._arrived.set()

    def close(self) -> None:
        self._network.sockets.pop(self._address, None)


class HostStream:
    """One end of an authenticated stream. Bytes wait while the way is cut, as TCP's do."""

    def __init__(self, network: Network, pipe: trio.abc.Stream, me: str, peer: PeerIdentity, paused: Paused) -> None:
        self._network = network
        self._pipe = pipe
        self._me = me
        self._peer = peer
        self._paused = paused

    @property
    def peer(self) -> PeerIdentity:
        return self._peer

    async def send_all(self, data: bytes) -> None:
        await self._paused.wait()
        await self._network.wait_reachable(self._me, self._peer.name)
        if self._network.breaks(self._me, self._peer.name, len(data)):
            await self.aclose()
            raise trio.BrokenResourceError("broken on purpose")
        self._network.stream_bytes[self._me, self._peer.name] += len(data)
        await self._pipe.send_all(data)

    async def receive_some(self, max_bytes: int) -> bytes:
        data = bytes(await self._pipe.receive_some(max_bytes))
        await self._network.wait_reachable(self._peer.name, self._me)
        await self._paused.wait()
        return data

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._pipe)


@dataclass
class Listener:
    host: str
    nursery: trio.Nursery
    handler: Callable[[HostStream], Awaitable[object]]
    paused: Paused

    async def serve(self, stream: HostStream) -> None:
        try:
            await self.handler(stream)
        finally:
            await stream.aclose()


class Network:
    """What lies between the hosts: loss and delay for datagrams, cuts for everything."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.loss = 0.0
        self.delay_s = 0.001
        self.sockets: dict[Address, tuple[str, HostSocket]] = {}
        self.listeners: dict[Address, Listener] = {}
        self.cuts: set[tuple[str, str]] = set()  # only membership is asked, never iterated
        self.healed = trio.Event()
        self.datagrams: Counter[tuple[str, str]] = Counter()
        """Delivered, by (sender, receiver)."""
        self.stream_bytes: Counter[tuple[str, str]] = Counter()
        self.breaks_after: dict[tuple[str, str], int] = {}
        """Bytes that streams still carry from a sender to a receiver before they break, once."""
        self.nursery: trio.Nursery | None = None

    def cut(self, one: Iterable[str], other: Iterable[str]) -> None:
        """Nothing passes between the two sides any more."""
        for a in one:
            for b in other:
                self.cuts |= {(a, b), (b, a)}

    def heal(self) -> None:
        """Everybody hears everybody again."""
        self.cuts.clear()
        self.healed.set()
        self.healed = trio.Event()

    def crossed(self, one: Iterable[str], other: Iterable[str]) -> int:
        """Datagrams and stream bytes that ever passed between the two sides."""
        other = list(other)
        pairs = [pair for a in one for b in other for pair in ((a, b), (b, a))]
        return sum(self.datagrams[pair] + self.stream_bytes[pair] for pair in pairs)

    def breaks(self, sender: str, receiver: str, size: int) -> bool:
        """Whether a stream breaks while it carries this much more."""
        left = self.breaks_after.get((sender, receiver))
        if left is None or left >= size:
            self.breaks_after.update({(sender, receiver): left - size} if left is not None else {})
            return False
        del self.breaks_after[sender, receiver]
        return True

    async def wait_reachable(self, sender: str, receiver: str) -> None:
        while (sender, receiver) in self.cuts:
            await self.healed.wait()

    def send(self, sender: str, data: bytes, source: Address, target: Address) -> None:
        if self.nursery is not None and self._rng.random() >= self.loss:
            self.nursery.start_soon(self._deliver, sender, data, source, target)

    async def _deliver(self, sender: str, data: bytes, source: Address, target: Address) -> None:
        await trio.sleep(self.delay_s * (0.5 + self._rng.random()))
        found = self.sockets.get(target)
        if found is not None and (sender, found[0]) not in self.cuts:
            self.datagrams[sender, found[0]] += 1
            found[1].arrive(data, source)


class HostNet:
    """`node.env.Net` of one host."""

    def __init__(self, network: Network, host: str, paused: Paused) -> None:
        self._network = network
        self._host = host
        self._paused = paused

    async def bind_datagram(self, address: Address) -> HostSocket:
        if address in self._network.sockets:
            raise ConfigError(f"{address} is already in use")
        socket = HostSocket(self._network, self._host, address, self._paused)
        self._network.sockets[address] = (self._host, socket)
        return socket

    async def connect(self, address: Address) -> HostStream:
        await self._paused.wait()
        await trio.sleep(self._network.delay_s)
        listener = self._network.listeners.get(address)
        if listener is not None and (self._host, listener.host) in self._network.cuts:
            await trio.sleep(CONNECT_TIMEOUT_S)
            raise UnavailableError(f"{address} does not answer")
        if listener is None:
            raise UnavailableError(f"nobody listens on {address}")
        ours, theirs = trio.testing.memory_stream_pair()
        stream = HostStream(self._network, theirs, listener.host, PeerIdentity("node", self._host), listener.paused)
        listener.nursery.start_soon(listener.serve, stream)
        return HostStream(self._network, ours, self._host, PeerIdentity("node", listener.host), self._paused)

    async def serve(
        self,
        address: Address,
        handler: Callable[[HostStream], Awaitable[object]],
        *,
        task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        async with trio.open_nursery() as nursery:
            self._network.listeners[address] = Listener(self._host, nursery, handler, self._paused)
            try:
                task_status.started(address)
                await trio.sleep_forever()
            finally:
                del self._network.listeners[address]

    async def serve_local(self, path: Path, handler: object, *, task_status: trio.TaskStatus[None]) -> None:
        raise AssertionError("tests ask a host directly: Host.admin")


async def echo(job: Job) -> Outcome:
    """Return the payload."""
    await trio.sleep(0.01)
    return Outcome(kind="success", result=job.payload)


async def fail(job: Job) -> Outcome:
    """Fail, like a handler that raises."""
    await trio.sleep(0.01)
    return Outcome(kind="failed", error="told to fail", log="about to fail")


async def nap(job: Job) -> Outcome:
    """Sleep as many seconds as the payload says."""
    await trio.sleep(float(job.payload))
    return Outcome(kind="success", result=job.payload)


async def join(job: Job) -> Outcome:
    """Join the outputs of the parents, by name."""
    return Outcome(kind="success", result=b"+".join(job.parents[name] for name in sorted(job.parents)))


BUILTINS: Mapping[str, Handler] = {"echo": echo, "fail": fail, "sleep": nap, "join": join}


class ScriptedExecutor:
    """`node.env.Executor` whose handlers are coroutines."""

    def __init__(
        self, host: str, paused: Paused, handlers: Mapping[str, Handler], infos: Mapping[str, AgentInfo]
    ) -> None:
        self._host = host
        self._paused = paused
        self._handlers = handlers
        self._infos = {name: infos.get(name) or AgentInfo(name=name, kind="builtin") for name in handlers}
        self.jobs: list[Job] = []
        """Every attempt that was started here, in order."""
        self.running_now = 0

    def agents(self) -> Mapping[str, AgentInfo]:
        return self._infos

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        yield

    def running(self) -> Any:
        return self._running()

    async def run(self, job: Job) -> Outcome:
        self.jobs.append(job)
        self.running_now += 1
        try:
            with trio.move_on_after(job.timeout_s):
                outcome = await self._handlers[job.agent](job)
                await self._paused.wait()
                return outcome
        finally:
            self.running_now -= 1
        return Outcome(kind="timeout", error=f"ran longer than {job.timeout_s} s")


@dataclass
class Host:
    """One machine: its disk stays, its node comes and goes."""

    world: World
    name: str
    root: Path
    handlers: Mapping[str, Handler]
    infos: Mapping[str, AgentInfo]
    labels: dict[str, str]
    slots: int
    settings: Settings
    wall_offset_s: float = 0.0
    enrolment: int = 1
    start_alone: bool = False
    jobs: list[Job] = field(default_factory=list)
    """Attempts started in any life of this host."""
    results: list[Row] = field(default_factory=list)
    """Steps that this host itself committed as SUCCESS."""

    def __post_init__(self) -> None:
        self.paused = Paused()
        self.disk = HostDisk(self.root)
        self._scope: trio.CancelScope | None = None
        self._alive = False
        self._ended = trio.Event()

    @property
    def address(self) -> Address:
        return Address(f"{self.name}.test", 17_888)

    @property
    def rpc_address(self) -> Address:
        return Address(f"{self.name}.test", 18_443)

    @property
    def is_up(self) -> bool:
        return self._scope is not None

    @property
    def is_down(self) -> bool:
        """Whether no life is there, not even one that begins or ends."""
        return not self._alive

    async def start(self) -> None:
        """Begin a life; returns when the node can take work."""
        assert self.is_down, f"{self.name} runs already"
        self._alive = True
        self._ended = trio.Event()
        await self.world.nursery.start(self._life)

    async def _life(self, task_status: trio.TaskStatus[None]) -> None:
        net = HostNet(self.world.network, self.name, self.paused)
        rng = random.Random(self.world.rng.getrandbits(64))
        self.executor = ScriptedExecutor(self.name, self.paused, self.handlers, self.infos)
        self.executor.jobs = self.jobs
        self.env = Env(
            clock=HostClock(self.paused, self.wall_offset_s),
            rng=rng,
            entropy=rng.randbytes,
            net=net,
            disk=self.disk,
            writer_thread=InlineThread(self.paused),
            reader_thread=InlineThread(self.paused),
            executor=self.executor,
        )
        self.node = Node(self.env, self._spec())
        await self.node.open()
        self.service = AdminService(self.node, self._config())
        self.node.store.on_commit(self._note_results)
        socket = await net.bind_datagram(self.address)
        self.clean = False
        try:
            with trio.CancelScope() as self._scope:
                async with trio.open_nursery() as nursery:

                    async def serve(server: RpcServer) -> None:
                        await nursery.start(net.serve, self.rpc_address, server.handle)

                    await nursery.start(partial(self._run_node, socket, serve))
                    task_status.started()
        finally:
            self._scope = None
            socket.close()
            await self._close_database()
            self._alive = False
            self._ended.set()

    async def _run_node(
        self,
        socket: HostSocket,
        serve: Callable[[RpcServer], Awaitable[None]],
        *,
        task_status: trio.TaskStatus[None],
    ) -> None:
        await self.node.run(socket, self.service.handle, serve=serve, task_status=task_status)

    async def _close_database(self) -> None:
        if self.clean:
            await self.node.close()
            return
        # A killed process marks nothing as left in order; only its file handles go.
        self.env.writer_thread.close()
        self.env.reader_thread.close()
        store = self.node.store
        for connection in (store._reader_connection, store._writer.ledger.connection):
            if connection is not None:
                connection.close(True)

    def _note_results(self, commit: Any) -> None:
        self.results += [
            change.after
            for change in commit.changes
            if change.local and change.after.table == "steps" and change.after.values.get("status") == "SUCCESS"
        ]

    def _spec(self) -> NodeSpec:
        return NodeSpec(
            node_id=self.name,
            identity=self.world.mesh.identity(self.name, self.enrolment),
            ring=self.world.mesh.ring,
            profile=self.world.profile,
            address=self.address,
            rpc_address=self.rpc_address,
            seeds=self.world.seeds_of(self.name),
            labels=self.labels,
            slots=self.slots,
            version="1.0-test",
            settings=self.settings,
            start_alone=self.start_alone,
        )

    def _config(self) -> NodeConfig:
        return NodeConfig(
            root=self.root,
            node_id=NodeId(self.name),
            bind=self.address,
            rpc_bind=self.rpc_address,
            advertise=self.address,
            rpc_advertise=self.rpc_address,
            seeds=self.world.seeds_of(self.name),
            enroll=None,
            agents=(),
            labels=self.labels,
            slots=self.slots,
            profile="local",
            log_format="text",
            start_alone=self.start_alone,
            settings=self.settings,
        )

    async def crash(self) -> None:
        """End like a killed process: no goodbye, nothing given back."""
        assert self._scope is not None, f"{self.name} does not run"
        self.world.network.sockets.pop(self.address, None)
        self._scope.cancel()
        await self._ended.wait()

    async def stop(self) -> None:
        """End in order."""
        await self.node.stop()
        if self.is_up:
            self.clean = True
            await self.crash()

    def pause(self) -> None:
        """Stop the process, as SIGSTOP does."""
        self.paused.stop()

    def resume(self) -> None:
        """Let it go on."""
        self.paused.go_on()

    # --- asking ---

    async def admin(self, command: str, *, namespace: str = "default", **args: Any) -> Any:
        """The answer to an admin command, through the very bytes that a client sends."""
        body = msgspec.msgpack.encode({"command": command, "namespace": namespace, "args": args})
        return msgspec.msgpack.decode(await self.service.handle(OPERATOR, body, None))

    async def submit(self, agent: str = "echo", **args: Any) -> str:
        """Submit one step; returns the task's id."""
        return str((await self.admin("submit", agent=agent, **args))["taskId"])

    async def workflow(self, *steps: Mapping[str, Any], **args: Any) -> str:
        """Submit a workflow; returns the task's id."""
        return str((await self.admin("submit-workflow", definition={"steps": list(steps)}, **args))["taskId"])

    async def wait(self, task_id: str, timeout_s: float = 60.0) -> Any:
        """The task once it has ended, asked here; it may have to arrive first."""
        await self.world.until(lambda: self.knows(task_id))
        view = await self.admin("wait", taskId=task_id, timeoutMs=int(timeout_s * 1000))
        assert not view["timedOut"], view
        return view

    async def rows(self, table: str) -> list[Row]:
        """All current rows of one table."""
        return await self.node.store.read(lambda reader: reader.select(table, order="key"))

    async def step(self, task_id: str, name: str | None = None) -> Row | None:
        """The step of this task with this name (or its only one) as this host has it."""
        found = await self.node.store.read(lambda reader: reader.select("steps", "task_id = ?", (task_id,)))
        return next((row for row in found if name is None or row.text("name") == name), None)

    async def knows(self, task_id: str) -> bool:
        """Whether the task and all of its steps have arrived here."""
        tasks = await self.node.store.read(lambda reader: reader.select("tasks", "key = ?", (task_id,)))
        steps = await self.node.store.read(lambda reader: reader.select("steps", "task_id = ?", (task_id,)))
        return bool(tasks) and len(steps) == tasks[0].integer("step_count")

    async def status(self, task_id: str, name: str | None = None) -> str | None:
        """The step's status as this host has it; None when it has not heard of it."""
        step = await self.step(task_id, name)
        return None if step is None else step.text("status")

    def sees(self, name: str) -> str | None:
        """The protocol status of another member, as seen here."""
        member = self.node.gossip.members.get(name)
        return None if member is None else member.status.value

    async def actions(self, task_id: str) -> list[str]:
        """What happened to the task, in order."""
        rows = await self.node.store.read(lambda reader: reader.select("history", "task_id = ?", (task_id,)))
        return [row.text("action") for row in sorted(rows, key=lambda row: (row.hlc, row.key))]


class World:
    """Hosts and what lies between them. Use `simulated_world` to make one."""

    def __init__(self, root: Path, nursery: trio.Nursery, *, seed: int, profile: Profile) -> None:
        self.root = root
        self.nursery = nursery
        self.rng = random.Random(seed)
        self.profile = profile
        self.mesh = Credentials(1)
        self.network = Network(random.Random(self.rng.getrandbits(64)))
        self.network.nursery = nursery
        self.hosts: dict[str, Host] = {}

    def host(
        self,
        name: str,
        *,
        agents: Mapping[str, Handler] | None = None,
        infos: Mapping[str, AgentInfo] | None = None,
        labels: dict[str, str] | None = None,
        slots: int = 4,
        wall_offset_s: float = 0.0,
        vfs: str = "",
        **settings: Any,
    ) -> Host:
        """A host that has all others as seeds. `agents` adds to the built-in ones."""
        root = self.root / name
        root.mkdir()
        host = Host(
            self,
            name,
            root,
            handlers={**BUILTINS, **(agents or {})},
            infos=infos or {},
            labels=labels or {},
            slots=slots,
            settings=Settings(**settings),
            wall_offset_s=wall_offset_s,
        )
        host.disk.vfs = vfs
        self.hosts[name] = host
        return host

    def seeds_of(self, name: str) -> tuple[Address, ...]:
        """Where a host finds the others."""
        return tuple(other.address for other in self.hosts.values() if other.name != name)

    async def up(self, *hosts: Host) -> None:
        """Start these hosts (by default all), and wait until all running ones know each other and their offers."""
        for host in hosts or tuple(self.hosts.values()):
            await host.start()
        await self.until(self.is_whole)

    def running(self) -> list[Host]:
        return [host for host in self.hosts.values() if host.is_up]

    def is_whole(self) -> bool:
        """Whether every running host sees all of them ALIVE, and knows what they can run."""
        hosts = self.running()
        names = {host.name for host in hosts}
        return all(
            {member.node_id for member in host.node.gossip.members.alive()} >= names
            and host.node.ownership.all_offers().keys() >= names
            and host.node.gate.is_open
            for host in hosts
        )

    async def until(self, condition: Callable[[], Any], limit_s: float = 60.0, every_s: float = 0.05) -> float:
        """Wait until the (perhaps async) condition holds; the seconds that took. AssertionError when it does not."""
        began = trio.current_time()
        while True:
            holds = condition()
            if isinstance(holds, Awaitable):
                holds = await holds
            if holds:
                return trio.current_time() - began
            assert trio.current_time() - began < limit_s, f"not within {limit_s} s"
            await trio.sleep(every_s)

    async def agree(self) -> bool:
        """Whether all running hosts have the same vector and, row by row, the same content."""
        seen = set()
        for host in self.running():
            vector, sums = await host.node.store.read(lambda reader: (reader.vector(), reader.sums()))
            seen.add((vector.digest(), tuple(sorted(sums.items()))))
        return len(seen) == 1


def fast(profile: Profile = LOCAL, **changes: Any) -> Profile:
    """A profile with some values changed."""
    return dataclasses.replace(profile, **changes)


@asynccontextmanager
async def simulated_world(root: Path, *, seed: int = 1, profile: Profile = LOCAL) -> AsyncIterator[World]:
    """A world, and at the end of the block the end of every host in it."""
    async with trio.open_nursery() as nursery:
        yield World(root, nursery, seed=seed, profile=profile)
        nursery.cancel_scope.cancel()
