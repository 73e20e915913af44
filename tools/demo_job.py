"""The work of `relaymesh demo`: which files, cut into which steps, and the same result computed without any mesh.

A batch is a list of paths. Two steps handle it, a script agent that hashes and a Python agent that counts words; one
step at the end merges what all of them found.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mesh.errors import ConfigError
from tools.demo_agents import combine, count_words_of

FILES_MAX = 2_500
BYTES_MAX = 64 * 1024 * 1024
FILE_BYTES_MAX = 8 * 1024 * 1024
BATCHES_MAX = 20
HOLD_TOTAL_S = 90.0
"""All steps together hold their slots this long, so that the mesh is busy for some 15 s however small the directory."""
HOLD_S_MAX = 4.0
HASH_SCRIPT = Path(__file__).with_name("demo_hash.sh")
AGENTS_FILE = Path(__file__).with_name("demo_agents.py")
MERGE_STEP = "merge"


@dataclass(frozen=True, slots=True)
class Selection:
    """The files that the demo works on, and in words what was left out."""

    directory: Path
    paths: tuple[str, ...]
    octets: int
    left_out: str


def select_files(directory: Path | None) -> Selection:
    """The regular files below a directory in sorted order, up to the limits; ConfigError when there are none.

    None takes the source files of the standard library of the Python that runs this. Symbolic links, hidden names and
    names with a line break are not followed or taken.
    """
    chosen = Path(sysconfig.get_paths()["stdlib"]) if directory is None else directory.absolute()
    if not chosen.is_dir():
        raise ConfigError(f"{chosen} is no directory: give one with files to count, or none for Python's own library")
    paths: list[str] = []
    octets = over_limit = unusable = 0
    for path in _walk(chosen, sources_only=directory is None):
        size = _readable_size(path)
        if size is None:
            unusable += 1
        elif size > FILE_BYTES_MAX or len(paths) == FILES_MAX or octets + size > BYTES_MAX:
            over_limit += 1
        else:
            paths.append(path)
            octets += size
    if not paths:
        raise ConfigError(f"{chosen} holds no files that can be read: give a directory with some")
    notes = [f"{over_limit:,} beyond the demo's limits"] if over_limit else []
    notes += [f"{unusable:,} unreadable or special"] if unusable else []
    return Selection(chosen, tuple(paths), octets, ", ".join(notes))


def cut_batches(selection: Selection) -> list[list[str]]:
    """At most BATCHES_MAX lists of about equal bytes, in the order of the files."""
    sizes = [_readable_size(path) or 0 for path in selection.paths]
    # The constant per file keeps thousands of tiny files from ending up in one batch.
    weights = [size + 4_096 for size in sizes]
    target = sum(weights) / min(BATCHES_MAX, len(weights))
    batches: list[list[str]] = [[]]
    passed = 0
    for path, weight in zip(selection.paths, weights, strict=True):
        if batches[-1] and passed >= target * len(batches):
            batches.append([])
        batches[-1].append(path)
        passed += weight
    return batches


def workflow(batches: list[list[str]]) -> dict[str, Any]:
    """The definition to submit: hash and count every batch, then merge."""
    hold_s = round(min(HOLD_S_MAX, HOLD_TOTAL_S / (2 * len(batches))), 2)
    steps: list[dict[str, Any]] = []
    for number, paths in enumerate(batches):
        steps.append(
            {
                "id": f"hash-{number:02}",
                "agent": "demo-hash",
                "input": "\n".join([str(hold_s), *paths, ""]),
            }
        )
        steps.append(
            {
                "id": f"count-{number:02}",
                "agent": "demo-count",
                "input": json.dumps({"holdS": hold_s, "paths": paths}),
            }
        )
    depends_on = [step["id"] for step in steps]
    steps.append({"id": MERGE_STEP, "agent": "demo-merge", "input": "", "dependsOn": depends_on})
    return {"steps": steps}


def plain_result(selection: Selection) -> dict[str, Any]:
    """The same job in one loop in this process, with Python's own SHA-256."""
    lines = [f"{hashlib.sha256(Path(path).read_bytes()).hexdigest()}  {path}" for path in selection.paths]
    return combine([count_words_of(list(selection.paths))], lines)


def scripts_json() -> str:
    """The `agents/scripts.json` that makes the hashing script an agent of a node."""
    command = ["/bin/sh", str(HASH_SCRIPT)]
    return json.dumps({"agents": [{"id": "demo-hash", "command": command, "timeoutMs": 60_000}]}, indent=2)


def _walk(directory: Path, *, sources_only: bool) -> list[str]:
    found: list[str] = []
    for folder, folders, names in os.walk(directory):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and name not in {"site-packages", "__pycache__"}
        )
        found += [os.path.join(folder, name) for name in names if _wanted(name, sources_only=sources_only)]
    return sorted(found)


def _wanted(name: str, *, sources_only: bool) -> bool:
    # Work input is text: a name that is not UTF-8 cannot be passed on, and one with a line break cannot be told apart.
    usable = not name.startswith(".") and "\n" not in name and name.isprintable()
    return usable and (name.endswith(".py") or not sources_only)


def _readable_size(path: str) -> int | None:
    try:
        if os.path.islink(path) or not os.path.isfile(path) or not os.access(path, os.R_OK):
            return None
        return os.path.getsize(path)
    except OSError as error:
        print(f"relaymesh demo: {path} is left out: {error.strerror}", file=sys.stderr)
        return None
