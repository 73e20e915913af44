"""Moves steps between owners: takes over from owners that are gone, hands over what cannot run here, asks for work.

Three loops, each asleep until something happened that could give it work: a member changed, a commit brought rows of
others, a slot became idle. Every move opens a new lease epoch, so two nodes that decide differently are settled by the
merge order and never by luck.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import msgspec
import trio

from mesh.errors import RelayMeshError
from mesh.ids import Address
from mesh.placement import Offer, able, rendezvous
from mesh.row_codec import CHUNK_LIMITS, decode_rows, encode_rows
from mesh.rows import Row
from mesh.tables import Value
from mesh.takeover import OwnerState, Take, is_takeable, plan
from node.env import Env, PeerIdentity
from node.replication.calls import Caller, decode
from node.storage.reader import Reader
from node.storage.store import Commit, Store
from node.storage.transaction import Arrival, Transaction
from node.work import row_rules, transitions
from node.work.roster_support import RosterSupport
from node.work.runtime import Runtime
from node.work.tables import MESH_NAMESPACE, Status
from node.work.work_queue import Queued, WorkQueue, requirement_of, unplaceable

log = logging.getLogger(__name__)

TAKE_BATCH_MAX = 256
"""Steps taken in one commit: a node that owned ten thousand must not make its heirs stop for seconds."""
STEPS_READ_MAX = 8 * TAKE_BATCH_MAX
OFFER_BATCH_MAX = 64
PAYLOAD_BYTES_WITH_ROWS_MAX = 4 * 1024 * 1024
"""An answer to `ask` carries inputs up to this much; larger ones come with the next pull."""
ASK_PAUSE_S = 0.1
"""Backlog younger than this is its owner's to run: asking for it would cost more than waiting."""
ASK_AGAIN_S = 5.0
BACKLOG_LOOK_MAX = 1000
"""Waiting steps looked at to find whom to ask: enough to see who has the most."""
ASK_EMPTY_PAUSE_S = 1.0
"""After a peer had nothing for us, how long it is not asked again."""
RETRY_S = 2.0
"""How long to wait after a peer refused or did not answer an offer."""


class MeshView(Protocol):
    """What the ownership rules need to know of the mesh; the gossip loop provides it."""

    def owner_state(self, node_id: str) -> OwnerState:
        """What is believed of an owner right now."""
        ...

    def may_reclaim(self) -> bool:
        """False while the mass-failure freeze holds."""
        ...

    def usable(self) -> list[str]:
        """Members that can work: alive, with a working store. This node included."""
        ...

    def placeable(self) -> list[str]:
        """The usable members that new work should go to: those that no dwell window withholds."""
        ...

    def rpc_address(self, node_id: str) -> Address | None:
        """Where the node's streams are, if it is known."""
        ...

    def current_life(self, node_id: str) -> int | None:
        """The latest life of the node that was seen."""
        ...


class OfferRequest(msgspec.Struct, array_like=True):
    """`offer`: will you own these steps? The answer is the number that is accepted, first ones first."""

    rows: bytes


class AskRequest(msgspec.Struct, array_like=True):
    """`ask`: give me up to `want` steps that I can run. The answer is the rows, already mine."""

    want: int
    agents: list[str]
    labels: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnershipTiming:
    """Seconds that the rules use, from the membership profile."""

    tick_s: float
    dead_time_s: float


_NEVER = Take("", float("inf"))


@dataclass(slots=True)
class _Waits:
    """Until when a peer is left alone, by node id."""

    until: dict[str, float] = field(default_factory=dict)

    def free(self, node: str, now: float) -> bool:
        return self.until.get(node, 0.0) <= now


class Ownership:
    """Decides and carries out every change of a step's owner on this node."""

    def __init__(
        self,
        env: Env,
        store: Store,
        runtime: Runtime,
        queue: WorkQueue,
        support: RosterSupport,
        view: MeshView,
        calls: Caller,
        *,
        me: str,
        offer: Callable[[], Offer],
        timing: OwnershipTiming,
        linked_sites: bool = False,
    ) -> None:
        """With `linked_sites`, what a node that gossip does not know owns is left to it while its site can run it."""
        self._env = env
        self._store = store
        self._runtime = runtime
        self._queue = queue
        self._support = support
        self._view = view
        self._calls = calls
        self._me = me
        self._offer = offer
        self._timing = timing
        self._linked_sites = linked_sites
        self._holds = runtime.holds
        self._holds.on_changed.append(self.on_member_changed)
        self._offers: dict[str, Offer] = {}
        self._releases: dict[str, str | None] = {}
        self._unknown_since: dict[str, float] = {}
        self._heard_of: dict[str, float] = {}
        """When rows last came that an owner wrote whom we hold DEAD: after a cut heals, they come before it does."""
        self._plans: dict[tuple[str, int], Take] = {}
        """By step and lease epoch: whoever takes a step after it moved waits his turn anew."""
        self._place_skip = 0
        self._take_wake = trio.Event()
        self._place_wake = trio.Event()
        self._ask_wake = trio.Event()
        self._ask_waits = _Waits()
        self._offer_waits = _Waits()
        self._leaving = False
        self.taken_total = 0
        self.handed_over_total = 0
        store.on_commit(self._on_commit)

    # --- what may give the loops work ---

    def on_member_changed(self) -> None:
        """A member came, went or changed."""
        self._take_wake.set()
        self._place_wake.set()

    def on_idle(self) -> None:
        """A slot has nothing to do."""
        self._ask_wake.set()

    def _on_commit(self, commit: Commit) -> None:
        mine = self._offer()
        for change in commit.changes:
            row = change.after
            if row.table == "profiles":
                self._note_profile(row)
            elif row.table == "steps" and not row.rank and not row.deleted:
                owner = row.text("owner")
                if owner == self._me:
                    if self._holds.is_draining(self._me) or mine.misses(requirement_of(row)) is not None:
                        self._place_wake.set()
                elif self._view.owner_state(owner) is not OwnerState.PRESENT:
                    if row.node == owner and not change.local:
                        self._heard_of[owner] = self._env.clock.monotonic()
                    self._take_wake.set()
                elif row.text("status") == Status.PENDING:
                    self._ask_wake.set()
            if row.table == "steps" and row.integer("dependents") and (row.rank or self._queue.has_continuing):
                self._place_wake.set()  # a step of ours that waited for it may be one that only others can run

    def _note_profile(self, row: Row) -> None:
        if row.deleted:
            self._offers.pop(row.key, None)
        else:
            self._offers[row.key] = read_offer(row)
            self._releases[row.key] = row.text("version") or None
        self.on_member_changed()

    # --- who could do it ---

    def candidates(self, step: Row) -> list[str]:
        """Members able to run the step, in the order in which they should take it.

        A dwell window is a preference: a flapping member gets what nobody else can run, since waiting helps nobody.
        So is a hold of one node, which is to own what waits for its end rather than a node that is gone.
        """
        needs = requirement_of(step)
        placeable = self._view.placeable()
        free = [node for node in placeable if not self._holds.is_shunned(node)]
        able_ones = able(self._offers_of(free), needs) or able(self._offers_of(placeable), needs)
        return rendezvous(step.key, able_ones or able(self.usable_offers(), needs))

    def usable_offers(self) -> list[Offer]:
        """What each usable member brings, this node included, by node id."""
        return self._offers_of(self._view.usable())

    def _offers_of(self, nodes: Iterable[str]) -> list[Offer]:
        known = self.all_offers()
        return [known[node] for node in nodes if node in known]

    def all_offers(self) -> Mapping[str, Offer]:
        """The announced profile of every node ever seen, alive or not."""
        return {**self._offers, self._me: self._offer()}

    # --- the loops ---

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled."""
        await self.read_profiles()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._take_loop)
            nursery.start_soon(self._place_loop)
            nursery.start_soon(self._ask_loop)
            task_status.started()

    async def read_profiles(self) -> None:
        """Learn who can run what from the rows as they are: at the start, and when no commit tells of what is new."""
        for row in await self._store.read(lambda reader: reader.select("profiles", "namespace = ?", (MESH_NAMESPACE,))):
            self._note_profile(row)

    def leave(self) -> None:
        """Take, place and ask for nothing any more: the node is stopping."""
        self._leaving = True

    async def _take_loop(self) -> None:
        while True:
            self._take_wake = trio.Event()
            pause_s = float("inf")
            try:
                pause_s = await self._take_round()
            except RelayMeshError as error:
                log.warning("cannot take over steps now: %s", error)
                pause_s = RETRY_S
            with trio.move_on_after(pause_s):
                await self._take_wake.wait()
                # Rows of a dead owner arrive in bursts; one look after a tick serves them all.
                await self._env.clock.sleep(self._timing.tick_s)

    async def take_now(self) -> None:
        """One round of taking over, for an operator who does not want to wait for the next event.

        Nothing is left to other sites: that they are gone is what only an operator can know.
        """
        await self._take_round(leave_to_sites=False)

    async def _take_round(self, *, leave_to_sites: bool = True) -> float:
        """Take what is due; returns in how many seconds to look again (infinity: when something happens)."""
        if self._leaving:
            return float("inf")
        owners = await self._store.read(_open_owners)
        now = self._env.clock.monotonic()
        self._unknown_since = {owner: since for owner, since in self._unknown_since.items() if owner in owners}
        self._heard_of = {owner: at for owner, at in self._heard_of.items() if owner in owners}
        gone = [owner for owner in owners if self._view.owner_state(owner) is not OwnerState.PRESENT]
        takeable = [owner for owner in gone if self._is_takeable(owner, now)]
        unsure_s = self._timing.dead_time_s / 2 if len(takeable) < len(gone) else float("inf")
        if not takeable:
            return unsure_s
        if not self._view.may_reclaim() or not self._runtime.gate_is_open() or self._store.failed:
            return self._timing.tick_s * 5
        if self._runtime.paused is not None:
            return RETRY_S  # what it took it would not run
        away = self._offers_of_sites() if self._linked_sites and leave_to_sites else []
        return min(unsure_s, await self._take_all(takeable, away, now))

    def _offers_of_sites(self) -> list[Offer]:
        """What nodes can do of which rows have come, and gossip never."""
        return [offer for node, offer in self._offers.items() if self._view.owner_state(node) is OwnerState.UNKNOWN]

    def _is_left(self, step: Row, away: Sequence[Offer]) -> bool:
        """Whether this is for another site to run. Links are slow: two that take from each other would never end it."""
        if self._view.owner_state(step.text("owner")) is not OwnerState.UNKNOWN:
            return False
        return bool(able(away, requirement_of(step)))

    async def _take_all(self, owners: list[str], away: Sequence[Offer], now: float) -> float:
        """Go through all open steps of these owners that could run here; returns in how many seconds to look again."""
        plans: dict[tuple[str, int], Take] = {}
        after, pause_s, full = (0, ""), float("inf"), True
        while full:
            page = partial(_open_steps_of, owners=owners, offer=self._offer(), after=after)
            steps = await self._store.read(page)
            planned = self._plan([step for step in steps if not self._is_left(step, away)], now)
            due = [step for step in steps if planned.get(_lease(step), _NEVER).at <= now]
            for start in range(0, len(due), TAKE_BATCH_MAX):
                await self._take(due[start : start + TAKE_BATCH_MAX])
            # What was due may still be there: a freeze began, or its owner came and went. It is looked at once more.
            looks = [take.at - now if take.at > now else 5 * self._timing.tick_s for take in planned.values()]
            pause_s = min(pause_s, *looks) if looks else pause_s
            plans |= planned
            full = len(steps) == STEPS_READ_MAX
            after = (steps[-1].hlc, steps[-1].key) if steps else after
        self._plans = plans
        return pause_s

    def _is_takeable(self, owner: str, now: float) -> bool:
        state = self._view.owner_state(owner)
        if state is not OwnerState.UNKNOWN:
            self._unknown_since.pop(owner, None)
            heard = self._heard_of.get(owner)
            if state is OwnerState.DEAD and heard is not None and now - heard < self._timing.dead_time_s:
                return False  # perhaps only its word that it lives is still on its way
            return is_takeable(state, unknown_for_s=0.0, dead_time_s=self._timing.dead_time_s)
        since = self._unknown_since.setdefault(owner, now)
        return is_takeable(state, unknown_for_s=now - since, dead_time_s=self._timing.dead_time_s)

    def _plan(self, steps: Iterable[Row], now: float) -> dict[tuple[str, int], Take]:
        """When to take each step. A plan made earlier stands while the same nodes stand before us."""
        plans = {}
        for step in steps:
            take = plan(step.key, me=self._me, order=self.candidates(step), now=now, tick_s=self._timing.tick_s)
            if take is not None:
                earlier = self._plans.get(_lease(step), take)
                plans[_lease(step)] = min(earlier, take, key=lambda each: each.at)
        return plans

    async def _take(self, due: Sequence[Row]) -> None:
        guarded = [step for step in due if step.text("roster")]
        elected = await self._support.elect(guarded) if guarded and self._view.may_reclaim() else {}
        steps = [step for step in due if not step.text("roster") or step.key in elected]

        def take(tx: Transaction) -> int:
            # Asked as late as can be: an owner that came back while this waited for a slow disk keeps its work.
            reasons = {step.text("owner"): self._view.owner_state(step.text("owner")) for step in steps}
            return sum(
                transitions.take_over(
                    tx,
                    step,
                    me=self._me,
                    why=f"owner {step.text('owner')} is {reasons[step.text('owner')].value}",
                    current_life=self._view.current_life,
                    elected_at=elected.get(step.key),
                )
                is not None
                for step in steps
                if reasons[step.text("owner")] is not OwnerState.PRESENT
            )

        if steps and self._view.may_reclaim():
            self.taken_total += await self._store.write(take)

    async def _place_loop(self) -> None:
        while True:
            self._place_wake = trio.Event()
            pause_s = float("inf")
            try:
                pause_s = await self._place_round()
            except RelayMeshError as error:
                log.info("cannot hand over steps now: %s", error)
                pause_s = RETRY_S
            with trio.move_on_after(pause_s):
                await self._place_wake.wait()

    async def _place_round(self) -> float:
        """Offer what cannot run here to a peer that can; returns in how many seconds to look again."""
        if self._leaving or not self._runtime.gate_is_open():
            return RETRY_S
        # Only agents that somebody has now: a thousand steps of an absent one must not hide the others.
        agents = sorted({name for offer in self.usable_offers() for name in offer.abilities})
        skip, limit = self._place_skip, 4 * OFFER_BATCH_MAX
        draining = self._holds.is_draining(self._me)
        entries = await self._store.read(lambda reader: unplaceable(reader, agents, limit, skip, draining=draining))
        now = self._env.clock.monotonic()
        by_peer: dict[str, list[tuple[Queued, Row]]] = {}
        for entry in entries:
            step = await self._store.read(partial(_step_of, entry=entry))
            if step is None:
                continue
            peers = [
                node
                for node in self.candidates(step)
                if self._offer_waits.free(node, now) and not (node != self._me and self._holds.is_shunned(node))
            ]
            if peers and peers[0] != self._me:
                by_peer.setdefault(peers[0], []).append((entry, step))
        for peer, chosen in by_peer.items():
            why = "its owner is being drained" if draining else "its owner cannot run it"
            await self._offer_to(peer, chosen[:OFFER_BATCH_MAX], why=why)
        if len(entries) == limit:
            # The oldest may wait for an absent node: they must not hide what others could do.
            self._place_skip = 0 if by_peer else skip + limit
            return 0.0
        self._place_skip = 0
        # No event tells when a peer's back-off ends, or when a member is alive again.
        return RETRY_S if entries or skip else float("inf")

    async def _offer_to(self, peer: str, chosen: list[tuple[Queued, Row]], *, why: str) -> None:
        address = self._view.rpc_address(peer)
        if address is None:
            return
        rows = encode_rows([step for _, step in chosen])
        try:
            answer = await self._calls.call(address, "offer", msgspec.msgpack.encode(OfferRequest(rows)), expect=peer)
            accepted = max(0, decode(answer, int))
        except RelayMeshError as error:
            log.info("peer %s did not accept %d steps: %s", peer, len(chosen), error)
            self._offer_waits.until[peer] = self._env.clock.monotonic() + RETRY_S
            return
        entries = [entry for entry, _ in chosen[:accepted]]
        if accepted < len(chosen):
            self._offer_waits.until[peer] = self._env.clock.monotonic() + RETRY_S
        moved = await self._store.write(lambda tx: transitions.hand_over(tx, entries, me=self._me, to=peer, why=why))
        self.handed_over_total += len(moved)

    async def handle_offer(self, peer: PeerIdentity, body: bytes) -> bytes:
        """A peer asks whether we would own these steps. Accepting binds nobody: ownership moves with the peer's row."""
        request = decode(body, OfferRequest)
        rows = decode_rows(request.rows, limits=CHUNK_LIMITS)
        held = self._holds.is_shunned(self._me)
        usable = 0 if self._leaving or self._runtime.paused or held else len(rows)
        accepted = 0
        for row in rows[:usable]:
            row_rules.check_step(row)
            if self._offer().misses(requirement_of(row)) is not None:
                break
            accepted += 1
        return msgspec.msgpack.encode(accepted)

    async def _ask_loop(self) -> None:
        pause_s = float("inf")
        while True:
            with trio.move_on_after(pause_s):
                await self._ask_wake.wait()
            self._ask_wake = trio.Event()
            await self._env.clock.sleep(ASK_PAUSE_S)
            try:
                pause_s = await self._ask_round()
            except RelayMeshError as error:
                log.info("cannot ask for work now: %s", error)
                pause_s = RETRY_S

    async def _ask_round(self) -> float:
        """Ask the peer with the longest backlog that we could help with; returns in how many seconds to look again."""
        idle = self._runtime.idle_slots
        if not idle or self._leaving or not self._runtime.gate_is_open() or self._store.failed:
            return float("inf")
        if self._me not in self._view.placeable():
            return RETRY_S
        # Not for agents without room here: two nodes would pass such a step to and fro for as long as both are full.
        offer, full = self._offer(), self._runtime.full_agents()
        abilities = offer.abilities.difference(full, self._holds.agents())
        mine = Offer(node=self._me, abilities=abilities, labels=offer.labels)
        now = self._env.clock.monotonic()
        now_ms = self._store.physical_ms()
        backlogs, due_ms = await self._store.read(lambda reader: _backlogs(reader, mine, self._me, now_ms))
        due_s = float("inf") if due_ms is None else max(ASK_EMPTY_PAUSE_S, (due_ms - now_ms) / 1000)
        again_s = ASK_AGAIN_S
        for owner, _ in backlogs:
            address = self._view.rpc_address(owner)
            if address is None or self._view.owner_state(owner) is not OwnerState.PRESENT:
                continue
            if not self._ask_waits.free(owner, now):
                # It had nothing when it was asked, and has had news since.
                again_s = min(again_s, self._ask_waits.until[owner] - now)
                continue
            try:
                if await self._ask(owner, address, 2 * idle, mine):
                    return 0.0
            except RelayMeshError as error:
                log.info("cannot ask %s for work now: %s", owner, error)  # others may have some
            self._ask_waits.until[owner] = self._env.clock.monotonic() + ASK_EMPTY_PAUSE_S
        # Backlogs that nobody gives from: blocked steps, or an owner for which our dwell window has not ended yet.
        return min(again_s, due_s) if backlogs else due_s

    async def _ask(self, owner: str, address: Address, want: int, mine: Offer) -> bool:
        request = AskRequest(want, sorted(mine.abilities), dict(mine.labels))
        answer = await self._calls.call(address, "ask", msgspec.msgpack.encode(request), expect=owner)
        rows = decode_rows(answer, limits=CHUNK_LIMITS)
        if not rows:
            return False

        def adopt(tx: Transaction) -> None:
            for row in rows:
                tx.merge(row, Arrival.PUSHED)

        await self._store.write(adopt)
        return True

    async def handle_ask(self, peer: PeerIdentity, body: bytes) -> bytes:
        """A peer with idle slots asks for work: give it waiting steps beyond what our own slots will take next."""
        request = decode(body, AskRequest)
        wants = Offer(node=peer.name, abilities=frozenset(request.agents), labels=request.labels)
        if self._leaving or not self._runtime.gate_is_open() or peer.name not in self._view.placeable():
            return encode_rows([])

        withheld = self._support.wanted()

        def give(tx: Transaction) -> list[Row]:
            want = max(0, min(request.want, OFFER_BATCH_MAX))  # to SQLite a negative limit is none
            waiting = transitions.queued_for(tx, wants, now_ms=tx.now_ms, limit=2 * want, withheld=withheld)
            # At most half of what waits, as work stealing does: two idle nodes must not pass steps to and fro.
            entries = waiting[: (len(waiting) + 1) // 2]
            return transitions.hand_over(tx, entries, me=self._me, to=peer.name, why="it had idle slots and asked")

        moved = await self._store.write(give)
        self.handed_over_total += len(moved)
        return encode_rows(await self._store.read(lambda reader: _with_needs(reader, moved)))

    def release_of(self, node: str) -> str | None:
        """The release that a node's profile names, as nodes of every release do; None when none is known."""
        return self._releases.get(node)

    async def announce(self, labels: Mapping[str, str], slots: int, version: str) -> None:
        """Publish what this node can run, if that differs from what its profile says now: no write without a change."""
        offer = self._offer()
        values: dict[str, Value] = {
            "agents": json.dumps(sorted(offer.abilities)),
            "labels": json.dumps(dict(labels), sort_keys=True),
            "slots": slots,
            "version": version,
        }

        def write(tx: Transaction) -> None:
            current = tx.get("profiles", MESH_NAMESPACE, self._me)
            if current is None or any(current.values.get(name) != value for name, value in values.items()):
                tx.put("profiles", MESH_NAMESPACE, self._me, values)
            self._queue.rebuild(tx)

        await self._store.write(write)


def read_offer(profile: Row) -> Offer:
    """A node's offer from its profile row."""
    return Offer(
        node=profile.key,
        abilities=frozenset(json.loads(profile.text("agents") or "[]")),
        labels=json.loads(profile.text("labels") or "{}"),
    )


def _step_of(reader: Reader, *, entry: Queued) -> Row | None:
    return reader.get("steps", entry.namespace, entry.step_id)


def _open_owners(reader: Reader) -> list[str]:
    found = reader.sql("SELECT DISTINCT owner FROM steps WHERE rank = 0 AND deleted = 0")
    return [str(owner) for (owner,) in found]


def _lease(step: Row) -> tuple[str, int]:
    return step.key, step.lease_epoch


def _open_steps_of(reader: Reader, *, owners: list[str], offer: Offer, after: tuple[int, str]) -> list[Row]:
    """Open steps of these owners for agents that the offer has and pinned to nobody else, oldest first.

    Without the narrowing, some thousand steps of an agent that nobody has would hide all others for ever.
    """
    agents = sorted(offer.abilities)
    return reader.select(
        "steps",
        f"rank = 0 AND deleted = 0 AND owner IN ({','.join('?' * len(owners))}) "
        "AND NOT EXISTS (SELECT 1 FROM tasks WHERE tasks.namespace = steps.namespace AND tasks.key = steps.task_id "
        "AND tasks.deleted = 1) "
        f"AND agent IN ({','.join('?' * len(agents))}) AND (pin_node IS NULL OR pin_node = ?) AND (hlc, key) > (?, ?)",
        (*owners, *agents, offer.node, *after),
        order="hlc, key",
        limit=STEPS_READ_MAX,
    )


def _backlogs(reader: Reader, mine: Offer, me: str, now_ms: int) -> tuple[list[tuple[str, int]], int | None]:
    """Owners of runnable steps that we could run, longest backlog first, as far as this replica knows.

    Also when the delay of the next one that waits for that ends, of those which some owner may then have too many of.
    """
    names = sorted(mine.abilities)
    if not names:
        return [], None
    others = (
        f"rank = 0 AND deleted = 0 AND status = 'PENDING' AND owner <> ? AND agent IN ({','.join('?' * len(names))})"
    )
    due = "((created_hlc >> 16) + delay_ms)"
    ((due_ms,),) = reader.sql(
        f"SELECT min({due}) FROM steps WHERE {others} AND delay_ms > 0 AND {due} > ?", (me, *names, now_ms)
    )
    found = reader.sql(
        f"SELECT owner, count(*) FROM (SELECT owner FROM steps AS step WHERE {others} "
        f"AND (delay_ms IS NULL OR {due} <= ?) "
        # A step that waits for a parent is no backlog; below a dead letter it would be asked for for ever.
        "AND NOT EXISTS (SELECT 1 FROM json_each(step.depends_on) AS needed WHERE NOT EXISTS (SELECT 1 FROM steps "
        "AS parent WHERE parent.namespace = step.namespace AND parent.task_id = step.task_id "
        "AND parent.name = needed.value AND parent.deleted = 0 AND (parent.status = 'SUCCESS' "
        "OR (parent.rank > 0 AND step.on_failure = 'continue')))) LIMIT ?) "
        "GROUP BY owner ORDER BY count(*) DESC, owner",
        (me, *names, now_ms, BACKLOG_LOOK_MAX),
    )
    return [(str(owner), int(count)) for owner, count in found], None if due_ms is None else int(due_ms)


def _with_needs(reader: Reader, steps: Iterable[Row]) -> list[Row]:
    """The steps, each preceded by its task (trace, cancel flag) and its payloads, so that the new owner can start."""
    rows: list[Row] = []
    room = PAYLOAD_BYTES_WITH_ROWS_MAX
    told: dict[str, None] = {}
    for step in steps:
        task_id = step.text("task_id")
        task = reader.get("tasks", step.namespace, task_id) if task_id not in told else None
        told[task_id] = None
        if task is not None:
            rows.append(task)
        for reference in filter(None, (step.text("input_ref"), step.text("checkpoint_ref"))):
            payload = reader.get("payloads", step.namespace, reference)
            if payload is not None:
                room -= len(payload.blob("content") or b"")
                if room >= 0:
                    rows.append(payload)
        rows.append(step)
    return rows
