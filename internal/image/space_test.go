package image

import (
	"context"
	"errors"
	"io"
	"testing"

	"wrenn.dev"
	"wrenn.dev/internal/image/rootfs"
)

// TestUnpackingLeavesRoom: unpacking ends when the disk gets too full, also when other
// programs fill it.
func TestUnpackingLeavesRoom(t *testing.T) {
	p := &preparation{cfg: Config{Out: io.Discard, MinFree: 1 << 60}}
	unpack := func(ctx context.Context, _ *rootfs.Tree, _ int64) error {
		<-ctx.Done()
		return errors.New("interrupted")
	}
	err := p.makeWithRoom(t.Context(), t.TempDir(), nil, unpack)
	if wrenn.CodeOf(err) != wrenn.Exhausted {
		t.Errorf("on a full disk: %v", err)
	}
	ctx, stop := guardSpace(t.Context(), t.TempDir(), 1)
	if ctx.Err() != nil {
		t.Errorf("on a disk with room: %v", context.Cause(ctx))
	}
	stop()
}
