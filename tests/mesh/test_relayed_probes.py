from mesh.profiles import LOCAL
from mesh.relayed_probes import NACK_AT_SHARE, RELAYS_MAX, RelayedProbes


def test_silence_is_refused_once_before_the_requester_gives_up() -> None:
    relays = RelayedProbes(LOCAL)
    assert relays.begin("a", 1, 100, now=10.0)
    assert relays.next_deadline() == 10.0 + NACK_AT_SHARE * LOCAL.probe_timeout_s
    assert relays.due(10.1) == []
    (refused,) = relays.due(relays.next_deadline())
    assert (refused.requester, refused.their_nonce) == ("a", 1)
    assert relays.due(10.3) == []


def test_an_answer_is_passed_on_once_even_after_the_refusal() -> None:
    relays = RelayedProbes(LOCAL)
    relays.begin("a", 1, 100, now=10.0)
    relays.due(10.2)
    relayed = relays.on_ack(100)
    assert relayed is not None
    assert relayed.requester == "a"
    assert relays.on_ack(100) is None


def test_an_ended_probe_is_forgotten() -> None:
    relays = RelayedProbes(LOCAL)
    relays.begin("a", 1, 100, now=10.0)
    relays.due(10.0 + LOCAL.probe_interval_s)
    assert len(relays) == 0
    assert relays.next_deadline() == float("inf")


def test_at_the_limit_all_run_and_one_more_is_refused() -> None:
    relays = RelayedProbes(LOCAL)
    assert all(relays.begin("a", nonce, nonce, now=10.0) for nonce in range(RELAYS_MAX))
    assert not relays.begin("a", RELAYS_MAX, RELAYS_MAX, now=10.0)
