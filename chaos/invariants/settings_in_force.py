"""Settings: a running node goes by what its operator last wrote, and by nothing of a file that cannot be used."""

from __future__ import annotations

from collections.abc import Iterator

from chaos.invariants.promise import Promise
from chaos.observations import Seen, SettingsReloaded


class SettingsInForce(Promise):
    """A bad settings file is refused whole; a good one is taken into use at once, down to the part that goes by it."""

    name = "settings-in-force"
    hears = (SettingsReloaded,)

    def see(self, seen: Seen) -> Iterator[str]:
        """Hold what the node goes by against what its file says."""
        assert isinstance(seen, SettingsReloaded)
        if not seen.bad_refused:
            yield f"{seen.host} accepted a settings file that cannot be used"
        wrong = [key for key, value in seen.wanted.items() if seen.in_force.get(key) != value]
        if wrong:
            yield f"{seen.host} does not go by its settings: {', '.join(wrong)}"
        if seen.spread != (seen.wanted["gossipFanout"], seen.wanted["gossipPacketTtl"]):
            yield f"{seen.host} spreads rumors by {seen.spread}, whatever its settings say"
