import random

from mesh.detector import Detector, PingDirect, PingIndirect, ProbeFailed, ProbeStep
from mesh.local_health import LocalHealth
from mesh.membership import Member, Membership
from mesh.messages import Reason
from mesh.profiles import LOCAL
from tests.mesh.test_membership import claim, record, table


def detector(members: Membership, seed: int = 1) -> tuple[Detector, LocalHealth]:
    health = LocalHealth()
    return Detector(LOCAL, members, health, random.Random(seed)), health


def begin(probing: Detector, now: float = 100.0) -> PingDirect:
    (ping,) = probing.step(now)
    assert isinstance(ping, PingDirect)
    return ping


def widen(probing: Detector) -> PingIndirect:
    (step,) = probing.step(probing.next_deadline())
    assert isinstance(step, PingIndirect)
    return step


def test_alone_there_is_nothing_to_probe() -> None:
    probing, _ = detector(table())
    assert probing.next_deadline() == float("inf")
    assert probing.step(100.0) == []


def test_every_member_is_probed_once_a_round() -> None:
    names = [f"m{n}" for n in range(7)]
    probing, _ = detector(table(*names))
    for _ in range(3):
        probed = []
        for _ in names:
            ping = begin(probing, max(100.0, probing.next_deadline()))
            probing.on_ack(ping.member, ping.nonce, probing.next_deadline() - 0.2)
            probed.append(ping.member.node_id)
        assert sorted(probed) == names


def test_silence_asks_helpers_and_the_stream_and_then_fails() -> None:
    members = table("b", "c", "d", "e", "f")
    probing, health = detector(members)
    ping = begin(probing)
    assert probing.next_deadline() == 100.0 + LOCAL.probe_timeout_s
    step = widen(probing)
    assert (step.member, step.nonce, len(step.helpers)) == (ping.member, ping.nonce, LOCAL.indirect_probes)
    assert ping.member not in step.helpers
    assert members.own not in step.helpers
    assert probing.next_deadline() == 100.0 + LOCAL.probe_interval_s
    steps: list[ProbeStep] = probing.step(100.0 + LOCAL.probe_interval_s)
    assert steps[0] == ProbeFailed(ping.member)
    assert isinstance(steps[1], PingDirect)
    assert health.score == LOCAL.indirect_probes  # no helper even refused: perhaps we are deaf


def test_refusals_of_helpers_speak_for_us() -> None:
    probing, health = detector(table("b", "c", "d", "e", "f"))
    begin(probing)
    step = widen(probing)
    for helper in step.helpers:
        probing.on_nack(helper, step.nonce)
    assert probing.step(101.0)[0] == ProbeFailed(step.member)
    assert health.score == 0


def test_with_no_helpers_silence_says_nothing_about_us() -> None:
    probing, health = detector(table("b"))
    begin(probing)
    assert widen(probing).helpers == []
    assert probing.step(101.0)[0] == ProbeFailed(member_of(table("b")))
    assert health.score == 0


def member_of(members: Membership) -> Member:
    (other,) = members.active_others()
    return other


def test_an_answer_through_a_helper_or_the_stream_ends_the_probe_well() -> None:
    for way in ("helper", "stream"):
        probing, _ = detector(table("b", "c"))
        begin(probing)
        step = widen(probing)
        if way == "helper":
            assert probing.on_ack(step.helpers[0], step.nonce, 100.4)
        else:
            assert not probing.on_stream(step.member.node_id, step.nonce, alive=False)
            assert probing.on_stream(step.member.node_id, step.nonce, alive=True)
        (following,) = probing.step(100.5)
        assert isinstance(following, PingDirect)


def test_only_the_right_nonce_from_the_right_member_counts() -> None:
    members = table("b", "c")
    probing, _ = detector(members)
    ping = begin(probing)
    stranger = next(m for m in members.active_others() if m is not ping.member)
    assert not probing.on_ack(ping.member, ping.nonce + 1, 100.1)
    assert not probing.on_ack(stranger, ping.nonce, 100.1)
    assert not probing.on_stream(stranger.node_id, ping.nonce, alive=True)
    assert probing.on_ack(ping.member, ping.nonce, 100.1)
    assert not probing.on_ack(ping.member, ping.nonce, 100.1)


def test_bad_local_health_stretches_interval_and_timeout_together() -> None:
    probing, health = detector(table("b", "c"))
    health.worse(3)
    ping = begin(probing)
    assert probing.next_deadline() == 100.0 + 4 * LOCAL.probe_timeout_s
    probing.on_ack(ping.member, ping.nonce, 100.1)
    assert probing.next_deadline() == 100.0 + 4 * LOCAL.probe_interval_s
    assert health.score == 2


def test_a_pause_of_our_own_moves_the_verdict() -> None:
    probing, _ = detector(table("b"))
    begin(probing)
    probing.shift(30.0)
    assert probing.step(120.0) == []
    assert probing.next_deadline() == 130.0 + LOCAL.probe_timeout_s


def test_a_member_that_restarted_during_its_probe_is_not_judged() -> None:
    members = table("b")
    probing, _ = detector(members)
    begin(probing)
    widen(probing)
    members.apply_record(record("b", boot=2), 100.3)
    assert not any(isinstance(step, ProbeFailed) for step in probing.step(101.0))


def test_suspects_are_probed_and_the_dead_are_not() -> None:
    members = table("b")
    probing, _ = detector(members)
    target = member_of(members)
    members.accuse(claim(target), "a", 99.0)
    assert begin(probing).member is target
    members.declare_dead(target, Reason.SUSPICION_EXPIRED, "a", 99.5)
    assert probing.next_deadline() < float("inf")
    assert probing.step(101.0) == []
    assert probing.next_deadline() == float("inf")
