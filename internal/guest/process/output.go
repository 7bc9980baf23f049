package process

import (
	"sort"
	"sync"

	pb "wrenn.dev/proto/gen/envd/process"
)

// outputKind is one of a process's outputs.
type outputKind uint8

const (
	kindStdout outputKind = iota
	kindStderr
	kindPTY
)

// event returns the event of a piece of output.
func (k outputKind) event(p []byte) *pb.ProcessEvent_DataEvent {
	switch k {
	case kindStdout:
		return &pb.ProcessEvent_DataEvent{Output: &pb.ProcessEvent_DataEvent_Stdout{Stdout: p}}
	case kindStderr:
		return &pb.ProcessEvent_DataEvent{Output: &pb.ProcessEvent_DataEvent_Stderr{Stderr: p}}
	default:
		return &pb.ProcessEvent_DataEvent{Output: &pb.ProcessEvent_DataEvent_Pty{Pty: p}}
	}
}

const (
	// blockSize is how much is dropped at once.
	blockSize = 64 << 10
	// runSize is the memory that a change between outputs takes, in bytes. Counting it
	// bounds the memory of a process that changes often.
	runSize = 4
	// largePiece is the size of a write for which a block gets its full size at once.
	largePiece = 4 << 10
)

// newBlocks returns a pool for the memory of large blocks: a stream at full
// speed makes no garbage.
func newBlocks() *sync.Pool { return &sync.Pool{New: func() any { return new([blockSize]byte) }} }

// output is the recent output of a process: bytes at positions that count from
// its start, of all outputs in the order in which they were read. It takes memory
// only for what it holds.
type output struct {
	blocks     []*block   // adjacent, none empty
	tail, head uint64     // the first position that is held, and the one after the last
	pool       *sync.Pool // see newBlocks; nil once a stream may read what was dropped
}

// block holds adjacent bytes. What was written stays as it is until it is
// dropped, so that it can be sent while more is appended.
type block struct {
	start uint64
	data  []byte
	runs  []run
}

// run is a piece of a block from one output. It ends where the next one begins.
type run struct {
	begin uint16
	kind  outputKind
}

func (b *block) end() uint64 { return b.start + uint64(len(b.data)) }

// write appends as much of p as fits and returns how much that was.
func (b *block) write(kind outputKind, p []byte) (n int) {
	last := len(b.runs) - 1
	changes := last < 0 || b.runs[last].kind != kind
	room := blockSize - len(b.data) - runSize*max(0, last)
	if changes && last >= 0 {
		room -= runSize
	}
	n = max(0, min(len(p), room))
	if n == 0 {
		return 0
	}
	if changes {
		b.runs = append(b.runs, run{begin: uint16(len(b.data)), kind: kind})
	}
	b.data = append(b.data, p[:n]...)
	return n
}

// append copies p to the end.
func (o *output) append(kind outputKind, p []byte) {
	for len(p) > 0 {
		var n int
		if len(o.blocks) > 0 {
			n = o.blocks[len(o.blocks)-1].write(kind, p)
		}
		if n == 0 {
			b := &block{start: o.head}
			if len(p) >= largePiece && o.pool != nil {
				b.data = o.pool.Get().(*[blockSize]byte)[:0]
			}
			o.blocks = append(o.blocks, b)
			continue
		}
		o.head += uint64(n)
		p = p[n:]
	}
}

// skip counts n bytes that are not needed, and drops all that is held.
func (o *output) skip(n int) {
	o.head += uint64(n)
	o.drop(o.head)
}

// drop drops whole blocks before position at.
func (o *output) drop(at uint64) {
	n := 0
	for n < len(o.blocks) && o.blocks[n].end() <= at {
		n++
	}
	if n == 0 && len(o.blocks) > 0 {
		return
	}
	for i, b := range o.blocks[:n] {
		if o.pool != nil && cap(b.data) == blockSize {
			o.pool.Put((*[blockSize]byte)(b.data[:blockSize]))
		}
		o.blocks[i] = nil
	}
	if o.blocks = o.blocks[n:]; len(o.blocks) > 0 {
		o.tail = o.blocks[0].start
		return
	}
	o.blocks, o.tail = nil, o.head
}

// read returns up to limit bytes at a held position, all from one output,
// without a copy; none at the head.
func (o *output) read(at uint64, limit int) (outputKind, []byte) {
	i := sort.Search(len(o.blocks), func(i int) bool { return o.blocks[i].end() > at })
	if i == len(o.blocks) {
		return 0, nil
	}
	b := o.blocks[i]
	begin := int(at - b.start)
	r := sort.Search(len(b.runs), func(r int) bool { return int(b.runs[r].begin) > begin })
	end := len(b.data)
	if r < len(b.runs) {
		end = int(b.runs[r].begin)
	}
	end = min(end, begin+limit)
	return b.runs[r-1].kind, b.data[begin:end:end]
}

// held returns about how many bytes of memory it takes.
func (o *output) held() int {
	n := 0
	for _, b := range o.blocks {
		n += cap(b.data) + runSize*cap(b.runs)
	}
	return n
}
