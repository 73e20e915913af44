"""What a node tells Prometheus."""

from __future__ import annotations

import dataclasses

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mesh.gossip import Statistics
from node import metrics
from tests.node.simulated_env import simulated_world


@pytest.fixture
async def world(tmp_path):
    async with simulated_world(tmp_path) as world:
        yield world


async def test_every_counter_of_the_gossip_core_is_told(world, autojump_clock):
    a, b = world.host("a"), world.host("b")
    await world.up()
    await world.until(lambda: a.node.gossip.statistics().probes > 0)
    families = text_string_to_metric_families(await metrics.render(a.node))
    told = {sample.name: sample.value for family in families for sample in family.samples}
    names = {name: name for name in ("local_health", "relayed_probes", "rumors_queued")}
    names["stall_s_longest"] = "stall_seconds_max"
    for field in dataclasses.fields(Statistics):
        name = f"relaymesh_{names.get(field.name, field.name + '_total')}"
        assert told[name] == getattr(a.node.gossip.statistics(), field.name), name
    assert told["relaymesh_mesh_nodes_total_all"] == len(world.hosts) == 2
    assert b.is_up
