// Package testsetec runs a real setec server in this process, for tests and the demo. In production setec asks the
// tailnet who a caller is; here every principal has a listener of its own, and setec's own access rules decide.
package testsetec

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/tailscale/setec/acl"
	setecaudit "github.com/tailscale/setec/audit"
	"github.com/tailscale/setec/client/setec"
	"github.com/tailscale/setec/server"
	"github.com/tailscale/setec/types/api"
	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"tailscale.com/client/tailscale/apitype"
	"tailscale.com/tailcfg"

	"github.com/keyherald/keyherald/backup/backupkey"
)

// Server is a setec server with its database sealed by a key that lives as long as the process.
type Server struct {
	mux *http.ServeMux
	log *os.File

	mu         sync.Mutex // guards the rest
	principals map[string]principal
	listeners  []*http.Server
	admin      setec.Client
}

type principal struct {
	name  string
	rules []tailcfg.RawMessage
}

// Start starts a server that keeps its database and its own audit log in dir.
func Start(ctx context.Context, dir string) (*Server, error) {
	handle, err := keyset.NewHandle(aead.AES256GCMKeyTemplate())
	if err != nil {
		return nil, fmt.Errorf("making setec's sealing key: %w", err)
	}
	key, err := aead.New(handle)
	if err != nil {
		return nil, fmt.Errorf("making setec's sealing key: %w", err)
	}
	log, err := os.OpenFile(filepath.Join(dir, "setec-audit.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("making setec's audit log: %w", err)
	}
	s := &Server{mux: http.NewServeMux(), log: log, principals: map[string]principal{}}
	_, err = server.New(ctx, server.Config{DBPath: filepath.Join(dir, "setec.db"), Key: key, AuditLog: setecaudit.New(log), WhoIs: s.whoIs, Mux: s.mux})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("starting setec: %w", err), log.Close())
	}
	url, err := s.Principal("admin", acl.Rule{Secret: []acl.Secret{"*"}, Action: []acl.Action{acl.ActionGet, acl.ActionInfo, acl.ActionPut, acl.ActionActivate}})
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.admin = setec.Client{Server: url}
	return s, nil
}

// Close ends every listener.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	for _, listener := range s.listeners {
		err = errors.Join(err, listener.Close())
	}
	return errors.Join(err, s.log.Close())
}

// Principal makes a caller with exactly these rights and returns the URL that only it uses.
func (s *Server) Principal(name string, rules ...acl.Rule) (url string, err error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("listening for setec's principal %s: %w", name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p := principal{name: name}
	for _, rule := range rules {
		encoded, err := json.Marshal(rule)
		if err != nil {
			return "", errors.Join(err, listener.Close())
		}
		p.rules = append(p.rules, tailcfg.RawMessage(encoded))
	}
	// The address a tailnet would give the caller: setec's server knows him by it alone.
	n := len(s.principals) + 1
	address := fmt.Sprintf("100.64.%d.%d:1", n/256, n%256)
	s.principals[address] = p
	web := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.RemoteAddr = address
		s.mux.ServeHTTP(w, r)
	})}
	s.listeners = append(s.listeners, web)
	go func() { _ = web.Serve(listener) }()
	return "http://" + listener.Addr().String(), nil
}

func (s *Server) whoIs(_ context.Context, address string) (*apitype.WhoIsResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.principals[address]
	if !ok {
		return nil, fmt.Errorf("nobody has the address %s", address)
	}
	return &apitype.WhoIsResponse{Node: &tailcfg.Node{Name: p.name + ".keyherald.test"}, UserProfile: &tailcfg.UserProfile{ID: 1, LoginName: p.name + "@keyherald.test"},
		CapMap: tailcfg.PeerCapMap{server.ACLCap: p.rules}}, nil
}

// DeviceRules are the rights of a managed device on one path, and no more.
func DeviceRules(path string) acl.Rule {
	return acl.Rule{Secret: []acl.Secret{acl.Secret(path), acl.Secret(path + ".metadata")}, Action: []acl.Action{acl.ActionGet, acl.ActionInfo}}
}

// WriterRules are those of a managed device that makes its user's key.
func WriterRules(path string) acl.Rule {
	rule := DeviceRules(path)
	rule.Action = append(rule.Action, acl.ActionCreateVersion)
	return rule
}

// ServerRules are the rights of the Keyherald server: metadata alone.
func ServerRules(pattern string) acl.Rule {
	return acl.Rule{Secret: []acl.Secret{acl.Secret(pattern)}, Action: []acl.Action{acl.ActionInfo}}
}

// PutKey makes the key the path's current version, its public key first, as package setecsecret reads it.
func (s *Server) PutKey(ctx context.Context, path string, key backupkey.Key) (version string, err error) {
	return s.PutValue(ctx, path, key.RevealBase64(), key.PublicKey())
}

// PutValue is PutKey for values that are wrong on purpose.
func (s *Server) PutValue(ctx context.Context, path, value, publicKey string) (version string, err error) {
	next := api.SecretVersion(1)
	if info, err := s.admin.Info(ctx, path); err == nil {
		next = info.Versions[len(info.Versions)-1] + 1
	}
	fields := map[string]string{}
	if old, err := s.admin.Get(ctx, path+".metadata"); err == nil {
		if err := json.Unmarshal(old.Value, &fields); err != nil {
			return "", fmt.Errorf("reading the metadata of %s: %w", path, err)
		}
	}
	fields["public_key."+next.String()] = publicKey
	encoded, err := json.Marshal(fields)
	if err != nil {
		return "", err
	}
	if _, err := s.activate(ctx, path+".metadata", encoded); err != nil {
		return "", err
	}
	got, err := s.activate(ctx, path, []byte(value))
	if err == nil && got != next {
		err = fmt.Errorf("setec gave %s version %s, and %s was announced", path, got, next)
	}
	return got.String(), err
}

// Current is the value of a secret's current version, for an administrator.
func (s *Server) Current(ctx context.Context, name string) (string, error) {
	value, err := s.admin.Get(ctx, name)
	if err != nil {
		return "", fmt.Errorf("reading %s in setec: %w", name, err)
	}
	return string(value.Value), nil
}

func (s *Server) activate(ctx context.Context, name string, value []byte) (api.SecretVersion, error) {
	version, err := s.admin.Put(ctx, name, value)
	if err != nil {
		return 0, fmt.Errorf("putting %s into setec: %w", name, err)
	}
	if err := s.admin.Activate(ctx, name, version); err != nil {
		return 0, fmt.Errorf("activating %s in setec: %w", name, err)
	}
	return version, nil
}
