-- v3 -> v4 (compatible with v3+): What the recipient could not read is encrypted anew
-- The content, where it holds no secret and may be needed again: see Outgoing.Again.
ALTER TABLE todevice_outbox ADD COLUMN again TEXT NOT NULL DEFAULT '';
CREATE INDEX todevice_outbox_again ON todevice_outbox (account_id, created_at) WHERE again <> '';
