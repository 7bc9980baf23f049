package acme

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/libdns/libdns"

	"wrenn.dev"
	"wrenn.dev/internal/plain"
)

// Exec is a program that sets the record, for zones at other providers.
type Exec struct {
	// Program is called with "set" or "remove", the name of a TXT record with a dot at its
	// end, and the record's text. It exits with 0 when that is done.
	Program string `toml:"program,omitempty"`
}

const (
	hookTimeout = 2 * time.Minute
	maxHookText = 1 << 10 // of its output, in an error
)

// check returns the hook, if its program is one.
func (e Exec) check() (hook, error) {
	if !filepath.IsAbs(e.Program) {
		return hook{}, wrenn.Errorf(wrenn.Invalid, "exec.program: set it to the path of a program, from the root")
	}
	info, err := os.Stat(e.Program)
	if err != nil {
		return hook{}, fmt.Errorf("exec.program: %w", err)
	}
	if !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
		return hook{}, wrenn.Errorf(wrenn.Invalid, "exec.program: %s is no program: make it executable", e.Program)
	}
	return hook{e.Program}, nil
}

// hook sets records by a program. It implements certmagic.DNSProvider.
type hook struct{ program string }

// AppendRecords sets TXT records.
func (h hook) AppendRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	return records, h.each(ctx, "set", zone, records)
}

// DeleteRecords removes them.
func (h hook) DeleteRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	return records, h.each(ctx, "remove", zone, records)
}

func (h hook) each(ctx context.Context, action, zone string, records []libdns.Record) error {
	ctx, cancel := context.WithTimeout(ctx, hookTimeout)
	defer cancel()
	for _, record := range records {
		rr := record.RR()
		cmd := exec.CommandContext(ctx, h.program, action, libdns.AbsoluteName(rr.Name, zone), rr.Data) //nolint:gosec // of the configuration
		cmd.WaitDelay = time.Second                                                                     // what it has started does not keep the output open
		if out, err := cmd.CombinedOutput(); err != nil {
			end := strings.TrimSpace(string(out[max(0, len(out)-maxHookText):]))
			return fmt.Errorf("%s %s: %w: %s", h.program, action, err, plain.Line(end))
		}
	}
	return nil
}
