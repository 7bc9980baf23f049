package sandbox

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/objects"
	"wrenn.dev/internal/objects/objectstest"
	"wrenn.dev/internal/snapshot/archive"
	"wrenn.dev/internal/testkit"
)

// TestUnfinishedUploads: an agent removes what killed agents have left when it starts and
// every 6 hours, and continues after a failure.
func TestUnfinishedUploads(t *testing.T) {
	dir := t.TempDir()
	d, err := objects.OpenDir(dir)
	testkit.Must(t, err)
	synctest.Test(t, func(t *testing.T) {
		leave := func(name string, age time.Duration) {
			t.Helper()
			path := filepath.Join(dir, name)
			testkit.Must(t, os.WriteFile(path, []byte("half"), 0o600))
			testkit.Must(t, os.Chtimes(path, time.Now(), time.Now().Add(-age)))
		}
		leave(".put-old", unfinishedAge+time.Minute)
		leave(".put-later", unfinishedAge-time.Hour)
		s := objectstest.NewFaulty(d)
		h := &host{cfg: Config{Log: slog.New(slog.DiscardHandler)}, archive: &archive.Archive{Objects: s}, uploads: newUploads()}
		want := func(removed, failed uint64) {
			t.Helper()
			synctest.Wait()
			if got := h.uploads.stats(); got.Removed != removed || got.RemovalsFailed != failed {
				t.Errorf("removed %d, failed %d; want %d and %d", got.Removed, got.RemovalsFailed, removed, failed)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go h.runUnfinished(ctx)
		want(1, 0)
		s.Set(objectstest.Faults{Before: func(context.Context, string, string) error { return wrenn.Errorf(wrenn.PermissionDenied, "no") }})
		time.Sleep(unfinishedEvery)
		want(1, 1)
		s.Set(objectstest.Faults{})
		time.Sleep(unfinishedEvery)
		want(2, 1)
	})
}
