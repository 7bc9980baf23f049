package nfs

import (
	"bufio"
	"bytes"
	"log/slog"
	"os"
	"testing"
)

// FuzzCall answers anything as calls. Those that would change files are only parsed.
func FuzzCall(f *testing.F) {
	root, err := os.Open(f.TempDir())
	if err != nil {
		f.Fatal(err)
	}
	defer root.Close()
	s, err := New([]Export{{Name: "data", Root: root}}, slog.New(slog.DiscardHandler))
	if err != nil {
		f.Fatal(err)
	}
	for _, c := range [][3]uint32{{programMount, 1}, {programNFS, 0}, {programNFS, 2}, {programNFS, 8}, {programNFS, 17}} {
		e := make(encoder, 4)
		e.uint32(7, messageCall, rpcVersion, c[0], version, c[1], authSys)
		e.opaque(make([]byte, 20))
		e.uint32(authNone, 0)
		e.opaque([]byte("/data"))
		e.uint32(1, 0o644, 1, 0, 1, 0, 0, 2, 5, 5, 1)
		f.Add(e.seal())
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		in := bufio.NewReader(bytes.NewReader(stream))
		for {
			record, err := readRecord(in)
			if err != nil {
				return
			}
			if len(record) > maxRecord {
				t.Fatalf("a record of %d bytes", len(record))
			}
			c, err := parseCall(record)
			if err != nil {
				continue
			}
			d := &decoder{rest: c.args}
			_, _ = d.opaque(maxHandle), d.settings()
			if c.program != programNFS {
				s.answer(c)
			}
		}
	})
}
