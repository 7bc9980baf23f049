package packaging_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v4"

	"wrenn.dev/internal/controlplane"
	"wrenn.dev/internal/controlplane/authority"
	"wrenn.dev/internal/testkit"
)

// object is one of Kubernetes.
type object map[string]any

// at returns what is at a path of an object, nil if there is nothing.
func (o object) at(path ...string) any {
	var value any = map[string]any(o)
	for _, key := range path {
		in, _ := value.(map[string]any)
		value = in[key]
	}
	return value
}

func (o object) text(path ...string) string {
	text, _ := o.at(path...).(string)
	return text
}

// renderer builds helm/render/main.go, and returns where it is: in the directory of what
// make makes, where it is linked once.
var renderer = sync.OnceValues(func() (string, error) {
	program, err := filepath.Abs("../.cache/render")
	if err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-trimpath", "-modfile=helm.mod", "-o", program, "helm/render/main.go") // once, for all tests
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return program, nil
})

// render renders the chart by Helm's engine, which refuses what Kubernetes does not know.
func render(t *testing.T, args ...string) (string, error) {
	t.Helper()
	program, err := renderer()
	testkit.Must(t, err)
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Dir = ".." // the chart is found from there
	var out, problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problems
	if err := cmd.Run(); err != nil {
		return "", errors.New(problems.String())
	}
	return out.String(), nil
}

// values writes a file with values of the chart.
func values(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "values.yaml")
	testkit.Must(t, os.WriteFile(name, []byte(text), 0o600))
	return name
}

// objects returns the objects of manifests by kind and name.
func objects(t *testing.T, manifests string) map[string]object {
	t.Helper()
	all := map[string]object{}
	decoder := yaml.NewDecoder(strings.NewReader(manifests))
	for {
		var fields map[string]any
		err := decoder.Decode(&fields)
		if errors.Is(err, io.EOF) {
			return all
		}
		testkit.Must(t, err)
		o := object(fields)
		name := o.text("kind") + "/" + o.text("metadata", "name")
		if all[name] != nil {
			t.Errorf("%s twice", name)
		}
		all[name] = o
	}
}

func chart(t *testing.T, args ...string) map[string]object {
	t.Helper()
	manifests, err := render(t, args...)
	testkit.Must(t, err)
	return objects(t, manifests)
}

// kinds returns the names of objects, less the prefix of the release.
func kinds(all map[string]object, prefix string) (names []string) {
	for name := range all {
		names = append(names, strings.Replace(name, "/"+prefix, "/", 1))
	}
	slices.Sort(names)
	return names
}

// loadConfig has the control plane read the configuration in the chart, with an authority.
func loadConfig(t *testing.T, o object, authorityFile string) controlplane.Config {
	t.Helper()
	text := o.text("data", "control-plane.toml")
	dir := t.TempDir()
	testkit.Must(t, authority.Create(filepath.Join(dir, "fleet.pem")))
	for _, pair := range [][2]string{
		{authorityFile, filepath.Join(dir, "fleet.pem")},
		{"/etc/wrenn/tls/tls.crt", filepath.Join(dir, "fleet.pem")}, {"/etc/wrenn/tls/tls.key", filepath.Join(dir, "fleet.pem")},
		{"/etc/wrenn/domain/tls.crt", filepath.Join(dir, "fleet.pem")}, {"/etc/wrenn/domain/tls.key", filepath.Join(dir, "fleet.pem")},
		// Where the API of Kubernetes is, as in a pod.
		{"audience = \"wrenn-join\"", "audience = \"wrenn-join\"\napi = \"https://10.96.0.1\"\nca = \"" + dir + "/fleet.pem\"\ntoken = \"" + dir + "/fleet.pem\""},
	} {
		text = strings.ReplaceAll(text, pair[0], pair[1])
	}
	file := filepath.Join(dir, "control-plane.toml")
	testkit.Must(t, os.WriteFile(file, []byte(text), 0o600))
	cfg, err := controlplane.Load(file, func(name string) string {
		return map[string]string{"DATABASE_URL": "postgres://db/wrenn"}[name]
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return cfg
}

func TestChartByDefault(t *testing.T) {
	t.Parallel()
	all := chart(t)
	want := []string{
		"ClusterRole/control-plane", "ClusterRoleBinding/control-plane", "ConfigMap/control-plane", "ConfigMap/host-agent", "DaemonSet/host-agent", "Deployment/control-plane",
		"NetworkPolicy/control-plane", "PodDisruptionBudget/control-plane", "Service/control-plane", "Service/control-plane-metrics",
		"ServiceAccount/control-plane", "ServiceAccount/host-agent",
	}
	if diff := cmp.Diff(want, kinds(all, "wrenn-")); diff != "" {
		t.Errorf("objects (-want +got):\n%s", diff)
	}
	cfg := loadConfig(t, all["ConfigMap/wrenn-control-plane"], "/etc/wrenn/fleet/fleet.pem")
	if cfg.Listen != ":8443" || cfg.PlainHTTP || cfg.MetricsListen != ":9464" || cfg.Fleet.Authority == "" ||
		!slices.Equal(cfg.Fleet.Kubernetes.ServiceAccounts, []string{"wrenn/wrenn-host-agent"}) || cfg.Fleet.Kubernetes.FollowNodes {
		t.Errorf("configuration %+v", cfg)
	}
	if rules := all["ClusterRole/wrenn-control-plane"].at("rules"); strings.Contains(fmt.Sprint(rules), "nodes") {
		t.Errorf("it may read nodes, which it does not follow: %v", rules)
	}
}

func TestChartInFull(t *testing.T) {
	t.Parallel()
	all := chart(t, "-values", "packaging/helm/testdata/full.yaml", "-namespace", "ns")
	for _, name := range []string{
		"Cluster/sandboxes-postgresql", "Certificate/sandboxes-control-plane", "Issuer/sandboxes", "HorizontalPodAutoscaler/sandboxes-control-plane", "Ingress/sandboxes",
		"ServiceMonitor/sandboxes-control-plane", "PodMonitor/sandboxes-host-agent", "PrometheusRule/sandboxes", "ConfigMap/sandboxes-dashboard", "Service/sandboxes-control-plane-domain",
	} {
		if all[name].text("metadata", "namespace") != "ns" {
			t.Errorf("no %s in the namespace; there are %v", name, kinds(all, "sandboxes-"))
		}
	}
	text := all["ConfigMap/sandboxes-control-plane"]
	keys := "key_files = [\"/etc/wrenn/secrets/new.txt\",\"/etc/wrenn/secrets/old.txt\"]"
	config := text.text("data", "control-plane.toml")
	if !strings.Contains(config, keys) {
		t.Errorf("no %s in\n%s", keys, config)
	}
	text["data"] = map[string]any{"control-plane.toml": strings.Replace(config, keys, "", 1)}
	cfg := loadConfig(t, text, "/etc/wrenn/fleet/authority.pem")
	if l := cfg.Limits; l.Sandboxes != 50 || l.TeamMemoryMB != 1<<20 || l.RequestsPerSecond != 12.5 || l.VCPUs != controlplane.Defaults().Limits.VCPUs || cfg.Domain.Listen != ":9443" || !cfg.Fleet.Kubernetes.FollowNodes || cfg.ShutdownGrace.Seconds() != 20 {
		t.Errorf("configuration %+v", cfg)
	}
	if rules := fmt.Sprint(all["ClusterRole/sandboxes-control-plane"].at("rules")); !strings.Contains(rules, "resources:[nodes] verbs:[list]") {
		t.Errorf("it may not read the nodes that it follows: %s", rules)
	}
	manifests, err := render(t, "-values", "packaging/helm/testdata/full.yaml")
	testkit.Must(t, err)
	for _, want := range []string{
		"registry.example.com/wrenn/wrenn-control-plane@sha256:0123456789abcdef", "registry.example.com/wrenn/wrenn-host-agent:1.2.3",
		"secretKeyRef: {name: sandboxes-postgresql-app, key: uri}",
	} {
		if !strings.Contains(manifests, want) {
			t.Errorf("no %s", want)
		}
	}
}

// TestChartHasTheAlerts compares what the chart makes with the files of packaging.
func TestChartHasTheAlerts(t *testing.T) {
	t.Parallel()
	all := chart(t, "-values", "packaging/helm/testdata/full.yaml")
	dashboard, err := os.ReadFile("grafana/wrenn.json")
	testkit.Must(t, err)
	if diff := cmp.Diff(string(dashboard), all["ConfigMap/sandboxes-dashboard"].text("data", "wrenn.json")); diff != "" {
		t.Errorf("dashboard (-want +got):\n%s", diff)
	}
	rules, err := os.ReadFile("prometheus/wrenn.rules.yml")
	testkit.Must(t, err)
	var want map[string]any
	testkit.Must(t, yaml.Unmarshal(rules, &want))
	if diff := cmp.Diff(want["groups"], all["PrometheusRule/sandboxes"].at("spec", "groups")); diff != "" {
		t.Errorf("alerts (-want +got):\n%s", diff)
	}
}

func TestChartRefuses(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"controlPlane: {replica: 3}":                     "additional properties 'replica' not allowed",
		"database: {existingSecret: ''}":                 "name the secret with the URL of PostgreSQL",
		"tls: {existingSecret: ''}":                      "hostAgent.controlPlane.url",
		"ingress: {enabled: true}":                       "set domain.name",
		"controlPlane: {image: {digest: 'sha256:1'}}":    "digest",
		"hostAgent: {port: 0}":                           "port",
		"controlPlane: {extraEnv: [{name: A, valu: b}]}": `unknown field "spec.template.spec.containers[0].env[1].valu"`,
	} {
		if _, err := render(t, "-values", values(t, text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}

// TestChartWithoutTLS: a proxy in front speaks TLS.
func TestChartWithoutTLS(t *testing.T) {
	t.Parallel()
	all := chart(t, "-values", values(t, "tls: {existingSecret: ''}\nhostAgent: {controlPlane: {url: 'https://api.example.com'}}"))
	cfg := loadConfig(t, all["ConfigMap/wrenn-control-plane"], "/etc/wrenn/fleet/fleet.pem")
	if cfg.Listen != ":8080" || !cfg.PlainHTTP {
		t.Errorf("configuration %+v", cfg)
	}
}
