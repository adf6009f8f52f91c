package export

import (
	"strings"

	"github.com/keyherald/keyherald/audit"
)

// class is an OCSF event class.
type class struct {
	uid            int
	name, category string
	// activities are the names of those that are used here; the numbers are OCSF's.
	activities map[int]string
}

var (
	entityManagement = &class{3004, "Entity Management", "Identity & Access Management", map[int]string{1: "Create", 3: "Update", 4: "Delete",
		6: "Enroll", 7: "Unenroll", 9: "Disable", 12: "Suspend", 13: "Resume"}}
	authentication    = &class{3002, "Authentication", "Identity & Access Management", map[int]string{1: "Logon"}}
	apiActivity       = &class{6003, "API Activity", "Application Activity", map[int]string{1: "Create", 3: "Update", 4: "Delete"}}
	datastoreActivity = &class{6005, "Datastore Activity", "Application Activity", map[int]string{1: "Read"}}
	detectionFinding  = &class{2004, "Detection Finding", "Findings", map[int]string{1: "Create", 3: "Close"}}
)

// ocsfClass is what an action is in OCSF.
type ocsfClass struct {
	class    *class
	activity int
	// title is a finding's.
	title string
}

const (
	findingClosed = 3
	otherActivity = 99
)

// name is the activity's; an activity that is OCSF's "Other" has a name of its own.
func (c ocsfClass) name(action audit.Action) string {
	if name, ok := c.class.activities[c.activity]; ok {
		return name
	}
	return string(action)
}

// actionClasses are the actions that are more than a call of the server's: what changes devices, codes, rotations, triggers,
// campaigns and the roster is Entity Management, reading the log is Datastore Activity, and what somebody must look at is a finding.
var actionClasses = map[audit.Action]ocsfClass{
	audit.CodeCreated:          {class: entityManagement, activity: 1},
	audit.CodeBurned:           {class: detectionFinding, activity: 1, title: "An enrollment code was tried too often and is burned"},
	audit.DeviceEnrolled:       {class: entityManagement, activity: 6},
	audit.EnrollmentRefused:    {class: entityManagement, activity: 6},
	audit.GrantCreated:         {class: entityManagement, activity: 1},
	audit.GrantRevoked:         {class: entityManagement, activity: 4},
	audit.GrantBarred:          {class: detectionFinding, activity: 1, title: "Wrong proofs were shown too often for a user, and the grant is void for him"},
	audit.ReenrollmentReleased: {class: entityManagement, activity: 6},
	audit.DeviceRevoked:        {class: entityManagement, activity: 7},
	audit.DeviceWentBack:       {class: detectionFinding, activity: 1, title: "A managed device's store went back to an earlier state, or was copied"},
	audit.RotationHeld:         {class: entityManagement, activity: 12},
	audit.RotationReleased:     {class: entityManagement, activity: 13},
	audit.RotationCancelled:    {class: entityManagement, activity: 4},
	audit.TriggersFrozen:       {class: entityManagement, activity: 12},
	audit.TriggersThawed:       {class: entityManagement, activity: 13},
	audit.RosterUserAdded:      {class: entityManagement, activity: 1},
	audit.RosterUserLeft:       {class: entityManagement, activity: 4},
	audit.RosterExempted:       {class: entityManagement, activity: 12},
	audit.RosterExemptionEnded: {class: entityManagement, activity: 13},
	audit.CampaignStarted:      {class: entityManagement, activity: 1},
	audit.CampaignPaused:       {class: entityManagement, activity: 12},
	audit.CampaignResumed:      {class: entityManagement, activity: 13},
	audit.CampaignAborted:      {class: entityManagement, activity: 4},
	audit.CampaignStopped:      {class: detectionFinding, activity: 1, title: "A campaign stopped: too many of its users failed"},
	audit.BotLogin:             {class: authentication, activity: 1},
	audit.LogRead:              {class: datastoreActivity, activity: 1},
	audit.LogExported:          {class: datastoreActivity, activity: 1},
	audit.DetailRedacted:       {class: apiActivity, activity: 4},
	audit.SealingStopped:       {class: detectionFinding, activity: 1, title: "The audit log is not signed: the database went back, diverged or is damaged"},
	audit.SealingResumed:       {class: detectionFinding, activity: findingClosed, title: "The audit log is signed again"},
	audit.EventMissing:         {class: detectionFinding, activity: 1, title: "An event was deleted before it was sealed"},
	audit.AlterationFound:      {class: detectionFinding, activity: 1, title: "The audit log in the database is not what was sealed"},
	audit.LossAccepted:         {class: detectionFinding, activity: 1, title: "A part of the audit log is lost, and the loss was accepted"},
}

// classOf is what an action is in OCSF: of rotations, devices, campaigns and the roster an update where nothing else is said, and else a call of
// the server's, so that an action which is new is there too.
func classOf(action audit.Action, outcome audit.Outcome) ocsfClass {
	if action == audit.LossAccepted && outcome == audit.Refused {
		return ocsfClass{class: apiActivity, activity: otherActivity} // nothing was found: somebody was told no
	}
	if as, ok := actionClasses[action]; ok {
		return as
	}
	switch noun, _, _ := strings.Cut(string(action), "."); noun {
	case "rotation", "device", "enrollment", "enrollment_code", "grant", "reenrollment", "roster", "campaign":
		return ocsfClass{class: entityManagement, activity: 3}
	case "notification":
		return ocsfClass{class: apiActivity, activity: 1}
	}
	return ocsfClass{class: apiActivity, activity: otherActivity}
}
