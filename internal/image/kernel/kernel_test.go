package kernel

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"

	"wrenn.dev/internal/testkit"
)

// fakeKernel is the smallest ELF that check accepts, followed by code-like bytes:
// many calls and jumps for an x86 filter to change.
func fakeKernel(tb testing.TB) []byte {
	tb.Helper()
	const headers = 64 + 56
	body := make([]byte, 300<<10)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range body {
		switch n := rng.Uint32() % 8; {
		case n < 2:
			body[i] = byte(0xe8 + n)
		case n < 5:
			body[i] = 0
		case n == 5:
			body[i] = 0xff
		default:
			body[i] = byte(rng.Uint32())
		}
	}
	var out bytes.Buffer
	write := func(v any) {
		if err := binary.Write(&out, binary.LittleEndian, v); err != nil {
			tb.Fatal(err)
		}
	}
	write(elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: 1, Entry: 0x1000000,
		Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1,
	})
	write(elf.Prog64{Type: uint32(elf.PT_LOAD), Off: headers, Filesz: uint64(len(body)), Memsz: uint64(len(body))})
	out.Write(body)
	return out.Bytes()
}

// bzImage wraps a payload as the kernel's build does.
func bzImage(payload []byte) []byte {
	const setupSects, offset = 3, 100
	image := make([]byte, (setupSects+1)*sector+offset)
	image[offSetupSects] = setupSects
	copy(image[offMagic:], "HdrS")
	binary.LittleEndian.PutUint16(image[offVersion:], 0x020f)
	binary.LittleEndian.PutUint32(image[offPayloadOffset:], offset)
	binary.LittleEndian.PutUint32(image[offPayloadLength:], uint32(len(payload)))
	return append(append(image, payload...), "what follows"...)
}

// withSize appends the unpacked size, as the build does for all but gzip.
func withSize(packed, data []byte) []byte {
	return binary.LittleEndian.AppendUint32(bytes.Clone(packed), uint32(len(data)))
}

func pack(tb testing.TB, data []byte, compressor func(io.Writer) (io.WriteCloser, error)) []byte {
	tb.Helper()
	var out bytes.Buffer
	w, err := compressor(&out)
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		tb.Fatal(err)
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return out.Bytes()
}

func packGzip(tb testing.TB, data []byte) []byte {
	tb.Helper()
	return pack(tb, data, func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil })
}

func packZstd(tb testing.TB, data []byte) []byte {
	tb.Helper()
	return withSize(pack(tb, data, func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) }), data)
}

func packLZ4(tb testing.TB, data []byte) []byte {
	tb.Helper()
	return withSize(pack(tb, data, func(w io.Writer) (io.WriteCloser, error) {
		z := lz4.NewWriter(w)
		return z, z.Apply(lz4.LegacyOption(true))
	}), data)
}

func packXZ(tb testing.TB, data []byte) []byte {
	tb.Helper()
	return withSize(pack(tb, data, func(w io.Writer) (io.WriteCloser, error) {
		return xz.WriterConfig{CheckSum: xz.CRC32, BlockSize: 100 << 10}.NewWriter(w)
	}), data)
}

func TestVmlinux(t *testing.T) {
	want := fakeKernel(t)
	for _, tt := range []struct {
		name  string
		image []byte
	}{
		{"gzip", bzImage(packGzip(t, want))},
		{"zstd", bzImage(packZstd(t, want))},
		{"lz4", bzImage(packLZ4(t, want))},
		{"xz, several blocks", bzImage(packXZ(t, want))},
		{"an ELF already", want},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Vmlinux(tt.image)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%d bytes came out that are not the %d that went in", len(got), len(want))
			}
		})
	}
}

// TestVmlinuxOfRealXZ: the kernel's build uses the x86 filter, which no xz
// writer in Go has.
func TestVmlinuxOfRealXZ(t *testing.T) {
	program := testkit.Program(t, "xz")
	want := fakeKernel(t)
	for _, flags := range []string{"--check=crc32 --x86 --lzma2=preset=1", "--check=crc64 --x86 --lzma2=preset=1", "--check=none -1", "-1 -T2 --block-size=100KiB"} {
		t.Run(flags, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), program, append(strings.Fields(flags), "--stdout")...)
			cmd.Stdin = bytes.NewReader(want)
			packed, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			got, err := Vmlinux(bzImage(withSize(packed, want)))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Error("what came out is not what went in")
			}
		})
	}
}

func TestVmlinuxRefuses(t *testing.T) {
	kernel := fakeKernel(t)
	small := bytes.Clone(kernel[:200]) // its segment is cut off
	beyond := bzImage(packGzip(t, kernel))
	binary.LittleEndian.PutUint32(beyond[offPayloadLength:], 1<<31)
	old := bzImage(packGzip(t, kernel))
	binary.LittleEndian.PutUint16(old[offVersion:], 0x0207)
	arm := bytes.Clone(kernel)
	binary.LittleEndian.PutUint16(arm[18:], uint16(elf.EM_AARCH64))
	damaged := packXZ(t, kernel)
	damaged[len(damaged)/2] ^= 1
	cut := packLZ4(t, kernel)
	tests := []struct {
		name, want string
		image      []byte
	}{
		{"nothing", "neither an ELF nor a Linux kernel", nil},
		{"text", "neither an ELF nor a Linux kernel", bytes.Repeat([]byte("text"), 1000)},
		{"too old", "too old", old},
		{"a payload outside of the image", "not inside the image", beyond},
		{"an empty payload", "not inside the image", bzImage(nil)},
		{"another compression", "unknown compression", bzImage([]byte("BZh91AY&SY"))},
		{"no ELF inside", "kernel: ", bzImage(packGzip(t, []byte("hello")))},
		{"a cut segment", "cut off", bzImage(packGzip(t, small))},
		{"another machine", "not x86-64", arm},
		{"a damaged xz", "xz: ", bzImage(damaged)},
		{"a cut lz4", "unexpected EOF", bzImage(cut[:len(cut)/2])},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := Vmlinux(tt.image); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Vmlinux() = %v, want an error with %q", err, tt.want)
			}
		})
	}
}

func FuzzVmlinux(f *testing.F) {
	data := []byte("\x7fELF, though not much of one")
	for _, packed := range [][]byte{packGzip(f, data), packZstd(f, data), packLZ4(f, data), packXZ(f, data)} {
		f.Add(bzImage(packed))
	}
	f.Fuzz(func(t *testing.T, image []byte) {
		if len(image) > 1<<16 {
			t.Skip("large inputs find nothing that small ones do not")
		}
		if out, err := Vmlinux(image); err == nil && check(out) != nil {
			t.Error("Vmlinux returned what check refuses")
		}
	})
}
