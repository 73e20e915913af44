-- description: delayed and expiring steps, checkpoints, holds and schedules
-- up
-- 0: never. On this node's own physical clock, as due_ms.
ALTER TABLE queue ADD COLUMN expires_ms INTEGER NOT NULL DEFAULT 0;
-- `runnable` says more than yes and no from here on: see the states of node/work/work_queue.py. The table is made anew
-- at each start. A claim goes round the namespaces of its class, and takes the oldest of the next one.
DROP INDEX queue_order;
CREATE INDEX queue_order ON queue (runnable, guarded, priority, namespace, enqueued_hlc);
CREATE INDEX queue_aged ON queue (enqueued_hlc) WHERE runnable = 1 AND guarded = 0 AND priority = 2;
CREATE INDEX queue_due ON queue (due_ms) WHERE runnable = 2;
CREATE INDEX queue_expiring ON queue (expires_ms) WHERE expires_ms <> 0;
CREATE INDEX steps_dead ON steps (namespace, hlc) WHERE rank = 1;
CREATE INDEX steps_cancelled ON steps (namespace, hlc) WHERE rank = 2;
-- down
DROP INDEX steps_cancelled;
DROP INDEX steps_dead;
DROP INDEX queue_expiring;
DROP INDEX queue_due;
DROP INDEX queue_aged;
DROP INDEX queue_order;
CREATE INDEX queue_order ON queue (runnable, guarded, priority, enqueued_hlc);
ALTER TABLE queue DROP COLUMN expires_ms;
