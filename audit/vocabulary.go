package audit

import "github.com/keyherald/keyherald/campaign"

// refusal is the field that every refused event has.
const refusal Name = "refusal"

func of(name Name, k kind, means string) field { return field{name: name, kind: k, means: means} }

func word[T Vocabulary](name Name, means string, words ...T) field {
	f := field{name: name, kind: aWord, means: means, vocabulary: vocabularyOf[T]()}
	for _, w := range words {
		f.words = append(f.words, string(w))
	}
	return f
}

func listed(f field) field {
	f.kind = someWords
	return f
}

func because[T Vocabulary](words ...T) field {
	return word(refusal, "why, where it is refused", words...)
}

// Fields that several actions have.
var (
	attempt       = of("attempt", aNumber, "the number of the rotation's attempt, from 1")
	notification  = of("id", anIdentifier, "the notification's id, as its sender chose it")
	credential    = of("key", anIdentifier, "the id of the credential that it was authenticated with")
	kmsName       = of("kms", anIdentifier, "the KMS, as mapping and account files name it")
	path          = of("path", anIdentifier, "the secret's path in the KMS")
	version       = of("version", anIdentifier, "the secret's version in the KMS")
	kmsVersion    = of("kms_version", anIdentifier, "the secret's version in the KMS")
	backupVersion = of("backup_version", anIdentifier, "the key-backup version on the homeserver")
	keyOfBackup   = of("public_key_sha256", aFingerprint, "the public key of the key-backup version")
	report        = of("report", anIdentifier, "the id of the report, chosen by the device")
	envelope      = of("envelope", anIdentifier, "the id of the message in the bot's inbox")
	minute        = of("minute", aTime, "the minute that was counted")
	count         = of("count", aNumber, "how many there were: 1 for the first, at once, and the rest when the minute is over")
	state         = word("state", "the state that the rotation is in from now on", states...)
	reason        = of("reason", aText, "what the admin wrote as his reason")
	campaignKind  = word("kind", "what it does with its users", campaign.Rotate, campaign.Release)
	campaignHash  = of("hash", anIdentifier, "the hash of its users and parameters")
	campaignUsers = of("users", aNumber, "how many users it has")
	ofCampaign    = of("campaign", anIdentifier, "the campaign that asked")
	wave          = of("wave", aNumber, "the wave, from 1")
	waveFields    = []field{wave, of("done", aNumber, "how many are done"), of("failing", aNumber, "how many failed or need somebody"), of("under_way", aNumber, "how many are under way"),
		of("left_out", aNumber, "how many are not rotated")}
	botDevice    = of("device", anIdentifier, "the bot's device")
	room         = of("room", anIdentifier, "the room's id")
	notice       = of("notice", anIdentifier, "the notice's id, which is its transaction id at the homeserver and stands in the message")
	drift        = word("drift", "how the world is not as Keyherald left it", drifts...)
	statusFields = []field{report, backupVersion, keyOfBackup,
		of("holds_key", aFlag, "whether the device holds the private key of the version"),
		of("count", aNumber, "how many room keys the version has"),
		of("targets_verified", aNumber, "how many other devices of the user are cross-signed"),
		of("targets_unverified", aNumber, "how many are not"),
		of("software_version", anIdentifier, "the version of keyherald-device")}
	actFields = []field{report, of("at", aTime, "when it was, by the device's clock"), word("secret", "which secret", SecretMegolmBackup, SecretMaster, SecretSelfSigning, SecretUserSigning, SecretOther),
		word("reason", "why it was refused or ended", ActTooManyRequests, ActDeviceUnknown, ActDehydrated, ActNotCrossSigned, ActExcluded, ActNotAllowed, ActNotHeld, ActNoKeyBackup, ActUserDeactivated, ActLoginRefused),
		of("key_id", anIdentifier, "the id of a replaced recovery key's successor in secret storage")}
	since      = of("since", aTime, "from when on")
	until      = of("until", aTime, "before when")
	outForm    = word("format", "in which form", FormatJSONLines, FormatCSV, FormatOCSF, FormatBundle, FormatReport)
	unsentWord = because(RefusedNoOneTimeKey)
	grantID    = of("grant", anIdentifier, "the number of the grant")
	proofName  = of("proof", anIdentifier, "what is shown by it instead of a code, as the configuration names it")
	asksAgain  = []field{of("reenrollment", anIdentifier, "the number of the request"), of("old_master_key_sha256", aFingerprint, "the user's master key that was pinned"),
		of("new_master_key_sha256", aFingerprint, "the one that the homeserver presents now")}
)

// act is what a managed device says that it did, with its user or with another device of his.
func act(action Action, tells string) entry {
	return entry{action, tells, []Role{Managed}, []kindOfSubject{aUser, aDevice}, ofNone, []Outcome{Reported}, actFields}
}

// Who acts: the people of the command line.
var (
	people   = []Role{Admin, Operator}
	auditors = []Role{Auditor, Admin, Operator}
)

var yesNo = []Outcome{Accepted, Refused}

// vocabulary is the table of everything that the log may tell, in the order of docs/audit-events.md.
var vocabulary = []entry{
	// What notifiers do.
	{NotificationAccepted, "A key-management system told of a secret's version, and the rotation for it is open or was already.",
		[]Role{Notifier}, []kindOfSubject{aUser}, ofRotation, []Outcome{Accepted}, []field{notification, credential, kmsName, path, version}},
	{NotificationIgnored, "Authentic notifications changed nothing; they are counted by the minute.",
		[]Role{Notifier}, []kindOfSubject{aSource}, ofNone, []Outcome{Accepted},
		[]field{word("kind", "`unmapped`: no mapping knows its path, which is normal for a KMS that serves others; `repeated`: it was taken before; `expected_reader`: somebody read a key who may; `old_version`: somebody read a version that is not the current one any more",
			IgnoredUnmapped, IgnoredRepeated, IgnoredExpectedReader, IgnoredOldVersion), minute, count}},
	{NotificationUnusable, "An authentic notification that a mapping knows cannot be acted on; it is kept.",
		[]Role{Notifier}, []kindOfSubject{aUser, aSource}, ofNone, []Outcome{Refused}, []field{because(RefusedNoUserID, RefusedUnusablePath, RefusedNoUsableVersion), notification, credential, kmsName, path, version}},
	{NotificationRefused, "Notifications were refused; they are counted by the minute, but for one whose id came before with another body. Only `stale` and what comes after it here prove who sent them.",
		[]Role{Notifier, Anybody}, []kindOfSubject{aSource, theIntake}, ofNone, []Outcome{Refused},
		[]field{because(RefusedUnknownSource, RefusedBodyUnreadable, RefusedTooSlow, RefusedTooLarge, RefusedAddress, RefusedNoCredentials, RefusedCredentials, RefusedCertificate, RefusedToken,
			RefusedClaims, RefusedTopic, RefusedOrigin, RefusedNotSigned, RefusedWrongSignature, RefusedStale, RefusedMediaType, RefusedMalformed, RefusedConflict),
			minute, count, notification, credential}},
	{HandshakeAccepted, "A sender's request about its subscription was authentic and is answered.",
		[]Role{Notifier}, []kindOfSubject{aSource}, ofNone, []Outcome{Accepted},
		[]field{word("kind", "what it asks for", HandshakeEventGrid, HandshakeSNSSubscribed, HandshakeSNSUnsubscribe), credential}},
	{ChangeFound, "The server asked a KMS by itself and found a version that nobody had notified it of; the rotation for it is open.",
		[]Role{Reconciler}, []kindOfSubject{aUser}, ofRotation, []Outcome{Accepted}, []field{kmsName, path, version}},

	// What becomes of a rotation.
	{RotationAsked, "A new key was asked for, which the user's managed device makes and puts into the KMS; by a source where somebody else read the key, by a rule of the policy where it is old enough, by the server itself where a campaign came to the user.",
		[]Role{Notifier, Ruler, Relay, Admin, Operator}, []kindOfSubject{aUser}, maybe, yesNo,
		[]field{because(RefusedNoUserID, RefusedHalfPlace, RefusedUnknownPlace), ofCampaign, word("reason", "why; missing for a plain change", reasons...),
			of("exclude", identifiers, "devices that get no key from now on"), kmsName, path, of("replace_recovery_key", aFlag, "whether a new recovery key was asked for as well"),
			notification, credential, of("read_version", anIdentifier, "the version that was read; missing where the KMS does not say which: then it was the current one"),
			of("reader", anIdentifier, "who read it, as the KMS names him; missing where it does not"),
			of("due_at", aTime, "when the key reached its greatest age by the rule")}},
	{RotationSuperseded, "A newer version ended a rotation, or the rotation was of an older version from its start.",
		[]Role{Notifier, Reconciler, Ruler, Relay, Admin, Operator}, []kindOfSubject{aUser}, ofRotation, []Outcome{Accepted},
		[]field{state, of("by", anIdentifier, "the newer version's rotation"), of("older_than_known", aFlag, "yes where a newer version was known before")}},
	{RotationHeld, "A rotation waits: too many users changed at once, the key that was made for a disclosed one was read as well, the user's policy has a disclosed key wait for a window or for people, or the log has not been signed for a day.",
		[]Role{Relay}, []kindOfSubject{aUser}, ofRotation, []Outcome{Accepted},
		[]field{word("for", "what it is held for", holds...), of("users_changed", aNumber, "how many users changed within the hour"), of("users_enrolled", aNumber, "how many users have a managed device")}},
	{RotationReleased, "A held rotation goes on, by an admin, by a campaign, because a window of its policy is open, or because the log is signed again.",
		[]Role{Relay, Admin, Operator}, []kindOfSubject{aUser, theRotations}, maybe, yesNo, []field{word("for", "what it was held for, where the server releases it by itself", holds...), because(RefusedUnknownRotation, RefusedNotHeld, RefusedBesideOthers), ofCampaign}},
	{RotationWaiting, "A rotation waits for a managed device of its user.",
		[]Role{Relay}, []kindOfSubject{aUser}, ofRotation, []Outcome{Accepted}, nil},
	{TriggerQueued, "A trigger for a managed device was encrypted and is on its way.",
		[]Role{Relay}, []kindOfSubject{aDevice}, ofRotation, []Outcome{Accepted},
		[]field{attempt, of("sequence", aNumber, "the trigger's sequence, above every earlier one of the user"), kmsVersion}},
	{TriggerSent, "The homeserver took a trigger.",
		[]Role{Relay}, []kindOfSubject{aUser}, ofRotation, []Outcome{Accepted}, []field{attempt}},
	{TriggerRefused, "The homeserver refused a trigger for good.",
		[]Role{Relay}, []kindOfSubject{aUser}, ofRotation, []Outcome{Refused}, []field{because(RefusedByHomeserver), attempt}},
	{ProgressReported, "A managed device reported how far it came with an attempt.",
		[]Role{Managed}, []kindOfSubject{aUser}, ofRotation, []Outcome{Reported},
		[]field{word("stage", "how far it came", stages...), attempt, report, kmsVersion, backupVersion,
			of("old_backup_version", anIdentifier, "the version that it replaces"), of("created", aFlag, "whether the device made the version, or found it made of the same key"),
			keyOfBackup, of("total", aNumber, "how many room keys the older versions have"), of("carried", aNumber, "how many of them were carried over"),
			of("undecrypted", aNumber, "how many of them the old key does not open"), of("complete", aFlag, "whether the new version has all that the older ones have"),
			word("recovery_copy", "the state of the copy in secret storage", recoveryCopies...), word("error", "what went wrong, or needs attention (docs/attention.md)", errorCodes...),
			of("retryable", aFlag, "whether the device tries again by itself")}},
	{DeliveryReported, "A managed device reported what became of one target. `sent` is not proof of use: clients do not acknowledge a push. `adopted` is what a managed receiver says of itself.",
		[]Role{Managed}, []kindOfSubject{aDevice}, ofRotation, []Outcome{Reported},
		[]field{word("outcome", "what became of the target", outcomes...), listed(word("forms", "the event types that were sent", forms...))}},
	{RotationDone, "A rotation is done: the version is current, the recovery copy true or allowed stale, the history carried over, and every target has an outcome.",
		[]Role{Relay}, []kindOfSubject{aUser}, ofRotation, []Outcome{Accepted}, []field{state, backupVersion}},
	{RotationFailed, "A rotation failed for good.",
		[]Role{Relay}, []kindOfSubject{aUser}, ofRotation, []Outcome{Accepted}, []field{state, word("error", "what went wrong", errorCodes...)}},
	{RotationTimedOut, "A rotation was open for 30 days and is given up.",
		[]Role{Relay}, []kindOfSubject{aUser}, ofRotation, []Outcome{Accepted}, []field{state}},
	{RotationReassigned, "The device that worked on a rotation is enrolled no more, so the rotation is another device's.",
		[]Role{Relay}, []kindOfSubject{aUser}, ofRotation, []Outcome{Accepted}, []field{of("from", anIdentifier, "the device that worked on it")}},
	{RotationRetried, "Another attempt at a rotation was asked for; the server itself asks where the device could not read its trigger.",
		append([]Role{Relay}, people...), []kindOfSubject{aUser, theRotations}, ofRotation, yesNo,
		[]field{because(RefusedUnknownRotation, RefusedEnded, RefusedHeld), word("from", "the state it was in", states...), of("restored", aFlag, "yes where a declared restore asks")}},
	{RotationCancelled, "A rotation was cancelled.",
		people, []kindOfSubject{aUser, theRotations}, ofRotation, yesNo, []field{because(RefusedUnknownRotation, RefusedEnded), state, ofCampaign}},
	{RepeatAsked, "It was asked for that the key of a rotation is pushed to every target once more.",
		people, []kindOfSubject{aUser, theRotations}, ofRotation, yesNo, []field{because(RefusedUnknownRotation, RefusedNotPushed)}},
	{RepeatQueued, "The word to a managed device to push once more was encrypted and is on its way.",
		[]Role{Relay}, []kindOfSubject{aDevice}, ofRotation, yesNo, []field{unsentWord, attempt, of("sequence", aNumber, "the word's sequence, above every earlier one of the user")}},
	{ExclusionLifted, "A device that was excluded from pushes gets them again.",
		people, []kindOfSubject{aDevice}, ofNone, yesNo, []field{because(RefusedAlreadySo)}},
	// Campaigns.
	{CampaignStarted, "A campaign was started: its users and their waves are fixed. It runs at once, or waits for approval.",
		people, []kindOfSubject{aCampaign, theCampaigns}, ofNone, yesNo,
		[]field{because(RefusedParameters, RefusedNobody, RefusedNotThere, RefusedOtherRequest, RefusedNoReason, RefusedReason), campaignKind, campaignHash, campaignUsers, reason,
			of("ticket", aText, "the ticket that the admin named"), of("needs_approval", aFlag, "whether a second admin must approve it"), of("waves", aNumber, "how many waves it has"),
			of("rate", aNumber, "how many users begin in a minute at most"), of("exclude", aNumber, "how many devices get no key from the first wave on")}},
	{CampaignChanged, "A campaign was changed: its hash is another one, and what was approved before is void.",
		people, []kindOfSubject{aCampaign, theCampaigns}, ofNone, yesNo, []field{because(RefusedUnknownCampaign, RefusedCampaignState, RefusedOtherHash, RefusedParameters), campaignHash,
			of("needs_approval", aFlag, "whether a second admin must approve it"), of("rate", aNumber, "how many users begin in a minute at most")}},
	{CampaignApproved, "A second admin approved a campaign, for these users and parameters.",
		people, []kindOfSubject{aCampaign, theCampaigns}, ofNone, yesNo, []field{because(RefusedUnknownCampaign, RefusedCampaignState, RefusedOwnCampaign, RefusedOtherHash, RefusedApprovalExpired), campaignHash,
			of("expires_at", aTime, "until when it is good for what begins under it")}},
	{ApprovalVoided, "An approval is void.", []Role{Relay, Admin, Operator}, []kindOfSubject{aCampaign}, ofNone, []Outcome{Accepted},
		[]field{word("why", "why", CauseChanged, CauseAltered, CauseAborted)}},
	{CampaignPaused, "A campaign begins nobody more until it is resumed; who has begun goes on.",
		[]Role{Relay, Admin, Operator}, []kindOfSubject{aCampaign, theCampaigns}, ofNone, yesNo, append([]field{because(RefusedUnknownCampaign, RefusedCampaignState),
			word("why", "why, where nobody asked for just that", CauseWaiting, CauseFailing, CauseAltered, CauseApprovalExpired, CauseRestored)}, waveFields...)},
	{CampaignResumed, "A paused campaign goes on.", people, []kindOfSubject{aCampaign, theCampaigns}, ofNone, yesNo, []field{because(RefusedUnknownCampaign, RefusedCampaignState, RefusedApprovalExpired)}},
	{CampaignAborted, "A campaign was ended: who had not begun stays as he was.",
		[]Role{Relay, Admin, Operator}, []kindOfSubject{aCampaign, theCampaigns}, ofNone, yesNo, []field{because(RefusedUnknownCampaign, RefusedCampaignState),
			word("why", "why it ended by itself", CauseApprovalExpired), of("not_started", aNumber, "how many had not begun"), of("cancelled", aNumber, "how many rotations were cancelled with it"),
			of("under_way", aNumber, "how many go on until they are done")}},
	{WaveStarted, "A wave of a campaign begins.", []Role{Relay}, []kindOfSubject{aCampaign}, ofNone, []Outcome{Accepted}, []field{wave, campaignUsers}},
	{UsersBegun, "The turn of users of a campaign came.", []Role{Relay}, []kindOfSubject{aCampaign}, ofNone, []Outcome{Accepted},
		[]field{wave, of("opened", aNumber, "how many rotations were opened, or released"), of("joined", aNumber, "how many had one that was open already, which is followed"),
			of("left_out", aNumber, "how many are not rotated; the campaign says of each why")}},
	{WavePassed, "A wave of a campaign passed.", []Role{Relay}, []kindOfSubject{aCampaign}, ofNone, []Outcome{Accepted}, waveFields},
	{CampaignStopped, "Too many of a campaign's users failed: nobody more begins.", []Role{Relay}, []kindOfSubject{aCampaign}, ofNone, []Outcome{Accepted},
		append([]field{of("not_started", aNumber, "how many had not begun")}, waveFields...)},
	{CampaignFinished, "The last wave of a campaign passed. Who is under way goes on until he is done.", []Role{Relay}, []kindOfSubject{aCampaign}, ofNone, []Outcome{Accepted}, waveFields},
	{ExclusionSet, "A device of a user gets no key any more, by a push that is made from now on.",
		[]Role{Relay, Admin, Operator}, []kindOfSubject{aDevice}, ofNone, yesNo, []field{because(RefusedNoUserID, RefusedUnknownDevice, RefusedAlreadySo), ofCampaign}},
	{CancelQueued, "The word to a managed device that its attempt is cancelled was encrypted and is on its way.",
		[]Role{Relay}, []kindOfSubject{aDevice}, ofRotation, yesNo, []field{unsentWord, attempt}},

	// The company's policy.
	{PolicyChanged, "The policy was replaced as a whole; `keyherald policy show --at` prints each version.",
		people, []kindOfSubject{thePolicy}, ofNone, yesNo,
		[]field{because(RefusedNoReason, RefusedReason, RefusedPolicy, RefusedNotTheNewest, RefusedAlreadySo), reason, of("version", aNumber, "the policy's version, from 1"),
			of("document_sha256", anIdentifier, "the first half of the SHA-256, in hex, of the document as it is kept"), of("rules", aNumber, "how many rules it has")}},
	{PolicyOverdue, "A user's key is older than his rule allows with its grace, and was not rotated. Told once of a key.",
		[]Role{Ruler}, []kindOfSubject{aUser}, ofNone, []Outcome{Accepted},
		[]field{backupVersion, of("key_since", aTime, "since when that version is there"), of("due_at", aTime, "when it reached its greatest age"),
			of("overdue_at", aTime, "when the grace was over")}},

	// Managed devices.
	{CodeCreated, "An enrollment code was made for a user.",
		people, []kindOfSubject{aUser, theUsers}, ofNone, yesNo,
		[]field{because(RefusedNoUserID, RefusedAlreadySo, RefusedLife, RefusedBounds), of("code", anIdentifier, "the number of the code, never the code"), of("expires_at", aTime, "when it ends")}},
	{CodeBurned, "Wrong codes were tried five times, so the open codes of the user are void.",
		[]Role{Sender}, []kindOfSubject{aUser}, ofNone, []Outcome{Refused}, []field{because(RefusedWrongTries), of("codes", aNumber, "how many codes are void")}},
	{DeviceEnrolled, "A device proved that it has its keys, is cross-signed, and was given the code, showed a proof that a grant is for, or was released by an admin; it is the user's managed device now.",
		[]Role{Managed}, []kindOfSubject{aDevice}, ofNone, []Outcome{Accepted},
		[]field{of("device", anIdentifier, "the number of the enrolled device"), of("signing_key_sha256", aFingerprint, "the device's Ed25519 key, pinned from now on"),
			of("master_key_sha256", aFingerprint, "the user's master key, pinned from now on")}},
	{GrantCreated, "A grant was made: the first managed device of each user whose id its pattern matches enrolls by a proof instead of a code.",
		people, []kindOfSubject{theGrants}, ofNone, yesNo,
		[]field{because(RefusedPattern, RefusedUnknownProof, RefusedBounds, RefusedLife), grantID, of("users", anIdentifier, "the pattern of user ids"), proofName,
			of("max", aNumber, "how many devices it is for"), of("expires_at", aTime, "when it ends")}},
	{GrantRevoked, "A grant was revoked: nobody enrolls by it any more.",
		people, []kindOfSubject{theGrants}, ofNone, yesNo,
		[]field{because(RefusedUnknownGrant, RefusedAlreadySo, RefusedReason), grantID, reason, of("used", aNumber, "how many devices enrolled by it")}},
	{GrantUsed, "A device enrolled by a grant: what it showed is its user's, it is his first managed device, and cross-signed.",
		[]Role{Managed}, []kindOfSubject{aDevice}, ofNone, []Outcome{Accepted},
		[]field{grantID, proofName, of("used", aNumber, "how many devices enrolled by it, this one too"), of("max", aNumber, "how many it is for")}},
	{GrantRefused, "A device asked to be enrolled by a grant and was refused.",
		[]Role{Managed}, []kindOfSubject{aDevice}, ofNone, []Outcome{Refused},
		[]field{because(grantRefusals...), grantID, word("proof_type", "what it showed", proofTypes...)}},
	{GrantBarred, "Wrong proofs were shown five times for a user, so the grant is void for him.",
		[]Role{Sender}, []kindOfSubject{aUser}, ofNone, []Outcome{Refused}, []field{because(RefusedWrongTries), grantID}},
	{ReenrollmentQueued, "A device asked to be enrolled again, since its user's identity was reset. It waits for an admin, and is not trusted.",
		[]Role{Managed}, []kindOfSubject{aDevice}, ofNone, []Outcome{Accepted}, asksAgain},
	{ReenrollmentReleased, "It was decided that a device that asked again is enrolled, if its user still has the identity that it asked with.",
		people, []kindOfSubject{aDevice, theDevices}, ofNone, yesNo, append([]field{because(RefusedUnknownReenrollment, RefusedAlreadySo)}, asksAgain...)},
	{ReenrollmentRejected, "It was decided that a device that asked again is not enrolled; the server itself decides so where the device is revoked or its user leaves the roster.",
		[]Role{Relay, Admin, Operator}, []kindOfSubject{aDevice, theDevices}, ofNone, yesNo, append([]field{because(RefusedUnknownReenrollment, RefusedAlreadySo, RefusedReason), reason}, asksAgain...)},
	{EnrollmentRefused, "A device asked to be enrolled and was refused.",
		[]Role{Managed}, []kindOfSubject{aDevice}, ofNone, []Outcome{Refused}, []field{because(enrollmentRefusals...)}},
	{DeviceNeedsEnrollment, "A managed device is not what was pinned any more, and is trusted again only after another enrollment.",
		[]Role{Relay}, []kindOfSubject{aDevice}, ofNone, []Outcome{Refused}, []field{because(RefusedIdentityChanged)}},
	{DeviceWentBack, "A managed device's store was put back to an earlier state or copied: the device is enrolled no more.",
		[]Role{Relay}, []kindOfSubject{aDevice}, ofNone, []Outcome{Refused},
		[]field{because(RefusedStoreBranched, RefusedStoreConfessed), report, of("run", anIdentifier, "the run of the store that the report is from"),
			of("base", aNumber, "how many reports the store had counted before this run"), of("count", aNumber, "the report's own count")}},
	{DeviceRevoked, "A managed device was revoked: it is triggered no more, and excluded from every push.",
		people, []kindOfSubject{aDevice}, ofNone, yesNo, []field{because(RefusedUnknownDevice, RefusedAlreadySo, RefusedReason), reason}},
	{RevocationQueued, "The word to a device that it is revoked was encrypted and is on its way.",
		[]Role{Relay}, []kindOfSubject{aDevice}, ofNone, yesNo, []field{unsentWord}},
	{DeviceGreeted, "After a restore, the first message of the bot's new device to a managed one was encrypted and is on its way.",
		[]Role{Relay}, []kindOfSubject{aDevice}, ofNone, yesNo, []field{unsentWord}},
	{SessionReopened, "The bot opened a new Olm session with a device whose message it could not read.",
		[]Role{Relay}, []kindOfSubject{aDevice}, ofNone, []Outcome{Accepted}, nil},
	{StatusReported, "A managed device said how things are, and it is news: an hourly status that says nothing new is told once a day.",
		[]Role{Managed}, []kindOfSubject{aUser}, ofNone, []Outcome{Reported}, statusFields},
	{DriftReported, "A managed device said that the world is not as Keyherald left it. It is told like a status.",
		[]Role{Managed}, []kindOfSubject{aUser}, ofNone, []Outcome{Reported}, append([]field{drift}, statusFields...)},

	// What managed devices do with their users' secrets, beside rotations. Each says when it was in `at`.
	act(SecretRequestAnswered, "A managed device gave another cross-signed device of its user the secret that it asked for."),
	act(SecretRequestRefused, "A managed device did not answer a request for a secret."),
	act(SecretKept, "A managed device kept a secret that it had asked for, or that somebody accepted."),
	act(SecretAccepted, "Somebody accepted a secret that waited for his word at the managed device."),
	act(SecretRejected, "Somebody rejected a secret that waited for his word at the managed device."),
	act(RecoveryKeyProvided, "A managed device was given its user's present recovery key."),
	act(RecoveryKeyReplaced, "A managed device replaced its user's recovery key."),
	act(DeviceVerified, "Another device of the user verified the managed one by emoji."),
	act(AccountEnded, "A managed device's login is refused for good, so it does nothing any more."),

	// Who must be covered.
	{RosterApplied, "A whole roster was applied. What changed by it has events of its own before this one.", people, []kindOfSubject{theRoster}, ofNone, yesNo,
		[]field{because(RefusedEntry, RefusedTooManyUsers, RefusedTooManyLeave), of("users", aNumber, "how many users are on it now"), of("added", aNumber, "how many came"), of("left", aNumber, "how many left"),
			of("exempted", aNumber, "how many were exempted, or otherwise than before"), of("exemptions_ended", aNumber, "how many exemptions were taken back")}},
	{RosterUserAdded, "A user came on the roster: his key must be rotated by the company's rules.", people, []kindOfSubject{aUser}, ofNone, yesNo,
		[]field{because(RefusedEntry, RefusedTooManyUsers, RefusedAlreadySo)}},
	{RosterUserLeft, "A user left the roster: his open rotations are cancelled and his managed devices revoked.", people, []kindOfSubject{aUser}, ofNone, yesNo,
		[]field{because(RefusedEntry, RefusedNotOnRoster), of("rotations", aNumber, "how many rotations were cancelled"), of("devices", aNumber, "how many devices were revoked"),
			of("codes", aNumber, "how many enrollment codes are void")}},
	{RosterExempted, "A user of the roster is exempt until a time, and then is not any more by himself.", people, []kindOfSubject{aUser}, ofNone, yesNo,
		[]field{because(RefusedEntry, RefusedNotOnRoster, RefusedNoReason, RefusedReason, RefusedEndsInThePast, RefusedAlreadySo), reason, until}},
	{RosterExemptionEnded, "An exemption was taken back, before its end or after it.", people, []kindOfSubject{aUser}, ofNone, yesNo, []field{because(RefusedEntry, RefusedNotOnRoster, RefusedNotExempt)}},

	// Messages to and from the bot.
	{MessageDropped, "Messages to the bot were dropped unread; they are counted by the minute.",
		[]Role{Relay}, []kindOfSubject{theMessages}, ofNone, []Outcome{Refused},
		[]field{because(RefusedNotEncrypted, RefusedUnknownSender, RefusedTooMany, RefusedBeforeRestore), minute, of("count", aNumber, "how many there were")}},
	{MessageUndecryptable, "A message to the bot could not be decrypted.",
		[]Role{Sender}, []kindOfSubject{aUser}, ofNone, []Outcome{Refused}, []field{because(RefusedUndecryptable), envelope}},
	{MessageUnusable, "A message to the bot was decrypted and cannot be acted on.",
		[]Role{Sender, Managed}, []kindOfSubject{aUser}, ofNone, []Outcome{Refused},
		[]field{because(RefusedNotEnrolled, RefusedMalformedEnrollment, RefusedMalformedProgress, RefusedMalformedStatus, RefusedUnknownType, RefusedUnknownActs, RefusedUnknownRotation),
			envelope, report, count, of("rotation", anIdentifier, "the rotation that it names, which is none of this user's")}},
	{MessageRefused, "The homeserver refused a message of the bot's, other than a trigger, for good.",
		[]Role{Relay}, []kindOfSubject{aUser}, ofNone, []Outcome{Refused}, []field{because(RefusedByHomeserver),
			word("message", "what it was about", MessageEnrollmentAnswer, MessageRevoked, MessageCancel, MessageGreeting, MessageStoreWentBack, MessageNewSession, MessageRepeat)}},

	// What the bot says in rooms. It reads nothing there.
	{RoomCreated, "The bot has a room for a user, or the admin room.",
		[]Role{Relay}, []kindOfSubject{aUser, theAdmins}, ofNone, []Outcome{Accepted}, []field{room, of("found", aFlag, "yes where it had been made before, and the answer or the row was lost")}},
	{RoomInvited, "The bot invites somebody to the admin room, or a user who had left to his room. Told before it is done.",
		[]Role{Relay}, []kindOfSubject{aUser}, ofNone, []Outcome{Accepted}, []field{room}},
	{RoomMemberRemoved, "The bot removes somebody from the admin room whom the configuration does not name. Told before it is done.",
		[]Role{Relay}, []kindOfSubject{aUser}, ofNone, []Outcome{Accepted}, []field{room}},
	{NoticeQueued, "A notice for a user, or for the admin room, is to be sent. Its text is not in the log.",
		[]Role{Relay}, []kindOfSubject{aUser, theAdmins}, maybe, []Outcome{Accepted},
		[]field{notice, word("about", "what it is about; the last four are for the admin room", NoticeKeyGiven, NoticeDevicesWithout, NoticeUserMustAct, NoticeKeyNotReplaced, NoticeServerStarted, NoticeStatus, NoticeCampaign, NoticeRestored)}},
	{NoticeSent, "The homeserver took a notice, or it is given up.",
		[]Role{Relay}, []kindOfSubject{aUser, theAdmins}, maybe, yesNo, []field{because(RefusedByHomeserver, RefusedUserLeft, RefusedTooLate), notice, room}},

	// The bot and the server.
	{TriggersFrozen, "All triggers were stopped.", people, []kindOfSubject{theTriggers}, ofNone, yesNo, []field{because(RefusedAlreadySo)}},
	{TriggersThawed, "Triggers go again.", people, []kindOfSubject{theTriggers}, ofNone, yesNo, []field{because(RefusedAlreadySo)}},
	{ServerStarted, "A replica of the server starts, with this configuration.", []Role{Operator}, []kindOfSubject{theServer}, ofNone, []Outcome{Accepted},
		[]field{of("software_version", anIdentifier, "the version of keyherald"), of("bot", anIdentifier, "the bot's user id"),
			of("bot_master_key_sha256", aFingerprint, "the bot's master key, which devices pin"), of("sources", identifiers, "the notification sources"),
			of("kms", identifiers, "the KMS whose metadata it may read"), of("log", anIdentifier, "the name of the log that it seals; missing where it seals none"),
			of("sinks", identifiers, "where checkpoints go"), of("development", aFlag, "whether it runs as in development, which it must not"),
			of("storm_percent", aNumber, "`storm.limit.percent`"), of("storm_users", aNumber, "`storm.limit.users`")}},
	{ServerStopped, "A replica of the server ended in order. One that was killed tells nothing.", []Role{Operator}, []kindOfSubject{theServer}, ofNone, []Outcome{Accepted, Failed},
		[]field{word("problem", "`error` where it ended by itself; its own log says which", ProblemError)}},
	{LeaseTaken, "A replica took the bot: it alone decrypts, encrypts and sends from now on. Whoever had it lost it.", []Role{Relay}, []kindOfSubject{aUser}, ofNone, []Outcome{Accepted},
		[]field{of("epoch", aNumber, "the number of the lease, which grows with every change"), of("host", anIdentifier, "the replica's host")}},
	{LeaseReleased, "A replica gave the bot up, in order.", []Role{Relay}, []kindOfSubject{aUser}, ofNone, []Outcome{Accepted}, []field{of("host", anIdentifier, "the replica's host")}},
	{BotLogin, "The bot logged in as its one device; a token that somebody had before is dead.", []Role{Relay}, []kindOfSubject{aUser}, ofNone, yesNo,
		[]field{because(RefusedLoginByHomeserver), botDevice}},
	{BotIdentityPublished, "The bot publishes its cross-signing identity, since the homeserver has none. Told before it is done.", []Role{Relay}, []kindOfSubject{aUser}, ofNone, []Outcome{Accepted},
		[]field{of("master_key_sha256", aFingerprint, "the bot's master key")}},
	{BotIdentityRefused, "The homeserver has another identity for the bot than its files: the server does not go on.", []Role{Relay}, []kindOfSubject{aUser}, ofNone, []Outcome{Refused},
		[]field{because(RefusedForeignIdentity), of("master_key_sha256", aFingerprint, "the master key that the homeserver presents")}},
	{BotDeviceSigned, "The bot cross-signs its device. Told before it is done.", []Role{Relay}, []kindOfSubject{aUser}, ofNone, []Outcome{Accepted}, []field{botDevice}},
	{BotDeviceLoggedOut, "A former device of the bot is logged out.", []Role{Relay}, []kindOfSubject{aUser}, ofNone, []Outcome{Accepted}, []field{botDevice}},
	{BotStopped, "The bot stands still, since the database went back to an earlier state.", []Role{Relay}, []kindOfSubject{aUser}, ofNone, []Outcome{Failed}, []field{word("problem", "why", ProblemWentBack)}},
	{DatabaseMigrated, "The database's schema was brought up to date.", []Role{Operator}, []kindOfSubject{theDatabase}, ofNone, []Outcome{Accepted},
		[]field{of("software_version", anIdentifier, "the version of keyherald"), of("from", aNumber, "the schema's version before, 0 for none"), of("to", aNumber, "its version now")}},
	{DatabaseRestored, "It was declared that the database was restored: the bot has a new device, sequences are above the lost ones, and rotations under way are triggered again.",
		people, []kindOfSubject{theDatabase}, ofNone, yesNo,
		[]field{because(RefusedNoReason, RefusedReason), reason, of("last_event", anIdentifier, "the newest event that survived"), of("gap_from", aTime, "when that was"),
			of("gap_to", aTime, "the declaration"), of("old_bot_device", anIdentifier, "the bot's former device"), of("new_bot_device", anIdentifier, "its new one"),
			of("retriggered", aNumber, "how many rotations are triggered again")}},

	// The API.
	{AccessRefused, "Calls of the API were refused, since nobody knows the caller or he has no role for the route; they are counted by the minute.",
		[]Role{Admin, Anybody}, []kindOfSubject{theAPI}, ofNone, []Outcome{Refused},
		[]field{because(RefusedNoCredentials, RefusedCredentials, RefusedToken, RefusedClaims, RefusedExpired, RefusedRevoked, RefusedNoRole, RefusedRole, RefusedSeveralUsers),
			of("route", anIdentifier, "what was called, as the API's document names it; missing where nobody knows the caller"), minute, count}},
	{TokenCreated, "An API token was made.", people, []kindOfSubject{aToken}, ofNone, yesNo,
		[]field{because(RefusedName, RefusedAlreadySo, RefusedUnknownRole, RefusedLife), word("role", "what it allows", apiRoles...), of("expires_at", aTime, "when it ends")}},
	{TokenRevoked, "An API token was revoked.", people, []kindOfSubject{aToken}, ofNone, yesNo, []field{because(RefusedUnknownToken, RefusedAlreadySo)}},

	// The log itself.
	{SigningKeysChanged, "The log is signed with these keys from now on; checkpoints that the former key signs cover this event.", []Role{Signer}, []kindOfSubject{aLog}, ofNone, []Outcome{Accepted},
		[]field{of("keys", publicKeys, "the verifier keys")}},
	{SealingStopped, "The log is not signed any more, since the database is not what checkpoints say: people must act.", []Role{Signer}, []kindOfSubject{aLog}, ofNone, []Outcome{Failed},
		[]field{word("problem", "`went_back`: an earlier state; `diverged`: another log; `tree_damaged`: somebody changed the tree; `foreign_statement`: an event waits that only the signer may append, and did not", ProblemWentBack, ProblemDiverged, ProblemTreeDamaged, ProblemForeignStatement)}},
	{SealingResumed, "The log is signed again.", []Role{Signer}, []kindOfSubject{aLog}, ofNone, []Outcome{Accepted}, nil},
	{LossAccepted, "The loss of a part of the log was declared; the log goes on in a new epoch, which begins with this event (docs/audit-log.md).",
		people, []kindOfSubject{aLog}, ofNone, yesNo,
		[]field{because(RefusedNoReason, RefusedReason, RefusedNothingLost), reason, of("epoch", aNumber, "the new epoch"), of("surviving_size", aNumber, "how many leaves survive"),
			of("surviving_root", aRoot, "the tree over them"), of("remembered_size", aNumber, "the size of the newest checkpoint that was published"),
			of("remembered_root", aRoot, "its root"), of("remembered_origin", anIdentifier, "its origin")}},
	{EventMissing, "An event that was queued for sealing is not in the log any more: somebody with an owner's rights took it out.",
		[]Role{Signer}, []kindOfSubject{anEvent}, ofNone, []Outcome{Failed}, nil},
	{AlterationFound, "The signer looked over the whole log and found that it is not what was sealed. `keyherald audit verify` lists every place.", []Role{Signer}, []kindOfSubject{aLog}, ofNone, []Outcome{Failed},
		[]field{word("problem", "`altered`: something is another than was sealed; `went_back`: events are missing that a checkpoint covers", ProblemAltered, ProblemWentBack),
			of("findings", aNumber, "how many findings there are"), of("first", aNumber, "the first leaf of the gravest one, where it is about leaves"), of("last", aNumber, "its last")}},
	{DetailRedacted, "The detail of an event was redacted.", auditors, []kindOfSubject{anEvent}, ofNone, yesNo,
		[]field{because(RefusedNoReason, RefusedReason, RefusedNoSuchEvent, RefusedUnreadable, RefusedIsRedaction, RefusedIsLoss, RefusedIsKeys, RefusedRedactedBefore, RefusedDetailMissing), reason}},
	{LogRead, "The log was read with Keyherald's own programs. Plain SQL leaves no event.", auditors, []kindOfSubject{aLog}, maybe, []Outcome{Accepted},
		[]field{word("command", "the command", CommandWatch, CommandList, CommandShow, CommandFollow, CommandCompleteness, CommandVerify, CommandCompliance),
			of("event", anIdentifier, "the event that was asked for"), of("rotation", anIdentifier, "the rotation"), of("user", anIdentifier, "the user"),
			of("actor", anIdentifier, "the actor"), of("actions", identifiers, "the actions"), word("outcome", "the outcome", Accepted, Refused, Failed, Reported),
			since, until, of("from", aNumber, "the leaf that was begun with"), outForm}},
	{LogExported, "A part of the log, or all of it, went out as a file.", auditors, []kindOfSubject{aLog}, maybe, []Outcome{Accepted},
		[]field{word("command", "the command", CommandProve, CommandReport, CommandExport), of("event", anIdentifier, "the event that is proved"), outForm,
			of("size", aNumber, "how many leaves the log had"), since, until}},
}

// byAction are the places of the actions in the vocabulary.
var byAction = func() map[Action]int {
	places := make(map[Action]int, len(vocabulary))
	for i, e := range vocabulary {
		places[e.action] = i
	}
	return places
}()
