"""Meshes of real `relaymesh-node` processes on loopback, and everything that may happen to a process.

Each node has an address of its own in a /24 that no other cluster of this host uses, so that clusters run side by side
and firewall rules can tell nodes apart. When the `with` block of a `Cluster` ends, for whatever reason, its processes
are gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import chaos
from chaos.real.kernel import die_with_parent
from chaos.real.networks import GOSSIP_PORT, LoopbackNetwork, Network
from mesh.errors import ConfigError, RelayMeshError, UnavailableError
from mesh.ids import Address, NodeId, parse_node_id
from node import identity_files
from node.admin_client import call_local

T = TypeVar("T")

STREAM_PORT = 18443
MARKER = "RELAYMESH_TEST_MARKER"
"""Environment variable that every process of a cluster inherits, agents and their children included."""

READY_S = 20.0
TERMINATE_S = 20.0  # a node promises to exit within 15 s of SIGTERM
POLL_S = 0.05
_READY = re.compile(rb"\bready: node ")
_LOG_TAIL_BYTES = 4096
SETTINGS_FILE = "relaymesh-settings.json"


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """One node of a cluster: its name, where it lives, and how it is started beyond the cluster's own flags."""

    node_id: NodeId
    host: str
    root: Path
    log: Path
    flags: tuple[str, ...] = ()

    @property
    def gossip(self) -> Address:
        """Where its datagrams arrive."""
        return Address(self.host, GOSSIP_PORT)

    @property
    def stream(self) -> Address:
        """Where its TLS streams arrive."""
        return Address(self.host, STREAM_PORT)


@dataclass(frozen=True, slots=True)
class Release:
    """What a node runs in place of this source tree."""

    python_path: str
    """Where its packages are found first, such as the folder of an unpacked wheel."""
    command: tuple[str, ...]
    """What starts it, in place of `node_command`."""


@dataclass(slots=True)
class _Running:
    process: subprocess.Popen[bytes]
    log_offset: int
    paused: bool = field(default=False)


class Cluster:
    """Nodes that share a mesh and a directory. Nothing runs before `start`.

    `flags` gives extra command-line flags by node id; `agents` files are given to every node, `settings` become every
    node's settings file. With `outlive_us` the nodes survive this process and the end of the block (`relaymesh demo
    --keep`); otherwise even a `kill -9` of this process ends them. `network` None takes a new one on loopback.
    """

    def __init__(
        self,
        directory: Path,
        node_ids: Sequence[str],
        *,
        profile: str = "local",
        slots: int = 4,
        agents: Sequence[Path] = (),
        flags: Mapping[str, Sequence[str]] | None = None,
        settings: Mapping[str, Any] | None = None,
        outlive_us: bool = False,
        network: Network | None = None,
    ) -> None:
        self.directory = directory
        self.marker = f"cluster-{secrets.token_hex(8)}"
        self._network = network or LoopbackNetwork()
        self._outlive_us = outlive_us
        self._running: dict[str, _Running] = {}
        self._flags = ["--profile", profile, "--slots", str(slots)]
        for agent_file in agents:
            self._flags += ["--agents", str(agent_file)]
        self._settings = dict(settings or {})
        self.mesh_directory = directory / "mesh"
        self.nodes: dict[str, NodeSpec] = {}
        self.releases: dict[str, Release] = {}
        """Nodes that run something else than this source tree, by id. Looked at when a node starts."""
        directory.mkdir(parents=True, exist_ok=True)
        identity_files.create_mesh(self.mesh_directory)
        for node_id in node_ids:
            self.add(node_id, flags=(flags or {}).get(node_id, ()))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- what there is ---

    def add(self, node_id: str, *, flags: Sequence[str] = ()) -> NodeSpec:
        """Enrol one more node and give it an address; it does not start yet."""
        name = parse_node_id(node_id)
        if name in self.nodes:
            raise ConfigError(f"the cluster has a node {name} already")
        spec = NodeSpec(
            node_id=name,
            host=self._network.host(len(self.nodes) + 1),
            root=self.directory / name,
            log=self.directory / f"{name}.log",
            flags=tuple(flags),
        )
        spec.root.mkdir(mode=0o700, parents=True)
        identity_files.enroll(self.mesh_directory, node_id=name, out=self.enrolment(name))
        if self._settings:
            (spec.root / SETTINGS_FILE).write_text(json.dumps(self._settings))
        self.nodes[name] = spec
        return spec

    def enrolment(self, node_id: str) -> Path:
        """The enrolment file of a node."""
        return self.directory / f"{node_id}.enrolment"

    def command(self, node_id: str) -> list[str]:
        """The full command line that starts a node."""
        spec = self.nodes[node_id]
        seeds = ",".join(str(other.gossip) for other in self.nodes.values())
        release = self.releases.get(node_id)
        return [
            *(node_command() if release is None else release.command),
            *("--root", str(spec.root), "--node-id", spec.node_id),
            *("--bind", str(spec.gossip), "--rpc-bind", str(spec.stream)),
            *("--seeds", seeds, "--enroll", str(self.enrolment(node_id))),
            *self._flags,
            *spec.flags,
        ]

    def pid(self, node_id: str) -> int:
        """The process id of a running node."""
        return self._process(node_id).pid

    def running(self) -> list[str]:
        """The ids of the nodes whose processes live, paused ones included, in the order in which they started."""
        return [node_id for node_id, running in self._running.items() if running.process.poll() is None]

    # --- what happens to processes ---

    def start(self, *node_ids: str, wait: bool = True) -> None:
        """Start these nodes (all that do not run, if none is named) and, if asked, wait until each says it is ready."""
        chosen = node_ids or tuple(node_id for node_id in self.nodes if node_id not in self.running())
        for node_id in chosen:
            self._spawn(node_id)
        if wait:
            for node_id in chosen:
                self.wait_ready(node_id)

    def wait_ready(self, node_id: str, timeout_s: float = READY_S) -> None:
        """Return when the node's present process has logged its `ready` line; UnavailableError with its log if not."""
        running = self._running[node_id]

        def ready() -> bool:
            if self.is_ready(node_id):
                return True
            code = running.process.poll()
            if code is not None:
                raise UnavailableError(f"{node_id} exited with {code} before it was ready:\n{self.log_tail(node_id)}")
            return False

        try:
            wait_until(ready, timeout_s, f"{node_id} is ready")
        except TimeoutError as error:
            raise UnavailableError(f"{error}; its log ends:\n{self.log_tail(node_id)}") from error

    def is_ready(self, node_id: str) -> bool:
        """Whether the node's latest process, which may have ended, has logged its `ready` line."""
        return _READY.search(self._log_bytes(node_id)[self._running[node_id].log_offset :]) is not None

    def exit_code(self, node_id: str) -> int | None:
        """What the node's latest process ended with; None when it runs. Negative: the signal that ended it."""
        return self._running[node_id].process.poll()

    def kill(self, node_id: str) -> None:
        """`kill -9` the node's process, and only that one; return when it is gone."""
        process = self._process(node_id)
        process.kill()
        process.wait()

    def terminate(self, node_id: str, timeout_s: float = TERMINATE_S) -> int:
        """Ask the node to stop (SIGTERM) and return its exit code; TimeoutError when it takes longer."""
        process = self._process(node_id)
        process.terminate()
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(
                f"{node_id} still ran {timeout_s:.0f} s after SIGTERM; its log ends:\n{self.log_tail(node_id)}"
            ) from error

    def pause(self, node_id: str) -> None:
        """Stop the node's process in its tracks (SIGSTOP); its agents go on."""
        self._process(node_id).send_signal(signal.SIGSTOP)
        self._running[node_id].paused = True

    def resume(self, node_id: str) -> None:
        """Let a paused node go on as if nothing had happened."""
        self._process(node_id).send_signal(signal.SIGCONT)
        self._running[node_id].paused = False

    def restart(self, node_id: str) -> None:
        """Start a node again on its old root, after it was killed or stopped."""
        if node_id in self.running():
            self.kill(node_id)
        self.start(node_id)

    def close(self) -> None:
        """End all processes of the cluster; with `outlive_us`, only let go of them."""
        try:
            if not self._outlive_us:
                self._end_all()
        finally:
            self._network.release()

    def shut_down(self) -> None:
        """End all processes even of a cluster that was meant to outlive us."""
        self._outlive_us = False
        self.close()

    # --- questions ---

    def admin(self, node_id: str, command: str, *, namespace: str = "default", **args: Any) -> Any:
        """One admin command to one node by its control socket; raises the node's error."""
        return call_local(self.nodes[node_id].root, command, args, namespace=namespace)

    def wait_answer(
        self, node_id: str, command: str, wanted: Callable[[Any], Any], timeout_s: float, what: str, **args: Any
    ) -> Any:
        """Ask again and again until `wanted(answer)` is true, and return that answer; TimeoutError with the last one.

        A node that does not answer yet, or says that something is not there yet, counts as not wanted.
        """
        last: Any = "nothing"

        def is_wanted() -> bool:
            nonlocal last
            try:
                last = self.admin(node_id, command, **args)
            except RelayMeshError as error:
                last = error
                return False
            return bool(wanted(last))

        try:
            wait_until(is_wanted, timeout_s, what)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; {node_id} last answered {command!r} with {last!r}") from None
        return last

    def log_tail(self, node_id: str) -> str:
        """The end of a node's log."""
        return self._log_bytes(node_id)[-_LOG_TAIL_BYTES:].decode(errors="replace")

    # --- inner ---

    def _spawn(self, node_id: str) -> None:
        if node_id in self.running():
            raise ConfigError(f"{node_id} runs already")
        spec = self.nodes[node_id]
        offset = len(self._log_bytes(node_id))
        # The node must be of the same source tree as this module, and must not see flags of ours in its environment.
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RELAYMESH_")}
        release = self.releases.get(node_id)
        environment |= {MARKER: self.marker, "PYTHONPATH": source_path()}
        if release is not None:
            # The current folder is often this very source tree, and would come first.
            environment |= {"PYTHONPATH": release.python_path, "PYTHONSAFEPATH": "1"}
        with spec.log.open("ab") as log:
            process = subprocess.Popen(
                self.command(node_id),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # Ctrl-C at our terminal is ours to handle
                preexec_fn=self._before_exec(spec.host),
            )
        self._running[node_id] = _Running(process, offset)

    def _before_exec(self, host: str) -> Callable[[], None] | None:
        enter = self._network.enter(host)
        if self._outlive_us:
            return enter
        if enter is None:
            return die_with_parent

        def enter_and_die_with_parent() -> None:
            enter()
            die_with_parent()

        return enter_and_die_with_parent

    def _process(self, node_id: str) -> subprocess.Popen[bytes]:
        if node_id not in self.running():
            raise ConfigError(f"{node_id} does not run")
        return self._running[node_id].process

    def _log_bytes(self, node_id: str) -> bytes:
        try:
            return self.nodes[node_id].log.read_bytes()
        except FileNotFoundError:
            return b""

    def _end_all(self) -> None:
        for running in self._running.values():
            if running.process.poll() is None:
                running.process.kill()
        for running in self._running.values():
            running.process.wait()
        # Agents end with their node; whatever a broken node left behind must not burden the host.
        for pid in leftovers(self.marker):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def node_command() -> list[str]:
    """How `relaymesh-node` is started with this interpreter, installed or not."""
    installed = Path(sys.executable).with_name("relaymesh-node")
    if installed.exists():
        return [str(installed)]
    return [sys.executable, "-c", "import sys; from node.daemon import main; sys.exit(main())"]


def source_path() -> str:
    """A PYTHONPATH under which a child finds the same packages as this process."""
    assert chaos.__file__ is not None
    ours = str(Path(chaos.__file__).resolve().parent.parent)
    theirs = os.environ.get("PYTHONPATH")
    return f"{ours}{os.pathsep}{theirs}" if theirs else ours


def leftovers(marker: str) -> list[int]:
    """Ids of living processes that carry this cluster's marker in the environment they were started with."""
    wanted = f"{MARKER}={marker}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # Zombies have an empty environment, so they do not count.
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue  # it ended while we looked, or belongs to another user
    return sorted(found)


def wait_until(condition: Callable[[], T], timeout_s: float, what: str) -> T:
    """The first true value of `condition`, asked every 50 ms; TimeoutError naming `what` if there is none in time."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise TimeoutError(f"waited {timeout_s:g} s in vain until {what}")
        time.sleep(POLL_S)
