-- v1 -> v2 (compatible with v2+): Messages of one transaction go together
-- The /sendToDevice transaction id a message is sent under; messages with the same one are one request.
ALTER TABLE todevice_outbox ADD COLUMN request TEXT NOT NULL DEFAULT '';
UPDATE todevice_outbox SET request = id;
DROP INDEX todevice_outbox_pending;
CREATE INDEX todevice_outbox_pending ON todevice_outbox (account_id, request) WHERE state = 'pending';
