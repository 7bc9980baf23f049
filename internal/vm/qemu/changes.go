package qemu

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"wrenn.dev/internal/vm"
)

// changesName is the file that lists the changes, in a snapshot's private directory.
const changesName = "changes"

const (
	// maxRuns bounds the list, which has 16 bytes for each. A guest of 512 MiB has 1500
	// after its first commands.
	maxRuns = 1 << 15
	// maxChanged divides the memory: of a larger part nothing is listed, because to
	// write so much into a machine costs as much as to map a copy of all of it.
	maxChanged = 4
)

// changes lists the pages in which a snapshot's memory differs from an older memory
// file, its base. A machine can be restored from the base, which many machines may
// map, and these pages. That is an optimization: the snapshot does not need the base.
type changes struct {
	Base fileID     `json:"basis"`
	List vm.FileSum `json:"list"`
}

// writeChanges lists, in the directory private of a new snapshot, the pages in which
// its memory differs from the file that the machine has mapped. It returns nil if the
// pages are too many, or no list that could be read again.
func (m *machine) writeChanges(private string, runs []run, size int64) (*changes, error) {
	var base fileID
	if !m.decode(refMapped, &base) || total(runs) > size/maxChanged || !areValid(runs, size) {
		return nil, nil
	}
	path := filepath.Join(private, changesName)
	if err := os.WriteFile(path, encodeRuns(runs), 0o600); err != nil {
		return nil, err
	}
	sum, err := vm.SumFile(path)
	return &changes{Base: base, List: sum}, err
}

// read returns the list in the directory private.
func (c *changes) read(private string, size int64) ([]run, error) {
	f, err := c.List.Open(filepath.Join(private, changesName))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(f) // List has its size
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

// encodeRuns encodes start and end of each run, little-endian.
func encodeRuns(runs []run) []byte {
	data := make([]byte, 0, 16*len(runs))
	for _, r := range runs {
		data = binary.LittleEndian.AppendUint64(data, uint64(r.start))
		data = binary.LittleEndian.AppendUint64(data, uint64(r.end))
	}
	return data
}

// decodeRuns decodes runs of pages in a memory of the given size.
func decodeRuns(data []byte, size int64) ([]run, error) {
	if len(data)%16 != 0 || len(data) > 16*maxRuns {
		return nil, errors.New("not a list of pages")
	}
	runs := make([]run, 0, len(data)/16)
	for ; len(data) > 0; data = data[16:] {
		runs = append(runs, run{int64(binary.LittleEndian.Uint64(data)), int64(binary.LittleEndian.Uint64(data[8:]))})
	}
	if !areValid(runs, size) {
		return nil, errors.New("not a list of pages of this memory")
	}
	return runs, nil
}

// areValid reports whether these are runs of pages in a memory of the given size, in
// order and not too many. Those of a VMM that maps a page twice are not.
func areValid(runs []run, size int64) bool {
	last := int64(0)
	for _, r := range runs {
		if r.start < last || r.end <= r.start || r.end > size || r.start%pageSize != 0 || r.end%pageSize != 0 {
			return false
		}
		last = r.end
	}
	return len(runs) <= maxRuns
}

// fillIn writes the pages of src in runs into the private mapping that the process pid
// has of file, its memory file of size bytes. That makes the pages private.
func fillIn(ctx context.Context, pid int, file fileKey, size int64, src io.ReaderAt, runs []run) error {
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
