package qemu

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"wrenn/internal/vm"
)

// changesName is the file that lists the changes, in a snapshot's private directory.
const changesName = "changes"

const (
	// maxRuns bounds the list: 16 bytes each. A guest of 512 MiB has 1500 after its first commands.
	maxRuns = 1 << 15
	// maxChanged is the part of the memory beyond which nothing is listed: to
	// write so much into a machine costs no less than to map a copy of all of it.
	maxChanged = 4
)

// changes say in which pages a snapshot's memory differs from an older memory
// file, which stays whole as long as it is there: a machine can be made of that
// one, which may be mapped by many, and of these pages. They are a short cut: without
// the older file the snapshot is as good.
type changes struct {
	Basis basis      `json:"basis"`
	List  vm.FileSum `json:"list"`
}

// basis tells a memory file from every other, and from its own earlier.
type basis struct {
	Path  string `json:"path"`
	Inode uint64 `json:"inode"`
	Mtime int64  `json:"mtime"` // ns
}

func basisOf(f *os.File) (basis, error) {
	info, err := f.Stat()
	if err != nil {
		return basis{}, err
	}
	return basis{Path: f.Name(), Inode: info.Sys().(*syscall.Stat_t).Ino, Mtime: info.ModTime().UnixNano()}, nil
}

// open returns the file, unless it is gone or is another one by now.
func (b basis) open(size int64) (*os.File, error) {
	f, err := vm.OpenSized(b.Path, size)
	if err != nil {
		return nil, err
	}
	now, err := basisOf(f)
	if err == nil && now != b {
		err = errors.New("it is another file than before")
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", b.Path, err)
	}
	return f, nil
}

// writeChanges lists the pages in which the memory of the snapshot that is made
// in the directory private differs from what the machine has mapped. It returns nil when they
// are too many, or no list that could be read again.
func (m *machine) writeChanges(private string, runs []run, size int64) (*changes, error) {
	var over basis
	if !m.decode(refMapped, &over) || total(runs) > size/maxChanged || !areRows(runs, size) {
		return nil, nil
	}
	path := filepath.Join(private, changesName)
	if err := os.WriteFile(path, encodeRuns(runs), 0o600); err != nil {
		return nil, err
	}
	sum, err := vm.SumFile(path)
	return &changes{Basis: over, List: sum}, err
}

// read returns the list in the directory private.
func (c *changes) read(private string, size int64) ([]run, error) {
	f, err := c.List.Open(filepath.Join(private, changesName))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(f) // its size was looked at
	if err != nil {
		return nil, err
	}
	runs, err := decodeRuns(data, size)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", changesName, err)
	}
	return runs, nil
}

func total(runs []run) (n int64) {
	for _, r := range runs {
		n += r.end - r.start
	}
	return n
}

// encodeRuns writes begin and end of each row, little-endian.
func encodeRuns(runs []run) []byte {
	data := make([]byte, 0, 16*len(runs))
	for _, r := range runs {
		data = binary.LittleEndian.AppendUint64(data, uint64(r.start))
		data = binary.LittleEndian.AppendUint64(data, uint64(r.end))
	}
	return data
}

// decodeRuns reads rows of pages in a memory of the given size, in order.
func decodeRuns(data []byte, size int64) ([]run, error) {
	if len(data)%16 != 0 || len(data) > 16*maxRuns {
		return nil, errors.New("it is no list of pages")
	}
	runs := make([]run, 0, len(data)/16)
	for ; len(data) > 0; data = data[16:] {
		runs = append(runs, run{int64(binary.LittleEndian.Uint64(data)), int64(binary.LittleEndian.Uint64(data[8:]))})
	}
	if !areRows(runs, size) {
		return nil, errors.New("it is no list of pages of this memory")
	}
	return runs, nil
}

// areRows says whether these are rows of pages in a memory of the given size, in
// order and not too many. A VMM that maps a page twice has others.
func areRows(runs []run, size int64) bool {
	last := int64(0)
	for _, r := range runs {
		if r.start < last || r.end <= r.start || r.end > size || r.start%pageSize != 0 || r.end%pageSize != 0 {
			return false
		}
		last = r.end
	}
	return len(runs) <= maxRuns
}

// fillIn writes the pages of src in runs into the private mapping that the
// process pid has of file, its memory file of size bytes. They become its own by that.
func fillIn(ctx context.Context, pid int, file *syscall.Stat_t, size int64, src io.ReaderAt, runs []run) error {
	regions, err := wholeMemory(pid, file, size)
	if err != nil {
		return err
	}
	mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer mem.Close()
	buf := make([]byte, copyChunk)
	for _, r := range regions {
		for _, run := range runs {
			start, end := max(run.start, r.offset), min(run.end, r.offset+r.size)
			if start >= end {
				continue
			}
			if err := copyRange(ctx, buf, mem, r.addr+start-r.offset, src, start, end-start); err != nil {
				return fmt.Errorf("fill in memory: %w", err)
			}
		}
	}
	return nil
}
