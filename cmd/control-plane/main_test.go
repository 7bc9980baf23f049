package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wrenn.dev/internal/run"
	"wrenn.dev/internal/testkit"
)

func getenv(name string) string {
	return map[string]string{"DATABASE_URL": "postgres://me:s3cr3t@127.0.0.1:1/x"}[name]
}

func env(out, errs io.Writer) environment { return environment{out, errs, getenv} }

// TestCheckConfig: flags may have one dash or two, and stand before the command or after it.
func TestCheckConfig(t *testing.T) {
	file := filepath.Join(t.TempDir(), "control-plane.toml")
	testkit.Must(t, os.WriteFile(file, []byte("listen = '127.0.0.1:8081'\n"), 0o600))
	for _, args := range [][]string{
		{"-check-config", "-config", file}, {"--config=" + file, "--check-config"}, {"-config=" + file, "-check-config"}, {"--check-config", "--config", file},
		{"-config", file, "-check-config", "serve"}, {"migrate", "--config", file, "--check-config"},
	} {
		var out, errs bytes.Buffer
		if err := command(t.Context(), args, env(&out, &errs)); err != nil {
			t.Fatalf("control-plane %v = %v", args, err)
		}
		if text := out.String(); !strings.Contains(text, "listen = '127.0.0.1:8081'") || strings.Contains(text, "s3cr3t") {
			t.Errorf("control-plane %v printed:\n%s", args, text)
		}
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{{"dance"}, {"-no-such-flag"}, {"--no-such-flag"}, {"key", "team"}, {"migrate", "now"}, {"serve", "now"}, {"-config"}} {
		var out, errs bytes.Buffer
		if err := command(t.Context(), args, env(&out, &errs)); !errors.Is(err, run.ErrUsage) || out.Len() > 0 {
			t.Errorf("control-plane %v = %v, printed %q", args, err, out.String())
		}
	}
	for _, help := range []string{"-h", "-help", "--help"} {
		var out, errs bytes.Buffer
		if err := command(t.Context(), []string{help}, env(&out, &errs)); err != nil || !strings.Contains(out.String(), "migrate") || !strings.Contains(out.String(), "--check-config") {
			t.Errorf("control-plane %s = %v, printed %q", help, err, out.String())
		}
	}
}
