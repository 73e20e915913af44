"""Commands about the nodes and what they agree on: who is there, how they are, who owned what."""

from __future__ import annotations

import getpass
from typing import Annotated, Any

import typer

from tools.session import EXIT_NEGATIVE, EXIT_OK, Command, Session, command

Limit = Annotated[int, typer.Option("--limit", min=1, max=5_000, help="At most so many.")]
SinceHours = Annotated[int, typer.Option("--since-hours", min=1, max=8_760, help="Only the last so many hours.")]
TaskOption = Annotated[str | None, typer.Option("--task", metavar="ID", help="Only this task.")]

# What an operator reads first, narrow enough for 80 columns while all is well; --json has the rest.
_MEMBER_COLUMNS = ("nodeId", "status", "address", "rpcAddress", "release", "protocol", "lastHeartbeatMs")
_TROUBLE_COLUMNS = ("effectiveStatus", "recoversAtMs", "storeFailed", "labels", "accusers", "protocolProblem")
_EVENT_COLUMNS = ("occurredAtMs", "action", "nodeId", "taskId", "stepId", "leaseEpoch", "details")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for name, body in _COMMANDS.items():
        command(app, name, panel="Mesh")(body)


def _members(session: Session) -> int:
    """List the nodes as the asked node sees them.

    A column more appears when a node has trouble: what it may not be given yet, a failed store, who accused it, a
    release that this node has no protocol version in common with.
    """
    answer = session.ask("members")
    if session.json:
        session.show(answer)
    else:
        session.show([_member_line(member) for member in answer], columns=(*_MEMBER_COLUMNS, *_TROUBLE_COLUMNS))
    return EXIT_OK


def _member_line(member: dict[str, Any]) -> dict[str, Any]:
    """A member for a table, where what is as usual stays empty."""
    accusers = [f"{accuser.get('nodeId')} ({accuser.get('reason')})" for accuser in member.get("accusers") or []]
    held_back = member.get("effectiveStatus") not in (None, member.get("status"))
    return {
        **member,
        "effectiveStatus": member["effectiveStatus"] if held_back else None,
        "storeFailed": member.get("storeFailed") or None,
        "accusers": accusers,
    }


def _mesh_summary(session: Session) -> int:
    """Count nodes by status, and running steps.

    Running steps are counted by the status of their owners.
    """
    session.show(session.ask("mesh-summary"))
    return EXIT_OK


def _agents(session: Session) -> int:
    """List the agents that can be given work."""
    session.show(session.ask("agents"))
    return EXIT_OK


def _health(session: Session) -> int:
    """Say whether the asked node can take work.

    Exit 1 when it cannot.
    """
    answer = session.ask("health")
    session.show(answer)
    return EXIT_OK if answer.get("ok") else EXIT_NEGATIVE


def _metrics(session: Session) -> int:
    """Print its metrics in Prometheus' text format."""
    answer = session.ask("metrics")
    if session.json:
        session.show(answer)
    else:
        print(answer["text"], end="")
    return EXIT_OK


def _stats(session: Session) -> int:
    """Show the counters of the asked node."""
    session.show(session.ask("stats"))
    return EXIT_OK


def _ownership_events(
    session: Session, limit: Limit = 100, since_hours: SinceHours = 24, task: TaskOption = None
) -> int:
    """List who owned which step when.

    Claims, hand-overs and take-overs, newest first.
    """
    answer = session.ask("ownership-events", limit=limit, sinceHours=since_hours, taskId=task)
    session.show(answer, columns=_EVENT_COLUMNS)
    return EXIT_OK


def _lease_conflicts(
    session: Session, limit: Limit = 100, since_hours: SinceHours = 24, task: TaskOption = None
) -> int:
    """List late results and fenced writes that lost."""
    answer = session.ask("lease-conflicts", limit=limit, sinceHours=since_hours, taskId=task)
    session.show(answer, columns=_EVENT_COLUMNS)
    return EXIT_OK


def _cluster_state(session: Session) -> int:
    """Show the cluster epoch."""
    session.show(session.ask("cluster-state"))
    return EXIT_OK


def _cluster_epoch_bump(
    session: Session,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Kept with the new epoch.")] = "manual",
    actor: Annotated[
        str | None, typer.Option("--actor", metavar="NAME", help="Who did it. [default: your user name]")
    ] = None,
) -> int:
    """Open a new cluster epoch.

    Every running step is requeued under it, and late results of older epochs lose.
    """
    session.show(session.ask("cluster-epoch-bump", reason=reason, actor=actor or _user_name()))
    return EXIT_OK


def _mesh_recover(session: Session, limit: Limit = 128) -> int:
    """Take over the steps of DEAD and LEFT nodes now.

    With the setting linkedSites, those of nodes of other sites too, as far as they can run here.
    """
    session.show(session.ask("mesh-recover", limit=limit))
    return EXIT_OK


def _maintenance(session: Session) -> int:
    """Compare replicas with all peers, and repair them.

    The asked node also takes over at once what is due (`deadOwnerReclaimed`), and prunes members by its settings
    (`deadNodesPruned`). Leases need no heartbeat here, and retries no dispatch: there is nothing to count of those.
    """
    session.show(session.ask("maintenance"))
    return EXIT_OK


_COMMANDS: dict[str, Command] = {
    "members": _members,
    "mesh-summary": _mesh_summary,
    "agents": _agents,
    "health": _health,
    "stats": _stats,
    "metrics": _metrics,
    "ownership-events": _ownership_events,
    "lease-conflicts": _lease_conflicts,
    "cluster-state": _cluster_state,
    "cluster-epoch-bump": _cluster_epoch_bump,
    "mesh-recover": _mesh_recover,
    "maintenance": _maintenance,
}


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "cli"  # a container may run under a number without a name
