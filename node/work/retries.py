"""How long to wait before a failed attempt is tried again."""

from __future__ import annotations

import random
from dataclasses import dataclass

from node.env import AgentInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """At most `max_attempts` runs; delays grow from `base_backoff_ms` and never pass `max_backoff_ms`."""

    max_attempts: int = 3
    base_backoff_ms: int = 1000
    max_backoff_ms: int = 60_000

    def delay_ms(self, attempt: int, rng: random.Random) -> int:
        """The wait after attempt number `attempt` (1 is the first) failed.

        Full jitter: uniform between nothing and the exponential bound. Of the usual laws it spreads a crowd of retries
        the widest for the same number of calls (Brooker, "Exponential Backoff And Jitter", AWS 2015).
        """
        assert attempt >= 1, attempt
        doubling = min(attempt - 1, 30)  # 2**30 base delays already pass every bound; a larger power only costs memory
        return rng.randint(0, min(self.max_backoff_ms, self.base_backoff_ms << doubling))

    def of_step(self, max_attempts: int, agent: AgentInfo | None) -> RetryPolicy:
        """The policy of one step: its own `max_attempts` unless 0, then its agent's values, then these."""
        if agent is None:
            return self
        return RetryPolicy(
            max_attempts=max_attempts or agent.max_attempts or self.max_attempts,
            base_backoff_ms=agent.base_backoff_ms or self.base_backoff_ms,
            max_backoff_ms=agent.max_backoff_ms or self.max_backoff_ms,
        )
