-- v19 -> v20 (compatible with v5+): Who asked for a campaign, whatever he is called
-- Of a person it is his issuer and subject (audit.Actor.Identity): the name that is shown beside them may be his own to change.
ALTER TABLE campaign
	ADD COLUMN started_key TEXT NOT NULL DEFAULT '',
	ADD COLUMN asked_key   TEXT NOT NULL DEFAULT '';
UPDATE campaign SET started_key = started_by, asked_key = asked_by;
