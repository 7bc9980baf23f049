package cli

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"time"

	"wrenn.dev/client"
)

type auditCommand struct {
	Since time.Duration `help:"Only calls of this long before now." default:"24h" placeholder:"DURATION"`
}

// Run prints the audit log, newest first; with -o json all of an entry.
func (c *auditCommand) Run(ctx context.Context, s *session) error {
	if c.Since <= 0 {
		return fmt.Errorf("--since %v: it must be above 0", c.Since)
	}
	api, err := s.client()
	if err != nil {
		return err
	}
	entries := []client.AuditEntry{}
	for entry, err := range api.AuditLog(ctx, time.Now().Add(-c.Since), time.Time{}) {
		if err != nil {
			return err
		}
		entries = append(entries, entry)
	}
	return s.print(entries, func(w io.Writer) {
		rows := [][]string{{"TIME", "KEY", "ADDRESS", "OPERATION", "STATUS", "PATH"}}
		for _, e := range entries {
			key := e.KeyName
			if key == "" {
				key = e.KeyID
			}
			rows = append(rows, []string{e.At.Local().Format(time.DateTime), key, e.Address, e.Operation, strconv.Itoa(e.Status), e.Path})
		}
		table(w, rows)
	})
}
