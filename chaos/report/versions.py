"""What a run depends on besides scenario and seed: the code and what it ran on. Named in every report."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from pathlib import Path

import apsw
import trio

GIT_S_MAX = 10.0
_SOURCE = Path(__file__).resolve()


@cache
def versions() -> dict[str, str]:
    """By name: commit (with `-dirty` when files differ from it), python, trio, apsw, sqlite, hash seed and platform."""
    return {
        "commit": _commit(),
        "python": platform.python_version(),
        "trio": trio.__version__,
        "apsw": apsw.apsw_version(),
        "sqlite": apsw.sqlite_lib_version(),
        "pythonHashSeed": os.environ.get("PYTHONHASHSEED", "random"),
        "platform": platform.platform(),
    }


def _commit() -> str:
    """The commit of this code; `unknown` when it was installed rather than checked out."""
    try:
        _git("ls-files", "--error-unmatch", _SOURCE.name)  # else a repository around the environment would answer
        return _git("rev-parse", "HEAD") + ("-dirty" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(*args: str) -> str:
    done = subprocess.run(
        ["git", *args], cwd=_SOURCE.parent, capture_output=True, text=True, check=True, timeout=GIT_S_MAX
    )
    return done.stdout.strip()
