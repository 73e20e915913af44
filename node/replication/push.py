"""Tells the mesh of rows that were committed here, after the commit returned and never before.

A small request travels whole, in one datagram, signed by its origin, and is relayed like any rumor. Anything larger, or
more than a few of them a second, is only hinted at: peers see from the vector digest that they are behind, and pull.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mesh.bundles import make_bundle
from mesh.gossip import PUBLISH_BYTES_MAX
from mesh.identity import Identity
from mesh.rows import Row
from node.storage.store import Commit

BUNDLES_PER_S = 50.0
"""A bundle costs a signature here and a check on every node, 60 and 200 µs; at this rate 1 % of a core."""

BUNDLE_BURST = 25.0

VALUE_BYTES_MAX = 256
"""Rows with a larger payload are hinted at and pulled: a datagram is for news, not for data."""


class Push:
    """Turns each commit into signed bundles, or into a hint."""

    def __init__(
        self,
        identity: Identity,
        *,
        publish: Callable[[bytes, bytes], None],
        hint: Callable[[], None],
        has_peers: Callable[[], bool],
        now: Callable[[], float],
    ) -> None:
        """`publish(payload, subject)` spreads one bundle; `hint()` says that our replica changed.

        While `has_peers()` is False nothing is signed or said: whoever joins begins with a pull.
        """
        self._identity = identity
        self._publish = publish
        self._hint = hint
        self._has_peers = has_peers
        self._now = now
        self._tokens = BUNDLE_BURST
        self._filled_at = now()
        self.bundles_total = 0
        self.hints_total = 0

    def adopt(self, identity: Identity) -> None:
        """Sign with a later enrolment of this node."""
        self._identity = identity

    def on_commit(self, commit: Commit) -> None:
        """Spread what this commit brought. Rows that were only merged from others need a hint at most."""
        if not self._has_peers():
            return
        hint = commit.vector_changed and not commit.requests
        for rows in commit.requests:
            bundle = self._bundle(rows)
            if bundle is None:
                hint = True
                continue
            self.bundles_total += 1
            self._publish(bundle, rows[0].seq.to_bytes(8, "big"))
        if hint:
            self.hints_total += 1
            self._hint()

    def _bundle(self, rows: Sequence[Row]) -> bytes | None:
        if not rows or not self._take_token() or any(_is_large(row) for row in rows):
            return None
        bundle = make_bundle(self._identity, rows, rows[0].seq, rows[-1].seq)
        return bundle if len(bundle) <= PUBLISH_BYTES_MAX else None

    def _take_token(self) -> bool:
        now = self._now()
        self._tokens = min(BUNDLE_BURST, self._tokens + (now - self._filled_at) * BUNDLES_PER_S)
        self._filled_at = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


def _is_large(row: Row) -> bool:
    return any(isinstance(value, bytes) and len(value) > VALUE_BYTES_MAX for value in row.values.values())
