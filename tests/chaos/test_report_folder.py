"""The report's folder: what lies in it, and that the same run leaves the same bytes."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

from chaos import scenario_file
from chaos.report import folder_name, write
from chaos.report.picture import HEIGHT_MAX, WIDTH, tick_ms
from chaos.runs import LANES, RunResult, TimelineEvent, Violation
from chaos.scenario import Fault, Scenario


def result(hosts: int = 3, *, name: str = "split-brain") -> RunResult:
    return RunResult(
        scenario=Scenario(
            name=name, nodes=3, seed=42, faults=(Fault(kind="pause", at_s=5.0, for_s=2.0, nodes=("n1",)),)
        ),
        violations=(Violation("one-winner", 31_000.0, "two results"),),
        coverage={"takeover": 1},
        trace_hash="abc",
        simulated_s=90.0,
        cpu_s=1.0,
        healed_ms=60_000.0,
        timeline=[
            TimelineEvent(at_ms=host * 100.0, until_ms=50_000.0, lane=lane, host=f"n{host}", label="x", tone="warn")
            for host in range(hosts)
            for lane in LANES
        ],
        logs={"n0": ["0.001 first", "0.002 second"], "../n1": ["0.003 climbing"], "": ["0.004 of the mesh"]},
    )


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_folder_holds_verdict_timelines_repro_and_logs(tmp_path: Path) -> None:
    folder = tmp_path / "out" / folder_name(result())
    write(result(), folder, replay_command="relaymesh chaos replay x")

    assert folder.name == "split-brain-42"
    assert list(files(tmp_path)) == [
        f"out/split-brain-42/{name}"
        for name in (
            "logs/_n1.log",
            "logs/mesh.log",
            "logs/n0.log",
            "repro.toml",
            "timeline.html",
            "timeline.png",
            "verdict.json",
            "verdict.txt",
        )
    ]
    assert (folder / "logs" / "n0.log").read_text() == "0.001 first\n0.002 second\n"
    assert json.loads((folder / "verdict.json").read_text())["report"] == "split-brain-42"


def test_the_repro_is_the_scenario_as_it_was_played(tmp_path: Path) -> None:
    write(result(), tmp_path, replay_command="")

    assert scenario_file.load(tmp_path / "repro.toml") == result().scenario


def test_the_same_run_leaves_the_same_bytes_but_for_cpu_time(tmp_path: Path) -> None:
    for name, cpu_s in (("a", 1.0), ("b", 2.0)):
        write(replace(result(), cpu_s=cpu_s), tmp_path / name / "same", replay_command="r")

    one, other = files(tmp_path / "a" / "same"), files(tmp_path / "b" / "same")
    assert [name for name in one if one[name] != other[name]] == ["verdict.json", "verdict.txt"]
    drop = ("cpuSeconds",)
    verdicts = [json.loads(each["verdict.json"]) for each in (one, other)]
    assert len({json.dumps({k: v for k, v in each.items() if k not in drop}) for each in verdicts}) == 1


def test_logs_of_an_earlier_report_do_not_stay(tmp_path: Path) -> None:
    write(result(), tmp_path, replay_command="")
    write(replace(result(), logs={}), tmp_path, replay_command="")

    assert not list((tmp_path / "logs").iterdir())


def test_a_picture_has_a_fixed_width_and_a_limited_height(tmp_path: Path) -> None:
    for hosts in (0, 3, 60):
        write(result(hosts), tmp_path, replay_command="")

        png = (tmp_path / "timeline.png").read_bytes()
        width, height = struct.unpack_from(">II", png, 16)
        assert (width, height <= HEIGHT_MAX + 400, len(png) < 500_000) == (WIDTH, True, True)


def test_a_scenario_from_elsewhere_cannot_name_a_folder_outside() -> None:
    assert folder_name(result(name="../../etc/x")) == "_.._etc_x-42"


def test_lines_of_an_axis_lie_at_round_distances() -> None:
    assert [tick_ms(span_ms, 10) for span_ms in (9, 15, 49, 60_000, 123_456)] == [1, 2, 5, 10_000, 20_000]
