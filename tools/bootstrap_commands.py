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
    """Fill the asked node by a peer's database.

    Nodes that lack much do so by themselves. What only the asked node has is kept. For example:

      relaymesh --root /var/lib/relaymesh bootstrap-from edge-2
    """
    session.show(session.ask("bootstrap-from", peer=donor))
    return EXIT_OK
