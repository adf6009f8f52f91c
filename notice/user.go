package notice

import (
	"slices"
	"strconv"

	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/protocol"
	"github.com/keyherald/keyherald/rotation"
)

// Send is when a user gets a notice.
type Send string

// The choices; SendOnProblem is the default.
const (
	SendNever     Send = "never"
	SendOnProblem Send = "on_problem"
	SendAlways    Send = "always"
)

// Valid reports whether it is one of the choices.
func (s Send) Valid() bool { return s == SendNever || s == SendOnProblem || s == SendAlways }

// Target is a device of the user, and what became of it. Name is what its user called it, which is foreign text.
type Target struct {
	DeviceID id.DeviceID
	Name     string
	Outcome  protocol.Outcome
}

// String is the device as its user knows it: names are alike, and so the id stands beside it.
func (t Target) String() string {
	name, key := Foreign(t.Name), Foreign(string(t.DeviceID))
	if name == "" || name == key {
		return key
	}
	return name + " (" + key + ")"
}

const (
	closing     = "Nobody can write in this room. Keyherald never asks for a password, a recovery key or a code."
	nothingToDo = "Your company keeps the key of your message backup and has put a new one in place. There is nothing else to do."
)

// ForUser is what the user of a rotation is told of how it stands, if anything: an open rotation where he must act, and an
// end that says something. Targets are what became of his devices.
func ForUser(facts rotation.Facts, targets []Target, send Send) (about audit.NoticeAbout, text Text, tell bool) {
	if send == SendNever {
		return about, text, false
	}
	switch facts.State {
	case rotation.Done:
		about, text = given(targets)
		return about, text, about != audit.NoticeKeyGiven || send == SendAlways
	case rotation.Failed, rotation.TimedOut:
		return audit.NoticeKeyNotReplaced, Text{"Your message backup did not get its new key", []Part{
			{Says: "Your company wanted to replace the key of your message backup, and that did not work. Your backup is as it was, and no message is lost."},
			{Says: "There is nothing for you to do: your administrators see it, and try again."}, {Says: closing}}}, true
	}
	if says, ok := userMust[facts.Attention]; ok && !facts.State.Ended() {
		return audit.NoticeUserMustAct, Text{"Your message backup needs you", []Part{{Says: says[0]}, {Says: says[1]}, {Says: closing}}}, true
	}
	return about, text, false
}

// userMust are the causes of needs_attention that the user himself can mend: what is the matter, and what to do. A test holds
// it against the table of causes.
var userMust = map[protocol.ErrorCode][2]string{
	protocol.AttentionOldKeyMissing: {"Your company wants to replace the key of your message backup, and the present key is nowhere to be had. Nothing was changed, so that no message is lost.",
		"Open Element, or the Matrix client that you use, on a verified device where you can read your old messages, and leave it open for some minutes. If there is none, ask your administrators: they can help with your recovery key."},
	protocol.AttentionRecoveryCopyNotWritable: {"Your company wants to replace the key of your message backup, and cannot renew the copy that your recovery key opens, since your recovery key was changed. Nothing was changed.",
		"Ask your administrators: they tell you how to give your present recovery key to your managed device. Give it to nobody in a message."},
	protocol.AttentionBackupChanged: {"While your company replaced the key of your message backup, somebody with your account set up another backup. Yours was left alone.",
		"If that was you, tell your administrators, who try again. If it was not, tell them at once."},
	protocol.RejectedUserOptedOut: {"Your company wants to replace the key of your message backup, and you have switched the backup off. Nothing was changed.",
		"If you want to have a backup, switch it on in the settings of your Matrix client. If not, tell your administrators."},
}

func given(targets []Target) (audit.NoticeAbout, Text) {
	var got, unverified, missed []string
	for _, t := range targets {
		switch t.Outcome {
		case protocol.OutcomeSent, protocol.OutcomeAdopted:
			got = append(got, t.String())
		case protocol.OutcomeSkippedUnverified:
			unverified = append(unverified, t.String())
		case protocol.OutcomeNoOneTimeKey, protocol.OutcomeFailed, protocol.OutcomeSuperseded:
			missed = append(missed, t.String())
		}
		// That a device is excluded is an admin's will, and a dehydrated one is nobody's to look at.
	}
	text := Text{Title: "Your message backup has a new key", Parts: []Part{{Says: nothingToDo}}}
	if len(unverified)+len(missed) > 0 {
		text = Text{Title: "Some of your devices did not get the new key of your message backup",
			Parts: []Part{{Says: "Your company keeps the key of your message backup and has put a new one in place."}}}
	}
	for _, list := range []struct {
		says  string
		items []string
	}{
		{"The new key was sent to:", got},
		{"These devices are not verified, and so did not get it. If one is yours, open it and verify it with another of your devices or with your recovery key: then it gets the key by itself. If one is not yours, sign it out from a verified device, and tell your administrators.", unverified},
		{"These devices are verified, and could not be given it. They get it later by themselves if they are in use. If old messages cannot be read there, verify the device once more; if you do not use it any more, sign it out.", missed},
	} {
		if len(list.items) > 0 {
			slices.Sort(list.items)
			text.Parts = append(text.Parts, Part{list.says, list.items})
		}
	}
	text.Parts = append(text.Parts, Part{Says: closing})
	if len(unverified)+len(missed) > 0 {
		return audit.NoticeDevicesWithout, text
	}
	return audit.NoticeKeyGiven, text
}

func number(n int) string { return strconv.Itoa(n) }
