"""Commands that carry rows between nodes that do not gossip, by hand or in rounds; and how far nodes differ."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mesh.errors import ConfigError
from node import durable_files
from tools.session import EXIT_NEGATIVE, EXIT_OK, Command, Session, command

if TYPE_CHECKING:
    from tools.replication_links import Tick

InFile = Annotated[
    Path, typer.Option("--in", metavar="FILE", readable=False, help="An envelope that replication-export wrote.")
]


_PEER_COLUMNS = ("nodeId", "missingHere", "missingThere", "lastPullAgeMs", "lastVerifyAgeMs", "clockOffsetMs", "error")
_LAG_COLUMNS = ("peer", "lacking", "origin", "rows", "oldestAgeMs")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for name, body in _COMMANDS.items():
        command(app, name, panel="Mesh")(body)


def _export(
    session: Session,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where the envelope goes; must not exist.")],
    since: Annotated[
        Path | None,
        typer.Option(
            "--since",
            metavar="FILE",
            readable=False,
            help="An earlier envelope: only what came after it. [default: everything]",
        ),
    ] = None,
    since_ms: Annotated[
        int,
        typer.Option(
            "--since-ms", min=0, metavar="MS", help="Only rows written at or after it, in ms since 1970. [default: 0]"
        ),
    ] = 0,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="About so many rows.")] = 10_000,
) -> int:
    """Write rows of the asked node into an envelope.

    Exit 1 when there is more than the envelope holds: export again with --since this one. What --since-ms leaves out is
    counted as olderRows; the envelope does not claim to bring it, so a later one --since this one does.

    \b
    Examples:
      relaymesh --root data replication-export --out monday.envelope
      relaymesh --root data replication-export --since monday.envelope --out tuesday.envelope
    """
    if out.exists():
        raise ConfigError(f"{out} exists already: give --out another name")
    cursor = None if since is None else _cursor_of(since)
    answer = session.ask("replication-export", since=cursor, sinceMs=since_ms or None, limit=limit)
    try:
        durable_files.write_new(out, answer.pop("envelope"))
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error.strerror}") from None
    session.show({**answer, "outputPath": str(out)})
    return EXIT_NEGATIVE if answer["more"] else EXIT_OK


def _import(session: Session, envelope: InFile) -> int:
    """Merge an envelope into the asked node.

    Importing twice changes nothing more. Exit 1 when rows were merged but earlier envelopes are missing here: import
    those too, or pull.

    \b
    Example: relaymesh --root data replication-import --in monday.envelope
    """
    answer = session.ask("replication-import", envelope=_read(envelope))
    session.show({**answer, "inputPath": str(envelope)})
    return EXIT_OK if answer["vectorJoined"] else EXIT_NEGATIVE


def _verify(session: Session, envelope: InFile) -> int:
    """Compare an envelope with the asked node.

    Nothing changes.

    Exit 1 when the node lacks rows of it, or has other content for one.

    \b
    Example: relaymesh --root data replication-verify --in monday.envelope
    """
    answer = session.ask("replication-verify", envelope=_read(envelope))
    session.show({**answer, "inputPath": str(envelope)})
    return EXIT_OK if answer["ok"] else EXIT_NEGATIVE


def _convergence_report(session: Session) -> int:
    """Compare the asked node's replica with its peers.

    Counts row versions that one side has seen and the other has not, by the node that wrote them: the ten with most,
    and how old the oldest is where the asked node holds it. Exit 1 when a peer lacks something or cannot say; without
    a peer that is ALIVE nothing is compared, and it exits 0.

    \b
    Example: relaymesh --root data convergence-report --json
    """
    answer = session.ask("convergence-report")
    if session.json:
        session.show(answer)
    else:
        lag = _lag_lines(answer)
        session.show({**answer, **({"lag": lag} if lag else {})}, columns=(*_PEER_COLUMNS, *_LAG_COLUMNS))
    return EXIT_OK if answer["converged"] else EXIT_NEGATIVE


def _lag_lines(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """What which side lacks of whom, for a table of its own."""
    return [
        {
            "peer": peer["nodeId"],
            "lacking": lacking,
            "origin": origin["nodeId"],
            "rows": origin["rows"],
            "oldestAgeMs": origin["oldestAgeMs"],
        }
        for peer in answer["peers"]
        for lacking, name in (("here", "originsBehindHere"), ("there", "originsBehindThere"))
        for origin in peer.get(name) or []
    ]


def _controller(
    session: Session,
    peers: Annotated[
        str | None,
        typer.Option("--peers", metavar="LIST", help="Stream addresses HOST:PORT and folders dir:PATH, with commas."),
    ] = None,
    peers_file: Annotated[
        Path | None,
        typer.Option("--peers-file", metavar="FILE", readable=False, help="The same, one a line, # for comments."),
    ] = None,
    interval_ms: Annotated[
        int, typer.Option("--interval-ms", min=100, max=86_400_000, help="Between rounds.")
    ] = 10_000,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="About so many rows an envelope.")] = 500,
    state_file: Annotated[
        Path | None,
        typer.Option(
            "--state-file",
            metavar="FILE",
            readable=False,
            help="What was carried so far. [default: ROOT/replication/controller-state.json]",
        ),
    ] = None,
    push: Annotated[
        bool, typer.Option("--push/--no-push", help="Also bring the asked node's rows to the peers.")
    ] = True,
    once: Annotated[
        bool, typer.Option("--once", help="One round; exit 1 when something failed, waits or is left.")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="Begin from nothing: mends a link that lost a file.")] = False,
) -> int:
    """Carry rows over links on which no mesh runs.

    The asked node and every peer get what the other has, round after round, until Ctrl-C. A peer is a node that this
    host can reach, or a folder: envelopes are written to PATH/outbox, and those found in PATH/inbox are merged and
    deleted. You make these folders, and somebody carries the files. First set linkedSites on all nodes: README, "Links
    carried in rounds".

    \b
    Examples:
      relaymesh --root data replication-controller --peers 10.8.0.2:18443 --identity me.enroll
      relaymesh --root data replication-controller --peers dir:/media/stick --once
    """
    from tools import replication_controller as controllers  # loads cryptography

    ways = controllers.ways_to(controllers.read_peers(peers, peers_file), session.choice)
    session.choice.targets(os.environ)  # a wrong choice of the asked node ends it here, in one line
    path = state_file or session.root_of_host() / "replication" / "controller-state.json"
    with controllers.locked(path):
        controller = controllers.Controller(
            session.ask, ways, controllers.StateFile(path), limit=limit, push=push, from_nothing=full
        )

        def tick() -> Tick:
            try:
                return controller.tick()
            finally:
                session.close()  # a node closes what is idle for a minute

        if once:
            return _show_round(session, tick())
        try:
            controllers.run(tick, interval_s=interval_ms / 1000, as_json=session.json)
        except KeyboardInterrupt:
            return EXIT_OK


def _show_round(session: Session, tick: Tick) -> int:
    session.show(tick.view())
    return EXIT_OK if tick.complete and not tick.waiting else EXIT_NEGATIVE


def _read(path: Path) -> bytes:
    from tools.replication_links import read_envelope  # loads cryptography

    return read_envelope(path)


def _cursor_of(path: Path) -> bytes:
    from tools.replication_links import cursor_of  # loads cryptography

    try:
        return cursor_of(_read(path))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}: give --since an earlier envelope") from None


_COMMANDS: dict[str, Command] = {
    "replication-export": _export,
    "replication-import": _import,
    "replication-verify": _verify,
    "replication-controller": _controller,
    "convergence-report": _convergence_report,
}
