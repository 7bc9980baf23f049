package packaging_test

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/rulefmt"
	promql "github.com/prometheus/prometheus/promql/parser"
)

// dashboardVariables are what Grafana puts in the place of its variables.
var dashboardVariables = strings.NewReplacer("$__rate_interval", "5m")

// expressions returns the expressions of the alerts and of the dashboard.
func expressions(t *testing.T) (all []string) {
	t.Helper()
	groups, errs := rulefmt.ParseFile("prometheus/wrenn.rules.yml", false)
	for _, err := range errs {
		t.Error(err)
	}
	if groups == nil {
		t.Fatal("no rules")
	}
	for _, group := range groups.Groups {
		for _, rule := range group.Rules {
			all = append(all, rule.Expr)
			if rule.Alert == "" || rule.Annotations["summary"] == "" || rule.Annotations["description"] == "" || !slices.Contains([]string{"critical", "warning"}, rule.Labels["severity"]) {
				t.Errorf("%s lacks a severity, a summary or a description", rule.Alert)
			}
		}
	}
	text, err := os.ReadFile("grafana/wrenn.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			ID      int
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatal(err)
	}
	for i, panel := range dashboard.Panels {
		if panel.ID != i+1 || panel.Title == "" || len(panel.Targets) == 0 {
			t.Errorf("panel %d: %+v", i, panel)
		}
		for _, target := range panel.Targets {
			all = append(all, dashboardVariables.Replace(target.Expr))
		}
	}
	return all
}

// TestMetricsExist looks for every metric that the alerts and the dashboard name.
func TestMetricsExist(t *testing.T) {
	known := metrics(t)
	used := map[string]bool{}
	for _, text := range expressions(t) {
		expr, err := promql.ParseExpr(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		promql.Inspect(expr, func(node promql.Node, _ []promql.Node) error {
			if selector, ok := node.(*promql.VectorSelector); ok {
				used[strings.TrimSuffix(selector.Name, "_bucket")] = true
			}
			return nil
		})
	}
	others := []string{"up", "process_cpu_seconds_total", "process_resident_memory_bytes"} // of Prometheus, and of its Go library
	for name := range used {
		if !known[name] && !slices.Contains(others, name) {
			t.Errorf("no program has a metric %s", name)
		}
	}
	for name := range known {
		if !used[name] && !slices.Contains(unused, name) {
			t.Errorf("%s is in no alert and not on the dashboard: add it, or list it in unused", name)
		}
	}
}

// unused are metrics that are of interest only in a search for a cause.
var unused = []string{
	"wrenn_api_sent_bytes_total", "wrenn_gateway_requests_total", "wrenn_host_memory_used_bytes", "wrenn_snapshots_stored_bytes_total", "wrenn_trace_spans_total",
}

var metricForm = regexp.MustCompile(`^wrenn_[a-z0-9_]+$`)

// metrics returns the names of metrics in the source of the programs.
func metrics(t *testing.T) map[string]bool {
	t.Helper()
	all := map[string]bool{}
	err := filepath.WalkDir("../internal", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		imports := slices.ContainsFunc(file.Imports, func(i *ast.ImportSpec) bool {
			return strings.HasPrefix(i.Path.Value, `"github.com/prometheus/client_golang`)
		})
		if !imports {
			return nil
		}
		ast.Inspect(file, func(node ast.Node) bool {
			if literal, ok := node.(*ast.BasicLit); ok && literal.Kind == token.STRING {
				if name, err := strconv.Unquote(literal.Value); err == nil && metricForm.MatchString(name) {
					all[name] = true
				}
			}
			return true
		})
		return nil
	})
	if err != nil || len(all) == 0 {
		t.Fatalf("metrics %v, %v", all, err)
	}
	return all
}
