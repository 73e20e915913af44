-- description: delayed and expiring steps, checkpoints, holds and schedules
-- up
-- 0: never. On this node's own physical clock, as due_ms.
ALTER TABLE queue ADD COLUMN expires_ms INTEGER NOT NULL DEFAULT 0;
CREATE INDEX steps_dead ON steps (namespace, hlc) WHERE rank = 1;
CREATE INDEX steps_cancelled ON steps (namespace, hlc) WHERE rank = 2;
-- down
DROP INDEX steps_cancelled;
DROP INDEX steps_dead;
ALTER TABLE queue DROP COLUMN expires_ms;
