"""The report's folder: everything that a run leaves behind for the one who has to understand it."""

from __future__ import annotations

import re
from pathlib import Path

from chaos.report.layout import lay_out
from chaos.report.page import page
from chaos.report.picture import picture
from chaos.report.verdict import verdict_json, verdict_text
from chaos.report.versions import versions
from chaos.runs import RunResult
from chaos.scenario_file import dump


def folder_name(result: RunResult) -> str:
    """`<scenario>-<seed>`: what a run's folder is called."""
    return f"{_file_name(result.scenario.name)}-{result.scenario.seed}"


def write(result: RunResult, folder: Path, *, replay_command: str) -> None:
    """Fill `folder`, made if missing: verdict.json, verdict.txt, timeline.html, timeline.png, repro.toml and logs/.

    `replay_command` is shown as given. Files of an earlier report are replaced. The same run leaves the same bytes, but
    for CPU time and versions, which only verdict.json and verdict.txt hold. Raises OSError when the disk refuses.
    """
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    for stale in sorted(logs.glob("*.log")):
        stale.unlink()
    repro = dump(result.scenario)
    chart = lay_out(result)
    texts = {
        "repro.toml": repro,
        "verdict.json": verdict_json(result, folder.name, versions()),
        "verdict.txt": verdict_text(result, replay_command=replay_command, options=repro, versions=versions()),
        "timeline.html": page(result, chart, replay_command=replay_command, options=repro),
    }
    texts |= {
        f"logs/{_file_name(host or 'mesh')}.log": "".join(f"{line}\n" for line in lines)
        for host, lines in result.logs.items()
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")
    (folder / "timeline.png").write_bytes(picture(result, chart))


def _file_name(name: str) -> str:
    """Names of scenarios and hosts may come from a file that somebody sent: they stay inside the folder."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".") or "_"
