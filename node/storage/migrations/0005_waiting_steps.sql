-- description: steps that run only with the support of their roster, and the votes of this node about their takers
-- A guarded entry is claimed only while its roster supports this node, so it must not stand in the way of others.
-- up
ALTER TABLE queue ADD COLUMN guarded INTEGER NOT NULL DEFAULT 0;
DROP INDEX queue_order;
CREATE INDEX queue_order ON queue (runnable, guarded, priority, enqueued_hlc);
-- Who wrote a step, and when, its row says.
ALTER TABLE queue DROP COLUMN fresh;
-- Whom this node voted for as the taker of a step, at the latest turn that it voted on.
CREATE TABLE votes (
    step_id TEXT PRIMARY KEY NOT NULL,
    generation INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    taker TEXT NOT NULL
) STRICT, WITHOUT ROWID;
-- down
DROP TABLE votes;
DROP INDEX queue_order;
CREATE INDEX queue_order ON queue (runnable, priority, enqueued_hlc);
ALTER TABLE queue ADD COLUMN fresh INTEGER NOT NULL DEFAULT 0;
ALTER TABLE queue DROP COLUMN guarded;
