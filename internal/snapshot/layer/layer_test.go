package layer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"wrenn.dev"
	"wrenn.dev/internal/testkit"
)

// object returns the source of an object.
func object(data []byte) Source {
	return func(_ context.Context, offset, length int64) (io.ReadCloser, error) {
		return io.NopCloser(io.NewSectionReader(bytes.NewReader(data), offset, length)), nil
	}
}

// file makes a file with the content.
func file(tb testing.TB, content []byte) *os.File {
	tb.Helper()
	f, err := os.Create(filepath.Join(tb.TempDir(), "f"))
	testkit.Must(tb, err)
	tb.Cleanup(func() { _ = f.Close() })
	_, err = f.Write(content)
	testkit.Must(tb, err)
	return f
}

// sparse makes a file of a size in which the blocks, of the numbers, have data.
func sparse(tb testing.TB, size int64, blocks map[int64]string) *os.File {
	tb.Helper()
	f := file(tb, nil)
	testkit.Must(tb, f.Truncate(size))
	for n, text := range blocks {
		_, err := f.WriteAt(bytes.Repeat([]byte(text), BlockSize/len(text)), n*BlockSize)
		testkit.Must(tb, err)
	}
	return f
}

func content(tb testing.TB, f *os.File) []byte {
	tb.Helper()
	data, err := os.ReadFile(f.Name())
	testkit.Must(tb, err)
	return data
}

func write(tb testing.TB, f *os.File, parent *Parent) ([]byte, Info) {
	tb.Helper()
	var out bytes.Buffer
	info, err := Write(tb.Context(), &out, f, parent, "team")
	testkit.Must(tb, err)
	if info.Bytes != int64(out.Len()) {
		tb.Errorf("the object has %d bytes, and Info has %d", out.Len(), info.Bytes)
	}
	return out.Bytes(), info
}

// apply makes a file from a copy of the parent's content and an object.
func apply(tb testing.TB, parent, data []byte, info Info) *os.File {
	tb.Helper()
	l, err := Open(tb.Context(), object(data), int64(len(data)), info.ID, "team")
	testkit.Must(tb, err)
	f := file(tb, parent)
	testkit.Must(tb, l.Apply(tb.Context(), f))
	return f
}

func TestSizes(t *testing.T) {
	for _, size := range []int{0, 1, 511, BlockSize - 1, BlockSize, BlockSize + 1, 17*BlockSize + 5} {
		want := bytes.Repeat([]byte("wrenn"), size/5+1)[:size]
		data, info := write(t, file(t, want), nil)
		if got := content(t, apply(t, nil, data, info)); !bytes.Equal(got, want) {
			t.Errorf("size %d: the content is another", size)
		}
	}
}

// TestGenerations writes, zeroes, grows and cuts a file at random, as a chain of layers.
func TestGenerations(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	child := file(t, nil)
	var parent *Parent
	var before []byte
	for generation := range 12 {
		change(t, rnd, child)
		data, info := write(t, child, parent)
		got := apply(t, before, data, info)
		before = content(t, child)
		if !bytes.Equal(content(t, got), before) {
			t.Fatalf("generation %d: the content is another", generation)
		}
		parent = &Parent{info.ID, file(t, before)}
	}
}

func change(t *testing.T, rnd *rand.Rand, f *os.File) {
	t.Helper()
	size := rnd.Int64N(64*BlockSize) + 1
	testkit.Must(t, f.Truncate(size))
	for range 8 {
		from := rnd.Int64N(size)
		data := make([]byte, min(size-from, rnd.Int64N(3*BlockSize)))
		if rnd.IntN(3) > 0 {
			for i := range data {
				data[i] = byte(rnd.Uint32())
			}
		} else if len(data) > 0 {
			testkit.Must(t, punch(f, from, int64(len(data))))
			continue
		}
		_, err := f.WriteAt(data, from)
		testkit.Must(t, err)
	}
}

// TestNothingIsFree: holes, zeros and what the parent has take nothing.
func TestNothingIsFree(t *testing.T) {
	const size = 1 << 34
	parent := sparse(t, size, map[int64]string{0: "a", 1: "b", 2: "c", 1000: "d"})
	_, base := write(t, parent, nil)
	if base.Blocks != 4 || base.Bytes > 1000 {
		t.Errorf("base: %+v", base)
	}
	child := sparse(t, size, map[int64]string{0: "a", 1: "\x00", 1000: "d", 2000: "\x00", 3000: "e"})
	data, info := write(t, child, &Parent{base.ID, parent})
	if info.Blocks != 1 || info.Bytes > 300 {
		t.Errorf("child: %+v", info)
	}
	x, err := parseIndex(data[len(data)-int(info.Bytes)+int(frameSize(t, data)) : len(data)-trailerSize])
	if diff := cmp.Diff([]run{{1, 2, true}, {3000, 1, false}}, x.runs, cmp.AllowUnexported(run{})); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	got := sparse(t, size, map[int64]string{0: "a", 1: "b", 2: "c", 1000: "d"})
	l, err := Open(t.Context(), object(data), int64(len(data)), info.ID, "team")
	testkit.Must(t, err)
	testkit.Must(t, l.Apply(t.Context(), got))
	again, same := write(t, got, &Parent{base.ID, parent})
	if same.ID != info.ID || !bytes.Equal(again, data) {
		t.Error("the file that was made has another layer")
	}
}

// frameSize returns the length of the frames of an object.
func frameSize(t *testing.T, data []byte) uint32 {
	t.Helper()
	return uint32(len(data)) - trailerSize - binary.BigEndian.Uint32(data[len(data)-trailerSize:])
}

func TestDamage(t *testing.T) {
	want := make([]byte, 40*BlockSize)
	for i := range want {
		want[i] = byte(i * i >> 8)
	}
	data, info := write(t, file(t, want), nil)
	try := func(data []byte, id ID, owner string) error {
		l, err := Open(t.Context(), object(data), int64(len(data)), id, owner)
		if err != nil {
			return err
		}
		return l.Apply(t.Context(), file(t, nil))
	}
	testkit.Must(t, try(data, info.ID, "team"))
	for n := range data {
		if n > 64 && n%(len(data)/100) != 0 {
			continue
		}
		changed := bytes.Clone(data)
		changed[n] ^= 0x40
		if try(changed, info.ID, "team") == nil {
			t.Errorf("byte %d of %d was changed, and nothing saw it", n, len(data))
		}
	}
	for _, n := range []int{0, 1, trailerSize, len(data) / 2, len(data) - 1} {
		testkit.WantCode(t, try(data[:n], info.ID, "team"), wrenn.FailedPrecondition, "damaged")
		testkit.WantCode(t, try(data[len(data)-n:], info.ID, "team"), wrenn.FailedPrecondition, "damaged")
	}
	testkit.WantCode(t, try(data, info.ID, "other"), wrenn.FailedPrecondition, "another team")
	other, _ := write(t, file(t, want[1:]), nil)
	testkit.WantCode(t, try(other, info.ID, "team"), wrenn.FailedPrecondition, "not the layer "+info.ID.String())
}

// TestFormats: what a newer version has written is refused with a reason.
func TestFormats(t *testing.T) {
	x := &index{fileSize: 5, owner: "team"}
	for says, change := range map[string]func([]byte){
		"has format 2":     func(b []byte) { b[9] = 2 },
		"is encrypted":     func(b []byte) { b[10] = aes256Frames },
		"unknown cipher 9": func(b []byte) { b[10] = 9 },
		"blocks of 65537":  func(b []byte) { b[14] = 1 },
	} {
		text := x.encode()
		change(text)
		data := append(binary.BigEndian.AppendUint32(bytes.Clone(text), uint32(len(text))), magic...)
		_, err := Open(t.Context(), object(data), int64(len(data)), sha256.Sum256(text), "team")
		testkit.WantCode(t, err, wrenn.FailedPrecondition, says)
	}
}

func TestIDs(t *testing.T) {
	_, info := write(t, file(t, []byte("x")), nil)
	text, err := info.ID.MarshalText()
	testkit.Must(t, err)
	var id ID
	if err := id.UnmarshalText(text); err != nil || id != info.ID {
		t.Errorf("%v, %v", id, err)
	}
	for _, text := range []string{"", "12", fmt.Sprintf("%064s", "g")} {
		testkit.WantCode(t, id.UnmarshalText([]byte(text)), wrenn.Invalid)
	}
}

// FuzzOpen opens and applies made-up objects.
func FuzzOpen(f *testing.F) {
	data, _ := write(f, sparse(f, 40*BlockSize+7, map[int64]string{0: "a", 5: "b", 39: "xyz4"}), nil)
	f.Add(data)
	f.Add([]byte{})
	f.Add(append(binary.BigEndian.AppendUint32((&index{fileSize: 3}).encode(), 56), magic...))
	path := filepath.Join(f.TempDir(), "f")
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) < trailerSize {
			return
		}
		length := int(binary.BigEndian.Uint32(data[len(data)-trailerSize:]))
		if length > len(data)-trailerSize {
			return
		}
		text := data[len(data)-trailerSize-length : len(data)-trailerSize]
		x, err := parseIndex(text)
		if err != nil {
			return
		}
		if again, err := parseIndex(x.encode()); err != nil || again.fileSize != x.fileSize || len(again.runs) != len(x.runs) {
			t.Fatalf("it is not parsed as it was written: %v", err)
		}
		l, err := Open(t.Context(), object(data), int64(len(data)), sha256.Sum256(text), x.owner)
		if err != nil {
			return
		}
		out, err := os.Create(path)
		testkit.Must(t, err)
		defer out.Close()
		_ = l.Apply(t.Context(), out) // an error, or not: but no crash
	})
}

// BenchmarkWrite compares a layer of 21 of 85 MiB, in which one byte of four is random, with
// reading both files and compressing what differs.
func BenchmarkWrite(b *testing.B) {
	rnd := rand.New(rand.NewPCG(1, 2))
	base, changed := make([]byte, 85<<20), make([]byte, 85<<20)
	for i := range base {
		base[i] = byte(i >> 6)
	}
	copy(changed, base)
	var differs []byte
	for at := 0; len(differs) < 21<<20; at += 4 * BlockSize {
		for i := at; i < at+BlockSize; i += 4 {
			changed[i] = byte(rnd.Uint32())
		}
		differs = append(differs, changed[at:at+BlockSize]...)
	}
	parent, child := file(b, base), file(b, changed)
	_, info := write(b, parent, nil)
	b.Run("layer", func(b *testing.B) {
		b.SetBytes(int64(len(differs)))
		for b.Loop() {
			_, err := Write(b.Context(), io.Discard, child, &Parent{info.ID, parent}, "team")
			testkit.Must(b, err)
		}
	})
	b.Run("bare", func(b *testing.B) {
		b.SetBytes(int64(len(differs)))
		enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
		testkit.Must(b, err)
		buf := make([]byte, 2<<20)
		for b.Loop() {
			for pos := int64(0); pos < int64(len(base)); pos += 1 << 20 {
				for _, f := range []*os.File{parent, child} {
					_, err := f.ReadAt(buf[:1<<20], pos)
					testkit.Must(b, err)
				}
			}
			for pos := 0; pos < len(differs); pos += 1 << 20 {
				enc.EncodeAll(differs[pos:min(pos+1<<20, len(differs))], buf[:0])
			}
		}
	})
}
