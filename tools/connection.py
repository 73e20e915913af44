"""Which node a command asks: the control socket of this host, or peers, one after another until one answers.

`--root` means the node of this host, `--peer` any node of the mesh, proven by TLS with the caller's identity. Flags
beat the environment, and a flag of one kind beats a variable of the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mesh.errors import ConfigError, UnavailableError
from mesh.ids import parse_address
from node.admin_client import AdminClient, LocalTarget, Target
from node.client.targets import PEERS_MAX as PEERS_MAX
from node.client.targets import peer_targets

# Commands that may be sent again to another peer when an answer did not arrive: they change nothing, or carry a key, or
# leave the same state however often they run.
_REPEATABLE = (
    *(
        "submit",
        "submit-workflow",
        "submit-batch",
        "holds",
        "task",
        "tasks",
        "workflow",
        "result",
        "wait",
        "cancel",
        "explain",
        "logs",
    ),
    *("agents", "members", "mesh-summary", "health", "stats", "metrics"),
    *("mesh-keys", "mesh-revocations", "mesh-ca", "tls-status"),
    *("ownership-events", "lease-conflicts", "cluster-state", "overview", "diagnosis", "version"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionChoice:
    """What the caller said about whom to ask. Unset is None."""

    root: Path | None = None
    peer: str | None = None
    """`HOST:PORT`, or several with commas: the next is asked when one is unreachable."""
    identity: Path | None = None

    def targets(self, environ: Mapping[str, str]) -> list[Target]:
        """Where to ask, best first. ConfigError when nothing was chosen, or an identity is missing or broken."""
        peer, root, identity = self.peer, self.root, self.identity
        if peer is None and root is None:
            peer = environ.get("RELAYMESH_PEER") or None
        if root is None and environ.get("RELAYMESH_ROOT"):
            root = Path(environ["RELAYMESH_ROOT"])
        if identity is None and environ.get("RELAYMESH_IDENTITY"):
            identity = Path(environ["RELAYMESH_IDENTITY"])
        if peer is not None:
            return _peer_targets(peer, root, identity)
        if root is None:
            raise ConfigError(
                "no node was named: give --root DIR (the node of this host) or --peer HOST:PORT (any node), "
                "or set RELAYMESH_ROOT or RELAYMESH_PEER"
            )
        if not root.is_dir():
            raise ConfigError(f"--root {root} is not a directory: give the root of a relaymesh-node on this host")
        return [LocalTarget(root)]


class MeshClient:
    """Asks the first target that answers, and stays with it."""

    def __init__(self, targets: Sequence[Target]) -> None:
        assert targets
        self._waiting = list(targets)
        self._client = AdminClient(self._waiting.pop(0))

    def call(self, command: str, args: Mapping[str, Any], *, namespace: str) -> Any:
        """The answer of a node; raises the classes of `mesh.errors`, UnavailableError when every target failed."""
        while True:
            try:
                return self._client.call(command, args, namespace=namespace)
            except UnavailableError:
                if not self._waiting or command not in _REPEATABLE:
                    raise
                self._client.close()
                self._client = AdminClient(self._waiting.pop(0))

    def close(self) -> None:
        """Drop the connection."""
        self._client.close()


def _peer_targets(peer: str, root: Path | None, identity: Path | None) -> list[Target]:
    addresses = [parse_address(part) for part in peer.split(",") if part.strip()]
    if not 0 < len(addresses) <= PEERS_MAX:
        raise ConfigError(f"--peer takes 1 to {PEERS_MAX} addresses HOST:PORT with commas between")
    if identity is None and root is not None:
        identity = root / "identity.json"
    if identity is None:
        raise ConfigError(
            "--peer needs to know who you are: give --identity FILE (made by `relaymesh mesh enroll --mesh DIR "
            "--operator NAME --out FILE`), or --root DIR of a node on this host to use its identity"
        )
    return list(peer_targets(addresses, identity))
