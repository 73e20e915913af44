"""The store as its users see it. Each test runs a real SQLite file in a temporary folder."""

from __future__ import annotations

import pytest
import trio

from mesh.errors import ConflictError, LimitError, StoreError, UnavailableError


async def test_written_rows_are_read_back_and_told_to_callbacks(world):
    async with world.opened() as store:
        commits = []
        store.on_commit(commits.append)

        row = await store.write(lambda tx: tx.put("notes", "default", "k", {"text": "hello", "size": 3, "body": b"\0"}))
        read = await store.read(lambda reader: reader.get("notes", "default", "k"))

        assert read == row
        assert (row.node, row.origin, row.seq) == ("node-a", store.origin, 1)
        assert commits[0].requests == ((row,),)
        assert [(change.before, change.after, change.local) for change in commits[0].changes] == [(None, row, True)]
        assert store.vector.ranges(store.origin) == [(1, 1)]
