package main

import (
	"context"
	"net/http/httptest"
	"os"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/keyherald/keyherald/api"
)

// server is the address of the room's API, which runs until the test ends; an admin's token is in admin.token.
func (r *room) server(t *testing.T) string {
	t.Helper()
	if r.address != "" {
		return r.address
	}
	c, err := loadConfig(r.path("config.yaml"))
	check(t, err)
	if r.provider != nil {
		c.API.OIDC = r.provider
	}
	db, err := openDatabase(context.Background(), c)
	check(t, err)
	t.Cleanup(func() { _ = db.Close() })
	engine, _, err := newEngine(c, db, nil, zerolog.Nop())
	check(t, err)
	enforcer, err := newEnforcer(c, db, engine, nil, zerolog.Nop())
	check(t, err)
	log, err := c.newReader(db, db)
	check(t, err)
	handler, err := api.New(c.API, api.Deps{DB: db, Engine: engine, Enforcer: enforcer, Reader: log, Log: zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.WarnLevel)})
	check(t, err)
	web := newEcho()
	handler.Register(web)
	listening := httptest.NewServer(web)
	t.Cleanup(listening.Close)
	r.cut = listening.CloseClientConnections
	secret, err := api.CreateToken(t.Context(), db, time.Now, "test-admin", "admin", time.Hour, localActor())
	check(t, err)
	check(t, os.WriteFile(r.path("admin.token"), []byte(secret.Reveal()+"\n"), 0o600))
	r.address = listening.URL
	return r.address
}
