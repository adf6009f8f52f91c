-- v1 -> v2 (compatible with v1+): When a revoked device was told
ALTER TABLE device ADD COLUMN revocation_told_at TIMESTAMPTZ;
