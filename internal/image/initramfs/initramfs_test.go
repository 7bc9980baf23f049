package initramfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wrenn.dev/internal/image/modules"
	"wrenn.dev/internal/testkit"
)

// read unpacks archives in a row, as the kernel does.
func read(data []byte) ([]Entry, error) {
	var entries []Entry
	for pos := 0; pos < len(data); {
		if len(data)-pos < 110 || string(data[pos:pos+6]) != "070701" {
			return nil, fmt.Errorf("no header at %d", pos)
		}
		var field [13]uint32
		for i := range field {
			n, err := strconv.ParseUint(string(data[pos+6+8*i:pos+14+8*i]), 16, 32)
			if err != nil {
				return nil, err
			}
			field[i] = uint32(n)
		}
		size, nameLen := int(field[6]), int(field[11])
		name := data[pos+110 : pos+110+nameLen]
		pos = align(pos + 110 + nameLen)
		content := data[pos : pos+size]
		pos = align(pos + size)
		if name[len(name)-1] != 0 {
			return nil, errors.New("a name does not end in NUL")
		}
		e := Entry{Name: string(name[:nameLen-1]), Mode: field[1], Major: field[9], Minor: field[10]}
		if size > 0 {
			e.Data = content
		}
		if e.Name != "TRAILER!!!" {
			entries = append(entries, e)
		}
	}
	return entries, nil
}

func align(n int) int { return (n + 3) &^ 3 }

func TestWriteReadsBack(t *testing.T) {
	want := []Entry{
		{Name: "dev", Mode: modeDir | 0o755},
		{Name: "dev/console", Mode: modeChar | 0o600, Major: 5, Minor: 1},
		{Name: "a", Mode: modeFile | 0o644, Data: []byte("1")},
		{Name: "ab", Mode: modeFile | 0o755, Data: []byte("12")},
		{Name: "abc", Mode: modeFile | 0o600, Data: []byte("123")},
		{Name: "abcd", Mode: modeFile | 0o600, Data: []byte("1234")},
		{Name: "empty", Mode: modeFile | 0o600},
	}
	var out bytes.Buffer
	if err := Write(&out, want); err != nil {
		t.Fatal(err)
	}
	if out.Len()%4 != 0 {
		t.Errorf("the archive has %d bytes: another could not follow it", out.Len())
	}
	got, err := read(out.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("archive mismatch (-want +got):\n%s", diff)
	}
}

func TestWriteRefusesNames(t *testing.T) {
	for _, name := range []string{"", "/init"} {
		if err := Write(io.Discard, []Entry{{Name: name}}); err == nil {
			t.Errorf("Write took the name %q", name)
		}
	}
}

func TestCpioReadsIt(t *testing.T) {
	program := testkit.Program(t, "cpio")
	var out bytes.Buffer
	if err := WriteStage0(&out, []byte("program")); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, "-t", "--quiet")
	cmd.Stdin = &out
	list, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("dev\ndev/console\nproc\nroot\nsys\ninit\n", string(list)); diff != "" {
		t.Errorf("cpio -t mismatch (-want +got):\n%s", diff)
	}
}

func TestArchivesInARowAndDeterministic(t *testing.T) {
	list := []modules.Module{{Name: "b", Data: []byte("first")}, {Name: "a", Data: []byte("second")}}
	build := func() []byte {
		var out bytes.Buffer
		if err := errors.Join(WriteStage0(&out, []byte("program")), WriteModules(&out, list)); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	first := build()
	if !bytes.Equal(first, build()) {
		t.Error("the same input gave other bytes")
	}
	entries, err := read(first)
	if err != nil {
		t.Fatal(err)
	}
	last := entries[len(entries)-1]
	if last.Name != "modules" || string(last.Data) != "/lib/b.ko\n/lib/a.ko\n" {
		t.Errorf("manifest = %q: %q", last.Name, last.Data)
	}
}
