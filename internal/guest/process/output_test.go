package process

import (
	"math/rand/v2"
	"testing"
)

// model is an output that forgets nothing.
type model struct {
	kinds []outputKind
	bytes []byte
}

func (m *model) append(kind outputKind, p []byte) {
	for range p {
		m.kinds = append(m.kinds, kind)
	}
	m.bytes = append(m.bytes, p...)
}

// check reads all that o holds, in pieces of up to limit bytes.
func (m *model) check(t *testing.T, o *output, limit int) {
	t.Helper()
	if o.head != uint64(len(m.bytes)) || o.tail > o.head {
		t.Fatalf("output from %d to %d, want until %d", o.tail, o.head, len(m.bytes))
	}
	for at := o.tail; at < o.head; {
		kind, p := o.read(at, limit)
		if len(p) == 0 || len(p) > limit {
			t.Fatalf("read(%d) returned %d bytes, limit %d", at, len(p), limit)
		}
		for i, b := range p {
			if n := at + uint64(i); m.bytes[n] != b || m.kinds[n] != kind {
				t.Fatalf("at %d: %d of output %d, want %d of output %d", n, b, kind, m.bytes[n], m.kinds[n])
			}
		}
		at += uint64(len(p))
	}
	if _, p := o.read(o.head, limit); p != nil {
		t.Fatalf("read at the head returned %d bytes", len(p))
	}
}

func TestOutputAgainstModel(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // the same at each run
	o := output{pool: newBlocks()}
	var m model
	for range 400 {
		piece := make([]byte, random.IntN(pipeChunk))
		if random.IntN(2) == 0 {
			piece = piece[:min(len(piece), 3)]
		}
		for i := range piece {
			piece[i] = byte(random.Uint32())
		}
		kind := outputKind(random.IntN(3))
		o.append(kind, piece)
		m.append(kind, piece)
		if random.IntN(20) == 0 {
			o.drop(o.tail + random.Uint64N(o.head-o.tail+1))
			m.check(t, &o, 1+random.IntN(pipeChunk))
		}
	}
	m.check(t, &o, pipeChunk)
	o.drop(o.head)
	if o.tail != o.head || o.held() != 0 {
		t.Errorf("after all was dropped: from %d to %d, %d bytes held", o.tail, o.head, o.held())
	}
	o.append(kindPTY, []byte("more"))
	m.append(kindPTY, []byte("more"))
	m.check(t, &o, 3)
	o.skip(7)
	if o.tail != o.head || o.held() != 0 {
		t.Errorf("after 7 bytes that were skipped: from %d to %d, %d bytes held", o.tail, o.head, o.held())
	}
}

// What was read stays as it was without a pool, whatever is written or dropped afterwards.
func TestOutputIsNotOverwritten(t *testing.T) {
	var o output
	o.append(kindStdout, []byte("one"))
	_, early := o.read(0, pipeChunk)
	for range 100 {
		o.append(kindStdout, make([]byte, 1000))
		o.drop(o.head - 10)
	}
	if string(early) != "one" {
		t.Errorf("what was read became %q", early)
	}
}

// Programs that go to and fro between their outputs take no more than five
// times the memory of what they put out.
func TestOutputMemoryOfManyRuns(t *testing.T) {
	var o output
	for i := range window {
		o.append(outputKind(i%2), []byte{'x'})
	}
	if n := o.held(); n > 6*window { // slices grow by a quarter more than they need
		t.Errorf("%d bytes are held for %d", n, window)
	}
}
