"""RelayMesh beside the task queues that people use, in one run on one machine with the same work.

The peers' benchmark (a folder with `run_peers.py`) installs and starts them, and calls RelayMesh through
`peer_adapter.py` in every round. Compare only what one run measured: another one had another machine.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chaos.real.processes import source_path
from mesh.errors import ConfigError, UnavailableError

OURS = {"relaymesh": "RelayMesh", "relaymesh-64": "RelayMesh64"}
PEERS = (
    "huey-sqlite",
    "celery-redis",
    "dramatiq-redis",
    "procrastinate-pg",
    "pgqueuer-pg-batch",
    "dbos-pg",
)
"""Compared with unless others are named: what most people would otherwise take, with the durability they ship with."""
_FIELDS = {
    "enqueue_s": ("enqueuePerS", 1),
    "drain_s": ("drainPerS", 1),
    "e2e_s": ("endToEndPerS", 1),
    "lat_p50_ms": ("p50Us", 1000),
    "lat_p99_ms": ("p99Us", 1000),
    "cpu_us_task": ("cpuUs", 1),
    "worker_pss_mib": ("workerPssBytes", 1 << 20),
    "broker_pss_mib": ("brokerPssBytes", 1 << 20),
    "foreign_cpu": ("foreignCpuPct", 100),
}
_COMPARED = ("enqueuePerS", "drainPerS", "endToEndPerS", "p50Us", "p99Us", "cpuUs")
_ROUND_UP_BELOW = 100


def compare(
    peers: Path, scratch: Path, *, only: Sequence[str], rounds: int, quick: bool, environment: Path | None
) -> dict[str, Any]:
    """Run the peers' benchmark with ours beside them: `{"ours", "peers", "ratios"}`, medians of all rounds.

    `ratios` has ours divided by theirs: above 1 is better for rates, below 1 for times. `environment` keeps the peers'
    virtual environment for the next run. ConfigError when `peers` is not the folder of that benchmark; UnavailableError
    when it failed.
    """
    script = peers / "run_peers.py"
    if not script.is_file():
        raise ConfigError(f"{peers} has no run_peers.py: give the folder of the peers' benchmark")
    found = scratch / "peers.json"
    command = [sys.executable, str(script), "tasks", "--json", str(found), "--reps", str(rounds)]
    command += ["--only", ",".join(only), "--work-dir", str(scratch)]
    command += ["--quick"] if quick else []
    command += ["--venv-dir", str(environment)] if environment is not None else []
    for name, case in OURS.items():
        command += ["--extra", f"{name}={_own_case(case)}"]
    # Its own progress goes to standard error, and so to whoever waits; its table would spoil our answer.
    ended = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if ended.returncode or not found.exists():
        raise UnavailableError(f"the peers' benchmark ended with {ended.returncode}: its last lines say why")
    return _answer(json.loads(found.read_text(encoding="utf-8"))["summary"]["tasks"])


def rows(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The answer as two tables in one: a line for each system, and one for each pair with the ratios."""
    lines = [
        {"system": name, **{key: figures.get(key) for key in _COMPARED}}
        for name, figures in {**answer["ours"], **answer["peers"]}.items()
    ]
    for name, by_peer in answer["ratios"].items():
        for peer, ratios in by_peer.items():
            lines.append({"system": f"{name} / {peer}", **{key: ratios.get(key) for key in _COMPARED}})
    return lines


def _own_case(case: str) -> str:
    adapter = Path(__file__).with_name("peer_adapter.py")
    return (
        f'PYTHONPATH={shlex.quote(source_path())} exec {shlex.quote(sys.executable)} "$PEERS_DIR/case_tasks.py" '
        f'--adapter {shlex.quote(str(adapter))}:{case} --dir "$PEERS_TMP"'
    )


def _answer(summary: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    figures = {name: _figures(found) for name, found in summary.items()}
    ours = {name: figures[name] for name in OURS if name in figures}
    theirs = {name: found for name, found in figures.items() if name not in OURS}
    ratios = {
        name: {peer: _ratios(mine, found) for peer, found in theirs.items() if "error" not in found}
        for name, mine in ours.items()
        if "error" not in mine
    }
    return {"ours": ours, "peers": theirs, "ratios": ratios}


def _figures(found: Mapping[str, Any]) -> dict[str, Any]:
    if "error" in found:
        return {"error": found["error"]}
    figures: dict[str, Any] = {
        name: _rounded(found[key]["median"] * factor) for key, (name, factor) in _FIELDS.items() if key in found
    }
    return figures | {key: found[key] for key in ("durability", "concurrency") if key in found}


def _ratios(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, float]:
    return {name: round(ours[name] / theirs[name], 2) for name in _COMPARED if ours.get(name) and theirs.get(name)}


def _rounded(value: float) -> float:
    return round(value, 1) if value < _ROUND_UP_BELOW else round(value)
