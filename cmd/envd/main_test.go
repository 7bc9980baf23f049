package main

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"

	"wrenn.dev/internal/run"
)

func TestStartRefuses(t *testing.T) {
	for name, args := range map[string][]string{
		"unknown flag": {"-no-such-flag"},
		"argument":     {"serve"},
	} {
		if err := start(t.Context(), args); !errors.Is(err, run.ErrUsage) {
			t.Errorf("%s: start() = %v, want a usage error", name, err)
		}
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	if err := start(t.Context(), []string{"-outside-guest", "-listen", taken.Addr().String()}); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("on a port that is taken: start() = %v", err)
	}
}

func TestStartEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := start(ctx, []string{"-outside-guest", "-listen", "127.0.0.1:0"}); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("start() = %v", err)
	}
	if err := start(t.Context(), []string{"-help"}); err != nil {
		t.Errorf("start(-help) = %v", err)
	}
}
