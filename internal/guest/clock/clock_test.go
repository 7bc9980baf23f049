package clock

import (
	"errors"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
)

// still is a machine whose clock only moves when it is set.
type still struct {
	now  time.Time
	sets []time.Time
	seed []byte
	err  error
}

func (m *still) Now() time.Time { return m.now }

func (m *still) SetTime(t time.Time) error {
	if m.err != nil {
		return m.err
	}
	m.now, m.sets = t, append(m.sets, t)
	return nil
}

func (m *still) AddEntropy(seed []byte) error {
	m.seed = seed
	return m.err
}

func TestFollow(t *testing.T) {
	t0 := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	at := func(d time.Duration) time.Time { return t0.Add(d) }
	for _, tc := range []struct {
		name string
		host []time.Time // in the order of arrival; the machine begins at t0
		want []time.Time // what it was set to
	}{
		{"right", []time.Time{t0}, nil},
		{"as good as right", []time.Time{at(50 * time.Millisecond), at(-50 * time.Millisecond)}, nil},
		{"behind", []time.Time{at(time.Hour)}, []time.Time{at(time.Hour)}},
		{"behind by little", []time.Time{at(51 * time.Millisecond)}, []time.Time{at(51 * time.Millisecond)}},
		{"ahead, or the message was slow", []time.Time{at(-3 * time.Second)}, nil},
		{"ahead", []time.Time{at(-3001 * time.Millisecond)}, []time.Time{at(-3001 * time.Millisecond)}},
		{"slower than the one before", []time.Time{at(time.Hour), at(time.Hour + time.Millisecond)}, []time.Time{at(time.Hour)}},
		{"overtaken", []time.Time{at(time.Hour), at(time.Hour - time.Second)}, []time.Time{at(time.Hour)}},
		{"host corrected", []time.Time{at(time.Hour), at(time.Minute)}, []time.Time{at(time.Hour), at(time.Minute)}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := &still{now: t0}
			c := New(m)
			for _, host := range tc.host {
				before := m.now
				moved, err := c.Follow(host)
				if err != nil {
					t.Fatal(err)
				}
				if moved != m.now.Sub(before) {
					t.Errorf("Follow(%v) = %v, but the clock moved %v", host, moved, m.now.Sub(before))
				}
			}
			if diff := cmp.Diff(tc.want, m.sets); diff != "" {
				t.Errorf("times set mismatch (-want +got):\n%s", diff)
			}
		})
	}
}

func TestMachineFails(t *testing.T) {
	m := &still{err: errors.New("not permitted")}
	c := New(m)
	if _, err := c.Follow(time.Now()); !errors.Is(err, m.err) {
		t.Errorf("Follow() = %v, want %v", err, m.err)
	}
	if err := c.AddEntropy([]byte{1}); !errors.Is(err, m.err) {
		t.Errorf("AddEntropy() = %v, want %v", err, m.err)
	}
	m.seed = nil
	if err := c.AddEntropy(nil); err != nil || m.seed != nil {
		t.Errorf("AddEntropy(nil) = %v, machine got %v; want nothing to happen", err, m.seed)
	}
}

// The layout is the kernel's: two ints, then the bytes.
func TestPoolInfo(t *testing.T) {
	info := newPoolInfo([]byte{1, 2, 3})
	if info.entropyCount != 24 || info.bufSize != 3 || info.buf[2] != 3 || unsafe.Offsetof(info.buf) != 8 {
		t.Errorf("newPoolInfo() = %+v", info)
	}
	if big := newPoolInfo(make([]byte, 4096)); big.bufSize != maxSeed {
		t.Errorf("bufSize = %d, want %d", big.bufSize, maxSeed)
	}
}
