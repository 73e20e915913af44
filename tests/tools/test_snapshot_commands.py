"""Goal: a root comes back from its snapshot whole, as nobody's copy, or not at all. Method: a real database."""

from __future__ import annotations

import json

import pytest

from node import identity_files
from node.node import _next_boot
from node.storage.backup import RESTORED_META
from node.storage.database import APPLICATION_ID, open_connection
from node.storage.migrate import load_migrations, migrate_up
from node.storage.schema import apply_declarations
from node.work import transitions
from node.work.tables import WORK_TABLES
from tests.node.simulated_env import simulated_world


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    identity_files.found(root, "node-a")
    connection = open_connection(root / "relaymesh.db", "")
    with connection:
        migrate_up(connection, load_migrations()[:1], now_ms=1)
        apply_declarations(connection, WORK_TABLES)
        migrate_up(connection, load_migrations(), now_ms=1)
        connection.execute("INSERT INTO meta VALUES ('kept', x'01')")
    connection.pragma("application_id", APPLICATION_ID)
    yield root
    connection.close()  # open throughout, as a running node has it


def test_a_snapshot_makes_a_root_that_knows_it_was_restored(root, relaymesh, tmp_path):
    made = relaymesh("--root", root, "snapshot-export", "--out", tmp_path / "s", "--json").json
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["manifest.json", "relaymesh.db"]
    assert (made["fileCount"], made["withIdentity"]) == (1, False)

    assert relaymesh("--root", tmp_path / "new", "snapshot-import", "--in", tmp_path / "s").code == 0
    connection = open_connection(tmp_path / "new" / "relaymesh.db", "")
    kept = dict(connection.execute("SELECT name, value FROM meta"))
    connection.close()
    assert kept["kept"] == b"\x01"
    assert b"node-a" in kept[RESTORED_META]
    assert not (tmp_path / "new" / "origin").exists()  # so its first start takes a new one


def test_keys_travel_only_when_asked_for(root, relaymesh, tmp_path):
    relaymesh("--root", root, "snapshot-export", "--out", tmp_path / "s", "--with-identity")
    relaymesh("--root", tmp_path / "new", "snapshot-import", "--in", tmp_path / "s")
    assert (tmp_path / "new" / "identity.json").read_bytes() == (root / "identity.json").read_bytes()
    assert (tmp_path / "new" / "identity.json").stat().st_mode & 0o777 == 0o600


def _truncate(snapshot):
    data = (snapshot / "relaymesh.db").read_bytes()
    (snapshot / "relaymesh.db").write_bytes(data[:-1])


def _flip(snapshot):
    data = bytearray((snapshot / "relaymesh.db").read_bytes())
    data[5000] ^= 1
    (snapshot / "relaymesh.db").write_bytes(data)


def _lead_elsewhere(snapshot):
    manifest = json.loads((snapshot / "manifest.json").read_text())
    manifest["files"][0]["name"] = "../../etc/passwd"
    (snapshot / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "spoil",
    [_truncate, _flip, _lead_elsewhere, lambda s: (s / "manifest.json").unlink()],
)
def test_a_spoilt_snapshot_makes_no_root(root, relaymesh, tmp_path, spoil):
    relaymesh("--root", root, "snapshot-export", "--out", tmp_path / "s")
    spoil(tmp_path / "s")

    ran = relaymesh("--root", tmp_path / "new", "snapshot-import", "--in", tmp_path / "s")

    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert not (tmp_path / "new").exists()


def test_what_is_there_is_never_overwritten(root, relaymesh, tmp_path):
    assert relaymesh("--root", root, "snapshot-export", "--out", tmp_path / "s").code == 0
    assert relaymesh("--root", root, "snapshot-export", "--out", tmp_path / "s").code == 2
    before = (root / "relaymesh.db").read_bytes()
    assert relaymesh("--root", root, "snapshot-import", "--in", tmp_path / "s").code == 2
    assert (root / "relaymesh.db").read_bytes() == before


def test_a_root_that_cannot_be_made_is_one_clear_line(root, relaymesh, tmp_path):
    assert relaymesh("--root", root, "snapshot-export", "--out", tmp_path / "s").code == 0
    file = tmp_path / "file"
    file.write_text("")
    for target in (file, file / "below", "/"):
        ran = relaymesh("--root", target, "snapshot-import", "--in", tmp_path / "s")
        assert (ran.code, ran.err.count("\n")) == (2, 1)
        assert "--root" in ran.err or "cannot make" in ran.err


async def test_the_first_start_after_a_restore_opens_one_epoch(tmp_path, autojump_clock):
    async with simulated_world(tmp_path) as world:
        a = world.host("a")
        await world.up()
        store = a.node.store
        before = await store.read(transitions.cluster_epoch)
        await store.write(lambda tx: tx.meta_set(RESTORED_META, b"restored"))
        for _ in range(2):
            await store.write(_next_boot)
        assert await store.read(transitions.cluster_epoch) == before + 1
