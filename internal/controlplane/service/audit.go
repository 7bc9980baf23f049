package service

import (
	"context"
	"log/slog"
	"math"
	"strconv"
	"sync"
	"time"

	"wrenn.dev"
	"wrenn.dev/internal/controlplane/postgres"
	"wrenn.dev/internal/plain"
)

const (
	// auditEvery is how long an entry waits at most until it is written; auditBatch
	// entries are written at once.
	auditEvery, auditBatch = time.Second, 1000
	// maxAudit is how many entries wait for a database that does not answer. It is
	// more than all teams can cause in that time, unless the database is down: then the
	// calls fail, too.
	maxAudit = 20_000
	// maxAuditText bounds each text of an entry.
	maxAuditText = 512
	// auditPage is the default number of entries on a page, and maxAuditPage the largest.
	auditPage, maxAuditPage = 100, 1000
)

// Audit is the log of who changed what.
type Audit struct {
	store *postgres.Store
	log   *slog.Logger
	full  chan struct{} // there is a batch

	mu      sync.Mutex // guards the following
	waiting []postgres.AuditEntry
	lost    int // since the last write
}

func newAudit(store *postgres.Store, log *slog.Logger) *Audit {
	return &Audit{store: store, log: log, full: make(chan struct{}, 1)}
}

// AuditEntry is a call with an API key that needed more than to read.
type AuditEntry = postgres.AuditEntry

// Record adds a call to the log, in which it stands a second later. It does not wait.
// ID and KeyName do not count.
func (a *Audit) Record(e AuditEntry) {
	for _, text := range []*string{&e.Address, &e.RequestID, &e.Operation, &e.Path} {
		*text = plain.Shorten(plain.Line(*text), maxAuditText)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.waiting) >= maxAudit {
		a.lost++
		return
	}
	a.waiting = append(a.waiting, e)
	if len(a.waiting) >= auditBatch {
		select {
		case a.full <- struct{}{}:
		default:
		}
	}
}

// ListAudit says which entries AuditLog returns.
type ListAudit struct {
	Since, Until time.Time // zero: without an end
	Page         string    // what the page before said; "" is the first
	Limit        int       // 0 is 100, at most 1000
}

// AuditLog returns entries of the caller's team, newest first, and what the next
// page is asked for with; "" is none.
func (a *Audit) AuditLog(ctx context.Context, c Caller, list ListAudit) (entries []AuditEntry, next string, err error) {
	q := postgres.AuditQuery{Since: list.Since, Until: list.Until, Before: math.MaxInt64, Limit: list.Limit}
	if q.Limit == 0 {
		q.Limit = auditPage
	}
	if q.Limit < 0 || q.Limit > maxAuditPage {
		return nil, "", wrenn.Errorf(wrenn.Invalid, "a page of the audit log has 1 to %d entries", maxAuditPage)
	}
	if list.Page != "" {
		if q.Before, err = strconv.ParseInt(list.Page, 10, 64); err != nil || q.Before < 1 {
			return nil, "", wrenn.Errorf(wrenn.Invalid, "the page %.40q is not what the page before said", list.Page)
		}
	}
	if q.Until.IsZero() {
		q.Until = time.Now().Add(time.Hour) // also what other servers with another clock wrote
	}
	if entries, err = a.store.AuditEntries(ctx, c.Team, q); err != nil || len(entries) < q.Limit {
		return entries, "", err
	}
	return entries, strconv.FormatInt(entries[len(entries)-1].ID, 10), nil
}

// runAudit writes what was recorded, and once more at the end.
func (a *Audit) runAudit(ctx context.Context) error {
	flushEvery(ctx, auditEvery, a.full, a.flush)
	return nil
}

// flush writes all entries that wait. Those that cannot be written wait for the next time.
func (a *Audit) flush(ctx context.Context) {
	for {
		batch, lost := a.take()
		if lost > 0 {
			a.log.LogAttrs(ctx, slog.LevelError, "the database did not take the audit log for so long that entries were dropped", slog.Int("entries", lost))
		}
		if len(batch) == 0 {
			return
		}
		if err := a.store.AddAuditEntries(ctx, batch); err != nil {
			a.giveBack(batch)
			a.log.LogAttrs(ctx, slog.LevelWarn, "cannot write the audit log; will retry", slog.Any("err", err))
			return
		}
	}
}

func (a *Audit) take() (batch []AuditEntry, lost int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := min(len(a.waiting), auditBatch)
	batch, a.waiting = a.waiting[:n:n], a.waiting[n:]
	lost, a.lost = a.lost, 0
	return batch, lost
}

func (a *Audit) giveBack(batch []AuditEntry) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.waiting = append(batch, a.waiting...)
}
