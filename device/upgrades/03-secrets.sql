-- v2 -> v3 (compatible with v3+): Requests for secrets in both directions, secrets that wait for a person, acts to report
-- What the device did with its user's secrets beside the rotations, until a status carries it to the server.
CREATE TABLE act (
	id      INTEGER PRIMARY KEY,
	content TEXT NOT NULL
);
-- m.secret.request of the user's other devices. A request is answered once, or refused once.
CREATE TABLE asked (
	device_id   TEXT NOT NULL,
	request_id  TEXT NOT NULL,
	name        TEXT NOT NULL,
	-- open, answered, refused or cancelled
	state       TEXT NOT NULL,
	reason      TEXT NOT NULL DEFAULT '',
	-- Cross-signed when it asked: the others share one limit, since a homeserver can invent as many as it likes.
	trusted     BOOLEAN NOT NULL,
	received_at BIGINT NOT NULL,
	PRIMARY KEY (device_id, request_id)
);
CREATE INDEX asked_open ON asked (state) WHERE state = 'open';
CREATE INDEX asked_recently ON asked (received_at);
-- Our own m.secret.request. public_key is what the answer must derive; devices, a JSON list, is empty until it is known
-- whom to ask, and sent says that the homeserver has the request.
CREATE TABLE asking (
	request_id TEXT PRIMARY KEY,
	name       TEXT NOT NULL,
	public_key TEXT NOT NULL,
	devices    TEXT NOT NULL DEFAULT '',
	-- open takes answers, over has to be cancelled at the devices it went to, closed is history
	state      TEXT NOT NULL,
	made_at    BIGINT NOT NULL,
	sent       BOOLEAN NOT NULL DEFAULT false,
	next_try   BIGINT NOT NULL DEFAULT 0
);
CREATE INDEX asking_under_way ON asking (state) WHERE state <> 'closed';
-- new is compared by the device itself, parked waits for a person.
ALTER TABLE received ADD COLUMN state TEXT NOT NULL DEFAULT 'new';
-- Of the request that it answers; empty for what came unasked.
ALTER TABLE received ADD COLUMN request_id TEXT NOT NULL DEFAULT '';
ALTER TABLE received ADD COLUMN received_at BIGINT NOT NULL DEFAULT 0;
