-- v18 -> v19 (compatible with v5+): Who may call the API with a token, and answers to writes that may come again
CREATE TABLE api_token (
	id           UUID PRIMARY KEY,
	-- For good: the audit log names whoever acted by it.
	name         TEXT NOT NULL UNIQUE,
	sha256       BYTEA NOT NULL UNIQUE,
	role         TEXT NOT NULL,
	created_at   TIMESTAMPTZ NOT NULL,
	created_by   TEXT NOT NULL,
	expires_at   TIMESTAMPTZ NOT NULL,
	revoked_at   TIMESTAMPTZ,
	last_used_at TIMESTAMPTZ
);

-- A row is written in the transaction of the effect that it answers for. body is null where the answer had a secret.
CREATE TABLE api_answer (
	caller     TEXT NOT NULL,
	key        TEXT NOT NULL,
	request    BYTEA NOT NULL,
	status     INTEGER NOT NULL,
	body       BYTEA,
	created_at TIMESTAMPTZ NOT NULL,
	PRIMARY KEY (caller, key)
);
CREATE INDEX api_answer_created ON api_answer (created_at);

-- Lists of users, and of a user's rotations, in pages.
CREATE INDEX rotation_user ON rotation (user_id, id);
