package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"wrenn/internal/run"
)

func environment(name string) string {
	return map[string]string{"DATABASE_URL": "postgres://me:s3cr3t@127.0.0.1:1/x"}[name]
}

func TestCheckConfig(t *testing.T) {
	var out, errs bytes.Buffer
	if err := command(t.Context(), []string{"-check-config"}, &out, &errs, environment); err != nil {
		t.Fatal(err)
	}
	if text := out.String(); !strings.Contains(text, "listen = '127.0.0.1:8080'") || strings.Contains(text, "s3cr3t") {
		t.Errorf("printed:\n%s", text)
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{{"dance"}, {"-no-such-flag"}, {"key", "team"}, {"migrate", "now"}, {"serve", "now"}} {
		var out, errs bytes.Buffer
		if err := command(t.Context(), args, &out, &errs, environment); !errors.Is(err, run.ErrUsage) || !strings.Contains(errs.String(), "usage: control-plane") {
			t.Errorf("control-plane %v = %v, said %q", args, err, errs.String())
		}
	}
	var out, errs bytes.Buffer
	if err := command(t.Context(), []string{"-h"}, &out, &errs, environment); err != nil {
		t.Errorf("control-plane -h = %v", err)
	}
}
