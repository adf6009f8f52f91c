package audit_test

import (
	"fmt"
	"go/ast"
	"go/constant"
	"go/types"
	"maps"
	"slices"
	"strings"
	"testing"

	"golang.org/x/tools/go/packages"

	"github.com/keyherald/keyherald/audit"
)

// constants are the values that constant expressions of a named type have, each with where it stands. The package of the
// type itself is read for its declarations if declared is true, and left out else.
func constants(all []*packages.Package, path, name string, declared bool) map[string]string {
	found := map[string]string{}
	for _, p := range all {
		if (p.PkgPath == path) != declared {
			continue
		}
		for expr, value := range p.TypesInfo.Types {
			if value.Value == nil || value.Value.Kind() != constant.String || !isNamed(value.Type, path, name) {
				continue
			}
			found[constant.StringVal(value.Value)] = p.Fset.Position(expr.Pos()).String()
		}
	}
	return found
}

func isNamed(t types.Type, path, name string) bool {
	named, ok := types.Unalias(t).(*types.Named)
	return ok && named.Obj().Name() == name && named.Obj().Pkg() != nil && named.Obj().Pkg().Path() == path
}

func TestEveryActionIsInTheVocabularyAndIsUsed(t *testing.T) {
	used := constants(loaded(t), module+"audit", "Action", false)
	var known []audit.Action
	for _, e := range audit.Entries() {
		known = append(known, e.Action)
		if _, is := used[string(e.Action)]; !is {
			t.Errorf("the vocabulary has %s, which nobody uses", e.Action)
		}
	}
	for action, where := range used {
		if !slices.Contains(known, audit.Action(action)) {
			t.Errorf("%s: %q is not in the vocabulary", where, action)
		}
	}
	for action, where := range constants(loaded(t), module+"audit", "Action", true) {
		if !slices.Contains(known, audit.Action(action)) {
			t.Errorf("%s: %q is not in the vocabulary", where, action)
		}
	}
}

func TestEveryDetailFieldIsInTheVocabularyAndIsUsed(t *testing.T) {
	used := constants(loaded(t), module+"audit", "Name", false)
	known := map[string]bool{}
	for _, e := range audit.Entries() {
		for _, f := range e.Fields {
			known[string(f.Name)] = true
			if _, is := used[string(f.Name)]; !is {
				t.Errorf("the vocabulary has the field %s of %s, which nobody uses", f.Name, e.Action)
			}
		}
	}
	for name, where := range used {
		if !known[name] {
			t.Errorf("%s: the vocabulary has no field %q", where, name)
		}
	}
}

// Each word that the product has, of a type whose words may stand in the log, is in the vocabulary of some field.
func TestEveryWordIsInTheVocabulary(t *testing.T) {
	words := map[string]map[string]bool{}
	for _, e := range audit.Entries() {
		for _, f := range e.Fields {
			if words[f.Type] == nil {
				words[f.Type] = map[string]bool{}
			}
			for _, word := range f.Words {
				words[f.Type][word] = true
			}
		}
	}
	// These are told apart inside, and never told.
	inside := map[string]bool{"rotation.Hold ": true, "protocol.RecoveryCopy ": true, "protocol.ErrorCode ": true, "protocol.Stage ": true, "protocol.Refusal ": true, "protocol.ProofType ": true,
		"protocol.Outcome ": true, "audit.Refusal ": true, "rotation.Reason ": true, "audit.Ignored ": true, "protocol.DriftKind ": true}
	vocabularies := typesOf(t, "Vocabulary")
	for _, named := range vocabularies {
		path, name := named.Obj().Pkg().Path(), named.Obj().Name()
		full := named.Obj().Pkg().Name() + "." + name
		found := constants(loaded(t), path, name, true)
		maps.Copy(found, constants(loaded(t), path, name, false))
		for word, where := range found {
			if !words[full][word] && !inside[full+" "+word] {
				t.Errorf("%s: no field has the word %q of %s", where, word, full)
			}
		}
		delete(words, full)
	}
	delete(words, "")
	if len(words) > 0 || len(vocabularies) < 10 {
		t.Errorf("these are the words of types that may not stand in the log: %v", words)
	}
}

// typesOf are the types of a constraint.
func typesOf(t *testing.T, constraint string) []*types.Named {
	t.Helper()
	union := newSnippets(t).log.Scope().Lookup(constraint).Type().Underlying().(*types.Interface).EmbeddedType(0).(*types.Union)
	var all []*types.Named
	for i := range union.Len() {
		if union.Term(i).Tilde() {
			t.Errorf("%s takes every type like %s", constraint, union.Term(i).Type())
		}
		all = append(all, union.Term(i).Type().(*types.Named))
	}
	return all
}

// conversions are all the places where a text becomes something that may stand in the log. Each is of the origin that its
// type names; whoever adds one looks at what it is.
var conversions = []string{
	"api: audit.IssuerName(v.config.Issuer)",
	"api: audit.LogName(c.deps.Reader.LogName())",
	"api: audit.PersonName(name)",
	"api: audit.PersonName(subject)",
	"api: audit.RouteName(r.route)",
	"api: audit.TokenName(name)",
	"api: audit.TokenName(t.Name)",
	"audit/reader: audit.Filter(action)",
	"audit/reader: audit.Filter(q.Actor)",
	"audit/reader: audit.LogName(r.LogName())",
	"audit/signer: audit.LogName(checkpoint.Origin(s.keys.Name, newest.Epoch))",
	"audit/signer: audit.LogName(s.keys.Name)",
	"cmd/keyherald: audit.AccountName(name)",
	"cmd/keyherald: audit.HostName(host)",
	"cmd/keyherald: audit.KMSName(name)",
	"cmd/keyherald: audit.LogName(c.Audit.Name)",
	"cmd/keyherald: audit.SinkName(s.Name)",
	"cmd/keyherald: audit.SoftwareVersion(build.Main.Version)",
	"cmd/keyherald: audit.SourceName(name)",
	"enforce: audit.PolicyHash(hex.EncodeToString(version.SHA256[:sha256.Size / 2]))",
	"enforce: audit.RuleName(rule.Name)",
	"intake: audit.CredentialID(keyID)",
	"intake: audit.SourceName(name)",
	"intake: audit.SourceName(source)",
	"relay: audit.CredentialID(a.KeyID)",
	"relay: audit.KMSName(a.KMS)",
	"relay: audit.KMSName(c.KMS)",
	"relay: audit.KMSName(change.KMS.Name)",
	"relay: audit.KMSName(request.KMS)",
	"relay: audit.KMSName(w.KMS)",
	"relay: audit.KMSPath(a.Path)",
	"relay: audit.KMSPath(change.KMS.Path)",
	"relay: audit.KMSPath(request.Path)",
	"relay: audit.KMSPath(w.Path)",
	"relay: audit.KMSVersion(a.Version)",
	"relay: audit.KMSVersion(report.KMSVersion)",
	"relay: audit.KMSVersion(t.rotation.KMS.Version)",
	"relay: audit.KMSVersion(w.Version)",
	"relay: audit.NotificationID(a.ID)",
	"relay: audit.ProofName(grant.Proof)",
	"relay: audit.PublicKey(report.Backup.PublicKey)",
	"relay: audit.PublicKey(status.PublicKey)",
	"relay: audit.ReaderName(a.Reader)",
	"relay: audit.SoftwareVersion(status.SoftwareVersion)",
	"relay: audit.SourceName(a.Source)",
	"relay: audit.StorageKeyID(act.KeyID)",
	"relay: audit.UserPattern(grant.Users)",
}

func TestWhereForeignTextBecomesAnIdentifierIsKnown(t *testing.T) {
	of := map[string]bool{"PublicKey": true, "AccountName": true, "IssuerName": true, "PersonName": true, "TokenName": true}
	for _, named := range typesOf(t, "Identifier") {
		if named.Obj().Pkg().Path() == module+"audit" {
			of[named.Obj().Name()] = true
		}
	}
	var found []string
	for _, p := range loaded(t) {
		if !strings.HasPrefix(p.PkgPath, module) || p.PkgPath == module+"audit" || strings.HasPrefix(p.PkgPath, module+"keyheraldtest") {
			continue
		}
		for _, file := range p.Syntax {
			ast.Inspect(file, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok || len(call.Args) != 1 || !p.TypesInfo.Types[call.Fun].IsType() || p.TypesInfo.Types[call.Args[0]].Value != nil {
					return true
				}
				if named, ok := types.Unalias(p.TypesInfo.Types[call.Fun].Type).(*types.Named); ok && of[named.Obj().Name()] && named.Obj().Pkg().Path() == module+"audit" {
					found = append(found, fmt.Sprintf("%s: audit.%s(%s)", strings.TrimPrefix(p.PkgPath, module), named.Obj().Name(), types.ExprString(call.Args[0])))
				}
				return true
			})
		}
	}
	slices.Sort(found)
	if found = slices.Compact(found); !slices.Equal(found, conversions) {
		t.Errorf("they are now:\n%s", strings.Join(found, "\n"))
	}
}
