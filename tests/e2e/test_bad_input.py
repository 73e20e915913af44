"""Whatever is wrong is said in one clear line with the right exit code, and nothing is left half done."""

import os
import secrets
import socket
import subprocess
from pathlib import Path

import pytest

from chaos.real.processes import node_command, source_path, wait_until
from mesh.errors import ConfigError, LimitError, RelayMeshError
from mesh.ids import make_life, node_tag
from mesh.sealing import Sealer
from node import identity_files
from node.identity_files import read_enrolment

START_S = 20


def run_node(*arguments: object) -> subprocess.CompletedProcess[str]:
    """A node that is expected to refuse to start."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": source_path()}
    return subprocess.run(
        [*node_command(), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
        env=environment,
    )


def assert_refused(done: subprocess.CompletedProcess[str], *words: str, code: int = 2) -> None:
    assert done.returncode == code, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("relaymesh-node: ")
    for word in words:
        assert word in line, line


@pytest.fixture
def enrolled(tmp_path) -> Path:
    """An enrolment for node-a."""
    identity_files.create_mesh(tmp_path / "mesh")
    identity_files.enroll(tmp_path / "mesh", node_id="node-a", out=tmp_path / "a.enrolment")
    return tmp_path / "a.enrolment"


def test_seeds_without_an_identity_name_both_commands_that_make_one(tmp_path):
    root = tmp_path / "root"
    done = run_node("--root", root, "--node-id", "node-a", "--seeds", "127.0.0.9:17888")
    assert_refused(done, "mesh create", "mesh enroll")
    assert not (root / "identity.json").exists()
    assert not (root / "relaymesh.db").exists()


def test_a_taken_port_is_named_and_leaves_the_owner_of_the_port_alone(mesh, tmp_path, enrolled):
    taken = mesh.cluster.nodes["a"].gossip
    done = run_node(
        *("--root", tmp_path / "root", "--node-id", "node-a", "--enroll", enrolled),
        *("--bind", taken, "--rpc-bind", f"{taken.host}:18999"),
    )
    assert_refused(done, str(taken))
    assert mesh.cluster.admin("a", "health")["ok"]


def test_a_root_that_is_in_use_is_refused(mesh):
    spec = mesh.cluster.nodes["a"]
    done = run_node(
        *("--root", spec.root, "--node-id", "a", "--enroll", mesh.cluster.enrolment("a")),
        *("--bind", f"{spec.host}:17999", "--rpc-bind", f"{spec.host}:18999"),
    )
    assert_refused(done, str(spec.root))
    assert mesh.cluster.admin("a", "health")["ok"]


def test_a_root_that_cannot_be_a_directory_is_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("in the way")
    assert_refused(run_node("--root", file / "root", "--node-id", "node-a"), str(file))
    assert file.read_text() == "in the way"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{", "relaymesh-settings.json"),
        ('{"maxAttemps": 3}', "maxAttempts"),
        ('{"maxAttempts": 0}', "maxAttempts"),
        ('{"maxAttempts": "three"}', "maxAttempts"),
        ("[]", "relaymesh-settings.json"),
    ],
)
def test_malformed_settings_are_refused_before_anything_is_written(tmp_path, text, word):
    root = tmp_path / "root"
    root.mkdir()
    (root / "relaymesh-settings.json").write_text(text)
    assert_refused(run_node("--root", root, "--node-id", "node-a"), word)
    assert [entry.name for entry in root.iterdir()] == ["relaymesh-settings.json"]


def test_an_enrolment_of_another_mesh_is_refused_and_the_identity_stays(mesh, enrolled):
    spec = mesh.cluster.nodes["a"]
    before = (spec.root / "identity.json").read_bytes()
    mesh.cluster.terminate("a")
    done = run_node("--root", spec.root, "--enroll", enrolled, "--bind", spec.gossip, "--rpc-bind", spec.stream)
    assert_refused(done, "mesh", code=4)
    assert (spec.root / "identity.json").read_bytes() == before


@pytest.mark.parametrize("content", ["", "{}", "not an enrolment", None])
def test_a_broken_enrolment_is_refused(tmp_path, enrolled, content):
    file = tmp_path / "broken.enrolment"
    if content is None:  # one letter of the signed part was changed
        content = enrolled.read_text().replace("node-a", "node-b")
    file.write_text(content)
    file.chmod(0o600)
    root = tmp_path / "root"
    assert_refused(run_node("--root", root, "--enroll", file), str(file))
    assert not (root / "identity.json").exists()


@pytest.mark.parametrize(
    ("source", "word"),
    [("def broken(:\n", "line 1"), ("import no_such_module\n", "no_such_module"), ("raise ValueError('no')\n", "no")],
)
def test_an_agents_file_that_does_not_import_is_refused_with_its_place(tmp_path, enrolled, source, word):
    agents = tmp_path / "broken_agents.py"
    agents.write_text(source)
    done = run_node(
        *("--root", tmp_path / "root", "--enroll", enrolled, "--agents", agents),
        *("--bind", "127.9.18.1:17888", "--rpc-bind", "127.9.18.1:18443"),
    )
    assert_refused(done, "broken_agents.py", word)


@pytest.mark.parametrize(
    ("steps", "word"),
    [
        (
            [{"id": "a", "agent": "echo", "dependsOn": ["b"]}, {"id": "b", "agent": "echo", "dependsOn": ["a"]}],
            "circle",
        ),
        ([{"id": "a", "agent": "echo", "dependsOn": ["nobody"]}], "nobody"),
        ([{"id": "a", "agent": "echo"}, {"id": "a", "agent": "echo"}], "twice"),
        ([], "empty"),
        ([{"id": str(n), "agent": "echo"} for n in range(1_001)], "1000"),
        ([{"id": "a", "agent": "nobody-has-this"}], "nobody-has-this"),
        ([{"id": "a", "agnet": "echo"}], "agent"),
    ],
    ids=["cycle", "unknown dependency", "duplicate id", "no steps", "too many steps", "unknown agent", "unknown key"],
)
def test_a_wrong_workflow_is_refused_as_a_whole(mesh, steps, word):
    before = mesh.cluster.admin("a", "tasks", limit=1_000, offset=0)
    with pytest.raises((ConfigError, LimitError)) as raised:
        mesh.submit_workflow("a", *steps)
    assert word in str(raised.value)
    assert mesh.cluster.admin("a", "tasks", limit=1_000, offset=0) == before


def test_the_largest_input_is_taken_and_one_byte_more_is_not(mesh):
    limit = 10 * 1024 * 1024
    with pytest.raises(LimitError, match="payloadMaxBytes"):
        mesh.submit("a", "echo", bytes(limit + 1))
    task_id = mesh.submit("a", "echo", b"x" * limit)
    mesh.wait_everywhere(task_id, "SUCCESS", 30)
    assert len(mesh.result("b", task_id)) == limit


def test_a_thousand_steps_are_taken(mesh):
    task_id = mesh.submit_workflow("a", *({"id": f"s{n}", "agent": "echo", "input": str(n)} for n in range(1_000)))
    mesh.wait_everywhere(task_id, "SUCCESS", 60)


def test_the_same_key_with_other_work_is_a_conflict_that_names_the_task(mesh, relaymesh):
    first = mesh.submit("a", "echo", "one", idempotencyKey="once")
    root = mesh.cluster.nodes["a"].root
    done = relaymesh("--root", root, "submit", "--agent", "echo", "--input", "two", "--idempotency-key", "once")
    assert done.returncode == 4
    assert first in done.stderr


def test_unknown_things_are_a_negative_answer(mesh, relaymesh):
    root = mesh.cluster.nodes["a"].root
    done = relaymesh("--root", root, "task", "tsk_nobody")
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1


def test_no_node_to_talk_to_is_exit_code_three(tmp_path, relaymesh):
    done = relaymesh("--root", tmp_path, "members")
    assert done.returncode == 3
    assert "relaymesh-node" in done.stderr


def test_random_and_oversized_datagrams_change_nothing_and_are_counted(mesh):
    node = mesh.cluster.nodes["a"]
    before = mesh.statuses("a")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as noise:
        for size in (0, 1, 40, 66, 400, 1_200, 1_201, 9_000):
            for _ in range(20):
                noise.sendto(secrets.token_bytes(size), node.gossip)
    task_id = mesh.submit("a", "echo", "still here")
    mesh.wait_everywhere(task_id, "SUCCESS")
    assert mesh.statuses("a") == before
    refused = mesh.cluster.admin("a", "stats")["gossip"]["refused"]
    assert sum(refused.values()) >= 100, refused


def test_forged_foreign_and_replayed_datagrams_change_nothing_and_are_counted_by_reason(mesh, tmp_path):
    """The packets are well-formed: what is wrong with each is only its key, its mesh, its age or its receiver."""
    node = mesh.cluster.nodes["a"]
    mine = read_enrolment(mesh.cluster.enrolment("b"))
    identity_files.create_mesh(tmp_path / "other")
    foreign = identity_files.enroll(tmp_path / "other", node_id="b", out=tmp_path / "b.enroll")
    before = mesh.statuses("a")

    def sealer(ring, cluster):
        # A life that this id will never have, so that the real node is not disturbed.
        return Sealer(ring=ring, cluster=cluster, sender=node_tag("stranger"), life=make_life(1, 1), process=7)

    packets = {
        "unknown-key": sealer(foreign.ring(), mine.cluster).seal(b"\x90", 0),
        "wrong-cluster": sealer(mine.ring(), foreign.cluster).seal(b"\x90", 0),
        "bad-mac": sealer(mine.ring(), mine.cluster).seal(b"\x90", 0)[:-1] + b"\x00",
        "wrong-receiver": sealer(mine.ring(), mine.cluster).seal(b"\x90", 12345),
        "truncated": sealer(mine.ring(), mine.cluster).seal(b"\x90", 0)[:50],
    }
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as forger:
        for packet in packets.values():
            forger.sendto(packet, node.gossip)
        good_but_nobody_s = sealer(mine.ring(), mine.cluster).seal(b"\x90", 0)
        forger.sendto(good_but_nobody_s, node.gossip)
        forger.sendto(good_but_nobody_s, node.gossip)

        def refused():
            return mesh.cluster.admin("a", "stats")["gossip"]["refused"]

        reasons = {*packets, "unknown-sender", "replayed"}
        wait_until(lambda: reasons <= set(refused()), 5, "every reason to be counted")
    assert mesh.statuses("a") == before


def test_random_bytes_on_the_stream_port_hurt_nobody(mesh):
    node = mesh.cluster.nodes["a"]
    for _ in range(20):
        with socket.create_connection(node.stream, timeout=5) as connection:
            connection.sendall(secrets.token_bytes(500))
    task_id = mesh.submit("b", "echo", "still here")
    mesh.wait_everywhere(task_id, "SUCCESS")


def test_an_agent_that_raises_is_a_dead_letter_with_its_words_after_all_attempts(mesh, tmp_path):
    task_id = mesh.submit("a", "fail", "")
    task = mesh.wait_task("a", task_id, "DEAD_LETTER", 20)
    assert task["lastError"]
    assert task["steps"][0]["attempt"] == 3
    with pytest.raises(RelayMeshError):
        mesh.cluster.admin("a", "result", taskId="tsk_nobody")
