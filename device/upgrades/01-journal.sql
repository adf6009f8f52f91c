-- v0 -> v1 (compatible with v1+): State, sealed values, the journal and received secrets
CREATE TABLE state (
	name  TEXT PRIMARY KEY,
	value TEXT NOT NULL
);
CREATE TABLE sealed (
	name  TEXT PRIMARY KEY,
	value BLOB NOT NULL
);
CREATE TABLE journal (
	rotation_id TEXT PRIMARY KEY,
	attempt     INTEGER NOT NULL,
	trigger     TEXT NOT NULL,
	kms_version TEXT NOT NULL DEFAULT '',
	stage       TEXT NOT NULL,
	old_version TEXT NOT NULL DEFAULT '',
	old_seen    BOOLEAN NOT NULL DEFAULT false,
	new_version TEXT NOT NULL DEFAULT '',
	public_key  TEXT NOT NULL DEFAULT '',
	plan        TEXT NOT NULL DEFAULT '',
	carried     BOOLEAN NOT NULL DEFAULT false,
	last_error  TEXT NOT NULL DEFAULT '',
	tries       INTEGER NOT NULL DEFAULT 0,
	next_try    BIGINT NOT NULL DEFAULT 0,
	ended       BOOLEAN NOT NULL DEFAULT false,
	updated_at  BIGINT NOT NULL
);
CREATE TABLE carry (
	version  TEXT PRIMARY KEY,
	finished BOOLEAN NOT NULL DEFAULT false
);
CREATE TABLE received (
	id     INTEGER PRIMARY KEY,
	name   TEXT NOT NULL,
	sender TEXT NOT NULL,
	value  BLOB NOT NULL
);
