package export

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/google/uuid"

	"github.com/keyherald/keyherald/audit"
)

// OCSFVersion is the version of the Open Cybersecurity Schema Framework (https://schema.ocsf.io) that OCSF writes.
const OCSFVersion = "1.8.0"

// OCSF returns an Encoder that writes OCSF events of the named log, one JSON object a line. ocsfclass.go says which class
// an action has. What OCSF has no place for is under unmapped, and the event's own bytes are raw_data.
func OCSF(log string) Encoder {
	return func(to io.Writer, record audit.Record) error {
		event, err := ocsfOf(log, record)
		if err != nil {
			return err
		}
		return writeJSON(to, event)
	}
}

// ocsfEvent has the attributes that any of the classes needs; which of them an event has depends on its class.
type ocsfEvent struct {
	ActivityID   int           `json:"activity_id"`
	ActivityName string        `json:"activity_name"`
	CategoryUID  int           `json:"category_uid"`
	CategoryName string        `json:"category_name"`
	ClassUID     int           `json:"class_uid"`
	ClassName    string        `json:"class_name"`
	TypeUID      int           `json:"type_uid"`
	TypeName     string        `json:"type_name"`
	Time         int64         `json:"time"` // Unix milliseconds
	SeverityID   int           `json:"severity_id"`
	Severity     string        `json:"severity"`
	StatusID     int           `json:"status_id"`
	Status       string        `json:"status"`
	StatusDetail string        `json:"status_detail,omitempty"`
	Message      string        `json:"message"`
	Metadata     ocsfMetadata  `json:"metadata"`
	Actor        *ocsfActor    `json:"actor,omitempty"`
	SrcEndpoint  *ocsfEndpoint `json:"src_endpoint,omitempty"`
	API          *ocsfAPI      `json:"api,omitempty"`
	Entity       *ocsfNamed    `json:"entity,omitempty"`
	User         *ocsfUser     `json:"user,omitempty"`
	Service      *ocsfNamed    `json:"service,omitempty"`
	Database     *ocsfDatabase `json:"database,omitempty"`
	FindingInfo  *ocsfFinding  `json:"finding_info,omitempty"`
	RawData      string        `json:"raw_data"`
	Unmapped     ocsfUnmapped  `json:"unmapped"`
}

type ocsfMetadata struct {
	Version        string      `json:"version"`
	Product        ocsfProduct `json:"product"`
	LogName        string      `json:"log_name,omitempty"`
	UID            string      `json:"uid"`
	CorrelationUID string      `json:"correlation_uid,omitempty"`
	EventCode      string      `json:"event_code"`
	Sequence       *int64      `json:"sequence,omitempty"`
}

type ocsfProduct struct {
	Name       string `json:"name"`
	VendorName string `json:"vendor_name"`
}

type ocsfActor struct {
	User    *ocsfUser `json:"user,omitempty"`
	AppName string    `json:"app_name,omitempty"`
}

type ocsfUser struct {
	Name   string `json:"name"`
	UID    string `json:"uid"`
	TypeID int    `json:"type_id"`
	Type   string `json:"type"`
}

type ocsfEndpoint struct {
	Hostname string `json:"hostname,omitempty"`
	UID      string `json:"uid,omitempty"`
	SvcName  string `json:"svc_name,omitempty"`
}

type ocsfAPI struct {
	Operation string    `json:"operation"`
	Service   ocsfNamed `json:"service"`
}

type ocsfNamed struct {
	Name string `json:"name,omitempty"`
	UID  string `json:"uid,omitempty"`
	Type string `json:"type,omitempty"`
}

type ocsfDatabase struct {
	Name   string `json:"name"`
	TypeID int    `json:"type_id"`
	Type   string `json:"type"`
}

type ocsfFinding struct {
	UID   string   `json:"uid"`
	Title string   `json:"title"`
	Types []string `json:"types"`
}

type ocsfUnmapped struct {
	Subject    string          `json:"subject"`
	Outcome    audit.Outcome   `json:"outcome"`
	Rotation   string          `json:"rotation,omitempty"`
	Detail     json.RawMessage `json:"detail,omitempty"`
	RedactedBy string          `json:"redacted_by,omitempty"`
	LeafHash   string          `json:"leaf_hash,omitempty"`
}

func ocsfOf(log string, record audit.Record) (ocsfEvent, error) {
	line, fields, err := open(record)
	if err != nil {
		return ocsfEvent{}, err
	}
	as := classOf(line.Action, line.Outcome)
	actor, endpoint := ocsfActorOf(line.Actor)
	event := ocsfEvent{
		ActivityID: as.activity, ActivityName: as.name(line.Action), CategoryUID: as.class.uid / 1000, CategoryName: as.class.category,
		ClassUID: as.class.uid, ClassName: as.class.name, TypeUID: as.class.uid*100 + as.activity,
		Time:     fields.Time.UnixMilli(),
		Message:  fmt.Sprintf("%s by %s on %s: %s", line.Action, line.Actor, line.Subject, line.Outcome),
		Metadata: ocsfMetadata{Version: OCSFVersion, Product: ocsfProduct{"Keyherald", "Keyherald"}, LogName: log, UID: line.ID.String(), CorrelationUID: line.Rotation, EventCode: string(line.Action), Sequence: line.Index},
		Actor:    actor, SrcEndpoint: endpoint, RawData: string(record.Body),
		Unmapped: ocsfUnmapped{Subject: line.Subject, Outcome: line.Outcome, Rotation: line.Rotation, Detail: line.Detail, LeafHash: base64.StdEncoding.EncodeToString(record.LeafHash)},
	}
	event.TypeName = event.ClassName + ": " + event.ActivityName
	if record.RedactedBy != uuid.Nil {
		event.Unmapped.RedactedBy = record.RedactedBy.String()
	}
	event.status(as, line)
	switch as.class {
	case apiActivity:
		event.API = &ocsfAPI{Operation: string(line.Action), Service: ocsfNamed{Name: "Keyherald"}}
	case entityManagement:
		noun, _, _ := strings.Cut(string(line.Action), ".")
		event.Entity = &ocsfNamed{Name: line.Subject, UID: line.Rotation, Type: noun}
		if line.Subject == "" && line.Rotation == "" {
			event.Entity.Name = noun
		}
	case authentication:
		event.User, event.Service = ocsfUserOf(cmp.Or(line.Subject, line.Actor)), &ocsfNamed{Name: "Matrix homeserver"}
	case datastoreActivity:
		event.Database = &ocsfDatabase{Name: "audit log " + log, TypeID: 1, Type: "Relational"}
	case detectionFinding:
		// Findings are about what was found, not about who acts.
		event.Actor, event.SrcEndpoint = nil, nil
		event.FindingInfo = &ocsfFinding{UID: line.ID.String(), Title: as.title, Types: []string{string(line.Action)}}
	}
	return event, nil
}

// status fills in status and severity. What a device says of itself is not known to be so.
func (e *ocsfEvent) status(as ocsfClass, line Line) {
	e.SeverityID, e.Severity = 1, "Informational"
	switch {
	case as.class == detectionFinding && as.activity == findingClosed:
		e.StatusID, e.Status = 4, "Resolved"
		return
	case as.class == detectionFinding:
		e.StatusID, e.Status, e.SeverityID, e.Severity = 1, "New", 4, "High"
		return
	}
	switch line.Outcome {
	case audit.Accepted:
		e.StatusID, e.Status = 1, "Success"
	case audit.Refused:
		e.StatusID, e.Status, e.SeverityID, e.Severity = 2, "Failure", 3, "Medium"
	case audit.Failed:
		e.StatusID, e.Status, e.SeverityID, e.Severity = 2, "Failure", 4, "High"
	default:
		e.StatusID, e.Status = 99, string(line.Outcome)
	}
	var detail struct {
		Refusal string `json:"refusal"`
		Error   string `json:"error"`
		Reason  string `json:"reason"`
	}
	if e.StatusID != 1 && json.Unmarshal(line.Detail, &detail) == nil {
		e.StatusDetail = cmp.Or(detail.Refusal, detail.Error, detail.Reason)
	}
}

// ocsfActorOf takes an actor apart: "local:user@host" ran a command, "admin:…" called the API, "source:name" notified, "@user:server/device" is a
// device, and anything else is a part of the server.
func ocsfActorOf(actor string) (*ocsfActor, *ocsfEndpoint) {
	if local, ok := strings.CutPrefix(actor, "local:"); ok {
		name, host, _ := strings.Cut(local, "@")
		endpoint := &ocsfEndpoint{Hostname: host}
		if host == "" {
			endpoint.SvcName = "keyherald"
		}
		return &ocsfActor{User: &ocsfUser{Name: name, UID: actor, TypeID: 2, Type: "Admin"}}, endpoint
	}
	if caller, ok := strings.CutPrefix(actor, "admin:"); ok {
		// A token has no issuer, and a person the one behind the last @.
		endpoint := &ocsfEndpoint{SvcName: "keyherald"}
		name := caller
		if i := strings.LastIndex(caller, "@"); i >= 0 {
			name, endpoint.SvcName = caller[:i], caller[i+1:]
		}
		return &ocsfActor{User: &ocsfUser{Name: name, UID: actor, TypeID: 2, Type: "Admin"}}, endpoint
	}
	if source, ok := strings.CutPrefix(actor, "source:"); ok {
		return &ocsfActor{AppName: actor}, &ocsfEndpoint{SvcName: source}
	}
	if strings.HasPrefix(actor, "@") {
		user, device, _ := strings.Cut(actor, "/")
		endpoint := &ocsfEndpoint{UID: device}
		if device == "" {
			_, endpoint.SvcName, _ = strings.Cut(user, ":")
		}
		return &ocsfActor{User: ocsfUserOf(user)}, endpoint
	}
	return &ocsfActor{AppName: "keyherald/" + actor}, &ocsfEndpoint{SvcName: "keyherald"}
}

func ocsfUserOf(user string) *ocsfUser {
	return &ocsfUser{Name: user, UID: user, TypeID: 1, Type: "User"}
}
