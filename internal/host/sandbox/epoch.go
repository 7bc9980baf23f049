package sandbox

import (
	"context"

	"wrenn.dev"
)

// epochKey is the key of WithEpoch in contexts.
type epochKey struct{}

// WithEpoch returns a context for calls that mean the sandbox of that epoch alone: for
// one with another epoch they are refused. 0 compares nothing.
func WithEpoch(ctx context.Context, epoch wrenn.Epoch) context.Context {
	return context.WithValue(ctx, epochKey{}, epoch)
}

// checkEpoch returns Unavailable if the caller means another placement of the sandbox than
// the one on this host. It is safe without the operation lock.
func (r *record) checkEpoch(ctx context.Context, id wrenn.SandboxID) error {
	j := r.latest.Load()
	want, _ := ctx.Value(epochKey{}).(wrenn.Epoch)
	switch {
	case j == nil || want == 0:
		return nil
	case j.SupersededBy != 0:
		return wrenn.Errorf(wrenn.Unavailable, "sandbox %s is on another host now: this one has an old copy of it, of epoch %d, which epoch %d supersedes; try again", id, j.Epoch, j.SupersededBy)
	case j.Epoch != 0 && j.Epoch != want:
		return wrenn.Errorf(wrenn.Unavailable, "sandbox %s was moved: the call is for epoch %d, and this host has epoch %d; try again", id, want, j.Epoch)
	}
	return nil
}

// epochs returns the epoch of the sandbox on this host, and the one that supersedes it; 0
// for none. It is safe without the operation lock.
func (r *record) epochs() (epoch, supersededBy wrenn.Epoch) {
	if j := r.latest.Load(); j != nil {
		return j.Epoch, j.SupersededBy
	}
	return 0, 0
}
