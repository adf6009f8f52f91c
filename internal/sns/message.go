// Package sns verifies what Amazon SNS delivers over HTTPS, and confirms subscriptions to topics that were named
// beforehand
// (https://docs.aws.amazon.com/sns/latest/dg/sns-verify-signature-of-message.html).
package sns

import (
	"bytes"
	"crypto"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/keyherald/keyherald/internal/strictjson"
)

// The types of messages.
const (
	Notification             = "Notification"
	SubscriptionConfirmation = "SubscriptionConfirmation"
	UnsubscribeConfirmation  = "UnsubscribeConfirmation"
)

// Message is what SNS posts.
type Message struct {
	Type, MessageID, TopicARN, Message string
	// Subject counts in the signature only where it is there, so an empty one is not none.
	Subject   *string
	Timestamp time.Time
	// Token and SubscribeURL are those of the confirmations alone.
	Token, SubscribeURL string

	timestamp, signingCertURL string
	hash                      crypto.Hash
	signature                 []byte
}

// ErrMessage is a body that SNS does not send.
var ErrMessage = errors.New("not a signed message of Amazon SNS")

// Parse reads a body, of which nothing is verified yet.
func Parse(body []byte) (Message, error) {
	value, err := strictjson.Parse(body)
	members, ok := value.(map[string]any)
	if err != nil || !ok {
		return Message{}, ErrMessage
	}
	text := func(name string) string {
		value, _ := members[name].(string)
		return value
	}
	m := Message{Type: text("Type"), MessageID: text("MessageId"), TopicARN: text("TopicArn"), Message: text("Message"),
		timestamp: text("Timestamp"), Token: text("Token"), SubscribeURL: text("SubscribeURL"), signingCertURL: text("SigningCertURL")}
	if subject, there := members["Subject"]; there && subject != nil {
		value, ok := subject.(string)
		if !ok {
			return Message{}, ErrMessage
		}
		m.Subject = &value
	}
	switch text("SignatureVersion") {
	case "1":
		m.hash = crypto.SHA1
	case "2":
		m.hash = crypto.SHA256
	default:
		return Message{}, ErrMessage
	}
	m.signature, err = base64.StdEncoding.Strict().DecodeString(text("Signature"))
	if err != nil || len(m.signature) == 0 || len(m.signature) > 1024 {
		return Message{}, ErrMessage
	}
	if m.Timestamp, err = time.Parse(time.RFC3339Nano, m.timestamp); err != nil {
		return Message{}, ErrMessage
	}
	if m.Message == "" || m.MessageID == "" || m.TopicARN == "" || m.signingCertURL == "" || m.ambiguous() {
		return Message{}, ErrMessage
	}
	confirmation := m.Type == SubscriptionConfirmation || m.Type == UnsubscribeConfirmation
	if !confirmation && m.Type != Notification || confirmation && (m.Token == "" || m.SubscribeURL == "" || m.Subject != nil) {
		return Message{}, ErrMessage
	}
	return m, nil
}

// ambiguous reports whether the signed text could be that of another message too: it separates names and values by line
// breaks, so only one of them, the message, may have line breaks of its own.
func (m Message) ambiguous() bool {
	values := []string{m.Type, m.MessageID, m.TopicARN, m.timestamp, m.Token, m.SubscribeURL}
	if m.Subject != nil {
		values = append(values, *m.Subject)
	}
	return strings.Contains(strings.Join(values, ""), "\n")
}

// canonical is the text that is signed.
func (m Message) canonical() []byte {
	var text bytes.Buffer
	add := func(name, value string) { _, _ = fmt.Fprintf(&text, "%s\n%s\n", name, value) }
	add("Message", m.Message)
	add("MessageId", m.MessageID)
	if m.Type == Notification {
		if m.Subject != nil {
			add("Subject", *m.Subject)
		}
	} else {
		add("SubscribeURL", m.SubscribeURL)
	}
	add("Timestamp", m.timestamp)
	if m.Type != Notification {
		add("Token", m.Token)
	}
	add("TopicArn", m.TopicARN)
	add("Type", m.Type)
	return text.Bytes()
}

// Topic is the name of a topic, taken apart.
type Topic struct {
	ARN string
	// Host is where the topic's region serves the API and the certificates.
	Host string
	// names are those that the region's signing certificate may have.
	names []string
}

var arn = regexp.MustCompile(`^arn:(aws|aws-cn|aws-us-gov):sns:([a-z]{2}(?:-[a-z]+)+-[0-9]{1,2}):[0-9]{12}:[A-Za-z0-9_-]{1,256}$`)

// ParseTopic reads a topic's ARN. FIFO topics do not deliver over HTTPS, so theirs is an error.
func ParseTopic(text string) (Topic, error) {
	parts := arn.FindStringSubmatch(text)
	if parts == nil {
		return Topic{}, fmt.Errorf("%q is not the ARN of a standard topic, such as arn:aws:sns:eu-central-1:123456789012:keyherald", text)
	}
	domain, region := "amazonaws.com", parts[2]
	if parts[1] == "aws-cn" {
		domain = "amazonaws.com.cn"
	}
	// Which of these a region's certificate has is in no document; AWS's own SDK for Java has a list, by region.
	names := []string{"sns." + domain, "sns." + region + "." + domain, "sns-signing." + region + "." + domain, "sns-" + region + "." + domain}
	if parts[1] == "aws-us-gov" {
		names = append(names, "sns-us-gov-west-1."+domain)
	}
	return Topic{ARN: text, Host: "sns." + region + "." + domain, names: names}, nil
}

var certificatePath = regexp.MustCompile(`^/SimpleNotificationService-[0-9a-f]{8,64}\.pem$`)

// certificate returns the address of the message's certificate, as far as it is one that the topic's region serves.
func (t Topic) certificate(address string) (string, bool) {
	path, ok := strings.CutPrefix(address, "https://"+t.Host)
	return address, ok && certificatePath.MatchString(path)
}

var token = regexp.MustCompile(`^[A-Za-z0-9+/=_-]{1,1000}$`)

// confirmation makes the address that confirms a subscription, out of the topic as it was configured. The message's own
// address must say the same and is not used.
func (t Topic) confirmation(m Message) (string, bool) {
	u, err := url.Parse(m.SubscribeURL)
	if err != nil || u.Scheme != "https" || u.Host != t.Host || u.User != nil || !token.MatchString(m.Token) {
		return "", false
	}
	query := u.Query()
	if query.Get("Action") != "ConfirmSubscription" || query.Get("TopicArn") != t.ARN || query.Get("Token") != m.Token {
		return "", false
	}
	ours := url.Values{"Action": {"ConfirmSubscription"}, "TopicArn": {t.ARN}, "Token": {m.Token}}
	return "https://" + t.Host + "/?" + ours.Encode(), true
}
