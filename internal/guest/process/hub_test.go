package process

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"

	pb "wrenn/proto/gen/envd/process"
)

func stdout(text string) *pb.ProcessEvent {
	return &pb.ProcessEvent{Event: &pb.ProcessEvent_Data{Data: &pb.ProcessEvent_DataEvent{
		Output: &pb.ProcessEvent_DataEvent_Stdout{Stdout: []byte(text)},
	}}}
}

func theEnd() *pb.ProcessEvent { return endEvent(0, nil) }

// reader is a subscriber's stream: it notes what it got, and each event waits for gate if there is one.
type reader struct {
	gate chan struct{}

	mu  sync.Mutex // guards got
	got []string
}

func (r *reader) send(ev *pb.ProcessEvent) error {
	if r.gate != nil {
		<-r.gate
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case ev.GetData() != nil:
		r.got = append(r.got, string(ev.GetData().GetStdout()))
	case ev.GetEnd() != nil:
		r.got = append(r.got, "end")
	default:
		r.got = append(r.got, "keepalive")
	}
	return nil
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
		h := newHub()
		readers := []*reader{{}, {}, {}}
		var waits []func() error
		for _, r := range readers {
			waits = append(waits, r.follow(t.Context(), h))
		}
		var want []string
		for i := range 50 {
			want = append(want, fmt.Sprint(i))
			if !h.publish(stdout(fmt.Sprint(i))) {
				t.Fatal("publish() = false although all read")
			}
		}
		h.finish(theEnd())
		want = append(want, "end")
		for i, r := range readers {
			if err := waits[i](); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, r.events()); diff != "" {
				t.Errorf("reader %d mismatch (-want +got):\n%s", i, diff)
			}
		}
	})
}

func TestHubWithoutSubscribers(t *testing.T) {
	h := newHub()
	if !h.publish(stdout("lost")) {
		t.Error("publish() = false, want true: nobody has it")
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

// A lone subscriber may take an hour; two events are not on their way at once.
func TestHubLoneSubscriberIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub()
		r := &reader{gate: make(chan struct{})}
		wait := r.follow(t.Context(), h)
		published := make(chan bool, 1)
		go func() { published <- h.publish(stdout("a")) }()
		time.Sleep(time.Hour)
		select {
		case <-published:
			t.Fatal("publish() returned before the subscriber had sent the event on")
		default:
		}
		close(r.gate)
		if !<-published {
			t.Error("publish() = false, want true")
		}
		h.finish(theEnd())
		if err := wait(); err != nil {
			t.Error(err)
		}
	})
}

func TestHubCutsWhoStallsOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub()
		slow, quick := &reader{gate: make(chan struct{})}, &reader{}
		waitSlow := slow.follow(t.Context(), h)
		waitQuick := quick.follow(t.Context(), h)
		began := time.Now()
		if h.publish(stdout("a")) {
			t.Error("publish() = true although the slow one may still hold the event")
		}
		if took := time.Since(began); took != patience {
			t.Errorf("publish() waited %v, want %v", took, patience)
		}
		if !h.publish(stdout("b")) {
			t.Error("publish() = false after the slow one was cut off")
		}
		h.finish(theEnd())
		if err := waitQuick(); err != nil {
			t.Error(err)
		}
		close(slow.gate)
		if err := waitSlow(); connect.CodeOf(err) != connect.CodeResourceExhausted {
			t.Errorf("the slow one got %v, want resource_exhausted", err)
		}
		if diff := cmp.Diff([]string{"a", "b", "end"}, quick.events()); diff != "" {
			t.Errorf("quick reader mismatch (-want +got):\n%s", diff)
		}
	})
}

// When all stall, nobody is kept waiting by another one, and nobody is cut off.
func TestHubAllStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub()
		readers := []*reader{{gate: make(chan struct{})}, {gate: make(chan struct{})}}
		var waits []func() error
		for _, r := range readers {
			waits = append(waits, r.follow(t.Context(), h))
		}
		go func() {
			h.publish(stdout("a"))
			h.finish(theEnd())
		}()
		time.Sleep(time.Hour)
		close(readers[0].gate)
		time.Sleep(patience / 2)
		close(readers[1].gate)
		for i, r := range readers {
			if err := waits[i](); err != nil {
				t.Fatal(err)
			}
			if got := r.events(); !slices.Equal(got, []string{"a", "end"}) {
				t.Errorf("reader %d got %q", i, got)
			}
		}
	})
}

func TestHubSubscriberLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub()
		ctx, cancel := context.WithCancel(t.Context())
		gone := &reader{}
		wait := gone.follow(ctx, h)
		cancel()
		if err := wait(); connect.CodeOf(err) != connect.CodeCanceled {
			t.Errorf("follow() = %v, want canceled", err)
		}
		if !stuckLeaves(h, h.subscribe()) {
			t.Error("publish() = false after the only subscriber left")
		}
	})
}

// stuckLeaves publishes to s, which never takes the event and leaves.
func stuckLeaves(h *hub, s *subscriber) bool {
	published := make(chan bool, 1)
	go func() { published <- h.publish(stdout("a")) }()
	synctest.Wait()
	h.leave(s)
	return <-published
}

func TestHubHurry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub()
		r := &reader{gate: make(chan struct{})}
		wait := r.follow(t.Context(), h)
		published := make(chan bool, 1)
		go func() { published <- h.publish(stdout("a")) }()
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
		h, r := newHub(), &reader{}
		wait := r.follow(t.Context(), h)
		time.Sleep(defaultKeepalive - time.Second)
		h.publish(stdout("a")) // begins the silence anew
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
	h, broken := newHub(), errors.New("broken pipe")
	sub, done := h.subscribe(), make(chan error, 1)
	go func() {
		done <- h.follow(t.Context(), sub, defaultKeepalive, func(*pb.ProcessEvent) error { return broken })
	}()
	h.publish(stdout("a"))
	if err := <-done; !errors.Is(err, broken) {
		t.Errorf("follow() = %v, want %v", err, broken)
	}
}
