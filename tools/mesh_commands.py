"""`relaymesh mesh`: makes a mesh and the enrolments of its hosts and people. No node is asked; files are written."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from mesh.errors import ConfigError
from tools.session import EXIT_OK, Session, command

_NEXT = "next, for each host: relaymesh mesh enroll --mesh {out} --node-id ID --out ID.enroll"
_NEXT_NODE = (
    "next, on that host with this file: relaymesh-node --root DIR --enroll {out} --bind HOST:PORT --seeds HOST:PORT"
)
_NEXT_OPERATOR = "next: relaymesh --peer HOST:PORT --identity {out} members"

mesh_app = typer.Typer(no_args_is_help=False, rich_markup_mode=None, help="Make a mesh and enrol hosts and people.")


def _create(
    session: Session,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="New or empty directory for the mesh's secrets.")],
) -> int:
    """Make a new mesh: its certificate authority and its gossip keys.

    Keep DIR where no other host can read it: whoever has it can enrol nodes. Nodes do not need it to run.
    """
    from node.identity_files import create_mesh  # brings in the cryptography library

    cluster = create_mesh(out)
    _done(session, {"cluster": cluster, "directory": str(out)}, _NEXT.format(out=out))
    return EXIT_OK


def _enroll(
    session: Session,
    mesh: Annotated[Path, typer.Option("--mesh", metavar="DIR", help="Directory made by `relaymesh mesh create`.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="New file, for that host or person alone.")],
    node_id: Annotated[str | None, typer.Option("--node-id", metavar="ID", help="Enrol a host.")] = None,
    operator: Annotated[str | None, typer.Option("--operator", metavar="NAME", help="Enrol a person.")] = None,
) -> int:
    """Enrol a host or a person.

    Writes one secret file that proves who they are. Every enrolment of a name has a higher number than the last and
    replaces it: enrol a host anew when its disk was lost.
    """
    if (node_id is None) == (operator is None):
        raise ConfigError("give either --node-id ID for a host or --operator NAME for a person")
    from node.identity_files import enroll

    made = enroll(mesh, node_id=node_id, operator=operator, out=out)
    answer: dict[str, str | int] = {
        "cluster": made.cluster.hex(),
        "role": made.role,
        "name": made.name,
        "enrolment": made.enrolment,
        "file": str(out),
    }
    _done(session, answer, (_NEXT_NODE if made.role == "node" else _NEXT_OPERATOR).format(out=out))
    return EXIT_OK


def _done(session: Session, answer: dict[str, str | int], then: str) -> None:
    session.show(answer)
    print(then, file=sys.stderr)


command(mesh_app, "create", panel="Commands")(_create)
command(mesh_app, "enroll", panel="Commands")(_enroll)
