package keyheraldtest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"

	"gopkg.in/yaml.v3"
)

// promtool is Prometheus's own tool, without its service discovery, which would bring every cloud's client.
var promtool = builtTool{name: "promtool", version: "v0.311.0", flags: []string{"-tags", "remove_all_sd"}, packages: []string{"github.com/prometheus/prometheus/cmd/promtool"}}

// PromtoolBinary returns promtool, which is built the first time, in a minute or more.
func PromtoolBinary(ctx context.Context, progress io.Writer) (string, error) {
	dir, err := promtool.build(ctx, progress)
	return filepath.Join(dir, "promtool"), err
}

// Deploy is the path of a file in deploy/.
func Deploy(name string) string {
	_, source, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(source), "..", "deploy", name)
}

// Alert is an alert of deploy/prometheus/keyherald.rules.yaml.
type Alert struct {
	Name        string            `yaml:"alert"`
	Expr        string            `yaml:"expr"`
	For         string            `yaml:"for"`
	Labels      map[string]string `yaml:"labels"`
	Annotations map[string]string `yaml:"annotations"`
}

// Alerts reads all of them.
func Alerts() ([]Alert, error) {
	raw, err := os.ReadFile(Deploy("prometheus/keyherald.rules.yaml"))
	if err != nil {
		return nil, fmt.Errorf("reading the alerts: %w", err)
	}
	var file struct {
		Groups []struct {
			Rules []Alert `yaml:"rules"`
		} `yaml:"groups"`
	}
	if err := yaml.Unmarshal(raw, &file); err != nil {
		return nil, fmt.Errorf("reading the alerts: %w", err)
	}
	var alerts []Alert
	for _, group := range file.Groups {
		alerts = append(alerts, group.Rules...)
	}
	return alerts, nil
}

// DashboardExprs are the expressions of deploy/grafana/keyherald.json, by the panel's title.
func DashboardExprs() (map[string][]string, error) {
	raw, err := os.ReadFile(Deploy("grafana/keyherald.json"))
	if err != nil {
		return nil, fmt.Errorf("reading the dashboard: %w", err)
	}
	var dashboard struct {
		Panels []struct {
			Title   string `json:"title"`
			Targets []struct {
				Expr string `json:"expr"`
			} `json:"targets"`
		} `json:"panels"`
	}
	if err := json.Unmarshal(raw, &dashboard); err != nil {
		return nil, fmt.Errorf("reading the dashboard: %w", err)
	}
	exprs := map[string][]string{}
	for _, panel := range dashboard.Panels {
		for _, target := range panel.Targets {
			exprs[panel.Title] = append(exprs[panel.Title], target.Expr)
		}
	}
	return exprs, nil
}

// metricName is what a metric of ours looks like in an expression: all of them begin alike, and nothing else does.
var metricName = regexp.MustCompile(`\bkeyherald_[a-z0-9_]+`)

// MetricsAsked are the metrics that alerts and dashboard ask for, as the server exports them, sorted.
func MetricsAsked() ([]string, error) {
	alerts, err := Alerts()
	if err != nil {
		return nil, err
	}
	exprs, err := DashboardExprs()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, alert := range alerts {
		names = append(names, metricName.FindAllString(alert.Expr, -1)...)
	}
	for _, of := range exprs {
		for _, expr := range of {
			names = append(names, metricName.FindAllString(expr, -1)...)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}
