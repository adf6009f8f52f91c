-- v2 -> v3 (compatible with v1+): When a device was told that its attempt was cancelled
ALTER TABLE attempt ADD COLUMN cancel_told_at TIMESTAMPTZ;
