// Package vault is a session with a Vault or OpenBao server: it logs in, keeps its token alive, and logs in again when
// the token dies. What is read through it is up to its callers, within their Reach.
package vault

import (
	"errors"
	"fmt"
	"strings"
	"unicode"

	"github.com/keyherald/keyherald/kms"
	"github.com/keyherald/keyherald/kms/internal/bounded"
)

// Config names the server and how to log in.
type Config struct {
	URL string
	// CAFile is a PEM file with the only CAs to trust; empty means the system's.
	CAFile string
	// Namespace is Vault Enterprise's or OpenBao's.
	Namespace string
	// Mount is where the KV v2 engine is mounted; empty means "secret".
	Mount string
	// Field is the field of a secret's data that holds the key; empty means "key".
	Field string
	Auth  Auth
}

// Auth is one way to log in: approle, cert, jwt, kubernetes, userpass or token. Each has its own keys, and all secrets
// are files, which are read again for each login.
type Auth struct {
	Method string `yaml:"method"`
	// Mount is where the method is mounted; empty means at its own name.
	Mount string `yaml:"mount"`
	// Namespace is where the method is mounted; empty means Config.Namespace.
	Namespace string `yaml:"namespace"`
	// Role is of jwt and kubernetes, and may be of cert.
	Role         string `yaml:"role"`
	RoleID       string `yaml:"role_id"`
	SecretIDFile string `yaml:"secret_id_file"`
	// WrappedSecretIDFile holds a response-wrapping token in the place of the secret id. It opens once.
	WrappedSecretIDFile string `yaml:"wrapped_secret_id_file"`
	CertFile            string `yaml:"cert_file"`
	KeyFile             string `yaml:"key_file"`
	JWTFile             string `yaml:"jwt_file"`
	Username            string `yaml:"username"`
	PasswordFile        string `yaml:"password_file"`
	TokenFile           string `yaml:"token_file"`
}

// kubernetesToken is where Kubernetes mounts a pod's service account.
const kubernetesToken = "/var/run/secrets/kubernetes.io/serviceaccount/token"

// Files are what the configuration's relative paths are resolved in.
func (a *Auth) Files() []*string {
	return []*string{&a.SecretIDFile, &a.WrappedSecretIDFile, &a.CertFile, &a.KeyFile, &a.JWTFile, &a.PasswordFile, &a.TokenFile}
}

// withDefaults is the configuration with what is empty filled in.
func (c Config) withDefaults() Config {
	if c.Mount == "" {
		c.Mount = "secret"
	}
	if c.Field == "" {
		c.Field = "key"
	}
	if c.Auth.Mount == "" {
		c.Auth.Mount = c.Auth.Method
	}
	if c.Auth.Namespace == "" {
		c.Auth.Namespace = c.Namespace
	}
	if c.Auth.Method == "kubernetes" && c.Auth.JWTFile == "" {
		c.Auth.JWTFile = kubernetesToken
	}
	return c
}

// Validate returns an error that begins with the key it is about.
func (c Config) Validate() error {
	if _, err := bounded.BaseURL(c.URL); err != nil {
		return err
	}
	for _, mount := range []struct{ key, path string }{{"mount", c.Mount}, {"namespace", c.Namespace}, {"auth.mount", c.Auth.Mount}, {"auth.namespace", c.Auth.Namespace}} {
		if mount.path != "" && kms.CheckPath(strings.TrimSuffix(mount.path, "/")) != nil {
			return fmt.Errorf("%s is %q: write names separated by single slashes, with no leading slash", mount.key, mount.path)
		}
	}
	return c.Auth.validate()
}

// methods are the keys of each method: those it needs, and those it may have beside mount and namespace.
var methods = map[string]struct{ needs, may []string }{
	"approle":    {[]string{"role_id"}, []string{"secret_id_file", "wrapped_secret_id_file"}},
	"cert":       {[]string{"cert_file", "key_file"}, []string{"role"}},
	"jwt":        {[]string{"role", "jwt_file"}, nil},
	"kubernetes": {[]string{"role"}, []string{"jwt_file"}},
	"userpass":   {[]string{"username", "password_file"}, nil},
	"token":      {[]string{"token_file"}, nil},
}

const methodNames = "approle, cert, jwt, kubernetes, userpass or token"

func (a Auth) validate() error {
	method, ok := methods[a.Method]
	if a.Method == "" {
		return errors.New("auth.method is missing: write " + methodNames)
	} else if !ok {
		return fmt.Errorf("auth.method is %q: write %s", a.Method, methodNames)
	}
	set := map[string]string{"role": a.Role, "role_id": a.RoleID, "secret_id_file": a.SecretIDFile, "wrapped_secret_id_file": a.WrappedSecretIDFile,
		"cert_file": a.CertFile, "key_file": a.KeyFile, "jwt_file": a.JWTFile, "username": a.Username, "password_file": a.PasswordFile, "token_file": a.TokenFile}
	known := map[string]bool{}
	for _, key := range method.needs {
		known[key] = true
		if set[key] == "" {
			return fmt.Errorf("auth.%s is missing: auth.method %s needs it", key, a.Method)
		}
	}
	for _, key := range method.may {
		known[key] = true
	}
	for _, key := range []string{"role", "role_id", "secret_id_file", "wrapped_secret_id_file", "cert_file", "key_file", "jwt_file", "username", "password_file", "token_file"} {
		if set[key] != "" && !known[key] {
			return fmt.Errorf("auth.%s does not go with auth.method %s: remove it", key, a.Method)
		}
	}
	switch {
	case a.Method == "approle" && (a.SecretIDFile == "") == (a.WrappedSecretIDFile == ""):
		return errors.New("auth: set one of secret_id_file and wrapped_secret_id_file")
	case strings.ContainsFunc(a.Username, func(r rune) bool { return r == '/' || !unicode.IsPrint(r) }):
		return fmt.Errorf("auth.username is %q: write a user's name without slashes", a.Username)
	}
	return nil
}
