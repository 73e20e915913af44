"""`relaymesh doctor`: asks a node what the checks look at, judges, and prints one line for each with what mends it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mesh.errors import RelayMeshError, UnavailableError
from tools.doctor_checks import COMMANDS, Result, examine
from tools.output import escape, print_json
from tools.session import EXIT_NEGATIVE, EXIT_OK, Session


def run_doctor(session: Session) -> int:
    """Exit code 0 when no check fails; warnings are no failure."""
    results = _examine(session)
    fails = sum(result.status == "fail" for result in results)
    warnings = sum(result.status == "warn" for result in results)
    if session.json:
        print_json({"ok": not fails, "failed": fails, "warnings": warnings, "checks": [r._asdict() for r in results]})
    else:
        _print(results)
        told = f"{fails} failed, {warnings} warnings" if fails or warnings else "all is well"
        print(f"\n{len(results)} checks: {told}")
    return EXIT_NEGATIVE if fails else EXIT_OK


def _examine(session: Session) -> list[Result]:
    try:
        version = session.ask("version")
    except UnavailableError as error:
        return [Result("node", "fail", str(error), "start the node, or ask another one with --peer HOST:PORT")]
    answers: dict[str, Any] = {}
    errors: dict[str, str] = {}
    for command in COMMANDS:
        try:
            answers[command] = session.ask(command)
        except RelayMeshError as error:
            errors[command] = str(error)
    reached = Result("node", "ok", f"{version['nodeId']} answers, release {version['version']}", "")
    return [reached, *examine(answers, errors)]


def _print(results: Sequence[Result]) -> None:
    width = max(len(result.check) for result in results)
    for result in results:
        print(f"{result.status:<4}  {result.check:<{width}}  {escape(result.found)}")
        if result.status != "ok" and result.mend:
            print(f"      {'':<{width}}  mend: {escape(result.mend)}")
