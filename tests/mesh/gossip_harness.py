"""Worlds of engines as the tests of the protocol want them: every effect is kept, and what does not come true fails."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from chaos.protocol.engines import Engine, ProtocolWorld
from chaos.simulation.links import Conditions, Overlay, between
from mesh.effects import Effect
from mesh.profiles import LOCAL, Profile


class World(ProtocolWorld):
    """A `ProtocolWorld` that remembers what all engines told their shells, and what was on the wire."""

    def __init__(self, *, seed: int = 1, profile: Profile = LOCAL, loss: float = 0.0) -> None:
        super().__init__(seed, profile=profile, conditions=Conditions(loss=loss, delay_mean_s=0.002))
        self.logs: dict[str, list[tuple[float, Effect]]] = {}
        self.on_effect.append(self._log)
        self.wire: list[tuple[str, str, bytes]] = []
        """Sender, receiver and bytes of every datagram."""
        self.on_send.append(lambda sender, receiver, data: self.wire.append((sender, receiver, data)))

    def _log(self, engine: Engine, effect: Effect) -> None:
        self.logs.setdefault(engine.name, []).append((self.now, effect))

    def mesh_of(self, count: int, *, settle_s: float = 3.0) -> list[str]:
        """Start this many nodes at once, all seeded with the first, and let them find each other."""
        names = self.start_mesh(count)
        self.run(settle_s)
        return names

    def cut(self, one: Iterable[str], other: Iterable[str]) -> None:
        self.links.lay(Overlay(pairs=between(one, other), blocked=True))

    def effects(self, name: str, kind: type[Effect]) -> list[Effect]:
        return [effect for _, effect in self.logs.get(name, []) if isinstance(effect, kind)]

    def run_until(self, condition: Callable[[], bool], limit_s: float, *, every_s: float = 0.05) -> float:
        took_s = super().run_until(condition, limit_s, every_s=every_s)
        assert took_s is not None, f"not within {limit_s} s"
        return took_s
