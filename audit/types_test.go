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

// load reads the module's packages with their types, once, and those that the snippets use beside them.
var load = sync.OnceValues(func() ([]*packages.Package, error) {
	all, err := packages.Load(&packages.Config{Dir: "..", BuildFlags: []string{"-tags=goolm"},
		Mode: packages.NeedName | packages.NeedFiles | packages.NeedSyntax | packages.NeedTypes | packages.NeedTypesInfo | packages.NeedImports},
		"./...", "time", "github.com/google/uuid", "golang.org/x/mod/sumdb/tlog", "maunium.net/go/mautrix/id")
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

// snippets is a function that has secrets at hand in every form that the product knows, and in which expressions are tried.
type snippets struct {
	fset *token.FileSet
	pkg  *types.Package
	end  token.Pos
	log  *types.Package
}

const surroundings = `package snippet

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

var _ = []any{time.Now, uuid.Nil, tlog.HashSize, id.UserID(""), audit.Accepted, protocol.Version}

func _(text string, raw []byte, sum [32]byte, bits [16]byte, key backupkey.Key, secret msc4385.Secret, code protocol.Code, tokens appservice.Registration) {
}
`

func newSnippets(t *testing.T) *snippets {
	t.Helper()
	known := imported{}
	for _, p := range loaded(t) {
		known[p.PkgPath] = p.Types
	}
	s := &snippets{fset: token.NewFileSet(), log: known[module+"audit"]}
	file, err := parser.ParseFile(s.fset, "snippet.go", surroundings, 0)
	if err != nil {
		t.Fatal(err)
	}
	if s.pkg, err = (&types.Config{Importer: known}).Check("snippet", s.fset, []*ast.File{file}, nil); err != nil {
		t.Fatal(err)
	}
	s.end = file.End() - 2
	return s
}

// compiles type-checks an expression.
func (s *snippets) compiles(expression string) error {
	_, err := types.Eval(s.fset, s.pkg, s.end, expression)
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
	"ByPolicy":     {`"rule"`},
	"ByPerson":     {`"issuer"`, `"subject"`, `"name"`},
	"ByToken":      {`"name"`},
	"OfToken":      {`"name"`},
	"OfUser":       {`id.UserID("@a:b")`},
	"OfDevice":     {`id.UserID("@a:b")`, `id.DeviceID("D")`},
	"OfSource":     {`"kms"`},
	"OfLog":        {`"example.org/log"`},
	"OfEvent":      {`uuid.UUID(bits)`},
	"OfCampaign":   {`uuid.UUID(bits)`},
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
var others = map[string]bool{"ByRelay": true, "BySigner": true, "ByAnybody": true, "OfServer": true, "OfDatabase": true, "OfTriggers": true, "OfRotations": true, "OfPolicy": true,
	"OfRoster": true, "OfCampaigns": true, "OfIntake": true, "OfMessages": true, "OfAdmins": true, "OfGrants": true, "OfUsers": true, "OfDevices": true,
	"Commit": true, "NewReason": true, "WhyNoReason": true, "ParseVerifierKey": true, "OfAPI": true,
	"ParseBody": true, "CheckRedaction": true}

// Go lets an array without a name pass for a named one, so that 16 bytes pass for an UUID where no constraint stops them.
func assignable(function, secret string) bool {
	return (function == "OfEvent" || function == "OfCampaign") && secret == "bits"
}

func TestNothingThatIsASecretCanBeGivenToTheLog(t *testing.T) {
	s := newSnippets(t)
	scope := s.log.Scope()
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
			return "audit." + name + "(" + strings.Join(arguments, ", ") + ")"
		}
		if err := s.compiles(call(right)); err != nil {
			t.Errorf("the right call of audit.%s does not compile: %v", name, err)
		}
		for place := range right {
			for _, secret := range secrets {
				wrong := append([]string(nil), right...)
				wrong[place] = secret
				if s.compiles(call(wrong)) == nil && !assignable(name, secret) {
					t.Errorf("it compiles: %s", call(wrong))
				}
			}
		}
	}
	// What has fields of its own has none to write to from outside, and what takes all comers is not there.
	for _, secret := range secrets {
		for _, wrong := range []string{
			"audit.Event{Actor: %s}", "audit.Event{Subject: %s}", "audit.Event{Action: %s}", "audit.Event{Outcome: %s}", "audit.Event{Detail: %s}",
			"audit.Detail{%s}", "audit.Field{%s}", "audit.Actor{%s}", "audit.Subject{%s}", "audit.Reason{%s}", "audit.VerifierKey{%s}",
		} {
			if statement := fmt.Sprintf(wrong, secret); s.compiles(statement) == nil {
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
			if statement := "audit." + name + "(" + secret + ")"; s.compiles(statement) == nil {
				t.Errorf("it compiles: %s", statement)
			}
		}
	}
	// The snippets compile where they should.
	for _, right := range []string{"audit.Event{Actor: audit.ByRelay(), Detail: audit.Detail{audit.Flag(\"x\", true)}}", "audit.KMSPath(text)"} {
		if err := s.compiles(right); err != nil {
			t.Errorf("it does not compile: %s: %v", right, err)
		}
	}
}
