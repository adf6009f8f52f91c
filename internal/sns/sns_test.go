package sns

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"
)

func notification(change ...func(map[string]any)) map[string]any {
	m := map[string]any{"Type": Notification, "MessageId": "9d2c5580-b61d-550c-8583-37a582870907", "TopicArn": topicARN, "Subject": "s", "Message": "one\ntwo",
		"Timestamp": now.UTC().Format("2006-01-02T15:04:05.000Z"), "SignatureVersion": "2", "SigningCertURL": certAddress,
		"UnsubscribeURL": host + "/?Action=Unsubscribe&SubscriptionArn=x"}
	for _, c := range change {
		c(m)
	}
	return m
}

func confirmation(change ...func(map[string]any)) map[string]any {
	return notification(append([]func(map[string]any){func(m map[string]any) {
		delete(m, "Subject")
		m["Type"], m["Token"] = SubscriptionConfirmation, "2336412f37fb687f5d51e6e2425929f5"
		m["SubscribeURL"] = host + "/?Action=ConfirmSubscription&TopicArn=" + topicARN + "&Token=2336412f37fb687f5d51e6e2425929f5"
	}}, change...)...)
}

func set(name string, value any) func(map[string]any) {
	return func(m map[string]any) { m[name] = value }
}

func without(name string) func(map[string]any) { return func(m map[string]any) { delete(m, name) } }

func (a *amazon) verifier(change ...func(*Config)) *Verifier {
	topic, err := ParseTopic(topicARN)
	check(a.t, err)
	config := Config{Topics: []Topic{topic}}
	for _, c := range change {
		c(&config)
	}
	return NewVerifier(config, a.fetch, func() time.Time { return now })
}

func (a *amazon) verify(body []byte, change ...func(*Config)) error {
	m, err := Parse(body)
	if err != nil {
		return err
	}
	return a.verifier(change...).Verify(context.Background(), m)
}

// altered changes a message after it was signed.
func altered(body []byte, change func(map[string]any)) []byte {
	var m map[string]any
	if err := json.Unmarshal(body, &m); err != nil {
		panic(err)
	}
	m = maps.Clone(m)
	change(m)
	again, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	return again
}

func TestVerify(t *testing.T) {
	a := newAmazon(t)
	at := func(name string) string { return host + "/SimpleNotificationService-" + name + ".pem" }
	a.certify(at("eeee0001"), 2048, func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Second) })
	a.certify(at("eeee0002"), 2048, func(c *x509.Certificate) { c.NotBefore = now.Add(time.Hour) })
	a.certify(at("eeee0003"), 2048, func(c *x509.Certificate) { c.DNSNames = []string{"sqs.amazonaws.com"} })
	a.certify(at("eeee0004"), 1024, func(*x509.Certificate) {})
	a.certify(at("eeee0005"), 2048, func(c *x509.Certificate) { c.DNSNames = []string{"sns-signing.eu-central-1.amazonaws.com"} })
	a.certify(at("eeee0006"), 2048, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment })
	a.certify(at("eeee0007"), 2048, func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true })
	a.publish(at("eeee0008"), a.caKey.Public(), func(*x509.Certificate) {})
	a.serve[at("eeee0009")] = []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
	a.serve[at("eeee0010")] = []byte("no PEM at all")
	stranger := newAmazon(t)
	signed := a.sign(notification())
	cert := func(name string) func(map[string]any) { return set("SigningCertURL", at(name)) }
	for _, test := range []struct {
		name string
		body []byte
		want error
	}{
		{"a notification, signed with SHA-256", signed, nil},
		{"signed with SHA-1", a.sign(notification(set("SignatureVersion", "1"))), nil},
		{"without a subject", a.sign(notification(without("Subject"))), nil},
		{"with an empty subject", a.sign(notification(set("Subject", ""))), nil},
		{"a confirmation", a.sign(confirmation()), nil},
		{"the end of a subscription", a.sign(confirmation(set("Type", UnsubscribeConfirmation))), nil},
		{"an hour old", a.sign(notification(set("Timestamp", now.Add(-time.Hour).UTC().Format(time.RFC3339Nano)))), nil},
		{"another name of the region's certificate", a.sign(notification(cert("eeee0005"))), nil},
		{"older than SNS delivers", a.sign(notification(set("Timestamp", now.Add(-maxAge-skew-time.Second).UTC().Format(time.RFC3339Nano)))), ErrStale},
		{"from the future", a.sign(notification(set("Timestamp", now.Add(skew+time.Second).UTC().Format(time.RFC3339Nano)))), ErrStale},
		{"another message under the signature", altered(signed, set("Message", "three")), ErrSignature},
		{"another id under the signature", altered(signed, set("MessageId", "x")), ErrSignature},
		{"the subject taken away", altered(signed, without("Subject")), ErrSignature},
		{"SHA-1 claimed for SHA-256", altered(signed, set("SignatureVersion", "1")), ErrSignature},
		{"signed by a stranger", stranger.sign(notification()), ErrSignature},
		{"another topic", a.sign(notification(set("TopicArn", topicARN+"2"))), ErrTopic},
		{"a topic of another account", a.sign(notification(set("TopicArn", "arn:aws:sns:eu-central-1:210987654321:keyherald"))), ErrTopic},
		{"an expired certificate", a.sign(notification(cert("eeee0001"))), ErrCertificate},
		{"a certificate of tomorrow", a.sign(notification(cert("eeee0002"))), ErrCertificate},
		{"a certificate of another service", a.sign(notification(cert("eeee0003"))), ErrCertificate},
		{"a key that is too short", a.sign(notification(cert("eeee0004"))), ErrCertificate},
		{"a certificate that may not sign", a.sign(notification(cert("eeee0006"))), ErrCertificate},
		{"an authority's certificate", a.sign(notification(cert("eeee0007"))), ErrCertificate},
		{"a certificate of another kind of key", a.sign(notification(cert("eeee0008"))), ErrCertificate},
		{"a certificate that is none", a.sign(notification(cert("eeee0009"))), ErrCertificate},
		{"no PEM", a.sign(notification(cert("eeee0010"))), ErrCertificate},
		{"a certificate that is not there", a.sign(notification(cert("eeee9999"))), ErrCertificate},
		{"a certificate of another region", a.sign(notification(set("SigningCertURL", "https://sns.us-east-1.amazonaws.com/SimpleNotificationService-eeee0001.pem"))), ErrCertificate},
		{"a certificate from a host that begins alike", a.sign(notification(set("SigningCertURL", "https://sns.eu-central-1.amazonaws.com.evil.example/SimpleNotificationService-eeee0001.pem"))), ErrCertificate},
		{"a certificate from a host behind a user", a.sign(notification(set("SigningCertURL", "https://sns.eu-central-1.amazonaws.com@evil.example/SimpleNotificationService-eeee0001.pem"))), ErrCertificate},
		{"a certificate from a bucket", a.sign(notification(set("SigningCertURL", "https://s3.amazonaws.com/evil/SimpleNotificationService-eeee0001.pem"))), ErrCertificate},
		{"a certificate without TLS", a.sign(notification(set("SigningCertURL", "http://sns.eu-central-1.amazonaws.com/SimpleNotificationService-eeee0001.pem"))), ErrCertificate},
		{"a certificate at another port", a.sign(notification(set("SigningCertURL", "https://sns.eu-central-1.amazonaws.com:8443/SimpleNotificationService-eeee0001.pem"))), ErrCertificate},
		{"a certificate with a query", a.sign(notification(set("SigningCertURL", certAddress+"?x=1"))), ErrCertificate},
		{"a certificate above the root", a.sign(notification(set("SigningCertURL", host+"/../SimpleNotificationService-eeee0001.pem"))), ErrCertificate},
		{"a certificate that is another call", a.sign(notification(set("SigningCertURL", host+"/?Action=DeleteTopic"))), ErrCertificate},
		{"no JSON", []byte("hello"), ErrMessage},
		{"an array", []byte("[]"), ErrMessage},
		{"raw delivery", []byte(`{"source":"aws.secretsmanager"}`), ErrMessage},
		{"a key twice", []byte(strings.Replace(string(signed), `"Type"`, `"Type":"Notification","Type"`, 1)), ErrMessage},
		{"keys in another case", []byte(strings.Replace(string(signed), `"TopicArn"`, `"topicarn"`, 1)), ErrMessage},
		{"a type that is none", a.sign(notification(set("Type", "Greeting"))), ErrMessage},
		{"a signature version that is none", altered(signed, set("SignatureVersion", "3")), ErrMessage},
		{"a signature version that is a number", altered(signed, set("SignatureVersion", 2)), ErrMessage},
		{"no signature", altered(signed, without("Signature")), ErrMessage},
		{"a signature that is no base64", altered(signed, set("Signature", "!")), ErrMessage},
		{"a signature of a megabyte", altered(signed, set("Signature", strings.Repeat("A", 4096))), ErrMessage},
		{"a subject that is a list", altered(signed, set("Subject", []string{"s"})), ErrMessage},
		{"a time that is none", a.sign(notification(set("Timestamp", "yesterday"))), ErrMessage},
		{"a confirmation without a token", a.sign(confirmation(without("Token"))), ErrMessage},
		// The message's text goes on with what looks like other fields; then those fields hold the line breaks.
		{"fields moved into the message's id", altered(a.sign(notification(set("Message", "m\nMessageId\ni\nSubject\ns"))), func(m map[string]any) {
			m["MessageId"], m["Message"] = "i\nSubject\ns\nMessageId\n"+m["MessageId"].(string), "m"
		}), ErrMessage},
		{"a topic moved into the type", a.sign(notification(set("Type", "Notification\nTopicArn\nx"))), ErrMessage},
	} {
		t.Run(test.name, func(t *testing.T) {
			if err := a.verify(test.body); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
	for _, address := range a.asked {
		if !strings.HasPrefix(address, host+"/SimpleNotificationService-") {
			t.Errorf("%s was asked for", address)
		}
	}
}

func TestWhoIssuedAndWhichHashCanBeDemanded(t *testing.T) {
	a, stranger := newAmazon(t), newAmazon(t)
	issued := func(c *Config) { c.Issuers = a.issuers() }
	if err := a.verify(a.sign(notification()), issued); err != nil {
		t.Errorf("a certificate of the right issuer: %v", err)
	}
	if err := stranger.verify(stranger.sign(notification()), issued); !errors.Is(err, ErrCertificate) {
		t.Errorf("a certificate of another issuer: %v", err)
	}
	if err := a.verify(a.sign(notification(set("SignatureVersion", "1"))), func(c *Config) { c.SHA256 = true }); !errors.Is(err, ErrSignature) {
		t.Errorf("SHA-1: %v", err)
	}
}

func TestCertificatesAreKept(t *testing.T) {
	a := newAmazon(t)
	clock := now
	topic, err := ParseTopic(topicARN)
	check(t, err)
	v := NewVerifier(Config{Topics: []Topic{topic}}, a.fetch, func() time.Time { return clock })
	verify := func(want error) {
		t.Helper()
		m, err := Parse(a.sign(notification(set("Timestamp", clock.UTC().Format(time.RFC3339)))))
		check(t, err)
		if err := v.Verify(t.Context(), m); !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
	}
	for range 20 {
		verify(nil)
	}
	if len(a.asked) != 1 {
		t.Errorf("the certificate was read %d times", len(a.asked))
	}
	clock = now.Add(kept)
	a.err = errors.New("down")
	verify(nil) // what was read yesterday does
	if len(a.asked) != 2 {
		t.Errorf("the certificate was read %d times", len(a.asked))
	}
	clock = now.Add(stale)
	verify(ErrUnavailable)
	a.err = nil
	verify(nil)
	clock = now.Add(201 * time.Hour)
	verify(ErrCertificate) // it has expired meanwhile
	for i := range 3 * maxCertificates {
		address := fmt.Sprintf("%s/SimpleNotificationService-%08x.pem", host, i)
		a.serve[address] = a.serve[certAddress]
		if _, err := v.certificate(t.Context(), address); err != nil {
			t.Fatal(err)
		}
	}
	if len(v.certificates) > maxCertificates {
		t.Errorf("%d certificates are kept", len(v.certificates))
	}
}

func TestConfirm(t *testing.T) {
	a := newAmazon(t)
	confirmed := host + "/?Action=ConfirmSubscription&Token=2336412f37fb687f5d51e6e2425929f5&TopicArn=arn%3Aaws%3Asns%3Aeu-central-1%3A123456789012%3Akeyherald"
	a.serve[confirmed] = []byte("<ConfirmSubscriptionResponse/>")
	for _, test := range []struct {
		name   string
		change func(map[string]any)
		want   error
	}{
		{"a subscription of the topic", func(map[string]any) {}, nil},
		{"an address elsewhere", set("SubscribeURL", "https://evil.example/?Action=ConfirmSubscription&TopicArn="+topicARN+"&Token=2336412f37fb687f5d51e6e2425929f5"), ErrMessage},
		{"an address of the machine itself", set("SubscribeURL", "http://169.254.169.254/latest/meta-data/"), ErrMessage},
		{"a host behind a user", set("SubscribeURL", host+"@evil.example/?Action=ConfirmSubscription"), ErrMessage},
		{"another action", set("SubscribeURL", host+"/?Action=DeleteTopic&TopicArn="+topicARN+"&Token=2336412f37fb687f5d51e6e2425929f5"), ErrMessage},
		{"another topic in the address", set("SubscribeURL", host+"/?Action=ConfirmSubscription&TopicArn="+topicARN+"2&Token=2336412f37fb687f5d51e6e2425929f5"), ErrMessage},
		{"another token in the address", set("SubscribeURL", host+"/?Action=ConfirmSubscription&TopicArn="+topicARN+"&Token=1"), ErrMessage},
		{"a token that is more than one", set("Token", "1&Action=DeleteTopic"), ErrMessage},
		{"another topic", set("TopicArn", topicARN+"2"), ErrTopic},
	} {
		t.Run(test.name, func(t *testing.T) {
			a.asked = nil
			m, err := Parse(a.sign(confirmation(test.change)))
			check(t, err)
			if got := a.verifier().CheckConfirmation(m); !errors.Is(got, test.want) {
				t.Errorf("checking: %v, want %v", got, test.want)
			}
			if got := a.verifier().Confirm(t.Context(), m); !errors.Is(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
			if test.want == nil && (len(a.asked) != 1 || a.asked[0] != confirmed) || test.want != nil && len(a.asked) > 0 {
				t.Errorf("asked for %v", a.asked)
			}
		})
	}
	a.err = errors.New("down")
	m, err := Parse(a.sign(confirmation()))
	check(t, err)
	if err := a.verifier().Confirm(t.Context(), m); !errors.Is(err, ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}

func TestParseTopic(t *testing.T) {
	for _, test := range []struct{ arn, host string }{
		{topicARN, "sns.eu-central-1.amazonaws.com"},
		{"arn:aws-cn:sns:cn-north-1:123456789012:k", "sns.cn-north-1.amazonaws.com.cn"},
		{"arn:aws-us-gov:sns:us-gov-west-1:123456789012:k", "sns.us-gov-west-1.amazonaws.com"},
		{"arn:aws:sns:eu-central-1:123456789012:k.fifo", ""},
		{"arn:aws:sqs:eu-central-1:123456789012:k", ""},
		{"arn:aws:sns:eu-central-1.evil.example/:123456789012:k", ""},
		{"arn:aws:sns:eu-central-1:123456789012:k\n", ""},
		{"", ""},
	} {
		topic, err := ParseTopic(test.arn)
		if topic.Host != test.host || (err == nil) != (test.host != "") {
			t.Errorf("%q: %q, %v", test.arn, topic.Host, err)
		}
	}
}

// Two messages that differ in what they say have different signed texts.
func FuzzCanonical(f *testing.F) {
	f.Add("m", "i", "s", true, "m", "i", "s", false)
	f.Add("m\nMessageId\ni", "i", "s", true, "m", "i\nMessageId\ni", "s", true)
	f.Add("m", "i", "", true, "m\nMessageId\ni\nSubject\n", "i", "", false)
	build := func(message, id, subject string, with bool) (Message, bool) {
		m := Message{Type: Notification, Message: message, MessageID: id, TopicARN: topicARN, timestamp: "t"}
		if with {
			m.Subject = &subject
		}
		return m, !m.ambiguous()
	}
	f.Fuzz(func(t *testing.T, m1, i1, s1 string, w1 bool, m2, i2, s2 string, w2 bool) {
		one, ok1 := build(m1, i1, s1, w1)
		two, ok2 := build(m2, i2, s2, w2)
		same := m1 == m2 && i1 == i2 && w1 == w2 && (!w1 || s1 == s2)
		if ok1 && ok2 && !same && string(one.canonical()) == string(two.canonical()) {
			t.Errorf("%q and %q are signed alike", one.canonical(), two.canonical())
		}
	})
}

// A body is either refused, or it is a message whose every field is one line, but for the message itself.
func FuzzParse(f *testing.F) {
	a := newAmazon(f)
	f.Add(a.sign(notification()))
	f.Add(a.sign(confirmation()))
	f.Add([]byte(`{"Type":"Notification","SignatureVersion":"1","Signature":"AA=="}`))
	topic, err := ParseTopic(topicARN)
	check(f, err)
	f.Fuzz(func(t *testing.T, body []byte) {
		m, err := Parse(body)
		if err != nil {
			return
		}
		if m.ambiguous() || len(m.signature) == 0 || m.hash == 0 || m.Timestamp.IsZero() && m.timestamp == "" {
			t.Errorf("%q was taken as %+v", body, m)
		}
		if address, ok := topic.certificate(m.signingCertURL); ok && !strings.HasPrefix(address, host+"/SimpleNotificationService-") {
			t.Errorf("%q would be asked for", address)
		}
		if address, ok := topic.confirmation(m); ok && !strings.HasPrefix(address, host+"/?Action=ConfirmSubscription&") {
			t.Errorf("%q would be asked for", address)
		}
	})
}
