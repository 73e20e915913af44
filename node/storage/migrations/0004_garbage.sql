-- description: what the replication engine needs to forget deleted rows
-- The index of a child table by its parent is created from its declaration; those that did its work before go.
-- up
-- The last vector that a member told. It counts for a member that cannot be asked: a vector only grows.
CREATE TABLE replicas (
    node_id TEXT PRIMARY KEY NOT NULL,
    vector BLOB NOT NULL
) STRICT, WITHOUT ROWID;

-- Members that nobody waits for any more. One that comes back counts again.
CREATE TABLE pruned (
    node_id TEXT PRIMARY KEY NOT NULL,
    at_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
DROP INDEX steps_by_task;
DROP INDEX history_by_task;
-- down
CREATE INDEX history_by_task ON history (namespace, task_id);
CREATE INDEX steps_by_task ON steps (namespace, task_id);
DROP TABLE pruned;
DROP TABLE replicas;
