"""The operator's settings: one frozen value, read from `<root>/relaymesh-settings.json` and the environment.

It promises that a value which exists was checked: every key is known, of its type, within its bounds, and consistent
with the others. Nothing is clamped and nothing is guessed: a bad file is refused whole, naming the key and what is
allowed. No message repeats a text value: it may be a secret.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, inspect

from mesh.errors import ConfigError

SETTINGS_FILE = "relaymesh-settings.json"
SETTINGS_BYTES_MAX = 256 * 1024
ENVIRONMENT_PREFIX = "RELAYMESH_"

_MIB = 1024 * 1024
_DAY_MS = 24 * 3600 * 1000
_YEAR_MS = 366 * _DAY_MS
# A whole submit travels as one stream message of at most 20 MiB, so no part of it may be configured past 16 MiB.
_MESSAGE_PART_BYTES_MAX = 16 * _MIB

_Milliseconds = Annotated[int, Meta(ge=0, le=_YEAR_MS)]
_Count = Annotated[int, Meta(ge=1, le=1_000_000_000)]
_CountOrOff = Annotated[int, Meta(ge=0, le=1_000_000_000)]
_Timeout = Annotated[int, Meta(ge=100, le=_YEAR_MS)]
_PartBytes = Annotated[int, Meta(ge=1, le=_MESSAGE_PART_BYTES_MAX)]


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


class Settings(msgspec.Struct, frozen=True, kw_only=True, rename=_camel):
    """Everything an operator may tune. On disk the names are camelCase: `lease_timeout_ms` is `leaseTimeoutMs`."""

    lease_timeout_ms: _Timeout | None = None
    """How long an owner may be silent before its lease counts as in doubt; unset, the profile decides."""
    suspect_after_ms: _Timeout | None = None
    """Silence after which a member is SUSPECT; unset, the profile decides."""
    dead_after_ms: _Timeout | None = None
    """Silence after which a member is DEAD; unset, the profile decides."""
    suspect_recover_min_ms: _Milliseconds = 5_000
    """A member back from SUSPECT gets no new placements for this long."""
    dead_recover_min_ms: _Milliseconds = 30_000
    """A member back from DEAD gets no new placements for this long."""
    pause_worker_when_local_not_alive: bool = True
    """Stop dispatching while the store failed, the identity is in conflict or the gate is shut; never for isolation."""

    max_attempts: Annotated[int, Meta(ge=1, le=1_000_000)] = 3
    base_backoff_ms: _Milliseconds = 1_000
    max_backoff_ms: _Milliseconds = 60_000
    retry_dispatch_limit: _Count = 32
    """Most retries made due in one pass."""

    gossip_fanout: Annotated[int, Meta(ge=1, le=32)] = 3
    gossip_packet_ttl: Annotated[int, Meta(ge=1, le=64)] | None = None
    """Hops that a rumor may take; unset, 12, and 16 above 300 members."""
    gossip_sync_sample_size: Annotated[int, Meta(ge=1, le=1_024)] = 32
    gossip_dedup_window_ms: Annotated[int, Meta(ge=1_000, le=3_600_000)] = 60_000
    gossip_dedup_max_entries: Annotated[int, Meta(ge=64, le=1_048_576)] = 4_096
    gossip_encryption: bool = True
    """Seal datagrams with AES-256-GCM. Off, they are still authenticated by HMAC."""

    mesh_prune_older_than_ms: Annotated[int, Meta(ge=60_000, le=10 * _YEAR_MS)] = 7 * _DAY_MS
    mesh_prune_limit: _Count = 256
    mesh_prune_interval_ms: _Milliseconds = 3_600_000
    """0 turns pruning off."""
    garbage_interval_ms: _Timeout = 15_000
    """How long after a deletion the members are asked what they have seen, so that it can be forgotten."""
    done_retention_ms: _Milliseconds = 7 * _DAY_MS
    dead_retention_ms: _Milliseconds = 30 * _DAY_MS
    """For how long tasks are kept after their end: those that succeeded or were cancelled, and dead letters. 0: for
    ever."""
    attempt_retention_ms: _Milliseconds = 0
    """For how long the history of tasks is kept, their failed attempts, moves and logs. 0: for as long as the task."""
    retention_interval_ms: _Timeout = 60_000

    bootstrap_rows_min: Annotated[int, Meta(ge=0, le=1_000_000_000)] = 50_000
    """A peer that lacks so many rows, and more than 30 % of all, gets a snapshot of the database instead of rows. 0 is
    never."""
    linked_sites: bool = False
    """Other nodes of this mesh are reached by envelopes only (`relaymesh replication-controller`): leave them the work
    that they can do, since nobody here can tell whether they live, and forget no deletion, since nobody can tell
    whether they have seen it. To be set on all nodes of all sites."""
    disk_budget_bytes: Annotated[int, Meta(ge=0, le=2**53)] = 0
    """What the database may hold before ended tasks are deleted sooner than their retention says. 0 is no budget."""
    min_free_disk_bytes: Annotated[int, Meta(ge=0, le=2**53)] = 0
    """0 turns the check off."""
    max_ingress_queue_depth: _Count = 1_000_000
    max_running_steps: _Count = 2_000
    submit_rate_limit_per_min: _CountOrOff = 0
    """0 turns the limit off."""

    slo_queue_lag_target_ms: _Milliseconds = 5_000
    slo_step_p95_target_ms: _Milliseconds = 2_000
    slo_step_p99_target_ms: _Milliseconds = 5_000
    slo_dead_letter_growth_target_1h: _CountOrOff = 10
    slo_replication_lag_target_ms: _Milliseconds = 30_000

    agent_timeout_ms: _Timeout = 60_000
    """Longest run of a handler whose step and agent say nothing else."""
    agent_memory_mb: Annotated[int, Meta(ge=32, le=1_048_576)] = 1_024
    """Writable memory of one agent process, in MiB (RLIMIT_DATA)."""
    payload_max_bytes: _PartBytes = 10 * _MIB
    result_max_bytes: _PartBytes = 10 * _MIB
    submit_max_bytes: _PartBytes = 16 * _MIB
    """One submit in all: a workflow with every input."""
    steps_per_task_max: Annotated[int, Meta(ge=1, le=10_000)] = 1_000


WITHOUT_EFFECT = (
    "leaseTimeoutMs",
    "retryDispatchLimit",
    "gossipSyncSampleSize",
    "maxRunningSteps",
    "sloQueueLagTargetMs",
    "sloStepP95TargetMs",
    "sloStepP99TargetMs",
    "sloDeadLetterGrowthTarget1h",
    "sloReplicationLagTargetMs",
)
"""Names that are checked and kept, because files of operators hold them, and that nothing in this release reads."""


def _inspect_fields() -> dict[str, inspect.Field]:
    described = inspect.type_info(Settings)
    assert isinstance(described, inspect.StructType)
    return {field.encode_name: field for field in described.fields}


_FIELDS = _inspect_fields()

# Keys of which the second may not be smaller than the first, when both are set.
_ORDERED = (
    ("leaseTimeoutMs", "suspectAfterMs"),
    ("suspectAfterMs", "deadAfterMs"),
    ("baseBackoffMs", "maxBackoffMs"),
    ("payloadMaxBytes", "submitMaxBytes"),
    ("sloStepP95TargetMs", "sloStepP99TargetMs"),
)

_RETIRED = {
    "gossipSharedSecret": "the mesh's key ring replaced it: remove the key here, and give every host an enrolment "
    "made by `relaymesh mesh enroll`, which carries the keys"
}


def load_settings(path: Path, environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings file, then let `RELAYMESH_*` variables override it; a file that is absent means defaults.

    Raises ConfigError naming the file or variable, the key, and the values that are allowed.
    """
    return settings_from(read_settings_file(path), str(path), environ)


def settings_from(data: bytes | None, source: str, environ: Mapping[str, str] | None = None) -> Settings:
    """The same from a file's content, None when there is no file; `source` is how an error names it."""
    values = {} if data is None else _parse_file(source, data)
    sources = dict.fromkeys(values, source)
    for key, variable in _environment_names().items():
        text = (environ or {}).get(variable)
        if text is not None:
            values[key] = _parse_text(text)
            sources[key] = f"environment variable {variable}"
    for key, value in values.items():
        check_value(sources[key], key, value)
    settings = msgspec.convert(values, Settings)
    check_order(settings, sources, source)
    return settings


def changed_without_effect(settings: Settings) -> list[str]:
    """The settings that differ from their defaults in vain: whoever starts a node with them must hear of it."""
    return [key for key in WITHOUT_EFFECT if getattr(settings, _FIELDS[key].name) != _FIELDS[key].default]


def changed_keys(before: Settings, after: Settings) -> list[str]:
    """The names of the settings in which two values differ."""
    return [key for key, field in _FIELDS.items() if getattr(before, field.name) != getattr(after, field.name)]


def with_keys_of(base: Settings, other: Settings, keys: Iterable[str]) -> Settings:
    """`base` with the values that `other` has for these names."""
    names = [_FIELDS[key].name for key in keys]
    return msgspec.structs.replace(base, **{name: getattr(other, name) for name in names})


def read_settings_file(path: Path) -> bytes | None:
    """What the file holds, None when there is none; ConfigError when it cannot be read. Blocks."""
    try:
        with path.open("rb") as file:
            data = file.read(SETTINGS_BYTES_MAX + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from error
    return data


def _parse_file(path: str, data: bytes) -> dict[str, Any]:
    if len(data) > SETTINGS_BYTES_MAX:
        raise ConfigError(f"{path}: larger than {SETTINGS_BYTES_MAX} bytes, which is no settings file")
    try:
        values = json.loads(data.decode("utf-8-sig"), object_pairs_hook=lambda pairs: _unique_keys(path, pairs))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: holds a number of too many digits") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: is nested too deeply to be a settings file") from error
    if not isinstance(values, dict):
        raise ConfigError(f'{path}: must hold one JSON object, like {{"maxAttempts": 3}}')
    return values


def _unique_keys(path: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"{path}: {twice[:64]!r} is given twice: keep one")
    return values


def check_value(source: str, key: str, value: Any) -> None:
    """Refuse an unknown setting, or a value that it may not have, with a ConfigError that begins with the source."""
    if key in _RETIRED:
        raise ConfigError(f"{source}: {key} is not used: {_RETIRED[key]}")
    field = _FIELDS.get(key)
    if field is None:
        raise ConfigError(f"{source}: unknown setting {key[:64]!r}; {_suggest(key, _FIELDS)}")
    try:
        # JSON's 3.0 is not a whole number here, and true is no 1: strict conversion.
        msgspec.convert({key: value}, Settings)
    except msgspec.ValidationError:
        raise ConfigError(f"{source}: {key} must be {_allowed(field)}, not {_shown(value)}") from None


def check_order(settings: Settings, sources: Mapping[str, str], otherwise: str) -> None:
    """Refuse values that contradict each other. The ConfigError begins with the source of the key, or `otherwise`."""
    for low_key, high_key in _ORDERED:
        low, high = (getattr(settings, _FIELDS[key].name) for key in (low_key, high_key))
        if low is not None and high is not None and high < low:
            source = sources.get(high_key) or sources.get(low_key) or otherwise
            raise ConfigError(f"{source}: {high_key} ({high}) must not be smaller than {low_key} ({low})")


def _allowed(field: inspect.Field) -> str:
    kinds = field.type.types if isinstance(field.type, inspect.UnionType) else (field.type,)
    optional = " (or null: the profile decides)" if len(kinds) > 1 else ""
    kind = next(kind for kind in kinds if not isinstance(kind, inspect.NoneType))
    if isinstance(kind, inspect.BoolType):
        return "true or false"
    assert isinstance(kind, inspect.IntType), kind
    return f"a whole number from {kind.ge} to {kind.le}{optional}"


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)[:40]
    return "a text" if isinstance(value, str) else "a list or an object"


def _suggest(key: str, known: Iterable[str]) -> str:
    names = list(known)
    folded = {name.lower(): name for name in names}
    close = difflib.get_close_matches(key.lower(), folded, n=1, cutoff=0.6)
    return f"did you mean {folded[close[0]]}?" if close else f"known are {', '.join(names)}"


def _environment_names() -> dict[str, str]:
    names = {key: ENVIRONMENT_PREFIX + field.name.upper() for key, field in _FIELDS.items()}
    # Whoever sets a retired variable must hear that it does nothing.
    return names | {"gossipSharedSecret": ENVIRONMENT_PREFIX + "GOSSIP_SHARED_SECRET"}


def _parse_text(text: str) -> Any:
    # The environment knows only text: read what JSON would, and leave anything else as text, which no setting accepts.
    try:
        return json.loads(text.strip().lower())
    except ValueError:
        return text
