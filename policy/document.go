// Package policy is what a company's rules about its people's keys mean: whom each is for, when a key is due, in which
// window it is rotated, and from when on its user is overdue. It is pure: nothing is read and nothing is asked here, and
// the same document, user, key and time always come to the same.
package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/keyherald/keyherald/internal/strictyaml"
)

// Document is a policy as people write it: in a YAML file, or as JSON. Spans of time are texts such as 90d or 2h.
type Document struct {
	// TimeZone is that of the windows that name none, by its IANA name.
	TimeZone string `yaml:"time_zone" json:"time_zone,omitempty"`
	// Rules are looked through from the top: the first whose Who has a user is his, and no other counts for him.
	Rules []Statement `yaml:"rules" json:"rules"`

	file *strictyaml.File
}

// Statement is one rule of a document.
type Statement struct {
	Name string `yaml:"name" json:"name"`
	Who  Who    `yaml:"who" json:"who"`
	// MaxAge is how old a key may become.
	MaxAge string `yaml:"max_age" json:"max_age"`
	// Windows are when rotations may begin; none is always.
	Windows []Hours `yaml:"windows,omitempty" json:"windows,omitempty"`
	// Jitter is over how much open time the users whose keys are due together are spread.
	Jitter string `yaml:"jitter,omitempty" json:"jitter,omitempty"`
	// Grace is how long after MaxAge a user is not overdue yet.
	Grace       string      `yaml:"grace,omitempty" json:"grace,omitempty"`
	Action      Action      `yaml:"action,omitempty" json:"action,omitempty"`
	RotateAfter RotateAfter `yaml:"rotate_after,omitempty" json:"rotate_after,omitempty"`
	OnDrift     OnDrift     `yaml:"on_drift,omitempty" json:"on_drift,omitempty"`
	// Place is where the key of a user is who had no rotation yet; without it such a user waits for his first one.
	Place *Place `yaml:"place,omitempty" json:"place,omitempty"`
}

// Who says whom a rule is for: everybody, or whoever one of the others has.
type Who struct {
	All   bool     `yaml:"all,omitempty" json:"all,omitempty"`
	Globs []string `yaml:"globs,omitempty" json:"globs,omitempty"`
	Users []string `yaml:"users,omitempty" json:"users,omitempty"`
	// CSV is a file beside the document; Parse puts its users to Users, so that a document says everything itself.
	CSV string `yaml:"csv,omitempty" json:"csv,omitempty"`
}

// Hours is a window that opens every week, on Days and at the hours of that day's clock.
type Hours struct {
	TimeZone string `yaml:"time_zone,omitempty" json:"time_zone,omitempty"`
	// Days are those on which it opens, from mon to sun; none is every day.
	Days []string `yaml:"days,omitempty" json:"days,omitempty"`
	// Hours is as 22:00-05:00, which is across midnight; empty is the whole day.
	Hours string `yaml:"hours,omitempty" json:"hours,omitempty"`
}

// Place is a place in a KMS. In Path {user} is the localpart of the user's id.
type Place struct {
	KMS  string `yaml:"kms" json:"kms"`
	Path string `yaml:"path" json:"path"`
}

// Action is who makes the new key of a user.
type Action string

// The actions: the user's managed device makes it; or the KMS does, by a schedule of its own: then nobody is rotated by the
// policy, and whoever is overdue is only said to be.
const (
	DeviceGenerates Action = "device_generates"
	KMSGenerates    Action = "kms_generates"
)

// RotateAfter is when a key is rotated that somebody else read, as a source tells of it.
type RotateAfter string

// When: at once, whatever the windows, as it is without a policy; when a window opens; or not by itself: then the rotation
// is held until an admin releases it.
const (
	AfterDisclosure         RotateAfter = "disclosure"
	AfterDisclosureInWindow RotateAfter = "disclosure_in_window"
	AfterNothing            RotateAfter = "nothing"
)

// OnDrift is what a policy does where a device says that somebody else replaced the key backup.
type OnDrift string

// What it does: report leaves it at the device's word, which is in the log; adopt does, too, and says that the accounts are
// meant to have on_drift: adopt; reclaim has the device make a new key, at most once a day.
const (
	DriftReport  OnDrift = "report"
	DriftAdopt   OnDrift = "adopt"
	DriftReclaim OnDrift = "reclaim"
)

// Parse reads a document in YAML. A mistake is named with its line, path and what to write. csv reads a file that a rule
// names, by its path beside the document's; where it is nil no rule may name one.
func Parse(path string, raw []byte, csv func(path string) ([]byte, error)) (Document, error) {
	var d Document
	file, err := strictyaml.Parse(path, raw, &d)
	if err != nil {
		return d, err
	}
	d.file = file
	return d, file.At(d.resolve(file.Dir(), csv))
}

// ParseJSON reads a document in JSON. It can name no files, since it may come from elsewhere.
func ParseJSON(raw []byte) (Document, error) {
	var d Document
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&d); err != nil {
		return d, fmt.Errorf("the policy cannot be read: %w", err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return d, errors.New("there is data after the policy")
	}
	return d, d.resolve("", nil)
}

// JSON is the document in the one form that is kept: everything said, nothing named that is elsewhere.
func (d Document) JSON() ([]byte, error) {
	raw, err := json.Marshal(d)
	if err != nil {
		return nil, fmt.Errorf("encoding a policy: %w", err)
	}
	return raw, nil
}

func (d *Document) resolve(dir string, csv func(path string) ([]byte, error)) error {
	for i := range d.Rules {
		who := &d.Rules[i].Who
		if who.CSV == "" {
			continue
		}
		if csv == nil {
			return fmt.Errorf("rules[%d].who.csv names a file, which is read by `keyherald policy apply` alone: write the users to who.users", i)
		}
		path := who.CSV
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		raw, err := csv(path)
		if err != nil {
			return fmt.Errorf("rules[%d].who.csv: %w", i, err)
		}
		users, err := usersOf(raw)
		if err != nil {
			return fmt.Errorf("rules[%d].who.csv: %s: %w", i, who.CSV, err)
		}
		who.Users, who.CSV = append(who.Users, users...), ""
	}
	return nil
}
