"""The replicated tables of the task runtime, and the words their columns use."""

from __future__ import annotations

import enum

from mesh.tables import Column, Parent, Register, Table

MESH_NAMESPACE = "_mesh"
"""Rows that belong to no tenant. No user namespace can have this name: theirs begin with a letter or digit."""


class Status(enum.StrEnum):
    """What a step, or a task folded from its steps, is doing."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    RETRYING = "RETRYING"
    SUCCESS = "SUCCESS"
    DEAD_LETTER = "DEAD_LETTER"
    CANCELLED = "CANCELLED"

    @property
    def rank(self) -> int:
        """The place in the lifecycle order: finished work is never undone by unfinished work (mesh.registers)."""
        return _RANKS.get(self, 0)

    @property
    def is_terminal(self) -> bool:
        """Whether only an operator's replay leads out of this status."""
        return self in _RANKS


_RANKS = {Status.DEAD_LETTER: 1, Status.CANCELLED: 2, Status.SUCCESS: 3}

TASK_OPEN = 0
TASK_CANCEL_REQUESTED = 1
"""Rank of a task row: a cancel outranks a concurrent submit of the same task, and only a replay resets it."""

PRIORITIES = ("high", "normal", "low")
"""A step stores the index: smaller runs first."""

TASKS = Table(
    "tasks",
    Register.LIFECYCLE,
    (
        # What was asked for. Whether it is done is never written here: status is a fold over the steps (work.status).
        Column("idempotency_key"),
        Column("definition_digest"),
        Column("step_count", "int"),
        Column("trace_id"),
        Column("created_hlc", "int"),
        Column("cancelled_below", "int"),  # a cancel concerns steps made under a task generation below this; 0 for none
        Column("cancel_mode"),
        Column("cancel_reason"),
    ),
)

STEPS = Table(
    "steps",
    Register.LIFECYCLE,
    (
        Column("task_id"),
        Column("name"),
        Column("position", "int"),
        Column("agent"),
        Column("priority", "int"),
        Column("depends_on"),  # JSON list of step names
        Column("dependents", "int"),  # how many steps wait for this one: 0 saves a look at the siblings
        Column("input", "blob"),  # small payloads inline, larger ones by hash in input_ref (work.payloads)
        Column("input_ref"),
        Column("timeout_ms", "int"),
        Column("max_attempts", "int"),
        Column("pin_node"),
        Column("labels"),  # JSON object
        Column("created_hlc", "int"),
        Column("owner"),  # the one node that may write this row
        Column("status"),
        Column("attempt", "int"),  # runs that began; a lost lease gives its number back
        Column("retry_delay_ms", "int"),  # a duration, so that no node has to trust another's clock
        Column("claim_life", "int"),  # the life of the owner's process that claimed, to tell a crash from a cut
        Column("lost_leases"),  # JSON list of [node, life]
        Column("task_generation", "int"),  # the task generation under which this step was made; see transitions.cancel
        Column("parents_used"),  # JSON object: parent name -> [generation, lease epoch] of the output that was used
        Column("result", "blob"),
        Column("result_ref"),
        Column("last_error"),
        # JSON list of node ids; set when the step must never run in two places (mesh.support)
        Column("roster", since=5),
        Column("on_failure", since=6),  # `continue`: it runs when its parents have ended, however they did
        Column("delay_ms", "int", since=6),  # not before so long after created_hlc; a duration, as retry_delay_ms
        Column("expires_ms", "int", since=6),  # not started so long after created_hlc: it starts no more; 0 for never
        Column("checkpoint", "blob", since=6),  # what the handler keeps for its next attempt, as `input`
        Column("checkpoint_ref", since=6),
    ),
    Parent("tasks", "task_id"),
)

HISTORY = Table(
    "history",
    Register.IMMUTABLE,
    (
        # One row for each thing worth telling: who owned a step when, what an attempt came to, what lost a merge.
        # Who did it is the row's own writer.
        Column("task_id"),
        Column("step_id"),
        Column("action"),
        Column("from_node"),
        Column("attempt", "int"),
        Column("fence"),  # of the lease that the row tells of
        Column("detail"),
    ),
    Parent("tasks", "task_id"),
)

PAYLOADS = Table(
    "payloads", Register.IMMUTABLE, (Column("content", "blob"), Column("task_id", since=4)), Parent("tasks", "task_id")
)

PROFILES = Table(
    "profiles",
    Register.LWW,
    (
        # What a node can do. Membership says whether it lives; this row says what it would be good for.
        Column("agents"),  # JSON list of names
        Column("labels"),  # JSON object
        Column("slots", "int"),
        Column("version"),
    ),
)

HOLDS = Table("holds", Register.LWW, (Column("reason"), Column("actor")), since=6)
"""While the row is there nothing new starts: its key is a scope of node/work/holds.py; in MESH_NAMESPACE."""

SCHEDULES = Table(
    "schedules",
    Register.LWW,
    (
        Column("cron"),
        Column("time_zone"),
        Column("catch_up"),  # skip | latest | all: what becomes of slots that nobody was up for
        Column("definition", "blob"),  # JSON, as of a submit
        Column("from_hlc", "int"),  # slots after this one's time are due; NULL while it is paused
        Column("actor"),
    ),
    since=6,
)
"""One row for each schedule, by name. Which slots were submitted is told by the ids of their tasks."""

CLUSTER = Table("cluster", Register.MAX, (Column("reason"), Column("actor")))
"""Key `cluster_epoch`; the rank is the epoch."""

CLUSTER_EPOCH_KEY = "cluster_epoch"

WORK_TABLES = (TASKS, STEPS, HISTORY, PAYLOADS, PROFILES, HOLDS, SCHEDULES, CLUSTER)
