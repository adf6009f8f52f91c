-- v10 -> v11 (compatible with v5+): Rotations whose key the device makes, devices that get no key, and asking for a push
ALTER TABLE rotation ADD COLUMN action TEXT NOT NULL DEFAULT 'push';
ALTER TABLE rotation ADD COLUMN old_backup_grace BIGINT;
ALTER TABLE rotation ADD COLUMN replace_recovery BOOLEAN NOT NULL DEFAULT false;
ALTER TABLE rotation ADD COLUMN repeat_asked_at TIMESTAMPTZ;
ALTER TABLE rotation ADD COLUMN repeat_told_at TIMESTAMPTZ;
CREATE INDEX rotation_repeat ON rotation (id) WHERE repeat_asked_at IS NOT NULL AND repeat_told_at IS NULL;

-- Devices of a user that get no key by any push, until that is lifted.
CREATE TABLE excluded_device (
	user_id     TEXT NOT NULL,
	device_id   TEXT NOT NULL,
	excluded_at TIMESTAMPTZ NOT NULL,
	excluded_by TEXT NOT NULL,
	PRIMARY KEY (user_id, device_id)
);
