-- v1 -> v2 (compatible with v2+): Pushing again, and what becomes of old key-backup versions
CREATE TABLE push_round (
	version     TEXT NOT NULL,
	round       INTEGER NOT NULL,
	cause       TEXT NOT NULL,
	rotation_id TEXT NOT NULL,
	attempt     INTEGER NOT NULL,
	targets     TEXT NOT NULL DEFAULT '',
	plan        TEXT NOT NULL DEFAULT '',
	due         BIGINT NOT NULL,
	tries       INTEGER NOT NULL DEFAULT 0,
	ended       TEXT NOT NULL DEFAULT '',
	PRIMARY KEY (version, round)
);
-- A target that begins a new Olm session may have lost what it had: it is pushed to again, once a version and day.
CREATE TABLE new_session (
	device_id TEXT NOT NULL,
	version   TEXT NOT NULL,
	day       TEXT NOT NULL,
	PRIMARY KEY (device_id, version, day)
);
-- replaced_at is when the version that came after it was made, grace how long it is kept from then on in milliseconds
-- (negative: as the account file says), and the rotation the one that replaced it.
ALTER TABLE carry ADD COLUMN replaced_at BIGINT NOT NULL DEFAULT 0;
ALTER TABLE carry ADD COLUMN grace BIGINT NOT NULL DEFAULT -1;
ALTER TABLE carry ADD COLUMN rotation_id TEXT NOT NULL DEFAULT '';
ALTER TABLE carry ADD COLUMN attempt INTEGER NOT NULL DEFAULT 0;
ALTER TABLE carry ADD COLUMN state TEXT NOT NULL DEFAULT 'kept';
