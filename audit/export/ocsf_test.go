package export_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/keyherald/keyherald/audit"
	"github.com/keyherald/keyherald/audit/export"
)

func TestOCSFIsWritten(t *testing.T) {
	var out bytes.Buffer
	if n, err := export.Each(&out, rows(sample()), export.OCSF("example.org/keyherald")); err != nil || n != 9 {
		t.Fatal(n, err)
	}
	golden(t, "log.ocsf.jsonl", out.Bytes())
}

// schema is an extract of the published schema.
type schema struct {
	Version    string
	Classes    map[string]schemaClass
	Objects    map[string]schemaObject
	Severities map[string]string
}

type schemaObject struct {
	Required, Attributes []string
	AtLeastOne           []string `json:"at_least_one"`
}

type schemaClass struct {
	schemaObject
	Name         string
	CategoryUID  int    `json:"category_uid"`
	CategoryName string `json:"category_name"`
	Activities   map[string]string
	Statuses     map[string]string
}

func loadSchema(t *testing.T) schema {
	t.Helper()
	raw, err := os.ReadFile("testdata/ocsf-1.8.0.json")
	if err != nil {
		t.Fatal(err)
	}
	var s schema
	if err := json.Unmarshal(raw, &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// check returns what in an object is not as the schema wants it.
func (o schemaObject) check(name string, has map[string]any) (wrong []string) {
	for _, required := range o.Required {
		if has[required] == nil {
			wrong = append(wrong, fmt.Sprintf("%s has no %s", name, required))
		}
	}
	if len(o.AtLeastOne) > 0 && !slices.ContainsFunc(o.AtLeastOne, func(key string) bool { return has[key] != nil && has[key] != "" }) {
		wrong = append(wrong, fmt.Sprintf("%s has none of %v", name, o.AtLeastOne))
	}
	for key := range has {
		if !slices.Contains(o.Attributes, key) {
			wrong = append(wrong, fmt.Sprintf("%s has %s, which the schema does not know there", name, key))
		}
	}
	return wrong
}

// check returns what in an event is not as the published schema wants it.
func (s schema) check(event map[string]any) (wrong []string) {
	number := func(key string) int { n, _ := event[key].(float64); return int(n) }
	class, ok := s.Classes[strconv.Itoa(number("class_uid"))]
	if !ok {
		return []string{fmt.Sprintf("there is no class %v", event["class_uid"])}
	}
	wrong = class.check(class.Name, event)
	activity := number("activity_id")
	if caption, ok := class.Activities[strconv.Itoa(activity)]; !ok || activity != 99 && caption != event["activity_name"] || event["activity_name"] == "" {
		wrong = append(wrong, fmt.Sprintf("activity %d is %v", activity, event["activity_name"]))
	}
	status := number("status_id")
	if caption, ok := class.Statuses[strconv.Itoa(status)]; !ok || status != 99 && caption != event["status"] || event["status"] == "" {
		wrong = append(wrong, fmt.Sprintf("status %d is %v", status, event["status"]))
	}
	if s.Severities[strconv.Itoa(number("severity_id"))] != event["severity"] {
		wrong = append(wrong, fmt.Sprintf("severity %v is %v", event["severity_id"], event["severity"]))
	}
	if class.Name != event["class_name"] || class.CategoryUID != number("category_uid") || class.CategoryName != event["category_name"] ||
		number("type_uid") != number("class_uid")*100+activity || event["type_name"] != fmt.Sprintf("%s: %s", class.Name, event["activity_name"]) {
		wrong = append(wrong, fmt.Sprintf("class, category and type do not agree: %v", event))
	}
	for key, value := range event {
		if object, ok := value.(map[string]any); ok && key != "unmapped" {
			described, known := s.Objects[key]
			if !known {
				wrong = append(wrong, "the test knows no object "+key)
			}
			wrong = append(wrong, described.check(key, object)...)
			for inner, value := range object {
				if nested, ok := value.(map[string]any); ok {
					wrong = append(wrong, s.Objects[inner].check(key+"."+inner, nested)...)
				}
			}
		}
	}
	if metadata, _ := event["metadata"].(map[string]any); metadata["version"] != s.Version || s.Version != export.OCSFVersion {
		wrong = append(wrong, "the version of the schema is another one")
	}
	return wrong
}

// actions reads the vocabulary from its source, so that an action which is added is tried here.
func actions(t *testing.T) []audit.Action {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "../actions.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var found []audit.Action
	ast.Inspect(file, func(node ast.Node) bool {
		spec, ok := node.(*ast.ValueSpec)
		if !ok || len(spec.Values) != 1 {
			return true
		}
		kind, _ := spec.Type.(*ast.Ident)
		value, _ := spec.Values[0].(*ast.BasicLit)
		if kind != nil && kind.Name == "Action" && value != nil {
			action, err := strconv.Unquote(value.Value)
			if err != nil {
				t.Fatal(err)
			}
			found = append(found, audit.Action(action))
		}
		return true
	})
	if len(found) < 40 {
		t.Fatalf("only %d actions were found", len(found))
	}
	return found
}

func TestEveryActionIsAnOCSFEventThatThePublishedSchemaAllows(t *testing.T) {
	s := loadSchema(t)
	encode := export.OCSF("example.org/keyherald")
	actors := []string{"relay", "local:root@host", "local:unknown", "source:corporate-kms", "@alice:example.org/MANAGED", "@alice:example.org"}
	classes := map[any]int{}
	for _, action := range append(actions(t), "something.new") {
		for _, actor := range actors {
			for _, outcome := range []audit.Outcome{audit.Accepted, audit.Refused, audit.Failed, audit.Reported} {
				for _, subject := range []string{"", "@alice:example.org"} {
					var out bytes.Buffer
					if err := encode(&out, event(1, actor, action, subject, "", outcome, `{"reason":"x"}`)); err != nil {
						t.Fatal(err)
					}
					var decoded map[string]any
					if err := json.Unmarshal(out.Bytes(), &decoded); err != nil {
						t.Fatal(err)
					}
					for _, wrong := range s.check(decoded) {
						t.Errorf("%s of %q (%s) on %q: %s", action, actor, outcome, subject, wrong)
					}
					classes[decoded["class_name"]]++
				}
			}
		}
	}
	if len(classes) != len(s.Classes) {
		t.Errorf("only the classes %v are used", classes)
	}
}
