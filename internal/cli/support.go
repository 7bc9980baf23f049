package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"wrenn.dev/internal/cli/support"
	"wrenn.dev/internal/plain"
)

const (
	scrapeTime  = 5 * time.Second
	journalTime = 20 * time.Second
	maxMetrics  = 2 << 20
)

type supportCommand struct {
	State   string   `default:"/var/lib/wrenn" type:"path" help:"The --state of wrenn up."`
	Listen  string   `default:"127.0.0.1:8080" help:"The --listen of wrenn up."`
	Metrics []string `sep:"none" default:"http://127.0.0.1:9464/metrics,http://127.0.0.1:49981/metrics" placeholder:"URL" help:"Where metrics are served; may be repeated. Default: those of the services."`
	File    string   `type:"path" placeholder:"FILE" help:"Where to write it; default: wrenn-support-TIME.tar.gz in the working directory."`
}

// Help is shown below the usage.
func (*supportCommand) Help() string {
	return `It has versions, the findings of wrenn doctor, configurations and logs of the control plane and the
host agent, and their metrics: names of sandboxes and templates, but no files, commands, consoles or
databases of users. What looks like a secret is removed. Read it before you give it away:

  sudo wrenn support-bundle --file bundle.tar.gz && tar xzf bundle.tar.gz`
}

// Run writes the file and prints its name.
func (c *supportCommand) Run(ctx context.Context, s *session) (err error) {
	now := time.Now().UTC()
	name := "wrenn-support-" + now.Format("20060102T150405Z")
	if c.File == "" {
		c.File = name + ".tar.gz"
	}
	f, err := os.OpenFile(c.File, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("write the bundle: %w", err)
	}
	err = support.Write(ctx, f, name, c.parts(s), now)
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(fmt.Errorf("write the bundle: %w", err), os.Remove(c.File))
	}
	return s.print(map[string]string{"file": c.File}, func(w io.Writer) { fmt.Fprintln(w, plain.Line(c.File)) })
}

// parts are the files of the bundle.
func (c *supportCommand) parts(s *session) []support.Part {
	doctor := &doctorCommand{State: c.State, Listen: c.Listen}
	all := []support.Part{
		{Name: "version.json", Content: func(ctx context.Context) ([]byte, error) {
			found, err := s.versions(ctx)
			return asJSON(found, err)
		}},
		{Name: "doctor.json", Content: func(ctx context.Context) ([]byte, error) { return asJSON(doctor.look(ctx), nil) }},
		support.File("system/os-release", "/etc/os-release"),
		support.File("system/kernel", "/proc/version"),
		support.File("system/meminfo", "/proc/meminfo"),
		support.File("system/loadavg", "/proc/loadavg"),
		support.File("system/cpuinfo", "/proc/cpuinfo"),
		support.File("system/mounts", "/proc/self/mounts"),
		support.File("config/up/host-agent.toml", filepath.Join(c.State, "host-agent.toml")),
		support.File("config/services/up.toml", "/etc/wrenn/up.toml"),
		support.File("config/services/host-agent.toml", "/etc/wrenn/host-agent.toml"),
		support.File("config/services/control-plane.toml", "/etc/wrenn/control-plane.toml"),
		support.File("driver.json", filepath.Join(c.State, "probe.json")),
		support.File("logs/control-plane.log", filepath.Join(c.State, "logs", "control-plane.log")),
		support.File("logs/host-agent.log", filepath.Join(c.State, "logs", "host-agent.log")),
		{Name: "logs/services.log", Content: journal},
	}
	for i, url := range c.Metrics {
		all = append(all, support.Part{Name: fmt.Sprintf("metrics/%d.txt", i+1), Content: func(ctx context.Context) ([]byte, error) { return scrape(ctx, url) }})
	}
	return all
}

func asJSON(value any, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	return json.MarshalIndent(value, "", "  ")
}

// journal returns what systemd has of the services' logs; nothing without systemd.
func journal(ctx context.Context) ([]byte, error) {
	program, err := exec.LookPath("journalctl")
	if err != nil {
		return nil, nil // this machine has no services
	}
	ctx, cancel := context.WithTimeout(ctx, journalTime)
	defer cancel()
	return exec.CommandContext(ctx, program, "--no-pager", "--quiet", "--lines=10000", "--unit=wrenn", "--unit=wrenn-control-plane", "--unit=wrenn-host-agent").Output()
}

// scrape returns the metrics at url.
func scrape(ctx context.Context, url string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, scrapeTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain") {
		return nil, fmt.Errorf("%s answers %s and no metrics", url, resp.Status)
	}
	return io.ReadAll(io.LimitReader(resp.Body, maxMetrics))
}
