-- v0 -> v1 (compatible with v1+): Notifications, rotations, devices, codes, the bot and the audit log
CREATE TABLE bot_lease (
	singleton  INTEGER PRIMARY KEY CHECK (singleton = 1),
	epoch      BIGINT NOT NULL,
	holder     TEXT NOT NULL,
	expires_at TIMESTAMPTZ NOT NULL
);

CREATE TABLE bot_device (
	singleton  INTEGER PRIMARY KEY CHECK (singleton = 1),
	user_id    TEXT NOT NULL,
	device_id  TEXT NOT NULL,
	created_at TIMESTAMPTZ NOT NULL
);

CREATE TABLE enrollment_code (
	id          UUID PRIMARY KEY,
	user_id     TEXT NOT NULL,
	sha256      BYTEA NOT NULL UNIQUE,
	created_at  TIMESTAMPTZ NOT NULL,
	created_by  TEXT NOT NULL,
	expires_at  TIMESTAMPTZ NOT NULL,
	wrong_tries INTEGER NOT NULL DEFAULT 0,
	burned      BOOLEAN NOT NULL DEFAULT false,
	used_by     UUID
);
CREATE INDEX enrollment_code_user ON enrollment_code (user_id);

CREATE TABLE device (
	id               UUID PRIMARY KEY,
	user_id          TEXT NOT NULL,
	device_id        TEXT NOT NULL,
	identity_key     TEXT NOT NULL,
	signing_key      TEXT NOT NULL,
	master_key       TEXT NOT NULL,
	name             TEXT NOT NULL DEFAULT '',
	software_version TEXT NOT NULL DEFAULT '',
	state            TEXT NOT NULL CHECK (state IN ('enrolled', 'needs_enrollment', 'revoked')),
	enrolled_at      TIMESTAMPTZ NOT NULL,
	last_seen        TIMESTAMPTZ,
	status           JSONB,
	UNIQUE (user_id, device_id)
);

CREATE TABLE sequence_mark (
	user_id TEXT NOT NULL,
	secret  TEXT NOT NULL,
	last    BIGINT NOT NULL,
	PRIMARY KEY (user_id, secret)
);

CREATE TABLE rotation (
	id              UUID PRIMARY KEY,
	user_id         TEXT NOT NULL,
	secret          TEXT NOT NULL,
	kms             TEXT NOT NULL,
	path            TEXT NOT NULL,
	version         TEXT NOT NULL,
	source          TEXT NOT NULL,
	state           TEXT NOT NULL,
	stage           TEXT NOT NULL DEFAULT '',
	backup_version  TEXT NOT NULL DEFAULT '',
	recovery_copy   TEXT NOT NULL DEFAULT '',
	carry_complete  BOOLEAN NOT NULL DEFAULT false,
	pushed          BOOLEAN NOT NULL DEFAULT false,
	needs_attention TEXT NOT NULL DEFAULT '',
	next_action     TEXT NOT NULL DEFAULT '',
	failure         TEXT NOT NULL DEFAULT '',
	created_at      TIMESTAMPTZ NOT NULL,
	updated_at      TIMESTAMPTZ NOT NULL,
	ended_at        TIMESTAMPTZ,
	UNIQUE (user_id, secret, kms, path, version)
);
CREATE INDEX rotation_open ON rotation (user_id) WHERE ended_at IS NULL;

CREATE TABLE attempt (
	rotation_id UUID NOT NULL REFERENCES rotation (id),
	attempt     INTEGER NOT NULL,
	device      UUID NOT NULL REFERENCES device (id),
	sequence    BIGINT NOT NULL,
	stage       TEXT NOT NULL DEFAULT '',
	created_at  TIMESTAMPTZ NOT NULL,
	sent_at     TIMESTAMPTZ,
	reported_at TIMESTAMPTZ,
	PRIMARY KEY (rotation_id, attempt)
);

CREATE TABLE report (
	id          UUID PRIMARY KEY,
	rotation_id UUID,
	device      UUID NOT NULL,
	received_at TIMESTAMPTZ NOT NULL
);

CREATE TABLE delivery (
	rotation_id UUID NOT NULL REFERENCES rotation (id),
	device_id   TEXT NOT NULL,
	outcome     TEXT NOT NULL,
	forms       TEXT NOT NULL DEFAULT '',
	reported_at TIMESTAMPTZ NOT NULL,
	PRIMARY KEY (rotation_id, device_id)
);

CREATE TABLE notification (
	source      TEXT NOT NULL,
	id          TEXT NOT NULL,
	body_sha256 BYTEA NOT NULL,
	key_id      TEXT NOT NULL,
	received_at TIMESTAMPTZ NOT NULL,
	rotation_id UUID,
	problem     TEXT NOT NULL DEFAULT '',
	PRIMARY KEY (source, id)
);

CREATE TABLE audit_event (
	id   UUID PRIMARY KEY,
	body BYTEA NOT NULL
);

CREATE TABLE audit_detail (
	event_id UUID PRIMARY KEY REFERENCES audit_event (id),
	salt     BYTEA NOT NULL,
	detail   BYTEA NOT NULL
);

CREATE FUNCTION audit_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	RAISE EXCEPTION 'the audit log is append-only: % on % is refused', TG_OP, TG_TABLE_NAME;
END
$$;

-- Row triggers are silent where no row matches, so there are statement triggers; ENABLE ALWAYS keeps them firing under
-- session_replication_role = replica.
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_event
	FOR EACH STATEMENT EXECUTE FUNCTION audit_append_only();
ALTER TABLE audit_event ENABLE ALWAYS TRIGGER append_only;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_detail
	FOR EACH STATEMENT EXECUTE FUNCTION audit_append_only();
ALTER TABLE audit_detail ENABLE ALWAYS TRIGGER append_only;

-- The log as people read it: the canonical bytes, opened.
CREATE VIEW audit_log AS
	SELECT e.id,
		to_timestamp(((convert_from(e.body, 'UTF8')::jsonb) ->> 'time')::bigint / 1000.0) AS time,
		(convert_from(e.body, 'UTF8')::jsonb) ->> 'actor' AS actor,
		(convert_from(e.body, 'UTF8')::jsonb) ->> 'action' AS action,
		(convert_from(e.body, 'UTF8')::jsonb) ->> 'subject' AS subject,
		(convert_from(e.body, 'UTF8')::jsonb) ->> 'rotation' AS rotation,
		(convert_from(e.body, 'UTF8')::jsonb) ->> 'outcome' AS outcome,
		convert_from(d.detail, 'UTF8')::jsonb AS detail
	FROM audit_event e LEFT JOIN audit_detail d ON d.event_id = e.id;
