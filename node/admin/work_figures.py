"""Figures about work that `stats` shows under the contract's names, each read with an index or over what waits."""

from __future__ import annotations

from typing import Any

from node.storage.reader import Reader
from node.work.causes import dead_letter_causes
from node.work.history import CONFLICTS
from node.work.tables import Status

CLASSED_MAX = 200
"""Dead letters of which the cause is looked for: each takes a look at its history, and stats are asked often."""
HOUR_MS = 3_600_000


def work_figures(reader: Reader, *, namespace: str, now_ms: int) -> dict[str, Any]:
    """Dead letters with the causes of the latest, lease conflicts, and how long the next runnable step has waited."""
    hour_ago = max(0, now_ms - HOUR_MS) << 16
    dead = f"SELECT count(*) FROM steps WHERE namespace = ? AND rank = {Status.DEAD_LETTER.rank} AND deleted = 0"
    conflicts = (
        "SELECT count(*) FROM history WHERE namespace = ? AND hlc >= ? AND deleted = 0 "
        f"AND action IN ({','.join('?' * len(CONFLICTS))})"
    )
    actions = [action.value for action in CONFLICTS]
    ((oldest_hlc,),) = reader.sql(
        "SELECT min(enqueued_hlc) FROM queue WHERE namespace = ? AND runnable = 1 AND due_ms <= ?", (namespace, now_ms)
    )
    ((total,),) = reader.sql(dead, (namespace,))
    ((grown,),) = reader.sql(f"{dead} AND hlc >= ?", (namespace, hour_ago))
    ((recent,),) = reader.sql(conflicts, (namespace, hour_ago, *actions))
    return {
        "deadLetters": {
            "total": int(total),
            "classed": min(int(total), CLASSED_MAX),
            "byCause": dead_letter_causes(reader, namespace, CLASSED_MAX),
        },
        "deadLetterGrowth1h": int(grown),
        "leaseConflict1h": int(recent),
        "queueLagMs": 0 if oldest_hlc is None else max(0, now_ms - (int(oldest_hlc) >> 16)),
    }
