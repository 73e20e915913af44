"""`node.env.Executor` over real processes: built-in, Python and script agents under one roof.

The node's process never imports user code, and survives whatever that code does. When `running` ends, or the node dies
by any cause, no process that was started here is left, however it tried to get away.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from types import MappingProxyType

import trio

from mesh.errors import ConfigError
from node.agents.builtin_agents import BUILTINS, builtin_infos
from node.agents.host_pool import HostPool
from node.agents.processes import Processes
from node.agents.scripts import ScriptAgent, ScriptRunner, read_scripts
from node.agents.wire import Offer
from node.env import AgentInfo, Job, Outcome

AGENTS_MAX = 256
INPUT_BYTES_MAX = 64 * 1024 * 1024
"""Payload and parent outputs of one job together: they pass through the node's memory, and through one send."""

KILL_GRACE_S = 2.0
"""Between SIGTERM and SIGKILL."""


class ProcessExecutor:
    """Runs user code in processes of its own; see node.env.Executor.

    `agent_files` are Python files with decorated functions; `scripts` is a scripts.json, by default
    `<root>/agents/scripts.json` where that exists. At most `slots` processes run jobs at a time; further calls of
    `run` wait. `memory_bytes_max` bounds the writable memory of each process. With `reload_agents` a run that begins
    after an agent file has changed is of the new one. ConfigError for a file that cannot be used, from here or from
    `running`.
    """

    def __init__(
        self,
        root: Path,
        agent_files: Sequence[Path] = (),
        scripts: Path | None = None,
        *,
        slots: int,
        memory_bytes_max: int = 1024**3,
        default_timeout_s: float = 60.0,
        result_bytes_max: int = 10 * 1024 * 1024,
        kill_grace_s: float = KILL_GRACE_S,
        reload_agents: bool = False,
    ) -> None:
        root = root.resolve()
        self._files = [_existing_file(file) for file in agent_files]
        self._default_timeout_s = default_timeout_s
        self._scratch = root / "agents-scratch"
        self._slots = trio.Semaphore(slots)
        self._scripts: dict[str, ScriptAgent] = {}
        self._infos: dict[str, AgentInfo] = {}
        self._origins: dict[str, str] = {}
        for info in builtin_infos():
            self._add(info, "built in")
        default_scripts = root / "agents" / "scripts.json"
        if scripts is None and default_scripts.exists():
            scripts = default_scripts
        if scripts is not None:
            self._add_scripts(scripts, root)
        self._processes = Processes(grace_s=kill_grace_s)
        self._script_runner = ScriptRunner(
            self._processes,
            cwd=root,
            scratch=self._scratch,
            memory_bytes_max=memory_bytes_max,
            result_bytes_max=result_bytes_max,
        )
        self._pool = HostPool(
            self._processes,
            self._files,
            cwd=root,
            memory_bytes_max=memory_bytes_max,
            result_bytes_max=result_bytes_max,
            reload=reload_agents,
        )

    def agents(self) -> Mapping[str, AgentInfo]:
        """What can be run here, by name. Python agents are known once `running` was entered."""
        return MappingProxyType(self._infos)

    def running(self) -> AbstractAsyncContextManager[None]:
        """Learn the Python agents and be ready; ConfigError when a file cannot be imported. Usable once."""
        return self._running()

    async def run(self, job: Job) -> Outcome:
        """Run one attempt to its end. Cancelling this call kills the handler and its children before it returns."""
        builtin = BUILTINS.get(job.agent)
        if builtin is not None:
            return await builtin(job)
        info = self._infos.get(job.agent)
        if info is None:
            return Outcome(kind="failed", error=f"this node has no agent {job.agent!r}")
        input_bytes = len(job.payload) + sum(map(len, job.parents.values()))
        if input_bytes > INPUT_BYTES_MAX:
            text = f"payload and parent outputs have {input_bytes} bytes, above the limit of {INPUT_BYTES_MAX}"
            return Outcome(kind="rejected", error=text)
        async with self._slots:
            if info.kind == "script":
                return await self._script_runner.run(self._scripts[job.agent], job)
            return await self._pool.run(job)

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        shutil.rmtree(self._scratch, ignore_errors=True)  # left by a node that was killed
        self._scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            if self._files:
                for offer in await self._pool.discover():
                    self._add(_python_info(offer, self._default_timeout_s), "a Python agent")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pool.serve)
                yield
                nursery.cancel_scope.cancel()
        finally:
            await self._pool.aclose()
            await self._processes.aclose()
            shutil.rmtree(self._scratch, ignore_errors=True)

    def _add_scripts(self, file: Path, root: Path) -> None:
        for script in read_scripts(file, root):
            timeout_s = self._default_timeout_s if script.timeout_s is None else script.timeout_s
            self._add(AgentInfo(name=script.name, kind="script", timeout_s=timeout_s), str(file))
            self._scripts[script.name] = script

    def _add(self, info: AgentInfo, origin: str) -> None:
        if info.name in self._infos:
            raise ConfigError(f"agent {info.name!r} exists twice: {self._origins[info.name]}, and {origin}; rename one")
        if len(self._infos) >= AGENTS_MAX:
            raise ConfigError(f"a node can have {AGENTS_MAX} agents, and {info.name!r} ({origin}) is one too many")
        self._infos[info.name] = info
        self._origins[info.name] = origin


def _existing_file(file: Path) -> Path:
    file = file.resolve()
    if not file.is_file() or not os.access(file, os.R_OK):
        raise ConfigError(f"agents file {file} cannot be read: is the path right?")
    return file


def _python_info(offer: Offer, default_timeout_s: float) -> AgentInfo:
    return AgentInfo(
        name=offer.name,
        kind="python",
        timeout_s=default_timeout_s if offer.timeout_s is None else offer.timeout_s,
        max_attempts=offer.max_attempts,
        base_backoff_ms=offer.base_backoff_ms,
        max_backoff_ms=offer.max_backoff_ms,
        concurrency=offer.concurrency,
    )
