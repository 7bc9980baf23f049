package template

import (
	"bytes"
	"context"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

// inputLog is a process that keeps the sizes of what it is sent.
type inputLog struct {
	sizes  []int
	closed bool
}

func (l *inputLog) Send(_ context.Context, data []byte) error {
	l.sizes = append(l.sizes, len(data))
	return nil
}

func (l *inputLog) CloseInput(context.Context) error {
	l.closed = true
	return nil
}

func TestFeedJoinsSmallReads(t *testing.T) {
	var proc inputLog
	feed(t.Context(), &proc, iotest.OneByteReader(bytes.NewReader(make([]byte, 600<<10))))
	if diff := cmp.Diff([]int{256 << 10, 256 << 10, 88 << 10}, proc.sizes); diff != "" || !proc.closed {
		t.Errorf("sizes of the pieces: (-want +got)\n%s closed: %v", diff, proc.closed)
	}
}
