package member

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/wake"
)

const (
	renewRetry = time.Minute // the mean time until a renewal that failed is tried again
	// refusedRetry is that of one that was refused: only an operator can change that.
	refusedRetry = time.Hour
)

// KeepRenewed renews the certificate now and each time after half of its life, until ctx
// ends. A failure is logged, and tried again.
func (m *Member) KeepRenewed(ctx context.Context, log *slog.Logger) error {
	for wake.Sleep(ctx, m.renewOrLog(ctx, log)) {
	}
	return nil
}

// renewOrLog renews, and returns after which time the next renewal is due.
func (m *Member) renewOrLog(ctx context.Context, log *slog.Logger) time.Duration {
	valid, err := m.Renew(ctx)
	if ctx.Err() != nil {
		return renewRetry // which does not come
	}
	return m.next(ctx, log, valid, err)
}

// next logs how a renewal ended, and returns after which time the next one is due.
func (m *Member) next(ctx context.Context, log *slog.Logger, valid time.Duration, err error) time.Duration {
	host := slog.String("host", string(m.details.Host))
	switch {
	case err == nil:
		log.LogAttrs(ctx, slog.LevelInfo, "certificate of this host renewed", host, slog.Duration("valid", valid))
		return valid / 2
	case valid > 0: // it was renewed
		log.LogAttrs(ctx, slog.LevelError, "control planes may refuse this host", host, slog.Any("err", err))
		return valid / 2
	}
	retry := renewRetry
	if code := wrenn.CodeOf(err); code == wrenn.PermissionDenied || code == wrenn.Unauthenticated || code == wrenn.Invalid {
		retry = refusedRetry
	}
	log.LogAttrs(ctx, slog.LevelError, "cannot renew the certificate of this host; will retry", host, slog.Duration("after", retry), slog.Any("err", err))
	return retry/2 + rand.N(retry)
}
