-- v17 -> v18 (compatible with v5+): Grants to enroll without a code, and devices that ask again after an identity reset
CREATE TABLE enrollment_grant (
	id         UUID PRIMARY KEY,
	users      TEXT NOT NULL,
	-- The name of a proof of the configuration.
	proof      TEXT NOT NULL,
	max        INTEGER NOT NULL CHECK (max > 0),
	used       INTEGER NOT NULL DEFAULT 0 CHECK (used BETWEEN 0 AND max),
	created_at TIMESTAMPTZ NOT NULL,
	created_by TEXT NOT NULL,
	expires_at TIMESTAMPTZ NOT NULL,
	revoked_at TIMESTAMPTZ,
	revoked_by TEXT NOT NULL DEFAULT ''
);

-- Wrong proofs of a user, for each grant that he might have enrolled by; five bar him from it.
CREATE TABLE grant_try (
	grant_id UUID NOT NULL REFERENCES enrollment_grant (id),
	user_id  TEXT NOT NULL,
	wrong    INTEGER NOT NULL,
	PRIMARY KEY (grant_id, user_id)
);

-- Authentic proofs that were shown, by the SHA-256 of what was signed: each is the first device's that showed it.
CREATE TABLE enrollment_proof (
	sha256       BYTEA PRIMARY KEY,
	user_id      TEXT NOT NULL,
	identity_key TEXT NOT NULL,
	seen_at      TIMESTAMPTZ NOT NULL,
	expires_at   TIMESTAMPTZ NOT NULL
);
CREATE INDEX enrollment_proof_expiry ON enrollment_proof (expires_at);

ALTER TABLE device ADD COLUMN grant_id UUID REFERENCES enrollment_grant (id);

-- A device asks again after its user's identity was reset; an admin releases or rejects it. The bot settles what was decided:
-- it looks whether the identity is still the one that was released, and tells the device.
CREATE TABLE reenrollment (
	id             UUID PRIMARY KEY,
	device_id      UUID NOT NULL REFERENCES device (id),
	old_master_key TEXT NOT NULL,
	new_master_key TEXT NOT NULL,
	asked_at       TIMESTAMPTZ NOT NULL,
	state          TEXT NOT NULL CHECK (state IN ('waiting', 'released', 'rejected', 'enrolled', 'replaced', 'void')),
	decided_at     TIMESTAMPTZ,
	decided_by     TEXT NOT NULL DEFAULT '',
	settled        BOOLEAN NOT NULL DEFAULT false
);
CREATE UNIQUE INDEX reenrollment_waiting ON reenrollment (device_id) WHERE state IN ('waiting', 'released');
CREATE INDEX reenrollment_unsettled ON reenrollment (id) WHERE NOT settled AND state IN ('released', 'rejected');
