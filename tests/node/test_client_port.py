"""Which node is asked when one does not answer, and what is asked twice: the same for both clients."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from mesh.errors import ConfigError, LimitError, NotFoundError, UnavailableError
from node.client import verbs
from node.client.mesh_port import PAUSE_S, ROUNDS, MeshPort
from node.client.port import complete
from node.client.targets import choose_targets


class Script:
    """Targets that answer what they are told to. `lost` of them break after each request."""

    def __init__(self, *answers: Any) -> None:
        self.answers = answers
        self.count = len(answers)
        self.asked: list[tuple[int, dict[str, Any], bool]] = []
        self.clock = 0.0

    async def exchange(self, target: int, command: str, body: bytes, *, fresh: bool) -> Any:
        self.asked.append((target, msgspec.msgpack.decode(body), fresh))
        answer = self.answers[target]
        if callable(answer):
            answer = answer(self)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def pause(self, seconds: float) -> None:
        self.clock += seconds

    def now(self) -> float:
        return self.clock


LOST = UnavailableError("lost")


def submit(script: Script, **options: Any) -> str:
    return complete(verbs.submit(MeshPort(script, "default"), "echo", "x", options))


def test_a_submit_whose_answer_was_lost_is_repeated_elsewhere_under_the_same_key():
    script = Script(LOST, {"taskId": "tsk_1"})

    assert submit(script) == "tsk_1"
    assert [target for target, _, _ in script.asked] == [0, 1]
    assert script.asked[0][1] == script.asked[1][1]
    assert len(script.asked[0][1]["args"]["idempotencyKey"]) == 32


def test_with_one_address_it_is_repeated_there_and_then_told():
    script = Script(LOST)

    with pytest.raises(UnavailableError, match="lost"):
        submit(script)
    assert len(script.asked) == ROUNDS
    assert script.clock == PAUSE_S * (ROUNDS - 1)
    assert len({body["args"]["idempotencyKey"] for _, body, _ in script.asked}) == 1


def test_two_submits_have_two_keys_and_a_given_one_is_kept():
    script = Script({"taskId": "tsk_1"})

    submit(script)
    submit(script)
    submit(script, key="mine")

    keys = [body["args"]["idempotencyKey"] for _, body, _ in script.asked]
    assert len(set(keys)) == 3
    assert keys[2] == "mine"


def test_it_stays_with_the_target_that_answered():
    script = Script(LOST, {"status": "PENDING"}, LOST)
    port = MeshPort(script, "default")

    for _ in range(3):
        complete(verbs.status(port, "tsk_1"))

    assert [target for target, _, _ in script.asked] == [0, 1, 1, 1]


def test_a_refusal_is_not_repeated():
    script = Script(LimitError("too large"), {"taskId": "tsk_1"})

    with pytest.raises(LimitError):
        submit(script)
    assert len(script.asked) == 1


def test_a_task_that_one_node_does_not_know_yet_is_asked_for_at_the_next():
    script = Script(NotFoundError("not here"), {"status": "SUCCESS"})

    assert complete(verbs.status(MeshPort(script, "default"), "tsk_1")) == "SUCCESS"


def test_a_task_that_nobody_knows_is_told_after_one_round():
    script = Script(NotFoundError("not here"), NotFoundError("nor here"))

    with pytest.raises(NotFoundError):
        complete(verbs.status(MeshPort(script, "default"), "tsk_1"))
    assert len(script.asked) == 2


def test_a_replay_is_asked_once_over_a_connection_of_its_own():
    script = Script(LOST, {"steps": []})

    with pytest.raises(UnavailableError):
        complete(verbs.replay(MeshPort(script, "default"), "tsk_1", None))
    assert [(target, fresh) for target, _, fresh in script.asked] == [(0, True)]


def ended(script: Script) -> Any:
    """Silent for ten seconds of the clock, then a finished task."""
    if script.clock < 10:
        return LOST
    return {"timedOut": False, "status": "SUCCESS", "resultPayload": "done", "steps": []}


def test_a_wait_outlives_a_restart_of_the_only_node():
    script = Script(ended)

    result = complete(verbs.result(MeshPort(script, "default"), "tsk_1", None, verbs.decoder(str)))

    assert result == "done"
    assert 10 <= script.clock < 12


def test_a_wait_is_not_longer_than_its_timeout_or_its_patience():
    for timeout_s in (2.0, None):
        script = Script(LOST)
        with pytest.raises(UnavailableError):
            complete(verbs.wait(MeshPort(script, "default"), "tsk_1", timeout_s))
        assert script.clock <= (timeout_s or verbs.PATIENCE_S) + PAUSE_S * ROUNDS


def test_a_timeout_bounds_each_question_and_is_told_with_the_status():
    def running(script: Script) -> Any:
        script.clock += script.asked[-1][1]["args"]["timeoutMs"] / 1000
        return {"timedOut": True, "status": "RUNNING"}

    script = Script(running)

    with pytest.raises(TimeoutError, match="still RUNNING after 70 s"):
        complete(verbs.wait(MeshPort(script, "default"), "tsk_1", 70))
    assert [body["args"]["timeoutMs"] for _, body, _ in script.asked] == [30_000, 30_000, 10_000]


@pytest.mark.parametrize(
    ("root", "peer", "identity", "told"),
    [
        (None, None, None, "no node was named"),
        ("/nonexistent", None, None, "is not a directory"),
        (None, "here", "me", "HOST:PORT"),
        (None, ",", "me", "1 to 16 addresses"),
        (None, "127.0.0.1:1", None, "who you are"),
        (None, "127.0.0.1:1", "/nonexistent", "does not exist"),
    ],
)
def test_what_names_no_node_is_refused_at_once(root, peer, identity, told):
    with pytest.raises(ConfigError, match=told):
        choose_targets(root, peer, identity)
