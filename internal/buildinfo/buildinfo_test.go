package buildinfo

import (
	"runtime/debug"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestOf(t *testing.T) {
	built := &debug.BuildInfo{Main: debug.Module{Version: "v1.2.3"}, Settings: []debug.BuildSetting{
		{Key: "vcs.revision", Value: "0123456789abcdef"}, {Key: "vcs.time", Value: "2026-01-02T15:04:05Z"}, {Key: "vcs.modified", Value: "true"},
	}}
	got := of(built)
	if diff := cmp.Diff(Info{Version: "v1.2.3", Commit: "0123456789abcdef-dirty", Date: "2026-01-02T15:04:05Z"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got.Short() != "0123456789ab" || of(&debug.BuildInfo{}).Short() != "(devel)" {
		t.Errorf("short: %s, %s", got.Short(), of(&debug.BuildInfo{}).Short())
	}
}
