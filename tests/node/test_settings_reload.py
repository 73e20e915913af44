"""Settings that change while a node runs: what takes effect at once, what waits, and what is refused whole."""

from __future__ import annotations

import json
import logging

import pytest
import trio

from mesh.errors import ConfigError, LimitError, UnavailableError
from node import settings_reload
from node.settings import _FIELDS, _ORDERED, SETTINGS_FILE, Settings
from node.settings_reload import HISTORY_MAX, LIVE, SettingsReload
from tests.node.simulated_env import simulated_world


@pytest.fixture
async def world(tmp_path):
    async with simulated_world(tmp_path) as world:
        yield world


async def start(world, **settings):
    host = world.host("a", **settings)
    await world.up()
    return host


def write(host, **values) -> None:
    (host.root / SETTINGS_FILE).write_text(json.dumps(values))


async def reload(host):
    return await host.admin("reload-settings")


def test_live_settings_are_known_and_no_check_is_split_between_live_and_not():
    assert _FIELDS.keys() >= LIVE
    assert [pair for pair in _ORDERED if len(LIVE.intersection(pair)) == 1] == []


async def test_what_can_take_effect_at_once_does(world, autojump_clock):
    a = await start(world)
    write(a, maxAttempts=1, gossipFanout=7, gossipPacketTtl=5, maxIngressQueueDepth=1, meshPruneLimit=9)
    answer = await reload(a)

    assert answer["changed"]
    assert answer["changedFields"] == [
        "maxAttempts",
        "gossipFanout",
        "gossipPacketTtl",
        "meshPruneLimit",
        "maxIngressQueueDepth",
    ]
    assert (answer["needsRestart"], answer["withoutEffect"], answer["configExists"]) == ([], [], True)
    assert answer["sourcePath"] == str(a.root / SETTINGS_FILE)
    assert answer["message"] == "5 of 5 changed setting(s) took effect at once"
    assert answer["settings"]["maxAttempts"] == 1
    assert answer["settings"].keys() == _FIELDS.keys()
    assert answer["checkedAtMs"] == int(a.node.env.clock.wall() * 1000)

    assert (await a.wait(await a.submit("fail")))["steps"][0]["attempt"] == 1
    assert (a.node.gossip.profile.fanout, a.node.gossip.profile.hop_ttl(5)) == (7, 5)
    with pytest.raises(UnavailableError, match="queue_depth_limit"):
        await a.workflow({"id": "x", "agent": "echo"}, {"id": "y", "agent": "echo"})
    again = await reload(a)
    assert (again["changed"], again["changedFields"]) == (False, [])
    assert again["message"] == "nothing has changed in the file since it was last read"
    (a.root / SETTINGS_FILE).unlink()
    gone = await reload(a)
    assert (gone["configExists"], len(gone["changedFields"])) == (False, 5)
    assert a.node.spec.settings == Settings()


async def test_schedules_obey_the_limits_of_now(world, autojump_clock):
    a = await start(world)
    two = {"steps": [{"id": "x", "agent": "echo"}, {"id": "y", "agent": "echo"}]}
    await a.admin("schedule-add", name="old", cron="* * * * *", definition=two)
    write(a, stepsPerTaskMax=1)
    await reload(a)
    with pytest.raises(LimitError, match="stepsPerTaskMax"):
        await a.admin("schedule-add", name="new", cron="* * * * *", definition=two)
    assert [each["state"] for each in (await a.admin("schedule-list"))["schedules"]] == ["BROKEN"]
    await trio.sleep(120)
    assert await a.rows("tasks") == []

    write(a, stepsPerTaskMax=2)
    await reload(a)
    assert [each["state"] for each in (await a.admin("schedule-list"))["schedules"]] == ["ACTIVE"]
    await trio.sleep(120)
    assert len(await a.rows("tasks")) == 3  # and the latest of those that were missed


async def test_what_needs_a_restart_is_said_and_the_old_value_stays_until_then(world, autojump_clock):
    a = await start(world)
    write(a, deadAfterMs=90_000, maxAttempts=2, leaseTimeoutMs=500)
    answer = await reload(a)
    assert answer["changedFields"] == ["leaseTimeoutMs", "deadAfterMs", "maxAttempts"]
    assert (answer["needsRestart"], answer["withoutEffect"]) == (["deadAfterMs"], ["leaseTimeoutMs"])
    assert answer["settings"]["deadAfterMs"] is None
    assert answer["message"] == "1 of 3 changed setting(s) took effect at once; restart the node for deadAfterMs"

    assert (await reload(a))["needsRestart"] == ["deadAfterMs"]  # as long as it is so
    write(a, maxAttempts=2)
    back = await reload(a)
    assert (back["changedFields"], back["needsRestart"]) == (["leaseTimeoutMs", "deadAfterMs"], [])


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('{"maxAttempts": 5, "maxAttemts": 5}', "unknown setting 'maxAttemts'; did you mean maxAttempts"),
        ('{"maxAttempts": 5, "gossipFanout": 0}', "gossipFanout must be a whole number from 1 to 32, not 0"),
        ('{"maxAttempts": 5, "maxBackoffMs": 1}', "maxBackoffMs .1. must not be smaller than baseBackoffMs"),
        ('{"maxAttempts": 5', "is not JSON"),
        ('{"maxAttempts": 5, "gossipSharedSecret": "hunter2"}', "gossipSharedSecret is not used"),
    ],
)
async def test_a_bad_file_is_one_clear_error_and_changes_nothing(world, autojump_clock, content, complaint):
    a = await start(world)
    before = a.node.spec.settings
    (a.root / SETTINGS_FILE).write_text(content)
    with pytest.raises(ConfigError, match=f"{SETTINGS_FILE}.*{complaint}.*The old settings stay in force") as refused:
        await reload(a)
    assert "hunter2" not in str(refused.value)
    assert a.node.spec.settings is before
    (entry,) = await a.admin("settings-history")
    assert (entry["result"], entry["changed"], entry["source"]) == ("refused", False, "verb")
    assert "hunter2" not in str(entry)


async def test_the_history_has_names_and_no_values_and_is_bounded(world, autojump_clock, monkeypatch):
    monkeypatch.setattr(settings_reload, "HISTORY_MAX", 3)
    a = await start(world)
    for number in range(5):
        write(a, maxAttempts=40 + number)
        await reload(a)
        await reload(a)  # which changes nothing, and is not told of
    entries = await a.admin("settings-history", limit=HISTORY_MAX)
    assert len(entries) == 3
    assert [entries[0][key] for key in ("result", "changedCount", "changedFields")] == ["applied", 1, ["maxAttempts"]]
    assert entries[0]["configMtimeMs"] > 0
    assert "44" not in entries[0]["message"]
    assert len(await a.admin("settings-history", limit=1)) == 1
    with pytest.raises(ConfigError, match="limit must be"):
        await a.admin("settings-history", limit=0)


async def test_other_sources_override_the_file_as_at_the_start(world, autojump_clock):
    a = await start(world)
    write(a, maxAttempts=9)
    environ = {"RELAYMESH_MAX_ATTEMPTS": "8"}
    reloading = SettingsReload.of_file(a.node, a.root / SETTINGS_FILE, environ)
    assert (await reloading.reload("verb"))["settings"]["maxAttempts"] == 8


async def test_a_changed_file_is_found_and_a_bad_one_told_of_once(world, monkeypatch, caplog):
    # On real time: a clock that jumps does not wait for the thread that looks at the file.
    monkeypatch.setattr(settings_reload, "WATCH_EVERY_S", 0.02)
    a = await start(world)
    path = a.root / SETTINGS_FILE
    reloading = SettingsReload.of_file(a.node, path, {})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reloading.watch, path)
        write(a, maxAttempts=9)
        await world.until(lambda: a.node.spec.settings.max_attempts == 9)
        path.write_text("{")
        with caplog.at_level(logging.ERROR):
            await trio.sleep(0.5)
        assert len([record for record in caplog.records if "not reloaded (file)" in record.message]) == 1
        assert a.node.spec.settings.max_attempts == 9
        path.unlink()
        await world.until(lambda: a.node.spec.settings.max_attempts == 3)
        nursery.cancel_scope.cancel()
    assert [entry["source"] for entry in await a.admin("settings-history")] == ["file"] * 3


async def test_retention_pruning_and_the_disk_budget_follow_at_once(world, autojump_clock):
    a = await start(world, done_retention_ms=0, dead_retention_ms=0, mesh_prune_interval_ms=0)
    task_id = await a.submit()
    await a.wait(task_id)
    await trio.sleep(3600)
    assert await a.knows(task_id)
    write(a, doneRetentionMs=1, deadRetentionMs=0, meshPruneIntervalMs=0)
    await reload(a)

    async def is_deleted():
        return (await a.rows("tasks"))[:1] == [] or (await a.rows("tasks"))[0].deleted

    assert await world.until(is_deleted, limit_s=120) < 100
    await a.wait(await a.submit())
    write(a, doneRetentionMs=0, deadRetentionMs=0, meshPruneIntervalMs=0, diskBudgetBytes=1)
    await reload(a)
    await world.until(lambda: a.node.disk_budget.deleted_total == 1, limit_s=120)
    # Off again, it deletes no more, whatever was under way.
    write(a, doneRetentionMs=0, deadRetentionMs=0, meshPruneIntervalMs=0)
    await reload(a)
    assert not a.node.disk_budget.is_exhausted
    assert await a.node.disk_budget.keep() is False
    third = await a.submit()
    await trio.sleep(600)
    assert (await a.admin("task", taskId=third))["status"] == "SUCCESS"
