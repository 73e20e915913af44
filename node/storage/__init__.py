"""Durable replicated rows: one SQLite database, one writer, whole batches in one commit.

- `store` is what the rest of a node uses; `committer` queues requests and wakes their callers after the commit
- `writer` runs batches on the writing connection; `transaction` is what a request may do inside one
- `reader` answers queries and cuts pulls into chunks; `vector_table` and `origins` keep what was seen, and who we are
- `schema` turns table declarations into SQL, `migrate` runs the numbered migrations, `database` opens connections
"""
