"""What the pages say can be done as they say it: examples run, commands and options exist, named files are there."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from node.agents import api
from node.agents.api import Context, Fail
from node.agents.scripts import read_scripts
from node.client.mesh import Mesh
from node.config import _parser
from node.work.definition import Limits, parse_workflow
from tools.cli import app

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")
README = (ROOT / "README.md").read_text()


def block(language: str, holds: str) -> str:
    (found,) = [code for code in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if holds in code]
    return found


def test_the_python_agent_does_what_it_says(monkeypatch, capsys):
    monkeypatch.setattr(api, "registered", {})
    names: dict = {}
    exec(compile(block("python", '@agent("word-count"'), "agents.py", "exec"), names)

    assert names["word_count"](Context(attempt=2), "one two three") == {"words": 3}
    assert capsys.readouterr().err == "attempt 2\n"
    with pytest.raises(Fail, match="nothing to count"):
        names["word_count"](Context(), "")
    assert list(api.registered) == ["word-count"]


def test_the_agent_that_keeps_its_place_does_what_it_says(monkeypatch):
    monkeypatch.setattr(api, "registered", {})
    names: dict = {}
    exec(compile(block("python", '@agent("import-pages"'), "agents.py", "exec"), names)

    mesh = Mesh.memory()
    assert mesh.submit(names["import_pages"], 3).result() == {"pages": 3, "from": 0}
    assert names["import_pages"](Context(saved=2), 3) == {"pages": 3, "from": 2}


def test_the_client_submits_what_the_page_says(monkeypatch, capsys):
    monkeypatch.setattr(api, "registered", {})
    names: dict = {}
    exec(compile(block("python", '@agent("word-count"'), "agents.py", "exec"), names)
    for name in ("download", "merge"):
        api.agent(name)(str.upper)
    monkeypatch.setattr("relaymesh.Client", lambda root: contextlib.nullcontext(Mesh.memory()))
    exec(compile(block("python", "Client(root="), "client.py", "exec"), {})

    first, *steps = capsys.readouterr().out.replace("attempt 1\n", "").splitlines()
    assert first == "{'words': 3}"
    assert steps[-1] == "merge SUCCESS"


def test_the_script_agent_is_one(tmp_path):
    file = tmp_path / "scripts.json"
    file.write_text(block("json", '"agents"'))

    assert [script.name for script in read_scripts(file, tmp_path)] == ["sha256"]


def test_the_workflow_is_one():
    workflow = parse_workflow(json.loads(block("json", '"steps"')), Limits())

    assert [step.name for step in workflow.steps] == ["fetch", "north", "south", "merge"]


def command_lines(program: str) -> list[list[str]]:
    """Every command of the README's indented lines, as words."""
    lines = re.findall(r"^    (.*)$", README.replace("\\\n", " "), re.MULTILINE)
    lines += re.findall(rf"`({program} [^`…]*)`", README)
    return [shlex.split(line, comments=True) for line in lines if line.startswith(program + " ")]


def test_every_command_line_of_the_readme_is_understood():
    lines = command_lines("relaymesh")

    assert len(lines) >= 8
    for words in lines:
        names = [word for word in words[1:] if re.fullmatch(r"[a-z][a-z-]+", word)]
        parts = [names[start : start + length] for length in (3, 2, 1) for start in (0, 1)]  # the first may be a value
        command = next(part for part in parts if has_help(part))
        known = CliRunner().invoke(app, ["--help"]).output + CliRunner().invoke(app, [*command, "--help"]).output
        for option in (word for word in words if word.startswith("--")):
            assert re.search(rf"{option}\b", known), (option, words)


def has_help(command: list[str]) -> bool:
    return CliRunner().invoke(app, [*command, "--help"]).exit_code == 0 and bool(command)


def test_every_node_command_line_of_the_readme_is_understood():
    lines = command_lines("relaymesh-node")

    assert lines
    for words in lines:
        _parser().parse_args(words[1:])


def test_every_command_in_the_table_for_operators_exists():
    table = README.split("## Looking after it")[1].split("\n\n")[0]
    commands = re.findall(r"`([a-z-]+)(?: [A-Z]+)?`", table)

    assert len(commands) >= 10
    assert [command for command in commands if not has_help([command])] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_is_there(page):
    named = re.findall(r"`((?:[a-z0-9_.-]+/)*[a-z0-9_.-]+\.(?:py|sql|toml|txt))`", (ROOT / page).read_text())
    places = [ROOT, ROOT / "node", ROOT / "tests", *(ROOT / "tests" / name for name in ("mesh", "node", "tools"))]

    assert [name for name in named if not any((place / name).is_file() for place in places)] == []


def test_the_table_of_invariants_names_tests_for_all_but_the_last():
    rows = (ROOT / "ARCHITECTURE.md").read_text().split("## Invariants\n")[1].split("\n\n")[0].splitlines()[2:]

    assert len(rows) >= 15
    assert [row for row in rows[:-1] if not re.search(r"`(e2e/)?test_\w+\.py`", row.split("|")[4])] == []
