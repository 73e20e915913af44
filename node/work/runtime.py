"""Runs the steps that this node owns: a fixed number of slots, each claiming, running and committing in turn.

Nobody polls. A slot without work parks until a commit brings some, a retry becomes due, or the gate opens. A slot that
finishes commits the result and claims the next step in one transaction, so a busy node pays one commit per step.
"""

from __future__ import annotations

import collections
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import trio

from mesh.errors import RelayMeshError
from mesh.fences import Fence
from mesh.gate import Gate
from mesh.ids import Origin
from mesh.registers import beats
from mesh.rows import Row
from mesh.tables import Register
from node.env import AgentInfo, Env, Outcome
from node.storage.store import Commit, Store
from node.storage.transaction import Transaction
from node.work import row_rules, transitions
from node.work.expiry import Expirer
from node.work.history import Action
from node.work.holds import Holds, is_node_held
from node.work.payloads import PayloadMissingError
from node.work.priorities import PriorityWheel
from node.work.retries import RetryPolicy
from node.work.roster_support import GuardedRun, RosterSupport, UnsupportedError
from node.work.run_lines import AttemptLine
from node.work.status import step_status
from node.work.tables import CLUSTER_EPOCH_KEY, Status
from node.work.transitions import Claimed
from node.work.work_queue import WorkQueue, next_due_ms, ripen, ripened_entry

log = logging.getLogger(__name__)

STORE_RETRY_S = 0.5
"""How long a slot waits after a failed commit before it asks the store again what became of its step."""

ORPHAN_AGE_S = 5.0
"""A claim this old without a run is an orphan: a slot starts its run within milliseconds of the commit."""


@dataclass(slots=True, eq=False)
class Run:
    """A step that runs here right now."""

    step: Row
    scope: trio.CancelScope
    started: float
    slot: int
    stopped_because: str | None = None
    """Why the runtime cancelled the scope: `cancel`, `moved`, `epoch`, `unsupported`, `shutdown`; or None."""
    has_ended: bool = False
    """Its handler has; what came of it may wait for the gate or the store."""
    reopen: bool = False
    """This process was paused during the run: it commits only under a lease epoch opened after the pause."""
    news: str | None = None
    """What happened, as in `stopped_because`, after the handler had ended and while its end waited for support."""
    line: AttemptLine = field(init=False)
    """To its handler."""

    @property
    def agent(self) -> str:
        """Whose handler it is."""
        return self.step.text("agent")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLimits:
    """The defaults for steps and agents that name no own values."""

    slots: int
    timeout_s: float
    retry: RetryPolicy


class Runtime:
    """Claims, runs and commits; cancels runs whose lease moved or whose task was cancelled."""

    def __init__(
        self,
        env: Env,
        store: Store,
        gate: Gate,
        queue: WorkQueue,
        support: RosterSupport,
        *,
        me: str,
        life: int,
        limits: RunLimits,
    ) -> None:
        self._env = env
        self._store = store
        self._gate = gate
        self._queue = queue
        self._support = support
        self._me = me
        self._life = life
        self._limits = limits
        self._rng = random.Random(env.rng.getrandbits(64))
        self._wheel = PriorityWheel()
        self._parked = trio.lowlevel.ParkingLot()
        self._due_changed = trio.Event()
        self._arrivals = 0
        self._stopping = False
        self._commit_unknown = trio.Event()
        self._gate_moved = trio.Event()
        self._gate_shut_after: tuple[Origin, int] | None = None
        self.on_idle: Callable[[], None] = lambda: None
        """Called when a slot found nothing to do; ownership sets it, to ask peers for work."""
        self.holds = Holds(store)
        self.holds.on_changed.append(self._on_holds)
        self._expirer = Expirer(
            env,
            store,
            me=me,
            wait_gate=self._wait_gate,
            may_write=lambda: self.paused is None,
            supported=support.supported,
            may_expire=lambda: queue.has_expiring,
        )
        self._runs: dict[int, Run] = {}
        """By slot, not by step: a run that is being stopped may meet its step's next one, if the lease came back."""
        self._claims: dict[int, Run] = {}
        """What each slot claimed and has not started: the claim may be committed long before its slot is told."""
        self._held: list[Run] = []
        """Ended, and not committed: their rosters do not support this node now. They take no slot."""
        self._held_news = trio.Event()
        self._strays_found = trio.Event()
        self._strays_found.set()
        self.paused: str | None = None
        """Why nothing new is started, for an operator (store failed, identity conflict); None when all is well."""
        self.started_total = 0
        self.finished: collections.Counter[str] = collections.Counter()
        """Ended attempts by outcome kind, and `refused` for results whose lease had moved."""
        row_rules.watch(store)  # first: everything below relies on it
        store.watch("steps", self._on_step)
        store.watch("payloads", queue.on_payload)
        store.watch("holds", queue.on_hold)
        store.watch("tasks", self._on_task)
        store.on_commit(self._on_commit)
        support.may_start = lambda: self._may_start and not self._stopping
        support.guarded_runs = self._guarded_runs
        support.on_gained = self._on_support_gained
        support.on_lapsed = self._on_support_lapsed

    # --- inside the transaction that changed a row (writer thread) ---

    def _on_step(self, tx: Transaction, before: Row | None, after: Row) -> None:
        self._queue.on_step(tx, before, after)
        if before is not None and self._lost_result(tx, before, after):
            transitions.record_superseded(tx, before, after, me=self._me)
        if before is not None and self._lost_run(before, after):
            self._tell_of_lost_run(tx, before, after)
        if self._begins_to_wait(before, after):
            # It may come to a task whose cancel was here before it.
            task = tx.get("tasks", after.namespace, after.text("task_id"))
            if task is not None:
                transitions.obey_cancel(tx, task, me=self._me)

    def _begins_to_wait(self, before: Row | None, after: Row) -> bool:
        """Whether a step became ours, or stopped running, without having ended. A step that we submit is no news."""
        if after.rank or after.deleted or after.text("owner") != self._me or step_status(after) is Status.RUNNING:
            return False
        if before is None:
            return after.node != self._me
        return before.text("owner") != self._me or step_status(before) is Status.RUNNING

    def _lost_result(self, tx: Transaction, before: Row, after: Row) -> bool:
        if (
            step_status(before) is not Status.SUCCESS
            or before.text("owner") != self._me
            or Fence.of(before, self._me) == Fence.of(after, after.text("owner"))
        ):
            return False
        # Whoever replayed it may have seen another result than ours, or none.
        return before.generation == after.generation or not transitions.was_replayed(tx, before)

    def _lost_run(self, before: Row, after: Row) -> bool:
        return (
            step_status(before) is Status.RUNNING
            and before.text("owner") == self._me != after.node
            and Fence.of(before, self._me) != Fence.of(after, after.text("owner"))
        )

    def _tell_of_lost_run(self, tx: Transaction, before: Row, after: Row) -> None:
        # In the commit that takes the lease away: a process killed right after it could tell no more, and nobody else
        # may have heard of the run, whose claim can be the last thing that was committed before a kill.
        if before.integer("claim_life") < self._life:
            transitions.record_lost(tx, before, me=self._me)
        elif not any(run.has_ended for run in self._runs_of(before.key)):  # its result shows as superseded
            transitions.record_aborted(tx, before, me=self._me, winner=after.text("owner"))

    def _on_task(self, tx: Transaction, before: Row | None, after: Row) -> None:
        transitions.obey_cancel(tx, after, me=self._me)

    # --- after a commit (Trio thread) ---

    def _on_commit(self, commit: Commit) -> None:
        wake = 0
        # One commit may hold several versions of a row, a submit and its claim among them. Only the last is current:
        # judged by the first, a claimed run would seem to have lost its lease before it began.
        current = {(row.table, row.namespace, row.key): row for row in (change.after for change in commit.changes)}
        for row in current.values():
            if row.table == "steps":
                wake += self._note_step(row)
            elif row.table == "payloads" and self._queue.is_awaited(row.key):
                wake += self._limits.slots  # several steps may have the same input
            elif row.table == "tasks" and row.integer("cancelled_below"):
                self._note_cancel(row)
            elif row.table == "cluster" and row.key == CLUSTER_EPOCH_KEY:
                self._note_cluster_epoch(row.rank)
        if wake:
            self.wake(wake)

    def _note_step(self, row: Row) -> int:
        for run in self._runs_of(row.key):
            # The claim may be newer than this commit's word of the row: only what beats it has moved the lease.
            moved = Fence.of(row, row.text("owner")) != Fence.of(run.step, self._me)
            if moved and beats(Register.LIFECYCLE, row, run.step):
                self._stop_run(run, "moved")
        status = step_status(row)
        waits_here = row.text("owner") == self._me and status in (Status.PENDING, Status.RETRYING)
        if waits_here and (row.integer("delay_ms") or status is Status.RETRYING):
            self._due_changed.set()  # its delay may be over already
        if row.text("owner") == self._me and status is Status.RUNNING and not self._runs_under(row):
            if row.integer("claim_life") == self._life:
                # A host that was rolled back may count its starts as it did before: another process had our number.
                self._commit_unknown.set()
            else:
                self._strays_found.set()
        is_over = status.is_terminal or (status is not Status.RUNNING and self._queue.has_continuing)
        if not is_over or not row.integer("dependents"):
            return int(waits_here)
        # A parent that ended anywhere, or waits in vain, may have freed several of ours, now or after their delays.
        if self._queue.has_delayed:
            self._due_changed.set()
        return waits_here + row.integer("dependents")

    def _all_runs(self) -> list[Run]:
        return [*self._runs.copy().values(), *self._claims.copy().values(), *self._held]

    def _runs_of(self, step_id: str) -> list[Run]:
        return [run for run in self._all_runs() if run.step.key == step_id]

    def _runs_under(self, step: Row) -> bool:
        """Whether this lease is a run's of ours: another run of the step may be ending just because of it."""
        lease = Fence.of(step, self._me)
        return any(Fence.of(run.step, self._me) == lease for run in self._runs_of(step.key))

    def _note_cancel(self, task: Row) -> None:
        for run in self._all_runs():
            if run.step.text("task_id") == task.key and transitions.is_cancel_requested(task, run.step):
                run.line.ask_to_cancel()
                if task.text("cancel_mode") == "hard":
                    self._stop_run(run, "cancel")

    def _note_cluster_epoch(self, epoch: int) -> None:
        for run in self._all_runs():
            if run.step.cluster_epoch < epoch:
                self._stop_run(run, "epoch")

    def _stop_run(self, run: Run, why: str) -> None:
        if run.stopped_because is None:
            run.stopped_because = why
            run.scope.cancel()
        if run.has_ended:
            run.news = why
            self._tell_held()

    def wake(self, count: int) -> None:
        """Let up to `count` idle slots look at the queue."""
        self._arrivals += 1
        if self._queue.has_guarded:
            self._support.look()
        self._parked.unpark(count=min(count, self._limits.slots))

    @property
    def idle_slots(self) -> int:
        """How many slots have nothing to do right now."""
        return len(self._parked) if self._may_start and not self._stopping else 0

    @property
    def _may_start(self) -> bool:
        return self.paused is None and self.holds.of_node(self._me) is None

    def why_nothing_starts(self) -> str | None:
        """What keeps this node from starting anything new, for an operator; None when nothing does."""
        hold = self.holds.of_node(self._me)
        return self.paused or (None if hold is None else str(hold))

    def _on_holds(self) -> None:
        if self._may_start:
            self._due_changed.set()  # what was held may be due later, too
            self.wake(self._limits.slots)

    def on_queue_renewed(self) -> None:
        """The queue was made anew without a commit that tells of its steps: look at all that may be due or expire."""
        self._due_changed.set()
        self._expirer.look()
        self.wake(self._limits.slots)

    def set_retry(self, retry: RetryPolicy) -> None:
        """Judge attempts that end from now on by this, unless their step or agent says otherwise."""
        self._limits = replace(self._limits, retry=retry)

    # --- the gate ---

    def gate_is_open(self) -> bool:
        """Look at the gate now; on a change let everything that waits for it go on."""
        was_open = self._gate.is_open
        is_open = self._gate.check(self._env.clock.monotonic())
        if was_open and not is_open:
            self._note_gate_shut()
        elif is_open and not was_open:
            self.on_gate_opened()
        return is_open

    def shut_gate(self) -> None:
        """Others may have taken over what this node owns: touch it only after a pull."""
        self._gate.shut(self._env.clock.monotonic())
        self._note_gate_shut()

    def _note_gate_shut(self) -> None:
        self._gate_shut_after = self._store.last_dot
        for run in self._all_runs():
            run.reopen = True

    def on_gate_shut_at_start(self) -> None:
        """Remember which steps are older than this process: they wait for the gate."""
        self._gate_shut_after = self._store.last_dot

    def on_gate_opened(self) -> None:
        """Old work may run and commit again."""
        self._gate_shut_after = None
        self._gate_moved.set()
        self._gate_moved = trio.Event()
        self.wake(self._limits.slots)

    async def _wait_gate(self) -> None:
        while not self.gate_is_open():
            moved = self._gate_moved
            opens_at = self._gate.opens_at()
            timeout_s = 1.0 if opens_at is None else max(0.01, opens_at - self._env.clock.monotonic())
            with trio.move_on_after(timeout_s):
                await moved.wait()

    # --- steps with a roster ---

    def _guarded_runs(self) -> list[GuardedRun]:
        return [GuardedRun(run.step, not run.has_ended) for run in self._all_runs() if run.step.text("roster")]

    def _on_support_gained(self) -> None:
        self._tell_held()
        self._expirer.look()
        self.wake(self._limits.slots)

    def _on_support_lapsed(self, step_id: str) -> None:
        for run in self._runs_of(step_id):
            if not run.has_ended:
                self._stop_run(run, "unsupported")

    def _tell_held(self) -> None:
        self._held_news.set()
        self._held_news = trio.Event()

    async def _settle_held(self, run: Run, outcome: Outcome | None, why: str | None) -> None:
        """Commit the end of a run once its roster supports this node again, or nothing depends on that any more."""
        try:
            while True:
                while not (self._support.is_held(run.step) or run.news or self._stopping):
                    await self._held_news.wait()
                if run.news == "cancel":
                    outcome, why = None, "cancel"
                elif self._stopping and not self._support.is_held(run.step):
                    outcome, why = None, "shutdown"
                run.news = None
                await self._wait_gate()
                try:
                    await self._settle(partial(self._end_held, run=run, outcome=outcome, why=why))
                except UnsupportedError:
                    continue
                return
        finally:
            self._held.remove(run)

    def _end_held(self, tx: Transaction, *, run: Run, outcome: Outcome | None, why: str | None) -> tuple[str, None]:
        return self._end_run(tx, run, outcome, why), None

    def _demand_support(self, tx: Transaction, step: Row) -> None:
        """UnsupportedError while the lease stands and the step's roster might have given the step to another node."""
        if not self._support.is_held(step) and transitions.holds_lease(tx, step, self._me) is not None:
            raise UnsupportedError(f"no majority of its roster supports this node for step {step.key}: wait for peers")

    # --- slots ---

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run all slots until cancelled, or until `stop` let the last of them end."""
        async with trio.open_nursery() as watchers:
            watchers.start_soon(self._wake_due_retries)
            watchers.start_soon(self._sweep_orphans)
            watchers.start_soon(self._expirer.run)
            async with trio.open_nursery() as slots:
                self._nursery = slots
                for slot in range(self._limits.slots):
                    slots.start_soon(self._slot, slot)
                task_status.started()
            watchers.cancel_scope.cancel()

    async def _slot(self, slot: int) -> None:
        claimed: Claimed | None = None
        while not self._stopping:
            if claimed is None:
                seen = self._arrivals
                claimed = await self._claim_patiently(slot)
                if claimed is None and seen == self._arrivals and not self._stopping:
                    self.on_idle()
                    await self._parked.park()
                continue
            claimed = await self._run_one(claimed, slot)
        if claimed is not None:
            # Claimed together with the last commit, but never started: hand it back as it was.
            await self._settle(partial(self._hand_back, step=claimed.step))

    async def _claim_patiently(self, slot: int) -> Claimed | None:
        # Not seeing the queue is not the same as an empty one: a slot that parked now would be woken by nobody.
        while self.paused is None and not self._stopping:
            self.gate_is_open()
            try:
                return await self._store.write(partial(self._claim, slot=slot))
            except RelayMeshError as error:
                log.warning("cannot claim work: %s", error)
                self._claims.pop(slot, None)
                self._commit_unknown.set()
                await self._env.clock.sleep(STORE_RETRY_S)
        return None

    def _claim(self, tx: Transaction, *, slot: int) -> Claimed | None:
        self._claims.pop(slot, None)  # of an earlier try, whose commit failed
        if is_node_held(tx, self._me):
            return None
        ripen(tx, now_ms=tx.now_ms)
        while self.paused is None and not self._stopping:
            found = ripened_entry(
                tx,
                priorities=self._wheel.order(),
                now_ms=tx.now_ms,
                full_agents=self.full_agents(slot),
                fresh_after=self._gate_shut_after,
                supported=self._support.supported(),
                served=self._wheel.served,
                aged_until_ms=self._wheel.aged_until_ms(tx.now_ms),
            )
            if found is None:
                return None
            entry, priority = found
            try:
                claimed = transitions.claim(tx, entry, me=self._me, life=self._life, timeout_s=self._timeout_s)
            except PayloadMissingError as error:
                log.info("step %s waits: %s", entry.step_id, error)
                self._queue.defer(tx, entry.step_id, reference=error.reference)
                continue
            if claimed is not None:
                self._wheel.claimed(priority, entry.namespace)
                self._claims[slot] = self._new_run(claimed.step, slot)
                return claimed
        return None

    def _new_run(self, step: Row, slot: int) -> Run:
        run = Run(step, trio.CancelScope(), self._env.clock.monotonic(), slot)
        run.line = AttemptLine(save=partial(self._save_checkpoint, run), now_ms=self._store.physical_ms)
        return run

    async def _save_checkpoint(self, run: Run, content: bytes) -> None:
        await self._wait_gate()

        def write(tx: Transaction) -> None:
            self._demand_support(tx, run.step)
            transitions.checkpoint(tx, run.step, content, me=self._me)

        await self._store.write(write)

    def full_agents(self, slot: int | None = None) -> list[str]:
        """Agents that have no room. For a slot that looks for work, what it ran until now does not count: it ended."""
        busy: collections.Counter[str] = collections.Counter()
        for run in self._all_runs():
            if run.slot != slot and run not in self._held:
                busy[run.agent] += 1
        agents = self._env.executor.agents()
        return [name for name, count in busy.items() if name in agents and count >= _room(agents[name])]

    def _timeout_s(self, agent: str, step_timeout_ms: int) -> float:
        if step_timeout_ms:
            return step_timeout_ms / 1000
        info = self._env.executor.agents().get(agent)
        return info.timeout_s if info is not None and info.timeout_s else self._limits.timeout_s

    async def _run_one(self, claimed: Claimed, slot: int) -> Claimed | None:
        """Run one attempt, settle it, and return the step claimed in the same commit, if any."""
        run = self._claims.pop(slot)
        self._runs[slot] = run
        self.started_total += 1
        outcome: Outcome | None = None
        try:
            if not self._support.is_held(run.step):
                self._stop_run(run, "unsupported")  # its claim took long to commit
            else:
                with run.scope:
                    outcome = await self._env.executor.run(replace(claimed.job, line=run.line))
        except Exception as error:
            # An edge of the node: whatever goes wrong around user code costs this attempt only.
            log.exception("agent %s failed outside its handler", claimed.job.agent)
            outcome = Outcome(kind="crashed", error=f"{type(error).__name__}: {error}")
        finally:
            run.has_ended = True
            if outcome is None and run.stopped_because is None:
                del self._runs[slot]  # the node itself is being torn down
        # Whatever ended the run: a node that was away writes nothing about earlier work until it has heard from a peer.
        await self._wait_gate()
        why = run.stopped_because
        try:
            return await self._settle(lambda tx: (self._end_run(tx, run, outcome, why), self._claim(tx, slot=slot)))
        except UnsupportedError:
            self._claims.pop(slot, None)
            self._held.append(run)
            self._nursery.start_soon(self._settle_held, run, outcome, why)
            return None
        finally:
            del self._runs[slot]
            info = self._env.executor.agents().get(run.agent)
            if info is not None and info.concurrency is not None:
                self.wake(1)  # this slot may go on with something else, and another one found the agent full

    def _end_run(self, tx: Transaction, run: Run, outcome: Outcome | None, why: str | None) -> str:
        """Write what became of a run; returns the word under which it is counted."""
        step = run.step
        if outcome is None:
            kind = self._give_up(tx, step, why)
            if kind is None:
                transitions.abort(tx, step, me=self._me)
            return kind or "aborted"
        self._demand_support(tx, step)
        finished = transitions.finish(
            tx, step, outcome, me=self._me, policy=self._policy(step), rng=self._rng, reopen=run.reopen
        )
        return outcome.kind if finished.accepted else "refused"

    def _give_up(self, tx: Transaction, step: Row, why: str | None) -> str | None:
        """End the lease of a run that was stopped; None when it moved meanwhile, whatever had stopped the run."""
        match why:
            case "cancel":
                given_up, kind = transitions.cancel_run(tx, step, me=self._me), "cancelled"
            case "shutdown":
                given_up, kind = self._release(tx, step), "released"
            case "epoch":
                given_up, kind = (
                    self._requeue(tx, step, Action.REQUEUED, "a higher cluster epoch was learned"),
                    "requeued",
                )
            case "unsupported":
                self._demand_support(tx, step)
                why = "the majority of its roster did not support its owner any more"
                given_up, kind = self._requeue(tx, step, Action.RELEASED, why), "released"
            case _:
                return None
        return None if given_up is None else kind

    def _hand_back(self, tx: Transaction, *, step: Row) -> tuple[str, None]:
        self._release(tx, step)
        return "released", None

    def _release(self, tx: Transaction, step: Row) -> Row | None:
        return self._requeue(tx, step, Action.RELEASED, "its node stopped gracefully")

    def _requeue(self, tx: Transaction, step: Row, action: Action, why: str) -> Row | None:
        return transitions.requeue(tx, step, me=self._me, action=action, why=why)

    def _policy(self, step: Row) -> RetryPolicy:
        info = self._env.executor.agents().get(step.text("agent"))
        return self._limits.retry.of_step(step.integer("max_attempts"), info)

    async def _settle(self, transition: Callable[[Transaction], tuple[str, Claimed | None]]) -> Claimed | None:
        """Commit the end of a run, as often as it takes: a result in hand is not dropped because a disk was full.

        A failed COMMIT may have happened. The transition reads the row again, sees its own lease ended, and then only
        records what it finds, so repeating it is safe.
        """
        while True:
            try:
                kind, claimed = await self._store.write(transition)
            except UnsupportedError:
                raise  # nothing was written, and the store is not to blame
            except RelayMeshError as error:
                log.warning("cannot commit the end of a run: %s", error)
                self._commit_unknown.set()
                await self._env.clock.sleep(STORE_RETRY_S)
                await self._wait_gate()  # a store that failed for long shuts it as it recovers
            else:
                self.finished[kind] += 1
                return claimed

    async def _wake_due_retries(self) -> None:
        woken_ms = 0
        while True:
            self._due_changed = trio.Event()
            now_ms = self._store.physical_ms()
            woken_ms = min(woken_ms, now_ms)  # the host's date may have gone back: what is due is due again
            try:
                due_ms = await self._store.read(partial(next_due_ms, after_ms=woken_ms))
            except RelayMeshError as error:
                log.warning("cannot see which retries are due: %s", error)
                await self._env.clock.sleep(STORE_RETRY_S)
                continue
            if due_ms is not None and due_ms <= now_ms:
                # Everything due after the last call: also what became due between its commit and this look.
                woken_ms = now_ms
                self.wake(self._limits.slots)
                continue
            with trio.move_on_after(float("inf") if due_ms is None else (due_ms - now_ms) / 1000):
                await self._due_changed.wait()

    async def _sweep_orphans(self) -> None:
        """Give back what is claimed in our name and life, but runs in no slot of ours.

        A commit of unknown outcome may have claimed it, and its slot only saw the error.
        """
        while True:
            await self._commit_unknown.wait()
            self._commit_unknown = trio.Event()
            await self._env.clock.sleep(2 * ORPHAN_AGE_S)
            try:
                await self._store.write(self._requeue_orphans)
            except RelayMeshError as error:
                log.warning("cannot look for orphaned claims yet: %s", error)
                self._commit_unknown.set()

    def _requeue_orphans(self, tx: Transaction) -> None:
        old_hlc = tx.hlc - (int(ORPHAN_AGE_S * 1000) << 16)
        running = tx.select(
            "steps",
            "owner = ? AND rank = 0 AND status = 'RUNNING' AND claim_life = ? AND lease_hlc < ?",
            (self._me, self._life, old_hlc),
        )
        for step in running:
            if not self._runs_under(step):
                transitions.requeue(tx, step, me=self._me, action=Action.RELEASED, why="its claim's commit was unsure")

    # --- stopping ---

    def running(self) -> Mapping[str, Run]:
        """The runs of this moment, by step id."""
        return {run.step.key: run for run in self._all_runs()}

    def add_progress(self, steps: list[dict[str, Any]]) -> None:
        """Put what runs here has told of itself into these views of steps (see work.views), under `progress`."""
        running = self.running()
        for step in steps:
            run = running.get(step["stepId"])
            if run is not None and step["fence"] == Fence.of(run.step, self._me).encode():
                step["progress"] = run.line.view()

    async def stop(self, grace_s: float) -> None:
        """Start nothing new, give runs `grace_s` seconds, then end them and give their leases back, uncounted."""
        self._stopping = True
        self.wake(self._limits.slots)
        self._tell_held()
        deadline = self._env.clock.monotonic() + grace_s
        while self._runs and self._env.clock.monotonic() < deadline:
            await self._env.clock.sleep(0.05)
        for run in list(self._runs.values()):
            self._stop_run(run, "shutdown")
        while self._runs or self._held:
            await self._env.clock.sleep(0.02)

    async def recover_strays(self, current_life: Callable[[str], int | None]) -> None:
        """Requeue what earlier processes of this node left RUNNING, whenever such a row turns up; until cancelled.

        Most lie in our own database at the start. After a restore, or on a new disk, peers bring them, some late.
        """
        while True:
            await self._strays_found.wait()
            self._strays_found = trio.Event()
            await self._wait_gate()
            try:
                count = await self._recover_after_crash(current_life)
            except RelayMeshError as error:
                log.warning("cannot requeue what an earlier process left: %s", error)
                self._strays_found.set()
                await self._env.clock.sleep(STORE_RETRY_S)
                continue
            if count:
                log.info("%d steps that an earlier process of this node was running wait again", count)

    async def _recover_after_crash(self, current_life: Callable[[str], int | None]) -> int:

        def recover(tx: Transaction) -> int:
            left = tx.select("steps", "owner = ? AND rank = 0 AND status = 'RUNNING' AND deleted = 0", (self._me,))
            stale = [step for step in left if step.integer("claim_life") != self._life and not self._runs_under(step)]
            return sum(
                transitions.recover_own(tx, step, me=self._me, current_life=current_life) is not None for step in stale
            )

        return await self._store.write(recover)


def _room(info: AgentInfo) -> float:
    return float("inf") if info.concurrency is None else info.concurrency
