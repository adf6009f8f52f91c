-- v7 -> v8 (compatible with v5+): The audit log's Merkle tree with its checkpoints, and redaction of details
CREATE TABLE audit_pending (
	event_id UUID PRIMARY KEY
);

-- Whoever appends an event queues it for sealing, whether he knows of it or not: the writer has no right to the queue. The
-- function runs as the owner and so names everything in full; SET search_path would cost as much as the insert itself.
CREATE FUNCTION audit_enqueue() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
	INSERT INTO public.audit_pending (event_id) VALUES (NEW.id);
	RETURN NULL;
END
$$;
CREATE TRIGGER enqueue AFTER INSERT ON audit_event FOR EACH ROW EXECUTE FUNCTION audit_enqueue();
ALTER TABLE audit_event ENABLE ALWAYS TRIGGER enqueue;
INSERT INTO audit_pending SELECT id FROM audit_event;

-- Level 0 of the tree. Indexes have no gaps.
CREATE TABLE audit_leaf (
	leaf_index BIGINT PRIMARY KEY CHECK (leaf_index >= 0),
	event_id   UUID NOT NULL UNIQUE REFERENCES audit_event (id),
	leaf_hash  BYTEA NOT NULL CHECK (octet_length(leaf_hash) = 32)
);
-- The complete nodes above: node n of a level covers the leaves from n * 2^level on.
CREATE TABLE audit_node (
	level INTEGER NOT NULL CHECK (level > 0),
	n     BIGINT NOT NULL CHECK (n >= 0),
	hash  BYTEA NOT NULL CHECK (octet_length(hash) = 32),
	PRIMARY KEY (level, n)
);
CREATE TABLE audit_checkpoint (
	epoch     INTEGER NOT NULL CHECK (epoch > 0),
	tree_size BIGINT NOT NULL CHECK (tree_size > 0),
	root_hash BYTEA NOT NULL CHECK (octet_length(root_hash) = 32),
	note      TEXT NOT NULL,
	signed_at TIMESTAMPTZ NOT NULL,
	PRIMARY KEY (epoch, tree_size)
);
-- Epochs after the first, each with the event that names the gap before it.
CREATE TABLE audit_epoch (
	epoch      INTEGER PRIMARY KEY CHECK (epoch > 1),
	event_id   UUID NOT NULL UNIQUE REFERENCES audit_event (id),
	started_at TIMESTAMPTZ NOT NULL
);
-- The verifier keys that sign, from an event on; the newest row counts.
CREATE TABLE audit_signing_keys (
	event_id UUID PRIMARY KEY REFERENCES audit_event (id),
	keys     TEXT NOT NULL
);

-- A detail may go where its redaction was recorded, and only there.
CREATE TABLE audit_redaction (
	event_id     UUID PRIMARY KEY REFERENCES audit_event (id),
	redaction_id UUID NOT NULL REFERENCES audit_event (id)
);
DROP TRIGGER append_only ON audit_detail;
CREATE TRIGGER append_only BEFORE UPDATE OR TRUNCATE ON audit_detail
	FOR EACH STATEMENT EXECUTE FUNCTION audit_append_only();
ALTER TABLE audit_detail ENABLE ALWAYS TRIGGER append_only;
CREATE FUNCTION audit_only_redacted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF NOT EXISTS (SELECT 1 FROM audit_redaction WHERE event_id = OLD.event_id) THEN
		RAISE EXCEPTION 'the audit log is append-only: a detail is deleted by a redaction alone (keyherald audit redact)';
	END IF;
	RETURN OLD;
END
$$;
CREATE TRIGGER only_redacted BEFORE DELETE ON audit_detail FOR EACH ROW EXECUTE FUNCTION audit_only_redacted();
ALTER TABLE audit_detail ENABLE ALWAYS TRIGGER only_redacted;

DO $$
DECLARE name TEXT;
BEGIN
	FOREACH name IN ARRAY ARRAY['audit_leaf', 'audit_node', 'audit_checkpoint', 'audit_epoch', 'audit_signing_keys', 'audit_redaction'] LOOP
		EXECUTE format('CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION audit_append_only()', name);
		EXECUTE format('ALTER TABLE %I ENABLE ALWAYS TRIGGER append_only', name);
	END LOOP;
END
$$;

-- A rotation is held by a storm of changes, or because the audit log has not been signed for a day.
ALTER TABLE rotation ADD COLUMN held_for TEXT NOT NULL DEFAULT '';
ALTER TABLE rotation ADD COLUMN reason TEXT NOT NULL DEFAULT '';
UPDATE rotation SET held_for = 'storm' WHERE held;
