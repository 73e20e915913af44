"""Durable replicated rows: one SQLite database, one writer, whole batches in one commit.

- `store` is what the rest of a node uses: it queues requests, and wakes their callers after the commit
- `writer` runs batches on the writing connection; `transaction` is what a request may do inside one
- `reader` answers queries and cuts pulls into chunks; `origins` knows who stamps rows, and when that must change
- `schema` turns table declarations into SQL, `migrate` runs the numbered migrations, `database` opens connections
"""
