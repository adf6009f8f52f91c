package audit_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"strings"
	"sync"
	"testing"

	"golang.org/x/tools/go/packages"
)

const module = "github.com/keyherald/keyherald/"

// load reads the module's packages with their types, once.
var load = sync.OnceValues(func() ([]*packages.Package, error) {
	all, err := packages.Load(&packages.Config{Dir: "..", BuildFlags: []string{"-tags=goolm"},
		Mode: packages.NeedName | packages.NeedFiles | packages.NeedSyntax | packages.NeedTypes | packages.NeedTypesInfo | packages.NeedImports | packages.NeedDeps}, "./...")
	if err != nil {
		return nil, err
	}
	for _, p := range all {
		for _, problem := range p.Errors {
			return nil, problem
		}
	}
	return all, nil
})

func loaded(t *testing.T) []*packages.Package {
	t.Helper()
	all, err := load()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// imported is the packages that the snippets use, by their paths.
type imported map[string]*types.Package

func (i imported) Import(path string) (*types.Package, error) {
	if p, ok := i[path]; ok {
		return p, nil
	}
	return nil, fmt.Errorf("the snippets have no package %s", path)
}

func snippets(t *testing.T) imported {
	t.Helper()
	known := imported{}
	packages.Visit(loaded(t), nil, func(p *packages.Package) { known[p.PkgPath] = p.Types })
	return known
}

// compiles type-checks a statement in a function that has secrets at hand in every form that the product knows.
func (i imported) compiles(statement string) error {
	source := `package snippet

import (
	"time"

	"github.com/google/uuid"
	"golang.org/x/mod/sumdb/tlog"
	"maunium.net/go/mautrix/id"

	"` + module + `appservice"
	"` + module + `audit"
	"` + module + `backup/backupkey"
	"` + module + `msc4385"
	"` + module + `protocol"
)

var _ = []any{time.Now, uuid.Nil, tlog.HashSize, id.UserID(""), protocol.Version}

func _(text string, raw []byte, sum [32]byte, bits [16]byte, key backupkey.Key, secret msc4385.Secret, code protocol.Code, tokens appservice.Registration) {
	_, _, _, _, _, _, _, _ = text, raw, sum, bits, key, secret, code, tokens
	` + statement + `
}
`
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, "snippet.go", source, 0)
	if err != nil {
		return err
	}
	_, err = (&types.Config{Importer: i}).Check("snippet", fset, []*ast.File{file}, nil)
	return err
}

// secrets are the forms in which key material and tokens are at hand somewhere in the product.
var secrets = []string{"key", "&key", "secret", "code", "raw", "sum", "text", "key.Reveal()", "key.RevealBase64()", "secret.Reveal()", "code.Reveal()", "code.RevealRandom()",
	"tokens", "tokens.ASToken", "tokens.HSToken", "[32]byte(raw)", "string(raw)", "bits"}

// calls are a right call of every function of the package that anything enters the log by.
var calls = map[string][]string{
	"BySource":     {`"kms"`},
	"ByReconciler": {`"corporate"`},
	"ByDevice":     {`id.UserID("@a:b")`, `id.DeviceID("D")`},
	"BySender":     {`id.UserID("@a:b")`},
	"ByLocal":      {`"account"`, `"host"`},
	"OfUser":       {`id.UserID("@a:b")`},
	"OfDevice":     {`id.UserID("@a:b")`, `id.DeviceID("D")`},
	"OfSource":     {`"kms"`},
	"OfLog":        {`"example.org/log"`},
	"OfEvent":      {`uuid.UUID(bits)`},
	"ID":           {`"x"`, `audit.KMSPath("p")`},
	"IDs":          {`"x"`, `[]audit.SinkName{"s"}`},
	"Word":         {`"x"`, `protocol.StagePushed`},
	"Words":        {`"x"`, `[]msc4385.Form{msc4385.FormPush}`},
	"Number":       {`"x"`, `1`},
	"Time":         {`"x"`, `time.Now()`},
	"Flag":         {`"x"`, `true`},
	"Root":         {`"x"`, `tlog.Hash{}`},
	"Fingerprint":  {`"x"`, `audit.PublicKey("k")`},
	"VerifierKeys": {`"x"`, `[]audit.VerifierKey{}`},
	"Text":         {`"x"`, `audit.Reason{}`},
}

// others are the functions that let nothing into the log, or look at all of it first and may say no.
var others = map[string]bool{"ByRelay": true, "BySigner": true, "ByAnybody": true, "OfServer": true, "OfDatabase": true, "OfTriggers": true, "OfRotations": true,
	"OfIntake": true, "OfMessages": true, "Commit": true, "NewReason": true, "WhyNoReason": true, "ParseVerifierKey": true,
	"ParseBody": true, "CheckRedaction": true}

// Go lets an array without a name pass for a named one, so that 16 bytes pass for an UUID where no constraint stops them.
func assignable(function, secret string) bool { return function == "OfEvent" && secret == "bits" }

func TestNothingThatIsASecretCanBeGivenToTheLog(t *testing.T) {
	i := snippets(t)
	scope := i[module+"audit"].Scope()
	for _, name := range scope.Names() {
		function, ok := scope.Lookup(name).(*types.Func)
		if !ok || !function.Exported() || others[name] {
			continue
		}
		right, told := calls[name]
		if !told || function.Signature().Params().Len() != len(right) {
			t.Errorf("this test has no right call of audit.%s: what enters by it?", name)
			continue
		}
		call := func(arguments []string) string {
			return "_ = audit." + name + "(" + strings.Join(arguments, ", ") + ")"
		}
		if err := i.compiles(call(right)); err != nil {
			t.Errorf("the right call of audit.%s does not compile: %v", name, err)
		}
		for place := range right {
			for _, secret := range secrets {
				wrong := append([]string(nil), right...)
				wrong[place] = secret
				if i.compiles(call(wrong)) == nil && !assignable(name, secret) {
					t.Errorf("it compiles: %s", call(wrong))
				}
			}
		}
	}
	// What has fields of its own has none to write to from outside, and what takes all comers is not there.
	for _, secret := range secrets {
		for _, wrong := range []string{
			"_ = audit.Event{Actor: %s}", "_ = audit.Event{Subject: %s}", "_ = audit.Event{Action: %s}", "_ = audit.Event{Outcome: %s}", "_ = audit.Event{Detail: %s}",
			"_ = audit.Detail{%s}", "_ = audit.Field{%s}", "_ = audit.Actor{%s}", "_ = audit.Subject{%s}", "_ = audit.Reason{%s}", "_ = audit.VerifierKey{%s}",
		} {
			if statement := fmt.Sprintf(wrong, secret); i.compiles(statement) == nil {
				t.Errorf("it compiles: %s", statement)
			}
		}
	}
	// A key, a secret and a code cannot even be converted to what may enter.
	for _, name := range scope.Names() {
		named, ok := scope.Lookup(name).(*types.TypeName)
		if !ok || !named.Exported() {
			continue
		}
		for _, secret := range []string{"key", "secret", "code", "tokens"} {
			if statement := "_ = audit." + name + "(" + secret + ")"; i.compiles(statement) == nil {
				t.Errorf("it compiles: %s", statement)
			}
		}
	}
	// The snippets compile where they should.
	for _, right := range []string{"_ = audit.Event{Actor: audit.ByRelay(), Detail: audit.Detail{audit.Flag(\"x\", true)}}", "_ = audit.KMSPath(text)"} {
		if err := i.compiles(right); err != nil {
			t.Errorf("it does not compile: %s: %v", right, err)
		}
	}
}
