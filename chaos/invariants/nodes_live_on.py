"""Processes: only a death from outside ends a node, its database is sound at each start, its log tells of no fault."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from chaos.invariants.promise import Promise
from chaos.observations import HostEnded, HostStarted, Logged, Seen

_STORE = "the local store "
_CONFLICT = "identity conflict"


class NodesLiveOn(Promise):
    """No node ends by itself; one refuses to start only after its disk failed, was damaged, rolled back or copied."""

    name = "nodes-live-on"
    hears = (HostEnded,)

    def see(self, seen: Seen) -> Iterator[str]:
        """Judge the end of a process."""
        assert isinstance(seen, HostEnded)
        host = self.mirror.host(seen.host)
        if seen.how == "failed":
            yield f"{seen.host} ended by itself: {seen.detail}"
        elif seen.how == "refused" and not host.is_unsure and not self.mirror.node_was_doubled(host.node_id):
            yield f"{seen.host} refused to start on a sound disk: {seen.detail}"


class DatabasesSound(Promise):
    """Whatever an honest disk went through, SQLite finds nothing wrong with the database at the next start."""

    name = "databases-sound"
    hears = (HostStarted,)

    def see(self, seen: Seen) -> Iterator[str]:
        """Read what it found."""
        assert isinstance(seen, HostStarted)
        met = self.mirror.host(seen.host).met
        if seen.integrity != "ok" and "lying-sync" not in met and "bit-flip" not in met:
            yield f"the database of {seen.host}: {seen.integrity}"


class LogsTellOfNoFault(Promise):
    """No node logs an error or a traceback, except that its store fails, or that its name is taken, when it is so."""

    name = "logs-tell-of-no-fault"
    hears = (Logged,)

    def see(self, seen: Seen) -> Iterator[str]:
        """Read a line."""
        assert isinstance(seen, Logged)
        if seen.level < logging.ERROR and "Traceback" not in seen.text:
            return
        host = self.mirror.host(seen.host)
        is_told_disk = seen.text.startswith(_STORE) and host.is_unsure
        is_told_name = seen.text.startswith(_CONFLICT) and self.mirror.node_was_doubled(host.node_id)
        if not is_told_disk and not is_told_name:
            yield f"{seen.host} logged: {seen.text}"
