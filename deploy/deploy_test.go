// Package deploy_test tries what operators are given.
package deploy_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"github.com/keyherald/keyherald/keyheraldtest"
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// promtool runs Prometheus's own tool in deploy/prometheus.
func promtool(t *testing.T, args ...string) {
	t.Helper()
	program, err := keyheraldtest.PromtoolBinary(t.Context(), os.Stderr)
	check(t, err)
	out, err := keyheraldtest.Command(t.Context(), keyheraldtest.Deploy("prometheus"), program, args...)
	if err != nil || !strings.Contains(out, "SUCCESS") {
		t.Errorf("promtool %v: %v\n%s", args, err, out)
	}
}

func TestTheAlertsAreRaisedWhenTheyShallBeAndNotElse(t *testing.T) {
	promtool(t, "check", "rules", "keyherald.rules.yaml")
	promtool(t, "test", "rules", "keyherald.rules.test.yaml")
	raw, err := os.ReadFile(keyheraldtest.Deploy("prometheus/keyherald.rules.test.yaml"))
	check(t, err)
	var file struct {
		Tests []struct {
			Rules []struct {
				Alert string `yaml:"alertname"`
				Want  []any  `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		} `yaml:"tests"`
	}
	check(t, yaml.Unmarshal(raw, &file))
	raised, quiet := map[string]bool{}, map[string]bool{}
	for _, test := range file.Tests {
		for _, rule := range test.Rules {
			if len(rule.Want) > 0 {
				raised[rule.Alert] = true
			} else {
				quiet[rule.Alert] = true
			}
		}
	}
	alerts, err := keyheraldtest.Alerts()
	check(t, err)
	for _, alert := range alerts {
		if !raised[alert.Name] || !quiet[alert.Name] {
			t.Errorf("%s is tried raised: %v, and quiet: %v", alert.Name, raised[alert.Name], quiet[alert.Name])
		}
		if alert.Name == "KeyheraldDevicesNeedEnrollment" && !strings.Contains(alert.Annotations["what_to_do"], "keyherald reenrollments") {
			t.Errorf("%s does not name the queue of those who asked again", alert.Name)
		}
		if alert.Labels["severity"] == "" || alert.Annotations["summary"] == "" || alert.Annotations["what_to_do"] == "" {
			t.Errorf("%s does not say how grave it is, what it is and what to do", alert.Name)
		}
	}
}

// Every expression of the dashboard is one that Prometheus takes, as the rule of a file made for that.
func TestTheDashboardAsksWhatPrometheusUnderstands(t *testing.T) {
	exprs, err := keyheraldtest.DashboardExprs()
	check(t, err)
	if len(exprs) < 20 {
		t.Fatalf("the dashboard has %d panels", len(exprs))
	}
	type rule struct {
		Record string `yaml:"record"`
		Expr   string `yaml:"expr"`
	}
	var rules []rule
	for _, title := range slices.Sorted(maps.Keys(exprs)) {
		for _, expr := range exprs[title] {
			rules = append(rules, rule{fmt.Sprintf("panel:%d", len(rules)), expr})
		}
	}
	raw, err := yaml.Marshal(map[string]any{"groups": []any{map[string]any{"name": "dashboard", "rules": rules}}})
	check(t, err)
	path := filepath.Join(t.TempDir(), "dashboard.rules.yaml")
	check(t, os.WriteFile(path, raw, 0o600))
	promtool(t, "check", "rules", path)
}

// complianceTargets are the questions of the panel that shows the compliance, by what Grafana writes beside each, and with how
// many decimals it shows the share.
func complianceTargets(t *testing.T) (exprs map[string]string, decimals int) {
	t.Helper()
	raw, err := os.ReadFile(keyheraldtest.Deploy("grafana/keyherald.json"))
	check(t, err)
	var dashboard struct {
		Panels []struct {
			ID          int `json:"id"`
			FieldConfig struct {
				Defaults struct {
					Decimals *int `json:"decimals"`
				} `json:"defaults"`
			} `json:"fieldConfig"`
			Targets []struct{ Expr, LegendFormat string } `json:"targets"`
		} `json:"panels"`
	}
	check(t, json.Unmarshal(raw, &dashboard))
	exprs = map[string]string{}
	for _, panel := range dashboard.Panels {
		if panel.ID != 2 {
			continue
		}
		if panel.FieldConfig.Defaults.Decimals == nil {
			t.Fatal("Grafana rounds the share as it likes")
		}
		decimals = *panel.FieldConfig.Defaults.Decimals
		for _, target := range panel.Targets {
			exprs[target.LegendFormat] = target.Expr
		}
	}
	return exprs, decimals
}

// What is not everybody is never shown as 100 %, and a share never alone: the panel's expressions are asked of Prometheus.
func TestTheDashboardShowsComplianceRoundedDownAndWithBothNumbers(t *testing.T) {
	exprs, decimals := complianceTargets(t)
	if decimals != 2 {
		t.Errorf("a share that is rounded down to hundredths of a percent is shown with %d decimals", decimals)
	}
	type sample struct {
		Labels string  `yaml:"labels"`
		Value  float64 `yaml:"value"`
	}
	type ask struct {
		Expr    string   `yaml:"expr"`
		At      string   `yaml:"eval_time"`
		Samples []sample `yaml:"exp_samples"`
	}
	var tests []any
	for _, company := range []struct {
		current, unknown, exempt int
		share                    float64
	}{
		{19_999, 1, 500, 0.9999}, // 99.995 % is not 100 %
		{20_000, 0, 500, 1},
		{29, 71, 0, 0.29}, // what is exact stays so
		{2, 1, 0, 0.6666},
		{0, 7, 3, 0},
	} {
		var series []any
		for state, n := range map[string]int{"current": company.current, "unknown": company.unknown, "exempt": company.exempt} {
			for _, replica := range []string{"a", "b"} {
				series = append(series, map[string]string{"series": fmt.Sprintf(`keyherald_roster_users{state=%q,instance=%q}`, state, replica), "values": fmt.Sprint(n)})
			}
		}
		var asks []ask
		for legend, value := range map[string]float64{"share": company.share, "current": float64(company.current), "of roster − exempt": float64(company.current + company.unknown)} {
			if exprs[legend] == "" {
				t.Fatalf("the panel does not show %q", legend)
			}
			asks = append(asks, ask{exprs[legend], "0m", []sample{{"{}", value}}})
		}
		tests = append(tests, map[string]any{"interval": "1m", "input_series": series, "promql_expr_test": asks})
	}
	raw, err := yaml.Marshal(map[string]any{"tests": tests})
	check(t, err)
	path := filepath.Join(t.TempDir(), "compliance.test.yaml")
	check(t, os.WriteFile(path, raw, 0o600))
	promtool(t, "test", "rules", path)
}

func TestTheGuideHasEveryAlertAndEveryMetric(t *testing.T) {
	guide, err := os.ReadFile("../docs/monitoring.md")
	check(t, err)
	alerts, err := keyheraldtest.Alerts()
	check(t, err)
	for _, alert := range alerts {
		row := fmt.Sprintf("| `%s` | %s | %s | %s |", alert.Name, alert.Labels["severity"], alert.For, alert.Annotations["what_to_do"])
		if !strings.Contains(string(guide), row+"\n") {
			t.Errorf("docs/monitoring.md has no row\n%s", row)
		}
	}
	asked, err := keyheraldtest.MetricsAsked()
	check(t, err)
	for _, name := range asked {
		for _, suffix := range []string{"_bucket", "_count"} {
			name = strings.TrimSuffix(name, suffix)
		}
		if !strings.Contains(string(guide), "| `"+name) {
			t.Errorf("docs/monitoring.md has no row for %s", name)
		}
	}
}
