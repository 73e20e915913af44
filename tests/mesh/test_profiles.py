import dataclasses

import pytest

from mesh.profiles import LAN, LOCAL, PROFILES, WAN, Profile


def test_one_dead_time_grows_slowly_with_the_mesh() -> None:
    assert [LOCAL.dead_after_s(n) for n in (1, 3, 10, 100)] == [2.5, 2.5, 2.5, 5.0]
    assert LAN.dead_after_s(3) == 4.0
    assert WAN.dead_after_s(3) == 30.0


def test_rumors_are_sent_at_least_twelve_times() -> None:
    assert [LAN.rumor_sends(n) for n in (1, 3, 100, 998, 1_000, 99_999)] == [12, 12, 12, 12, 16, 20]


def test_hops_are_capped_at_twelve_and_in_large_meshes_at_sixteen() -> None:
    assert [LAN.hop_ttl(n) for n in (2, 300, 301)] == [12, 12, 16]
    assert dataclasses.replace(LAN, hop_ttl_override=2).hop_ttl(1_000) == 2


def test_confirmations_are_wanted_only_where_enough_members_could_confirm() -> None:
    assert [LOCAL.confirmations_wanted(n) for n in (2, 3, 4, 5, 50)] == [0, 0, 0, 3, 3]


def test_overrides_replace_what_the_profile_computes() -> None:
    slow = dataclasses.replace(LOCAL, suspect_after_s=7.0, dead_after_s_override=60.0)
    assert slow.probe_fails_after_s() == 7.0
    assert slow.dead_after_s(1_000) == 60.0


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda profile: profile.name)
def test_a_probe_leaves_its_helpers_time_to_answer(profile: Profile) -> None:
    assert profile.probe_timeout_s < profile.probe_fails_after_s()
    assert PROFILES[profile.name] is profile
