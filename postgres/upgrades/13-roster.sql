-- v12 -> v13 (compatible with v5+): Who must be covered, and since when each key-backup version is there
CREATE TABLE roster (
	user_id       TEXT PRIMARY KEY,
	added_at      TIMESTAMPTZ NOT NULL,
	added_by      TEXT NOT NULL,
	-- Both or neither: an exemption has a reason and an end.
	exempt_reason TEXT NOT NULL DEFAULT '',
	exempt_until  TIMESTAMPTZ,
	CHECK ((exempt_reason = '') = (exempt_until IS NULL))
);

-- The homeserver does not say when a version was created. created_at is when a managed device reported that it created it,
-- else when a status named it first, and only_seen says so.
CREATE TABLE key_version (
	user_id    TEXT NOT NULL,
	version    TEXT NOT NULL,
	public_key TEXT NOT NULL DEFAULT '',
	created_at TIMESTAMPTZ NOT NULL,
	only_seen  BOOLEAN NOT NULL,
	PRIMARY KEY (user_id, version)
);
