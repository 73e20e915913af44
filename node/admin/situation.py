"""What this node knows besides the rows when it tells why a step does not run; node/work/explain.py judges by it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mesh.membership import Member, Status
from mesh.rows import Row
from node.node import Node
from node.storage.reader import Reader
from node.work.explain import Situation
from node.work.payloads import missing_payloads
from node.work.tables import MESH_NAMESPACE


class Stored(NamedTuple):
    """What the judgement needs of the database, read in one transaction."""

    missing_payloads: frozenset[str]
    holds: dict[str, str]


def read_stored(reader: Reader, steps: Sequence[Row]) -> Stored:
    """For these steps."""
    holds = reader.select("holds", "namespace = ? AND deleted = 0", (MESH_NAMESPACE,), order="key")
    return Stored(missing_payloads(reader, steps), {row.key: _by_whom(row) for row in holds})


def _by_whom(hold: Row) -> str:
    return f"by {hold.text('actor') or 'somebody'} ({hold.text('reason') or 'no reason given'})"


def situation_of(node: Node, stored: Stored) -> Situation:
    """The mesh as this node sees it now."""
    members = node.gossip.members.all()
    now = node.env.clock.monotonic()
    return Situation(
        me=node.spec.node_id,
        member_status={member.node_id: member.status.value for member in members},
        offers=node.ownership.all_offers(),
        usable=node.loop.usable(),
        gate_open=node.gate.is_open,
        reclaim_frozen=not node.loop.may_reclaim(),
        paused=node.runtime.paused,
        idle_slots=node.runtime.idle_slots,
        missing_payloads=stored.missing_payloads,
        running_here=frozenset(node.runtime.running()),
        linked_sites=node.spec.settings.linked_sites,
        lacks_support=node.support.why_not,
        now_ms=node.store.physical_ms(),
        dead_in_s={
            member.node_id: member.suspicion.deadline() - now for member in members if member.suspicion is not None
        },
        store_failed=frozenset(member.node_id for member in members if member.store_failed),
        heirs=node.ownership.candidates,
        full_agents=frozenset(node.runtime.full_agents()),
        holds=stored.holds,
    )


def members_away(members: Sequence[Member]) -> list[str]:
    """Who cannot be heard now and may hold what is not here."""
    return [member.node_id for member in members if member.status in (Status.SUSPECT, Status.DEAD)]
