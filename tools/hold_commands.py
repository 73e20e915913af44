"""Commands that hold work back: pause, resume, drain, and what is held."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mesh.errors import ConfigError
from tools.durations import parse_duration_ms
from tools.session import EXIT_NEGATIVE, EXIT_OK, Command, Session, command

AgentOption = Annotated[str | None, typer.Option("--agent", metavar="NAME", help="Steps of this agent, at all nodes.")]
NodeOption = Annotated[str | None, typer.Option("--node", metavar="ID", help="This node. [default: the one asked]")]
MeshOption = Annotated[bool, typer.Option("--mesh", help="All nodes.")]
ReasonOption = Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Told to whoever asks why.")]

_COLUMNS = ("scope", "reason", "actor", "sinceAtMs")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for name, body in _COMMANDS.items():
        command(app, name, panel="Work")(body)


def _scope(agent: str | None, node: str | None, mesh: bool) -> dict[str, Any]:
    if (agent is not None) + (node is not None) + mesh > 1:
        raise ConfigError("give one of --agent, --node and --mesh")
    return {"agent": agent, "node": node, "mesh": mesh or None}


def _pause(
    session: Session,
    agent: AgentOption = None,
    node: NodeOption = None,
    mesh: MeshOption = False,
    reason: ReasonOption = None,
) -> int:
    """Start nothing new, of an agent, node or mesh.

    What runs goes on, and submits are accepted. Every node that hears of it obeys, also after a restart: within seconds
    in a mesh whose members hear each other, and beyond a cut when it heals. What waits at a paused node may still be
    fetched by idle peers; `drain` hands it over. Waiting steps expire all the same.

    \b
    Examples:
      relaymesh --root data pause --agent billing --reason "the bank is closed"
      relaymesh --root data pause --mesh
    """
    session.show(session.ask("pause", **_scope(agent, node, mesh), reason=reason))
    return EXIT_OK


def _resume(session: Session, agent: AgentOption = None, node: NodeOption = None, mesh: MeshOption = False) -> int:
    """End a pause, or the drain of a node.

    Exit 1 when nothing was held by that name.

    \b
    Example: relaymesh --root data resume --agent billing
    """
    answer = session.ask("resume", **_scope(agent, node, mesh))
    session.show(answer)
    return EXIT_OK if answer.get("resumed") else EXIT_NEGATIVE


def _holds(session: Session) -> int:
    """List what is paused or drained, and why."""
    session.show(session.ask("holds"), columns=_COLUMNS)
    return EXIT_OK


def _drain(
    session: Session,
    node: NodeOption = None,
    reason: ReasonOption = None,
    timeout: Annotated[
        str, typer.Option("--timeout", metavar="TIME", help="Wait so long for the last step to leave or end.")
    ] = "10s",
) -> int:
    """Empty a node, as before its shutdown.

    It starts nothing new and gets no new work; what waits there is handed to peers that can run it, what runs ends.
    Exit 0 when nothing is left, 1 when something is, which the answer counts; ask again, or wait longer. What only
    this node can run stays. `resume --node ID` ends it.

    \b
    Examples:
      relaymesh --root data drain --timeout 5m
      relaymesh --root data drain --node press-7 --reason "new disk"
    """
    timeout_ms = parse_duration_ms(timeout, option="--timeout")
    answer = session.ask("drain", node=node, reason=reason, timeoutMs=timeout_ms)
    session.show(answer)
    return EXIT_OK if answer.get("drained") else EXIT_NEGATIVE


_COMMANDS: dict[str, Command] = {"pause": _pause, "resume": _resume, "holds": _holds, "drain": _drain}
