package process

import (
	"context"
	"io"
	"os"
	"sync"
	"testing"

	pb "wrenn.dev/proto/gen/envd/process"
)

// A caller that goes away just when its input is written must not cut the input of others.
func TestInputAfterCallersThatGo(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		_, _ = io.Copy(io.Discard, r) // until w is closed
		r.Close()
	}()
	in := newInput(w, false)
	defer func() { in.close(); <-drained }()
	piece := &pb.ProcessInput{Input: &pb.ProcessInput_Stdin{Stdin: []byte("x")}}
	for range 5000 {
		ctx, cancel := context.WithCancel(t.Context())
		var gone sync.WaitGroup
		gone.Go(cancel)
		_ = in.send(ctx, piece) // it may be written or not
		if err := in.send(t.Context(), piece); err != nil {
			t.Fatal(err)
		}
		gone.Wait()
	}
}
