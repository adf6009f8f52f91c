package bench

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/keyherald/keyherald/intake"
)

const signingSecret = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="

func eventID(number string) string { return "rotated-" + number }

func subject(number string) string { return "keyherald/" + number + "/backup-key" }

// sender sends signed CloudEvents of 1 KiB, each of another user, from so many goroutines with a connection each.
type sender struct {
	url     string
	senders int
	client  *http.Client
	sent    []int // by goroutine
}

// sending is what a round of it comes to.
type sending struct {
	acks      int
	rate, p99 float64 // per second, and in milliseconds
}

func newSender(url string, senders int) *sender {
	transport := &http.Transport{MaxIdleConnsPerHost: senders, DisableCompression: true}
	return &sender{url, senders, &http.Client{Transport: transport}, make([]int, senders)}
}

func (s *sender) close() { s.client.CloseIdleConnections() }

func (s *sender) send(ctx context.Context, d time.Duration) (sending, error) {
	began := time.Now()
	latencies, failures := make([][]time.Duration, s.senders), make([]error, s.senders)
	var all sync.WaitGroup
	for i := range s.senders {
		all.Go(func() {
			for time.Since(began) < d && failures[i] == nil {
				s.sent[i]++
				sent := time.Now()
				failures[i] = s.post(ctx, strconv.Itoa(100_000_000_000+s.sent[i]*1000+i))
				latencies[i] = append(latencies[i], time.Since(sent))
			}
		})
	}
	all.Wait()
	took := time.Since(began)
	for _, err := range failures {
		if err != nil {
			return sending{}, err
		}
	}
	sorted := slices.Sorted(slices.Values(slices.Concat(latencies...)))
	return sending{len(sorted), float64(len(sorted)) / took.Seconds(), float64(sorted[len(sorted)*99/100].Microseconds()) / 1000}, nil
}

func (s *sender) post(ctx context.Context, number string) error {
	body := `{"specversion":"1.0","type":"com.example.rotated","source":"/kms","id":"` + eventID(number) + `","subject":"` + subject(number) +
		`","datacontenttype":"application/json","data":{"version":1,"note":"`
	body += strings.Repeat("n", 1024-len(body)-3) + `"}}`
	now := time.Now()
	signature, err := intake.Sign(signingSecret, eventID(number), now, []byte(body))
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url, bytes.NewReader([]byte(body)))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/cloudevents+json")
	req.Header.Set("Webhook-Id", eventID(number))
	req.Header.Set("Webhook-Timestamp", strconv.FormatInt(now.Unix(), 10))
	req.Header.Set("Webhook-Signature", signature)
	answer, err := s.client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = answer.Body.Close() }()
	said, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	if answer.StatusCode != http.StatusAccepted {
		return fmt.Errorf("a notification was answered %d: %s", answer.StatusCode, said)
	}
	return nil
}
