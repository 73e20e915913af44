"""Envelopes: what one node exports another imports, in any order, again, or not at all."""

from __future__ import annotations

import sys
from contextlib import contextmanager

import msgspec
import pytest
import trio

from chaos.mutants.edits import Edit, edited
from mesh.errors import ConfigError, StoreError
from mesh.identity import Authority
from mesh.stability import Stable
from mesh.version_vector import VersionVector
from node.replication import by_hand
from node.replication.envelope import Envelope, open_envelope, seal
from tests.node.simulated_env import simulated_world


@pytest.fixture
async def pair(tmp_path):
    """Two nodes of one mesh that never hear each other."""
    async with simulated_world(tmp_path) as world:
        a, b = world.host("a"), world.host("b")
        world.network.cut("a", "b")
        await a.start()
        await b.start()
        yield a, b


def opened(host, document):
    return open_envelope(Authority(host.node.spec.identity.ca_public_key), document)


async def exported(host, **args):
    return (await host.admin("replication-export", **args))["envelope"]


async def export_all(host, limit):
    """Envelopes one after another, each since the last, until one is complete."""
    documents = [await exported(host, limit=limit)]
    while not opened(host, documents[-1]).envelope.complete:
        since = opened(host, documents[-1]).envelope.cursor
        documents.append(await exported(host, limit=limit, since=since))
        assert len(documents) < 50
    return documents


async def tasks(host):
    return [row.key for row in await host.rows("tasks")]


async def test_an_import_brings_work_and_the_vector_and_again_changes_nothing(pair, autojump_clock):
    a, b = pair
    task_id = await a.submit(input="x", idempotencyKey="k")
    await a.wait(task_id)
    document = await exported(a)

    answer = await b.admin("replication-import", envelope=document)
    assert answer["vectorJoined"]
    assert answer["applied"] == answer["rows"] > 0
    assert await b.status(task_id) == "SUCCESS"
    assert b.node.store.vector.missing_from(opened(a, document).cursor) == {}

    again = await b.admin("replication-import", envelope=document)
    assert (again["applied"], again["staleSkipped"]) == (0, again["rows"])
    checked = await b.admin("replication-verify", envelope=document)
    assert (checked["ok"], checked["missing"], checked["differing"]) == (True, 0, 0)


async def test_a_row_made_anew_wins_over_a_tombstone_that_its_source_has_forgotten(pair, autojump_clock):
    a, b = pair
    task = await a.submit(input="x", idempotencyKey="k")
    await a.wait(task)
    await a.admin("purge", doneRetentionMs=0)
    await b.admin("replication-import", envelope=await exported(a))
    for host in (a, b):
        (row,) = await host.rows("tasks")
        assert row.deleted
    seen = a.node.store.vector.copy()
    await a.node.store.write(lambda tx: (tx.adopt(Stable(seen, seen)), tx.collect_garbage()))

    assert await a.submit(input="x", idempotencyKey="k") == task
    answer = await b.admin("replication-import", envelope=await exported(a))
    assert answer["vectorJoined"]
    (row,) = await b.rows("tasks")
    assert not row.deleted


async def test_an_envelope_does_not_mend_a_node_that_was_away_too_long(pair, autojump_clock):
    a, b = pair
    task = await a.submit(input="x")
    await a.wait(task)
    first = await exported(a)
    await b.admin("replication-import", envelope=first)
    await a.admin("purge", doneRetentionMs=0)
    seen = a.node.store.vector.copy()
    await a.node.store.write(lambda tx: (tx.adopt(Stable(seen, seen)), tx.collect_garbage()))

    before = b.node.store.vector
    with pytest.raises(ConfigError, match="away for longer than the mesh remembers"):
        await b.admin("replication-import", envelope=await exported(a, since=opened(b, first).envelope.cursor))
    assert b.node.store.vector == before


async def test_small_envelopes_in_a_row_miss_nothing(pair, autojump_clock):
    a, b = pair
    for number in range(11):
        await a.wait(await a.submit(input=str(number)))
    documents = await export_all(a, limit=3)
    assert len(documents) > 3

    for document in documents:
        assert (await b.admin("replication-import", envelope=document))["vectorJoined"]

    assert await tasks(b) == await tasks(a)
    assert b.node.store.vector.missing_from(a.node.store.vector) == {}


async def test_rows_since_a_time_claim_themselves_and_nothing_before(pair, autojump_clock):
    a, b = pair
    old = [await a.submit(input="old") for _ in range(3)]
    for task in old:
        await a.wait(task)
    await trio.sleep(10)
    now_ms = a.node.store.physical_ms()
    new = await a.submit(input="new")
    await a.wait(new)

    answer = await a.admin("replication-export", sinceMs=now_ms)
    envelope = opened(a, answer["envelope"])
    assert (answer["more"], answer["complete"]) == (False, False)
    assert answer["olderRows"] > 0
    assert envelope.since.is_empty
    rows = [row for chunk in envelope.chunks for row in chunk]
    assert rows
    assert all(row.hlc >> 16 >= now_ms for row in rows)
    claimed = VersionVector()
    for row in rows:
        claimed.add(row.origin, row.seq, row.seq)
    assert envelope.cursor == claimed

    assert (await b.admin("replication-import", envelope=answer["envelope"]))["vectorJoined"]
    assert await b.status(new) == "SUCCESS"
    assert await b.status(old[0]) is None
    missing = b.node.store.vector.missing_from(a.node.store.vector)
    assert missing  # what is older is still asked for

    rest = await a.admin("replication-export", since=envelope.cursor.to_wire())
    await b.admin("replication-import", envelope=rest["envelope"])
    assert await tasks(b) == await tasks(a)
    assert b.node.store.vector.missing_from(a.node.store.vector) == {}


async def test_since_a_time_before_everything_is_a_whole_export(pair, autojump_clock):
    a, _ = pair
    await a.wait(await a.submit(input="x"))
    answer = await a.admin("replication-export", sinceMs=1)
    assert (answer["complete"], answer["more"], answer["olderRows"]) == (True, False, 0)
    nothing = await a.admin("replication-export", sinceMs=a.node.store.physical_ms() + 1_000)
    assert (nothing["rows"], nothing["complete"]) == (0, False)
    assert opened(a, nothing["envelope"]).cursor.is_empty
    with pytest.raises(ConfigError, match="sinceMs"):
        await a.admin("replication-export", sinceMs=-1)


async def test_an_envelope_whose_predecessor_is_missing_merges_rows_and_claims_no_more(pair, autojump_clock):
    a, b = pair
    await a.wait(await a.submit(input="1"))
    first = await exported(a)
    await a.wait(await a.submit(input="2"))
    second = await exported(a, since=opened(a, first).envelope.cursor)
    assert not (await b.admin("replication-verify", envelope=second))["importable"]

    answer = await b.admin("replication-import", envelope=second)

    assert (answer["vectorJoined"], answer["applied"]) == (False, answer["rows"])
    missing = b.node.store.vector.missing_from(opened(a, first).cursor)
    assert missing  # so a pull, or the first envelope, still brings it
    assert (await b.admin("replication-import", envelope=first))["vectorJoined"]
    assert (await b.admin("replication-import", envelope=second))["vectorJoined"]
    assert await tasks(b) == await tasks(a)


async def test_an_interrupted_import_keeps_rows_but_joins_no_vector(pair, monkeypatch, autojump_clock):
    a, b = pair
    monkeypatch.setattr(by_hand, "CHUNK_ROWS_MAX", 2)
    for number in range(5):
        await a.wait(await a.submit(input=str(number)))
    # Overwritten versions leave numbers that only the joined vector covers.
    document = await exported(a)
    assert len(opened(a, document).chunks) > 2
    claimed_by_rows = VersionVector()
    for row in opened(a, document).chunks[0]:
        claimed_by_rows.add(row.origin, row.seq, row.seq)
    write, writes = b.node.store.write, 0

    async def failing(fn, **how):
        nonlocal writes
        if how.get("remote"):
            writes += 1
            if writes == 2:
                raise StoreError("the disk is gone")
        return await write(fn, **how)

    monkeypatch.setattr(b.node.store, "write", failing)
    before = b.node.store.vector.copy()
    with pytest.raises(StoreError):
        await b.admin("replication-import", envelope=document)
    before.join(claimed_by_rows)
    origin = a.node.store.origin
    assert b.node.store.vector.ranges(origin) == before.ranges(origin)

    await b.admin("replication-import", envelope=document)
    assert await tasks(b) == await tasks(a)
    assert b.node.store.vector.missing_from(opened(a, document).cursor) == {}


def changed(document, **fields):
    return msgspec.json.encode(msgspec.structs.replace(msgspec.json.decode(document, type=Envelope), **fields))


async def test_what_is_truncated_altered_or_foreign_is_refused_with_nothing_applied(pair, autojump_clock):
    a, b = pair
    await a.wait(await a.submit(input="x"))
    document = await exported(a)
    with_path = msgspec.json.decode(document) | {"inputPath": "/etc/passwd"}
    v1 = {"schema_version": "relaymesh.replication.v1", "task_deltas": []}
    wrong = {
        "no whole": document[:-10],
        "digest differs": changed(document, cluster_epoch=9),
        "another mesh|belongs to mesh": changed(document, cluster="00" * 8),
        "signed it|digest differs": changed(document, source_node_id="b"),
        "inputPath": msgspec.json.encode(with_path),
        "names rows by wall time": msgspec.json.encode(v1),
        "this release reads": msgspec.json.encode({"schema_version": "v9"}),
        "at most": b" " * ((16 << 20) + 1),
    }
    for message, data in wrong.items():
        with pytest.raises(ConfigError, match=message):
            await b.admin("replication-import", envelope=data)
    assert await tasks(b) == []


async def test_a_document_in_the_name_of_another_node_is_refused(pair, autojump_clock):
    a, b = pair
    forged = seal(
        a.node.spec.identity,
        since=VersionVector(),
        cursor=VersionVector(),
        stable=Stable(),
        complete=True,
        chunks=[],
        counts={},
        generated_at_ms=0,
        cluster_epoch=1,
        limit=1,
    )
    assert opened(b, forged).rows == 0
    envelope = msgspec.structs.replace(
        msgspec.json.decode(forged, type=Envelope), source_node_id="b", digest="", signature=b""
    )
    from node.replication import envelope as envelopes

    content = msgspec.json.encode(envelope)
    renamed = msgspec.structs.replace(
        envelope,
        digest=envelopes._digest(content),
        signature=a.node.spec.identity.sign(envelopes._DOMAIN, content),
    )
    with pytest.raises(ConfigError, match="signed it"):
        opened(b, msgspec.json.encode(renamed))


TRUSTS_A_PATH = Edit(
    "node.replication.by_hand:_merge_chunk",
    "outcomes = [tx.merge(row) for row in rows]",
    "outcomes = [tx.merge(row) for row in rows]\n"
    "    for value in [value for row in rows for value in row.values.values()]:\n"
    "        if isinstance(value, bytes) and value.startswith(b'/'):\n"
    "            __import__('pathlib').Path(value.decode()).read_bytes()",
)
"""What the predecessor did: an import that reads the file that a payload names."""


@contextmanager
def files_opened():
    """The files that this process opens in the block, by whatever way."""
    opened_files: list[str] | None = []

    def note(event, args):
        if event == "open" and opened_files is not None:
            opened_files.append(str(args[0]))

    sys.addaudithook(note)  # it stays for good, and is silent after the block
    try:
        yield opened_files
    finally:
        opened_files = None


@pytest.mark.parametrize("mutant", [False, True])
async def test_no_path_that_an_envelope_names_is_opened(pair, tmp_path, mutant, autojump_clock):
    a, b = pair
    secret = tmp_path / "secret"
    secret.write_text("not for you")
    await a.wait(await a.submit(input=str(secret)))
    document = await exported(a)

    with edited([TRUSTS_A_PATH] if mutant else []), files_opened() as touched:
        await b.admin("replication-import", envelope=document)
        await b.admin("replication-verify", envelope=document)

    assert (str(secret) in touched) == mutant
    assert mutant or touched == []
