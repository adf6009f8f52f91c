// Package policy writes the least rights that Keyherald needs in a key-management system, in that system's own language:
// the server's, which see metadata alone, and a managed device's, which see its own user's key alone. It is pure.
package policy

import (
	"errors"
	"fmt"
	"strings"
	"unicode"

	"github.com/keyherald/keyherald/kms"
)

// Place is where the users' keys are. Path has {user} where a user's name stands, such as keyherald/{user}/backup-key.
type Place struct {
	Path string
	// RecoveryPath is where a device keeps the recovery key of an identity it makes, or empty.
	RecoveryPath string
	// RecoveryRead gives the device the right to read there what it put: one that was killed while it did finds out whether it
	// did. RecoveryReplace is for devices that replace recovery keys, each of which has a path of its own below: the key's id.
	RecoveryRead, RecoveryReplace bool
	// Write gives the device the right to write keys it generates.
	Write bool
}

const placeholder = "{user}"

// Check returns an error that says what is wrong with the paths.
func (p Place) Check() error {
	for _, path := range []string{p.Path, p.RecoveryPath} {
		if path == "" && path == p.RecoveryPath {
			continue
		}
		if strings.Count(path, placeholder) != 1 {
			return fmt.Errorf("the path %q must have {user} in it once, where the user's name stands, such as keyherald/{user}/backup-key", path)
		}
		if err := kms.CheckPath(strings.Replace(path, placeholder, "user", 1)); err != nil {
			return err
		}
		if special(strings.Replace(path, placeholder, "", 1)) {
			return fmt.Errorf("the path %q has a character in it that means something else in a policy", path)
		}
	}
	if p.RecoveryPath == "" && (p.RecoveryRead || p.RecoveryReplace) {
		return errors.New("to let devices read or replace recovery keys, name the path where these are, such as keyherald/{user}/recovery-key")
	}
	if p.Path == p.RecoveryPath {
		return errors.New("the recovery key needs a path of its own")
	}
	if p.RecoveryReplace && mayBeBelow(p.Path, p.RecoveryPath) {
		return fmt.Errorf("%s may be below %s, where devices are to put recovery keys: keep these at a path of their own, such as keyherald/{user}/recovery-key", p.Path, p.RecoveryPath)
	}
	return nil
}

// mayBeBelow reports whether a path is below another for some users; a user may be called like any name in a path.
func mayBeBelow(path, above string) bool {
	names, upper := strings.Split(path, "/"), strings.Split(above, "/")
	if len(names) <= len(upper) {
		return false
	}
	for i, name := range upper {
		if name != names[i] && !strings.Contains(name+names[i], placeholder) {
			return false
		}
	}
	return true
}

// CheckUser refuses a user's name that would reach beyond its own path in a policy.
func CheckUser(user string) error {
	if user == "" || user == "." || user == ".." || strings.ContainsAny(user, "/ ") || special(user) {
		return fmt.Errorf("the user's name %q has a character in it that means something else in a policy, or none", user)
	}
	return nil
}

// special reports what is a pattern, a template or the end of a text in one of the systems' languages.
func special(text string) bool {
	return strings.ContainsAny(text, "*+?\"\\{}$") || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) })
}

// recovery are the paths of a user's recovery keys; below stands for the id of one that replaced another.
func (p Place) recovery(user, below string) []string {
	if p.RecoveryPath == "" {
		return nil
	}
	paths := []string{at(p.RecoveryPath, user)}
	if p.RecoveryReplace {
		paths = append(paths, paths[0]+"/"+below)
	}
	return paths
}

func at(path, user string) string { return strings.Replace(path, placeholder, user, 1) }
