"""Commands about snapshots: filling a node by a peer's database."""

from __future__ import annotations

from typing import Annotated

import typer

from tools.session import EXIT_OK, Session, command


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    command(app, "bootstrap-from", panel="Mesh")(_bootstrap_from)


def _bootstrap_from(
    session: Session, donor: Annotated[str, typer.Argument(metavar="PEER", help="Node id of the donor.")]
) -> int:
    """Begin to fill the asked node by a peer's database.

    Meant for a node that holds nothing of its own: one that has worked keeps what only it has, but may end up with
    other rows than its peers where tasks were deleted meanwhile. Returns at once; `health` shows how far it is.

    \b
    Example:
      relaymesh --root /var/lib/relaymesh bootstrap-from edge-2
    """
    session.show(session.ask("bootstrap-from", peer=donor))
    return EXIT_OK
