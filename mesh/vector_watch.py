"""Whether peers hold another replica than ours, judged from the short digests that probes carry.

Promises: one differing exchange proves nothing, because the missing rows may be on their way as rumors; the second in
a row, with one peer or over all peers, asks for a pull. An empty digest says nothing. Memory is one number per peer.
"""

from __future__ import annotations

DIFFERENCES_MIN = 2


class VectorWatch:
    """Counts differing exchanges in a row."""

    def __init__(self) -> None:
        self.own = b""
        self._in_a_row = 0
        self._per_peer: dict[str, int] = {}

    def on_exchange(self, node_id: str, vector: bytes) -> bool:
        """A peer told its digest; True when a pull from it is due."""
        if not vector or not self.own:
            return False
        if vector == self.own:
            self._in_a_row = 0
            self._per_peer.pop(node_id, None)
            return False
        # Over all peers: in a large mesh a node that lags would otherwise meet the same peer once a minute.
        self._in_a_row += 1
        with_peer = self._per_peer[node_id] = self._per_peer.get(node_id, 0) + 1
        if max(self._in_a_row, with_peer) < DIFFERENCES_MIN:
            return False
        self._in_a_row = 0
        del self._per_peer[node_id]
        return True

    def on_hint(self, vector: bytes) -> bool:
        """A peer said that its replica has just changed; True when ours is another one."""
        return bool(vector) and vector != self.own

    def forget(self, node_id: str) -> None:
        """The peer is gone."""
        self._per_peer.pop(node_id, None)
