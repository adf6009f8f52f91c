-- v3 -> v4 (compatible with v1+): An admin can stop all triggers
CREATE TABLE trigger_freeze (
	singleton INTEGER PRIMARY KEY CHECK (singleton = 1),
	frozen_at TIMESTAMPTZ NOT NULL,
	frozen_by TEXT NOT NULL
);
