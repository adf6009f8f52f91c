-- v16 -> v17 (compatible with v5+): Campaigns, their users, who approved them, and how fast the homeserver is
CREATE TABLE campaign (
	id              UUID PRIMARY KEY,
	-- What makes a repeated start the same one; request_hash is of what was asked for with it.
	idempotency_key TEXT UNIQUE,
	request_hash    TEXT NOT NULL,
	kind            TEXT NOT NULL,
	parameters      JSONB NOT NULL,
	-- Of users and parameters: what an approval is for.
	hash            TEXT NOT NULL,
	state           TEXT NOT NULL,
	state_cause     TEXT NOT NULL DEFAULT '',
	-- From 1; 0 before the first.
	wave            INTEGER NOT NULL DEFAULT 0,
	users           INTEGER NOT NULL,
	started_by      TEXT NOT NULL,
	created_at      TIMESTAMPTZ NOT NULL,
	-- Whether it needs approval, since when and by whom that is asked for, and when the one that stands was given.
	needs_approval  BOOLEAN NOT NULL,
	asked_at        TIMESTAMPTZ NOT NULL,
	asked_by        TEXT NOT NULL,
	approved_at     TIMESTAMPTZ,
	begun_at        TIMESTAMPTZ,
	paused_at       TIMESTAMPTZ,
	ended_at        TIMESTAMPTZ,
	-- When the last user of the running wave began, and until when the rate is used up.
	wave_opened_at  TIMESTAMPTZ,
	credit_at       TIMESTAMPTZ
);
CREATE INDEX campaign_open ON campaign (id) WHERE ended_at IS NULL;

CREATE TABLE campaign_wave (
	campaign   UUID NOT NULL REFERENCES campaign (id),
	wave       INTEGER NOT NULL,
	percent    INTEGER NOT NULL,
	users      INTEGER NOT NULL,
	started_at TIMESTAMPTZ,
	passed_at  TIMESTAMPTZ,
	PRIMARY KEY (campaign, wave)
);

CREATE TABLE campaign_user (
	campaign    UUID NOT NULL REFERENCES campaign (id),
	user_id     TEXT NOT NULL,
	wave        INTEGER NOT NULL,
	turn        INTEGER NOT NULL,
	state       TEXT NOT NULL,
	-- Without a reference: reading what became of it must not wait for whoever has it locked.
	rotation    UUID,
	-- The rotation was there before the campaign came to him: it is followed and never cancelled.
	joined      BOOLEAN NOT NULL DEFAULT false,
	cause       TEXT NOT NULL DEFAULT '',
	next_action TEXT NOT NULL DEFAULT '',
	begun_at    TIMESTAMPTZ,
	settled_at  TIMESTAMPTZ,
	-- The rotation's updated_at when it was read last.
	read_at     TIMESTAMPTZ,
	PRIMARY KEY (campaign, user_id)
);
CREATE INDEX campaign_user_turn ON campaign_user (campaign, turn) WHERE state = 'pending';
CREATE INDEX campaign_user_open ON campaign_user (campaign, rotation) WHERE state IN ('waiting', 'working', 'needs_attention', 'failed', 'cancelled');
CREATE INDEX campaign_user_state ON campaign_user (campaign, state, user_id);
CREATE INDEX campaign_user_user ON campaign_user (user_id);

CREATE TABLE campaign_approval (
	id         UUID PRIMARY KEY,
	campaign   UUID NOT NULL REFERENCES campaign (id),
	hash       TEXT NOT NULL,
	approver   TEXT NOT NULL,
	given_at   TIMESTAMPTZ NOT NULL,
	expires_at TIMESTAMPTZ NOT NULL,
	voided_at  TIMESTAMPTZ,
	void_cause TEXT NOT NULL DEFAULT ''
);
CREATE INDEX campaign_approval_campaign ON campaign_approval (campaign, given_at);

-- How long the homeserver takes for a message of the bot's: a mean in which the newest counts most, by whoever holds the bot.
CREATE TABLE homeserver_latency (
	singleton   INTEGER PRIMARY KEY CHECK (singleton = 1),
	mean_us     BIGINT NOT NULL,
	measured_at TIMESTAMPTZ NOT NULL
);
