-- description: what the replication engine keeps beside the replicated tables
-- up
CREATE TABLE meta (
    name TEXT PRIMARY KEY NOT NULL,
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;

-- An origin is spelled out once; rows and the vector name it by a small number that means nothing elsewhere.
CREATE TABLE origins (
    oid INTEGER PRIMARY KEY NOT NULL,
    node TEXT NOT NULL,
    incarnation INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX origins_name ON origins (node, incarnation);

CREATE TABLE vector (
    oid INTEGER NOT NULL,
    lo INTEGER NOT NULL,
    hi INTEGER NOT NULL,
    PRIMARY KEY (oid, lo)
) STRICT, WITHOUT ROWID;

-- Versions that were seen but are not part of the replica, see mesh/replica.py for the reasons.
CREATE TABLE quarantine (
    oid INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    table_name TEXT NOT NULL,
    namespace TEXT NOT NULL,
    key TEXT NOT NULL,
    reason TEXT NOT NULL,
    detail TEXT NOT NULL,
    hlc INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
    row BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX quarantine_dot ON quarantine (oid, seq);
CREATE INDEX quarantine_due ON quarantine (reason, hlc);

CREATE TABLE members (
    node_id TEXT PRIMARY KEY NOT NULL,
    record BLOB NOT NULL,
    status TEXT NOT NULL,
    changed_at_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
-- down
DROP TABLE members;
DROP TABLE quarantine;
DROP TABLE vector;
DROP TABLE origins;
DROP TABLE meta;
