-- v13 -> v14 (compatible with v5+): When a device last sent a status, and the roster as the log tells of it
-- last_seen moves with every report; what a user's current key-backup version is, the newest status says.
ALTER TABLE device ADD COLUMN status_at TIMESTAMPTZ;
UPDATE device SET status_at = last_seen WHERE status IS NOT NULL;
INSERT INTO key_version (user_id, version, public_key, created_at, only_seen)
	SELECT user_id, status ->> 'backup_version', COALESCE(min(status ->> 'public_key'), ''), min(COALESCE(status_told_at, last_seen)), true
	FROM device WHERE COALESCE(status ->> 'backup_version', '') <> '' AND last_seen IS NOT NULL GROUP BY 1, 2
	ON CONFLICT DO NOTHING;

-- The newest rotation that says something of its user's key.
CREATE INDEX rotation_last ON rotation (user_id, id DESC) WHERE state NOT IN ('superseded', 'cancelled');

-- Who was on the roster at a time. An exemption counts from when its user was last added, and ends by itself.
CREATE FUNCTION auditor.roster_at(moment TIMESTAMPTZ) RETURNS TABLE (user_id TEXT, since TIMESTAMPTZ, exempt_reason TEXT, exempt_until TIMESTAMPTZ) LANGUAGE sql STABLE AS $$
	-- Each event is opened once, and its detail only if it is one of these: opening is what costs (OFFSET 0 keeps it apart).
	WITH told AS MATERIALIZED (
		SELECT id, time, body ->> 'action' AS action, body ->> 'subject' AS subject, public.audit_json(raw) AS detail FROM (
			SELECT e.id, public.audit_time(e.body) AS time, public.audit_json(e.body) AS body, d.detail AS raw FROM public.audit_event e LEFT JOIN public.audit_detail d ON d.event_id = e.id
			WHERE public.audit_notable(e.body) AND (position('roster.'::bytea IN e.body) > 0 OR position('\x5c75'::bytea IN e.body) > 0) AND public.audit_time(e.body) <= moment OFFSET 0) opened
		WHERE body ->> 'action' LIKE 'roster.%' AND body ->> 'outcome' = 'accepted'
	), membership AS (
		SELECT DISTINCT ON (subject) subject, id, time, action FROM told WHERE action IN ('roster.user_added', 'roster.user_left') ORDER BY subject, id DESC
	), exemptions AS (
		SELECT DISTINCT ON (subject) subject, id, action, COALESCE(detail ->> 'reason', '(redacted)') AS reason, to_timestamp((detail ->> 'until')::bigint / 1000.0) AS until
		FROM told WHERE action IN ('roster.exempted', 'roster.exemption_ended') ORDER BY subject, id DESC
	)
	SELECT m.subject, m.time, e.reason, e.until
	FROM membership m LEFT JOIN exemptions e ON e.subject = m.subject AND e.id > m.id AND e.action = 'roster.exempted' AND e.until > moment
	WHERE m.action = 'roster.user_added' ORDER BY m.subject
$$;
COMMENT ON FUNCTION auditor.roster_at IS 'Each user who was on the roster at a time, since when, and whether he was exempt.';

-- What the rules of docs/enforcement.md ask, as the log says it: each user of the roster of that time. A status that says
-- nothing new is told once a day.
CREATE FUNCTION auditor.coverage_at(moment TIMESTAMPTZ) RETURNS TABLE (user_id TEXT, exempt_reason TEXT, exempt_until TIMESTAMPTZ, enrolled BIGINT, needs_enrollment BIGINT, revoked BIGINT,
	status_at TIMESTAMPTZ, backup_version TEXT, holds_key BOOLEAN, drift TEXT, key_since TIMESTAMPTZ, only_seen BOOLEAN, rotation TEXT, state TEXT, held_for TEXT, needs_attention TEXT, failure TEXT)
	LANGUAGE sql STABLE AS $$
	WITH told AS MATERIALIZED (
		SELECT id, time, body ->> 'actor' AS actor, body ->> 'action' AS action, body ->> 'subject' AS subject, body ->> 'outcome' AS outcome, rotation, public.audit_json(raw) AS detail FROM (
			SELECT e.id, public.audit_time(e.body) AS time, public.audit_rotation(e.body) AS rotation, public.audit_json(e.body) AS body, d.detail AS raw
			FROM public.audit_event e LEFT JOIN public.audit_detail d ON d.event_id = e.id WHERE public.audit_time(e.body) <= moment OFFSET 0) opened
		WHERE body ->> 'action' IN ('device.enrolled', 'device.needs_enrollment', 'device.store_went_backwards', 'device.revoked', 'status.reported', 'drift.reported', 'progress.reported',
			'rotation.held', 'rotation.failed')
	), devices AS MATERIALIZED (
		SELECT DISTINCT ON (subject) subject AS device, regexp_replace(subject, '/[^/]*$', '') AS user_id, action FROM told
		WHERE action LIKE 'device.%' AND (action <> 'device.revoked' OR outcome = 'accepted') ORDER BY subject, id DESC
	), counts AS (
		SELECT d.user_id, COUNT(*) FILTER (WHERE action = 'device.enrolled') AS enrolled, COUNT(*) FILTER (WHERE action IN ('device.needs_enrollment', 'device.store_went_backwards')) AS needs_enrollment,
			COUNT(*) FILTER (WHERE action = 'device.revoked') AS revoked
		FROM devices d GROUP BY d.user_id
	), statuses AS (
		SELECT DISTINCT ON (t.subject) t.subject AS user_id, t.time, COALESCE(t.detail ->> 'backup_version', '') AS backup_version, COALESCE(t.detail ->> 'holds_key' = 'true', false) AS holds_key, COALESCE(t.detail ->> 'drift', '') AS drift
		FROM told t JOIN devices d ON d.device = t.actor AND d.action = 'device.enrolled' WHERE t.action IN ('status.reported', 'drift.reported') ORDER BY t.subject, t.id DESC
	), versions AS (
		SELECT subject AS user_id, detail ->> 'backup_version' AS version, MIN(time) AS seen, MIN(time) FILTER (WHERE action = 'progress.reported' AND detail ->> 'created' = 'true') AS created
		FROM told WHERE action IN ('status.reported', 'drift.reported') OR action = 'progress.reported' AND detail ->> 'stage' = 'backup_created' GROUP BY 1, 2
	)
	SELECT r.user_id, COALESCE(r.exempt_reason, ''), r.exempt_until, COALESCE(c.enrolled, 0), COALESCE(c.needs_enrollment, 0), COALESCE(c.revoked, 0),
		s.time, COALESCE(s.backup_version, ''), COALESCE(s.holds_key, false), COALESCE(s.drift, ''), COALESCE(v.created, v.seen), COALESCE(v.created IS NULL, false),
		n.rotation, COALESCE(n.state, ''), CASE WHEN n.state = 'held' THEN COALESCE((SELECT detail ->> 'for' FROM told t WHERE t.rotation = n.rotation AND t.action = 'rotation.held' ORDER BY t.id DESC LIMIT 1), '') ELSE '' END,
		COALESCE(n.needs_attention, ''), CASE WHEN n.state = 'failed' THEN COALESCE((SELECT detail ->> 'error' FROM told t WHERE t.rotation = n.rotation AND t.action = 'rotation.failed' ORDER BY t.id DESC LIMIT 1), '') ELSE '' END
	FROM auditor.roster_at(moment) r LEFT JOIN counts c USING (user_id) LEFT JOIN statuses s USING (user_id)
		LEFT JOIN versions v ON v.user_id = r.user_id AND v.version = s.backup_version
		LEFT JOIN auditor.compliance_at(moment) n ON n.user_id = r.user_id
	ORDER BY r.user_id
$$;
COMMENT ON FUNCTION auditor.coverage_at IS 'Each user who was on the roster at a time, with what decides his state: docs/enforcement.md has the rules.';
