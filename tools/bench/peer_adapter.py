"""RelayMesh as a case of the peers' benchmark, which calls it exactly as it calls the others.

Run by that benchmark's `case_tasks.py --adapter THIS-FILE:CLASS`. Needs of a case: `n`, `durability`, `concurrency`,
`broker`, `start`, `enqueue`, `enqueue_range`, `start_worker`, `pending`, `settle`, `stop`. One process is queue and
worker here: until the worker is asked for, the node has no slot.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
import signal
import time
from pathlib import Path

import apsw

from chaos.real.processes import Cluster
from mesh.errors import UnavailableError
from node.admin_client import AdminClient, LocalTarget
from tools.bench.load import drive, encode_request

_NODE = "bench-a"
_AGENT = "peer-bench"
_AGENT_FILE = f"""import os
import sys

sys.path.insert(0, {{peers!r}})
os.environ["PEER_MARK"] = {{mark!r}}

import peerlib
from relaymesh import agent


@agent("{_AGENT}")
def stamp(payload: bytes) -> None:
    peerlib.mark(int(payload[:12]))
"""
_PAYLOAD_CHARS = 64
_IN_FLIGHT = 64


class RelayMesh:
    """One producer, which waits for each answer before it submits the next task."""

    n = 3000
    slots = 4
    durability = "SQLite WAL, synchronous=FULL; submit, lease and result each recorded"
    concurrency = "4 slots, one agent process each"
    broker = None

    def __init__(self, directory: str) -> None:
        self._directory = Path(directory)
        self._client: AdminClient | None = None

    def start(self) -> None:
        """Start the node without a slot: work waits."""
        agents = self._directory / "peer_bench_agent.py"
        agents.write_text(
            _AGENT_FILE.format(peers=os.environ["PEERS_DIR"], mark=os.fspath(self._directory / "mark")),
            encoding="utf-8",
        )
        self._cluster = Cluster(
            self._directory / "mesh", [_NODE], slots=self.slots, agents=[agents], flags={_NODE: ["--slots", "0"]}
        )
        self._cluster.start()
        self._root = self._cluster.nodes[_NODE].root
        self._client = AdminClient(LocalTarget(self._root))
        self._database = apsw.Connection(str(self._root / "relaymesh.db"), flags=apsw.SQLITE_OPEN_READONLY)

    def enqueue(self, index: int, payload: str = "") -> None:
        """Submit one task, and wait until it is durable."""
        assert self._client is not None
        arguments = {"agent": _AGENT, "input": _payload(index), "idempotencyKey": secrets.token_hex(16)}
        try:
            self._client.call("submit", arguments)
        except UnavailableError:  # the node was started anew since the last call; the key makes it one task
            self._client.call("submit", arguments)

    def enqueue_range(self, first: int, after: int) -> None:
        """Submit tasks one after another."""
        for index in range(first, after):
            self.enqueue(index)

    def start_worker(self) -> _Worker:
        """Start the node anew, with slots."""
        if _NODE in self._cluster.running():
            self._cluster.terminate(_NODE)
        self._cluster.nodes[_NODE] = dataclasses.replace(self._cluster.nodes[_NODE], flags=())
        self._cluster.start()
        return _Worker(self._cluster)

    def pending(self) -> int:
        """Tasks that are not recorded as finished."""
        return int(self._database.execute("SELECT count(*) FROM steps WHERE rank = 0").get)

    def settle(self, limit_s: float) -> float:
        """The time (monotonic, seconds) at which every task was recorded as finished; TimeoutError after `limit_s`."""
        end = time.monotonic() + limit_s
        while pending := self.pending():
            if time.monotonic() > end:
                raise TimeoutError(f"{pending} tasks not recorded as finished")
            time.sleep(0.02)
        return time.monotonic()

    def stop(self) -> None:
        """End the node."""
        if self._client is not None:
            self._client.close()
        self._database.close()
        self._cluster.shut_down()


class RelayMesh64(RelayMesh):
    """64 submits on their way at a time."""

    n = 8000
    concurrency = "4 slots, one agent process each; 64 submits in flight"

    def enqueue_range(self, first: int, after: int) -> None:
        """Submit tasks over 64 connections."""
        requests = [
            encode_request(
                "submit", {"agent": _AGENT, "input": _payload(index), "idempotencyKey": secrets.token_hex(16)}
            )
            for index in range(first, after)
        ]
        drive([self._root], requests, clients=_IN_FLIGHT)


class _Worker:
    """The node, as the benchmark sees a worker process."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.pid = cluster.pid(_NODE)

    def stop(self, sig: int = signal.SIGTERM) -> None:
        """End it softly, or by SIGKILL."""
        if _NODE not in self._cluster.running():
            return
        if sig == signal.SIGKILL:
            self._cluster.kill(_NODE)
        else:
            self._cluster.terminate(_NODE)

    def tail(self, chars: int) -> str:
        """The end of its log."""
        return self._cluster.log_tail(_NODE)[-chars:]


def _payload(index: int) -> str:
    return f"{index:012d}".ljust(_PAYLOAD_CHARS, "x")
