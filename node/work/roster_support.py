"""Wins and gives the support that steps with a roster need: this node as their holder, their taker, and their voter.

Works by `mesh.support`, which says why that is safe. While this node runs such steps, or has some that could start, it
asks the members of their rosters, four times in a self-fence time, one request a member for all steps together. When
it has none it asks nobody and sleeps.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Protocol, TypeVar

import msgspec
import trio

from mesh.errors import LimitError, RelayMeshError, UnavailableError
from mesh.fences import COUNTER_MAX
from mesh.ids import Address
from mesh.rows import Row
from mesh.support import MARGIN, SELF_FENCE_MAX_S, Ballot, Holder, Support, Supporter, Vote, majority, may_vote
from mesh.takeover import OwnerState
from node.env import Env, PeerIdentity
from node.replication.calls import Caller, decode
from node.storage.reader import Reader
from node.storage.store import Commit, Store
from node.storage.transaction import Transaction
from node.work.status import roster_of, tell_roster
from node.work.work_queue import State, guarded_entries

log = logging.getLogger(__name__)

T = TypeVar("T")

ASKS_PER_FENCE = 4
"""Requests in one self-fence time: one or two may be lost before a run has to stop."""
WORKS_MAX = 1024
"""Steps in one request. A node asks for those that it runs and as many again that could start."""


class UnsupportedError(UnavailableError):
    """No majority of the step's roster supports this node now. Nothing was written."""


class Members(Protocol):
    """What is asked of the mesh; the gossip loop answers."""

    def owner_state(self, node_id: str) -> OwnerState:
        """What is believed of a node right now."""
        ...

    def rpc_address(self, node_id: str) -> Address | None:
        """Where the node's streams are, if it is known."""
        ...


_FenceMs = Annotated[int, msgspec.Meta(ge=1, le=int(SELF_FENCE_MAX_S * 1000))]
_Counter = Annotated[int, msgspec.Meta(ge=0, lt=COUNTER_MAX)]
"""Below the greatest, since a taker that must exceed it goes one higher."""


class SupportRequest(msgspec.Struct, array_like=True):
    """`support`: do you support this process as the holder of these steps? The answer is one bool for each."""

    process: bytes
    self_fence_ms: _FenceMs
    steps: list[tuple[str, str]]
    """Namespace and step id of each."""


class VoteRequest(msgspec.Struct, array_like=True):
    """`vote`: may this process take these steps? Each is (namespace, step id, generation, lease epoch)."""

    process: bytes
    self_fence_ms: _FenceMs
    wanted: list[tuple[str, str, _Counter, _Counter]]


class VoteAnswer(msgspec.Struct, array_like=True):
    """The answer for one step, and the highest lease epoch that the voter knows somebody has or wants.

    `rival`: another taker has its vote, and may win if it is left alone.
    """

    granted: bool
    epoch: _Counter
    rival: bool = False


@dataclass(frozen=True, slots=True)
class GuardedRun:
    """A step with a roster that was claimed here. `is_active`: its handler may be running."""

    step: Row
    is_active: bool


class RosterSupport:
    """All that this node does for steps with a roster. Callbacks return at once."""

    def __init__(
        self,
        env: Env,
        store: Store,
        members: Members,
        calls: Caller,
        *,
        me: str,
        self_fence_s: float,
        queued_max: int,
        may_support: Callable[[], bool],
    ) -> None:
        """`self_fence_s`: how long a support counts; all nodes of a mesh must have one value, that of their profile.

        `may_support` is False while this node cannot be trusted to be the only one of its name.
        """
        self._env = env
        self._store = store
        self._members = members
        self._calls = calls
        self._holder = Holder(me, env.entropy(8))
        self._self_fence_s = self_fence_s
        self._queued_max = queued_max
        self._may_support = may_support
        self._rng = random.Random(int.from_bytes(self._holder.process))
        self._supporter = Supporter(self_fence_s=self_fence_s, now=env.clock.monotonic())
        self._support = Support(self_fence_s=self_fence_s)
        self._wanted: dict[str, list[str]] = {}
        """The rosters of the steps that run here or could start, by step id."""
        self._asked_at: dict[str, float] = {}
        self._namespaces: dict[str, str] = {}
        self._alone_since: dict[str, float] = {}
        """By step, when it last had support, or was first wanted."""
        self._epochs: dict[str, int] = {}
        """By step, a lease epoch that a take-over must exceed: a lower one was voted on already."""
        self._elections: dict[str, float] = {}
        """By step, until when this node does not stand again: its votes must lapse, for somebody else to win."""
        self._wake = trio.Event()
        self._lapse_wake = trio.Event()
        self.may_start: Callable[[], bool] = lambda: True
        self.guarded_runs: Callable[[], Sequence[GuardedRun]] = lambda: ()
        self.on_gained: Callable[[], None] = lambda: None
        """Some step may now start, or be committed."""
        self.on_lapsed: Callable[[str], None] = lambda _step_id: None
        """This step must not run here any more."""
        store.watch("steps", _forget_vote)
        store.on_commit(self._on_commit)

    # --- what the runtime asks, from any thread ---

    def is_held(self, step: Row) -> bool:
        """Whether this node may run the step and commit what its run came to."""
        roster = roster_of(step)
        return not roster or self._env.clock.monotonic() < self._support.lapses_at(step.key, roster)

    def supported(self) -> list[str]:
        """The ids of the steps with a roster that may start here now."""
        now = self._env.clock.monotonic()
        return [step for step, roster in self._wanted.copy().items() if now < self._support.lapses_at(step, roster)]

    def wanted(self) -> frozenset[str]:
        """The ids of the steps for which support is being asked."""
        return frozenset(self._wanted)

    def why_not(self, step: Row) -> str:
        """What a step of this node lacks, as a sentence; empty when it lacks no support, or has no roster."""
        roster = roster_of(step)
        if self.is_held(step):
            return ""
        now = self._env.clock.monotonic()
        heard = self._support.supporters(step.key, roster, now)
        since = self._alone_since.get(step.key, now)
        return (
            f" It runs in one place only (on_partition=wait): that needs the support of {tell_roster(roster)}, and for "
            f"{now - since:.0f} s this node has had that of {', '.join(heard) if heard else 'nobody'}."
        )

    # --- events ---

    def _on_commit(self, commit: Commit) -> None:
        if any(
            change.after.table == "steps"
            and change.after.text("owner") == self._holder.node
            and roster_of(change.after)
            for change in commit.changes
        ):
            self._lapse_wake.set()
            self._wake.set()

    def look(self) -> None:
        """Some step of this node may have become ready to start."""
        self._wake.set()

    def on_member_changed(self) -> None:
        """A member came or went: it may give what lacks."""
        if self._wanted:
            self._asked_at.clear()
            self._wake.set()

    # --- the holder ---

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Win support until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_lapses)
            task_status.started()
            while True:
                self._wake = trio.Event()
                try:
                    pause_s = await self._round()
                except RelayMeshError as error:
                    log.warning("cannot see which steps need support: %s", error)
                    pause_s = self._self_fence_s / ASKS_PER_FENCE
                with trio.move_on_after(pause_s):
                    await self._wake.wait()

    async def _round(self) -> float:
        """Ask for all that is due to be asked for; returns in how many seconds to look again."""
        limit = self._queued_max if self.may_start() else 0
        queued, due_s = await self._store.read(partial(_queued, now_ms=self._store.physical_ms(), limit=limit))
        # The runs after the queue: a step that is claimed meanwhile must not be missing in both, and lose its support.
        running = [run.step for run in self.guarded_runs()]
        wanted = {step.key: roster_of(step) for step in [*running, *queued]}
        self._namespaces = {step.key: step.namespace for step in [*running, *queued]}
        now = self._env.clock.monotonic()
        self._wanted = wanted
        self._support.keep_only(wanted)
        self._alone_since = {step: self._alone_since.get(step, now) for step in wanted}
        period_s = self._self_fence_s / ASKS_PER_FENCE
        # In the very form in which the pause is computed below: rounded otherwise, a step might be neither due nor
        # ever become so by a pause of nothing.
        self._asked_at = {step: at for step, at in self._asked_at.items() if step in wanted and at + period_s - now > 0}
        by_member: dict[str, list[str]] = {}
        for step in [step for step in wanted if step not in self._asked_at]:
            roster = wanted[step]
            self._asked_at[step] = now
            asked = [member for member in roster if self._members.owner_state(member) is OwnerState.PRESENT]
            if len(asked) < majority(roster):
                asked = [member for member in asked if member == self._holder.node]
            for member in asked:
                by_member.setdefault(member, []).append(step)
        with trio.move_on_after(self._self_fence_s / 2):
            async with trio.open_nursery() as nursery:
                for member, steps in by_member.items():
                    for start in range(0, len(steps), WORKS_MAX):
                        nursery.start_soon(self._ask, member, steps[start : start + WORKS_MAX])
        passed_s = self._env.clock.monotonic() - now
        return max(0.0, min([due_s, *(at + period_s - now for at in self._asked_at.values())]) - passed_s)

    async def _ask(self, member: str, steps: list[str]) -> None:
        sent_at = self._env.clock.monotonic()
        named = [(self._namespaces.get(step, ""), step) for step in steps]
        request = SupportRequest(self._holder.process, int(self._self_fence_s * 1000), named)
        answers = await self._answers(member, "support", request, list[bool])
        if answers is not None and len(answers) == len(steps):
            self._heard(member, [step for step, yes in zip(steps, answers, strict=True) if yes], sent_at=sent_at)

    def _heard(self, member: str, steps: Iterable[str], *, sent_at: float) -> None:
        now = self._env.clock.monotonic()
        gained = False
        for step in steps:
            roster = self._wanted.get(step, [])
            had = now < self._support.lapses_at(step, roster)
            self._support.heard(step, member, sent_at=sent_at)
            if now < self._support.lapses_at(step, roster):
                self._alone_since[step] = now
                gained = gained or not had
        self._lapse_wake.set()
        if gained:
            self.on_gained()

    async def _answers(self, member: str, verb: str, request: msgspec.Struct, wanted: type[T]) -> T | None:
        """What a member answered; None when it did not."""
        body = msgspec.msgpack.encode(request)
        peer = PeerIdentity("node", member)
        try:
            if member == self._holder.node:
                handle = self.handle_support if verb == "support" else self.handle_vote
                return decode(await handle(peer, body), wanted)
            address = self._members.rpc_address(member)
            if address is None:
                return None
            answer = await self._calls.call(address, verb, body, expect=member, timeout_s=self._self_fence_s / 2)
            return decode(answer, wanted)
        except RelayMeshError as error:
            log.info("%s did not answer a request for %s: %s", member, verb, error)
            return None

    async def _watch_lapses(self) -> None:
        while True:
            self._lapse_wake = trio.Event()
            now = self._env.clock.monotonic()
            next_at = float("inf")
            for run in self.guarded_runs():
                lapses_at = self._support.lapses_at(run.step.key, roster_of(run.step))
                if run.is_active and lapses_at <= now:
                    self.on_lapsed(run.step.key)
                elif run.is_active:
                    next_at = min(next_at, lapses_at)
            with trio.move_on_after(max(0.0, next_at - now)):
                await self._lapse_wake.wait()

    # --- the taker ---

    async def elect(self, steps: Sequence[Row]) -> dict[str, int]:
        """Stand for these steps of owners that are gone; returns the lease epochs at which this node may take them.

        A step that is missing in the answer is for somebody else, or for later.
        """
        now = self._env.clock.monotonic()
        self._elections = {step: until for step, until in self._elections.items() if now < until}
        standing = {step.key: step for step in steps if step.key not in self._elections and self._can_win(step)}
        wanted = {key: max(step.lease_epoch, self._epochs.get(key, 0)) + 1 for key, step in standing.items()}
        votes: dict[str, int] = dict.fromkeys(standing, 0)
        rivals: dict[str, None] = {}

        async def ask(member: str, keys: list[str]) -> None:
            sent_at = self._env.clock.monotonic()
            asked = [(standing[key].namespace, key, standing[key].generation, wanted[key]) for key in keys]
            request = VoteRequest(self._holder.process, int(self._self_fence_s * 1000), asked)
            answers = await self._answers(member, "vote", request, list[VoteAnswer])
            for key, answer in zip(keys, answers or (), strict=False):
                votes[key] += answer.granted
                if answer.granted:
                    self._support.heard(key, member, sent_at=sent_at)
                else:
                    self._epochs[key] = max(self._epochs.get(key, 0), answer.epoch)
                    rivals.update({key: None} if answer.rival else {})

        with trio.move_on_after(self._self_fence_s / 2):
            async with trio.open_nursery() as nursery:
                for member in dict.fromkeys(member for step in standing.values() for member in roster_of(step)):
                    keys = [key for key, step in standing.items() if member in roster_of(step)]
                    if self._members.owner_state(member) is OwnerState.PRESENT:
                        nursery.start_soon(ask, member, keys[:WORKS_MAX])
        won = {key: wanted[key] for key, step in standing.items() if votes[key] >= majority(roster_of(step))}
        for key in [key for key in standing if key not in won]:
            # Most lost because not all hold the owner gone yet. Of two that share the votes one must let its own lapse.
            patience = self._rng.uniform(0.5, 2 * MARGIN) if key in rivals else 1 / ASKS_PER_FENCE
            self._elections[key] = now + self._self_fence_s * patience
        for key in won:
            self._epochs.pop(key, None)
        return won

    def _can_win(self, step: Row) -> bool:
        roster = roster_of(step)
        there = sum(self._members.owner_state(member) is OwnerState.PRESENT for member in roster)
        return there >= majority(roster)

    # --- the supporter and voter ---

    async def handle_support(self, peer: PeerIdentity, body: bytes) -> bytes:
        """A member asks to be supported as the holder of steps."""
        request = decode(body, SupportRequest)
        self._check_size(len(request.steps))
        # What is known here to have ended, or to belong to somebody else, is no business of the asker any more: it has
        # been cut off, and would begin anew what it is about to hear the end of.
        rows = await self._store.read(lambda reader: [reader.get("steps", *each) for each in request.steps])
        return msgspec.msgpack.encode(
            [
                (row is None or not (row.rank or row.deleted or row.text("owner") != peer.name))
                and self._supports(step, peer.name, request.process, request.self_fence_ms)
                for (_, step), row in zip(request.steps, rows, strict=True)
            ]
        )

    def _supports(self, step_id: str, node: str, process: bytes, self_fence_ms: int) -> bool:
        return self._may_support() and self._supporter.support(
            step_id, Holder(node, process), self_fence_s=self_fence_ms / 1000, now=self._env.clock.monotonic()
        )

    def _check_size(self, count: int) -> None:
        if count > WORKS_MAX:
            raise LimitError(f"{count} steps in one request, the limit is {WORKS_MAX}: ask for fewer at a time")
        if self._supporter.size > WORKS_MAX:
            self._supporter.forget_old(self._env.clock.monotonic())

    async def handle_vote(self, peer: PeerIdentity, body: bytes) -> bytes:
        """A member asks to take steps. What is granted is durable before the answer leaves."""
        request = decode(body, VoteRequest)
        self._check_size(len(request.wanted))
        rows = await self._store.read(lambda reader: [reader.get("steps", each[0], each[1]) for each in request.wanted])
        answers: list[VoteAnswer] = []
        asked: list[tuple[int, str, Vote]] = []
        for (_, step_id, generation, epoch), row in zip(request.wanted, rows, strict=True):
            holder = self._supporter.holder_of(step_id, self._env.clock.monotonic())
            is_rival = row is not None and holder not in (None, peer.name, row.text("owner"))
            answers.append(VoteAnswer(False, row.lease_epoch if row is not None else 0, is_rival))
            vote = Vote(Ballot(generation, epoch), peer.name)
            # The support comes first: from here on this member supports nobody else, whatever its disk does.
            if self._is_vacant(row, vote) and self._supports(
                step_id, peer.name, request.process, request.self_fence_ms
            ):
                asked.append((len(answers) - 1, step_id, vote))
        if asked:
            votes = await self._store.write(partial(_record_votes, votes=[(step, vote) for _, step, vote in asked]))
            for (place, _, vote), stands in zip(asked, votes, strict=True):
                answers[place] = VoteAnswer(stands == vote, stands.ballot.epoch, stands.taker != vote.taker)
        return msgspec.msgpack.encode(answers)

    def _is_vacant(self, step: Row | None, vote: Vote) -> bool:
        """Whether this member, too, holds the owner gone, and knows of no later turn."""
        if step is None or step.deleted or step.rank:
            return False
        known = Ballot(step.generation, step.lease_epoch)
        gone = self._members.owner_state(step.text("owner")) is not OwnerState.PRESENT
        return gone and vote.ballot.generation == known.generation and vote.ballot.epoch > known.epoch


def _queued(reader: Reader, *, now_ms: int, limit: int) -> tuple[list[Row], float]:
    """The steps that could start, and in how many seconds another one becomes due."""
    entries = guarded_entries(reader, now_ms=now_ms, limit=limit)
    steps = [reader.get("steps", entry.namespace, entry.step_id) for entry in entries]
    ((due_ms,),) = reader.sql(
        f"SELECT min(due_ms) FROM queue WHERE runnable = {State.NOT_DUE} AND guarded = 1 AND due_ms > ?", (now_ms,)
    )
    due_s = float("inf") if due_ms is None else (due_ms - now_ms) / 1000
    return [step for step in steps if step is not None], due_s


def _record_votes(tx: Transaction, *, votes: Sequence[tuple[str, Vote]]) -> list[Vote]:
    """Write down each vote that may be given; returns the votes that stand."""
    return [_record_vote(tx, step_id, vote) for step_id, vote in votes]


def _record_vote(tx: Transaction, step_id: str, wanted: Vote) -> Vote:
    found = tx.sql("SELECT generation, epoch, taker FROM votes WHERE step_id = ?", (step_id,))
    earlier = Vote(Ballot(int(found[0][0]), int(found[0][1])), str(found[0][2])) if found else None
    if earlier is not None and not may_vote(earlier, wanted):
        return earlier
    if earlier != wanted:
        tx.execute(
            "INSERT OR REPLACE INTO votes (step_id, generation, epoch, taker) VALUES (?, ?, ?, ?)",
            (step_id, wanted.ballot.generation, wanted.ballot.epoch, wanted.taker),
        )
    return wanted


def _forget_vote(tx: Transaction, before: Row | None, after: Row) -> None:
    if (after.rank or after.deleted) and after.text("roster"):
        tx.execute("DELETE FROM votes WHERE step_id = ?", (after.key,))
