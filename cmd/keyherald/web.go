package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/rs/zerolog"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/keyherald/keyherald/api"
	"github.com/keyherald/keyherald/appservice"
	"github.com/keyherald/keyherald/audit/signer"
	"github.com/keyherald/keyherald/enforce"
	"github.com/keyherald/keyherald/intake"
	"github.com/keyherald/keyherald/postgres"
	"github.com/keyherald/keyherald/relay"
)

// listening is a web server on its address.
type listening struct {
	server   *http.Server
	listener net.Listener
}

type listeners []listening

func (all listeners) close() error {
	var err error
	for _, l := range all {
		err = errors.Join(err, l.listener.Close())
	}
	return err
}

// shutdown waits until everybody was answered.
func (all listeners) shutdown(ctx context.Context) error {
	var err error
	for _, l := range all {
		err = errors.Join(err, l.server.Shutdown(ctx))
	}
	return err
}

// listenAll opens the server's address, and the API's where that is one of its own.
func listenAll(c config, web *echo.Echo, rest *api.Handler) (listeners, error) {
	addresses := map[string]*echo.Echo{c.Listen: web}
	if c.API.Listen != "" {
		web = newEcho()
		addresses[c.API.Listen] = web
	}
	rest.Register(web)
	var all listeners
	for _, address := range slices.Sorted(maps.Keys(addresses)) {
		listener, err := listen(c, address)
		if err != nil {
			return nil, errors.Join(err, all.close())
		}
		all = append(all, listening{&http.Server{Handler: addresses[address], ReadHeaderTimeout: 10 * time.Second, ReadTimeout: time.Minute, MaxHeaderBytes: intake.MaxHeader}, listener})
	}
	return all, nil
}

// listen speaks TLS where the configuration says so. Client certificates are asked for, and looked at by the sources
// that demand one, each with authorities of its own.
func listen(c config, address string) (net.Listener, error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listening: %w", err)
	}
	if c.TLS.CertFile == "" {
		return listener, nil
	}
	certificate, err := tls.LoadX509KeyPair(c.TLS.CertFile, c.TLS.KeyFile)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("tls.cert_file and tls.key_file: %w", err), listener.Close())
	}
	return tls.NewListener(listener, &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{certificate}, ClientAuth: tls.RequestClientCert}), nil
}

func newEcho() *echo.Echo {
	web := echo.New()
	web.HideBanner, web.HidePort = true, true
	return web
}

// condition is what beside the bot people may have to look at.
type condition struct {
	sealer  *signer.Signer // nil where the log is not sealed
	streams map[string]*stream
}

// problems are none for a server with which all is well. It is ready all the same: notifications are taken, events
// appended, and what is not heard is looked for.
func (c condition) problems() []string {
	var problems []string
	if c.sealer != nil {
		status := c.sealer.Status()
		if status.Problem != nil {
			problems = append(problems, "the audit log is not signed: "+status.Problem.Error())
		}
		if status.Inspection.Altered != "" {
			problems = append(problems, "the audit log was changed: "+status.Inspection.Altered)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.streams)) {
		if err := c.streams[name].problem(); err != nil {
			problems = append(problems, "the events of "+name+" are not heard: "+err.Error())
		}
	}
	return problems
}

func newWeb(registration appservice.Registration, notifications *intake.Handler, bot *appservice.Bot, watched condition, db *postgres.DB, metrics *prometheus.Registry) *echo.Echo {
	web := newEcho()
	notifications.Register(web)
	appservice.NewRoutes(registration.HSToken).Register(web)
	web.GET("/healthz", func(c echo.Context) error { return c.String(http.StatusOK, "ok\n") })
	web.GET("/readyz", func(c echo.Context) error {
		if err := db.RawDB.PingContext(c.Request().Context()); err != nil {
			return c.String(http.StatusServiceUnavailable, "the database does not answer\n")
		}
		role := "standing by: another replica holds the bot, or it is not logged in yet\n"
		if bot.Leading() {
			role = "holding the bot\n"
		}
		for _, problem := range watched.problems() {
			role += problem + "\n"
		}
		return c.String(http.StatusOK, role)
	})
	web.GET("/metrics", echo.WrapHandler(promhttp.HandlerFor(metrics, promhttp.HandlerOpts{})))
	return web
}

// newAPI makes the API, which asks the homeserver as the bot's user whom a push would reach.
func newAPI(c config, registration appservice.Registration, engine *relay.Engine, enforcer *enforce.Enforcer, bot *appservice.Bot, watched condition, db *postgres.DB, logger zerolog.Logger, metrics *prometheus.Registry) (*api.Handler, error) {
	client, err := mautrix.NewClient(c.Homeserver, c.Bot.UserID, registration.ASToken)
	if err != nil {
		return nil, fmt.Errorf("preparing to ask the homeserver for devices: %w", err)
	}
	client.DefaultHTTPRetries = 0
	// As the writer: a caller's rights are the API's to judge.
	log, err := c.newReader(db, db)
	if err != nil {
		return nil, err
	}
	return api.New(c.API, api.Deps{DB: db, Engine: engine, Enforcer: enforcer, Reader: log, Version: string(softwareVersion()), Leading: bot.Leading, Problems: watched.problems,
		TrustedProxies: c.TrustedProxies, Log: logger, Metrics: metrics,
		Keys: func(ctx context.Context, user id.UserID) (*mautrix.RespQueryKeys, error) {
			limited, cancel := context.WithTimeout(ctx, 15*time.Second)
			defer cancel()
			return client.QueryKeys(limited, &mautrix.ReqQueryKeys{DeviceKeys: mautrix.DeviceKeysRequest{user: mautrix.DeviceIDList{}}, Timeout: 10_000})
		}})
}
