"""Commands that carry rows between nodes in files, for links over which no stream runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from mesh.errors import ConfigError
from node import durable_files
from tools.session import EXIT_NEGATIVE, EXIT_OK, Command, Session, command

InFile = Annotated[
    Path, typer.Option("--in", metavar="FILE", readable=False, help="An envelope that replication-export wrote.")
]


_PEER_COLUMNS = ("nodeId", "missingHere", "missingThere", "lastPullAgeMs", "lastVerifyAgeMs", "clockOffsetMs", "error")


class _Cursor(msgspec.Struct):
    """What `--since` needs of an envelope; whatever else is in the file is skipped."""

    cursor: bytes


_cursor_decoder = msgspec.json.Decoder(_Cursor)


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
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="About so many rows.")] = 10_000,
) -> int:
    """Write rows of the asked node into a signed envelope.

    Exit 1 when there is more than the envelope holds: export again with --since this one.

    \b
    Examples:
      relaymesh --root data replication-export --out monday.envelope
      relaymesh --root data replication-export --since monday.envelope --out tuesday.envelope
    """
    if out.exists():
        raise ConfigError(f"{out} exists already: give --out another name")
    answer = session.ask("replication-export", since=None if since is None else _cursor_of(since), limit=limit)
    try:
        durable_files.write_new(out, answer.pop("envelope"))
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error.strerror}") from None
    session.show({**answer, "outputPath": str(out)})
    return EXIT_OK if answer["complete"] else EXIT_NEGATIVE


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

    Counts row versions that one side has seen and the other has not. Exit 1 when a peer
    lacks something or cannot say; without a peer that is ALIVE nothing is compared, and it exits 0.

    \b
    Example: relaymesh --root data convergence-report --json
    """
    answer = session.ask("convergence-report")
    session.show(answer, columns=_PEER_COLUMNS)
    return EXIT_OK if answer["converged"] else EXIT_NEGATIVE


def _read(path: Path) -> bytes:
    from node.replication.envelope import ENVELOPE_BYTES_MAX  # loads cryptography

    try:
        with path.open("rb") as file:
            data = file.read(ENVELOPE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    if len(data) > ENVELOPE_BYTES_MAX:
        raise ConfigError(f"{path} is larger than any envelope ({ENVELOPE_BYTES_MAX} bytes): is it the right file?")
    return data


def _cursor_of(path: Path) -> bytes:
    try:
        return _cursor_decoder.decode(_read(path)).cursor
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is no replication envelope ({error}): give --since an earlier one") from None


_COMMANDS: dict[str, Command] = {
    "replication-export": _export,
    "replication-import": _import,
    "replication-verify": _verify,
    "convergence-report": _convergence_report,
}
