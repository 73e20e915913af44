"""`relaymesh upgrade-rehearsal`: what an upgrade and the way back would do to a node, tried on a copy."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tools.session import EXIT_NEGATIVE, EXIT_OK, Session, command

if TYPE_CHECKING:
    from tools.upgrade_rehearsal import Report

SUMMARY_FILE = "summary.txt"


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    command(app, "upgrade-rehearsal", panel="Mesh")(_upgrade_rehearsal)


def _upgrade_rehearsal(
    session: Session,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="New folder for the report.")],
    wheel: Annotated[
        Path | None,
        typer.Option("--wheel", metavar="FILE", help="Wheel of the release to go back to: a node of it starts, too."),
    ] = None,
) -> int:
    """Try an upgrade to this release on a copy.

    Copies the database of --root, which may be in use and is only read, migrates the copy with this release, compares
    every row, migrates it back, compares again, and runs a throwaway node on it. Exit 1 when something did not hold.

    \b
    Example:
      relaymesh --root data upgrade-rehearsal --wheel relaymesh-0.1.0-py3-none-any.whl --out rehearsal
    """
    root = session.root_of_host()
    from node.daemon import version
    from tools.upgrade_rehearsal import rehearse  # brings in the database and the cryptography library

    def say(text: str) -> None:
        if sys.stderr.isatty():
            print(text, file=sys.stderr)

    report = rehearse(root, out, release=version(), wheel=wheel, say=say)
    summary = summary_of(report)
    (out / SUMMARY_FILE).write_text(summary)
    if session.json:
        import msgspec

        session.show(msgspec.to_builtins(report))
    else:
        print(summary, end="")
        print(f"report: {out / 'report.json'}", file=sys.stderr)
    return EXIT_OK if report.ok else EXIT_NEGATIVE


def summary_of(report: Report) -> str:
    """The report in words, for people."""
    came = f"from schema {report.from_schema} to {report.to_schema} and back to {report.back_to_schema}"
    lines = [
        f"{'It holds' if report.ok else 'It does NOT hold'}: {report.root}, release {report.release}, {came}",
        *(f"  problem: {problem}" for problem in report.problems),
        "",
        "steps:",
    ]
    for step in report.steps:
        told = f": {step.detail}" if step.detail else ""
        lines.append(f"  {'ok  ' if step.ok else 'FAIL'} {step.duration_ms:>7} ms  {step.name}{told}")
    changes = [
        *(f"migration {each}" for each in report.changes.migrations),
        *(f"new table {each}" for each in report.changes.tables),
        *(f"new column {each}" for each in report.changes.columns),
    ]
    lines += ["", "the upgrade would change:", *(f"  {each}" for each in changes or ["nothing"])]
    sizes = report.bytes
    lines += ["", f"bytes: {sizes.before} before, {sizes.upgraded} upgraded, {sizes.rolled_back} rolled back"]
    lines += [f"rows: {', '.join(f'{table} {count}' for table, count in report.rows.items()) or 'none'}"]
    return "\n".join(lines) + "\n"
