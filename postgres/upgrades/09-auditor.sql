-- v8 -> v9 (compatible with v5+): What an auditor sees, and statuses that are audit events only where they are news
ALTER TABLE device ADD COLUMN status_told JSONB;
ALTER TABLE device ADD COLUMN status_told_at TIMESTAMPTZ;
ALTER TABLE report ADD COLUMN news BOOLEAN NOT NULL DEFAULT false;
UPDATE report SET news = true WHERE rotation_id IS NULL;

-- An event or a detail, opened. What somebody changed so that it is no JSON any more is null, so that the rest can be read.
CREATE FUNCTION audit_json(bytes BYTEA) RETURNS JSONB LANGUAGE plpgsql IMMUTABLE STRICT AS $$
BEGIN
	RETURN pg_catalog.convert_from(bytes, 'UTF8')::pg_catalog.jsonb;
EXCEPTION WHEN data_exception THEN
	RETURN NULL;
END
$$;

-- What indexes are made of is read from the bytes of the canonical form (docs/audit-log.md), since opening each event three
-- times would cost its writer more than the event. A quote inside of a string is escaped there, so what is between quotes
-- here is a name and nothing else. These functions are inlined.
CREATE FUNCTION audit_time(body BYTEA) RETURNS TIMESTAMPTZ LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
	SELECT to_timestamp(substring(encode(substring(body FROM position('"time":'::bytea IN body) + 7 FOR 15), 'escape') FROM '^[0-9]+')::bigint / 1000.0)
$$;
CREATE FUNCTION audit_rotation(body BYTEA) RETURNS TEXT LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
	SELECT CASE WHEN position('"rotation":"'::bytea IN body) > 0 THEN encode(substring(body FROM position('"rotation":"'::bytea IN body) + 12 FOR 36), 'escape') END
$$;
-- Whether an event may be a refusal, an act of the command line or by the API, about a device, the roster or the log: some that are
-- not may be among them, and none that is can be missing, however its letters are written.
CREATE FUNCTION audit_notable(body BYTEA) RETURNS BOOLEAN LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
	SELECT position('refused'::bytea IN body) > 0 OR position('local:'::bytea IN body) > 0 OR position('device.'::bytea IN body) > 0
		OR position('enrollment'::bytea IN body) > 0 OR position('grant.'::bytea IN body) > 0 OR position('roster.'::bytea IN body) > 0
		OR position('audit.'::bytea IN body) > 0 OR position('admin:'::bytea IN body) > 0 OR position('\x5c75'::bytea IN body) > 0
$$;
CREATE INDEX audit_event_rotation ON audit_event (audit_rotation(body));
CREATE INDEX audit_event_notable ON audit_event (id) WHERE audit_notable(body);
CREATE INDEX audit_event_time ON audit_event USING brin (audit_time(body)) WITH (autosummarize = on);

CREATE OR REPLACE VIEW audit_log AS
	SELECT e.id,
		audit_time(e.body) AS time,
		audit_json(e.body) ->> 'actor' AS actor,
		audit_json(e.body) ->> 'action' AS action,
		audit_json(e.body) ->> 'subject' AS subject,
		audit_rotation(e.body) AS rotation,
		audit_json(e.body) ->> 'outcome' AS outcome,
		audit_json(d.detail) AS detail
	FROM audit_event e LEFT JOIN audit_detail d ON d.event_id = e.id;

-- docs/auditors.md shows how to use what follows. Everything is derived from the log; what a table beside it says of a
-- rotation or a device is not asked.
CREATE SCHEMA auditor;

CREATE VIEW audit_opened AS
	SELECT leaf.leaf_index AS index, audit_time(e.body) AS time, audit_json(e.body) ->> 'actor' AS actor, audit_json(e.body) ->> 'action' AS action,
		audit_json(e.body) ->> 'subject' AS subject, audit_json(e.body) ->> 'outcome' AS outcome, audit_rotation(e.body) AS rotation, audit_json(d.detail) AS detail,
		leaf.leaf_index IS NOT NULL AS sealed,
		COALESCE(e.id::text IN (SELECT audit_json(r.body) ->> 'subject' FROM audit_event r WHERE audit_notable(r.body)
			AND audit_json(r.body) ->> 'action' = 'audit.redacted' AND audit_json(r.body) ->> 'outcome' = 'accepted'), false) AS redacted,
		e.id AS event, audit_notable(e.body) AS notable
	FROM audit_event e LEFT JOIN audit_detail d ON d.event_id = e.id LEFT JOIN audit_leaf leaf ON leaf.event_id = e.id;
CREATE VIEW auditor.log AS SELECT index, time, actor, action, subject, outcome, rotation, detail, sealed, redacted, event FROM audit_opened;
COMMENT ON VIEW auditor.log IS 'Every event. index is its leaf in the tree, null until it is sealed; a detail that is null and not redacted was taken out by somebody.';

-- An event in words. A part that a redaction took is shown as (redacted).
CREATE FUNCTION auditor.sentence(actor TEXT, action TEXT, subject TEXT, outcome TEXT, detail JSONB) RETURNS TEXT LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
	known JSONB := COALESCE(detail, '{}');
	gone TEXT := CASE WHEN detail IS NULL THEN '(redacted)' ELSE '?' END;
	who TEXT := CASE WHEN actor LIKE 'source:%' THEN 'The source ' || substr(actor, 8) WHEN actor LIKE 'local:%' OR actor LIKE 'admin:%' THEN substr(actor, 7)
		WHEN actor LIKE 'reconcile:%' THEN 'Keyherald' WHEN actor LIKE 'policy:%' THEN 'The rule ' || substr(actor, 8) || ' of the policy'
		WHEN actor = 'relay' THEN 'Keyherald' WHEN actor = 'signer' THEN 'The signer' WHEN actor = 'anybody' THEN 'Somebody' ELSE actor END;
	why TEXT := COALESCE(known ->> 'refusal', gone);
	device TEXT := regexp_replace(subject, '^.*/', '');
	attempt TEXT := COALESCE(known ->> 'attempt', gone);
	version TEXT := COALESCE(known ->> 'version', known ->> 'kms_version', gone);
	error TEXT := COALESCE(known ->> 'error', gone);
	times TEXT := COALESCE(known ->> 'count', gone);
	because TEXT := COALESCE(': ' || (known ->> 'reason'), '');
	asked TEXT;
BEGIN
	IF outcome = 'refused' AND (actor LIKE 'local:%' OR actor LIKE 'admin:%') AND action <> 'access.refused' THEN
		asked := CASE action
			WHEN 'rotation.retried' THEN 'another attempt at the rotation' WHEN 'rotation.cancelled' THEN 'cancelling the rotation'
			WHEN 'rotation.asked' THEN 'a new key of ' || subject WHEN 'rotation.repeat_asked' THEN 'pushing the key once more' WHEN 'exclusion.lifted' THEN 'including ' || subject || ' again' WHEN 'exclusion.set' THEN 'excluding ' || subject
			WHEN 'token.created' THEN 'an API ' || replace(subject, ':', ' ') WHEN 'token.revoked' THEN 'revoking the API ' || replace(subject, ':', ' ')
			WHEN 'rotation.released' THEN 'releasing what is held' WHEN 'triggers.frozen' THEN 'stopping all triggers' WHEN 'triggers.thawed' THEN 'letting triggers go again'
			WHEN 'policy.changed' THEN 'another policy'
			WHEN 'campaign.started' THEN 'a campaign' WHEN 'campaign.changed' THEN 'changing the campaign' WHEN 'campaign.approved' THEN 'approving the campaign'
			WHEN 'campaign.paused' THEN 'pausing the campaign' WHEN 'campaign.resumed' THEN 'resuming the campaign' WHEN 'campaign.aborted' THEN 'aborting the campaign'
			WHEN 'enrollment_code.created' THEN 'an enrollment code for ' || subject WHEN 'device.revoked' THEN 'revoking ' || subject
			WHEN 'roster.applied' THEN 'another roster' WHEN 'roster.user_added' THEN 'putting ' || subject || ' on the roster' WHEN 'roster.user_left' THEN 'taking ' || subject || ' off the roster'
			WHEN 'roster.exempted' THEN 'an exemption of ' || subject WHEN 'roster.exemption_ended' THEN 'ending the exemption of ' || subject
			WHEN 'grant.created' THEN 'a grant to enroll without codes' WHEN 'grant.revoked' THEN 'revoking a grant'
			WHEN 'reenrollment.released' THEN 'enrolling ' || subject || ' again' WHEN 'reenrollment.rejected' THEN 'turning away ' || subject
			WHEN 'database.restored' THEN 'declaring a restore' WHEN 'audit.loss_accepted' THEN 'accepting a loss of the log' WHEN 'audit.redacted' THEN 'redacting the detail of ' || subject
			ELSE action END;
		RETURN format('%s asked for %s and was refused: %s.', who, asked, why);
	END IF;
	RETURN CASE action
		WHEN 'notification.accepted' THEN format('%s told of version %s of %s, the key of %s.', who, version, COALESCE(known ->> 'path', gone), subject)
		WHEN 'notification.ignored' THEN format('%s sent %s notifications in a minute that changed nothing: %s.', who, times, COALESCE(known ->> 'kind', gone))
		WHEN 'notification.unusable' THEN format('%s sent a notification that cannot be acted on: %s.', who, why)
		WHEN 'notification.refused' THEN CASE WHEN known ? 'count' THEN format('%s notifications to %s were refused in a minute: %s.', times, subject, why)
			ELSE format('A notification to %s was refused: %s.', subject, why) END
		WHEN 'handshake.accepted' THEN format('%s asked about its subscription and is answered: %s.', who, COALESCE(known ->> 'kind', gone))
		WHEN 'change.found' THEN format('Keyherald asked the KMS and found version %s of %s, the key of %s, which nobody had told of.', version, COALESCE(known ->> 'path', gone), subject)
		WHEN 'rotation.asked' THEN CASE WHEN actor LIKE 'source:%' THEN format('%s told that %s read the key of %s, so a new one is asked for.', who,
				COALESCE(known ->> 'reader', CASE WHEN detail IS NULL THEN gone ELSE 'somebody whom it does not name' END), subject)
			WHEN actor LIKE 'policy:%' THEN format('%s asked for a new key of %s, %s.', who, subject,
				CASE known ->> 'reason' WHEN 'policy' THEN 'which is as old as it may be' WHEN 'drift' THEN 'whose key backup somebody else replaced' ELSE COALESCE('for the reason ' || (known ->> 'reason'), gone) END)
			WHEN known ? 'campaign' THEN format('The campaign %s asked for a new key of %s.', known ->> 'campaign', subject)
			ELSE format('%s asked for a new key of %s%s.', who, subject, because) END
		WHEN 'rotation.repeat_asked' THEN who || ' asked to push the key once more.'
		WHEN 'rotation.repeat_queued' THEN CASE outcome WHEN 'refused' THEN format('%s could not be told to push once more: %s.', device, why) ELSE format('The word to %s to push once more was encrypted.', device) END
		WHEN 'campaign.started' THEN format('%s started the campaign %s for %s users%s.', who, subject, COALESCE(known ->> 'users', gone), because)
		WHEN 'campaign.changed' THEN format('%s changed the campaign %s.', who, subject)
		WHEN 'campaign.approved' THEN format('%s approved the campaign %s.', who, subject)
		WHEN 'campaign.approval_voided' THEN format('What was approved of the campaign %s is void: %s.', subject, COALESCE(known ->> 'why', gone))
		WHEN 'campaign.paused' THEN CASE WHEN actor = 'relay' THEN format('The campaign %s paused by itself: %s.', subject, COALESCE(known ->> 'why', gone)) ELSE format('%s paused the campaign %s.', who, subject) END
		WHEN 'campaign.resumed' THEN format('%s resumed the campaign %s.', who, subject)
		WHEN 'campaign.aborted' THEN CASE WHEN actor = 'relay' THEN format('The campaign %s ended, since nobody approved it in time.', subject) ELSE format('%s aborted the campaign %s.', who, subject) END
		WHEN 'campaign.wave_started' THEN format('Wave %s of the campaign %s began, with %s users.', COALESCE(known ->> 'wave', gone), subject, COALESCE(known ->> 'users', gone))
		WHEN 'campaign.users_begun' THEN format('The campaign %s came to users: %s rotations were opened, %s were open already, %s users were left out.', subject, COALESCE(known ->> 'opened', gone),
			COALESCE(known ->> 'joined', gone), COALESCE(known ->> 'left_out', gone))
		WHEN 'campaign.wave_passed' THEN format('Wave %s of the campaign %s passed: %s are done, %s are failing, %s are under way.', COALESCE(known ->> 'wave', gone), subject, COALESCE(known ->> 'done', gone),
			COALESCE(known ->> 'failing', gone), COALESCE(known ->> 'under_way', gone))
		WHEN 'campaign.stopped' THEN format('The campaign %s stopped: %s are done, and %s are failing.', subject, COALESCE(known ->> 'done', gone), COALESCE(known ->> 'failing', gone))
		WHEN 'campaign.finished' THEN format('The campaign %s finished: %s are done, %s are failing, %s are under way.', subject, COALESCE(known ->> 'done', gone), COALESCE(known ->> 'failing', gone),
			COALESCE(known ->> 'under_way', gone))
		WHEN 'exclusion.lifted' THEN format('%s included %s again.', who, subject)
		WHEN 'exclusion.set' THEN format('%s excluded %s from every push.', who, subject)
		WHEN 'access.refused' THEN format('%s called the API %s times in a minute and was refused%s: %s.', who, times, COALESCE(' at ' || (known ->> 'route'), ''), why)
		WHEN 'token.created' THEN format('%s made the API %s with the role %s.', who, replace(subject, ':', ' '), COALESCE(known ->> 'role', gone))
		WHEN 'token.revoked' THEN format('%s revoked the API %s.', who, replace(subject, ':', ' '))
		WHEN 'rotation.superseded' THEN CASE WHEN known ->> 'older_than_known' = 'true' THEN 'A newer version was known already, so there is nothing to do.'
			ELSE format('The rotation of a newer version, %s, took its place.', COALESCE(known ->> 'by', gone)) END
		WHEN 'rotation.held' THEN CASE known ->> 'for' WHEN 'storm' THEN format('It is held: too many users changed at once (%s of %s).', known ->> 'users_changed', known ->> 'users_enrolled')
			WHEN 'policy' THEN 'It is held: by the policy of its user a disclosed key is left to people.' WHEN 'window' THEN 'It is held until a window of its policy opens.'
			WHEN 'read_again' THEN 'It is held: the key was read again within an hour of a rotation for the same reason.'
			WHEN 'log_unsigned' THEN 'It is held, since the log has not been signed for a day.' ELSE 'It is held.' END
		WHEN 'rotation.released' THEN CASE WHEN known ? 'campaign' THEN format('The campaign %s released it.', known ->> 'campaign') WHEN actor = 'relay' AND known ->> 'for' = 'window' THEN 'A window of its policy is open, so it goes on.' WHEN actor = 'relay' AND known ->> 'for' = 'policy' THEN 'The policy leaves it to people no more, so it goes on.' WHEN actor = 'relay' THEN 'The log is signed again, so it goes on.' ELSE who || ' released it.' END
		WHEN 'rotation.waiting_for_enrollment' THEN format('It waits for a managed device of %s.', subject)
		WHEN 'trigger.queued' THEN format('A trigger for %s was encrypted (attempt %s).', device, attempt)
		WHEN 'trigger.sent' THEN format('The homeserver took the trigger (attempt %s).', attempt)
		WHEN 'trigger.refused_by_homeserver' THEN format('The homeserver refused the trigger for good (attempt %s).', attempt)
		WHEN 'progress.reported' THEN format(CASE known ->> 'stage'
			WHEN 'trigger_accepted' THEN '%s accepted the trigger.'
			WHEN 'fetched' THEN '%s fetched version %s from the KMS.'
			WHEN 'backup_created' THEN CASE WHEN known ->> 'created' = 'true' THEN '%1$s made key-backup version %3$s.' ELSE '%1$s found key-backup version %3$s made of this key.' END
			WHEN 'recovery_copy_written' THEN CASE known ->> 'recovery_copy' WHEN 'written' THEN '%s wrote the recovery copy.' WHEN 'none' THEN '%s found no secret storage for a recovery copy.'
				ELSE '%s left the recovery copy as it was, which is allowed.' END
			WHEN 'carrying_over' THEN '%1$s has carried %4$s of %5$s room keys over so far.'
			WHEN 'cleaned_up' THEN '%s deleted the key backup that was replaced.'
			WHEN 'carried_over' THEN CASE WHEN known ->> 'complete' = 'true' THEN '%1$s carried %4$s of %5$s room keys over: all that there are.' ELSE '%1$s carried %4$s of %5$s room keys over, and not all.' END
			WHEN 'pushed' THEN '%s pushed the key, and says what became of each target.'
			WHEN 'rejected' THEN '%1$s rejected the trigger: %6$s.'
			WHEN 'needs_attention' THEN '%1$s needs somebody: %6$s.'
			WHEN 'failed' THEN CASE WHEN known ->> 'retryable' = 'true' THEN '%1$s failed and tries again: %6$s.' ELSE '%1$s failed for good: %6$s.' END
			WHEN 'withdrawn' THEN '%s withdrew the pushes that had not left.'
			ELSE '%1$s reported how far it came: %7$s.' END,
			regexp_replace(actor, '^.*/', ''), version, COALESCE(known ->> 'backup_version', gone), COALESCE(known ->> 'carried', gone), COALESCE(known ->> 'total', gone), error, COALESCE(known ->> 'stage', gone))
		WHEN 'delivery.reported' THEN CASE known ->> 'outcome'
			WHEN 'sent' THEN format('%s sent the key to %s, which is not proof of use.', regexp_replace(actor, '^.*/', ''), device)
			WHEN 'adopted' THEN format('%s says that it holds the key.', device)
			WHEN 'superseded' THEN format('%s withdrew the push to %s before the homeserver was known to have it.', regexp_replace(actor, '^.*/', ''), device)
			ELSE format('%s sent nothing to %s: %s.', regexp_replace(actor, '^.*/', ''), device, COALESCE(known ->> 'outcome', gone)) END
		WHEN 'rotation.done' THEN format('The rotation is done, with key-backup version %s.', COALESCE(known ->> 'backup_version', gone))
		WHEN 'rotation.failed' THEN format('The rotation failed for good: %s.', error)
		WHEN 'rotation.timed_out' THEN 'The rotation was open for too long and is given up.'
		WHEN 'rotation.reassigned' THEN format('%s is enrolled no more, so the rotation is another device''s.', COALESCE(known ->> 'from', gone))
		WHEN 'rotation.retried' THEN CASE WHEN known ->> 'restored' = 'true' THEN 'After a restore of the database it begins again.' ELSE who || ' asked for another attempt.' END
		WHEN 'rotation.cancelled' THEN who || ' cancelled the rotation.'
		WHEN 'rotation.cancel_queued' THEN CASE outcome WHEN 'refused' THEN format('%s could not be told of the cancellation: %s.', device, why) ELSE format('The word to %s that it is cancelled was encrypted.', device) END
		WHEN 'policy.changed' THEN format('%s made version %s of the policy, which has %s rules%s.', who, COALESCE(known ->> 'version', gone), COALESCE(known ->> 'rules', gone), because)
		WHEN 'policy.overdue' THEN format('%s says that the key of %s is overdue: key-backup version %s.', who, subject, COALESCE(known ->> 'backup_version', gone))
		WHEN 'roster.applied' THEN format('%s applied a roster of %s users: %s came, %s left, %s were exempted, %s exemptions were taken back.', who, COALESCE(known ->> 'users', gone), COALESCE(known ->> 'added', gone),
			COALESCE(known ->> 'left', gone), COALESCE(known ->> 'exempted', gone), COALESCE(known ->> 'exemptions_ended', gone))
		WHEN 'roster.user_added' THEN format('%s put %s on the roster.', who, subject)
		WHEN 'roster.user_left' THEN format('%s took %s off the roster: %s rotations were cancelled, %s devices revoked, %s enrollment codes are void.', who, subject, COALESCE(known ->> 'rotations', gone),
			COALESCE(known ->> 'devices', gone), COALESCE(known ->> 'codes', gone))
		WHEN 'roster.exempted' THEN format('%s exempted %s until %s%s.', who, subject, COALESCE(to_char(to_timestamp((known ->> 'until')::bigint / 1000.0) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI "UTC"'), gone), because)
		WHEN 'roster.exemption_ended' THEN format('%s took the exemption of %s back.', who, subject)
		WHEN 'enrollment_code.created' THEN format('%s made an enrollment code for %s.', who, subject)
		WHEN 'enrollment_code.burned' THEN format('%s tried wrong codes too often, so the open ones are void.', subject)
		WHEN 'grant.created' THEN format('%s made a grant: up to %s first devices of %s enroll by %s.', who, COALESCE(known ->> 'max', gone), COALESCE(known ->> 'users', gone), COALESCE(known ->> 'proof', gone))
		WHEN 'grant.revoked' THEN format('%s revoked a grant, by which %s devices had enrolled%s.', who, COALESCE(known ->> 'used', gone), because)
		WHEN 'grant.used' THEN format('%s enrolled by a grant (%s of %s).', subject, COALESCE(known ->> 'used', gone), COALESCE(known ->> 'max', gone))
		WHEN 'grant.refused' THEN format('%s asked to be enrolled by a grant and was refused: %s.', subject, why)
		WHEN 'grant.barred' THEN format('%s showed wrong proofs too often, so the grant is void for this user.', subject)
		WHEN 'reenrollment.queued' THEN format('%s asked to be enrolled again, since its user''s identity was reset.', subject)
		WHEN 'reenrollment.released' THEN format('%s released the enrollment of %s with its user''s new identity.', who, subject)
		WHEN 'reenrollment.rejected' THEN format('%s turned away %s, which had asked to be enrolled again%s.', who, subject, because)
		WHEN 'enrollment.refused' THEN format('%s asked to be enrolled and was refused: %s.', subject, why)
		WHEN 'device.enrolled' THEN format('%s was enrolled.', subject)
		WHEN 'device.needs_enrollment' THEN format('%s is not what was enrolled any more: %s.', subject, why)
		WHEN 'device.store_went_backwards' THEN format('The store of %s went back to an earlier state or was copied; it is enrolled no more.', subject)
		WHEN 'device.revoked' THEN format('%s revoked %s%s.', who, subject, because)
		WHEN 'device.revocation_queued' THEN CASE outcome WHEN 'refused' THEN format('%s could not be told that it is revoked: %s.', subject, why) ELSE format('The word to %s that it is revoked was encrypted.', subject) END
		WHEN 'device.greeted' THEN CASE outcome WHEN 'refused' THEN format('%s could not be told of the bot''s new device: %s.', subject, why) ELSE format('%s was told of the bot''s new device.', subject) END
		WHEN 'device.session_reopened' THEN format('The bot opened a new Olm session with %s.', subject)
		WHEN 'status.reported' THEN format('%s says that its user has key-backup version %s, and that it %s.', actor, COALESCE(known ->> 'backup_version', gone),
			CASE known ->> 'holds_key' WHEN 'true' THEN 'holds the key' WHEN 'false' THEN 'does not hold the key' ELSE gone END)
		WHEN 'drift.reported' THEN format('%s says that something else changed the key backup: %s.', actor, COALESCE(known ->> 'drift', gone))
		WHEN 'secret_request.answered' THEN format('%s gave %s the secret that it asked for: %s.', regexp_replace(actor, '^.*/', ''), device, COALESCE(known ->> 'secret', gone))
		WHEN 'secret_request.refused' THEN format('%s did not answer a request of %s for %s: %s.', regexp_replace(actor, '^.*/', ''), device, COALESCE(known ->> 'secret', gone), COALESCE(known ->> 'reason', gone))
		WHEN 'secret.kept' THEN format('%s kept a secret that came from %s: %s.', regexp_replace(actor, '^.*/', ''), device, COALESCE(known ->> 'secret', gone))
		WHEN 'secret.accepted' THEN format('At %s somebody accepted a secret of %s: %s.', regexp_replace(actor, '^.*/', ''), device, COALESCE(known ->> 'secret', gone))
		WHEN 'secret.rejected' THEN format('At %s somebody rejected a secret of %s: %s.', regexp_replace(actor, '^.*/', ''), device, COALESCE(known ->> 'secret', gone))
		WHEN 'recovery_key.provided' THEN format('%s was given its user''s recovery key.', actor)
		WHEN 'recovery_key.replaced' THEN format('%s replaced its user''s recovery key.', actor)
		WHEN 'device.verified' THEN format('%s was verified by %s.', actor, device)
		WHEN 'account.ended' THEN format('The account of %s ended: %s.', actor, COALESCE(known ->> 'reason', gone))
		WHEN 'message.dropped' THEN format('%s messages to the bot were dropped unread in a minute: %s.', times, why)
		WHEN 'message.undecryptable' THEN format('A message of %s could not be decrypted.', subject)
		WHEN 'message.unusable' THEN format('A message of %s cannot be acted on: %s.', actor, why)
		WHEN 'message.refused_by_homeserver' THEN format('The homeserver refused a message of the bot''s for good: %s.', COALESCE(known ->> 'message', gone))
		WHEN 'room.created' THEN CASE known ->> 'found' WHEN 'true' THEN format('The bot found its room for %s again.', subject) ELSE format('The bot made a room for %s.', subject) END
		WHEN 'room.invited' THEN format('The bot invited %s to a room.', subject)
		WHEN 'room.member_removed' THEN format('The bot removed %s from the admin room.', subject)
		WHEN 'notice.queued' THEN format('A notice for %s is to be sent: %s.', subject, COALESCE(known ->> 'about', gone))
		WHEN 'notice.sent' THEN CASE outcome WHEN 'refused' THEN format('A notice for %s was not sent: %s.', subject, why) ELSE format('A notice for %s was sent.', subject) END
		WHEN 'triggers.frozen' THEN who || ' stopped all triggers.'
		WHEN 'triggers.thawed' THEN who || ' let triggers go again.'
		WHEN 'server.started' THEN format('%s started a server, version %s.', who, COALESCE(known ->> 'software_version', gone))
		WHEN 'server.stopped' THEN CASE outcome WHEN 'failed' THEN 'A server ended because of an error.' ELSE 'A server ended.' END
		WHEN 'bot.lease_taken' THEN format('A server on %s took the bot (lease %s).', COALESCE(known ->> 'host', gone), COALESCE(known ->> 'epoch', gone))
		WHEN 'bot.lease_released' THEN format('A server on %s gave the bot up.', COALESCE(known ->> 'host', gone))
		WHEN 'bot.login' THEN CASE outcome WHEN 'refused' THEN 'The homeserver refused the bot''s login.' ELSE format('The bot logged in as %s.', COALESCE(known ->> 'device', gone)) END
		WHEN 'bot.identity_published' THEN 'The bot published its identity.'
		WHEN 'bot.identity_refused' THEN 'The homeserver has another identity for the bot: the server does not go on.'
		WHEN 'bot.device_signed' THEN format('The bot signed its device %s.', COALESCE(known ->> 'device', gone))
		WHEN 'bot.device_logged_out' THEN format('The bot''s former device %s was logged out.', COALESCE(known ->> 'device', gone))
		WHEN 'bot.stopped' THEN 'The bot stands still, since the database went back to an earlier state.'
		WHEN 'database.migrated' THEN format('%s brought the schema from version %s to %s.', who, COALESCE(known ->> 'from', gone), COALESCE(known ->> 'to', gone))
		WHEN 'database.restored' THEN format('%s declared that the database was restored%s.', who, because)
		WHEN 'audit.signing_keys_changed' THEN 'The log is signed with other keys from here on.'
		WHEN 'audit.sealing_stopped' THEN format('The log is not signed any more: %s.', COALESCE(known ->> 'problem', gone))
		WHEN 'audit.sealing_resumed' THEN 'The log is signed again.'
		WHEN 'audit.loss_accepted' THEN format('%s accepted the loss of a part of the log%s. %s events survive of %s that were signed.', who, because, COALESCE(known ->> 'surviving_size', gone), COALESCE(known ->> 'remembered_size', gone))
		WHEN 'audit.event_missing' THEN format('The event %s was taken out of the log before it was sealed.', subject)
		WHEN 'audit.alteration_found' THEN CASE WHEN known ? 'first' THEN format('The log was looked over, and is not what was sealed from event %s to %s.', known ->> 'first', COALESCE(known ->> 'last', gone))
			ELSE 'The log was looked over, and is not what was sealed.' END
		WHEN 'audit.redacted' THEN format('%s redacted the detail of the event %s%s.', who, subject, because)
		WHEN 'audit.read' THEN format('%s read the log (%s).', who, COALESCE(known ->> 'command', gone))
		WHEN 'audit.exported' THEN format('%s exported the log (%s).', who, COALESCE(known ->> 'format', known ->> 'command', gone))
		ELSE format('%s: %s, about %s: %s.', who, action, subject, outcome) END;
END
$$;

CREATE VIEW auditor.rotation_story AS
	SELECT rotation, time, auditor.sentence(actor, action, subject, outcome, detail) AS sentence, action, actor, outcome, index, sealed, event
	FROM audit_opened WHERE rotation IS NOT NULL AND action <> 'audit.read';
COMMENT ON VIEW auditor.rotation_story IS 'What happened to a rotation, an event a row: ORDER BY time, event.';

-- The last word on a target counts, but that it was sent the key is not unsaid by a later withdrawal, and that it adopted
-- the key by nothing.
CREATE VIEW auditor.deliveries AS
	SELECT rotation, regexp_replace(subject, '/[^/]*$', '') AS user_id, regexp_replace(subject, '^.*/', '') AS target, outcome, forms, time,
		CASE outcome WHEN 'sent' THEN 'sent is not proof of use: clients do not acknowledge a push' WHEN 'adopted' THEN 'what the receiving managed device says of itself'
			WHEN 'superseded' THEN 'withdrawn before the homeserver was known to have it' WHEN '(redacted)' THEN 'the detail is redacted' ELSE 'nothing was sent' END AS proof
	FROM (SELECT rotation, subject,
			(array_agg(COALESCE(detail ->> 'outcome', '(redacted)') ORDER BY detail ->> 'outcome' = 'adopted' DESC NULLS LAST, detail ->> 'outcome' <> 'superseded' DESC NULLS LAST, time DESC, event DESC))[1] AS outcome,
			(array_agg(detail -> 'forms' ORDER BY detail -> 'forms' <> '[]' DESC NULLS LAST, time DESC, event DESC))[1] AS forms,
			MAX(time) AS time
		FROM audit_opened WHERE action = 'delivery.reported' GROUP BY rotation, subject) told;
COMMENT ON VIEW auditor.deliveries IS 'What became of each target of a rotation, as its managed device says. sent is not proof of use: clients do not acknowledge a push.';

CREATE VIEW auditor.enrollments AS
	SELECT time, regexp_replace(subject, '/[^/]*$', '') AS user_id, CASE WHEN subject LIKE '%/%' THEN regexp_replace(subject, '^.*/', '') END AS device, action, outcome,
		detail ->> 'refusal' AS refusal, actor, auditor.sentence(actor, action, subject, outcome, detail) AS sentence, index, sealed, event
	FROM audit_opened WHERE notable AND action IN ('enrollment_code.created', 'enrollment_code.burned', 'grant.created', 'grant.revoked', 'grant.used', 'grant.refused', 'grant.barred',
		'reenrollment.queued', 'reenrollment.released', 'reenrollment.rejected', 'enrollment.refused', 'device.enrolled', 'device.needs_enrollment',
		'device.store_went_backwards', 'device.revoked', 'device.revocation_queued');
COMMENT ON VIEW auditor.enrollments IS 'Who was given a code, which device was enrolled or refused, and which is enrolled no more.';

CREATE VIEW auditor.refused AS
	SELECT time, actor, action, subject, rotation, detail ->> 'refusal' AS refusal, CASE WHEN detail ->> 'count' ~ '^[0-9]{1,15}$' THEN (detail ->> 'count')::bigint ELSE 1 END AS times,
		auditor.sentence(actor, action, subject, outcome, detail) AS sentence, index, sealed, event
	FROM audit_opened WHERE notable AND outcome = 'refused';
COMMENT ON VIEW auditor.refused IS 'Everything that was refused, to whomever. times is how many there were in a minute, where they are counted.';

CREATE VIEW auditor.admin_actions AS
	SELECT time, substr(actor, 7) AS who, action, subject, rotation, outcome, detail ->> 'refusal' AS refusal, detail ->> 'reason' AS reason,
		auditor.sentence(actor, action, subject, outcome, detail) AS sentence, index, sealed, event
	FROM audit_opened WHERE notable AND (actor LIKE 'local:%' OR actor LIKE 'admin:%') AND action <> 'access.refused';
COMMENT ON VIEW auditor.admin_actions IS 'What people did or tried with the command line or by the API, and what a server was started with. who is the account and the machine, or the caller as his issuer or his token names him.';

-- How things stood at a time, from what the log says up to then: each user who had a managed device or a rotation. The
-- newest rotation of a user is the one whose version was told of last, of those that no newer version was known to at once.
-- The order is that of the events' ids, which are made as the events are.
CREATE FUNCTION auditor.compliance_at(moment TIMESTAMPTZ) RETURNS TABLE (user_id TEXT, managed_devices BIGINT, rotation TEXT, path TEXT, version TEXT, state TEXT,
	since TIMESTAMPTZ, needs_attention TEXT, last_done TIMESTAMPTZ, key_age INTERVAL) LANGUAGE sql STABLE AS $$
	WITH told AS MATERIALIZED (
		SELECT id, time, action, subject, rotation, outcome, detail FROM public.audit_log
		WHERE action IN ('notification.accepted', 'change.found', 'rotation.asked', 'rotation.superseded', 'rotation.held', 'rotation.released', 'rotation.waiting_for_enrollment', 'rotation.done', 'rotation.failed',
				'rotation.timed_out', 'rotation.reassigned', 'rotation.retried', 'rotation.cancelled', 'trigger.queued',
				'device.enrolled', 'device.needs_enrollment', 'device.store_went_backwards', 'device.revoked')
			AND time <= moment
	), rotations AS (
		SELECT DISTINCT ON (rotation) rotation, subject AS user_id, id AS told_of, detail ->> 'path' AS path, detail ->> 'version' AS version
		FROM told WHERE action IN ('notification.accepted', 'change.found', 'rotation.asked') AND outcome = 'accepted' ORDER BY rotation, id
	), states AS (
		SELECT DISTINCT ON (rotation) rotation, time AS since, COALESCE(detail ->> 'older_than_known', 'false') = 'true' AS late, CASE action
			WHEN 'notification.accepted' THEN 'received' WHEN 'change.found' THEN 'received' WHEN 'rotation.asked' THEN 'received' WHEN 'rotation.reassigned' THEN 'received' WHEN 'rotation.retried' THEN 'received'
			WHEN 'trigger.queued' THEN 'working' ELSE split_part(action, '.', 2) END AS state
		FROM told WHERE rotation IS NOT NULL AND outcome = 'accepted' AND action NOT IN ('rotation.held', 'rotation.released')
		-- Being told of a version again moves nothing.
		ORDER BY rotation, action IN ('notification.accepted', 'change.found', 'rotation.asked'), id DESC
	), holds AS (
		SELECT DISTINCT ON (rotation) rotation, time AS since, action = 'rotation.held' AS held
		FROM told WHERE rotation IS NOT NULL AND outcome = 'accepted' AND action NOT IN ('notification.accepted', 'change.found', 'rotation.asked') ORDER BY rotation, id DESC
	), newest AS (
		SELECT DISTINCT ON (r.user_id) r.user_id, r.rotation, r.path, r.version, CASE WHEN h.held THEN 'held' ELSE s.state END AS state,
			CASE WHEN h.held THEN h.since ELSE s.since END AS since
		FROM rotations r JOIN states s USING (rotation) LEFT JOIN holds h USING (rotation) ORDER BY r.user_id, s.late, r.told_of DESC
	), done AS (
		SELECT subject AS user_id, MAX(time) AS last_done FROM told WHERE action = 'rotation.done' GROUP BY subject
	), devices AS (
		SELECT regexp_replace(subject, '/[^/]*$', '') AS user_id, COUNT(*) AS managed_devices
		FROM (SELECT DISTINCT ON (subject) subject, action FROM told WHERE action LIKE 'device.%' AND (action <> 'device.revoked' OR outcome = 'accepted')
			ORDER BY subject, id DESC) last WHERE action = 'device.enrolled' GROUP BY 1
	)
	SELECT user_id, COALESCE(d.managed_devices, 0), n.rotation, n.path,
		-- The version of a key that the device made itself is what it reports.
		COALESCE(n.version, (SELECT detail ->> 'kms_version' FROM public.audit_log l WHERE l.rotation = n.rotation AND l.action = 'progress.reported' AND l.time <= moment
			AND detail ->> 'kms_version' IS NOT NULL ORDER BY l.id LIMIT 1)), COALESCE(n.state, 'never rotated'), n.since, CASE WHEN attention.stage IN ('needs_attention', 'rejected') THEN attention.error END,
		done.last_done, moment - done.last_done
	FROM newest n FULL JOIN devices d USING (user_id) LEFT JOIN done USING (user_id)
		-- What the last report of an open rotation asks for; a failure that is tried again and a withdrawal ask for nothing.
		LEFT JOIN LATERAL (SELECT detail ->> 'stage' AS stage, detail ->> 'error' AS error FROM public.audit_log l
			WHERE n.state NOT IN ('done', 'failed', 'superseded', 'timed_out', 'cancelled') AND l.rotation = n.rotation AND l.action = 'progress.reported' AND l.time <= moment
				AND detail ->> 'stage' NOT IN ('failed', 'withdrawn') ORDER BY l.id DESC LIMIT 1) attention ON true
	ORDER BY user_id
$$;
COMMENT ON FUNCTION auditor.compliance_at IS 'Each user who had a managed device or a rotation at a time: the state of his newest rotation, and how old his key was then.';
