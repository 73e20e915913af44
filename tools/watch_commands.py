"""Commands that look at a whole mesh: `top` while it works, and `doctor` for what is wrong."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from tools.session import Session, command


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    command(app, "top", panel="Mesh")(_top)
    command(app, "doctor", panel="Mesh")(_doctor)


def _top(
    session: Session, once: Annotated[bool, typer.Option("--once", help="Look for a second, print, and end.")] = False
) -> int:
    """Watch members, queues, rates and running steps.

    Renewed every two seconds until q or Ctrl-C. Rates are those of the whole mesh as far as the asked node hears it;
    the queue and its slots are its own. --json, and an output that is no terminal, mean --once.

    \b
    Example: relaymesh --peer 10.0.0.2:18443 --identity me.enroll top
    """
    from tools.top import run_live, run_once  # draws with rich

    if once or session.json or not sys.stdout.isatty():
        return run_once(session)
    return run_live(session)


def _doctor(session: Session) -> int:
    """Check a node and its mesh, and say what mends it.

    Looks at the store, disk, clock, members, keys, certificates, versions, replicas, quarantine, agents, what waits and
    what failed lately, settings, and the host's limits, as the asked node sees them. Exit 1 when a check fails.

    \b
    Example: relaymesh --root data doctor
    """
    from tools.doctor import run_doctor

    return run_doctor(session)
