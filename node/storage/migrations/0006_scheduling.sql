-- description: delayed and expiring steps, checkpoints, holds and schedules
-- up
-- 0: never. On this node's own physical clock, as due_ms.
ALTER TABLE queue ADD COLUMN expires_ms INTEGER NOT NULL DEFAULT 0;
-- down
ALTER TABLE queue DROP COLUMN expires_ms;
