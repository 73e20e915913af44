"""Takes admin requests in: decodes, checks the arguments, finds the command, encodes the answer.

A request is msgpack `{"command", "namespace", "args"}`; the answer is the JSON-able result. Whatever is wrong with a
request is one ConfigError that names the argument, and nothing has happened.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from mesh.errors import ConfigError
from mesh.ids import parse_namespace
from node.admin.arguments import Arguments
from node.admin.convergence_commands import ConvergenceCommands
from node.admin.diagnosis_commands import DiagnosisCommands
from node.admin.export_commands import ExportCommands
from node.admin.garbage_commands import GarbageCommands
from node.admin.hold_commands import HoldCommands
from node.admin.mesh_commands import MeshCommands
from node.admin.overview_commands import OverviewCommands
from node.admin.quarantine_commands import QuarantineCommands
from node.admin.recovery_commands import RecoveryCommands
from node.admin.replication_commands import ReplicationCommands
from node.admin.schedule_commands import ScheduleCommands
from node.admin.settings_commands import SettingsCommands
from node.admin.snapshot_commands import SnapshotCommands
from node.admin.trust_commands import TrustCommands
from node.admin.work_commands import WorkCommands
from node.config import NodeConfig
from node.env import PeerIdentity
from node.node import Node
from node.reenrolment import Reenrolment
from node.settings import SETTINGS_FILE
from node.settings_reload import SettingsReload

log = logging.getLogger(__name__)

Command = Callable[[Arguments], Awaitable[Any]]


class AdminRequest(msgspec.Struct, forbid_unknown_fields=True):
    """One command."""

    command: str
    namespace: str = "default"
    args: dict[str, Any] = {}


class AdminService:
    """All commands of one node, by name."""

    def __init__(
        self,
        node: Node,
        config: NodeConfig,
        reenrolment: Reenrolment | None = None,
        settings: SettingsReload | None = None,
    ) -> None:
        """Without `reenrolment` the identity of the node cannot be replaced while it runs.

        Without `settings` they are read again from the file of `config.root`, without an environment.
        """
        settings = settings or SettingsReload.of_file(node, config.root / SETTINGS_FILE, {})
        self._commands: Mapping[str, Command] = {
            **WorkCommands(node).commands(),
            **RecoveryCommands(node).commands(),
            **ExportCommands(node).commands(),
            **HoldCommands(node).commands(),
            **MeshCommands(node, config).commands(),
            **GarbageCommands(node).commands(),
            **OverviewCommands(node).commands(),
            **DiagnosisCommands(node, config).commands(),
            **TrustCommands(node, config, reenrolment).commands(),
            **SettingsCommands(settings).commands(),
            **SnapshotCommands(node).commands(),
            **QuarantineCommands(node).commands(),
            **ConvergenceCommands(node).commands(),
            **ReplicationCommands(node).commands(),
            **ScheduleCommands(node).commands(),
        }

    def names(self) -> list[str]:
        """Every command, sorted."""
        return sorted(self._commands)

    async def handle(self, peer: PeerIdentity, body: bytes, send: object) -> bytes:
        """Carry out one request. Errors of mesh.errors go back to the caller as they are."""
        try:
            request = msgspec.msgpack.decode(body, type=AdminRequest)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"not an admin request: {error}") from error
        command = self._commands.get(request.command)
        if command is None:
            raise ConfigError(f"unknown command {request.command!r}: this node knows {', '.join(self.names())}")
        namespace = parse_namespace(request.namespace)
        result = await command(Arguments(request.command, namespace, request.args, peer))
        return msgspec.msgpack.encode(result)
