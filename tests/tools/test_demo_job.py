"""The demo's work: which files it takes, how it cuts them, and that the parts merge to the whole."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import ConfigError
from tools import demo_job
from tools.demo_agents import combine, count_words, count_words_of, merge
from tools.demo_job import HASH_SCRIPT, Selection, cut_batches, plain_result, scripts_json, select_files, workflow


@pytest.fixture
def directory(tmp_path) -> Path:
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "b" / "two.txt").write_text("Two words, two lines\n")
    (tmp_path / "one file.py").write_text("one = 'Eins'\n")
    (tmp_path / "ünï.bin").write_bytes(b"\x00\xffword\x80")
    (tmp_path / ".secret").write_text("no")
    (tmp_path / ".hidden" / "x").write_text("no")
    (tmp_path / "__pycache__" / "x.pyc").write_text("no")
    (tmp_path / "line\nbreak").write_text("no")
    (tmp_path / "link").symlink_to(tmp_path / "b" / "two.txt")
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


def names(selection: Selection) -> list[str]:
    return [os.path.relpath(path, selection.directory) for path in selection.paths]


def test_regular_visible_files_are_taken_in_order_and_the_rest_is_told(directory):
    selection = select_files(directory)
    assert names(selection) == ["b/two.txt", "one file.py", "ünï.bin"]
    assert selection.octets == sum(os.path.getsize(path) for path in selection.paths)
    assert selection.left_out == "2 unreadable or special"


def test_the_default_is_the_source_of_the_standard_library():
    selection = select_files(None)
    assert len(selection.paths) > 100
    assert all(path.endswith(".py") and "site-packages" not in path for path in selection.paths)


@pytest.mark.parametrize(
    ("limit", "value", "taken"), [("FILES_MAX", 2, 2), ("BYTES_MAX", 34, 2), ("FILE_BYTES_MAX", 20, 2)]
)
def test_what_is_beyond_a_limit_is_left_out_and_told(directory, monkeypatch, limit, value, taken):
    monkeypatch.setattr(demo_job, limit, value)
    selection = select_files(directory)
    assert len(selection.paths) == taken
    assert "1 beyond the demo's limits" in selection.left_out


def test_a_limit_that_is_just_met_leaves_nothing_out(directory, monkeypatch):
    monkeypatch.setattr(demo_job, "FILES_MAX", 3)
    monkeypatch.setattr(demo_job, "BYTES_MAX", select_files(directory).octets)
    monkeypatch.setattr(demo_job, "FILE_BYTES_MAX", 21)
    assert len(select_files(directory).paths) == 3


def test_a_directory_without_files_or_that_is_none_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no files"):
        select_files(tmp_path)
    with pytest.raises(ConfigError, match="no directory"):
        select_files(tmp_path / "absent")


@given(sizes=st.lists(st.integers(0, 200_000), min_size=1, max_size=120))
def test_batches_hold_every_file_once_in_order_and_are_few_and_never_empty(sizes):
    paths = tuple(f"f{number}" for number in range(len(sizes)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_job, "_readable_size", lambda path: sizes[int(path[1:])])
        batches = cut_batches(Selection(Path("/"), paths, sum(sizes), ""))
    assert [path for batch in batches for path in batch] == list(paths)
    assert all(batches)
    assert len(batches) <= min(demo_job.BATCHES_MAX, len(paths))


def test_the_steps_run_as_agents_merge_to_what_the_plain_loop_finds(directory):
    """The whole job by hand, without any mesh: real script, real handlers."""
    selection = select_files(directory)
    steps = workflow([list(selection.paths[:1]), list(selection.paths[1:])])["steps"]
    assert [step["id"] for step in steps] == ["hash-00", "count-00", "hash-01", "count-01", "merge"]
    outputs: dict[str, bytes] = {}
    for step in steps[:-1]:
        if step["agent"] == "demo-hash":
            given_input = step["input"].replace(step["input"].split("\n")[0], "0", 1).encode()
            outputs[step["id"]] = subprocess.run(
                ["/bin/sh", HASH_SCRIPT], input=given_input, stdout=-1, check=True
            ).stdout
        else:
            outputs[step["id"]] = json.dumps(count_words(json.loads(step["input"]) | {"holdS": 0})).encode()
    context = type("Context", (), {"parents": outputs})()
    merged = json.loads(json.dumps(merge(context, "")))
    assert sorted(steps[-1]["dependsOn"]) == sorted(outputs)
    assert merged == plain_result(selection)
    assert merged["files"] == merged["digestedFiles"] == 3
    assert merged["topWords"][0] == ["two", 2]


def test_the_script_fails_when_a_file_is_gone():
    done = subprocess.run(["/bin/sh", HASH_SCRIPT], input=b"0\n/no/such/file\n", capture_output=True, check=False)
    assert done.returncode != 0
    assert b"/no/such/file" in done.stderr


def test_the_script_can_be_run_by_any_node():
    (agent,) = json.loads(scripts_json())["agents"]
    assert agent["id"] == "demo-hash"
    assert Path(agent["command"][-1]).is_absolute()
    assert Path(agent["command"][-1]).exists()


def test_a_lost_or_doubled_part_changes_the_merged_result(directory):
    paths = [str(path) for path in select_files(directory).paths]
    parts = [count_words_of([path]) for path in paths]
    lines = [f"digest  {path}" for path in paths]
    whole = combine(parts, lines)
    assert combine(parts[::-1], lines[::-1]) == whole
    assert combine(parts[1:], lines) != whole
    assert combine(parts, [*lines, lines[0]]) != whole
