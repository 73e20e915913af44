"""The gate: a node that may have missed news touches nothing it owned before, until it has heard from a peer.

It shuts at every start, after every pause longer than one dead time, and after its store had failed, because in that
time others may have taken the work over. It opens when one pull from a peer finished, or when no peer answered for one
dead time: then there was nobody to take anything, or a cut, across which nobody can know.
"""

from __future__ import annotations

import enum


class GateState(enum.Enum):
    """Whether what the node owned before may be run and committed."""

    OPEN = "open"
    SHUT = "shut"


class Gate:
    """Decides from the times at which it is looked at whether this process was away.

    It owns no timer. Whoever dispatches or commits calls `check` first; because something calls it several times in
    every dead time (the gossip loop does), a longer gap between two calls is a pause of the whole process.
    """

    def __init__(self, *, dead_time_s: float, has_peers: bool, now: float, is_restored: bool = False) -> None:
        """`has_peers`: seeds or members are known; a node founded alone has nobody to hear from and starts open.

        `is_restored`: the database is known to be older than what this node last wrote. Then silence opens nothing
        until one pull has finished: what a restored node owns has most likely moved.
        """
        self._dead_time_s = dead_time_s
        self._checked_at = now
        self._silent_since = now
        self.state = GateState.SHUT if has_peers else GateState.OPEN
        self._opens_alone = not is_restored
        self.pauses = 0
        """How often this process was away for longer than a dead time, or without a working store."""

    @property
    def is_open(self) -> bool:
        """Whether earlier work may be touched, as of the last `check`."""
        return self.state is GateState.OPEN

    def check(self, now: float) -> bool:
        """Note the time, shut the gate when a pause has just ended, and say whether the gate is open.

        Call it immediately before every dispatch and every commit of a result: a process that was stopped learns of
        the pause here, before it acts on what it believed.
        """
        away_s = now - self._checked_at
        self._checked_at = now
        if away_s > self._dead_time_s:
            self.shut(now)
        elif self.state is GateState.SHUT and self._opens_alone and now - self._silent_since >= self._dead_time_s:
            # Nobody answered for one dead time. Waiting longer would stop a node that is simply alone, and an edge
            # host must go on alone: what a cut hides is settled by epochs at the heal.
            self.state = GateState.OPEN
        return self.is_open

    def shut(self, now: float) -> None:
        """Others may have taken over what this node owns, for a reason that the clock does not show."""
        self.pauses += 1
        self.state = GateState.SHUT
        self._silent_since = now

    def on_peer_answered(self, now: float) -> None:
        """A part of a pull came in. Whatever it takes until the rest is here, this node is not alone."""
        # A host that was long away pulls for minutes: opening meanwhile would run again what others finished.
        self._silent_since = now

    def on_pull_started(self) -> int:
        """A token for `on_pull_finished`: a pull begun before the gate shut proves nothing about the time after."""
        return self.pauses

    def on_pull_finished(self, token: int, now: float) -> bool:
        """Open the gate if this pull began after it last shut. True when that changed the state."""
        if self.check(now) or token != self.pauses:
            return False
        self.state = GateState.OPEN
        self._opens_alone = True
        return True

    def opens_at(self) -> float | None:
        """When the gate opens by itself if no peer answers; None when it is open, or opens by a pull only."""
        return None if self.is_open or not self._opens_alone else self._silent_since + self._dead_time_s
