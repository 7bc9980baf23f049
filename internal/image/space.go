package image

import (
	"context"
	"time"

	"golang.org/x/sys/unix"

	"wrenn.dev"
)

// spaceEvery is how often the free space is read while an image is made. What can be
// written between two reads must be small against Config.MinFree.
const spaceEvery = 200 * time.Millisecond

// guardSpace returns a context that ends, with an Exhausted error as its cause, when less
// than least bytes are free in the file system of dir, which others fill as well. The
// caller calls stop.
func guardSpace(ctx context.Context, dir string, least uint64) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	check := func() {
		if err := enoughFree(dir, least); err != nil {
			cancel(err)
		}
	}
	check()
	tick := time.NewTicker(spaceEvery)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				check()
			}
		}
	}()
	return ctx, func() {
		cancel(nil)
		<-ended
		tick.Stop()
	}
}

// enoughFree returns an Exhausted error if less than least bytes are free.
func enoughFree(dir string, least uint64) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return err
	}
	if free := fs.Bavail * uint64(fs.Bsize); free < least {
		return wrenn.Errorf(wrenn.Exhausted, "this host has no room to unpack the image: %d MiB are free on its disk, and %d must stay free (limits.disk_free_mb of its agent)", free>>20, least>>20)
	}
	return nil
}
