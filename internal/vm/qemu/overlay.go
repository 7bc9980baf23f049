package qemu

import (
	"bufio"
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"slices"
	"syscall"
)

// region is a part of a process's address space that maps a part of its memory file.
type region struct {
	addr, size, offset int64
}

// memoryOf returns the mappings of the file in the process pid.
func memoryOf(pid int, file fileKey) ([]region, error) {
	maps, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, err
	}
	defer maps.Close()
	found, err := mappings(maps, file.Inode)
	if err != nil {
		return nil, err
	}
	// Files of other file systems may have the same inode number, and on btrfs and
	// overlayfs the device in maps is not that of stat.
	return slices.DeleteFunc(found, func(r region) bool {
		var mapped syscall.Stat_t
		err := syscall.Stat(fmt.Sprintf("/proc/%d/map_files/%x-%x", pid, r.addr, r.addr+r.size), &mapped)
		return err != nil || keyOfStat(&mapped) != file // the caller notices a missing one by the sum
	}), nil
}

// mappings returns the mappings of files with the given inode number, see
// proc_pid_maps(5).
func mappings(maps io.Reader, inode uint64) ([]region, error) {
	var found []region
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		var start, end, offset int64
		var mode, dev string
		var ino uint64
		if n, err := fmt.Sscanf(lines.Text(), "%x-%x %s %x %s %d", &start, &end, &mode, &offset, &dev, &ino); err != nil || n != 6 {
			continue // the address of vsyscall does not fit an int64; it maps no file
		}
		if ino == inode && end > start {
			found = append(found, region{addr: start, size: end - start, offset: offset})
		}
	}
	return found, lines.Err()
}

// wholeMemory returns the mappings of the memory file of the process pid. All its size
// bytes must be mapped.
func wholeMemory(pid int, file fileKey, size int64) ([]region, error) {
	regions, err := memoryOf(pid, file)
	if err != nil {
		return nil, err
	}
	mapped := int64(0)
	for _, r := range regions {
		mapped += r.size
	}
	if mapped != size {
		return nil, fmt.Errorf("%d of %d bytes of memory are mapped", mapped, size)
	}
	return regions, nil
}

// overlayPrivate writes the pages that the process pid has changed in the private
// mapping of its memory file to dst, at their offsets in the file, and returns these
// offsets in order. The process must not change the pages at the same time. file is
// its memory file, of size bytes.
func overlayPrivate(ctx context.Context, dst io.WriterAt, pid int, file fileKey, size int64) ([]run, error) {
	regions, err := wholeMemory(pid, file, size)
	if err != nil {
		return nil, err
	}
	pagemap, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	if err != nil {
		return nil, err
	}
	defer pagemap.Close()
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return nil, err
	}
	defer mem.Close()
	buf := make([]byte, copyChunk)
	var changed []run
	for _, r := range regions {
		runs, err := privatePages(pagemap, r.addr, r.addr+r.size)
		if err != nil {
			return nil, err
		}
		for _, at := range runs {
			in := run{r.offset + at.start - r.addr, r.offset + at.end - r.addr}
			if err := copyRange(ctx, buf, dst, in.start, mem, at.start, at.end-at.start); err != nil {
				return nil, fmt.Errorf("changed memory: %w", err)
			}
			changed = append(changed, in)
		}
	}
	slices.SortFunc(changed, func(a, b run) int { return cmp.Compare(a.start, b.start) })
	return changed, nil
}

// run is a sequence of pages in a memory file or an address space.
type run struct{ start, end int64 }

// Bits of an entry of /proc/PID/pagemap; see the kernel's
// Documentation/admin-guide/mm/pagemap.rst.
//
// PAGEMAP_SCAN (Linux 6.7) would save 1 ms for 512 MiB, but on 6.18 it returned some
// runs twice where one of its buffers ended.
const (
	pagePresent = 1 << 63
	pageSwapped = 1 << 62
	pageOfFile  = 1 << 61
)

// private reports whether a page of a private mapping of a file is private to the
// process because it was written to, whatever its content.
func private(entry uint64) bool {
	return entry&(pagePresent|pageSwapped) != 0 && entry&pageOfFile == 0
}

// privatePages returns the private pages between two addresses.
func privatePages(pagemap io.ReaderAt, start, end int64) ([]run, error) {
	var runs []run
	entries := make([]byte, 256<<10)
	for start < end {
		part := entries[:min(int64(len(entries)), (end-start)/pageSize*8)]
		if _, err := pagemap.ReadAt(part, start/pageSize*8); err != nil {
			return nil, fmt.Errorf("pagemap: %w", err)
		}
		runs = appendPrivate(runs, part, start)
		start += int64(len(part)) / 8 * pageSize
	}
	return runs, nil
}

// appendPrivate appends the runs of private pages in a piece of a pagemap that begins
// at the address start. A run that begins where the last one ended extends that.
func appendPrivate(runs []run, entries []byte, start int64) []run {
	for addr := start; len(entries) > 0; addr, entries = addr+pageSize, entries[8:] {
		if !private(binary.NativeEndian.Uint64(entries)) {
			continue
		}
		if last := len(runs) - 1; last >= 0 && runs[last].end == addr {
			runs[last].end += pageSize
		} else {
			runs = append(runs, run{addr, addr + pageSize})
		}
	}
	return runs
}
