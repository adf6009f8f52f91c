package kmstest_test

import (
	"context"
	"encoding/json"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/tailscale/setec/acl"
	"github.com/tailscale/setec/client/setec"
	"github.com/tailscale/setec/server"
	"github.com/tailscale/setec/setectest"
	"github.com/tailscale/setec/types/api"
	"tailscale.com/client/tailscale/apitype"
	"tailscale.com/tailcfg"

	"github.com/keyherald/keyherald/backup/backupkey"
	"github.com/keyherald/keyherald/kms"
	"github.com/keyherald/keyherald/kms/kmstest"
	"github.com/keyherald/keyherald/kms/secret"
	"github.com/keyherald/keyherald/kms/setecmeta"
	"github.com/keyherald/keyherald/kms/setecsecret"
)

// serve starts a real setec server on a database for callers with these rights.
func serve(t *testing.T, db *setectest.DB, actions ...acl.Action) string {
	t.Helper()
	rule, err := json.Marshal(acl.Rule{Action: actions, Secret: []acl.Secret{"*"}})
	check(t, err)
	s := setectest.NewServer(t, db, &setectest.ServerOptions{WhoIs: func(context.Context, string) (*apitype.WhoIsResponse, error) {
		return &apitype.WhoIsResponse{Node: &tailcfg.Node{Name: "keyherald.example.com"}, UserProfile: &tailcfg.UserProfile{ID: 1, LoginName: "keyherald@example.com"},
			CapMap: tailcfg.PeerCapMap{server.ACLCap: []tailcfg.RawMessage{tailcfg.RawMessage(rule)}}}, nil
	}})
	hs := httptest.NewServer(s.Mux)
	t.Cleanup(hs.Close)
	return hs.URL
}

func put(db *setectest.DB) func(t *testing.T, path, value, public string) string {
	client := func(t *testing.T) setec.Client {
		return setec.Client{Server: serve(t, db, acl.ActionGet, acl.ActionInfo, acl.ActionPut, acl.ActionActivate)}
	}
	return func(t *testing.T, path, value, public string) string {
		t.Helper()
		c, ctx := client(t), t.Context()
		store := func(name, value string) string {
			version, err := c.Put(ctx, name, []byte(value))
			check(t, err)
			check(t, c.Activate(ctx, name, version))
			return version.String()
		}
		next := api.SecretVersion(1)
		if info, err := c.Info(ctx, path); err == nil {
			next = info.ActiveVersion + 1
		}
		if public != "" {
			fields := map[string]string{}
			if old, err := c.Get(ctx, path+".metadata"); err == nil {
				check(t, json.Unmarshal(old.Value, &fields))
			}
			fields["public_key."+next.String()] = public
			encoded, err := json.Marshal(fields)
			check(t, err)
			store(path+".metadata", string(encoded))
		}
		return store(path, value)
	}
}

func setecClients(t *testing.T, url string) (*setecmeta.Client, *setecsecret.Client) {
	t.Helper()
	metadata, err := setecmeta.New(setecmeta.Config{URL: url})
	check(t, err)
	secrets, err := setecsecret.New(setecsecret.Config{URL: url})
	check(t, err)
	return metadata, secrets
}

func TestSetecConforms(t *testing.T) {
	kmstest.Run(t, kmstest.Traits{Absent: "99"}, func(t *testing.T) kmstest.KMS {
		db := setectest.NewDB(t, nil)
		var taps []func() []byte
		client := func(actions ...acl.Action) (*setecmeta.Client, *setecsecret.Client) {
			url, seen := kmstest.Record(t, serve(t, db, actions...))
			taps = append(taps, seen)
			return setecClients(t, url)
		}
		metadata, _ := client(acl.ActionInfo)
		privileged, readOnly := client(acl.ActionGet, acl.ActionInfo)
		_, secrets := client(acl.ActionGet, acl.ActionInfo, acl.ActionCreateVersion)
		stranger, strangerSecrets := client(acl.ActionPut)
		return kmstest.KMS{Metadata: metadata, Privileged: privileged, Secrets: secrets, ReadOnly: readOnly,
			Stranger: stranger, StrangerSecrets: strangerSecrets, Put: put(db), Traffic: func() (all []byte) {
				for _, seen := range taps {
					all = append(all, seen()...)
				}
				return all
			}}
	})
}

func TestSetecsClientsStandABrokenServer(t *testing.T) {
	kmstest.Hostile(t, func(t *testing.T, url, caFile string) (kms.Metadata, secret.Store) {
		metadata, err := setecmeta.New(setecmeta.Config{URL: url, CAFile: caFile})
		check(t, err)
		secrets, err := setecsecret.New(setecsecret.Config{URL: url, CAFile: caFile})
		check(t, err)
		return metadata, secrets
	})
}

// setec does not list the versions that were deleted, and their numbers are never given again.
func TestAKeyIsWrittenPastAVersionThatWasDeleted(t *testing.T) {
	db := setectest.NewDB(t, nil)
	_, secrets := setecClients(t, serve(t, db, acl.ActionGet, acl.ActionInfo, acl.ActionCreateVersion))
	admin := setec.Client{Server: serve(t, db, acl.ActionPut, acl.ActionDelete)}
	first, err := backupkey.Generate()
	check(t, err)
	before := put(db)(t, "alice", first.RevealBase64(), first.PublicKey())
	second, err := admin.Put(t.Context(), "alice", []byte("never activated"))
	check(t, err)
	check(t, admin.DeleteVersion(t.Context(), "alice", second))
	key, err := backupkey.Generate()
	check(t, err)
	version, err := secrets.Write(t.Context(), "alice", before, key)
	check(t, err)
	value, err := secrets.Fetch(t.Context(), "alice", "")
	check(t, err)
	if version != "3" || value.Version != version || value.Verify() != nil {
		t.Fatalf("it is version %q, and %q is current: %v", version, value.Version, value.Verify())
	}
}

func TestAConfigurationThatCannotWorkIsRefused(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.pem")
	check(t, os.WriteFile(empty, nil, 0o644))
	for name, c := range map[string]setecmeta.Config{
		"no url":              {},
		"a url without host":  {URL: "https://"},
		"another scheme":      {URL: "ftp://setec.example.com"},
		"a password in it":    {URL: "https://user:pass@setec.example.com"},
		"a CA file not there": {URL: "https://setec.example.com", CAFile: "/nonexistent.pem"},
		"a CA file of none":   {URL: "https://setec.example.com", CAFile: empty},
	} {
		_, metadata := setecmeta.New(c)
		_, secrets := setecsecret.New(setecsecret.Config(c))
		if metadata == nil || secrets == nil {
			t.Errorf("%s: got %v and %v, which must be errors", name, metadata, secrets)
		}
	}
}
