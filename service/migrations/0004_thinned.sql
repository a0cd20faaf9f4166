-- Jobs whose points were thinned out, long after their end. A cursor before `seq` misses events that are gone.
CREATE TABLE thinned (
    job_id TEXT NOT NULL PRIMARY KEY,
    seq    INTEGER NOT NULL  -- the newest event that is gone; 0 where there was nothing to thin
) WITHOUT ROWID;
CREATE INDEX thinned_by_seq ON thinned (seq);
