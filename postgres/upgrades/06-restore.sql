-- v5 -> v6 (compatible with v5+): A restored database retires the bot's device
CREATE TABLE retired_bot_device (
	device_id     TEXT PRIMARY KEY,
	retired_at    TIMESTAMPTZ NOT NULL,
	logged_out_at TIMESTAMPTZ
);
-- The managed device does not know the bot's new device yet.
ALTER TABLE device ADD COLUMN greet BOOLEAN NOT NULL DEFAULT false;
