"""Goal: settings that exist are right, and a wrong file says what to change. Method: real files, and random ones."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import node
from mesh.errors import ConfigError
from node.settings import (
    SETTINGS_BYTES_MAX,
    WITHOUT_EFFECT,
    Settings,
    changed_without_effect,
    load_settings,
)

REPOSITORY = Path(node.__file__).parent.parent

KEYS = [field.encode_name for field in msgspec.structs.fields(Settings)]
SECRET = "correct horse battery staple"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "relaymesh-settings.json"


def write(path: Path, values: object) -> Path:
    path.write_text(json.dumps(values))
    return path


def refusal(path: Path, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(path, environ)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_an_absent_file_means_the_documented_defaults(path):
    settings = load_settings(path)

    assert settings == Settings()
    assert (settings.lease_timeout_ms, settings.suspect_after_ms, settings.dead_after_ms) == (None, None, None)
    assert (settings.submit_rate_limit_per_min, settings.max_ingress_queue_depth) == (0, 1_000_000)
    assert (settings.gossip_packet_ttl, settings.gossip_fanout) == (None, 3)


def test_every_key_of_the_contract_exists_under_its_old_name():
    contract = """leaseTimeoutMs suspectAfterMs deadAfterMs suspectRecoverMinMs deadRecoverMinMs
        pauseWorkerWhenLocalNotAlive maxAttempts baseBackoffMs maxBackoffMs retryDispatchLimit gossipFanout
        gossipPacketTtl gossipSyncSampleSize gossipDedupWindowMs gossipDedupMaxEntries meshPruneOlderThanMs
        meshPruneLimit meshPruneIntervalMs minFreeDiskBytes maxIngressQueueDepth maxRunningSteps submitRateLimitPerMin
        sloQueueLagTargetMs sloStepP95TargetMs sloStepP99TargetMs sloDeadLetterGrowthTarget1h
        sloReplicationLagTargetMs"""

    assert set(contract.split()) <= set(KEYS)


def test_the_environment_beats_the_file_and_the_file_beats_the_defaults(path):
    write(path, {"maxAttempts": 5, "baseBackoffMs": 200})

    settings = load_settings(
        path, {"RELAYMESH_MAX_ATTEMPTS": "7", "RELAYMESH_GOSSIP_ENCRYPTION": "False", "OTHER": "1"}
    )

    assert settings.max_attempts == 7
    assert settings.base_backoff_ms == 200
    assert settings.gossip_encryption is False


@pytest.mark.parametrize(
    ("key", "least", "most"),
    [("maxAttempts", 1, 1_000_000), ("gossipDedupMaxEntries", 64, 1_048_576), ("payloadMaxBytes", 1, 16 * 1024 * 1024)],
)
def test_a_bound_itself_is_accepted_and_one_past_it_is_refused(path, key, least, most):
    for value in (least, most):
        load_settings(write(path, {key: value, "submitMaxBytes": 16 * 1024 * 1024}))

    for value in (least - 1, most + 1):
        text = refusal(write(path, {key: value}))
        assert f"{key} must be a whole number from {least} to {most}, not {value}" in text
        assert str(path) in text


@pytest.mark.parametrize("value", [True, 3.0, 1.5, None, "3", [3], {"a": 3}])
def test_only_a_whole_number_is_a_whole_number(path, value):
    assert "maxAttempts must be a whole number" in refusal(write(path, {"maxAttempts": value}))


def test_null_leaves_a_profile_timing_to_the_profile(path):
    assert load_settings(write(path, {"deadAfterMs": None})).dead_after_ms is None
    assert "or null: the profile decides" in refusal(write(path, {"deadAfterMs": 1}))


def test_an_unknown_key_is_refused_with_the_nearest_known_one(path):
    assert "unknown setting 'max_attempts'; did you mean maxAttempts?" in refusal(write(path, {"max_attempts": 3}))
    assert "known are leaseTimeoutMs, " in refusal(write(path, {"zzz": 3}))


def test_the_shared_secret_is_refused_without_repeating_it(path):
    text = refusal(write(path, {"gossipSharedSecret": SECRET}))
    from_environment = refusal(path.with_name("absent"), {"RELAYMESH_GOSSIP_SHARED_SECRET": SECRET})

    assert "relaymesh mesh enroll" in text
    assert "RELAYMESH_GOSSIP_SHARED_SECRET" in from_environment
    assert SECRET not in text + from_environment


def test_no_refusal_repeats_a_text_value(path):
    for values in ({"maxAttempts": SECRET}, {"token": SECRET}, {"gossipEncryption": [SECRET]}):
        assert SECRET not in refusal(write(path, values))
    assert SECRET not in refusal(path.with_name("absent"), {"RELAYMESH_MAX_ATTEMPTS": SECRET})


@pytest.mark.parametrize(
    ("low", "high"),
    [
        ("suspectAfterMs", "deadAfterMs"),
        ("baseBackoffMs", "maxBackoffMs"),
        ("sloStepP95TargetMs", "sloStepP99TargetMs"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(path, low, high):
    load_settings(write(path, {low: 500, high: 500}))

    assert f"{high} (499) must not be smaller than {low} (500)" in refusal(write(path, {low: 500, high: 499}))


def test_broken_json_names_line_and_column(path):
    path.write_text('{\n  "maxAttempts": 3\n  "agentMemoryMb": 64\n}')
    assert "line 3, column 3" in refusal(path)
    path.write_bytes(b"\xff\xfe{")
    assert "not UTF-8" in refusal(path)
    path.write_text("[1]")
    assert "one JSON object" in refusal(path)
    path.write_text('{"maxAttempts": 3, "maxAttempts": 4}')
    assert "'maxAttempts' is given twice" in refusal(path)
    path.write_text('{"maxAttempts": ' + "9" * 5000 + "}")
    assert "too many digits" in refusal(path)
    path.write_text("[" * 100_000)
    assert "nested too deeply" in refusal(path)


def test_a_file_at_the_size_limit_is_read_and_one_byte_more_is_refused(path):
    path.write_text("{}".ljust(SETTINGS_BYTES_MAX))
    assert load_settings(path) == Settings()

    path.write_text("{}".ljust(SETTINGS_BYTES_MAX + 1))
    assert "no settings file" in refusal(path)


def test_an_unreadable_file_is_not_taken_for_an_absent_one(path):
    path.mkdir()

    assert "cannot be read" in refusal(path)


def test_exactly_the_settings_that_nothing_reads_are_named_as_without_effect():
    sources = [file for name in ("mesh", "node", "tools") for file in (REPOSITORY / name).rglob("*.py")]
    text = "\n".join(file.read_text() for file in sources if file.name != "settings.py")
    unread = [field.encode_name for field in msgspec.structs.fields(Settings) if f"settings.{field.name}" not in text]
    assert tuple(unread) == WITHOUT_EFFECT


def test_settings_changed_in_vain_are_told_apart_from_defaults():
    assert changed_without_effect(Settings()) == []
    assert changed_without_effect(Settings(max_attempts=9, max_running_steps=9)) == ["maxRunningSteps"]


def test_a_byte_order_mark_does_no_harm(path):
    path.write_bytes(b'\xef\xbb\xbf{"maxAttempts": 9}')

    assert load_settings(path).max_attempts == 9


@given(st.binary(max_size=200))
def test_random_bytes_raise_nothing_but_config_errors(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("settings") / "relaymesh-settings.json"
    path.write_bytes(data)

    try:
        load_settings(path)
    except ConfigError:
        pass
