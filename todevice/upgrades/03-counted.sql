-- v2 -> v3 (compatible with v2+): What was dropped unread is counted for the audit log
ALTER TABLE todevice_inbox ADD COLUMN counted BOOLEAN NOT NULL DEFAULT false;
UPDATE todevice_inbox SET counted = true;
CREATE INDEX todevice_inbox_dropped ON todevice_inbox (received_at) WHERE state = 'dropped' AND NOT counted;
