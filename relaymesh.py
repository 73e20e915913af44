"""The public face of RelayMesh: what authors of agents import. Nothing here but names that are defined elsewhere.

from relaymesh import Context, Fail, Retry, agent

@agent("word-count", retry=Retry(max_attempts=5), timeout_s=60)
def word_count(ctx: Context, text: str) -> dict[str, int]:
    return {"words": len(text.split())}
"""

from __future__ import annotations

import os.path

import node as _node

_home = os.path.dirname(os.path.abspath(__file__))
if os.path.abspath(_node.__file__ or "") != os.path.join(_home, "node", "__init__.py"):
    # `node` is a common name; half an import of somebody else's package would fail later and say nothing useful.
    _found = _node.__file__ or list(_node.__path__)
    raise ImportError(
        f"relaymesh lives in {_home}, but the name `node` means {_found}: another package or folder called `node` "
        "comes first on sys.path. Rename that one, or start Python from another folder."
    )

from node.agents.api import (  # noqa: E402  (only after the check above)
    Cancel,
    CheckpointError,
    Context,
    Fail,
    LeaseMovedError,
    Retry,
    Snooze,
    agent,
)

__all__ = ["Cancel", "CheckpointError", "Context", "Fail", "LeaseMovedError", "Retry", "Snooze", "agent"]
