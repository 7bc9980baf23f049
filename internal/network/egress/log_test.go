package egress

import (
	"context"
	"strings"
	"testing"
	"time"

	"wrenn.dev"
)

func TestLog(t *testing.T) {
	var l Log
	done, cancel := context.WithCancel(t.Context())
	cancel()
	if got := l.Read(done, 0); len(got.Events) != 0 || got.Dropped != 0 {
		t.Errorf("an empty log has %+v", got)
	}
	for range 3 * MaxEvents {
		l.Record(wrenn.EgressEvent{Reason: strings.Repeat("x", 1000)})
	}
	all := l.Read(done, 0).Events
	if n := len(all); n > MaxEvents || n < MaxEvents/2 || len(all[0].Reason) != maxReason || all[0].At.IsZero() {
		t.Errorf("%d events are kept", n)
	}
	for i, e := range all {
		if e.Seq != all[0].Seq+uint64(i) {
			t.Fatalf("event %d has number %d", i, e.Seq)
		}
	}
	first, last := all[0].Seq, all[len(all)-1].Seq
	for after, want := range map[uint64][2]uint64{ // events, dropped
		last: {0, 0}, last + 10: {0, 0}, last - 1: {1, 0}, first: {uint64(len(all)) - 1, 0}, first - 1: {uint64(len(all)), 0}, first - 6: {uint64(len(all)), 5},
	} {
		if got := l.Read(done, after); uint64(len(got.Events)) != want[0] || got.Dropped != want[1] {
			t.Errorf("after the last + %d: %d events, %d dropped, want %v", int64(after-last), len(got.Events), got.Dropped, want)
		}
	}
}

func TestLogWaits(t *testing.T) {
	var l Log
	got := make(chan wrenn.EgressLog)
	for range 2 {
		go func() { got <- l.Read(t.Context(), 0) }()
	}
	l.Record(wrenn.EgressEvent{Name: "example.com"})
	for range 2 {
		select {
		case log := <-got:
			if len(log.Events) != 1 || log.Events[0].Name != "example.com" {
				t.Errorf("read %+v", log)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("Read() does not return")
		}
	}
}
