package process

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"

	pb "wrenn.dev/proto/gen/envd/process"
)

// full is as much as makes the program wait for a subscriber that did not take it.
var full = strings.Repeat("x", maxUnsent)

func theEnd() *pb.ProcessEvent { return endEvent(0, nil, 0) }

// reader is a subscriber's stream: it notes what it got, and each event waits for gate if there is one.
type reader struct {
	gate chan struct{}

	mu  sync.Mutex // guards got
	got []string   // the end, keepalives and what is between them, see note
}

func (r *reader) send(ev *pb.ProcessEvent) error {
	if r.gate != nil {
		<-r.gate
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case ev.GetData() != nil:
		r.note(string(ev.GetData().GetStdout()))
	case ev.GetEnd() != nil:
		r.got = append(r.got, "end")
	default:
		r.got = append(r.got, "keepalive")
	}
	return nil
}

// note adds output to the output before it: where it is cut into events is not the hub's promise.
func (r *reader) note(text string) {
	if n := len(r.got); n > 0 && r.got[n-1] != "keepalive" {
		r.got[n-1] += text
		return
	}
	r.got = append(r.got, text)
}

func (r *reader) events() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.got)
}

// follow starts r on h and returns a function that waits for its error.
func (r *reader) follow(ctx context.Context, h *hub) (wait func() error) {
	sub, done := h.subscribe(), make(chan error, 1)
	go func() { done <- h.follow(ctx, sub, defaultKeepalive, r.send) }()
	return func() error { return <-done }
}

func TestHubOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(newBlocks())
		readers := []*reader{{}, {}, {}}
		var waits []func() error
		for _, r := range readers {
			waits = append(waits, r.follow(t.Context(), h))
		}
		want := ""
		for i := range 5_000 {
			text := fmt.Sprintln(i)
			want += text
			h.publish(kindStdout, []byte(text))
		}
		h.finish(theEnd())
		for i, r := range readers {
			if err := waits[i](); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]string{want, "end"}, r.events()); diff != "" {
				t.Errorf("reader %d mismatch (-want +got):\n%s", i, diff)
			}
		}
	})
}

func TestHubWithoutFollowers(t *testing.T) {
	h := newHub(newBlocks())
	h.publish(kindStdout, []byte("lost"))
	if n := h.held(); n != 0 {
		t.Errorf("%d bytes are held without a subscriber", n)
	}
	h.finish(theEnd())
	late := &reader{}
	if err := late.follow(t.Context(), h)(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"end"}, late.events()); diff != "" {
		t.Errorf("late subscriber mismatch (-want +got):\n%s", diff)
	}
}

// A lone subscriber may take an hour, and the program waits.
func TestHubLoneFollowerIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(newBlocks())
		r := &reader{gate: make(chan struct{})}
		wait := r.follow(t.Context(), h)
		h.publish(kindStdout, []byte(full))
		published := make(chan bool, 1)
		go func() { h.publish(kindStdout, []byte("a")); published <- true }()
		time.Sleep(time.Hour)
		select {
		case <-published:
			t.Fatal("publish() returned before the subscriber had sent on what came before")
		default:
		}
		close(r.gate)
		<-published
		h.finish(theEnd())
		if err := wait(); err != nil {
			t.Error(err)
		}
	})
}

func TestHubCutsWhoStallsOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(newBlocks())
		slow, quick := &reader{gate: make(chan struct{})}, &reader{}
		waitSlow := slow.follow(t.Context(), h)
		waitQuick := quick.follow(t.Context(), h)
		began := time.Now()
		h.publish(kindStdout, []byte(full))
		h.publish(kindStdout, []byte("a"))
		if took := time.Since(began); took != slowReaderLimit {
			t.Errorf("publish() waited %v, want %v", took, slowReaderLimit)
		}
		h.publish(kindStdout, []byte("b"))
		h.finish(theEnd())
		if err := waitQuick(); err != nil {
			t.Error(err)
		}
		close(slow.gate)
		if err := waitSlow(); connect.CodeOf(err) != connect.CodeResourceExhausted {
			t.Errorf("the slow one got %v, want resource_exhausted", err)
		}
		if diff := cmp.Diff([]string{full + "ab", "end"}, quick.events()); diff != "" {
			t.Errorf("quick reader mismatch (-want +got):\n%s", diff)
		}
	})
}

// When all stall, none keeps another one waiting, and none is cut off.
func TestHubAllStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(newBlocks())
		readers := []*reader{{gate: make(chan struct{})}, {gate: make(chan struct{})}}
		var waits []func() error
		for _, r := range readers {
			waits = append(waits, r.follow(t.Context(), h))
		}
		go func() {
			h.publish(kindStdout, []byte(full))
			h.publish(kindStdout, []byte("a"))
			h.finish(theEnd())
		}()
		time.Sleep(time.Hour)
		close(readers[0].gate)
		time.Sleep(slowReaderLimit / 2)
		close(readers[1].gate)
		for i, r := range readers {
			if err := waits[i](); err != nil {
				t.Fatal(err)
			}
			if got := r.events(); !slices.Equal(got, []string{full + "a", "end"}) {
				t.Errorf("reader %d got %q", i, got)
			}
		}
	})
}

func TestHubFollowerLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(newBlocks())
		ctx, cancel := context.WithCancel(t.Context())
		gone := &reader{}
		wait := gone.follow(ctx, h)
		cancel()
		if err := wait(); connect.CodeOf(err) != connect.CodeCanceled {
			t.Errorf("follow() = %v, want canceled", err)
		}
		// Nor is one waited for that never took anything, and leaves.
		stuck := h.subscribe()
		h.publish(kindStdout, []byte(full))
		published := make(chan bool, 1)
		go func() { h.publish(kindStdout, []byte("a")); published <- true }()
		synctest.Wait()
		h.leave(stuck)
		<-published
		if n := h.held(); n != 0 {
			t.Errorf("%d bytes are held although no subscriber is left", n)
		}
	})
}

func TestHubHurry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(newBlocks())
		r := &reader{gate: make(chan struct{})}
		wait := r.follow(t.Context(), h)
		h.publish(kindStdout, []byte(full))
		published := make(chan bool, 1)
		go func() { h.publish(kindStdout, []byte("a")); published <- true }()
		synctest.Wait()
		h.hurry()
		<-published
		close(r.gate)
		if err := wait(); connect.CodeOf(err) != connect.CodeUnavailable {
			t.Errorf("follow() = %v, want unavailable", err)
		}
	})
}

func TestKeepaliveEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, r := newHub(newBlocks()), &reader{}
		wait := r.follow(t.Context(), h)
		time.Sleep(defaultKeepalive - time.Second)
		h.publish(kindStdout, []byte("a")) // ends the silence
		time.Sleep(defaultKeepalive - time.Second)
		synctest.Wait()
		if diff := cmp.Diff([]string{"a"}, r.events()); diff != "" {
			t.Errorf("before the silence was long enough (-want +got):\n%s", diff)
		}
		time.Sleep(defaultKeepalive + 2*time.Second)
		h.finish(theEnd())
		if err := wait(); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"a", "keepalive", "keepalive", "end"}, r.events()); diff != "" {
			t.Errorf("events mismatch (-want +got):\n%s", diff)
		}
	})
}

func TestSendFails(t *testing.T) {
	h, broken := newHub(newBlocks()), errors.New("broken pipe")
	sub, done := h.subscribe(), make(chan error, 1)
	go func() {
		done <- h.follow(t.Context(), sub, defaultKeepalive, func(*pb.ProcessEvent) error { return broken })
	}()
	h.publish(kindStdout, []byte("a"))
	if err := <-done; !errors.Is(err, broken) {
		t.Errorf("follow() = %v, want %v", err, broken)
	}
}
