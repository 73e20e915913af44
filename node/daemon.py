"""`relaymesh-node`: start a node on this host, and stop it in order.

Nothing is written before flags, settings, ports, agent files and the identity were found good; the database, which the
identity is needed for, is checked last. Every refusal is one line on standard error that says what to do.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path

import trio

from mesh import profiles
from mesh.errors import ConfigError, ConflictError, RelayMeshError
from node import identity_files, logs
from node.admin.service import AdminService
from node.agents.executor import ProcessExecutor
from node.config import NodeConfig, parse_config
from node.datagrams import bind_error
from node.env import DatagramSocket, Env, SecureStream
from node.identity_files import Enrolment
from node.node import Node, NodeSpec
from node.real_env import make_env
from node.reenrolment import Reenrolment
from node.root_lock import root_lock
from node.settings import SETTINGS_FILE, changed_without_effect
from node.settings_reload import SettingsReload
from node.streams.rpc import RpcServer
from node.streams.tls import make_contexts
from node.streams.trio_net import TrioNet

log = logging.getLogger("relaymesh")

EXIT_REFUSED = 2
EXIT_CONFLICT = 4
STOP_MAX_S = 14.0
"""The contract says 15 s from SIGTERM to the end; past this the rest is left to the next start's recovery."""


def main() -> None:
    """Entry point of `relaymesh-node`."""
    try:
        _check_packages()
        config = parse_config(sys.argv[1:], os.environ)
        run(config)
    except ConflictError as error:
        _refuse(error, EXIT_CONFLICT)
    except RelayMeshError as error:
        _refuse(error, EXIT_REFUSED)


def _refuse(error: RelayMeshError, code: int) -> None:
    print(f"relaymesh-node: {error}", file=sys.stderr)  # noqa: T201 -- one line for the operator, before any log
    sys.exit(code)


def _check_packages() -> None:
    """Refuse to run on another distribution's `mesh`, `tools` or `chaos`: those names are not ours alone."""
    here = Path(__file__).resolve().parent.parent
    for name in ("mesh", "tools", "chaos"):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None or Path(spec.origin).resolve().parent.parent != here:
            raise ConfigError(
                f"the package {name!r} found at {spec.origin if spec else 'nowhere'} is not RelayMesh's: install "
                "relaymesh in a virtual environment of its own"
            )


def version() -> str:
    """The installed version of RelayMesh; `0+unknown` when run from a tree that was never installed."""
    try:
        return installed_version("relaymesh")
    except PackageNotFoundError:
        return "0+unknown"


def run(config: NodeConfig) -> None:
    """Run a node until it is told to stop. Raises before anything is written when the host or the flags forbid it."""
    logs.set_up(config.log_format, config.node_id)
    for key in changed_without_effect(config.settings):
        log.warning("the setting %s has no effect in this release", key)
    with root_lock(config.root):
        _check_ports(config)
        executor = _executor(config)
        try:
            trio.run(_start, config, executor, _process_signals)
        except BaseExceptionGroup as group:
            # Not `except*`: what such a block raises is a group again, and `main` would not know it.
            refusals, rest = group.split(RelayMeshError)
            if refusals is None or rest is not None:
                raise
            raise _first(refusals) from None


async def embed(
    config: NodeConfig,
    signals: AsyncIterator[int],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a node inside of somebody else's loop, until `signals` brings a number; the process's own are left alone.

    Raises as `run`, errors of the running node in groups. `task_status.started()` when it can take work.
    """
    with root_lock(config.root):
        _check_ports(config)
        await _start(config, _executor(config), lambda: nullcontext(signals), task_status.started)


def _process_signals() -> AbstractContextManager[AsyncIterator[int]]:
    return trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def _executor(config: NodeConfig) -> ProcessExecutor:
    return ProcessExecutor(
        config.root,
        config.agents,
        slots=config.slots,
        memory_bytes_max=config.settings.agent_memory_mb << 20,
        default_timeout_s=config.settings.agent_timeout_ms / 1000,
        result_bytes_max=config.settings.result_max_bytes,
        reload_agents=config.dev,
    )


async def _start(
    config: NodeConfig,
    executor: ProcessExecutor,
    open_signals: Callable[[], AbstractContextManager[AsyncIterator[int]]],
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    # Agent files are read first: one that cannot be imported must be refused before a mesh is founded for it.
    async with executor.running():
        enrolment = _enrolment(config)
        net = TrioNet(make_contexts(enrolment.tls_material), source_host=config.rpc_bind.host)
        env = make_env(config.root, net=net, executor=executor)
        try:
            with open_signals() as signals:
                await _serve(config, enrolment, env, net, signals, on_ready)
        finally:
            env.writer_thread.close()
            env.reader_thread.close()


def _first(group: BaseExceptionGroup[RelayMeshError]) -> RelayMeshError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, RelayMeshError), error
    return error


def _check_ports(config: NodeConfig) -> None:
    """Refuse a taken port before a mesh is founded or an enrolment installed: a refused start leaves no trace."""
    for address, kind in ((config.bind, socket.SOCK_DGRAM), (config.rpc_bind, socket.SOCK_STREAM)):
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        with socket.socket(family, kind) as probe:
            if kind == socket.SOCK_STREAM:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except OSError as error:
                raise bind_error(address, error) from None


def _enrolment(config: NodeConfig) -> Enrolment:
    if config.enroll is not None:
        enrolment = identity_files.install(config.root, config.enroll)
    else:
        enrolment = identity_files.load(config.root) or _founded(config)
    if enrolment.role != "node":
        raise ConfigError(
            f"{config.enroll} enrols the operator {enrolment.name}, not a node: make one for this host with "
            f"`relaymesh mesh enroll --mesh DIR --node-id {config.node_id} --out FILE`"
        )
    if enrolment.name != config.node_id:
        raise ConflictError(
            f"this root is enrolled as {enrolment.name}, not as {config.node_id}: leave --node-id away, or give "
            "another --root"
        )
    return enrolment


def _founded(config: NodeConfig) -> Enrolment:
    """A mesh of one. `parse_config` has refused seeds of other nodes without an identity in their mesh."""
    enrolment = identity_files.found(config.root, config.node_id)
    log.info(
        "founded a mesh of one; others join with `relaymesh mesh enroll --mesh %s --node-id OTHER --out OTHER.enroll`, "
        "then `relaymesh-node --root DIR --enroll OTHER.enroll --seeds %s` on their host",
        config.root / "mesh",
        config.advertise,
    )
    return enrolment


def spec_of(config: NodeConfig, enrolment: Enrolment) -> NodeSpec:
    """What `node.node.Node` needs, from what the operator gave."""
    return NodeSpec(
        node_id=config.node_id,
        identity=enrolment.identity(),
        ring=enrolment.ring(),
        ring_statement=enrolment.ring_statement,
        authorities_statement=enrolment.authorities_statement,
        ca_root=enrolment.authorities.cas[0].root,
        tls_certificate=enrolment.tls_certificate_pem,
        profile={"local": profiles.LOCAL, "lan": profiles.LAN, "wan": profiles.WAN}[config.profile],
        address=config.advertise,
        rpc_address=config.rpc_advertise,
        seeds=config.seeds,
        labels=dict(config.labels),
        slots=config.slots,
        version=version(),
        settings=config.settings,
        start_alone=config.start_alone,
    )


async def _serve(
    config: NodeConfig,
    enrolment: Enrolment,
    env: Env,
    net: TrioNet,
    signals: AsyncIterator[int],
    on_ready: Callable[[], None],
) -> None:
    async with trio.open_nursery() as streams:
        # Ports come before the database: a taken port must leave no trace.
        datagrams = await env.net.bind_datagram(config.bind)
        try:
            ready = _LateServer()
            await streams.start(env.net.serve, config.rpc_bind, ready.handle)
            await streams.start(env.net.serve_local, config.root / "control.sock", ready.handle)
            node = Node(env, spec_of(config, enrolment))
            await node.open()
            try:
                settings = SettingsReload.of_file(node, config.root / SETTINGS_FILE, os.environ)
                admin = AdminService(node, config, Reenrolment(node, net, config.root, enrolment), settings)
                await _run_node(node, config, admin, settings, datagrams, ready, signals, on_ready)
            finally:
                with trio.CancelScope(shield=True), trio.move_on_after(STOP_MAX_S):
                    await node.close()
        finally:
            datagrams.close()
        streams.cancel_scope.cancel()


async def _run_node(
    node: Node,
    config: NodeConfig,
    admin: AdminService,
    settings: SettingsReload,
    datagrams: DatagramSocket,
    ready: _LateServer,
    signals: AsyncIterator[int],
    on_ready: Callable[[], None],
) -> None:
    async with trio.open_nursery() as nursery:

        async def start(server: RpcServer) -> None:
            ready.open(server)

        async def run_node(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            await node.run(datagrams, admin.handle, serve=start, task_status=task_status)

        await nursery.start(run_node)
        log.info(
            "ready: node %s of mesh %s, gossip %s, streams %s, control %s",
            config.node_id,
            node.spec.identity.certificate.cluster.hex(),
            config.bind,
            config.rpc_bind,
            config.root / "control.sock",
        )
        nursery.start_soon(settings.watch, config.root / SETTINGS_FILE)
        on_ready()
        async for signum in signals:
            if signum == signal.SIGHUP:
                nursery.start_soon(settings.reload_quietly, "signal")
                continue
            log.info("%s: giving work back and leaving", signal.Signals(signum).name)
            break
        with trio.move_on_after(STOP_MAX_S) as limit:
            await node.stop()
        if limit.cancelled_caught:
            log.warning("not everything was given back within %s s; the next start recovers the rest", STOP_MAX_S)
        nursery.cancel_scope.cancel()
    log.info("stopped")


class _LateServer:
    """Lets streams be accepted before the node behind them exists: early callers wait, for a bounded time."""

    def __init__(self) -> None:
        self._server: RpcServer | None = None
        self._opened = trio.Event()

    def open(self, server: RpcServer) -> None:
        """From now on streams are served."""
        self._server = server
        self._opened.set()

    async def handle(self, stream: SecureStream) -> None:
        """Serve one stream once the server is there."""
        with trio.move_on_after(30.0):
            await self._opened.wait()
        if self._server is not None:
            await self._server.handle(stream)
        else:
            await stream.aclose()
