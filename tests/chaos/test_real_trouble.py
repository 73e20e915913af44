"""Faults at their times on a stand-in for a cluster that only writes down what was done to it."""

import json
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from chaos.fault_menu import MENU
from chaos.line_faults import LINE_KINDS
from chaos.real import trouble as trouble_module
from chaos.real.trouble import DISK_KINDS, PROCESS_KINDS, Trouble, describe
from chaos.scenario import Fault
from mesh.errors import ConfigError, UnavailableError

NODES = ("n0", "n1", "n2")


class FakeCluster:
    def __init__(self, directory: Path) -> None:
        self.did: list[tuple[str, str]] = []
        self.nodes = {node: SimpleNamespace(root=directory / node) for node in NODES}
        self.up = set(NODES)
        self.codes: dict[str, int] = {}
        self.ready = True
        self.stops_with: int | Exception = 0
        for spec in self.nodes.values():
            spec.root.mkdir()

    def running(self):
        return [node for node in NODES if node in self.up]

    def kill(self, node):
        self._end(node, "kill")

    def terminate(self, node):
        time.sleep(0.05)
        if isinstance(self.stops_with, Exception):
            raise self.stops_with
        if node not in self.up:
            return -signal.SIGKILL
        self._end(node, "terminate")
        return self.stops_with

    def ends_by_itself(self, node, code):
        self.up.remove(node)
        self.codes[node] = code

    def start(self, node, *, wait):
        assert not wait
        assert node not in self.up
        self.up.add(node)
        self.did.append(("start", node))

    def pause(self, node):
        self.did.append(("pause", node))

    def resume(self, node):
        self.did.append(("resume", node))

    def exit_code(self, node):
        return self.codes.get(node)

    def is_ready(self, node):
        return self.ready

    def admin(self, node, command, **args):
        self.did.append((command, node))
        raise UnavailableError("it is down")

    def _end(self, node, how):
        if node not in self.up:
            raise ConfigError(f"{node} does not run")
        self.up.remove(node)
        self.did.append((how, node))

    def of(self, node):
        return [what for what, whom in self.did if whom == node]


class FakeLines:
    def __init__(self) -> None:
        self.laid = []
        self.count = 0

    def lay(self, overlay):
        self.laid.append(overlay)
        self.count += 1

    def lift(self, overlay):
        if overlay in self.laid:
            self.laid.remove(overlay)

    def figures(self):
        return {}


class FakeDisk:
    def __init__(self) -> None:
        self.did = []

    def fill(self, free_bytes):
        self.did.append(free_bytes)

    def free(self):
        self.did.append("free")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(trouble_module, "TICK_S", 0.005)
    monkeypatch.setattr(trouble_module, "RESTART_S", 0.05)


@pytest.fixture
def cluster(tmp_path):
    return FakeCluster(tmp_path)


def fault(kind, at_s=0.02, for_s=0.05, nodes=("n0",), **more):
    options = {name: option.default for name, option in MENU[kind].options.items()} | more.pop("options", {})
    return Fault(kind=kind, at_s=at_s, for_s=for_s, nodes=nodes, options=options, **more)


def play(cluster, *faults, until_s=0.15, poison=False, lines=None, disks=None, tell=lambda line: None):
    trouble = Trouble(cluster, lines or FakeLines(), disks or {}, faults, poison=poison, tell=tell)
    trouble.run(until_s)
    return trouble


def test_a_killed_node_is_down_for_the_time_of_the_fault_and_then_starts_again(cluster):
    began = time.monotonic()
    trouble = play(cluster, fault("kill", for_s=0.1), until_s=0.15)
    assert time.monotonic() - began >= 0.15
    assert cluster.did == [("kill", "n0"), ("start", "n0")]
    assert trouble.record.starts == {"n0": 1}
    assert trouble.record.exit_codes == []


def test_nothing_happens_after_the_time_that_was_asked_for(cluster):
    play(cluster, fault("kill", at_s=0.02, for_s=0.1), fault("kill", at_s=0.08, nodes=("n1",)), until_s=0.05)
    assert cluster.did == [("kill", "n0")]


def test_faults_that_overlap_keep_a_node_down_until_the_last_one_ends(cluster):
    first, second = fault("kill", for_s=0.05), fault("power-cut", at_s=0.04, for_s=0.2)
    trouble = play(cluster, first, second, until_s=0.15)
    assert cluster.of("n0") == ["kill"]
    trouble.mend()
    assert cluster.of("n0") == ["kill", "start"]


def test_a_kill_of_no_length_is_a_restart(cluster):
    play(cluster, fault("kill", for_s=0.0, nodes=("n0", "n1")))
    assert cluster.of("n0") == cluster.of("n1") == ["kill", "start"]
    assert cluster.of("n2") == []


def test_a_stopped_node_may_take_longer_than_its_fault(cluster):
    trouble = play(cluster, fault("stop", for_s=0.01))
    assert cluster.of("n0") == ["resume", "terminate", "start"]
    assert trouble.record.exit_codes == [("n0", 0)]


def test_a_stop_while_modules_still_load_ends_as_the_kernel_sees_fit(cluster):
    cluster.stops_with = -signal.SIGTERM
    assert play(cluster, fault("stop")).record.exit_codes == [("n0", 0)]


def test_a_node_that_does_not_stop_is_written_down_and_killed(cluster):
    cluster.stops_with = TimeoutError("n0 still ran")
    assert play(cluster, fault("stop")).record.exit_codes == [("n0", "n0 still ran")]
    assert cluster.of("n0") == ["resume", "kill", "start"]


def test_a_node_that_was_killed_while_it_stopped_did_nothing_wrong(cluster):
    trouble = play(cluster, fault("stop", at_s=0.01), fault("kill", at_s=0.03))
    assert trouble.record.exit_codes == [("n0", 0)]
    assert cluster.of("n0") == ["resume", "kill", "start"]


def test_a_paused_node_goes_on_when_the_last_pause_ends(cluster):
    play(cluster, fault("pause", for_s=0.03), fault("pause", at_s=0.03, for_s=0.06))
    assert cluster.of("n0") == ["pause", "pause", "resume"]


def test_a_starved_node_runs_for_its_share_of_the_time(cluster):
    told = []
    starve = fault("starve", at_s=0.0, for_s=0.1, options={"share": 0.5, "slice_s": 0.04})
    play(cluster, starve, tell=told.append)
    assert cluster.of("n0") == ["pause", "resume"] * 3
    assert len(told) == 1


def test_other_settings_need_a_restart_and_leave_the_rest_alone(cluster):
    path = cluster.nodes["n0"].root / "relaymesh-settings.json"
    path.write_text('{"maxAttempts": 5, "gossipFanout": 3}')
    play(cluster, fault("settings", for_s=0, options={"fanout": 1, "ttl": 4}))
    assert json.loads(path.read_text()) == {"maxAttempts": 5, "gossipFanout": 1, "gossipPacketTtl": 4}
    assert cluster.of("n0") == ["kill", "start"]


def test_an_epoch_bump_that_nobody_hears_is_no_error(cluster):
    play(cluster, fault("epoch-bump", for_s=0))
    assert cluster.of("n0") == ["cluster-epoch-bump"]


def test_a_full_disk_is_freed_at_the_end_and_only_once(cluster):
    disk = FakeDisk()
    trouble = play(cluster, fault("disk-full", options={"free_kib": 2}), disks={"n0": disk})
    assert disk.did == [2048, "free"]
    trouble.mend()
    assert disk.did == [2048, "free"]


def test_lines_are_changed_and_lifted_and_a_flap_does_so_often(cluster):
    lines = FakeLines()
    flap = fault("flap", for_s=0.08, options={"period_s": 0.02, "down_share": 0.5})
    play(cluster, flap, fault("loss", for_s=1.0), lines=lines)
    assert lines.count >= 4 + 1
    assert [overlay.loss for overlay in lines.laid] == [MENU["loss"].options["share"].default]


def test_mending_ends_everything_and_starts_everybody(cluster):
    lines, disk = FakeLines(), FakeDisk()
    kinds = ("kill", "pause", "stop")
    long = [fault(kind, for_s=9, nodes=(node,)) for kind, node in zip(kinds, NODES, strict=True)]
    long += [fault("loss", for_s=9), fault("disk-full", for_s=9), fault("clog", at_s=8, for_s=1)]
    trouble = play(cluster, *long, lines=lines, disks={"n0": disk}, until_s=0.05)
    trouble.mend()
    assert cluster.up == set(NODES)
    assert lines.laid == []
    assert disk.did == [0, "free"]
    assert cluster.of("n1")[-1] == "resume"


def test_a_node_that_ends_by_itself_is_written_down_once_and_started_again(cluster):
    threading.Timer(0.02, cluster.ends_by_itself, ("n1", 3)).start()
    trouble = play(cluster)
    assert trouble.record.exit_codes == [("n1", "it had ended by itself, with 3")]
    assert cluster.did == [("start", "n1")]


def test_agents_may_kill_their_node_only_where_that_is_the_workload(cluster):
    threading.Timer(0.02, cluster.ends_by_itself, ("n1", -signal.SIGKILL)).start()
    trouble = play(cluster, poison=True)
    assert (trouble.record.poisoned, trouble.record.exit_codes) == (1, [])
    threading.Timer(0.02, cluster.ends_by_itself, ("n1", -signal.SIGKILL)).start()
    assert len(play(cluster).record.exit_codes) == 1


@pytest.mark.parametrize("ready", [True, False])
def test_a_full_disk_excuses_a_refused_start_but_no_end_of_a_running_node(cluster, ready):
    cluster.ready = ready
    threading.Timer(0.05, cluster.ends_by_itself, ("n0", 2)).start()
    trouble = play(cluster, fault("disk-full", at_s=0.0, for_s=0.5), disks={"n0": FakeDisk()})
    assert len(trouble.record.exit_codes) == (1 if ready else 0)


def test_everything_that_is_played_is_on_the_menu_for_real_processes():
    played = {*LINE_KINDS, *PROCESS_KINDS, *DISK_KINDS} - {"power-cut"}
    assert played == {kind for kind, entry in MENU.items() if "real" in entry.scales}


def test_a_kind_that_is_not_played_is_refused(cluster):
    with pytest.raises(AssertionError, match="wipe"):
        play(cluster, fault("wipe"))


def test_a_fault_is_described_in_one_line():
    assert describe(fault("kill", for_s=3.0)) == "kill n0 for 3 s"
    cut = Fault(kind="partition", at_s=1, for_s=2.5, groups=(("n0",), ("n1", "n2")))
    assert describe(cut) == "partition n0 | n1+n2 for 2.5 s"
    assert describe(fault("disk-full", options={"free_kib": 4})) == "disk-full n0 free_kib=4 for 0.05 s"
