-- v8 -> v9 (compatible with v5+): What an auditor sees, and statuses that are audit events only where they are news
ALTER TABLE device ADD COLUMN status_told JSONB;
ALTER TABLE device ADD COLUMN status_told_at TIMESTAMPTZ;
ALTER TABLE report ADD COLUMN news BOOLEAN NOT NULL DEFAULT false;
UPDATE report SET news = true WHERE rotation_id IS NULL;
