-- description: which payload a queued step waits for
-- A step's row can be here before the large payload that it runs on, or after the only disk that had it was lost.
-- up
ALTER TABLE queue ADD COLUMN awaits TEXT;
CREATE INDEX queue_awaits ON queue (awaits) WHERE awaits IS NOT NULL;
-- down
DROP INDEX queue_awaits;
ALTER TABLE queue DROP COLUMN awaits;
