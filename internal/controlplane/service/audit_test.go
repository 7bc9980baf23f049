package service_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/service"
	"wrenn.dev/internal/pgtest"
	"wrenn.dev/internal/testkit"
)

func TestAuditLog(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s, stop := w.replica(t, nil)
	key, _, err := s.CreateKey(t.Context(), w.caller, service.NewKey{Name: "laptop"})
	testkit.Must(t, err)
	begun := time.Now().Add(-time.Hour).Truncate(time.Microsecond).UTC()
	var want []service.AuditEntry
	for i := range 1500 { // more than a batch
		e := service.AuditEntry{
			Team: w.caller.Team, Key: key.ID, At: begun.Add(time.Duration(i) * time.Second), Address: "192.0.2.7", RequestID: "r",
			Operation: "deleteSandbox", Path: "/v1/sandboxes/x\n" + strings.Repeat("y", 2000*(i%2)), Status: 204,
		}
		s.Record(e)
		e.KeyName, e.Path = "laptop", e.Path[:0]
		want = append([]service.AuditEntry{e}, want...)
	}
	other := w.team(t, "other")
	s.Record(service.AuditEntry{Team: other.Team, At: begun, Operation: "createKey"})
	stop() // what waits is written
	store := pgtest.Open(t, w.url)
	if n, err := store.DropAuditEntries(t.Context(), 2*time.Hour, 10); n != 0 || err != nil {
		t.Errorf("deleted %d entries of the last hours, %v", n, err)
	}

	var got []service.AuditEntry
	for page := ""; ; {
		entries, next, err := s.AuditLog(t.Context(), w.caller, service.ListAudit{Page: page, Limit: 1000})
		testkit.Must(t, err)
		for _, e := range entries {
			if len(e.Path) > 512 || strings.Contains(e.Path, "\n") || !strings.HasPrefix(e.Path, "/v1/sandboxes/x") {
				t.Fatalf("path %q", e.Path)
			}
			e.Path = ""
			got = append(got, e)
		}
		if page = next; page == "" {
			break
		}
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(service.AuditEntry{}, "ID")); diff != "" {
		t.Errorf("entries (-want +got):\n%.2000s", diff)
	}
	entries, next, err := s.AuditLog(t.Context(), w.caller, service.ListAudit{Since: begun.Add(10 * time.Second), Until: begun.Add(13 * time.Second)})
	if err != nil || next != "" || len(entries) != 3 {
		t.Errorf("three seconds have %d entries, then %q, %v", len(entries), next, err)
	}
	if entries, _, err := s.AuditLog(t.Context(), other, service.ListAudit{}); err != nil || len(entries) != 1 || entries[0].Operation != "createKey" {
		t.Errorf("another team sees %v, %v", entries, err)
	}
	for _, wrong := range []service.ListAudit{{Page: "x"}, {Page: "-1"}, {Limit: -1}, {Limit: 1001}} {
		_, _, err := s.AuditLog(t.Context(), w.caller, wrong)
		testkit.WantCode(t, err, wrenn.Invalid)
	}
	for _, want := range []int{1000, 501, 0} {
		if n, err := store.DropAuditEntries(t.Context(), time.Second, 1000); n != want || err != nil {
			t.Errorf("deleted %d old entries, %v, want %d", n, err, want)
		}
	}
}
