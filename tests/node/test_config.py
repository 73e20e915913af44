"""Goal: a configuration either works or is refused in one line that says what to change. Method: real files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mesh.errors import ConfigError
from mesh.ids import Address
from node import identity_files
from node.config import LABELS_MAX, SEEDS_MAX, SLOTS_MAX, default_node_id, parse_config, read_seeds_file

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture(scope="module")
def enrolments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the enrolments `a` and `b` of node-a and node-b."""
    directory = tmp_path_factory.mktemp("mesh")
    identity_files.create_mesh(directory / "mesh")
    for name in ("a", "b"):
        identity_files.enroll(directory / "mesh", node_id=f"node-{name}", out=directory / name)
    return directory


def parse(root, *argv, environ=None):
    return parse_config(["--root", str(root), *map(str, argv)], environ or {})


def refusal(root, *argv, environ=None):
    with pytest.raises(ConfigError) as caught:
        parse(root, *argv, environ=environ)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_make_a_node_on_loopback_and_write_nothing(root):
    config = parse(root)

    assert (config.bind, config.rpc_bind) == (Address("127.0.0.1", 17888), Address("127.0.0.1", 18443))
    assert (config.advertise, config.rpc_advertise) == (config.bind, config.rpc_bind)
    assert (config.slots, config.profile, config.log_format, config.start_alone) == (4, "lan", "text", False)
    assert (config.seeds, config.agents, config.labels, config.enroll) == ((), (), {}, None)
    assert config.root == root
    assert not root.exists()


def test_every_flag_arrives(root, enrolments, tmp_path):
    (tmp_path / "agents.py").touch()
    (tmp_path / "more.py").touch()
    (tmp_path / "seeds").write_text("10.0.0.3:1 # three\n")

    config = parse(
        root,
        *("--node-id", "node-a", "--enroll", enrolments / "a", "--bind", "127.0.0.2:17888"),
        *("--rpc-bind", "127.0.0.2:18443", "--advertise", "10.0.0.1:7", "--seeds", "10.0.0.1:1,10.0.0.2:1"),
        *("--seeds-file", tmp_path / "seeds", "--agents", tmp_path / "agents.py", "--agents", tmp_path / "more.py"),
        *("--label", "site=north", "--label", "gpu=", "--slots", "8", "--profile", "local", "--log-format", "json"),
        "--start-alone",
        "--dev",
    )

    assert config.node_id == "node-a"
    assert config.enroll == enrolments / "a"
    assert (config.advertise, config.rpc_advertise) == (Address("10.0.0.1", 7), Address("10.0.0.1", 18443))
    assert [str(seed) for seed in config.seeds] == ["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"]
    assert [path.name for path in config.agents] == ["agents.py", "more.py"]
    assert config.labels == {"site": "north", "gpu": ""}
    assert (config.slots, config.profile, config.log_format, config.start_alone) == (8, "local", "json", True)
    assert config.dev
    assert not parse(root).dev


def test_the_environment_gives_what_flags_do_not(tmp_path):
    (tmp_path / "agents.py").touch()
    environ = {
        "RELAYMESH_ROOT": str(tmp_path / "root"),
        "RELAYMESH_SLOTS": "2",
        "RELAYMESH_PROFILE": "wan",
        "RELAYMESH_LABELS": "a=1,b=2",
        "RELAYMESH_AGENTS": str(tmp_path / "agents.py"),
        "RELAYMESH_NODE_ID": "",
        "RELAYMESH_MAX_ATTEMPTS": "9",
    }

    config = parse_config(["--profile", "local"], environ)

    assert (config.root, config.slots, config.profile) == (tmp_path / "root", 2, "local")
    assert config.labels == {"a": "1", "b": "2"}
    assert config.agents == (tmp_path / "agents.py",)
    assert config.settings.max_attempts == 9


def test_a_missing_root_or_an_unknown_flag_names_the_way_out():
    for argv, hint in (([], "--root DIR is required"), (["--rot", "x"], "relaymesh-node --help")):
        with pytest.raises(ConfigError, match=hint):
            parse_config(argv, {})


def test_settings_of_the_root_are_read_and_a_bad_file_is_refused(root):
    root.mkdir()
    (root / "relaymesh-settings.json").write_text('{"maxAttempts": 8}')
    assert parse(root).settings.max_attempts == 8

    (root / "relaymesh-settings.json").write_text('{"maxAttempt": 8}')
    assert "did you mean maxAttempts" in refusal(root)


def test_a_root_that_cannot_hold_a_node_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    assert "is not a directory" in refusal(tmp_path / "file")
    assert "not a directory" in refusal(tmp_path / "file" / "below")

    # Tests may run as root, to whom every directory is open.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "may not read and write" in refusal(tmp_path / "new")


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["--bind", "10.0.0.1"], "--bind: address '10.0.0.1' is not HOST:PORT"),
        (["--bind", "0.0.0.0:17888"], "add --advertise HOST:PORT"),
        (["--rpc-bind", "[::]:18443"], "add --advertise HOST:PORT"),
        (["--bind", "0.0.0.0:1", "--advertise", "0.0.0.0:1"], "no address that a peer can reach"),
        (["--bind", "10.0.0.1:1", "--rpc-bind", "127.0.0.1:2"], "cannot be reached by the peers"),
        (["--seeds", "10.0.0.1"], "--seeds: address"),
        (["--seeds-file", "/does/not/exist"], "--seeds-file /does/not/exist does not exist"),
        (["--enroll", "/does/not/exist"], "--enroll /does/not/exist does not exist"),
        (["--agents", "/does/not/exist.py"], "--agents /does/not/exist.py does not exist"),
        (["--agents", "/"], "--agents / is not a file"),
        (["--agents", "/etc/hostname"], "scripts.json"),
        (["--label", "nothing"], "is not KEY=VALUE"),
        (["--label", "a=1", "--label", "a=2"], "given twice"),
        (["--slots", "many"], "whole number from 0"),
        (["--profile", "moon"], "--profile must be local or lan or wan"),
        (["--log-format", "xml"], "--log-format must be text or json"),
        (["--node-id", "no spaces"], "node id 'no spaces' is not usable"),
    ],
)
def test_a_flag_that_cannot_be_used_is_named_with_what_is_wanted(root, argv, hint):
    assert hint in refusal(root, *argv)


def test_a_wildcard_bind_works_with_an_advertised_address(root):
    config = parse(root, "--bind", "0.0.0.0:5", "--rpc-bind", "0.0.0.0:6", "--advertise", "10.0.0.1:7")

    assert config.bind == Address("0.0.0.0", 5)
    assert (config.advertise, config.rpc_advertise) == (Address("10.0.0.1", 7), Address("10.0.0.1", 6))


def test_the_stream_address_follows_the_host_of_the_gossip_address(root):
    assert parse(root, "--bind", "10.0.0.1:5").rpc_bind == Address("10.0.0.1", 18443)


def test_limits_are_inclusive(root):
    assert parse(root, "--slots", SLOTS_MAX).slots == SLOTS_MAX
    assert str(SLOTS_MAX) in refusal(root, "--slots", SLOTS_MAX + 1)

    labels = [part for number in range(LABELS_MAX) for part in ("--label", f"k{number}=v")]
    assert len(parse(root, *labels).labels) == LABELS_MAX
    assert "labels are given" in refusal(root, *labels, "--label", "more=v")

    assert len(parse(root, "--label", f"{'k' * 63}={'v' * 63}").labels) == 1
    refusal(root, "--label", f"{'k' * 64}=v")
    refusal(root, "--label", f"k={'v' * 64}")


def test_as_many_seeds_as_allowed_and_one_more(root, enrolments, tmp_path):
    file = tmp_path / "seeds"
    seeds = [f"10.0.{number // 250}.{number % 250}:1\n" for number in range(SEEDS_MAX + 1)]

    file.write_text("".join(seeds[:-1]))
    assert len(parse(root, "--enroll", enrolments / "a", "--seeds-file", file).seeds) == SEEDS_MAX
    file.write_text("".join(seeds))
    assert "seeds are given" in refusal(root, "--enroll", enrolments / "a", "--seeds-file", file)


def test_a_seeds_file_takes_comments_commas_and_blank_lines(tmp_path):
    file = tmp_path / "seeds"
    file.write_text("# ours\n\n10.0.0.1:1, 10.0.0.2:2\n[::1]:3 # six\n")
    assert read_seeds_file(file) == (Address("10.0.0.1", 1), Address("10.0.0.2", 2), Address("::1", 3))

    file.write_text("10.0.0.1:1\nhost\n")
    with pytest.raises(ConfigError, match="line 2: address 'host'"):
        read_seeds_file(file)
    file.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_seeds_file(file)


def test_the_example_of_a_seeds_file_can_be_used():
    assert len(read_seeds_file(REPOSITORY / "seeds.example.txt")) == 4


def test_seeds_without_an_identity_name_both_commands(root):
    text = refusal(root, "--seeds", "127.0.0.9:17888")

    assert "relaymesh mesh create" in text
    assert "relaymesh mesh enroll" in text


def test_our_own_address_as_the_only_seed_needs_no_identity(root):
    assert parse(root, "--bind", "127.0.0.2:1", "--seeds", "127.0.0.2:1").seeds == (Address("127.0.0.2", 1),)


def test_an_identity_names_the_node_and_another_name_is_refused(root, enrolments):
    assert parse(root, "--enroll", enrolments / "a", "--seeds", "127.0.0.9:1").node_id == "node-a"
    assert "which is node-a" in refusal(root, "--enroll", enrolments / "a", "--node-id", "node-b")

    identity_files.install(root, enrolments / "b")
    assert parse(root, "--seeds", "127.0.0.9:1").node_id == "node-b"
    assert parse(root, "--node-id", "node-b").node_id == "node-b"
    assert "which is node-b" in refusal(root, "--node-id", "node-c")


def test_a_damaged_identity_is_refused(root, enrolments, tmp_path):
    broken = tmp_path / "broken"
    broken.write_bytes((enrolments / "a").read_bytes()[:-40])
    broken.chmod(0o600)

    assert str(broken) in refusal(root, "--enroll", broken)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("edge-1.site", "edge-1.site"), ("my host_1", "my-host_1"), ("-x", "x"), ("h" * 40, "h" * 32), ("ü1", "1")],
)
def test_a_host_name_is_made_into_a_node_id(host, expected):
    assert default_node_id(host) == expected


def test_a_host_name_that_gives_nothing_asks_for_the_flag():
    with pytest.raises(ConfigError, match="--node-id"):
        default_node_id("---")


def test_help_lists_every_flag_and_starts_light():
    code = (
        "import sys; from node.config import parse_config\n"
        "try: parse_config(['--help'], {})\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print([name for name in ('trio', 'cryptography', 'apsw') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)

    assert ran.stdout.splitlines()[-1] == "[]"
    for flag in ("--root", "--node-id", "--bind", "--rpc-bind", "--advertise", "--seeds", "--seeds-file", "--enroll"):
        assert flag in ran.stdout
