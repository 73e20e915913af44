"""The promises of RelayMesh, one file each, judged while a world runs and again when it has come to rest.

An invariant hears observations in order, keeps what it needs, and yields a text for each way in which its promise was
broken. It costs O(changes), never O(state) per observation. Whatever it knows of the order of rows, fences or statuses
it says itself, in its own words: an oracle that asks the product agrees with the product's faults.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from chaos.invariants.acknowledged_kept import AcknowledgedKept, NodeKnowsItsWord
from chaos.invariants.answers_explained import OneTaskPerKey, RefusalsExplained
from chaos.invariants.bounded_levels import LevelsBounded
from chaos.invariants.cancel_obeyed import CancelObeyed
from chaos.invariants.cancelled_stays import CancelledStays
from chaos.invariants.children_after_parents import ChildrenAfterParents
from chaos.invariants.clocks_rise import LivesRise, StampsRise
from chaos.invariants.deleted_stays_deleted import DeletedStaysDeleted
from chaos.invariants.durable_before_heard import DurableBeforeHeard
from chaos.invariants.final_is_maximum import FinalIsMaximum, VersionsOnlyGrow
from chaos.invariants.finished_stays import FinishedStays
from chaos.invariants.gate import GateHolds
from chaos.invariants.generations_count import GenerationsCount
from chaos.invariants.handlers_obeyed import CheckpointsKept, SnoozesUncounted
from chaos.invariants.held_and_timed import NothingHeldStarts, StepsBeginInTheirTime
from chaos.invariants.idle_when_settled import DisksRest, IdleWhenSettled, WritesChangeSomething
from chaos.invariants.members_are_the_living import MembersAreTheLiving
from chaos.invariants.mirror import Mirror
from chaos.invariants.nobody_cut_off import NobodyCutOff
from chaos.invariants.nodes_live_on import DatabasesSound, LogsTellOfNoFault, NodesLiveOn
from chaos.invariants.one_content_per_dot import OneContentPerDot
from chaos.invariants.one_writer import OneWriter
from chaos.invariants.own_epoch import OneRunPerFence, OwnEpoch
from chaos.invariants.promise import Promise
from chaos.invariants.quarantine_explained import QuarantineExplained
from chaos.invariants.refused_after_higher_epoch import RefusedAfterHigherEpoch
from chaos.invariants.replicas_equal import ComesToRest, QueuesHoldOpenSteps, ReplicasEqual
from chaos.invariants.result_stays import ResultStays
from chaos.invariants.rumors_are_news import RumorsAreNews
from chaos.invariants.runs_explained import ResultsComeFromRuns, RunsExplained
from chaos.invariants.schedule_slots import SlotsBecomeTasks, SlotsHaveOneSubmitter
from chaos.invariants.settings_in_force import SettingsInForce
from chaos.invariants.sink_monotonic import SinkMonotonic
from chaos.invariants.suspicions_end import SuspicionsEnd
from chaos.invariants.takeover_justified import NothingTakenInFreeze, TakeoverJustified
from chaos.invariants.tasks_end import TasksEndAsDefined
from chaos.invariants.vectors_honest import EqualVectorsEqualReplicas, VectorsHonest
from chaos.invariants.waiting_steps import WaitingStepsHaveOneTaker, WaitingStepsRunOnceAtATime
from chaos.observations import Rest, Seen
from chaos.runs import Violation
from chaos.scenario import Scenario

__all__ = ["ALL", "Judge", "Promise"]

ALL: Sequence[type[Promise]] = (
    # what clients were told
    AcknowledgedKept,
    NodeKnowsItsWord,
    ResultStays,
    FinishedStays,
    CancelledStays,
    CancelObeyed,
    OneTaskPerKey,
    RefusalsExplained,
    # replication and storage
    FinalIsMaximum,
    VersionsOnlyGrow,
    OneContentPerDot,
    VectorsHonest,
    EqualVectorsEqualReplicas,
    DurableBeforeHeard,
    QuarantineExplained,
    LivesRise,
    StampsRise,
    GenerationsCount,
    # ownership and runs
    OneWriter,
    OwnEpoch,
    OneRunPerFence,
    RefusedAfterHigherEpoch,
    TakeoverJustified,
    NothingTakenInFreeze,
    GateHolds,
    SinkMonotonic,
    ChildrenAfterParents,
    ResultsComeFromRuns,
    RunsExplained,
    WritesChangeSomething,
    WaitingStepsRunOnceAtATime,
    WaitingStepsHaveOneTaker,
    CheckpointsKept,
    SnoozesUncounted,
    SlotsHaveOneSubmitter,
    NothingHeldStarts,
    StepsBeginInTheirTime,
    # nodes
    NodesLiveOn,
    DatabasesSound,
    LogsTellOfNoFault,
    LevelsBounded,
    SuspicionsEnd,
    RumorsAreNews,
    NobodyCutOff,
    SettingsInForce,
    # after the heal
    ComesToRest,
    TasksEndAsDefined,
    SlotsBecomeTasks,
    ReplicasEqual,
    QueuesHoldOpenSteps,
    MembersAreTheLiving,
    DeletedStaysDeleted,
    IdleWhenSettled,
    DisksRest,
)
"""Every promise that a run of whole nodes is held to."""

SHOWN_MAX = 10
"""Violations of one promise that are kept; the rest are counted. One fault breaks a promise again and again."""


class Judge:
    """All promises of one run. `violations` may be read at any time."""

    def __init__(self, scenario: Scenario, promises: Sequence[type[Promise]] = ALL) -> None:
        self._mirror = Mirror(scenario)
        self._promises = [kind(self._mirror) for kind in promises]
        self._hearers: dict[type[Seen], list[Promise]] = {}
        self._violations: list[Violation] = []
        self._counts: dict[str, int] = {}
        self._at_ms = 0.0
        for promise in self._promises:
            for kind in promise.hears:
                self._hearers.setdefault(kind, []).append(promise)

    def see(self, seen: Seen) -> None:
        """Hear what happened."""
        self._at_ms = seen.at_ms
        for promise in self._hearers.get(type(seen), ()):
            self._note(promise, promise.see(seen))
        self._mirror.hear(seen)

    def judge(self, rest: Rest) -> None:
        """Look at the world at rest, once. Without rest, only what holds at any time is judged."""
        for promise in self._promises:
            if rest.settled_ms is not None or not promise.needs_rest:
                self._note(promise, promise.judge(rest))

    def _note(self, promise: Promise, details: Iterable[str]) -> None:
        for detail in details:
            count = self._counts[promise.name] = self._counts.get(promise.name, 0) + 1
            if count <= SHOWN_MAX:
                self._violations.append(Violation(promise.name, self._at_ms, detail))

    @property
    def violations(self) -> list[Violation]:
        """The first SHOWN_MAX of each promise in the order in which they were seen, then how many more there are."""
        more = [
            Violation(name, self._at_ms, f"and {count - SHOWN_MAX} more")
            for name, count in self._counts.items()
            if count > SHOWN_MAX
        ]
        return [*self._violations, *more]
