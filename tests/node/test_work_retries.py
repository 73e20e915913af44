"""Whose word counts for a step's retries."""

from node.env import AgentInfo
from node.work.retries import RetryPolicy

DEFAULT = RetryPolicy(max_attempts=3, base_backoff_ms=10, max_backoff_ms=100)


def test_the_step_goes_before_its_agent_and_that_before_the_node():
    agent = AgentInfo(name="a", kind="python", max_attempts=5, base_backoff_ms=20)

    assert DEFAULT.of_step(7, agent) == RetryPolicy(max_attempts=7, base_backoff_ms=20, max_backoff_ms=100)
    assert DEFAULT.of_step(0, agent) == RetryPolicy(max_attempts=5, base_backoff_ms=20, max_backoff_ms=100)
    assert DEFAULT.of_step(0, AgentInfo(name="a", kind="builtin")) == DEFAULT
