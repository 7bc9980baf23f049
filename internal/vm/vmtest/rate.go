package vmtest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"wrenn.dev/internal/vm"
)

const (
	rateBlock  = 64 << 10
	rateBlocks = 256 // written to a disk with a rate
	rateLasts  = 4   // seconds that it takes, of which the first may come at once
	rateLeast  = 2   // seconds, as the machine's clock may differ from ours in a guest of a guest
)

// diskRate: a machine that was restored from a snapshot without a rate has that of its spec, in
// bytes and in operations. A guest can be slow for other reasons, but not faster.
func (s *suite) diskRate(t *testing.T) {
	for name, rate := range map[string]vm.DiskRate{
		"bytes":      {BytesPerSecond: rateBlock * rateBlocks / rateLasts},
		"operations": {OperationsPerSecond: rateBlocks / rateLasts},
	} {
		t.Run(name, func(t *testing.T) {
			spec, guest := s.newSpec(t, s.base.disk)
			spec.Disks[0].Rate = rate
			m, err := s.Driver(t).Restore(within(t), spec, s.base.dir)
			must(t, "Restore", err)
			b := s.watch(t, m, spec, guest)
			b.ready(t)
			began := time.Now()
			must(t, "write", guest.(envdGuest).writePastCache(within(t)))
			if took, least := time.Since(began), rateLeast*time.Second; took < least {
				t.Errorf("%d blocks were written in %s, less than %s", rateBlocks, took, least)
			}
		})
	}
}

// writePastCache writes blocks to the disk, each of which reaches the VMM.
func (g envdGuest) writePastCache(ctx context.Context) error {
	return g.run(ctx, fmt.Sprintf("dd if=/dev/zero of=%s-rate bs=%d count=%d oflag=direct 2>/dev/null", diskFile, rateBlock, rateBlocks))
}
