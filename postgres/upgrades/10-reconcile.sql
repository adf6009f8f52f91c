-- v9 -> v10 (compatible with v5+): Which version of each user's key was seen in the KMS when it was last looked at
CREATE TABLE reconciled (
	user_id TEXT NOT NULL,
	secret  TEXT NOT NULL,
	kms     TEXT NOT NULL,
	path    TEXT NOT NULL,
	version TEXT NOT NULL,
	seen_at TIMESTAMPTZ NOT NULL,
	PRIMARY KEY (user_id, secret, kms, path)
);
