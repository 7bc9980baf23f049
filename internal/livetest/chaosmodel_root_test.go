//go:build root

package livetest_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"slices"

	"wrenn.dev/client"
	"wrenn.dev/internal/host/fakehost"
	"wrenn.dev/internal/vm/vmproc"
)

// The bytes of a sandbox that clients write: blocks, far enough from each other that they
// are stored in different ones of the snapshot store.
const (
	blockSize  = 4 << 10
	diskStride = 64 << 10
	diskBlocks = 8
	diskSize   = (diskBlocks + 1) * diskStride
	markSize   = 26 // of rand.Text, at the start of each file
)

// content is what a sandbox has in the files that its snapshots have.
type content struct {
	memory, disk []byte
}

func newContent() content {
	c := content{memory: make([]byte, vmproc.MemoryBytes), disk: make([]byte, diskSize)}
	copy(c.disk, fakehost.ImageText)
	return c
}

func (c content) clone() content {
	return content{slices.Clone(c.memory), slices.Clone(c.disk)}
}

// sums is what sha256sum prints for both.
func (c content) sums() string {
	return fmt.Sprintf("%x  -\n%x  -\n", sha256.Sum256(c.memory), sha256.Sum256(c.disk))
}

// change is one write to one of the files. The mark at the start of the file tells which
// was the last: a write is applied if it follows that, once, so that it may be repeated.
type change struct {
	file  string
	at    int // the block, in blocks of blockSize
	block []byte
	was   string // the mark before
	mark  string // the mark after
}

// writeScript applies a change. Its arguments are the file, the block, the mark before and
// the mark after; it gets the block. It ends with 3 if the file has another mark.
const writeScript = `exec 9>/root/lock; flock 9
have=$(head -c 26 "$1" | tr -d '\000')
[ "$have" = "$4" ] && exit 0
[ "$have" = "$3" ] || { echo "the mark is $have, not $3"; exit 3; }
dd of="$1" bs=4096 seek="$2" conv=notrunc iflag=fullblock status=none && printf %s "$4" | dd of="$1" bs=26 conv=notrunc status=none`

// readScript prints the sums of both files. Its argument is how much of the disk counts.
const readScript = `sha256sum < /root/memory; head -c "$1" /root/disk | sha256sum`

func (c content) file(name string) []byte {
	if name == vmproc.DiskFile {
		return c.disk
	}
	return c.memory
}

// apply makes the change.
func (c content) apply(w change) {
	file := c.file(w.file)
	copy(file[w.at*blockSize:], w.block)
	copy(file, w.mark)
}

// mark returns the mark of a file.
func (c content) mark(name string) string {
	return string(bytes.Trim(c.file(name)[:markSize], "\x00"))
}

// saved is a checkpoint.
type saved struct {
	id string
	content
}

// model is what a client knows of one of its sandboxes.
type model struct {
	user *user
	id   string
	want client.State
	content
	checkpoints []*saved // oldest first
	restore     bool     // it continues from a checkpoint when its host is lost
	// rewound is set after such a loss: it is at this checkpoint, or at a newer one.
	rewound *saved
	// onlyStored is set after such a loss: checkpoints that were not stored are gone.
	onlyStored bool
}

func (m *model) saved(id string) *saved {
	i := slices.IndexFunc(m.checkpoints, func(s *saved) bool { return s.id == id })
	if i < 0 {
		return nil
	}
	return m.checkpoints[i]
}

// guess says where the sandbox is that has the sums.
func (m *model) guess(sums string) string {
	for _, at := range m.checkpoints {
		if at.sums() == sums {
			return "at checkpoint " + at.id
		}
	}
	if m.sums() == sums {
		return "as it was when the host was lost"
	}
	return "at\n" + sums
}

// found takes the sums that the sandbox has, and returns an error if they are not what is known.
func (m *model) found(sums string) error {
	if m.rewound != nil {
		for _, at := range m.checkpoints[max(0, slices.Index(m.checkpoints, m.rewound)):] {
			if at.sums() == sums {
				m.content, m.rewound = at.clone(), nil
				return nil
			}
		}
		return fmt.Errorf("after the loss of its host it is at none of its checkpoints from %q on, but %s", m.rewound.id, m.guess(sums))
	}
	if want := m.sums(); sums != want {
		return fmt.Errorf("its memory and disk are\n%snot\n%s", sums, want)
	}
	return nil
}
