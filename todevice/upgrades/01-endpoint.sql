-- v0 -> v1 (compatible with v1+): The account, inbox and outbox of an endpoint
CREATE TABLE todevice_account (
	account_id  TEXT PRIMARY KEY,
	sync_token  TEXT NOT NULL DEFAULT '',
	-- The device's own keys as the homeserver has them, with every signature: sent along inside each Olm message.
	device_keys TEXT NOT NULL DEFAULT '',
	published   BOOLEAN NOT NULL DEFAULT false
);

CREATE TABLE todevice_inbox (
	id          TEXT PRIMARY KEY,
	account_id  TEXT NOT NULL,
	sender      TEXT NOT NULL,
	type        TEXT NOT NULL,
	content     TEXT NOT NULL,
	received_at BIGINT NOT NULL,
	state       TEXT NOT NULL DEFAULT 'pending',
	reason      TEXT NOT NULL DEFAULT '',
	tries       INTEGER NOT NULL DEFAULT 0,
	next_try    BIGINT NOT NULL DEFAULT 0
);
CREATE INDEX todevice_inbox_pending ON todevice_inbox (account_id, id) WHERE state = 'pending';

CREATE TABLE todevice_outbox (
	id               TEXT PRIMARY KEY,
	account_id       TEXT NOT NULL,
	key              TEXT NOT NULL,
	recipient_user   TEXT NOT NULL,
	recipient_device TEXT NOT NULL,
	type             TEXT NOT NULL,
	content          TEXT NOT NULL,
	state            TEXT NOT NULL DEFAULT 'pending',
	error            TEXT NOT NULL DEFAULT '',
	created_at       BIGINT NOT NULL,
	sent_at          BIGINT,
	tries            INTEGER NOT NULL DEFAULT 0,
	next_try         BIGINT NOT NULL DEFAULT 0,
	UNIQUE (account_id, key)
);
CREATE INDEX todevice_outbox_pending ON todevice_outbox (account_id, id) WHERE state = 'pending';
