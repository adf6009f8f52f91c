// Package vaultevents hears of new versions from the event stream of Vault Enterprise: CloudEvents over a WebSocket. Its
// delivery is best effort, and nothing is kept for who was away: each time the stream is opened, everything has to be read
// again. It was run against recorded frames, and not against Vault Enterprise.
package vaultevents

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/coder/websocket"
	"github.com/go-json-experiment/json"

	"github.com/keyherald/keyherald/kms"
	"github.com/keyherald/keyherald/kms/internal/vault"
)

// Config names the server and how to log in. Field is not used here.
type Config = vault.Config

// eventType is a new version of a secret in a KV v2 engine.
const eventType = "kv-v2/data-write"

// Event says that a path has a new version. It is a hint: the KMS is asked.
type Event struct {
	// ID is the CloudEvent's.
	ID      string
	Path    string
	Version string
}

// Handler is told what happens. Its calls come one after the other.
type Handler struct {
	// Opened is called each time the stream is open and nothing was heard before: all paths have to be read.
	Opened func(ctx context.Context)
	// Changed is called for each event of the engine.
	Changed func(ctx context.Context, event Event)
	// Closed is told why the stream is not open, before it is opened again.
	Closed func(err error)
	// Unreadable is told what is wrong with one event, which is passed over.
	Unreadable func(err error)
}

// Client hears of one engine.
type Client struct {
	session *vault.Session
	// ping is how often the connection is tried, and how long an answer may take.
	ping time.Duration
	// least is the first pause before the stream is opened again.
	least time.Duration
}

// New checks the configuration; nothing is sent yet. The token needs the capability "read" on
// sys/events/subscribe/kv-v2/data-write, and "list" and "subscribe" with the event type on <mount>/data/*.
func New(config Config) (*Client, error) {
	session, err := vault.New(config, vault.MetadataOnly, nil)
	if err != nil {
		return nil, err
	}
	return &Client{session: session, ping: 30 * time.Second, least: time.Second}, nil
}

// Try opens the stream and closes it, to find out whether it can be heard.
func (c *Client) Try(ctx context.Context) error {
	conn, err := c.session.Subscribe(ctx, eventType)
	if err != nil {
		return err
	}
	return conn.CloseNow()
}

// KeepAlive keeps the login until ctx ends, also while the stream is not opened: one that cannot be repeated must not die.
func (c *Client) KeepAlive(ctx context.Context, failed func(error)) { c.session.KeepAlive(ctx, failed) }

// Watch keeps the stream open until ctx ends. A stream that ends is opened again, after a pause that grows to a minute
// while it does not stay open.
func (c *Client) Watch(ctx context.Context, handler Handler) {
	pause := c.least
	for ctx.Err() == nil {
		opened := time.Now()
		err := c.watchOnce(ctx, handler)
		if ctx.Err() != nil {
			return
		}
		handler.Closed(err)
		if time.Since(opened) > time.Minute {
			pause = c.least
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause/2 + rand.N(pause/2+1)):
		}
		pause = min(2*pause, time.Minute)
	}
}

// watchOnce reads one stream to its end.
func (c *Client) watchOnce(ctx context.Context, handler Handler) error {
	conn, err := c.session.Subscribe(ctx, eventType)
	if err != nil {
		return err
	}
	defer func() { _ = conn.CloseNow() }()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go c.keepTrying(ctx, conn, cancel)
	handler.Opened(ctx)
	for {
		kind, frame, err := conn.Read(ctx)
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			return fmt.Errorf("reading Vault's events: %w: %w", kms.ErrUnavailable, err)
		}
		event, ours, err := parse(kind, frame, c.session.Mount())
		switch {
		case err != nil:
			handler.Unreadable(fmt.Errorf("reading Vault's events: %w", err))
		case ours:
			handler.Changed(ctx, event)
		}
	}
}

var errSilent = errors.New("the server does not answer a ping")

// keepTrying finds out that nobody is there any more: a connection that is gone may look like one without news.
func (c *Client) keepTrying(ctx context.Context, conn *websocket.Conn, cancel context.CancelCauseFunc) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(c.ping):
		}
		limited, done := context.WithTimeout(ctx, c.ping)
		err := conn.Ping(limited)
		done()
		if err != nil && ctx.Err() == nil {
			cancel(errSilent)
			return
		}
	}
}

// frame is a CloudEvent of Vault's. Its type is always "*", and the attribute of the data's type is misspelt.
type frame struct {
	ID          string `json:"id"`
	SpecVersion string `json:"specversion"`
	Data        struct {
		EventType string `json:"event_type"`
		Event     struct {
			Metadata struct {
				DataPath       string `json:"data_path"`
				CurrentVersion string `json:"current_version"`
				Operation      string `json:"operation"`
				Modified       string `json:"modified"`
			} `json:"metadata"`
		} `json:"event"`
		PluginInfo struct {
			MountPath string `json:"mount_path"`
		} `json:"plugin_info"`
	} `json:"data"`
}

// parse reads a frame; ours is false for an event of something else. A name that comes twice is an error, and an error
// never quotes the frame.
func parse(kind websocket.MessageType, text []byte, mount string) (event Event, ours bool, err error) {
	var f frame
	if kind != websocket.MessageText {
		return Event{}, false, fmt.Errorf("%w: an event is no text", kms.ErrMalformed)
	}
	if json.Unmarshal(text, &f) != nil || f.ID == "" || f.SpecVersion != "1.0" {
		return Event{}, false, fmt.Errorf("%w: an event is no CloudEvent 1.0", kms.ErrMalformed)
	}
	m := f.Data.Event.Metadata
	if f.Data.EventType != eventType || m.Operation != "data-write" || m.Modified == "false" {
		return Event{}, false, nil
	}
	path, ok := strings.CutPrefix(m.DataPath, mount+"/data/")
	if !ok || f.Data.PluginInfo.MountPath != "" && f.Data.PluginInfo.MountPath != mount+"/" {
		return Event{}, false, nil
	}
	if kms.CheckPath(path) != nil {
		return Event{}, false, fmt.Errorf("%w: an event is of a path that is none", kms.ErrMalformed)
	}
	version, err := strconv.ParseUint(m.CurrentVersion, 10, 32)
	if err != nil || version == 0 {
		return Event{}, false, fmt.Errorf("%w: an event is of a version that is no number", kms.ErrMalformed)
	}
	return Event{ID: f.ID, Path: path, Version: strconv.FormatUint(version, 10)}, true, nil
}
