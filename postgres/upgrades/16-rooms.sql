-- v15 -> v16 (compatible with v5+): Notices in Matrix, and the rooms that they go to
CREATE TABLE notice_room (
	-- A user id, or 'admins' for the admin room.
	audience   TEXT PRIMARY KEY,
	room_id    TEXT NOT NULL DEFAULT '',
	-- When making it was begun, as long as nobody knows what came of that: a room is not made twice.
	tried_at   TIMESTAMPTZ,
	created_at TIMESTAMPTZ,
	invites    INTEGER NOT NULL DEFAULT 0,
	invited_at TIMESTAMPTZ
);

-- Who was invited to the admin room, so that who left it is not invited again.
CREATE TABLE notice_admin (
	user_id    TEXT PRIMARY KEY,
	invited_at TIMESTAMPTZ NOT NULL
);

-- The id is the transaction id at the homeserver, and stands in the message. The texts go when it is sent.
CREATE TABLE notice (
	id          UUID PRIMARY KEY,
	key         TEXT NOT NULL UNIQUE,
	audience    TEXT NOT NULL,
	rotation_id UUID,
	plain       TEXT NOT NULL,
	html        TEXT NOT NULL,
	created_at  TIMESTAMPTZ NOT NULL,
	state       TEXT NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'sent', 'refused')),
	tries       INTEGER NOT NULL DEFAULT 0,
	next_try    TIMESTAMPTZ NOT NULL,
	ended_at    TIMESTAMPTZ,
	error       TEXT NOT NULL DEFAULT ''
);
CREATE INDEX notice_pending ON notice (next_try) WHERE state = 'pending';
CREATE INDEX notice_audience ON notice (audience, created_at);

-- How things stood when the admin room was told of them last.
CREATE TABLE notice_digest (
	singleton INTEGER PRIMARY KEY CHECK (singleton = 1),
	status    JSONB NOT NULL,
	told_at   TIMESTAMPTZ NOT NULL
);

-- What of a rotation its user was told last, or was not to be told; what there is to tell is the same expression in
-- postgres/notices.go.
ALTER TABLE rotation ADD COLUMN notice_told TEXT NOT NULL DEFAULT '';
UPDATE rotation SET notice_told = CASE WHEN ended_at IS NULL THEN needs_attention WHEN state IN ('done', 'failed', 'timed_out') THEN state ELSE '' END;
CREATE INDEX rotation_untold ON rotation (updated_at)
	WHERE CASE WHEN ended_at IS NULL THEN needs_attention WHEN state IN ('done', 'failed', 'timed_out') THEN state ELSE '' END NOT IN ('', notice_told);
