"""One scenario on real processes by each driver: a cut, a kill, clients at work, and every promise kept."""

import subprocess
from pathlib import Path

import pytest

from chaos.real import firewall, tun_switch
from chaos.real.driver import play_real
from chaos.scenario import Fault, Scenario, WorkloadSpec

MISSING = {"loopback": firewall.available(), "tun": tun_switch.available()}
SCENARIO = Scenario(
    name="cut-and-kill",
    nodes=3,
    duration_s=9,
    settle_s=60,
    workload=WorkloadSpec(clients=4, rate=12),
    settings={"suspectRecoverMinMs": 200, "deadRecoverMinMs": 500, "baseBackoffMs": 100, "maxBackoffMs": 1_000},
    faults=(
        Fault(kind="partition", at_s=1, for_s=4, groups=(("n0",), ("n1", "n2"))),
        Fault(kind="kill", at_s=6, for_s=2, nodes=("n1",)),
    ),
)


def leftovers() -> str:
    """Rules and mounts that some driver of this host left behind."""
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=False).stdout
    mounts = Path("/proc/self/mounts").read_text()
    return "".join(line for line in (tables + mounts).splitlines() if "relaymesh_" in line)


@pytest.mark.slow
@pytest.mark.parametrize("driver", ["loopback", "tun"])
def test_a_cut_and_a_kill_break_no_promise(tmp_path, driver):
    if MISSING[driver] is not None:
        pytest.skip(f"the {driver} driver cannot work here: {MISSING[driver]}")
    before, heard = leftovers(), []
    result = play_real(SCENARIO, driver=driver, directory=tmp_path / "run", progress=heard.append)
    assert not result.violations, "\n".join(map(str, result.violations))
    assert result.settled_ms is not None
    assert result.facts["accepted"] > 10
    assert result.facts["restarts"] == 1
    assert result.facts["packetsBlocked"] > 0
    assert result.facts.get("packetsLeaked", 0) == 0
    assert {"faults", "membership", "leases", "clients"} <= {event.lane for event in result.timeline}
    assert any("n0 DEAD" in event.label for event in result.timeline)
    assert "ready: node n1" in "\n".join(result.logs["n1"])
    assert any("partition n0 | n1+n2" in line for line in heard)
    assert leftovers() == before
