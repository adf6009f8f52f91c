package audit

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/google/uuid"
	"maunium.net/go/mautrix/id"
)

// Role is in which role somebody acts.
type Role string

// The roles. The command line knows the account that ran it, and the API who called it, and neither what their owner is
// employed for, so admins, operators and auditors look the same in an event.
const (
	Notifier   Role = "notifier"
	Reconciler Role = "reconciler"
	Managed    Role = "device"
	Sender     Role = "sender"
	Admin      Role = "admin"
	Operator   Role = "operator"
	Auditor    Role = "auditor"
	Ruler      Role = "policy"
	Relay      Role = "relay"
	Signer     Role = "signer"
	Anybody    Role = "anybody"
)

// looks is what actors of a role look like in an event.
func (r Role) looks() string {
	switch r {
	case Notifier:
		return "source:<name>"
	case Reconciler:
		return "reconcile:<KMS>"
	case Managed:
		return "@user:server/DEVICE"
	case Sender:
		return "@user:server"
	case Ruler:
		return "policy:<rule>"
	case Admin, Operator, Auditor:
		return "local:<account>@<host>, admin:<name>(<subject>)@<issuer> or admin:token:<name>"
	}
	return string(r)
}

// Actor is who acted.
type Actor struct {
	looks, text string
	identity    string // where that is not the text
}

// String is the actor as the log shows it.
func (a Actor) String() string { return a.text }

// Identity tells whether two actors are the same: unlike String it is without the name that people know somebody by, which
// he may be able to change.
func (a Actor) Identity() string {
	if a.identity != "" {
		return a.identity
	}
	return a.text
}

func (a Actor) has(role Role) bool { return a.looks == role.looks() }

// BySource is whoever called the address of a source and, but for refusals, was authenticated as it.
func BySource(name SourceName) Actor {
	return Actor{looks: Notifier.looks(), text: "source:" + shown(string(name), 128)}
}

// ByReconciler is the server where it asked a KMS by itself.
func ByReconciler(kms KMSName) Actor {
	return Actor{looks: Reconciler.looks(), text: "reconcile:" + shown(string(kms), 128)}
}

// ByDevice is a device by its keys; where an enrollment is refused, as it calls itself.
func ByDevice(user id.UserID, device id.DeviceID) Actor {
	return Actor{looks: Managed.looks(), text: deviceText(user, device)}
}

// BySender is a user as the homeserver names him, of whose device nothing is proved.
func BySender(user id.UserID) Actor { return Actor{looks: Sender.looks(), text: userText(user)} }

// ByLocal is the account that ran a command, and the machine it ran on.
func ByLocal(account AccountName, host HostName) Actor {
	return Actor{looks: Admin.looks(), text: "local:" + shown(string(account), 128) + "@" + shown(string(host), maxIdentifier)}
}

// ByPolicy is the server by a rule of the company's policy.
func ByPolicy(rule RuleName) Actor {
	return Actor{looks: Ruler.looks(), text: "policy:" + shown(string(rule), 64)}
}

// ByPerson is who called the API, as his issuer names him: subject for good, and name, which may be empty, as people know
// him. A name that is not what people are named by is left out.
func ByPerson(issuer IssuerName, subject PersonName, name PersonName) Actor {
	who := shown(string(subject), maxIdentifier)
	if plainName.MatchString(string(name)) && shown(string(name), 128) == string(name) {
		who = string(name) + "(" + who + ")"
	}
	// The lengths keep two subjects apart that are shown alike, or have the sign between them in themselves.
	identity := fmt.Sprintf("person:%d:%s#%s", len(issuer), issuer, subject)
	return Actor{Admin.looks(), "admin:" + who + "@" + shown(string(issuer), maxIdentifier), identity}
}

// plainName is a name that cannot pass for more than one: it has no parentheses, spaces or colons.
var plainName = regexp.MustCompile(`^[\pL\pN._%+@-]{1,128}$`)

// ByToken is who called the API with a token of this name.
func ByToken(name TokenName) Actor {
	return Actor{looks: Admin.looks(), text: "admin:token:" + shown(string(name), 64)}
}

// ByRelay is the server by its own rules.
func ByRelay() Actor { return Actor{looks: Relay.looks(), text: string(Relay)} }

// BySigner is the part of the server that seals the log.
func BySigner() Actor { return Actor{looks: Signer.looks(), text: string(Signer)} }

// ByAnybody is somebody of whom nothing is known.
func ByAnybody() Actor { return Actor{looks: Anybody.looks(), text: string(Anybody)} }

// kindOfSubject is what an event is about.
type kindOfSubject string

const (
	aUser        kindOfSubject = "the user"
	aDevice      kindOfSubject = "the device, as user/DEVICE"
	aSource      kindOfSubject = "the source"
	anEvent      kindOfSubject = "the event's id"
	aLog         kindOfSubject = "the log, by its name"
	theServer    kindOfSubject = "`server`"
	theDatabase  kindOfSubject = "`database`"
	theTriggers  kindOfSubject = "`triggers`"
	theRotations kindOfSubject = "`rotations`"
	thePolicy    kindOfSubject = "`policy`"
	theCampaigns kindOfSubject = "`campaigns`"
	aCampaign    kindOfSubject = "the campaign's id"
	theIntake    kindOfSubject = "`intake`"
	theMessages  kindOfSubject = "`messages`"
	theAdmins    kindOfSubject = "`admins`"
	theRoster    kindOfSubject = "`roster`"
	theGrants    kindOfSubject = "`grants`"
	theUsers     kindOfSubject = "`users`"
	theDevices   kindOfSubject = "`devices`"
	theAPI       kindOfSubject = "`api`"
	aToken       kindOfSubject = "the API token, by its name"
)

func (k kindOfSubject) subject() Subject { return Subject{k, strings.Trim(string(k), "`")} }

// Subject is what an event is about.
type Subject struct {
	kind kindOfSubject
	text string
}

// String is the subject as the log shows it.
func (s Subject) String() string { return s.text }

// OfUser is a user, the bot among them.
func OfUser(user id.UserID) Subject { return Subject{aUser, userText(user)} }

// OfDevice is a device of a user.
func OfDevice(user id.UserID, device id.DeviceID) Subject {
	return Subject{aDevice, deviceText(user, device)}
}

// OfSource is a notification source.
func OfSource(name SourceName) Subject { return Subject{aSource, shown(string(name), 128)} }

// OfEvent is another event.
func OfEvent(event uuid.UUID) Subject { return Subject{anEvent, event.String()} }

// OfLog is an audit log. One that is not sealed, as in development, has no name.
func OfLog(name LogName) Subject {
	if name == "" {
		name = "unnamed"
	}
	return Subject{aLog, shown(string(name), maxIdentifier)}
}

// OfServer is the server as a whole.
func OfServer() Subject { return theServer.subject() }

// OfDatabase is the database as a whole.
func OfDatabase() Subject { return theDatabase.subject() }

// OfTriggers are all triggers.
func OfTriggers() Subject { return theTriggers.subject() }

// OfRotations are all rotations, or one that is not known.
func OfRotations() Subject { return theRotations.subject() }

// OfPolicy is the company's policy.
func OfPolicy() Subject { return thePolicy.subject() }

// OfRoster is the roster as a whole.
func OfRoster() Subject { return theRoster.subject() }

// OfCampaign is one campaign.
func OfCampaign(campaign uuid.UUID) Subject { return Subject{aCampaign, campaign.String()} }

// OfCampaigns are all campaigns, or one that is not there.
func OfCampaigns() Subject { return theCampaigns.subject() }

// OfIntake is what notifications arrive at, whatever their source.
func OfIntake() Subject { return theIntake.subject() }

// OfGrants are the grants to enroll without a code; the detail says which.
func OfGrants() Subject { return theGrants.subject() }

// OfUsers are several users at once, of whom nothing was done.
func OfUsers() Subject { return theUsers.subject() }

// OfDevices are the managed devices, or one that is not known.
func OfDevices() Subject { return theDevices.subject() }

// OfMessages are the to-device messages that the bot gets.
func OfMessages() Subject { return theMessages.subject() }

// OfAdmins are those in the admin room.
func OfAdmins() Subject { return theAdmins.subject() }

// OfAPI is the API as a whole.
func OfAPI() Subject { return theAPI.subject() }

// OfToken is an API token, by its name.
func OfToken(name TokenName) Subject { return Subject{aToken, "token:" + shown(string(name), 64)} }

// userText shows what is no user id as its fingerprint.
func userText(user id.UserID) string {
	if _, _, err := user.Parse(); err != nil {
		return fingerprint(string(user))
	}
	return shown(string(user), id.UserIDMaxLength)
}

// deviceText has one slash behind the user, the last one: an id of a device that has one is shown as its fingerprint.
// The id of a dehydrated device is a public key, so that it is, too.
func deviceText(user id.UserID, device id.DeviceID) string {
	return userText(user) + "/" + deviceIDText(device)
}

func deviceIDText(device id.DeviceID) string {
	if strings.Contains(string(device), "/") {
		return fingerprint(string(device))
	}
	return shown(string(device), maxIdentifier)
}
