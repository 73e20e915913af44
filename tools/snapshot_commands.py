"""Commands that copy a node's root into a folder and make a new root of one: files of this host, no node is asked."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from tools.session import EXIT_OK, Command, Session, command


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for name, body in _COMMANDS.items():
        command(app, name, panel="Mesh")(body)


def _export(
    session: Session,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="A new folder for the snapshot.")],
    with_identity: Annotated[
        bool, typer.Option("--with-identity", help="Private keys, too: keep such a snapshot like the keys themselves.")
    ] = False,
) -> int:
    """Copy the node under --root into a folder.

    It may be running.

    \b
    Example: relaymesh --root data snapshot-export --out /backup/monday
    """
    from node import snapshots  # loads SQLite

    manifest = snapshots.export(
        session.root_of_host(), out, with_identity=with_identity, now_ms=int(time.time() * 1000)
    )
    session.show(
        {
            "outputDir": str(out),
            "fileCount": len(manifest.files),
            "totalBytes": sum(entry.bytes for entry in manifest.files),
            "schema": manifest.database_schema,
            "withIdentity": with_identity,
            "createdAtMs": manifest.created_at_ms,
        }
    )
    return EXIT_OK


def _import(
    session: Session,
    source: Annotated[Path, typer.Option("--in", metavar="DIR", readable=False, help="A snapshot.")],
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Into the stopped node under --root, whose database is kept."),
    ] = False,
) -> int:
    """Make the new folder --root from a snapshot.

    Every digest is checked before anything is written. The node's first start there takes a new origin and opens a new
    cluster epoch. A snapshot without identity needs an enrolment at that start. With --replace identity and settings
    stay those of --root.

    \b
    Examples:
      relaymesh --root data-new snapshot-import --in /backup/monday
      relaymesh --root data snapshot-import --in /backup/monday --replace
    """
    from node import snapshots  # loads SQLite

    root = session.root_of_host()
    answer: dict[str, Any] = {"inputDir": str(source), "root": str(root)}
    if replace:
        replaced = snapshots.replace(source, root)
        manifest = replaced.manifest
        restored = [entry for entry in manifest.files if entry.name == snapshots.DATABASE]
        answer["keptDatabase"] = str(replaced.kept)
    else:
        manifest = snapshots.restore(source, root)
        restored = manifest.files
    session.show(
        {
            **answer,
            "restoredFiles": len(restored),
            "restoredBytes": sum(entry.bytes for entry in restored),
            "nodeId": manifest.node_id,
            "snapshotCreatedAtMs": manifest.created_at_ms,
        }
    )
    return EXIT_OK


_COMMANDS: dict[str, Command] = {"snapshot-export": _export, "snapshot-import": _import}
