"""What the driver of real processes refuses, and what it tells when a run ends before its time. No node starts here."""

import dataclasses

import pytest

from chaos.fault_menu import MENU
from chaos.real import driver, firewall, small_disk, tun_switch
from chaos.real.driver import check, notes_on, play_real
from chaos.scenario import ClockSpec, DiskSpec, Fault, NetSpec, Scenario
from mesh.errors import ConfigError, UnavailableError


def scenario(*kinds, **more):
    faults = tuple(
        Fault(kind=kind, at_s=1, for_s=1, nodes=("n0",), groups=(("n1",), ("n2",)), options=defaults(kind))
        for kind in kinds
    )
    return Scenario(name="trial", nodes=3, faults=faults, **more)


def defaults(kind):
    return {name: option.default for name, option in MENU[kind].options.items()}


@pytest.fixture(autouse=True)
def every_right(monkeypatch):
    for module in (firewall, small_disk, tun_switch):
        monkeypatch.setattr(module, "available", lambda: None)


def refusal(asked, which):
    try:
        check(asked, which)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", MENU)
def test_every_kind_is_played_or_refused_with_a_word_on_what_can(kind):
    told = {which: refusal(scenario(kind), which) for which in ("loopback", "tun")}
    for which, text in told.items():
        assert not text or f"the {which} driver cannot play {kind};" in text
    assert ("--driver tun can" in told["loopback"]) == (bool(told["loopback"]) and not told["tun"])
    assert (not told["tun"]) == ("real" in MENU[kind].scales or kind == "power-cut")
    assert told["tun"] == "" or told["loopback"] != ""


def test_all_kinds_that_cannot_be_played_are_named_at_once():
    text = refusal(scenario("kill", "wipe", "clock-jump", "wipe"), "tun")
    assert text.startswith("the tun driver cannot play clock-jump, wipe; it plays loss, ")
    assert "the simulator (`relaymesh chaos run`) plays them all" in text


def test_a_scenario_without_its_defence_is_refused():
    with pytest.raises(ConfigError, match=r"trial is pending.*: keys cannot be rotated"):
        check(scenario(pending="keys cannot be rotated"), "tun")


def test_a_scenario_of_bare_engines_is_refused():
    with pytest.raises(ConfigError, match="scale 'protocol'"):
        check(scenario(scale="protocol"), "tun")


@pytest.mark.parametrize(
    ("module", "which", "kinds", "words"),
    [
        (tun_switch, "tun", ["kill"], "the tun driver cannot work here: no right"),
        (firewall, "loopback", ["partition"], "the loopback driver cannot cut lines here: no right"),
        (small_disk, "loopback", ["disk-full"], "disks cannot be filled here: no right"),
        (small_disk, "tun", ["disk-full"], "disks cannot be filled here: no right"),
    ],
)
def test_a_missing_right_is_said_with_what_works_instead(monkeypatch, tmp_path, module, which, kinds, words):
    monkeypatch.setattr(module, "available", lambda: "no right")
    with pytest.raises(ConfigError, match=words) as refused:
        play_real(scenario(*kinds), driver=which, directory=tmp_path / "run")
    assert "unshare -rnm" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_only_the_rights_that_a_scenario_needs_are_asked_for(monkeypatch):
    for module in (firewall, small_disk, tun_switch):
        monkeypatch.setattr(module, "available", lambda: "no right")
    check(scenario("kill", "pause", "stop", "epoch-bump"), "loopback")
    with pytest.raises(ConfigError, match="no right"):
        check(scenario(net=NetSpec(loss=0.1)), "loopback")


def test_what_is_played_in_another_way_is_noted():
    assert notes_on(scenario("kill", net=NetSpec(loss=0.1)), "loopback") == []
    assert "a power-cut is played as a kill" in notes_on(scenario("power-cut"), "tun")[0]
    other = scenario(net=NetSpec(duplicate=0.1), clock=ClockSpec(skew_s=1), disk=DiskSpec(latency_ms=5))
    assert [note.split(" ")[0] for note in notes_on(other, "tun")] == ["[clock]", "[disk]"]
    assert len(notes_on(other, "loopback")) == 3


def ended_by(monkeypatch, tmp_path, error):
    heard = []

    def phases(play, stage):
        play._seen.violations.append(driver.Violation("liveness", 0.0, "half a run"))
        raise error

    monkeypatch.setattr(driver._Play, "_phases", phases)
    asked = dataclasses.replace(scenario("kill"), nodes=2)
    return play_real(asked, driver="loopback", directory=tmp_path / "run", progress=heard.append), heard


def test_ctrl_c_leaves_a_result_without_a_verdict_on_half_a_run(monkeypatch, tmp_path):
    result, heard = ended_by(monkeypatch, tmp_path, KeyboardInterrupt())
    assert result.facts["interrupted"] is True
    assert result.facts["driver"] == "loopback"
    assert (result.verdict, list(result.violations)) == ("ok", [])
    assert "interrupted" in heard[-1]


def test_what_is_wrong_with_the_host_is_no_result(monkeypatch, tmp_path):
    with pytest.raises(UnavailableError, match="no node answers"):
        ended_by(monkeypatch, tmp_path, UnavailableError("no node answers"))
