-- description: the task runtime's local queue and indexes
-- The replicated tables of node/work/tables.py are created from their declarations; here is what only this node needs.
-- up
CREATE TABLE queue (
    step_id TEXT PRIMARY KEY NOT NULL,
    namespace TEXT NOT NULL,
    agent TEXT NOT NULL,
    priority INTEGER NOT NULL,
    runnable INTEGER NOT NULL,
    due_ms INTEGER NOT NULL,
    enqueued_hlc INTEGER NOT NULL,
    fresh INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX queue_order ON queue (runnable, priority, enqueued_hlc);
CREATE INDEX tasks_by_age ON tasks (namespace, created_hlc);
CREATE INDEX steps_by_task ON steps (namespace, task_id);
CREATE INDEX steps_open_by_owner ON steps (owner) WHERE rank = 0;
CREATE INDEX history_by_task ON history (namespace, task_id);
CREATE INDEX history_by_age ON history (namespace, hlc);
-- down
DROP INDEX history_by_age;
DROP INDEX history_by_task;
DROP INDEX steps_open_by_owner;
DROP INDEX steps_by_task;
DROP INDEX tasks_by_age;
DROP TABLE queue;
