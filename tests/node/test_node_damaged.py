"""A node whose database is broken, and one whose database was restored."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mesh.errors import ConfigError
from tests.node.simulated_env import simulated_world


@pytest.fixture
async def world(tmp_path):
    async with simulated_world(tmp_path) as world:
        yield world


def damage(root: Path) -> bytes:
    path = root / "relaymesh.db"
    data = bytearray(path.read_bytes())
    data[:100] = b"x" * 100
    path.write_bytes(data)
    return bytes(data)


async def test_a_damaged_database_is_kept_under_another_name_and_peers_fill_the_node(world, autojump_clock, caplog):
    a, b = world.host("a"), world.host("b")
    await world.up()
    task_id = await b.submit(input="before")
    await a.wait(task_id)
    await b.stop()
    data = damage(b.root)

    await b.start()

    assert (b.root / "relaymesh.db.corrupt-1").read_bytes() == data
    assert (await b.wait(task_id))["status"] == "SUCCESS"
    await world.until(world.agree)
    (line,) = [record.message for record in caplog.records if "relaymesh.db.corrupt-1" in record.message]
    assert "filled by its peers" in line
    assert "\n" not in line


async def test_the_next_damaged_database_gets_the_next_name(world, autojump_clock):
    b = world.host("b")
    await world.up(world.host("a"), b)
    for number in (1, 2):
        await b.stop()
        damage(b.root)
        await b.start()
        assert (b.root / f"relaymesh.db.corrupt-{number}").exists()


async def test_alone_a_node_refuses_a_damaged_database_unless_it_is_told_to_start_alone(world, autojump_clock):
    a = world.host("a")
    await a.start()
    await a.stop()
    data = damage(a.root)
    a.node.spec = a._spec()
    with pytest.raises(ConfigError, match="--start-alone to begin empty") as refusal:
        await a.node.open()
    assert "\n" not in str(refusal.value)
    assert (a.root / "relaymesh.db").read_bytes() == data

    a.start_alone = True
    await a.start()
    assert (a.root / "relaymesh.db.corrupt-1").read_bytes() == data
    assert (await a.wait(await a.submit(input="anew")))["status"] == "SUCCESS"


@pytest.mark.parametrize("alone", [False, True])
async def test_a_restored_node_that_hears_nobody_waits_unless_it_is_told_to_start_alone(world, autojump_clock, alone):
    a, b = world.host("a"), world.host("b")
    await world.up()
    await b.stop()
    shutil.copy(b.root / "relaymesh.db", b.root / "backup")
    await b.start()
    await b.wait(await b.submit(input="later"))
    await b.stop()
    shutil.copy(b.root / "backup", b.root / "relaymesh.db")
    await a.stop()
    b.start_alone = alone

    await b.start()
    await world.until(lambda: True, every_s=60.0)
    assert b.node.store.is_restored
    assert b.node.runtime.gate_is_open() is alone

    await a.start()
    await world.until(b.node.runtime.gate_is_open)
