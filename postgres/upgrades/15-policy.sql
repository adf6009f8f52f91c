-- v14 -> v15 (compatible with v5+): The company's policies, and what they asked for
CREATE TABLE policy_version (
	version    BIGINT PRIMARY KEY,
	-- As it was hashed, byte by byte, so not JSONB.
	document   TEXT NOT NULL,
	sha256     BYTEA NOT NULL,
	created_at TIMESTAMPTZ NOT NULL,
	created_by TEXT NOT NULL,
	reason     TEXT NOT NULL
);

-- What a policy did about a user's key-backup version: it asks once for a successor, and says once that it is overdue.
CREATE TABLE policy_key (
	user_id     TEXT NOT NULL,
	version     TEXT NOT NULL,
	rotation_id UUID,
	cause       TEXT NOT NULL DEFAULT '',
	asked_at    TIMESTAMPTZ,
	overdue_at  TIMESTAMPTZ,
	PRIMARY KEY (user_id, version)
);
CREATE INDEX policy_key_asked ON policy_key (asked_at) WHERE asked_at IS NOT NULL;
