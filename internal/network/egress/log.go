package egress

import (
	"context"
	"slices"
	"sync"
	"time"

	"wrenn.dev"
)

// MaxEvents is how many events a Log keeps.
const MaxEvents = 400

// maxReason bounds the text of an event, which may have what a guest sent.
const maxReason = 200

// Log keeps the last events of a sandbox. The zero value is ready to use. It is safe
// for concurrent use.
type Log struct {
	mu      sync.Mutex // guards the fields below
	events  []wrenn.EgressEvent
	last    uint64        // the number of the newest event
	changed chan struct{} // closed at the next event; nil while nothing waits
}

// Record adds an event and gives it its number. It does not block.
func (l *Log) Record(e wrenn.EgressEvent) {
	if len(e.Reason) > maxReason {
		e.Reason = e.Reason[:maxReason]
	}
	if e.At.IsZero() {
		e.At = time.Now()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.start()
	l.last++
	e.Seq = l.last
	if len(l.events) == MaxEvents {
		l.events = slices.Delete(l.events, 0, MaxEvents/4) // seldom, so that it costs little
	}
	l.events = append(l.events, e)
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

// start gives the log its first number: the time in microseconds, so that a log that
// a later agent begins has larger ones.
func (l *Log) start() {
	if l.last == 0 {
		l.last = uint64(time.Now().UnixMicro())
	}
}

// Read returns the events with a number over after, oldest first, and how many there
// were that are not kept any more. Without events it waits for one until ctx ends.
func (l *Log) Read(ctx context.Context, after uint64) wrenn.EgressLog {
	for {
		out, changed := l.read(after)
		if len(out.Events) > 0 {
			return out
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return out
		}
	}
}

// read is Read without waiting; changed is closed at the next event.
func (l *Log) read(after uint64) (out wrenn.EgressLog, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.start()
	oldest := l.last - uint64(len(l.events)) // the number before that of the first event
	skip := 0
	if after > oldest {
		skip = int(min(after-oldest, uint64(len(l.events))))
	} else if after > 0 {
		out.Dropped = oldest - after
	}
	out.Events = slices.Clone(l.events[skip:])
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	return out, l.changed
}
