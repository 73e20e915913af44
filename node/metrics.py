"""This node's Prometheus metrics, under the names of the contract, with their true types.

Nothing is counted twice: the parts of a node keep their own counters, and this collector reads them when it is asked.
Each node has a registry of its own, so that many nodes fit into one process.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mesh.membership import Status
from node.node import Node
from node.storage import quarantine
from node.storage.reader import Reader
from node.storage.transaction import PARKED_COUNTER
from node.work import transitions
from node.work.disk_budget import database_bytes
from node.work.history import CONFLICTS
from node.work.tables import PRIORITIES

_GOSSIP_COUNTERS = {
    "probes": "Members probed",
    "probe_failures": "Probes that neither ping, helpers nor stream answered",
    "rumors_dropped": "Rumors given up before their budget was spent: the queue was full, or they were old",
    "rumors_ttl_exhausted": "Rumors not passed on because their hops were spent",
    "records_refused": "Member records whose signature or form did not hold",
    "refutations": "Accusations against this node that it refuted",
    "freezes": "Mass failures that held up verdicts",
    "stalls": "Pauses of this process that gossip noticed",
}
"""Fields of `mesh.gossip.Statistics`."""

StoredCounts = Mapping[str, Mapping[str, int]]


async def render(node: Node) -> str:
    """The metrics in Prometheus' text format."""
    stored = await node.store.read(_count_stored)
    registry = CollectorRegistry()
    registry.register(_NodeCollector(node, stored))
    return generate_latest(registry).decode()


def _count_stored(reader: Reader) -> StoredCounts:
    steps = reader.sql("SELECT status, count(*) FROM steps WHERE deleted = 0 GROUP BY status")
    queue = reader.sql("SELECT priority, count(*) FROM queue GROUP BY priority")
    marks = ",".join("?" * len(CONFLICTS))
    conflicts = reader.sql(
        f"SELECT action, count(*) FROM history WHERE action IN ({marks}) GROUP BY action",
        [action.value for action in CONFLICTS],
    )
    return {
        "steps": {str(status): int(count) for status, count in steps},
        "queue": {PRIORITIES[int(priority)]: int(count) for priority, count in queue},
        "conflicts": {str(action): int(count) for action, count in conflicts},
        "quarantine": quarantine.counts(reader),
        "epoch": {"": transitions.cluster_epoch(reader)},
        "database": {"": database_bytes(reader)},
    }


class _NodeCollector(Collector):
    """One reading of one node."""

    def __init__(self, node: Node, stored: StoredCounts) -> None:
        self._node = node
        self._stored = stored

    def collect(self) -> Iterable[Metric]:
        """All families, in a fixed order."""
        yield from self._membership()
        yield from self._work()
        yield from self._gossip()
        yield from self._protocols()
        yield from self._replication()

    def _membership(self) -> Iterable[Metric]:
        members = self._node.gossip.members.all()
        counts = {status.value.lower(): sum(m.status is status for m in members) for status in Status}
        yield _by("relaymesh_mesh_nodes_total", "Members by protocol status", "status", counts)
        yield GaugeMetricFamily("relaymesh_mesh_nodes_total_all", "Members ever seen", len(members))
        yield GaugeMetricFamily(
            "relaymesh_reclaim_frozen",
            "1 while a mass failure stops take-overs",
            int(not self._node.loop.may_reclaim()),
        )

    def _work(self) -> Iterable[Metric]:
        node = self._node
        yield _by("relaymesh_steps_total", "Steps in this replica by status", "status", self._stored["steps"])
        yield _by("relaymesh_inbox_depth", "Runnable or delayed steps owned here", "priority", self._stored["queue"])
        yield GaugeMetricFamily("relaymesh_running_steps", "Steps running here now", len(node.runtime.running()))
        yield GaugeMetricFamily("relaymesh_cluster_epoch", "Cluster epoch as known here", self._stored["epoch"][""])
        attempts = CounterMetricFamily("relaymesh_attempts", "Ended attempts by outcome", labels=["outcome"])
        for outcome, count in sorted(node.runtime.finished.items()):
            attempts.add_metric([outcome], count)
        yield attempts
        yield CounterMetricFamily(
            "relaymesh_dead_owner_reclaimed", "Steps taken over from owners that were gone", node.ownership.taken_total
        )
        yield CounterMetricFamily(
            "relaymesh_steps_handed_over", "Steps given to peers", node.ownership.handed_over_total
        )
        yield CounterMetricFamily(
            "relaymesh_gate_pauses", "Pauses of this process that shut the gate", node.gate.pauses
        )
        yield _by(
            "relaymesh_lease_conflicts",
            "Superseded and aborted runs in this replica",
            "event_type",
            self._stored["conflicts"],
        )

    def _gossip(self) -> Iterable[Metric]:
        loop = self._node.loop
        refused = CounterMetricFamily("relaymesh_datagrams_refused", "Datagrams dropped by reason", labels=["reason"])
        for reason, count in sorted(loop.refused.items()):
            refused.add_metric([reason], count)
        yield refused
        yield CounterMetricFamily("relaymesh_datagrams_sent", "Datagrams sent", loop.sent_total)
        yield CounterMetricFamily("relaymesh_datagrams_received", "Datagrams received", loop.received_total)
        counted = loop.gossip.statistics()
        for name, text in _GOSSIP_COUNTERS.items():
            yield CounterMetricFamily(f"relaymesh_{name}", text, getattr(counted, name))
        yield GaugeMetricFamily("relaymesh_local_health", "0: good; 7: this node doubts itself", counted.local_health)
        yield GaugeMetricFamily("relaymesh_rumors_queued", "Rumors with budget left", counted.rumors_queued)
        yield GaugeMetricFamily(
            "relaymesh_relayed_probes", "Probes made for others that wait for their answers", counted.relayed_probes
        )
        yield GaugeMetricFamily("relaymesh_stall_seconds_max", "Longest pause of this process", counted.stall_s_longest)

    def _protocols(self) -> Iterable[Metric]:
        members, server = self._node.gossip.members, self._node.server
        strangers = sum(member.active and members.protocol_with(member) is None for member in members.all())
        yield GaugeMetricFamily("relaymesh_members_without_protocol", "Members that speak none of ours", strangers)
        yield GaugeMetricFamily(
            "relaymesh_protocol_of_all", "Newest protocol version that every member speaks", members.protocol_of_all()
        )
        served = CounterMetricFamily("relaymesh_streams_served", "Streams of peers by version", labels=["protocol"])
        for version, count in sorted(server.protocols.items()):
            served.add_metric([str(version)], count)
        yield served
        errors = CounterMetricFamily("relaymesh_stream_errors", "Error replies on streams", labels=["code"])
        for code, count in sorted(server.errors.items()):
            errors.add_metric([code], count)
        yield errors

    def _replication(self) -> Iterable[Metric]:
        node = self._node
        yield CounterMetricFamily("relaymesh_replication_pulls", "Pulls finished", node.puller.pulls_total)
        yield CounterMetricFamily("relaymesh_replication_pull_failures", "Pulls failed", node.puller.failures_total)
        yield CounterMetricFamily("relaymesh_replication_rows_pulled", "Rows pulled", node.puller.rows_total)
        yield CounterMetricFamily("relaymesh_bundles_sent", "Row bundles pushed", node.push.bundles_total)
        yield CounterMetricFamily("relaymesh_bundles_dropped", "Row bundles refused or dropped", node.bundles_dropped)
        divergence = sum(result.differing_ranges for result in node.verified.values())
        yield GaugeMetricFamily("relaymesh_divergence", "Differing ranges at the last comparisons", divergence)
        yield GaugeMetricFamily("relaymesh_store_failed", "1 while commits fail", int(node.store.failed))
        yield GaugeMetricFamily(
            "relaymesh_database_bytes", "Pages of the database in use", self._stored["database"][""]
        )
        yield GaugeMetricFamily("relaymesh_disk_budget_bytes", "0: no budget", node.disk_budget.bytes_max)
        yield CounterMetricFamily(
            "relaymesh_tasks_deleted_for_budget",
            "Ended tasks that this node deleted before their time",
            node.disk_budget.deleted_total,
        )
        parked = CounterMetricFamily(
            "relaymesh_quarantined", "Row versions put aside since the start", labels=["reason"]
        )
        for event, count in sorted(node.store.counters().items()):
            if event.startswith(PARKED_COUNTER):
                parked.add_metric([event.removeprefix(PARKED_COUNTER)], count)
        yield parked
        yield _by(
            "relaymesh_quarantine_rows", "Row versions that lie in quarantine", "reason", self._stored["quarantine"]
        )
        store = CounterMetricFamily("relaymesh_store_events", "What the store counted", labels=["event"])
        for event, count in sorted(node.store.counters().items()):
            store.add_metric([event], count)
        yield store


def _by(name: str, documentation: str, label: str, counts: Mapping[str, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, documentation, labels=[label])
    for value, count in sorted(counts.items()):
        family.add_metric([value], count)
    return family
