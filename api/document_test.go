package api_test

import (
	"fmt"
	"net/http"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/pb33f/libopenapi"
	v3 "github.com/pb33f/libopenapi/datamodel/high/v3"

	"github.com/keyherald/keyherald/api"
	"github.com/keyherald/keyherald/api/client"
)

func TestTheDocumentIsAnOpenAPIDocument(t *testing.T) {
	if fine, errs := newValidator(t).ValidateDocument(); !fine {
		for _, e := range errs {
			t.Error(e.Message, e.Reason, e.SchemaValidationErrors)
		}
	}
}

func TestEveryRouteIsInTheDocumentAndNothingElse(t *testing.T) {
	raw, err := os.ReadFile("openapi.yaml")
	check(t, err)
	document, err := libopenapi.NewDocument(raw)
	check(t, err)
	model, err := document.BuildV3Model()
	check(t, err)
	described := map[string]bool{}
	for path, item := range model.Model.Paths.PathItems.FromOldest() {
		for method, operation := range item.GetOperations().FromOldest() {
			var roles []api.Role
			node, has := operation.Extensions.Get("x-roles")
			if !has {
				t.Fatalf("%s %s has no x-roles", method, path)
			}
			check(t, node.Decode(&roles))
			described[fmt.Sprintf("%s %s %s %v", strings.ToUpper(method), path, operation.OperationId, roles)] = true
			if anybody := operation.Security != nil; anybody != (len(roles) == 0) {
				t.Errorf("%s %s: nobody need be known: %v, and its roles are %v", method, path, anybody, roles)
			}
			key := slices.ContainsFunc(operation.Parameters, func(p *v3.Parameter) bool { return p.Name == "Idempotency-Key" })
			if key != (strings.ToUpper(method) != http.MethodGet && operation.OperationId != "planCampaign" && operation.OperationId != "checkPolicy") {
				t.Errorf("%s %s takes an idempotency key: %v", method, path, key)
			}
		}
	}
	for _, r := range api.Routes() {
		line := fmt.Sprintf("%s %s %s %v", r.Method, r.Template(), r.Operation, append([]api.Role{}, r.Roles...))
		if !described[line] {
			t.Errorf("the document does not have %s", line)
		}
		delete(described, line)
	}
	for line := range described {
		t.Errorf("there is no route %s", line)
	}
}

// docs/api.md has the table of who may what.
func TestThePageHasTheRoutesAndRoles(t *testing.T) {
	page, err := os.ReadFile("../docs/api.md")
	check(t, err)
	var want strings.Builder
	want.WriteString("| route | operation | roles |\n| --- | --- | --- |\n")
	for _, r := range api.Routes() {
		roles := "anybody"
		if len(r.Roles) > 0 {
			texts := make([]string, len(r.Roles))
			for i, role := range r.Roles {
				texts[i] = string(role)
				if r.OneUser && role == "helpdesk" {
					texts[i] += " (with `user_id`)"
				}
			}
			roles = strings.Join(texts, ", ")
		}
		fmt.Fprintf(&want, "| `%s %s` | `%s` | %s |\n", r.Method, r.Template(), r.Operation, roles)
	}
	if !strings.Contains(string(page), want.String()) {
		t.Errorf("docs/api.md should have:\n%s", want.String())
	}
}

func TestTheDocumentIsServed(t *testing.T) {
	s := newServer(t)
	raw, err := os.ReadFile("openapi.yaml")
	check(t, err)
	if got := s.with("", http.MethodGet, "/openapi.yaml", nil); got.status != http.StatusOK || string(got.body) != string(raw) {
		t.Errorf("got %d", got.status)
	}
	got := into[map[string]any](t, s.with("", http.MethodGet, "/openapi.json", nil), http.StatusOK)
	if got["openapi"] != "3.1.0" {
		t.Errorf("got %v", got["openapi"])
	}
}

// The committed client is of this document: it has a call for each operation, and none beside.
func TestTheGeneratedClientHasEveryOperation(t *testing.T) {
	calls := map[string]bool{}
	all := reflect.TypeFor[client.ClientInterface]()
	for i := range all.NumMethod() {
		calls[all.Method(i).Name] = true
	}
	for _, r := range api.Routes() {
		name := strings.ToUpper(r.Operation[:1]) + r.Operation[1:]
		if !calls[name] && !calls[name+"WithBody"] {
			t.Errorf("it has no %s: go generate ./api/client", name)
		}
		delete(calls, name)
		delete(calls, name+"WithBody")
	}
	for name := range calls {
		t.Errorf("it has %s, which is no operation: go generate ./api/client", name)
	}
}
