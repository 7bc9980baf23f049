package process

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"

	pb "wrenn.dev/proto/gen/envd/process"
)

func mustSession(t *testing.T, n int) *session {
	t.Helper()
	s, err := sessionOf(&pb.Session{Id: fmt.Sprintf("session-%08d", n)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// writer publishes pieces and tells how many are through.
type writer struct {
	h    *hub
	done chan int
}

// publishAll publishes n pieces of the size of maxUnsent in the background.
func publishAll(h *hub, n int) *writer {
	w := &writer{h: h, done: make(chan int, 1)}
	go func() {
		for range n {
			h.publish(kindStdout, []byte(full))
		}
		w.done <- n
	}()
	return w
}

// stuck reports whether the writer still waits when nothing else can happen.
func (w *writer) stuck() bool {
	synctest.Wait()
	return len(w.done) == 0
}

// lose is a stream that ends without a word.
func lose(t *testing.T, h *hub, f *subscriber) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_ = h.follow(ctx, f, time.Hour, func(*pb.ProcessEvent) error { return nil })
}

// drain sends f until the end, and returns what it got and where that began.
func drain(t *testing.T, h *hub, f *subscriber) (text string, at uint64) {
	t.Helper()
	at = f.next
	var got strings.Builder
	err := h.follow(t.Context(), f, time.Hour, func(ev *pb.ProcessEvent) error {
		if data := ev.GetData(); data != nil {
			if want := at + uint64(got.Len()); data.GetOffset() != want {
				t.Errorf("offset %d, want %d", data.GetOffset(), want)
			}
			got.Write(data.GetStdout())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got.String(), at
}

func TestSessionSlowsTheProgramUntilItAcknowledges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(newBlocks())
		s := mustSession(t, 1)
		f, _, err := h.open(s, nil)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			_ = h.follow(t.Context(), f, time.Hour, func(*pb.ProcessEvent) error { return nil }) // all is on its way at once
		}()
		const pieces = window / maxUnsent
		w := publishAll(h, pieces+1)
		time.Sleep(24 * time.Hour) // while there is a stream there is no limit
		if !w.stuck() {
			t.Fatal("more was put out than a session may miss")
		}
		if n := h.held(); n < window || n > window+window/4 {
			t.Errorf("%d bytes are held, want about %d", n, window)
		}
		if err := h.acknowledge(s.id, 1, false); err != nil {
			t.Fatal(err)
		}
		if w.stuck() {
			t.Error("the program still waits")
		}
		if err := h.acknowledge(s.id, window+maxUnsent, false); err != nil {
			t.Fatal(err)
		}
		if n := h.held(); n > replaySize+2*blockSize {
			t.Errorf("%d bytes are held of what was acknowledged, want no more than %d", n, replaySize)
		}
	})
}

func TestSessionHoldsForItsLostStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(newBlocks())
		s := mustSession(t, 1)
		f, _, _ := h.open(s, nil)
		h.publish(kindStdout, []byte("before"))
		lose(t, h, f)
		h.publish(kindStdout, []byte(" after"))
		time.Sleep(defaultHold - time.Second)
		at := uint64(3)
		f, lost, err := h.resume(s.id, &at)
		if err != nil || lost != 0 {
			t.Fatalf("resume() = %d lost, %v", lost, err)
		}
		time.Sleep(24 * time.Hour) // the time of the first loss is over
		h.finish(theEnd())
		if got, _ := drain(t, h, f); got != "ore after" {
			t.Errorf("resumed stream got %q", got)
		}
		lose(t, h, f)
		// The end, too, may have been lost on its way.
		f, _, err = h.resume(s.id, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got, at := drain(t, h, f); got != "ore after" || at != 3 {
			t.Errorf("without an offset it got %q from %d on", got, at)
		}
	})
}

func TestSessionLetsGoAfterItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(newBlocks())
		s := mustSession(t, 1)
		f, _, _ := h.open(s, nil)
		lose(t, h, f)
		const pieces = 4 * window / maxUnsent
		w := publishAll(h, pieces)
		time.Sleep(defaultHold - time.Second)
		if !w.stuck() {
			t.Fatal("the program did not wait for the lost stream")
		}
		time.Sleep(2 * time.Second)
		if w.stuck() {
			t.Fatal("the program waits without end")
		}
		h.finish(theEnd())
		f, lost, err := h.resume(s.id, new(uint64))
		if err != nil {
			t.Fatal(err)
		}
		got, at := drain(t, h, f)
		if lost == 0 || lost != at || at+uint64(len(got)) != pieces*maxUnsent {
			t.Errorf("%d bytes lost, then %d from %d on, want %d together", lost, len(got), at, pieces*maxUnsent)
		}
		if len(got) < replaySize {
			t.Errorf("%d bytes are left, want at least %d", len(got), replaySize)
		}
	})
}

func TestSessionLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(newBlocks())
		s := mustSession(t, 1)
		f, _, _ := h.open(s, nil)
		w := publishAll(h, 2*window/maxUnsent)
		lose(t, h, f)
		if !w.stuck() {
			t.Fatal("the program did not wait for the lost stream")
		}
		if err := h.acknowledge(s.id, 0, true); err != nil {
			t.Fatal(err)
		}
		if w.stuck() {
			t.Error("the program waits for a session that is over")
		}
	})
}

func TestSessionIsTakenOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(newBlocks())
		s := mustSession(t, 1)
		first := &reader{}
		f, _, _ := h.open(s, nil)
		done := make(chan error, 1)
		go func() { done <- h.follow(t.Context(), f, time.Hour, first.send) }()
		h.publish(kindStdout, []byte("one"))
		synctest.Wait()
		again, _, err := h.open(mustSession(t, 1), nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := <-done; connect.CodeOf(err) != connect.CodeAborted {
			t.Errorf("the first stream got %v, want aborted", err)
		}
		h.publish(kindStdout, []byte(" two"))
		h.finish(theEnd())
		if got, _ := drain(t, h, again); got != "one two" {
			t.Errorf("the second stream got %q, want what was not acknowledged", got)
		}
	})
}

// A lost session and a subscriber that waits: the session has its time, then it goes on.
func TestSessionAndPlainFollower(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(newBlocks())
		lostOne, _, _ := h.open(mustSession(t, 1), nil)
		lose(t, h, lostOne)
		plain := &reader{}
		wait := plain.follow(t.Context(), h)
		w := publishAll(h, 2*window/maxUnsent)
		if !w.stuck() {
			t.Fatal("the program did not wait for the lost stream")
		}
		time.Sleep(defaultHold + time.Second)
		if w.stuck() {
			t.Fatal("the program waits without end")
		}
		h.finish(theEnd())
		if err := wait(); err != nil {
			t.Fatal(err)
		}
		if got := plain.events(); len(got) != 2 || len(got[0]) != 2*window {
			t.Errorf("the plain subscriber got %d events", len(got))
		}
	})
}

func TestSessionRefusals(t *testing.T) {
	h := newHub(newBlocks())
	h.publish(kindStdout, []byte("abc"))
	beyond := uint64(4)
	if _, _, err := h.open(mustSession(t, 1), &beyond); connect.CodeOf(err) != connect.CodeOutOfRange {
		t.Errorf("open() beyond the head = %v", err)
	}
	if _, _, err := h.resume("session-00000001", nil); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("resume() of none = %v", err)
	}
	if err := h.acknowledge("session-00000001", 0, false); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("acknowledge() of none = %v", err)
	}
	for i := range maxSessions {
		if _, _, err := h.open(mustSession(t, i), nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.acknowledge("session-00000001", beyond, false); connect.CodeOf(err) != connect.CodeOutOfRange {
		t.Errorf("acknowledge() beyond the head = %v", err)
	}
	if _, _, err := h.open(mustSession(t, maxSessions), nil); connect.CodeOf(err) != connect.CodeResourceExhausted {
		t.Errorf("open() of one too many = %v", err)
	}
	// One that is over makes room.
	lose(t, h, h.find("session-00000003").stream)
	if err := h.acknowledge("session-00000003", 0, true); err != nil {
		t.Fatal(err)
	}
	if _, _, err := h.open(mustSession(t, maxSessions), nil); err != nil {
		t.Error(err)
	}
	if h.find("session-00000003") != nil {
		t.Error("another session was forgotten than the one that is over")
	}
}

func TestSessionIDs(t *testing.T) {
	for _, tc := range []struct {
		name string
		msg  *pb.Session
		ok   bool
	}{
		{"none", nil, true},
		{"good", &pb.Session{Id: "abc_-0123456789XYZ", HoldSec: 600}, true},
		{"short", &pb.Session{Id: "abc"}, false},
		{"long", &pb.Session{Id: strings.Repeat("a", 65)}, false},
		{"strange", &pb.Session{Id: "0123456789abcde\n"}, false},
		{"holds too long", &pb.Session{Id: "0123456789abcdef", HoldSec: 601}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := sessionOf(tc.msg); (err == nil) != tc.ok {
				t.Errorf("sessionOf() = %v", err)
			}
		})
	}
}

// What ended processes keep is bounded, the exit of the latest stays.
func TestEndedProcessesAreBounded(t *testing.T) {
	s := &Service{byPID: make(map[int]*proc), timers: make(map[*proc]*time.Timer)}
	t.Cleanup(func() {
		for _, timer := range s.timers {
			timer.Stop()
		}
	})
	for pid := range maxEnded + 10 {
		p := &proc{pid: pid, out: newHub(newBlocks())}
		if _, _, err := p.out.open(mustSession(t, pid), nil); err != nil {
			t.Fatal(err)
		}
		for range 8 {
			p.out.publish(kindStdout, []byte(full))
		}
		lose(t, p.out, p.out.find(mustSession(t, pid).id).stream)
		s.byPID[pid] = p
		s.retain(p)
	}
	output := 0
	for _, p := range s.byPID {
		output += p.out.held()
	}
	if output > maxEndedOutput || output < maxEndedOutput/2 {
		t.Errorf("%d bytes of output are kept, want about %d", output, maxEndedOutput)
	}
	if len(s.byPID) != maxEnded || len(s.timers) != maxEnded || s.byPID[9] != nil {
		t.Errorf("%d processes and %d timers are kept, want %d", len(s.byPID), len(s.timers), maxEnded)
	}
	f, lost, err := s.byPID[10].out.resume(mustSession(t, 10).id, new(uint64))
	if err != nil || lost != 8*maxUnsent || f.next != lost {
		t.Errorf("resume() of an early one = %d lost, %v", lost, err)
	}
}
